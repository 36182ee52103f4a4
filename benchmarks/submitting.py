"""What a submission costs: of jobs that are held, so that nothing else works, from several connections at once.

    python -m benchmarks.submitting --jobs 800 --clients 8 --rounds 7 --json

Prints the medians as one JSON line: submissions a second, and milliseconds of processor time for each of the API, of
PostgreSQL for it, and of all processors.
"""

import argparse
import json
import statistics
import sys
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks.peers.ours import Hub

FOLDER: Final = Path("var/bench/submitting")
_WARM: Final = 400


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="benchmarks.submitting", description=__doc__)
    parser.add_argument("--jobs", type=int, default=800, help="of each round")
    parser.add_argument("--clients", type=int, default=8, help="connections at once")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="as ever: the figures are one JSON line")
    arguments = parser.parse_args()
    with Hub(FOLDER, partial(print, file=sys.stderr)) as hub:
        hub.submissions(_WARM, arguments.clients)
        found = [hub.submissions(arguments.jobs, arguments.clients) for _ in range(arguments.rounds)]
    print(json.dumps({name: round(statistics.median(one[name] for one in found), 2) for name in found[0]}))


if __name__ == "__main__":
    main()
