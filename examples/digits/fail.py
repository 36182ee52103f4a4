"""A job that fails honestly: it wants a data file that nobody uploaded, says so and exits 3."""

import sys
from pathlib import Path
from typing import Final

DATA: Final = Path("measurements.csv")


def main() -> int:
    """Count the measurements; returns the exit status."""
    try:
        lines = DATA.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        print(f"there is no {DATA} in the job's working directory; upload it with the job", file=sys.stderr)
        return 3
    print(f"{len(lines)} measurements")
    return 0


if __name__ == "__main__":
    sys.exit(main())
