"""Everything that could pay for the usage of some tenants, read at once and counted down in memory.

The number of statements does not depend on how many ask. Whoever goes on to set money aside holds the tenants' locks,
so that what was read stays true and only what is taken here changes it.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import Uuid, bindparam, func, select, tuple_
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Session

from kernel.bulk import among
from kernel.prepared import Prepared
from ledger.domain.accounts import Account
from ledger.reading import balances
from vouchers import accounts
from vouchers.domain.facts import ChargeFacts, EnterpriseFacts
from vouchers.domain.terms import Terms
from vouchers.programmes import terms_of_digest
from vouchers.tables import ProgrammeVersion, ProjectBudget, Voucher, VoucherPart

_OWNED: Final = (
    Voucher.id,
    Voucher.number,
    Voucher.version_id,
    Voucher.slug,
    Voucher.asset,
    Voucher.issued_at,
    Voucher.use_by_at,
    Voucher.expires_at,
    Voucher.state,
)
_OWNED_NAMES: Final = [column.key for column in _OWNED]

VOUCHERS_MAX: Final = 200
"""Of one tenant weighed at once; beyond it those that last longest wait for the others to be used up."""


def _burning() -> Prepared:
    """The vouchers named in `asked`, and of each tenant in `free` those it uses up first."""
    place = func.row_number().over(partition_by=Voucher.enterprise_id, order_by=(Voucher.use_by_at, Voucher.id))
    weighed = (
        select(Voucher.id, place.label("place"))
        .where(among(Voucher.enterprise_id, bindparam("free")), Voucher.state == "active")
        .subquery()
    )
    first = select(weighed.c.id).where(weighed.c.place <= VOUCHERS_MAX)
    named = select(func.unnest(bindparam("asked", type_=ARRAY(Uuid))))
    return Prepared(
        select(*_OWNED, Voucher.holder, Voucher.enterprise_id, ProgrammeVersion.digest)
        .join(ProgrammeVersion, ProgrammeVersion.id == Voucher.version_id)
        .where(Voucher.id.in_(first.union_all(named)))
        .order_by(Voucher.use_by_at, Voucher.id)
    )


_BURNING: Final = _burning()


@dataclass(frozen=True)
class Wish:
    """Usage that somebody is to pay.

    Args:
        payers: whose usage it is, and then who else pays for that enterprise.
        facts: what is used.
        voucher_ids: the vouchers to use; None for all that apply, empty for none.
    """

    payers: Sequence[UUID]
    facts: ChargeFacts
    voucher_ids: Sequence[UUID] | None

    @property
    def tenant_id(self) -> UUID:
        """Whose usage it is."""
        return self.payers[0]


@dataclass(frozen=True)
class Owned:
    """A voucher as it is now, with what its rules look at."""

    id: UUID
    number: str
    version_id: UUID
    slug: str
    asset: str
    issued_at: datetime
    use_by_at: datetime
    expires_at: datetime
    state: str
    holder: EnterpriseFacts
    terms: Terms


@dataclass(frozen=True)
class Means:
    """What some tenants have; `left` says per account that exists what it may still pay."""

    _active: Mapping[UUID, Sequence[Owned]]
    _named: Mapping[tuple[UUID, UUID], Owned]
    _parts: Collection[tuple[UUID, str]]
    _budgets: Mapping[tuple[UUID, str], Account]
    left: dict[UUID, int] = field(default_factory=dict)

    def vouchers(self, wish: Wish) -> tuple[Sequence[Owned], Sequence[UUID]]:
        """The vouchers in question in order of their last usage, and the named ones that the tenant does not have."""
        if wish.voucher_ids is None:
            return self._active.get(wish.tenant_id, ()), ()
        keys = [(wish.tenant_id, voucher_id) for voucher_id in sorted(set(wish.voucher_ids))]
        found = [self._named[key] for key in keys if key in self._named]
        missing = [key[1] for key in keys if key not in self._named]
        return sorted(found, key=lambda row: (row.use_by_at, row.id)), missing

    def place(self, voucher: Owned, project: str | None) -> Account:
        """The account that pays for a voucher: the project's part where it has one, else the voucher itself."""
        if project is not None and (voucher.id, project) in self._parts:
            return accounts.voucher_part(voucher.id, project, voucher.asset)
        return accounts.voucher(voucher.id, voucher.asset)

    def budget(self, wish: Wish) -> Account | None:
        """What limits the tenant's own spending on the usage's project, if anything does."""
        return None if wish.facts.project is None else self._budgets.get((wish.tenant_id, wish.facts.project))

    def available(self, account: Account) -> int:
        """What a bounded account may still pay; nothing where there is no account yet."""
        return self.left.get(account.id, 0)

    def take(self, account_id: UUID, amount: int) -> None:
        """Count down what is set aside."""
        self.left[account_id] -= amount


