"""How labels with many possible values are bounded."""

from typing import Final

SIZE_CLASSES: Final = ("fraction", "1", "2-8", "9-64", "65+")
"""Of a job, by the cards it asks for."""

SIZE_CLASS_SQL: Final = """CASE
    WHEN node_count * devices_per_node * slots_milli < 1000 THEN 'fraction'
    WHEN node_count * devices_per_node * slots_milli <= 1000 THEN '1'
    WHEN node_count * devices_per_node * slots_milli <= 8000 THEN '2-8'
    WHEN node_count * devices_per_node * slots_milli <= 64000 THEN '9-64'
    ELSE '65+' END"""


def size_class(cards_milli: int) -> str:
    """The class of a job that asks for so many thousandths of a card."""
    bounds = (999, 1000, 8000, 64_000)
    return SIZE_CLASSES[sum(cards_milli > bound for bound in bounds)]


MODELS_MAX: Final = 64
NODES_MAX: Final = 4096
TENANTS_MAX: Final = 2000
PROGRAMMES_MAX: Final = 200
AUTHORITIES_MAX: Final = 200
INDUSTRIES_MAX: Final = 100
