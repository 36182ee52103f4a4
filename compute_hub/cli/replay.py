"""`hub replay`: a real month through the live hub, counted again to the last micro-yuan."""

import json
import signal
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from sqlalchemy.orm import Session

from compute_hub.cli.output import read_json
from compute_hub.replay.books import read_books
from compute_hub.replay.month import PlayedJob, Rule, jobs_of_month, price_at, rule_of
from compute_hub.replay.recount import read_schedule
from compute_hub.replay.report import Judge, Verdict, as_json, print_report
from compute_hub.replay.stack import ReplayStack
from compute_hub.replay.story import Progress as Tell
from compute_hub.replay.story import Story
from compute_hub.stack.database import application_url
from kernel.clock import boottime_ms
from kernel.database import open_engine
from kernel.money import parse_yuan
from scheduler.simulator.readers import read_trace

_DAY_MS: Final = 86_400_000
_SAY_MS: Final = 10_000
_METER_INTERVAL_MS: Final = 120_000
_CENTRE: Final = "331003"


def replay(
    trace: Annotated[Path, typer.Option("--trace", exists=True, dir_okay=False, help="The trace file.")],
    programme: Annotated[
        Path, typer.Option("--programme", exists=True, dir_okay=False, help="The programme's document.")
    ],
    trace_format: Annotated[
        str, typer.Option("--format", help="elasticflow, openb, swf, csv or json.")
    ] = "csv",
    speed: Annotated[int, typer.Option("--speed", min=1, help="Durations are divided by it.")] = 5760,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Of the first 30 days, spread evenly.")] = 2000,
    firms: Annotated[int, typer.Option("--firms", min=1, help="If the trace names no tenants.")] = 12,
    nodes: Annotated[int, typer.Option("--nodes", min=1, help="Simulated nodes.")] = 80,
    devices: Annotated[int, typer.Option("--devices", min=1, max=64, help="Devices per node.")] = 8,
    price: Annotated[str, typer.Option("--price", help="Yuan of a real card-hour.")] = "12.50",
    out: Annotated[Path, typer.Option("--out", file_okay=False, help="Where state and report go.")] = Path(
        "var/replay"
    ),
) -> None:
    """Replay a month of a trace on the live hub with simulated devices, close it, claim it, and count it again."""
    console = Console()
    if not console.is_terminal:
        console.width = 150
    document = read_json(programme)
    rule = rule_of(document)
    played = jobs_of_month(
        read_trace(trace, trace_format, devices),
        count=jobs,
        speed=speed,
        firms=firms,
        devices_per_node=devices,
    )
    price_cny = price_at(price, speed)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with _Teller(console) as tell:
        began_ms = boottime_ms()
        stack = ReplayStack(
            out.resolve(),
            lambda what: tell(what, 0, 0),
            nodes=nodes,
            devices=devices,
            price_cny=price_cny,
            region=rule.centre_region or _CENTRE,
            meter_interval_ms=_METER_INTERVAL_MS,
        )
        with stack:
            story = Story(stack, played, rule, document, parse_yuan(price_cny), tell)
            story.play()
            tell("every micro-yuan is counted again", 0, 0)
            verdict, facts = _judged(stack, story, rule, parse_yuan(price_cny))
            tell("everything is stopped", 0, 0)
        facts |= _told(played, story, speed, boottime_ms() - began_ms)
    facts["title"] = f"{trace.name} under {document['name']}, {len(played):,} jobs at {speed:,} times the speed"
    report = out / "report.json"
    report.write_text(
        json.dumps(as_json(verdict, facts), ensure_ascii=False, indent=2) + "\n", encoding="utf-8"
    )
    print_report(console, verdict, facts, speed)
    console.print(f"Written to {out}: report.json, schedule.csv", soft_wrap=True)
    if verdict.differences:
        raise typer.Exit(1)


def _judged(stack: ReplayStack, story: Story, rule: Rule, price_micros: int) -> tuple[Verdict, dict[str, Any]]:
    engine = open_engine(application_url(stack.settings), pool_size=1)
    with Session(engine) as session:
        firms = {name: (firm.tenant_id, firm.voucher_ids) for name, firm in story.firms.items()}
        books = read_books(session, firms, rule.slug)
    engine.dispose()
    ran = read_schedule(stack.schedule)
    verdict = Judge(story.jobs, story.submitted, ran, books, rule, price_micros).judge(story.firms)
    facts = {
        "records": books.records,
        "transfers": books.transfers,
        "claim_lines": books.claim_lines,
        "job_ends": dict(books.job_ends),
    }
    return verdict, facts


def _told(played: tuple[PlayedJob, ...], story: Story, speed: int, took_ms: int) -> dict[str, Any]:
    """What the report says of the run itself."""
    real = sum(job.real_ms * job.slots for job in played)
    exact = sum(job.takes_ms * speed * job.slots for job in played)
    days = Fraction(max(job.submitted_ms for job in played) * speed, _DAY_MS)
    return {
        "seconds": round(took_ms / 1000),
        "jobs_per_s": round(len(played) * 1000 / took_ms, 1),
        "real_days": f"{float(days):.1f}",
        "waited": f"at most {story.lag_ms_max} ms between a job's time and its acceptance",
        "rounded": f"{float(100 * Fraction(exact - real, real)):+.4f} %",
    }


class _Teller:
    """Shows how far a replay is: a bar on a terminal, elsewhere a line now and then."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._console = console
        self._bar = Progress(*columns, console=console, transient=True)
        self._task = self._bar.add_task("", total=None)
        self._said = ("", 0)
        self._began_ms = boottime_ms()

    def __enter__(self) -> Tell:
        if self._console.is_terminal:
            self._bar.start()
        return self._tell

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def _tell(self, what: str, done: int, total: int) -> None:
        self._bar.update(self._task, description=what, completed=done, total=total or None)
        now_ms = boottime_ms()
        if self._console.is_terminal or (what == self._said[0] and now_ms < self._said[1] + _SAY_MS):
            return
        self._said = (what, now_ms)
        amount = f" {done:,} of {total:,}" if total else ""
        self._console.print(
            f"{(now_ms - self._began_ms) / 1000:6.0f} s  {what}{amount}", highlight=False, soft_wrap=True
        )
