"""A job that fails honestly: it wants a data file that nobody uploaded, waits for it a while, says so and exits 3."""

import argparse
import sys
import time
from pathlib import Path
from typing import Final

DATA: Final = Path("measurements.csv")
_LOOK_S: Final = 0.2


def main() -> int:
    """Count the measurements; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--patience", type=float, default=0, metavar="SECONDS", help="how long to wait for the file"
    )
    give_up = time.monotonic() + parser.parse_args().patience
    while not DATA.exists() and time.monotonic() < give_up:
        time.sleep(_LOOK_S)
    try:
        lines = DATA.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        print(f"there is no {DATA} in the job's working directory; upload it with the job", file=sys.stderr)
        return 3
    print(f"{len(lines)} measurements")
    return 0


if __name__ == "__main__":
    sys.exit(main())
