"""How a grant divides into the parts that a programme releases one after another."""

from itertools import accumulate, pairwise

from vouchers.domain.terms import Terms


def tranche_faces(terms: Terms, granted: int) -> list[int]:
    """A grant divided into its tranches by their parts; roundings telescope, so they add up to the grant."""
    whole = sum(tranche.parts for tranche in terms.tranches)
    ends = [
        granted * parts // whole
        for parts in accumulate((tranche.parts for tranche in terms.tranches), initial=0)
    ]
    return [after - before for before, after in pairwise(ends)]
