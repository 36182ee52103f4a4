"""The recount's own arithmetic, by examples worked out by hand, and that no difference escapes the judge."""

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from uuid import UUID, uuid5

import pytest

from compute_hub.replay.books import Books, Invoiced
from compute_hub.replay.month import (
    NothingInMonth,
    PlayedJob,
    ProgrammeNotCounted,
    Rule,
    jobs_of_month,
    price_at,
    rule_of,
)
from compute_hub.replay.recount import (
    SLOT_MS_PER_CARD_HOUR,
    Booking,
    Due,
    Event,
    Ran,
    payable_micros,
    read_schedule,
    vat_micros,
)
from compute_hub.replay.report import Judge
from compute_hub.replay.story import Firm
from scheduler.policy.model import Job
from scheduler.simulator.workload import TraceJob

YUAN = 1_000_000
HOUR = SLOT_MS_PER_CARD_HOUR
EXAMPLES = Path(__file__).parents[3] / "examples" / "programmes"
THIRTY = Fraction(3, 10)
TENANT = UUID(int=1)


def booked(faces: int | tuple[int, ...], *events: Event, price: int = YUAN) -> Booking:
    booking = Booking(price, THIRTY, (faces,) if isinstance(faces, int) else faces)
    booking.book(events)
    return booking


def hold(job: str, micros: int) -> Event:
    return Event("hold", job, micros)


def charge(job: str, slot_ms: int, name: str = "") -> Event:
    return Event("charge", job, slot_ms, name or job)


