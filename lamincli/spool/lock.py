"""A lock between processes, on any file system, that says who holds it and ends with its holder.

Two things make it. A POSIX record lock on a file, which the kernel gives up with the process, is
what decides between processes that share a kernel. A *mark* beside it, a file of its own for every
holder, says who that is, and decides where record locks do not: on file systems that have none,
and on those that keep them to one host.
"""

import errno
import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from lamincli.process import ProcessIdentity

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

BEAT_S = 10.0
"""How often a holder shows that it lives."""
SILENT_S = 60.0
"""How long somebody must watch a holder that he cannot ask after before he takes its place."""
FORGOTTEN_S = 600.0
"""How long it may have been silent by the clock of the file system, before anybody watched."""
_LARGEST_MARK_BYTES = 10_000
_ATTEMPTS = 5
_PLAIN = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


@dataclass(frozen=True)
class Holder:
    """Who holds a lock.

    Args:
        what: What it does: ``training`` or ``sync``; ``unknown`` where an older version has it.
        process: Its process.
        since: Since when, ISO 8601 in UTC; empty where that is unknown.
        device: The file system as its kernel numbers it. With the same number in the same boot,
            record locks are shared.
        is_alive: Whether it is certain that the process lives, as far as it is known who it is. One
            that cannot be asked after has to show it, while somebody looks again and again.
    """

    what: str
    process: ProcessIdentity | None = None
    since: str = ""
    device: int = 0
    is_alive: bool = False

    def __str__(self) -> str:
        """Name it for the user, as in ``lamin-train sync, process 42 on node7, since 12:03``."""
        known = {"training": "its own training", "sync": "lamin-train sync"}
        what = known.get(self.what, "lamin-train")
        if self.process is None:
            return what
        host = "".join(letter for letter in self.process.host if letter.isprintable())
        text = f"{what}, process {self.process.pid} on {host}"
        with suppress(ValueError):
            since = datetime.fromisoformat(self.since).astimezone()
            is_today = since.date() == datetime.now().astimezone().date()
            text += f", since {since:%H:%M}" if is_today else f", since {since:%Y-%m-%d %H:%M}"
        return text

    @classmethod
    def from_json(cls, text: str) -> "Holder | None":
        """Read a mark; `None` if it is torn, or none."""
        try:
            content = json.loads(text)
            process = ProcessIdentity.from_dict(content.pop("process"))
            holder = cls(**content, process=process)
        except (ValueError, TypeError, KeyError, AttributeError):
            return None
        if process is None:
            return None
        is_sound = isinstance(holder.what, str) and isinstance(holder.since, str)
        return holder if is_sound and isinstance(holder.device, int) else None


@dataclass(frozen=True)
class _Mark:
    path: Path
    holder: Holder | None  # none can be read: the power was cut while it was new
    beat_ns: int


