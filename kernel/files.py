"""What a file system promises only to those who ask: that a name in a folder is on the disk, too."""

import os
from pathlib import Path


def sync_directory(path: Path) -> None:
    """Return when every name given or taken in a folder until now would outlive a loss of power. Raises OSError."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
