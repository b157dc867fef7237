"""A lock between processes that ends with its holder and is not inherited by forked workers."""

import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


class ProcessLock:
    """Hold a POSIX record lock on a file.

    Record locks belong to the process, so a data-loader worker that outlives a killed training
    does not keep it; they work over NFS. They do not keep two threads of one process apart.

    Args:
        path: The lock file, made when it is first taken.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None
        self._pid = 0

    def acquire(self) -> bool:
        """Take the lock, or say that another process has it."""
        if self.held:
            return True
        self._path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(handle)
        except OSError:
            os.close(handle)
            return False
        self._file, self._pid = handle, os.getpid()
        return True

    def release(self) -> None:
        """Give the lock back. Does nothing in a process that was forked from the holder."""
        if self.held and self._file is not None:
            os.close(self._file)
        self._file = None

    @property
    def held(self) -> bool:
        """Whether this process holds the lock."""
        return self._file is not None and self._pid == os.getpid()


def _lock(handle: int) -> None:
    if fcntl is not None:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    else:
        import msvcrt

        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
