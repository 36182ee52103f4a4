"""Who made way for whom since anything last happened from outside, so that nobody stops, in turn, its own cause.

Invariant: but for claims inside a guarantee, the relation never has a circle: a claim that would close one is refused.
"""


class Yielding:
    """Which jobs were told to stop for which others."""

    def __init__(self) -> None:
        self._for: dict[str, dict[str, None]] = {}

    def copy(self) -> "Yielding":
        """The same, to be added to without a trace here."""
        found = Yielding()
        found._for = {victim: dict(claimants) for victim, claimants in self._for.items()}
        return found

    def note(self, victim: str, claimant: str) -> None:
        """The victim stops for the claimant."""
        self._for.setdefault(victim, {})[claimant] = None

    def forget(self) -> None:
        """Something happened from outside: what was decided before it says nothing any more."""
        self._for.clear()

    def __contains__(self, job_id: str) -> bool:
        """Whether the job made way for anybody."""
        return job_id in self._for

    def leads(self, job_id: str, other_id: str) -> bool:
        """Whether the job made way for the other, or for somebody who did, however indirectly."""
        if job_id not in self._for:
            return False
        seen, edge = {job_id}, [job_id]
        while edge:
            for claimant in self._for.get(edge.pop(), ()):
                if claimant == other_id:
                    return True
                if claimant not in seen:
                    seen.add(claimant)
                    edge.append(claimant)
        return False