class ProcessLock:
    """Hold a spool for one process, which says so to others.

    A record lock belongs to the process: a data-loader worker that outlives a killed training does
    not keep it. Where nobody else on this kernel has it, the marks are looked at. Whoever wants the
    lock puts down a mark of its own *before* it looks at the others a last time, and withdraws if
    there is one: of any two, the later sees the other. A mark of a holder that has certainly ended
    does not count; nor does one whose holder cannot be asked after, as on another host, and has
    missed several beats. It does not keep two threads of one process apart.

    Args:
        path: The lock file, made when it is first taken. Marks lie beside it.
        clock: Seconds, never going back.

    Source: the marks are the doorway of Lamport's bakery, without numbers, for nobody queues.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._what = "training"
        self._file: int | None = None
        self._mark: Path | None = None
        self._holder: Holder | None = None
        self._pid = 0
        self._released = threading.Event()
        self._lost = threading.Event()
        self._seen: dict[str, tuple[int, float]] = {}  # marks: their last beat, and when it was new
        self._beating: set[str] = set()  # marks that were seen to beat

    def acquire(self, what: str = "") -> bool:
        """Take the lock, or say that somebody else has it; `holder` says who.

        Ask again, a few times a minute, to take the place of one that has ended on another host.

        Args:
            what: What the holder does, for others to know: ``sync``, or ``training``, which it is
                until it is said to be something else.

        Raises:
            OSError: The files cannot be made or opened.
        """
        self._what = what or self._what
        with _GUARD:
            if self.held and self._is_in_place():
                return True
            self.release()
            other = _HELD.get(self._path)
            if other is not None and other.held:
                return False  # opening and closing the file here would give up the lock there
            if other is not None:
                other.release()  # likewise, later
            return self._acquire()

    def release(self) -> None:
        """Give the lock back. Does nothing in a process that was forked from the holder."""
        with _GUARD:
            if self._file is not None and self._pid == os.getpid():
                self._released.set()
                if self._mark is not None:
                    with suppress(OSError):
                        self._mark.unlink(missing_ok=True)
                os.close(self._file)
                _HELD.pop(self._path, None)
            self._file = self._mark = self._holder = None

    def remove(self) -> None:
        """Remove the files of the lock, so that its folder can go. It is still to be released."""
        if self._mark is not None:
            self._mark.unlink(missing_ok=True)
        self._path.unlink(missing_ok=True)

    @property
    def held(self) -> bool:
        """Whether this process holds the lock, and nobody has taken it for dead meanwhile."""
        is_ours = self._file is not None and self._pid == os.getpid()
        return is_ours and not self._lost.is_set()

    @property
    def is_removed(self) -> bool:
        """Whether somebody has removed the files of the lock since it was taken."""
        return self._file is not None and not _is_at(self._path, self._file)

    def holder(self) -> Holder | None:
        """Say who holds the lock, without taking it; `None` if nobody does.

        A holder on another host that has been silent for long is nobody. One of an older version of
        lamin-train, which leaves no mark, is ``unknown``.

        Raises:
            OSError: The file system is read-only, so that nobody can.
        """
        with _GUARD:
            other = _HELD.get(self._path)
            if other is not None and other.held:
                return other._holder and replace(other._holder, is_alive=True)
            is_taken = self._is_taken()
        for mark in self._marks():
            if self._counts_no_more(mark, time.time_ns(), is_taken is False):
                continue
            process = mark.holder.process if mark.holder is not None else None
            is_seen = mark.path.name in self._beating or (
                process is not None and process.is_alive()
            )
            return replace(mark.holder or Holder("unknown"), is_alive=bool(is_taken) or is_seen)
        return Holder("unknown", is_alive=True) if is_taken else None

    # -- its two halves ----------------------------------------------------------------------

    def _acquire(self) -> bool:
        for _ in range(_ATTEMPTS):
            with suppress(FileNotFoundError):  # the holder before has just removed the folder
                if (is_taken := self._try()) is not None:
                    return is_taken
        return False

    def _try(self) -> bool | None:
        """Take the lock; `None` if its file was removed meanwhile."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT | _PLAIN, 0o644)
        mark = None
        try:
            is_free = _is_free(handle)
            if is_free is False:
                return False
            if not _is_at(self._path, handle):
                return None
            mark = self._put_mark(handle, has_record_lock=bool(is_free))
        finally:
            if mark is None:
                os.close(handle)
        if mark is None:
            return False
        self._file, self._pid, self._mark = handle, os.getpid(), mark
        self._seen.clear()
        _HELD[self._path] = self
        self._released, self._lost = threading.Event(), threading.Event()
        about = (mark, self._released, self._lost)
        threading.Thread(target=_beat, args=about, name="lamin-train-beat", daemon=True).start()
        return True

    def _put_mark(self, handle: int, has_record_lock: bool) -> Path | None:
        """Leave a mark, unless somebody else has one; `None` if so."""
        with suppress(OSError, TypeError, NotImplementedError):
            os.utime(handle)  # what the file system's own clock says now
        now_ns = os.fstat(handle).st_mtime_ns
        before = list(self._marks())
        if not all(self._counts_no_more(mark, now_ns, has_record_lock) for mark in before):
            return None
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        device = os.fstat(handle).st_dev
        self._holder = Holder(self._what, ProcessIdentity.current(), now, device)
        mark = self._path.with_name(f"{self._path.name}.{secrets.token_hex(8)}")
        part = mark.with_name(f"{mark.name}.part")
        try:
            part.write_text(json.dumps(asdict(self._holder)), encoding="utf-8")
            os.replace(part, mark)
            ended = {other.path for other in before}
            if any(other.path not in {mark, *ended} for other in self._marks()):
                mark.unlink(missing_ok=True)
                return None
        except BaseException:
            for file in (part, mark):
                with suppress(OSError):
                    file.unlink(missing_ok=True)
            raise
        for path in (*ended, *self._half_made()):
            with suppress(OSError):
                path.unlink(missing_ok=True)
        return mark

    def _half_made(self) -> list[Path]:
        """Return the marks of those that were killed just then; who was not tries again."""
        return list(self._path.parent.glob(f"{self._path.name}.*.part"))

    def _marks(self) -> Iterator[_Mark]:
        prefix = f"{self._path.name}."
        try:
            names = os.listdir(self._path.parent)
        except OSError:
            return
        for name in names:
            if not name.startswith(prefix) or name.endswith(".part"):
                continue
            with suppress(OSError):
                # Opened, for that asks the server anew where attributes are cached.
                handle = os.open(self._path.with_name(name), os.O_RDONLY | _PLAIN)
                try:
                    text = os.read(handle, _LARGEST_MARK_BYTES).decode(errors="replace")
                    beat_ns = os.fstat(handle).st_mtime_ns
                finally:
                    os.close(handle)
                yield _Mark(self._path.with_name(name), Holder.from_json(text), beat_ns)

    def _counts_no_more(self, mark: _Mark, now_ns: int, has_record_lock: bool) -> bool:
        if self._has_ended(mark, has_record_lock):
            return True
        process = mark.holder.process if mark.holder is not None else None
        if process is not None and process.is_alive():
            return False
        now_s = self._clock()
        beat_ns, since_s = self._seen.get(mark.path.name, (mark.beat_ns, now_s))
        if beat_ns != mark.beat_ns:
            since_s = now_s
            self._beating.add(mark.path.name)
        self._seen[mark.path.name] = (mark.beat_ns, since_s)
        return now_s - since_s >= SILENT_S or now_ns - mark.beat_ns > FORGOTTEN_S * 1e9

    def _has_ended(self, mark: _Mark, is_unlocked: bool) -> bool:
        """Tell whether a holder has certainly ended.

        Args:
            mark: What it has left.
            is_unlocked: Whether record locks work here, and nobody has this one.
        """
        process = mark.holder.process if mark.holder is not None else None
        if mark.holder is None or process is None:
            return False
        here = ProcessIdentity.current()
        if process == here or process.is_gone():
            return True
        # Another container, perhaps, whose processes cannot be seen, but whose record locks can.
        is_shared = bool(here.boot_id) and process.boot_id == here.boot_id
        with suppress(OSError):
            is_shared = is_shared and mark.holder.device == os.stat(self._path.parent).st_dev
        return is_unlocked and is_shared and not process.is_alive()

    def _is_taken(self) -> bool | None:
        """Tell whether another process has the record lock; `None` where that cannot be known."""
        try:
            handle = os.open(self._path, os.O_RDWR | _PLAIN)
        except OSError as error:
            if error.errno == errno.EROFS:
                raise
            return None
        try:
            is_free = _is_free(handle)
        finally:
            os.close(handle)
        return None if is_free is None else not is_free

    def _is_in_place(self) -> bool:
        return not self.is_removed and self._mark is not None and self._mark.exists()


_HELD: dict[Path, ProcessLock] = {}  # of this process
_GUARD = threading.RLock()  # no file of a lock is closed while another thread takes that lock


def _renew_guard() -> None:
    global _GUARD
    _GUARD = threading.RLock()  # the thread that had it is not in this process


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_guard)


def _beat(mark: Path, released: threading.Event, lost: threading.Event) -> None:
    while not released.wait(BEAT_S):
        try:
            os.utime(mark)
        except FileNotFoundError:
            lost.set()
            return
        except OSError:
            continue  # the server may be back for the next one


def _is_at(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _is_free(handle: int) -> bool | None:
    """Take a record lock; `False` if another process has it, `None` where there are none."""
    try:
        _lock(handle)
    except OSError as error:
        taken = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
        return False if error.errno in taken else None  # ENOSYS, ENOLCK and their like
    return True


def _lock(handle: int) -> None:
    if fcntl is not None:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    else:
        import msvcrt

        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
