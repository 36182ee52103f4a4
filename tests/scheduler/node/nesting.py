"""Folders without end within each other, as a job may make them."""

import os
from pathlib import Path


def nest(folder: Path, depth: int) -> None:
    """So many folders called `a`, each within the last; no path is long enough to name them."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(depth):
        os.mkdir("a", dir_fd=handle)
        below = os.open("a", os.O_RDONLY | os.O_DIRECTORY, dir_fd=handle)
        os.close(handle)
        handle = below
    os.close(handle)
