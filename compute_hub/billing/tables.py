"""Rates, charges, invoices and the funding of jobs. Rates, charges and invoices are only ever added."""

from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, Index, Numeric, Text, UniqueConstraint, Uuid, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from kernel.database import Table


class RateRow(Table):
    """A rate card of one model, for everybody or for one tenant, from an instant on.

    It holds until its own end or until the next one of the same model and tenant begins. `terms` is the whole document;
    `micros_per_card_hour` repeats its base price for listings.
    """

    __tablename__ = "rates"
    __table_args__ = (
        UniqueConstraint("tenant_id", "model", "effective_from", postgresql_nulls_not_distinct=True),
        CheckConstraint("micros_per_card_hour > 0", name="price"),
        CheckConstraint("effective_from >= set_at", name="not_past"),
        CheckConstraint("effective_until > effective_from", name="period"),
        CheckConstraint("(tenant_id IS NULL) = (agreement IS NULL)", name="agreement"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant_id: Mapped[UUID | None]
    agreement: Mapped[str | None] = mapped_column(Text)
    model: Mapped[str] = mapped_column(Text)
    micros_per_card_hour: Mapped[int]
    terms: Mapped[dict[str, Any]]
    effective_from: Mapped[datetime]
    effective_until: Mapped[datetime | None]
    changes_running: Mapped[bool]
    reason: Mapped[str] = mapped_column(Text)
    set_by: Mapped[UUID]
    set_at: Mapped[datetime]


class JobFundingRow(Table):
    """How a job is paid: which vouchers it may use, and how much card time its holds have covered so far.

    `funded_at` is its first admission, which settles its rate cards; `rated_units` is the exact cost of all its rated
    usage, so that the next charge telescopes; `charges` is how many there are, and the number of the next. It is
    `waiting` while its attempt is over and its hold not given back yet, then `pending` until the next admission.
    """

    __tablename__ = "job_funding"
    __table_args__ = (
        CheckConstraint("held_micros >= 0 AND held_slot_ms >= 0 AND charges >= 0", name="not_negative"),
        CheckConstraint("state IN ('pending', 'held', 'waiting', 'ended', 'released')", name="state"),
        Index("ix_job_funding_state", "state"),
    )

    job_id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant_id: Mapped[UUID]
    voucher_ids: Mapped[list[UUID] | None] = mapped_column(ARRAY(Uuid))
    project: Mapped[str | None]
    state: Mapped[str] = mapped_column(Text)
    model: Mapped[str | None] = mapped_column(Text)
    held_micros: Mapped[int]
    held_slot_ms: Mapped[int]
    funded_at: Mapped[datetime | None]
    rated_units: Mapped[Decimal] = mapped_column(Numeric(40, 0))
    charges: Mapped[int]


class FundedTimeRow(Table):
    """How much card time of one model a job's holds have covered so far; attempts may run on different models."""

    __tablename__ = "job_funded_time"
    __table_args__ = (CheckConstraint("slot_ms >= 0", name="not_negative"),)

    job_id: Mapped[UUID] = mapped_column(ForeignKey("job_funding.job_id"), primary_key=True)
    model: Mapped[str] = mapped_column(Text, primary_key=True)
    slot_ms: Mapped[int]


class ChargeRow(Table):
    """The rated cost of one stretch of one attempt's usage, the n-th charge of its job, and who paid it.

    `rounding_micros` is what the centre bears (or takes back) when several vouchers' shares are each rounded down.
    `forgone_micros` is what the usage would have cost beyond `amount_micros`, which the centre bears as well: usage
    beyond what was held, after a gap in the records, reported after what was held was given back, or of an attempt
    that the centre lost. `month` is the centre's month the usage ended in, whenever it was reported.
    """

    __tablename__ = "charges"
    __table_args__ = (
        UniqueConstraint("job_id", "n"),
        CheckConstraint("amount_micros >= 0 AND forgone_micros >= 0 AND slot_ms > 0", name="amount"),
        CheckConstraint("amount_micros = voucher_micros + tenant_micros + rounding_micros", name="parts"),
        Index("ix_charges_tenant_id_month", "tenant_id", "month"),
        Index("ix_charges_charged_at", "charged_at", postgresql_using="brin"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    job_id: Mapped[UUID]
    tenant_id: Mapped[UUID]
    n: Mapped[int]
    attempt: Mapped[int]
    model: Mapped[str] = mapped_column(Text)
    month: Mapped[str] = mapped_column(Text)
    slot_ms: Mapped[int]
    amount_micros: Mapped[int]
    voucher_micros: Mapped[int]
    tenant_micros: Mapped[int]
    rounding_micros: Mapped[int]
    forgone_micros: Mapped[int]
    charged_at: Mapped[datetime]


class ChargeLineRow(Table):
    """The part of a charge that was used at one price; the parts' costs add up to what the charge cost."""

    __tablename__ = "charge_lines"
    __table_args__ = (
        CheckConstraint("slot_ms > 0 AND cost_micros >= 0 AND price_micros > 0", name="positive"),
    )

    charge_id: Mapped[UUID] = mapped_column(ForeignKey("charges.id"), primary_key=True)
    line: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    rate_id: Mapped[UUID] = mapped_column(ForeignKey("rates.id"))
    window: Mapped[str] = mapped_column("time_window", Text)
    from_slot_ms: Mapped[int]
    price_micros: Mapped[int]
    slot_ms: Mapped[int]
    cost_micros: Mapped[int]


class TenantVolumeRow(Table):
    """How much of a model a tenant has used in a month, for volume steps."""

    __tablename__ = "tenant_volumes"
    __table_args__ = (CheckConstraint("slot_ms >= 0", name="not_negative"),)

    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(Text, primary_key=True)
    month: Mapped[str] = mapped_column(Text, primary_key=True)
    slot_ms: Mapped[int]


class ChargeCorrectionRow(Table):
    """A charge that was rated anew: taken back whole, and captured again at the right price, if anything is left.

    Every correction has a reason and somebody who answers for it.
    """

    __tablename__ = "charge_corrections"
    __table_args__ = (CheckConstraint("length(reason) > 0", name="reason"),)

    charge_id: Mapped[UUID] = mapped_column(ForeignKey("charges.id"), primary_key=True)
    replacement_id: Mapped[UUID] = mapped_column(ForeignKey("charges.id"), unique=True)
    rate_id: Mapped[UUID] = mapped_column(ForeignKey("rates.id"))
    reason: Mapped[str] = mapped_column(Text)
    corrected_by: Mapped[UUID]
    corrected_at: Mapped[datetime]


class LostAttemptRow(Table):
    """An attempt that the centre lost and what was given back for it; `refused` says what stood in the way."""

    __tablename__ = "lost_attempts"
    __table_args__ = (CheckConstraint("restored_micros >= 0", name="restored"),)

    job_id: Mapped[UUID] = mapped_column(primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    reason: Mapped[str] = mapped_column(Text)
    restored_micros: Mapped[int]
    refused: Mapped[str] = mapped_column(Text)
    restored_at: Mapped[datetime]


class ChargedUsageRow(Table):
    """Which records of a run went into a charge: those from one number up to another; a record goes into exactly one.

    That no two ranges of a run overlap is kept by a trigger.
    """

    __tablename__ = "charged_usage"
    __table_args__ = (
        CheckConstraint("first_k >= 0 AND until_k > first_k", name="range"),
        Index("ix_charged_usage_charge_id", "charge_id"),
    )

    job_id: Mapped[UUID] = mapped_column(primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    rank: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    first_k: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    until_k: Mapped[int]
    charge_id: Mapped[UUID] = mapped_column(ForeignKey("charges.id"))


class InvoiceSeriesRow(Table):
    """The last number given out in a series; its row is locked while a number is taken, so none is left out."""

    __tablename__ = "invoice_series"

    series: Mapped[str] = mapped_column(Text, primary_key=True)
    last: Mapped[int]


class InvoiceRow(Table):
    """A final invoice, or a credit note that takes back a part of one; amounts of a credit note are what it gives back.

    `gross` is divided into what vouchers pay, what the tenant pays and what the centre bears of rounding. What the
    tenant pays is rounded to the fen by an entry in the ledger; VAT is contained in it.
    """

    __tablename__ = "invoices"
    __table_args__ = (
        UniqueConstraint("series", "sequence"),
        UniqueConstraint("number"),
        Index(
            "uq_invoices_tenant_id_month",
            "tenant_id",
            "month",
            unique=True,
            postgresql_where=text("kind = 'invoice'"),
        ),
        CheckConstraint("kind IN ('invoice', 'credit_note')", name="kind"),
        CheckConstraint("(kind = 'credit_note') = (refers_to IS NOT NULL)", name="refers"),
        CheckConstraint("gross_micros = voucher_micros + tenant_micros + rounding_micros", name="parts"),
        CheckConstraint("tenant_micros = prepaid_micros + credit_micros", name="sources"),
        CheckConstraint(
            "payable_micros = tenant_micros + fen_micros AND mod(payable_micros, 10000) = 0"
            " AND abs(fen_micros) <= 5000",
            name="fen",
        ),
        CheckConstraint("mod(vat_micros, 10000) = 0 AND vat_micros BETWEEN 0 AND payable_micros", name="vat"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant_id: Mapped[UUID]
    kind: Mapped[str] = mapped_column(Text)
    series: Mapped[str] = mapped_column(Text)
    sequence: Mapped[int]
    number: Mapped[str] = mapped_column(Text)
    month: Mapped[str] = mapped_column(Text)
    refers_to: Mapped[UUID | None] = mapped_column(ForeignKey("invoices.id"))
    buyer: Mapped[dict[str, Any]]
    gross_micros: Mapped[int]
    voucher_micros: Mapped[int]
    tenant_micros: Mapped[int]
    rounding_micros: Mapped[int]
    prepaid_micros: Mapped[int]
    credit_micros: Mapped[int]
    fen_micros: Mapped[int]
    payable_micros: Mapped[int]
    vat_ppm: Mapped[int]
    vat_micros: Mapped[int]
    reason: Mapped[str] = mapped_column(Text)
    issued_by: Mapped[UUID]
    issued_at: Mapped[datetime]
    due_at: Mapped[datetime]


class InvoiceLineRow(Table):
    """Card time of one model and month at one price, of all charges of an invoice together."""

    __tablename__ = "invoice_lines"
    __table_args__ = (
        CheckConstraint("slot_ms > 0 AND amount_micros >= 0 AND forgone_micros >= 0", name="amounts"),
    )

    invoice_id: Mapped[UUID] = mapped_column(ForeignKey("invoices.id"), primary_key=True)
    line: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    model: Mapped[str] = mapped_column(Text)
    month: Mapped[str] = mapped_column(Text)
    rate_id: Mapped[UUID] = mapped_column(ForeignKey("rates.id"))
    window: Mapped[str] = mapped_column("time_window", Text)
    price_micros: Mapped[int]
    slot_ms: Mapped[int]
    amount_micros: Mapped[int]
    forgone_micros: Mapped[int]


class InvoiceDebtRow(Table):
    """What an enterprise is to pay of an invoice that rests on its credit line, or is given back by a credit note."""

    __tablename__ = "invoice_debts"
    __table_args__ = (
        Index("ix_invoice_debts_payer_id", "payer_id"),
        CheckConstraint("micros >= 0", name="micros"),
    )

    invoice_id: Mapped[UUID] = mapped_column(ForeignKey("invoices.id"), primary_key=True)
    payer_id: Mapped[UUID] = mapped_column(primary_key=True)
    micros: Mapped[int]


class InvoicedChargeRow(Table):
    """On which invoice a charge stands; a charge stands on one, less what had been given back of it by then."""

    __tablename__ = "invoiced_charges"
    __table_args__ = (
        Index("ix_invoiced_charges_invoice_id", "invoice_id"),
        CheckConstraint("restored_micros >= 0", name="restored"),
    )

    charge_id: Mapped[UUID] = mapped_column(ForeignKey("charges.id"), primary_key=True)
    invoice_id: Mapped[UUID] = mapped_column(ForeignKey("invoices.id"))
    restored_micros: Mapped[int]


class CreditedChargeRow(Table):
    """What a credit note takes back of an invoiced charge."""

    __tablename__ = "credited_charges"
    __table_args__ = (
        Index("ix_credited_charges_invoice_id", "invoice_id"),
        CheckConstraint("restored_micros > 0", name="restored"),
    )

    charge_id: Mapped[UUID] = mapped_column(ForeignKey("invoiced_charges.charge_id"), primary_key=True)
    invoice_id: Mapped[UUID] = mapped_column(ForeignKey("invoices.id"), primary_key=True)
    restored_micros: Mapped[int]


class SettledRestorationRow(Table):
    """Which invoice or credit note took what was given back into account."""

    __tablename__ = "settled_restorations"

    restoration_id: Mapped[UUID] = mapped_column(ForeignKey("restorations.id"), primary_key=True)
    invoice_id: Mapped[UUID] = mapped_column(ForeignKey("invoices.id"))


class AlertRuleRow(Table):
    """A line that a tenant's money may cross, and who is told; `crossed` is how it was when last looked at.

    A `budget` rule watches what the budget of its project still allows; the others watch the tenant as a whole.
    """

    __tablename__ = "alert_rules"
    __table_args__ = (
        CheckConstraint("kind IN ('balance', 'spending', 'budget')", name="kind"),
        CheckConstraint("(kind = 'budget') = (project IS NOT NULL)", name="project"),
        CheckConstraint("channel IN ('webhook', 'email')", name="channel"),
        CheckConstraint("threshold_micros >= 0", name="threshold"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant_id: Mapped[UUID]
    kind: Mapped[str] = mapped_column(Text)
    project: Mapped[str | None] = mapped_column(Text)
    threshold_micros: Mapped[int]
    channel: Mapped[str] = mapped_column(Text)
    target: Mapped[str] = mapped_column(Text)
    crossed: Mapped[bool]
    set_by: Mapped[UUID]
    set_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]


class AlertRow(Table):
    """A line that was crossed, and whether somebody has been told."""

    __tablename__ = "alerts"
    __table_args__ = (Index("ix_alerts_waiting", "id", postgresql_where=text("sent_at IS NULL")),)

    id: Mapped[UUID] = mapped_column(primary_key=True)
    rule_id: Mapped[UUID] = mapped_column(ForeignKey("alert_rules.id"))
    raised_at: Mapped[datetime]
    sentence: Mapped[str] = mapped_column(Text)
    tries: Mapped[int]
    failure: Mapped[str] = mapped_column(Text)
    sent_at: Mapped[datetime | None]