def test_a_voucher_pays_its_ratio_rounded_down_and_the_firm_the_rest() -> None:
    booking = booked(YUAN, hold("a", 10), charge("a", HOUR // YUAN * 7))
    assert booking.dues == {"a": Due(cost=7, vouchers=(2,))}
    assert booking.dues["a"].firm == 5


def test_the_charges_of_a_job_add_up_to_one_rounding_of_the_whole() -> None:
    third = HOUR // 3
    events = (charge("a", third, "1"), charge("a", third, "2"), charge("a", third, "3"))
    dues = booked(0, hold("a", 2 * YUAN), *events, price=100).dues
    assert [due.cost for due in dues.values()] == [33, 34, 33]


def test_a_spent_voucher_pays_what_it_had_left_when_the_hold_was_placed() -> None:
    booking = booked(
        4, hold("a", 10), hold("b", 10), charge("b", HOUR // YUAN * 10), charge("a", HOUR // YUAN * 10)
    )
    assert (booking.dues["a"].voucher, booking.dues["b"].voucher) == (3, 1)
    assert booking.voucher_left == (0,)


def test_what_a_released_hold_kept_of_the_voucher_pays_for_the_next_job() -> None:
    booking = booked(3, hold("a", 10), Event("release", "a"), hold("b", 10), charge("b", HOUR // YUAN * 10))
    assert booking.dues == {"b": Due(cost=10, vouchers=(3,))}


def test_a_bill_goes_on_to_the_next_voucher_where_the_first_is_used_up() -> None:
    micro = HOUR // YUAN
    booking = booked((4, 5), hold("a", 21), charge("a", micro * 10, "1"), charge("a", micro * 10, "2"))
    # Thirty per cent of 10 are 3; of 20 they are 6, of which the first has 4.
    assert [due.vouchers for due in booking.dues.values()] == [(3, 0), (1, 2)]
    booking.book([Event("release", "a")])
    assert booking.voucher_left == (0, 3)


def test_two_vouchers_that_share_a_bill_lose_nothing_to_rounding_twice() -> None:
    booking = booked((1, 9), hold("a", 10), charge("a", HOUR // YUAN * 9))
    assert booking.dues == {"a": Due(cost=9, vouchers=(1, 1))}  # 2.7 together: 1 and 1.7


def test_usage_beyond_all_holds_is_not_asked_for() -> None:
    assert booked(0, hold("a", 5), charge("a", HOUR // YUAN * 9)).dues == {"a": Due(cost=5, vouchers=(0,))}


def test_an_invoice_is_in_whole_fen_and_contains_six_per_cent() -> None:
    payable = payable_micros([Due(cost=106 * YUAN + 4_999, vouchers=())])
    assert (payable, vat_micros(payable)) == (106 * YUAN, 6 * YUAN)
    assert payable_micros([Due(cost=5_000, vouchers=())]) == 10_000


def trace(*jobs: tuple[str, int, int, int]) -> list[TraceJob]:
    """Jobs by name, submission and duration in milliseconds, and devices of one node of 64."""
    return [
        TraceJob(Job(id=name, queue="main", submitted_ms=at, time_limit_ms=ms, devices_per_node=devices), ms)
        for name, at, ms, devices in jobs
    ]


def test_a_month_is_thinned_evenly_scaled_and_its_gangs_keep_their_devices() -> None:
    day = 86_400_000
    jobs = trace(*((f"j{n:03d}", n * day, 1000 * (n + 1), 12) for n in range(40)))
    played = jobs_of_month(jobs, count=10, speed=100, firms=3, devices_per_node=8)
    assert [job.name for job in played] == [f"j{n:03d}" for n in range(0, 30, 3)]  # only the first 30 days
    assert [job.submitted_ms for job in played] == [n * day // 100 for n in range(0, 30, 3)]
    assert [(job.takes_ms, job.nodes, job.devices_per_node) for job in played][:2] == [(10, 2, 6), (40, 2, 6)]
    assert {job.firm for job in played} <= {"firm-01", "firm-02", "firm-03"}
    assert price_at("12.50", 5760) == "72000.000000"


def test_a_trace_without_cards_is_refused() -> None:
    with pytest.raises(NothingInMonth):
        jobs_of_month(trace(("a", 0, 1, 0)), count=1, speed=1, firms=1, devices_per_node=8)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("uk-airr", "counts card_ms:GH200"),
        ("hangzhou", "has several ratios"),
        ("henan", "has days of notice"),
        ("shenzhen-model", "is paid back to the buyer"),
    ],
)
def test_a_programme_whose_rule_is_not_counted_is_refused_with_the_reason(name: str, why: str) -> None:
    with pytest.raises(ProgrammeNotCounted, match=why):
        rule_of(json.loads((EXAMPLES / f"{name}.json").read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    ("name", "ratio"), [("huangyan", 30), ("chengdu", 30), ("national", 10), ("shanghai-district", 70)]
)
def test_a_programmes_share_is_read_from_its_document(name: str, ratio: int) -> None:
    rule = rule_of(json.loads((EXAMPLES / f"{name}.json").read_text(encoding="utf-8")))
    assert rule.ratio == Fraction(ratio, 100)


PLAYED = PlayedJob("t1", "firm", 0, 3_600_000, 3_600_000, 1, 1, 1000)
RULE = Rule("p", THIRTY, None, "331003", None, quarterly=False)
FIRM = Firm("firm", TENANT, "", 100 * YUAN, (uuid5(TENANT, "voucher"),), (50 * YUAN,))
RAN = {"h1": Ran(HOUR, frozenset({3_600_000}), frozenset({"exited"}))}
BOOKS = Books(
    charges={"firm": {"c": Due(10 * YUAN, (3 * YUAN,))}},
    events={"firm": (hold("h1", 20 * YUAN), charge("h1", HOUR, "c"), Event("release", "h1"))},
    invoices={"firm": Invoiced(10 * YUAN, 3 * YUAN, 7 * YUAN, 7 * YUAN, 400_000)},
    voucher_left={"firm": (47 * YUAN,)},
    prepaid={"firm": 93 * YUAN},
    metered_slot_ms={"h1": HOUR},
    job_ends={"succeeded, finished": 1},
    forgone=0,
    claimed={"firm": 3 * YUAN},
    claim_lines=1,
    claimable={"firm": 0},
    ledger_differences=(),
    transfers=5,
    records=1,
)


def differing(books: Books = BOOKS, ran: dict[str, Ran] = RAN) -> list[str]:
    judge = Judge([PLAYED], {"t1": "h1"}, ran, books, RULE, 10 * YUAN)
    return [difference.what for difference in judge.judge({"firm": FIRM}).differences]


def test_books_that_are_right_differ_nowhere() -> None:
    assert differing() == []


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"charges": {"firm": {"c": Due(10 * YUAN, (3 * YUAN + 1,))}}}, "vouchers' parts of charge c"),
        ({"charges": {"firm": {"c": Due(10 * YUAN - 1, (3 * YUAN,))}}}, "cost of charge c"),
        ({"charges": {"firm": {}}}, "cost of charge c"),
        ({"invoices": {"firm": Invoiced(10 * YUAN, 3 * YUAN, 7 * YUAN, 7 * YUAN, 390_000)}}, "invoice, vat"),
        ({"voucher_left": {"firm": (47 * YUAN - 1,)}}, "left on its vouchers"),
        ({"prepaid": {"firm": 93 * YUAN + 1}}, "prepaid left"),
        ({"metered_slot_ms": {"h1": HOUR + 1000}}, "card time metered"),
        ({"claimed": {"firm": 3 * YUAN - 1}}, "claimed"),
        ({"forgone": 1}, "forgone"),
        ({"ledger_differences": ("x",)}, "ledger's audit"),
    ],
)
def test_a_single_wrong_figure_is_named(changed: dict[str, object], what: str) -> None:
    assert any(what in found for found in differing(replace(BOOKS, **changed)))  # type: ignore[arg-type]


def test_a_job_that_ran_too_long_too_short_or_was_lost_is_named() -> None:
    for ran in (
        Ran(HOUR + 1000, frozenset({3_600_001}), frozenset({"exited"})),
        Ran(HOUR, frozenset({3_600_000}), frozenset({"exited", "lease_lost"})),
        Ran(0, frozenset(), frozenset()),
    ):
        assert any(found.startswith("job t1") for found in differing(ran={"h1": ran}))


def test_a_schedule_is_read_slot_by_slot(tmp_path: Path) -> None:
    file = tmp_path / "schedule.csv"
    file.write_text(
        "job_id,attempt,node,device,slot_lo,slot_hi,start_ms,end_ms,end_reason\n"
        "a,1,n,0,0,1000,10,30,exited\na,1,n,1,0,1000,10,30,exited\nb,1,n,2,0,500,5,9,stopped\n",
        encoding="utf-8",
    )
    assert read_schedule(file) == {
        "a": Ran(40_000, frozenset({20}), frozenset({"exited"})),
        "b": Ran(2_000, frozenset({4}), frozenset({"stopped"})),
    }
