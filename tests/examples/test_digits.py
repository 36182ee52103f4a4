import json
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.examples.running import PATIENCE_S, Job, outcome, wait_for_line

pytestmark = pytest.mark.slow


def seat(rank: int, port: int, devices: str = "0,1") -> dict[str, object]:
    return {
        "RANK": rank,
        "WORLD_SIZE": 2,
        "LOCAL_RANK": 0,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "HUB_DEVICES": devices,
    }


def start_both(jobs: list[Job], port: int, *options: str) -> list[subprocess.Popen[str]]:
    return [
        job.start("train_distributed.py", *options, **seat(rank, port, f"{2 * rank},{2 * rank + 1}"))
        for rank, job in enumerate(jobs)
    ]


def result_of(job: Job) -> dict[str, object]:
    return json.loads((job.folder / "result.json").read_text())


def test_one_card_learns_the_digits_and_says_so(job: Job) -> None:
    status, output, errors = job.run("train.py", CUDA_VISIBLE_DEVICES="5")
    assert (status, errors) == (0, "")
    result = result_of(job)
    assert sorted(result) == ["devices", "epochs", "seconds", "test_accuracy"]
    assert result["test_accuracy"] >= 0.95
    assert result["epochs"] == 60
    assert result["devices"] == [[0, "5"]]
    assert "epoch 1: loss" in output
    assert "done: test accuracy 0.9" in output


def test_the_same_seed_learns_the_same_weights(jobs: list[Job]) -> None:
    for job in jobs:
        assert job.run("train.py", "--epochs", "20", "--seed", "7")[0] == 0
    first, second = (read_checkpoint(job) for job in jobs)
    assert first == second


def test_the_gradient_is_the_slope_of_the_loss(job: Job) -> None:
    slopes = """
import mlp, numpy as np
train, _ = mlp.load_data()
batch, weights = train[slice(0, 32)], mlp.new_model(3).weights
gradient = mlp.batch_sums(weights, batch)[:-2]
loss = lambda moved: mlp.batch_sums(moved, batch)[-2]
def slope(index, width=1e-6):
    step = np.zeros_like(weights)
    step[index] = width
    return (loss(weights + step) - loss(weights - step)) / (2 * width)
chosen = np.random.default_rng(0).integers(0, len(weights), 200)
print(max(abs(slope(index) - gradient[index]) for index in chosen))
"""
    status, output, errors = job.run("-c", slopes)
    assert (status, errors) == (0, "")
    assert float(output) < 1e-6


def test_too_few_epochs_are_an_error_with_a_result(job: Job) -> None:
    status, _, errors = job.run("train.py", "--epochs", "1")
    assert status == 1
    assert "below 0.95; train for more epochs" in errors
    assert result_of(job)["test_accuracy"] < 0.95


def test_refining_lasts_as_long_as_asked(job: Job) -> None:
    status, _, errors = job.run("train.py", "--epochs", "1", "--seconds-min", "2")
    assert (status, errors) == (0, "")
    assert result_of(job)["seconds"] >= 2
    assert result_of(job)["epochs"] > 1


@pytest.mark.parametrize(
    "options", [["--epochs", "0"], ["--seed", "-1"], ["--epochs", "many"], ["--seconds-min", "nan"]]
)
def test_an_option_without_sense_is_refused(job: Job, options: list[str]) -> None:
    status, _, errors = job.run("train.py", *options)
    assert status == 2
    assert options[0] in errors


def test_a_stopped_training_leaves_a_checkpoint_that_continues(job: Job) -> None:
    process = job.start("train.py", "--seconds-min", "60")
    wait_for_line(process, "epoch")
    wait_for_line(process, "epoch")
    process.send_signal(signal.SIGTERM)
    status, output, errors = outcome(process)
    assert (status, errors) == (143, "")
    assert "checkpoint.npz continues from there" in output
    assert not (job.folder / "result.json").exists()
    epoch, _ = read_checkpoint(job)
    assert epoch > 1
    status, output, errors = job.run("train.py", "--resume", "--epochs", str(epoch + 5))
    assert (status, errors) == (0, "")
    assert f"from epoch {epoch + 1}\n" in output
    assert result_of(job)["epochs"] == epoch + 5


