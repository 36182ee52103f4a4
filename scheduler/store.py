"""Where the files of tenants' jobs lie on the file system that API and nodes share.

<workspaces>/<tenant>/<job>/attempt-N/rank-R       working directory of one rank of one attempt
<workspaces>/<tenant>/<job>/attempt-N/rank-R.log   what it printed
<workspaces>/<tenant>/<job>/checkpoints/rank-R     what every attempt of the rank finds again
<uploads>/<tenant>/<sha256>.tar.gz                 working directories as they were handed in
"""

from dataclasses import dataclass
from pathlib import Path

from scheduler.secrets import Vault
from scheduler.tables import JobRow


@dataclass(frozen=True)
class Store:
    """The two folders, and what opens the tenants' secrets."""

    uploads: Path
    workspaces: Path
    vault: Vault | None = None

    def attempt(self, job: JobRow, attempt: int) -> Path:
        """The directory of one attempt of a job: a working directory and a log per rank."""
        return self._of(job) / f"attempt-{attempt}"

    def checkpoints(self, job: JobRow, rank: int) -> Path:
        """The directory that every attempt of a rank finds again."""
        return self._of(job) / "checkpoints" / f"rank-{rank}"

    def _of(self, job: JobRow) -> Path:
        return self.workspaces / str(job.tenant_id) / str(job.id)
