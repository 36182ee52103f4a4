"""How a run is launched: in the sandbox that this supervisor can make, or, where its operator chose that, in none.

A sandbox shows nothing of the host but what is listed: /usr and the environment read-only, /job, private /tmp and
/dev/shm of bounded size, a minimal /dev with the allocated devices, a fresh /proc, and an /etc of our own.
"""

from contextlib import AbstractContextManager

from scheduler.node.bubblewrap import wrapped
from scheduler.node.enclosure import enclosed
from scheduler.node.nursery import Launch
from scheduler.node.view import View, command, plain


def compose(view: View, status_fd: int) -> AbstractContextManager[Launch]:
    """What launches the view; its descriptors are closed when the block ends, but for `status_fd`.

    The sandbox's JSON status (pid of its first process, exit code of the program) is written to `status_fd`.
    Raises StartFailed, MissingHere, OSError.
    """
    return enclosed(view, status_fd) if view.uid is not None else wrapped(view, status_fd)


def unconfined(view: View) -> Launch:
    """The command without a sandbox."""
    return plain(view, command(view), view.env, view.workspace, ())