@pytest.mark.parametrize(
    "script",
    [
        "python -W error train.py",
        "RANK=1 python -W error train_distributed.py & RANK=0 python -W error train_distributed.py && wait $!",
    ],
    ids=["one card", "two ranks on loopback"],
)
def test_a_sandbox_without_network_and_other_files_is_enough(
    job: Job, digits_python: Path, free_port: int, script: str
) -> None:
    seats = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port)}
    finished = subprocess.run(
        [*sandbox(digits_python.parents[1].resolve(), job.folder), "/bin/sh", "-c", script],
        env={"PATH": f"{digits_python.parent.resolve()}", **seats},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (finished.returncode, finished.stderr) == (0, "")
    assert result_of(job)["test_accuracy"] >= 0.95


def sandbox(environment: Path, folder: Path) -> list[str]:
    """Only the environment and the Python it was made from, /usr, an empty /tmp and the working directory."""
    settings = dict(
        line.split(" = ", 1) for line in (environment / "pyvenv.cfg").read_text(encoding="utf-8").splitlines()
    )
    readable = ["/usr", str(Path(settings["home"]).resolve().parent), str(environment)]
    return [
        *(shutil.which("bwrap") or "bwrap", "--unshare-all", "--die-with-parent"),
        *("--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"),  # noqa: S108 - the sandbox's own
        *(word for name in ("bin", "lib", "lib64") for word in ("--symlink", f"usr/{name}", f"/{name}")),
        *(word for path in readable for word in ("--ro-bind", path, path)),
        *("--bind", str(folder), "/job", "--chdir", "/job"),
    ]


def test_two_nodes_with_two_cards_each_learn_the_same_weights(jobs: list[Job], free_port: int) -> None:
    outcomes = [outcome(process) for process in start_both(jobs, free_port)]
    assert [(status, errors) for status, _, errors in outcomes] == [(0, ""), (0, "")]
    assert "rank 0: 719 images on devices 0, 1" in outcomes[0][1]
    assert "rank 1: 718 images on devices 2, 3" in outcomes[1][1]
    result = result_of(jobs[0])
    assert result["test_accuracy"] >= 0.95
    assert result["devices"] == [[0, "0"], [0, "1"], [1, "2"], [1, "3"]]
    assert result["world_size"] == 2
    assert not (jobs[1].folder / "result.json").exists()
    assert read_checkpoint(jobs[0]) == (60, result["weights_sha256"])


def test_a_rank_whose_card_computes_wrongly_is_noticed(jobs: list[Job], free_port: int) -> None:
    faulty = """
import sys, mlp, train_distributed
step = mlp.Model.step
def drifting_step(model, sums):
    loss = step(model, sums)
    model.weights[0] += 1e-12
    return loss
mlp.Model.step = drifting_step
sys.exit(train_distributed.main())
"""
    ranks = [
        jobs[0].start("train_distributed.py", "--epochs", "2", **seat(0, free_port)),
        jobs[1].start("-c", faulty, "--epochs", "2", **seat(1, free_port)),
    ]
    for status, _, errors in map(outcome, ranks):
        assert status == 1
        assert "the ranks hold different weights: rank 0" in errors
    assert not (jobs[0].folder / "result.json").exists()


def test_ranks_refine_together_until_the_clock_of_rank_0(jobs: list[Job], free_port: int) -> None:
    patient = jobs[0].start("train_distributed.py", "--seconds-min", "2", **seat(0, free_port))
    hasty = jobs[1].start("train_distributed.py", "--epochs", "1", **seat(1, free_port))
    assert outcome(hasty)[0] == 0
    assert outcome(patient)[0] == 0
    assert result_of(jobs[0])["seconds"] >= 2


def test_rank_0_whose_peer_never_comes_says_so(job: Job, free_port: int) -> None:
    status, _, errors = job.run("train_distributed.py", "--timeout", "1", **seat(0, free_port))
    assert status == 1
    assert errors == "rank 0: only 1 of 2 ranks came within 1 s; missing: 1\n"


def test_rank_1_without_rank_0_says_so(job: Job, free_port: int) -> None:
    status, _, errors = job.run("train_distributed.py", "--timeout", "1", **seat(1, free_port))
    assert status == 1
    assert errors == f"rank 1: rank 0 did not answer at 127.0.0.1:{free_port} within 1 s\n"


@pytest.mark.parametrize("killed", [0, 1])
def test_a_rank_ends_when_its_peer_dies(jobs: list[Job], free_port: int, killed: int) -> None:
    ranks = start_both(jobs, free_port, "--seconds-min", "60")
    wait_for_line(ranks[0], "epoch")
    ranks[killed].kill()
    status, _, errors = outcome(ranks[1 - killed])
    assert status == 1
    assert errors == f"rank {1 - killed}: rank {killed} ended or hung up before the others were done\n"


def test_a_frozen_peer_is_given_up(jobs: list[Job], free_port: int) -> None:
    train = ("train_distributed.py", "--seconds-min", "60")
    peer = jobs[1].start(*train, **seat(1, free_port))
    wait_for_line(peer, "rank 1 of 2 meets the others")
    impatient = jobs[0].start(*train, "--timeout", "5", **seat(0, free_port))
    wait_for_line(impatient, "epoch")
    peer.send_signal(signal.SIGSTOP)
    status, _, errors = outcome(impatient)
    assert (status, errors) == (1, "rank 0: rank 1 said nothing for 5 s\n")


def test_a_stopped_gang_leaves_the_checkpoint_of_rank_0(jobs: list[Job], free_port: int) -> None:
    ranks = start_both(jobs, free_port, "--seconds-min", "60")
    wait_for_line(ranks[0], "epoch")
    ranks[1].send_signal(signal.SIGSTOP)  # holds rank 1, so that both are asked before either acts
    ranks[0].send_signal(signal.SIGTERM)
    assert outcome(ranks[0])[0] == 143
    ranks[1].send_signal(signal.SIGTERM)
    ranks[1].send_signal(signal.SIGCONT)
    assert outcome(ranks[1])[0] == 143
    assert read_checkpoint(jobs[0])[0] >= 1
    assert not (jobs[1].folder / "checkpoint.npz").exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_is_stopped_while_it_waits_for_the_others(job: Job, free_port: int, rank: int) -> None:
    process = job.start("train_distributed.py", **seat(rank, free_port))
    wait_for_line(process, f"rank {rank} of 2 meets the others")
    process.send_signal(signal.SIGTERM)
    assert outcome(process)[0] == 143


def test_a_process_that_is_no_rank_is_refused(job: Job) -> None:
    status, _, errors = job.run("train_distributed.py")
    assert (status, errors) == (2, "RANK is not set; start this program as a distributed job\n")


def test_the_failing_job_says_what_it_lacks(job: Job) -> None:
    status, output, errors = job.run("fail.py")
    assert (status, output) == (3, "")
    assert errors == "there is no measurements.csv in the job's working directory; upload it with the job\n"


def read_checkpoint(job: Job) -> tuple[int, str]:
    program = (
        "import mlp, pathlib; model = mlp.load_model(pathlib.Path('checkpoint.npz')); "
        "print(model.epoch, model.fingerprint())"
    )
    status, output, errors = job.run("-c", program)
    assert (status, errors) == (0, "")
    epoch, fingerprint = output.split()
    return int(epoch), fingerprint
