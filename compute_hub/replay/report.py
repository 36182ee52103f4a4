"""The hub's books beside the recount: every difference in words, and the month as a director reads it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from compute_hub.cli.output import yuan
from compute_hub.replay.books import Books, Invoiced
from compute_hub.replay.month import PlayedJob, Rule
from compute_hub.replay.recount import Booking, Due, Ran, payable_micros, totals, vat_micros
from compute_hub.replay.story import Firm
from kernel.money import format_yuan

_SLOT_MS_PER_CARD_HOUR = 3_600_000_000


@dataclass(frozen=True)
class Difference:
    """Where the hub says one thing and the recount another."""

    what: str
    hub: object
    recount: object


@dataclass(frozen=True)
class FirmLine:
    """One firm's month; card time in slot-milliseconds of the replay, amounts in micro-yuan."""

    firm: str
    jobs: int
    slot_ms: int
    gross: int
    voucher: int
    own: int
    voucher_left: int
    claimed: int
    payable: int
    differences: int


@dataclass(frozen=True)
class Verdict:
    """The whole comparison."""

    lines: tuple[FirmLine, ...]
    differences: tuple[Difference, ...]
    compared: int


class Judge:
    """Compares, one value at a time, and counts how often.

    Args:
        jobs: what was to be played.
        submitted: by the trace's name of a job, the hub's.
        ran: what the nodes wrote.
        books: what the hub says.
        rule: of the programme.
        price_micros: of a card-hour of the replay.
    """

    def __init__(
        self,
        jobs: Sequence[PlayedJob],
        submitted: Mapping[str, str],
        ran: Mapping[str, Ran],
        books: Books,
        rule: Rule,
        price_micros: int,
    ) -> None:
        self._jobs = jobs
        self._submitted = submitted
        self._ran = ran
        self._books = books
        self._rule = rule
        self._price = price_micros
        self._compared = 0
        self._differences: list[Difference] = []

    def judge(self, firms: Mapping[str, Firm]) -> Verdict:
        """Every charge, job, firm and the whole."""
        for job in self._jobs:
            self._judge_job(job)
        lines = tuple(self._judge_firm(firm) for _, firm in sorted(firms.items()))
        books = self._books
        self._same("forgone by the centre", books.forgone, 0)
        self._same("differences of the ledger's audit", len(books.ledger_differences), 0)
        return Verdict(lines, tuple(self._differences), self._compared)

    def _judge_job(self, job: PlayedJob) -> None:
        name = self._submitted.get(job.name, "")
        ran = self._ran.get(name, Ran(0, frozenset(), frozenset()))
        what = f"job {job.name}"
        self._same(f"{what}: how it ended", ", ".join(sorted(ran.end_reasons)), "exited")
        self._same(f"{what}: how long each of its runs was", sorted(ran.durations_ms), [job.takes_ms])
        self._same(f"{what}: card time on the nodes", ran.slot_ms, job.slots * job.takes_ms)
        self._same(f"{what}: card time metered", self._books.metered_slot_ms.get(name, 0), ran.slot_ms)

    def _judge_firm(self, firm: Firm) -> FirmLine:
        before = len(self._differences)
        booking = Booking(self._price, self._rule.ratio, firm.faces_micros)
        events = self._books.events[firm.name]
        booking.book(events)
        self._judge_charges(firm.name, booking.dues)
        self._judge_metered(firm.name, {event.job: 0 for event in events})
        gross, voucher, own = totals(booking.dues)
        payable = payable_micros(booking.dues.values())
        expected = Invoiced(gross, voucher, own, payable, vat_micros(payable))
        for field, value in asdict(expected).items():
            self._same(f"{firm.name}: invoice, {field}", asdict(self._books.invoices[firm.name])[field], value)
        used = (sum(parts) for parts in zip(*(due.vouchers for due in booking.dues.values()), strict=True))
        left = tuple(face - part for face, part in zip_longest(firm.faces_micros, used, fillvalue=0))
        self._same(f"{firm.name}: left on its vouchers", self._books.voucher_left[firm.name], left)
        self._same(f"{firm.name}: left on its vouchers, step by step", booking.voucher_left, left)
        self._same(f"{firm.name}: prepaid left", self._books.prepaid[firm.name], firm.deposit_micros - own)
        claimed = self._books.claimed.get(firm.name, 0)
        waiting = self._books.claimable[firm.name]  # a claim has a bounded number of lines; the rest waits
        self._same(f"{firm.name}: claimed, or waiting for the next claim", claimed + waiting, voucher)
        jobs = [job for job in self._jobs if job.firm == firm.name]
        return FirmLine(
            firm=firm.name,
            jobs=len(jobs),
            slot_ms=sum(job.slots * job.takes_ms for job in jobs),
            gross=gross,
            voucher=voucher,
            own=own,
            voucher_left=sum(left),
            claimed=claimed,
            payable=payable,
            differences=len(self._differences) - before,
        )

    def _judge_charges(self, firm: str, dues: Mapping[str, Due]) -> None:
        charges = self._books.charges[firm]
        for charge in sorted(charges.keys() | dues.keys()):
            hub, recount = charges.get(charge), dues.get(charge)
            self._same(f"{firm}: cost of charge {charge}", hub and hub.cost, recount and recount.cost)
            self._same(
                f"{firm}: vouchers' parts of charge {charge}",
                hub and hub.vouchers,
                recount and recount.vouchers,
            )

    def _judge_metered(self, firm: str, charged: dict[str, int]) -> None:
        """What was charged of each job is what the nodes say it used."""
        for event in self._books.events[firm]:
            if event.kind == "charge":
                charged[event.job] += event.amount
        for job, slot_ms in charged.items():
            ran = self._ran.get(job)
            self._same(f"{firm}: card time charged for job {job}", slot_ms, ran.slot_ms if ran else 0)

    def _same(self, what: str, hub: object, recount: object) -> None:
        self._compared += 1
        if hub != recount:
            self._differences.append(Difference(what, hub, recount))


