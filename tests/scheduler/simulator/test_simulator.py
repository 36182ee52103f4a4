"""Readers refuse by file, line and field; runs write what they promise; policies keep their order."""

import gzip
import json
import re
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from kernel.errors import HubError
from scheduler.policy.model import Queue, Quota
from scheduler.policy.queues import QueueTree
from scheduler.simulator.clusters import read_cluster
from scheduler.simulator.generator import WorkloadShape, generate
from scheduler.simulator.readers import read_trace
from scheduler.simulator.running import Options, prepare, resolve_policy, run_simulation
from scheduler.simulator.workload import with_limits

ELASTIC = "job_id,submission_time,duration,num_gpu\na,0,100,8\nb,5,50,20\nc,6,10,1\nhuge,7,10,99\n"
SWF = "; comment\n" + "1 0 -1 100 4 -1 -1 4 200 -1 1 7 -1 -1 1 -1 -1 -1\n"
OPENB = "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec\np,1000,10,1,500,T4|V100\nq,1000,10,0,0,\n"
HUB = "job_id,submitted_s,duration_s,devices,models,topology\nx,0,10,2,A100|910B,spread\n"


def written(folder: Path, text: str, name: str = "trace") -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("text", "name", "ids"),
    [(ELASTIC, "elasticflow", ["a", "b", "c", "huge"]), (SWF, "swf", ["1"]), (OPENB, "openb", ["p", "q"])],
)
def test_every_format_is_read(tmp_path: Path, text: str, name: str, ids: list[str]) -> None:
    assert [one.job.id for one in read_trace(written(tmp_path, text), name, 8)] == ids


def test_the_hubs_own_formats_say_the_same(tmp_path: Path) -> None:
    row = {
        "job_id": "x",
        "submitted_s": 0,
        "duration_s": 10,
        "devices": 2,
        "models": "A100|910B",
        "topology": "spread",
    }
    as_csv = read_trace(written(tmp_path, HUB), "csv", 8)
    assert as_csv == read_trace(written(tmp_path, json.dumps(row) + "\n", "other"), "json", 8)
    assert as_csv[0].job.models == ("A100", "910B")


def test_more_devices_than_a_node_has_become_whole_nodes_and_an_empty_one_for_the_rest(tmp_path: Path) -> None:
    job = read_trace(written(tmp_path, ELASTIC), "elasticflow", 8)[1].job
    assert (job.nodes, job.devices_per_node, job.tail_devices) == (2, 8, 4)


