"""`ray start` for a cluster on the loopback address: `python -m scheduler.ray.start …`, with the same options.

Ray binds its ports to the loopback address alone when its node's address is 127.0.0.1, and to all interfaces otherwise;
but its command line replaces 127.0.0.1 by the machine's routed address. Here it stays what it is.
"""

import signal
import sys

from ray._private import services
from ray.scripts.scripts import main


def keep_loopback() -> None:
    """Have this process's Ray take 127.0.0.1 for what it says."""
    services.resolve_ip_for_localhost = _as_it_is


def _as_it_is(host: str) -> str:
    return host


if __name__ == "__main__":
    # A controller that starts this waits for its signals with them blocked.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())
    keep_loopback()
    sys.exit(main())  # type: ignore[no-untyped-call] # Ray's command line has no types
