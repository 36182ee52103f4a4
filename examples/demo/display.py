"""What a person sees while the story runs: on a terminal a live table, elsewhere a line for each change."""

from types import TracebackType
from typing import Any, Self

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table

_COLOURS = {
    "queued": "yellow",
    "starting": "cyan",
    "running": "bold cyan",
    "succeeded": "green",
    "failed": "red",
    "cancelled": "magenta",
}


class Display:
    """Shows the present step and the state of every job."""

    def __init__(self) -> None:
        self._console = Console()
        self._live = Live(console=self._console, refresh_per_second=8, transient=True)
        self._step = ""
        self._jobs: list[dict[str, Any]] = []
        self._said: dict[str, str] = {}

    def __enter__(self) -> Self:
        """Begin to draw, if this is a terminal."""
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Clear what was drawn; the report follows."""
        self._live.stop()

    def step(self, what: str) -> None:
        """Say what is being done."""
        if what == self._step:
            return
        self._step = what
        if self._console.is_terminal:
            self._draw()
        else:
            self._console.print(f"• {what}", highlight=False, soft_wrap=True)

    def jobs(self, jobs: list[dict[str, Any]]) -> None:
        """Show jobs as they are now."""
        self._jobs = jobs
        if self._console.is_terminal:
            self._draw()
            return
        for job in jobs:
            if self._said.get(job["id"]) != job["state"]:
                self._said[job["id"]] = job["state"]
                self._console.print(
                    f"    {job['name']:<28} {job['state']:<10} {_why(job)}", highlight=False, soft_wrap=True
                )

    def _draw(self) -> None:
        table = Table(box=box.SIMPLE_HEAD, header_style="bold")
        for heading in ("job", "state", "cards", "card time", "why"):
            table.add_column(heading, justify="right" if heading == "card time" else "left")
        for job in self._jobs:
            colour = _COLOURS.get(job["state"], "white")
            table.add_row(
                job["name"],
                f"[{colour}]{job['state']}[/]",
                " ".join(f"{device['node'][-1]}:{device['index']}" for device in job["devices"]),
                f"{job['card_ms'] / 1000:.1f} s",
                _why(job),
            )
        spinner = Spinner("dots", text=f" {self._step}")
        self._live.update(Group(spinner, table) if self._jobs else spinner)


def _why(job: dict[str, Any]) -> str:
    return str(job["reason"]) if job["state"] in {"queued", "failed", "cancelled"} else ""