@pytest.mark.parametrize(
    ("text", "name", "told"),
    [
        ("job_id,submission_time,duration,num_gpu\na,0,x,1\n", "elasticflow", "line 2, field 'duration'"),
        ("job_id,submission_time,duration,num_gpu\na,0,5,0\n", "elasticflow", "field 'num_gpu'"),
        ("job_id,submission_time,duration,num_gpu\na,0,5,1,9\n", "elasticflow", "more fields"),
        ("job_id,submission_time,duration,num_gpu\na,0,5,1\na,0,5,1\n", "elasticflow", "occurs twice"),
        ("job_id,submission_time,duration,num_gpu\n", "elasticflow", "holds no job"),
        ("1 2 3\n", "swf", "line 1"),
        ("{\n", "json", "is not JSON"),
        (HUB.replace("spread", "ring"), "csv", "same-switch"),
        (ELASTIC, "slurm", "known formats are elasticflow, openb, swf, csv, json"),
        (
            ELASTIC.replace("0,100,8", "0,1e300,8"),
            "elasticflow",
            "line 2, field 'duration': '1e300' must be at most",
        ),
        (ELASTIC.replace("0,100,8", "nan,100,8"), "elasticflow", "line 2, field 'submission_time': 'nan' must"),
        (ELASTIC.replace("a,0", "a" * 200_000 + ",0"), "elasticflow", "line 2, .* is not CSV: field larger"),
        (HUB.replace("models", "model"), "csv", "line 2, field 'model': 'A100|910B' is no field here"),
        (HUB.replace("topology", "devices"), "csv", "line 1, field 'devices': .* more than once"),
        (HUB.replace("topology", "preemptible"), "csv", "'spread' is neither true nor false"),
        (HUB.replace("topology", "time_limit_s").replace("spread", "0"), "csv", "line 2, field 'time_limit_s'"),
        (HUB.replace("topology", "slots_milli").replace("spread", "1001"), "csv", "must be at most 1000"),
        (
            '{"job_id": {}, "submitted_s": 0, "duration_s": 1}',
            "json",
            "line 1, field 'job_id': {} is not a text",
        ),
        ('{"duration_s": ' + "9" * 5000 + "}", "json", "line 1, .* is not JSON"),
        ("[" * 100_000, "json", "line 1, .* is not JSON"),
        ("\n\n[1]", "json", "line 3, .* is not a JSON object"),
    ],
)
def test_bad_traces_are_refused_with_file_line_and_field(
    tmp_path: Path, text: str, name: str, told: str
) -> None:
    with pytest.raises(HubError, match=told):
        read_trace(written(tmp_path, text), name, 8)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (gzip.compress(ELASTIC.encode()), "is compressed: unpack it first"),
        (ELASTIC.replace("b,5", "é,5").encode("latin-1"), "line 3, .* is not UTF-8"),
        (ELASTIC.encode("utf-16"), "line 1, .* is not UTF-8"),
    ],
)
def test_a_file_that_is_no_text_is_refused_by_line(tmp_path: Path, data: bytes, told: str) -> None:
    (tmp_path / "trace").write_bytes(data)
    with pytest.raises(HubError, match=told):
        read_trace(tmp_path / "trace", "elasticflow", 8)


def test_a_byte_order_mark_windows_line_ends_and_lists_of_json_are_understood(tmp_path: Path) -> None:
    plain = read_trace(written(tmp_path, HUB), "csv", 8)
    (tmp_path / "office").write_bytes(b"\xef\xbb\xbf" + HUB.replace("\n", "\r\n").encode())
    assert read_trace(tmp_path / "office", "csv", 8) == plain
    row = {"job_id": "x", "submitted_s": 0, "duration_s": 10, "devices": 2, "topology": "spread"}
    lists = json.dumps({**row, "models": ["A100", "910B"]})
    assert read_trace(written(tmp_path, lists), "json", 8) == plain


def test_an_archived_swf_trace_is_read_as_its_definition_says(tmp_path: Path) -> None:
    whole = "1 0 5 100 4 -1 -1 4 200 -1 1 -1 3 -1 1 -1 -1 -1\n"
    part = "1 -1 5 50 4 -1 -1 4 200 -1 2 -1 3 -1 1 -1 -1 -1\n"
    text = (
        "; Acknowledge: André\n"
        + whole
        + part
        + part.replace(" 2 -1 3", " 3 -1 3")
        + "2 0 -1 -1 -1"
        + " -1" * 13
    )
    (tmp_path / "trace").write_bytes(text.encode("latin-1"))
    (one,) = read_trace(tmp_path / "trace", "swf", 8)
    assert (one.job.id, one.duration_ms, one.job.user, one.job.name) == ("1", 100_000, "", "")


@pytest.mark.parametrize("name", ["nonsense", "fifo+nonsense"])
def test_an_unknown_policy_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(HubError, match="best-fit"):
        resolve_policy(name)


@pytest.mark.parametrize(
    ("queues", "told"),
    [
        ([Queue("a", "b"), Queue("b", "a")], "form a cycle"),
        ([Queue("a", "nobody")], "no queue 'nobody'"),
    ],
)
def test_queues_that_are_no_tree_are_refused(queues: list[Queue], told: str) -> None:
    with pytest.raises(HubError, match=told):
        QueueTree(queues)


def test_guarantees_above_capacity_and_unknown_models_are_refused() -> None:
    tree = QueueTree([Queue("a", quotas={"A100": Quota(3000)}), Queue("b", quotas={"A100": Quota(3000)})])
    with pytest.raises(HubError, match="only 5000 exist"):
        tree.check_guarantees({"A100": 5000})
    with pytest.raises(HubError, match="known models are V100"):
        tree.check_guarantees({"V100": 5000})