def as_json(verdict: Verdict, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The report for programs."""
    return {
        **facts,
        "compared": verdict.compared,
        "differences": [
            asdict(one) | {"hub": str(one.hub), "recount": str(one.recount)} for one in verdict.differences
        ],
        "firms": [asdict(line) for line in verdict.lines],
    }


def print_report(console: Console, verdict: Verdict, facts: Mapping[str, Any], speed: int) -> None:
    """The month for a director, then what differs."""
    table = Table(title=str(facts["title"]), title_justify="left", box=box.SIMPLE_HEAD, header_style="bold")
    headings = (
        "firm",
        "jobs",
        "card-hours",
        "gross",
        "voucher pays",
        "firm pays",
        "claimed",
        "invoice",
        "differences",
    )
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "firm" else "right", no_wrap=True)
    for line in verdict.lines:
        table.add_row(*_cells(line, speed))
    table.add_section()
    whole = _together(verdict)
    table.add_row(*(f"[bold]{cell}[/bold]" for cell in _cells(whole, speed)))
    console.print(table)
    for sentence in _sentences(verdict, facts, whole):
        console.print(sentence, soft_wrap=True, highlight=False)
    for one in verdict.differences[:20]:
        console.print(
            f"[red]differs[/red]  {one.what}: the hub says {one.hub}, the recount {one.recount}", soft_wrap=True
        )


def _together(verdict: Verdict) -> FirmLine:
    lines = verdict.lines
    return FirmLine(
        firm="together",
        jobs=sum(line.jobs for line in lines),
        slot_ms=sum(line.slot_ms for line in lines),
        gross=sum(line.gross for line in lines),
        voucher=sum(line.voucher for line in lines),
        own=sum(line.own for line in lines),
        voucher_left=sum(line.voucher_left for line in lines),
        claimed=sum(line.claimed for line in lines),
        payable=sum(line.payable for line in lines),
        differences=len(verdict.differences),
    )


def _cells(line: FirmLine, speed: int) -> Iterator[str]:
    yield line.firm
    yield f"{line.jobs:,}"
    yield f"{line.slot_ms * speed / _SLOT_MS_PER_CARD_HOUR:,.1f}"
    for micros in (line.gross, line.voucher, line.own, line.claimed, line.payable):
        yield yuan(format_yuan(micros))
    yield f"{line.differences}"


def _sentences(verdict: Verdict, facts: Mapping[str, Any], whole: FirmLine) -> Iterator[str]:
    yield (
        f"Vouchers pay {100 * whole.voucher / max(1, whole.gross):.2f} % of the month; the claim has "
        f"{facts['claim_lines']:,} lines, one for each charge a voucher shared in."
    )
    yield (
        f"Behind it: {facts['records']:,} meter records and {facts['transfers']:,} ledger transfers; "
        f"{verdict.compared:,} values compared with a recount from the nodes' schedule and the programme's rule, "
        f"[bold]{len(verdict.differences)} differ[/bold]."
    )
    yield (
        f"{facts['seconds']} s for {facts['real_days']} days ({facts['jobs_per_s']} jobs/s), {facts['waited']}. "
        f"Rounding {whole.jobs:,} durations to the replay's millisecond changed the card time by {facts['rounded']}."
    )
