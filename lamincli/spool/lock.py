"""A lock between processes that ends with its holder and is not inherited by forked workers."""

import errno
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
        """Take the lock, or say that somebody else has it.

        Raises:
            OSError: The file cannot be made or opened.
        """
        if self.held:
            return True
        holder = _HELD.get(self._path)
        if holder is not None and holder.held:
            return False  # opening and closing the file here would give up the lock there
        while True:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                _lock(handle)
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
                    os.close(handle)
                    return False
                # A file system without locks, as some of clusters are: one job a run all the same.
            if _is_at(self._path, handle):
                break
            os.close(handle)  # its holder has just removed it
        self._file, self._pid = handle, os.getpid()
        _HELD[self._path] = self
        return True

    def release(self) -> None:
        """Give the lock back. Does nothing in a process that was forked from the holder."""
        if self.held and self._file is not None:
            os.close(self._file)
            _HELD.pop(self._path, None)
        self._file = None

    @property
    def held(self) -> bool:
        """Whether this process holds the lock."""
        return self._file is not None and self._pid == os.getpid()


_HELD: dict[Path, ProcessLock] = {}  # of this process


def _is_at(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _lock(handle: int) -> None:
    if fcntl is not None:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    else:
        import msvcrt

        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