def gather_means(session: Session, wishes: Sequence[Wish], at: datetime) -> Means:
    """Read what could pay for usage that begins now, and what else paying for it touches."""
    active, named = _vouchers(session, wishes)
    projects = {wish.facts.project for wish in wishes if wish.facts.project is not None}
    means = Means(
        active,
        named,
        _parts(session, named.values(), active, projects),
        budgets_in_force(
            session,
            {(wish.tenant_id, wish.facts.project) for wish in wishes if wish.facts.project is not None},
            at,
        ),
    )
    found = balances(session, _accounts(means, wishes))
    means.left.update((account_id, balance.available or 0) for account_id, balance in found.items())
    return means


def own_places(payers: Sequence[UUID]) -> list[tuple[UUID, Account, Account]]:
    """Per payer its prepaid balance and its credit line."""
    return [(payer, accounts.wallet(payer), accounts.credit_line(payer)) for payer in payers]


def _vouchers(
    session: Session, wishes: Sequence[Wish]
) -> tuple[dict[UUID, list[Owned]], dict[tuple[UUID, UUID], Owned]]:
    """Per tenant its active vouchers, where a wish may use any; by tenant and id those that are named."""
    free = {wish.tenant_id for wish in wishes if wish.voucher_ids is None}
    asked = {voucher_id for wish in wishes for voucher_id in wish.voucher_ids or ()}
    if not free and not asked:
        return {}, {}
    rows = _BURNING(session, free=list(free), asked=list(asked))
    active: dict[UUID, list[Owned]] = {}
    named: dict[tuple[UUID, UUID], Owned] = {}
    for *columns, holder, tenant_id, digest in rows:
        facts = dict(zip(_OWNED_NAMES, columns, strict=True))
        terms = terms_of_digest(session, facts["version_id"], digest)
        owned = Owned(**facts, holder=EnterpriseFacts.from_json(holder), terms=terms)
        if tenant_id in free and owned.state == "active":
            active.setdefault(tenant_id, []).append(owned)
        if owned.id in asked:
            named[tenant_id, owned.id] = owned
    return active, named


def _parts(
    session: Session,
    named: Iterable[Owned],
    active: Mapping[UUID, Sequence[Owned]],
    projects: Collection[str],
) -> set[tuple[UUID, str]]:
    ids = {row.id for rows in (named, *active.values()) for row in rows}
    if not ids or not projects:
        return set()
    query = select(VoucherPart.voucher_id, VoucherPart.project).where(
        among(VoucherPart.voucher_id, ids), among(VoucherPart.project, projects)
    )
    return set(session.execute(query).all())


def budgets_in_force(
    session: Session, wanted: Collection[tuple[UUID, str]], at: datetime
) -> dict[tuple[UUID, str], Account]:
    """Per tenant and project the budget that limits it now; of several the one that began last."""
    if not wanted:
        return {}
    rows = session.execute(
        select(ProjectBudget.enterprise_id, ProjectBudget.project, ProjectBudget.id)
        .where(
            tuple_(ProjectBudget.enterprise_id, ProjectBudget.project).in_(set(wanted)),
            ProjectBudget.starts_at <= at,
            at < ProjectBudget.ends_at,
        )
        .order_by(ProjectBudget.starts_at, ProjectBudget.id.desc())
    )
    return {(tenant_id, project): accounts.project_budget(budget_id) for tenant_id, project, budget_id in rows}


def _accounts(means: Means, wishes: Sequence[Wish]) -> set[UUID]:
    """Every account that paying may touch, so that one look suffices."""
    wanted: list[Account] = []
    for wish in wishes:
        wanted.append(accounts.revenue(wish.tenant_id))
        wanted += [account for _, *own in own_places(wish.payers) for account in own]
        for owned in means.vouchers(wish)[0]:
            wanted.append(means.place(owned, wish.facts.project))
            wanted.append(accounts.claimable(owned.slug, wish.tenant_id, owned.asset))
        budget = means.budget(wish)
        if budget is not None:
            wanted += [budget, accounts.BUDGET_SPENT]
    return {account.id for account in wanted}