@pytest.mark.parametrize(
    ("limits", "estimates"),
    [
        ("factor:0.5", None),
        ("factor:" + "9" * 400, None),
        ("2", None),
        (None, "normal:1"),
        (None, "lognormal:1000"),
    ],
)
def test_malformed_options_are_refused(limits: str | None, estimates: str | None) -> None:
    with pytest.raises(HubError, match="write"):
        prepare((), limits, estimates, 0)


def test_limits_are_never_below_the_duration_and_the_same_for_the_same_seed() -> None:
    jobs = generate(WorkloadShape(jobs=200), 5)
    limited = with_limits(jobs, 3.0, 1)
    assert limited == with_limits(jobs, 3.0, 1) != with_limits(jobs, 3.0, 2)
    assert all(one.duration_ms <= one.job.time_limit_ms <= 3 * one.duration_ms + 1 for one in limited)


def test_a_run_writes_schedule_summary_and_page_and_reports_impossible_jobs(tmp_path: Path) -> None:
    out = tmp_path / "out"
    trace = written(tmp_path, ELASTIC)
    run_simulation(Options(trace, "elasticflow", out, ("default", "fifo"), nodes=3))
    lines = (out / "schedule.csv").read_text().splitlines()
    assert lines[0] == "job_id,attempt,node,device,slot_lo,slot_hi,start_s,end_s,end_reason"
    assert len(lines) == 1 + 8 + 20 + 1
    summary = json.loads((out / "summary.json").read_text())
    assert summary["jobs"] == 3
    assert list(summary["impossible_jobs"]) == ["huge"]
    assert set(summary["policies"]) == {"default", "fifo"}
    page = (out / "report.html").read_text()
    assert "<svg" in page
    assert "http" not in page


def test_a_cluster_file_gives_nodes_queues_and_failures(tmp_path: Path) -> None:
    text = json.dumps(
        {
            "nodes": [{"name": "a", "model": "A100", "devices": 4, "count": 2, "topology": ["z", "s"]}],
            "queues": [{"name": "q", "quotas": {"A100": {"guarantee": 2, "borrow": 1}}}],
            "failures": [{"node": "a-0000", "at_s": 10, "back_s": 20}],
        }
    )
    cluster = read_cluster(written(tmp_path, text, "cluster.json"))
    assert [one.name for one in cluster.nodes] == ["a-0000", "a-0001"]
    assert cluster.queues[0].quotas["A100"] == Quota(2000, 1000)
    assert cluster.failures[0].back_ms == 20_000
    with pytest.raises(HubError, match="holds no node"):
        read_cluster(written(tmp_path, "{}", "empty.json"))


