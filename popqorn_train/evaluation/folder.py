"""The folder of a run: whole files or none, and one run at a time."""

import errno
import os
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # no such locks on this system
    fcntl = None  # type: ignore[assignment]

_LOCK = ".lock"


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file in one piece: what was there stays until the new content is on the disk.

    Raises:
        OSError: it cannot be written; nothing half-written is left.
    """
    new = path.with_name(f"{path.name}.new")
    try:
        with new.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            flushed(file)
        new.replace(path)
    except OSError:
        new.unlink(missing_ok=True)
        raise


def is_disk_full(error: BaseException) -> bool:
    """Whether there was no room for a file, or the user may not take more."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def flushed(file: IO[str] | IO[bytes]) -> None:
    """Wait until everything written is on the disk."""
    file.flush()
    os.fsync(file.fileno())


class FolderLock:
    """Keeps a folder for this process until it ends, or ``release``.

    Args:
        folder: made if need be.

    Raises:
        ValueError: another process holds it.
        OSError: it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file: int | None = os.open(folder / _LOCK, os.O_WRONLY | os.O_CREAT)
        try:
            if fcntl is not None:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            raise ValueError(
                f"`--folder` {folder} is in use by another run. Wait for it, or name another."
            ) from None

    def release(self) -> None:
        """Let others have it."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
