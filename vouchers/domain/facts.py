"""What the rules look at: an enterprise, a piece of usage and a contract, as frozen facts.

Decisions are replayed from these facts alone, so they are stored with the decision.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Self

COMPUTE: Final = "compute"


@dataclass(frozen=True)
class EnterpriseFacts:
    """An enterprise as the rules see it.

    `region` is a GB/T 2260 division code; `yearly_contract_micros` is what it contracted for compute in a year;
    `version` says which of its dated facts these are.
    """

    credit_code: str
    region: str
    industry: str = "manufacturing"
    size_class: str = "small"
    yearly_contract_micros: int = 0
    controller: str = ""
    dishonest: bool = False
    clean_years: int = 0
    roles: tuple[str, ...] = ()
    version: int = 1

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self) | {"roles": list(self.roles)}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Self:
        """What `to_json` wrote."""
        return cls(**(stored | {"roles": tuple(stored["roles"])}))


@dataclass(frozen=True)
class CentreFacts:
    """A compute centre as the rules see it: its division code, and its installed peak in whole PFLOPS.

    `cost_kinds` says which of its services, by name, are usage of another kind than compute.
    """

    region: str
    pflops: int
    cost_kinds: Mapping[str, str] = field(default_factory=dict)

    def cost_kind(self, service: str) -> str:
        """What kind of cost usage of a service is."""
        return self.cost_kinds.get(service, COMPUTE)


@dataclass(frozen=True)
class ChargeFacts:
    """A piece of usage as the rules see it.

    `card_ms` is card time in milliseconds over all cards; `region` and `centre_pflops` are the centre's.
    """

    model: str
    hardware: str = "domestic"
    cost_kind: str = COMPUTE
    region: str = "331003"
    centre_pflops: int = 0
    card_ms: int = 0
    project: str | None = None

    def kind(self) -> dict[str, Any]:
        """Everything but the quantity, as a JSON object: what all charges against one hold must agree in."""
        kind = vars(self).copy()
        del kind["card_ms"]
        return kind

    def lasting(self, card_ms: int) -> Self:
        """The same usage for so much card time."""
        return type(self)(**(vars(self) | {"card_ms": card_ms}))


@dataclass(frozen=True)
class ContractFacts:
    """A purchase contract an application names; `supplier` is the supplier's credit code."""

    number: str = ""
    supplier: str = ""
    amount_micros: int = 0
    days: int = 0
    cost_kind: str = COMPUTE
    centre_region: str = ""
    centre_pflops: int = 0
    other_subsidies: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self) | {"other_subsidies": list(self.other_subsidies)}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Self:
        """What `to_json` wrote."""
        return cls(**(stored | {"other_subsidies": tuple(stored["other_subsidies"])}))
