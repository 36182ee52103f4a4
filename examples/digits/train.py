"""Learns to read handwritten digits on one card.

Writes `result.json` into the working directory and keeps `checkpoint.npz`; exits 1 below 95 % test accuracy and 143
when stopped by SIGTERM, after writing the checkpoint that `--resume` continues from, in the job's next attempt too.
"""

import sys

import job
import mlp


def main() -> int:
    """Train as the command line says; returns the exit status."""
    parser = job.options(__doc__)
    parser.add_argument("--resume", action="store_true", help=f"continue from {job.CHECKPOINT} if it is there")
    asked = parser.parse_args()
    stop = job.StopRequest()
    device = job.visible_devices()[0]
    train, test = mlp.load_data()
    resumed = asked.resume and job.CHECKPOINT.exists()
    model = mlp.load_model(job.CHECKPOINT) if resumed else mlp.new_model(asked.seed)
    job.say(f"{len(train)} images on device {device}, from epoch {model.epoch + 1}")
    progress = job.Progress(asked.epochs, asked.seconds_min)
    try:
        while not progress.done(model):
            loss = run_epoch(model, train.shuffled(asked.seed, model.epoch), stop)
            model.epoch += 1
            progress.epoch_ended(model, loss, test)
    except job.Stopped:
        return job.stop(model)
    return job.finish(model, test, seconds=round(progress.seconds, 3), devices=[[0, device]])


def run_epoch(model: mlp.Model, train: mlp.Examples, stop: job.StopRequest) -> float:
    """One pass over the training data; returns the mean loss."""
    losses = []
    for batch in train.parts(mlp.steps_per_epoch(len(train))):
        stop.check()
        losses.append(model.step(mlp.batch_sums(model.weights, batch)))
    return sum(losses) / len(losses)


if __name__ == "__main__":
    sys.exit(main())