ONE_NODE: dict[str, list[dict[str, object]]] = {"nodes": [{"name": "a", "model": "A100", "devices": 4}]}


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (
            {"failures": [{"node": "z", "at_s": 1}]},
            "field 'failures.node': 'z' is no node of this cluster; it has a",
        ),
        (
            {"reservations": [{"id": "r", "nodes": ["z"], "from_s": 1, "to_s": 2}]},
            "'reservations.nodes': 'z' is no",
        ),
        ({"queues": [{"name": "q", "quotas": {"A100": 4}}]}, "field 'quotas'"),
        (
            {"queues": [{"name": "q", "quotas": {"A100": {"guarantee": -1}}}]},
            "field 'guarantee': -1 must be at least",
        ),
        ({"queues": [{}]}, "field 'name': None is missing"),
        ({"queues": "q"}, "is not a list of objects"),
        ({"nodes": [{"name": "a", "model": "A100"}]}, "field 'devices': None is missing"),
        ({"nodes": ONE_NODE["nodes"] * 2}, "line 2, field 'nodes.name': 'a' occurs twice"),
        (
            {"nodes": [{**ONE_NODE["nodes"][0], "devices": 1e12}]},
            "field 'devices': 1000000000000.0 must be at most",
        ),
        (
            {"nodes": [{**ONE_NODE["nodes"][0], "topology": [{}]}]},
            "field 'topology': [{}] is not a list of texts",
        ),
        ({"nodes": [{**ONE_NODE["nodes"][0], "gpus": 4}]}, "field 'gpus': 4 is no field here"),
        ({"queues": [{"name": "q"}, {"name": "q"}]}, "line 2, field 'queues.name': 'q' occurs twice"),
        ({"queues": [{"name": "q", "max_wait": 4}]}, "field 'max_wait': 4 is no field here"),
        ({"queues": [{"name": "q", "quotas": {"A100": {"lends": 4}}}]}, "field 'lends': 4 is no field here"),
        (
            {"failures": [{"node": "a", "at_s": 9, "back_s": 9}]},
            "field 'failures.back_s': 9.0 is not after at_s",
        ),
        (
            {"failures": [{"node": "a", "at_s": 2}, {"node": "a", "at_s": 1, "back_s": 3}]},
            "line 2, field 'failures.node': 'a' is lost already then",
        ),
        (
            {"reservations": [{"id": "r", "nodes": ["a"], "from_s": 3, "to_s": 2}]},
            "field 'reservations.to_s': 2.0 is not after from_s",
        ),
        ({"reservation": []}, "field 'reservation': [] is no field here"),
    ],
)
def test_bad_cluster_files_are_refused_by_place_and_field(
    tmp_path: Path, more: dict[str, object], told: str
) -> None:
    with pytest.raises(HubError, match=re.escape(told)):
        read_cluster(written(tmp_path, json.dumps({**ONE_NODE, **more}), "cluster.json"))


HUB_HEAD = "job_id,submitted_s,duration_s,depends_on,models,queue\n"


@pytest.mark.parametrize(
    ("line", "queues", "told"),
    [
        ("x,0,10,,H100,main\n", ["main"], "job 1, field 'models': 'H100' is not known .* A100"),
        ("x,0,10,,A100,firms\n", ["firms", "main"], "job 1, field 'queue': 'firms' is not known .* main"),
    ],
)
def test_a_trace_that_names_what_the_cluster_does_not_have_is_refused_before_anything_is_played(
    tmp_path: Path, line: str, queues: list[str], told: str
) -> None:
    tree = [{"name": name, "parent": before} for before, name in pairwise(["", *queues])]
    cluster = written(tmp_path, json.dumps({**ONE_NODE, "queues": tree}), "cluster.json")
    trace, out = written(tmp_path, HUB_HEAD + line), tmp_path / "out"
    with pytest.raises(HubError, match=told):
        run_simulation(Options(trace, "csv", out, ("default",), cluster=cluster))
    assert not out.exists()


def test_what_still_waits_in_the_end_is_reported_with_its_reason_and_is_not_among_the_finished(
    tmp_path: Path,
) -> None:
    text = HUB_HEAD + "a,0,10,b,,\nb,0,10,a,,\nc,0,10,,,\nlost,9,10,,,\nbig,0,5,,,\nafter,0,5,big,,\n"
    text = text.replace("models", "devices").replace("big,0,5,,,", "big,0,5,,99,")
    gone = {**ONE_NODE, "failures": [{"node": "a", "at_s": 12}]}
    cluster = written(tmp_path, json.dumps(gone), "cluster.json")
    options = Options(written(tmp_path, text), "csv", tmp_path / "out", ("default",), cluster=cluster)
    (result,) = run_simulation(options)
    summary = result.summary
    assert (summary["jobs"], summary["mean_jct_s"]) == (1, 10)
    assert summary["utilisation"] == round(13 / 48, 6)
    assert list(summary["impossible_jobs"]) == ["big"]
    assert summary["unstarted_jobs"] == {
        "a": "waiting for job b to succeed",
        "b": "waiting for job a to succeed",
        "after": "depends on job big, which failed; withdraw it or submit it anew",
        "lost": "waiting for 1 free A100 on one node; 0 free; 4 installed on nodes that take no new jobs",
    }


def test_the_time_a_node_comes_back_after_the_last_job_is_no_part_of_a_run(tmp_path: Path) -> None:
    back = {**ONE_NODE, "failures": [{"node": "a", "at_s": 200, "back_s": 999_999}]}
    cluster = written(tmp_path, json.dumps(back), "cluster.json")
    trace = written(tmp_path, "job_id,submitted_s,duration_s,devices\nx,0,100,4\n")
    (result,) = run_simulation(Options(trace, "csv", tmp_path / "out", ("default",), cluster=cluster))
    assert result.summary["utilisation"] == 1.0


def test_a_run_that_is_stopped_while_it_writes_leaves_nothing_half_written(tmp_path: Path) -> None:
    trace, out = written(tmp_path, ELASTIC), tmp_path / "out"
    run_simulation(Options(trace, "elasticflow", out, nodes=3))
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    (out / "report.html").unlink()
    (out / "report.html").mkdir()
    with pytest.raises(OSError, match=r"report\.html"):
        run_simulation(Options(trace, "elasticflow", out, ("fifo",), nodes=2))
    assert sorted(file.name for file in out.iterdir()) == sorted(before)


def test_a_policy_named_twice_runs_once_and_none_is_refused(tmp_path: Path) -> None:
    trace, out = written(tmp_path, ELASTIC), tmp_path / "out"
    results = run_simulation(Options(trace, "elasticflow", out, ("fifo", "easy", "fifo"), nodes=3))
    assert [one.policy for one in results] == ["fifo", "easy"]
    with pytest.raises(HubError, match="at least one policy"):
        run_simulation(Options(trace, "elasticflow", out, (), nodes=3))


def test_the_reservations_of_a_cluster_file_are_kept(tmp_path: Path) -> None:
    kept = {**ONE_NODE, "reservations": [{"id": "r", "nodes": ["a"], "from_s": 5, "to_s": 60}]}
    cluster = written(tmp_path, json.dumps(kept), "cluster.json")
    trace = written(tmp_path, "job_id,submitted_s,duration_s\nlong,0,10\nshort,0,5\n")
    out = tmp_path / "out"
    run_simulation(Options(trace, "csv", out, ("default",), cluster=cluster))
    rows = [line.split(",") for line in (out / "schedule.csv").read_text().splitlines()[1:]]
    assert {row[0]: row[6] for row in rows} == {"short": "0", "long": "60"}


def test_the_report_is_one_page_whose_drawings_are_well_formed(tmp_path: Path) -> None:
    trace, out = written(tmp_path, ELASTIC), tmp_path / "out"
    run_simulation(Options(trace, "elasticflow", out, ("default", "fifo"), nodes=3))
    page = (out / "report.html").read_text()
    drawings = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(drawings) == 3
    for drawing in drawings:
        texts = [one.text for one in ET.fromstring(drawing).iter("text")]  # noqa: S314 - our own page
        assert texts
    assert "100 %" in page
    assert "node-0002" in page


def test_placements_differ_also_for_whole_devices_and_random_is_the_same_twice(tmp_path: Path) -> None:
    rows = "".join(f"j{number},0,{100 + number},1\n" for number in range(12))
    trace = written(tmp_path, "job_id,submission_time,duration,num_gpu\n" + rows)
    names = ("random", "best-fit", "packing", "fgd", "default")
    texts = []
    for out in (tmp_path / "one", tmp_path / "two"):
        run_simulation(Options(trace, "elasticflow", out, names, nodes=4))
        texts.append([file.read_text() for file in sorted(out.glob("schedule*.csv"))])
    assert texts[0] == texts[1]
    drawn, tight = ((tmp_path / "one" / name).read_text() for name in ("schedule.csv", "schedule-best-fit.csv"))
    nodes = [[line.split(",")[2] for line in text.splitlines()[1:]] for text in (drawn, tight)]
    assert set(nodes[1]) == {"node-0000", "node-0001"}
    assert len(set(nodes[0])) == 4
