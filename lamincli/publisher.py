"""Carry jobs from the spool to the registry, beside the training, in order, until they are done.

`Drainer` is the plain state machine: one call, one job. `Publisher` runs it in a thread of the
training process; `lamin-train sync` runs it in the foreground.
"""

from __future__ import annotations

import atexit
import os
import random
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lamincli import console
from lamincli.console import one_line
from lamincli.errors import LaminTrainError, first_line
from lamincli.redaction import redact_text
from lamincli.registry.base import Registry
from lamincli.spool import NOT_OURS, Job, Spool

_FIRST_DELAY_S = 0.5
_LONGEST_DELAY_S = 30.0
_RACES = 5
_WARN_EVERY_S = 60.0
_LIGHT_BYTES = 1 << 20
_QUIET_S = 0.05
_LONGEST_REST_S = 30.0
_AGAIN_S = 0.5
_IDLE_S = 5.0
"""How long a connection to the registry is kept for the next job."""
END_OF_RUN = "the end of the run"
"""How a user is told of a job that closes a run."""
PATIENCE_S = 60.0
"""How long the end of a training waits for a registry that is away."""
_SLOWEST_BYTES_PER_S = 1e6

Outcome = Literal["done", "idle", "waiting"]

# Not the global generator: that one is the training's, whose numbers shall be repeatable.
_RANDOM = random.Random()  # noqa: S311  no secret


@dataclass(frozen=True)
class Published:
    """What became of a job: the artifact that was saved or deleted.

    Args:
        job: The job.
        artifact: The artifact as the registry returned it.
        owner: Who added the job in this process; `None` for one that was found.
    """

    job: Job
    artifact: Any
    owner: Any = None


class Drainer:
    """Publish the jobs of one spool, oldest first.

    A job whose registry is away stays first and is tried again, ever less often; one that needs
    somebody to act is parked and blocks nothing. A checkpoint that was removed, or saved over,
    before its upload began is never uploaded.

    Args:
        spool: The spool, whose lock the caller holds.
        registry: Where the jobs go.
        limit_bytes: What the pins may take; past it the oldest superseded checkpoints give way.
        is_held: Leave the jobs in the spool, for `sync`.
        clock: Seconds, never going back.
        jitter: A number between 0 and 1, so that many jobs do not return at the same moment.
    """

    def __init__(
        self,
        spool: Spool,
        registry: Registry,
        *,
        limit_bytes: float | None = None,
        is_held: bool = False,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = _RANDOM.random,
    ) -> None:
        self.spool = spool
        self.registry = registry
        self.limit_bytes = limit_bytes
        self.is_held = is_held
        self.published: deque[Published] = deque()
        self.parked: list[tuple[str, str]] = []  # name and reason
        self.done = 0
        self.failing_since_s: float | None = None
        self.busy_since_s: float | None = None
        self._clock = clock
        self._jitter = jitter
        self._queue: dict[str, Job] = {}  # ready jobs by name, oldest first
        self._arrived: deque[tuple[str, Job]] = deque()
        self._begun: set[str] = set()  # may have stored their file, so they are not dropped
        self._owners: dict[str, Any] = {}
        self._current: tuple[str, Job] | None = None
        self._texts: dict[str, str] = {}  # what was pinned in the place of a file
        self._are_durable: set[str] = set()  # of those that have arrived
        self._found: dict[str, Job] = {}  # in the spool, by whoever they were added
        self._next_number: int | None = None  # of a job that arrives, unless others add too
        self._not_ours: set[str] = set()  # jobs that others have added, and nobody can do
        self._times_made = 0  # the folders of the spool, when all in the queue was in them
        self._failures = 0
        self._unknown: set[str] = set()  # whose content was looked at, or tried to
        self._races: Counter[str] = Counter()
        self._retry_at_s = 0.0
        self._warned_s: float | None = None
        self._removed_s: float | None = None

    def recover(self) -> None:
        """Take over what an earlier process left in the spool."""
        self.spool.recover()
        self._queue.clear()
        self._arrived.clear()
        self._are_durable.clear()
        self._times_made = self.spool.times_made
        for name in self.spool.pending():
            if (job := self.spool.read(name)) is not None:
                self._queue[name] = job
        self._begun = set(self.spool.names(self.spool.claimed))
        for name in list(self._queue):
            self._supersede(name)
        self._make_room()
        self._found = dict(self._queue)
        self.parked = self._parked_now()

    def arrive(self, name: str, job: Job, owner: Any = None, content: str | None = None) -> None:
        """Tell of a job that was just added; may be called from any thread."""
        self._owners[name] = owner
        if content is not None:
            self._texts[name] = content
        self._arrived.append((name, job))

    def left(self) -> list[Job]:
        """Return the jobs that are not done yet, parked ones aside."""
        current = self._current  # first: it is back in the queue before it is in hand no more
        known = [*([current] if current else ()), *self._queue.items(), *list(self._arrived)]
        if not self.spool.lock.held:  # whoever has it may have done some of them
            there = set(self.spool.pending())
            known = [(name, job) for name, job in known if name in there]
        return list(dict(known).values())

    def set_aside(self) -> list[str]:
        """Name what is left for somebody to act on."""
        parked = self.parked if self.spool.lock.held else self._parked_now()
        return [name for name, _ in parked]

    def _parked_now(self) -> list[tuple[str, str]]:
        jobs = self.spool.parked_jobs()
        parked = [(name_of(job) if job else name, reason) for name, job, reason in jobs]
        return parked + [(entry.name, NOT_OURS) for entry in self.spool.foreign()]

    def waits_for_quiet(self) -> bool:
        """Tell whether what waits needs the interpreter more than it needs disk and network."""
        jobs = [*self._queue.values(), *(job for _, job in list(self._arrived))]
        return all(job.size_bytes < _LIGHT_BYTES for job in jobs)

    def delay_s(self) -> float:
        """Return how long to wait before the next attempt."""
        return max(0.0, self._retry_at_s - self._clock())

    def hope(self) -> None:
        """Forget earlier failures: the next attempt is at once, and patience begins anew."""
        self._failures, self._retry_at_s, self.failing_since_s = 0, 0.0, None

    def step(self, retry_now: bool = False) -> Outcome:
        """Do one job.

        Returns:
            ``done`` after a job, ``idle`` without one, ``waiting`` while the registry is away.
        """
        self.take_in()
        if self.spool.times_made > self._times_made:
            self.mend()
        if not self._queue:
            self.look()
            self.take_in()
        if not self._queue or self.is_held:
            return "done" if self._identify() else "idle"
        if not retry_now and self.delay_s() > 0:
            self._identify()
            return "waiting"
        name, job = next(iter(self._queue.items()))
        if self._has_lost_its_pin(job):
            self.mend()
            return "waiting" if self._has_lost_its_pin(self._queue.get(name)) else "done"
        # In hand before it leaves the queue: `left` misses it at no moment.
        self._current, self.busy_since_s = (name, job), self._clock()
        try:
            self.spool.claim(name)
            self._begun.add(name)
            del self._queue[name]
            return self._attempt(name, job)
        except FileNotFoundError as error:  # somebody has removed the spool, or this job
            self._queue = {name: job, **self._queue}
            self.mend()
            self._wait(error)
            return "waiting"
        except OSError as error:  # the spool itself cannot be written
            self._queue = {name: job, **self._queue}
            self._wait(error)
            return "waiting"
        finally:
            self._current = self.busy_since_s = None

    def _identify(self) -> bool:
        """Note the content of a file that has to wait, so that any copy of the spool is known."""
        for name, job in self._queue.items():
            if not job.pin or job.digest or name in self._unknown:
                continue
            self._unknown.add(name)  # one that was written to meanwhile stays so
            with suppress(OSError, LaminTrainError):
                self._queue[name] = self.spool.identify(name, job)
            return True
        return False

    def _attempt(self, name: str, job: Job) -> Outcome:
        decided = job

        def note(changed: Job) -> None:
            nonlocal decided
            decided = changed
            self.spool.note(name, changed)

        try:
            artifact = self._publish(job, note)
        except Exception as error:
            verdict = self.registry.verdict(error)
            self._races[name] += verdict == "race"
            with suppress(Exception):
                self.registry.disconnect()
            if verdict == "park" or self._races[name] > _RACES:
                reason = "".join(traceback.format_exception_only(error)).strip()
                if not isinstance(error, (OSError, LaminTrainError)):
                    reason = "".join(traceback.format_exception(error)).strip()
                self.spool.park(name, redact_text(reason))
                self.parked.append((name_of(decided), first_line(error)))
                self._warn(
                    f"{one_line(name_of(decided))} is set aside: {first_line(error)}; "
                    "mend it and run lamin-train sync"
                )
                return "done"
            self._queue = {name: decided, **self._queue}
            self._wait(error)
            return "waiting"
        self._failures, self.failing_since_s = 0, None
        self._forget_parked(name, job)
        self.spool.finish(name)
        self.done += 1
        self._begun.discard(name)
        self._races.pop(name, None)
        self._texts.pop(name, None)
        owner = self._owners.pop(name, None)
        if artifact is not None:
            self.published.append(Published(decided, artifact, owner))
        return "done"

    def _publish(self, job: Job, note: Callable[[Job], None]) -> Any:
        file = self.spool.pin_of(job) if job.pin else None
        if job.action == "save":
            return self.registry.save(job, file, note)
        if job.action == "remove":
            return self.registry.remove(job, note)
        if job.action == "begin":
            self.registry.begin_run(job)
        elif job.action == "annotate":
            self.registry.annotate(job)
        else:
            self.registry.close_run(job, file)
        return None

    def _wait(self, error: Exception) -> None:
        self._failures += 1
        now_s = self._clock()
        if self.failing_since_s is None:
            self.failing_since_s = now_s
        delay_s = min(_LONGEST_DELAY_S, _FIRST_DELAY_S * 2 ** (self._failures - 1))
        self._retry_at_s = now_s + delay_s * (0.5 + self._jitter() / 2)
        if self._failures > 1:
            files = len(self._queue) + len(self._arrived)
            self._warn(
                f"LaminDB cannot be reached: {first_line(error)}; {files} "
                f"{'job waits' if files == 1 else 'jobs wait'} and will be tried again"
            )

    def _warn(self, message: str) -> None:
        """Warn once a minute at most; the end of the training names everything."""
        now_s = self._clock()
        if self._warned_s is None or now_s - self._warned_s >= _WARN_EVERY_S:
            self._warned_s = now_s
            console.warn(message)

    # -- what need not be published ----------------------------------------------------------

    def take_in(self) -> None:
        """Take in what has arrived, and let it outlive a power cut."""
        if not (self._arrived or self._found):
            return
        arrived, self._found = self._found, {}
        while self._arrived:
            name, job = self._arrived[0]
            has_gap = self._next_number != _number((name, job))
            self._queue[name] = arrived[name] = job
            self._arrived.popleft()
            self._next_number = _number((name, job)) + 1
            if has_gap:  # another process has added some before it
                self.look()
            self._supersede(name)
            self._make_room()
        self.spool.make_durable({name: job for name, job in arrived.items() if name in self._queue})
        self._are_durable.clear()

    def make_durable(self) -> None:
        """Let what has arrived outlive a power cut, while another process has the spool."""
        arrived = {n: job for n, job in list(self._arrived) if n not in self._are_durable}
        if arrived:
            self.spool.make_durable(arrived)
            self._are_durable |= arrived.keys()

    def look(self) -> None:
        """Take in what other processes have added."""
        found = {}
        for name in self.spool.added_by_others():
            if name in self._queue or name in self._not_ours:
                continue
            if (job := self.spool.read(name)) is not None:
                found[name] = job
            else:
                self._not_ours.add(name)
        if found:
            self._queue = dict(sorted([*self._queue.items(), *found.items()], key=_number))
            self._found |= found
            for name in list(self._queue):
                self._supersede(name)

    # -- what somebody has removed -----------------------------------------------------------

    def mend(self) -> None:
        """Put back what somebody has removed of the jobs that wait, and say so once."""
        is_new = self.spool.times_made > self._times_made
        missing = self._missing()
        if not (is_new or missing) or not self.spool.lock.acquire():
            return
        before = len(self.parked)
        try:
            self.spool.reopen()
            for name, job in missing:
                if (mended := self.spool.mend(name, job, self._texts.get(name))) is not None:
                    self._queue[name] = mended
                    continue
                reason = f"it was removed from the spool, and {job.local_path} is not what it was"
                self.spool.set_aside(name, job, reason)
                self._forget(name)
                self.parked.append((name_of(job), reason))
            self._times_made = self.spool.times_made
        except OSError as error:  # the disk is full, perhaps
            self._times_made = -1
            self._wait(error)
        if missing:
            self._tell_of_removal([name for name, _ in self.parked[before:]])

    def _tell_of_removal(self, lost: list[str]) -> None:
        now_s = self._clock()
        if self._removed_s is None or now_s - self._removed_s >= _WARN_EVERY_S:
            self._removed_s = now_s
            console.warn(
                f"{self.spool.folder} was removed, all or in part, while this process uses it. It "
                "is made anew, with all that is on the disk still"
            )
        if lost:
            console.warn(f"lost with it, for the files are gone too: {', '.join(lost)}")

    def _missing(self) -> list[tuple[str, Job]]:
        there = set(self.spool.pending()) if self._queue else set()
        return [
            (name, job)
            for name, job in self._queue.items()
            if name not in there or self._has_lost_its_pin(job)
        ]

    def _has_lost_its_pin(self, job: Job | None) -> bool:
        return job is not None and job.pin != "" and not (self.spool.folder / job.pin).exists()

    def _supersede(self, name: str) -> None:
        """Drop the waiting saves that a removal, or a newer save of the same key, makes void."""
        job = self._queue.get(name)
        if job is None or job.action not in ("save", "remove"):
            return
        for older, other in list(self._queue.items()):
            if older == name:
                break
            is_void = other.action == "save" and other.key == job.key
            if is_void and older not in self._begun:
                self._drop(older)

    def _forget_parked(self, name: str, job: Job) -> None:
        """Drop what was parked before a job of the same key that is done now.

        Published after it, an older save would replace the newer one, and an older removal take it.
        """
        if not self.parked or job.action not in ("save", "remove"):
            return
        for older, parked, _ in list(self.spool.parked_jobs()):
            if parked is not None and older < name and parked.key == job.key:
                self.spool.drop(older)
                self.done += 1
                self.parked = [entry for entry in self.parked if entry[0] != name_of(parked)]

    def _make_room(self) -> None:
        if self.limit_bytes is None:
            return
        saves = [(n, j) for n, j in self._queue.items() if j.action == "save" and j.callback]
        last = {job.callback: name for name, job in saves}
        best = {job.callback: name for name, job in saves if job.is_best}
        used = sum(job.size_bytes for job in self._queue.values())
        for name, job in saves:
            if used <= self.limit_bytes:
                return
            if name in self._begun:
                continue
            if name not in (last[job.callback], best.get(job.callback)):
                self._drop(name)
                used -= job.size_bytes
                path = one_line(job.local_path)
                console.warn(f"the spool is full: {path} is not published")

    def _drop(self, name: str) -> None:
        with suppress(OSError):
            self.spool.drop(name)
        self.done += 1
        self._forget(name)

    def _forget(self, name: str) -> None:
        del self._queue[name]
        self._owners.pop(name, None)
        self._texts.pop(name, None)


def _number(entry: tuple[str, Job]) -> int:
    return int(entry[0].partition(".")[0])


def name_of(job: Job) -> str:
    """Name for the user what a job is about."""
    if job.action == "remove":
        return f"the removal of {job.local_path}"
    about = {"begin": "the run itself", "close": END_OF_RUN}
    return job.local_path if job.action == "save" else about.get(job.action, "run features")


class Publisher:
    """Publish in the background what a training saves.

    A thread, not a process: it shares what is imported already, and the heavy work, hashing and
    copying and waiting for a database, runs without the interpreter lock. While the training
    thread saves, the drainer rests (`saving`), so that a save costs what it costs alone.

    Args:
        spool: The spool of the run; its lock is taken with the first job.
        registry: Where the jobs go.
        inline: Publish each job at once, on the calling thread.
        limit_bytes: As in `Drainer`.
        is_held: As in `Drainer`.

    Runs on: global rank zero.
    """

    _of_process: dict[Path, Publisher] = {}  # noqa: RUF012  one publisher a spool

    def __init__(
        self,
        spool: Spool,
        registry: Registry,
        *,
        inline: bool = False,
        limit_bytes: float | None = None,
        is_held: bool = False,
    ) -> None:
        self._drainer = Drainer(spool, registry, limit_bytes=limit_bytes, is_held=is_held)
        self._inline = inline
        self._pid = os.getpid()
        self._thread: threading.Thread | None = None
        self._mutex = threading.RLock()  # held while a job is in hand
        self._wake = threading.Event()
        self._adding = threading.Lock()
        self._stopping = threading.Event()
        self._is_skipping = False
        self._is_draining = False
        self._is_reserved = False  # for somebody who publishes
        self._savers = 0
        self._saved_s = 0.0
        self._unsaved: list[tuple[Job, Path | None, str | None, Any]] = []  # the disk is full
        self._full_warned_s = -_WARN_EVERY_S
        self._given_up = False

    @classmethod
    def of(cls, folder: Path, make_registry: Callable[[], Registry], **options: Any) -> Publisher:
        """Return the publisher of a spool in this process."""
        folder = Path(os.path.abspath(folder))
        publisher = cls._of_process.get(folder)
        if publisher is None or publisher._pid != os.getpid():
            publisher = cls(Spool(folder), make_registry(), **options)
            cls._of_process[folder] = publisher
        elif publisher._is_reserved and options:
            publisher._set(**options)
        return publisher

    def _set(
        self, *, inline: bool = False, limit_bytes: float | None = None, is_held: bool = False
    ) -> None:
        """Take the options of whoever is the first to publish."""
        self._is_reserved, self._inline = False, inline
        self._drainer.limit_bytes, self._drainer.is_held = limit_bytes, is_held

    def hold(self) -> None:
        """Have the spool before there is anything to publish, so that no other process takes it."""
        self._is_reserved = True
        with suppress(OSError), self._mutex:
            self._own()

    def release(self) -> None:
        """Leave a spool that was only held."""
        if self._is_reserved and self._pid == os.getpid():
            self._is_reserved = False
            self.close()
            self._of_process.pop(self.spool.folder, None)  # the next has options of its own

    @property
    def spool(self) -> Spool:
        """The spool of the run."""
        return self._drainer.spool

    @property
    def has_news(self) -> bool:
        """Whether something was published of which its owner does not know yet."""
        return bool(self._drainer.published)

    @property
    def done(self) -> int:
        """How many jobs are not in the spool any more, since nothing is left to do about them."""
        return self._drainer.done

    def take_over(self) -> None:
        """Take over what is in the spool, whose lock this process has."""
        with self._mutex, self._adding:
            self._drainer.recover()

    def take(self, owner: Any) -> list[Published]:
        """Return what was published of an owner's jobs since the last call, in order."""
        published = self._drainer.published
        mine: list[Published] = []
        others: list[Published] = []
        while published:
            item = published.popleft()
            if item.owner is not None:
                (mine if item.owner is owner else others).append(item)
        published.extendleft(reversed(others))
        return mine

    def left(self) -> list[str]:
        """Name what is not done, parked jobs among it: the local paths of files, in most cases."""
        return [*map(name_of, self._waiting()), *self._drainer.set_aside()]

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Let the drainer rest while the training thread saves."""
        self._savers += 1
        try:
            yield
        finally:
            self._savers -= 1
            self._saved_s = time.monotonic()

    def add(
        self, job: Job, file: Path | None = None, content: str | None = None, owner: Any = None
    ) -> None:
        """Spool a job; it is published soon. May be called from any thread.

        It is in the spool on return, also while another process publishes that. A full disk is no
        error: the job is kept in memory and spooled as soon as that is possible.
        """
        self._given_up = False
        try:
            with self._adding:
                self._unsaved.append((job, file, content, owner))
                self._spool_unsaved()
        except OSError as error:
            if time.monotonic() - self._full_warned_s >= _WARN_EVERY_S:
                self._full_warned_s = time.monotonic()
                what = one_line(name_of(job))
                console.warn(f"{what} cannot be spooled yet: {first_line(error)}")
            if not self._inline:
                self._start()  # which tries again
            return
        if self._inline:
            self._drain_here()
            return
        self._start()
        self._wake.set()

    def defer(self, job: Job) -> None:
        """Let `sync` publish a file that is still being written, if this process is killed."""
        with suppress(OSError):
            self.spool.defer(job)

    def publish(
        self, job: Job, file: Path | None = None, content: str | None = None, owner: Any = None
    ) -> Any:
        """Publish a file on this thread, after all that came before; returns its artifact.

        Returns:
            The artifact; `None` if the registry is away, and the job waits in the spool.
        """
        with self._mutex:
            self.add(job, file, content, owner)
            self._drain_here()
            done = (p for p in self._drainer.published if p.owner is owner and p.job.uid == job.uid)
            return next((p.artifact for p in done if p.job.key == job.key), None)

    def drain(self, limit_s: float | None = None, patience_s: float = PATIENCE_S) -> int:
        """Wait until everything is published, showing how far it is.

        Ends early on Ctrl-C, when the registry has been away for too long, and by `skip_waiting`.
        A job in hand may be left as it is then: whoever goes on with the spool finishes it.

        Args:
            limit_s: Wait no longer than this.
            patience_s: Wait no longer than this for a registry that is away. A job in hand may
                take so long too, and a second more for each megabyte.

        Returns:
            The number of jobs that are left.
        """
        with suppress(OSError), self._adding:
            self._spool_unsaved()
        self._take_over()
        if self._drainer.is_held:
            self._step()
        if self._given_up or self._drainer.is_held or not self._waiting_anew():
            return len(self.left())
        self._is_skipping, self._is_draining = False, True
        self._drainer.hope()
        ends_s = time.monotonic() + (limit_s if limit_s is not None else float("inf"))
        if not self._inline:
            self._start()
        self._wake.set()
        try:
            with console.publishing() as show:
                waits = _Wait(self.spool)
                while jobs := self._waiting_anew():
                    files = [job.size_bytes for job in jobs if job.action == "save"]
                    show(len(files), sum(files))
                    if not self._inline:
                        self._start()
                        time.sleep(0.02)
                    elif self._step() != "done":
                        time.sleep(min(0.2, self._drainer.delay_s() or 0.02))
                    if self._is_skipping or time.monotonic() > ends_s:
                        break
                    if self._is_away(patience_s) or waits.for_longer_than(patience_s, len(jobs)):
                        break
                show(0, 0)
        except KeyboardInterrupt:
            self._is_skipping = True
        finally:
            self._is_draining = False
        self._given_up = bool(self._waiting())
        return len(self.left())

    def skip_waiting(self) -> None:
        """End a `drain` that is going on. May be called from a signal handler."""
        self._is_skipping = True

    def leave(self, job: Job, file: Path | None = None) -> None:
        """Spool a job for `sync`, without trying to publish it now.

        Raises:
            OSError: The disk is full.
        """
        with self._adding:
            self._unsaved.append((job, file, None, None))
            self._spool_unsaved(is_durable=True)
        self._given_up = True
        self.close()

    def close(self) -> None:
        """Stop the thread and leave the spool: removed if it is empty, else for `sync`."""
        self._stopping.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout=1 if self._given_up else 5)
            if self._thread.is_alive():
                return  # a job hangs in an upload; it ends with the process, and is done again
        self._thread = None
        atexit.unregister(self._at_exit)
        with suppress(OSError):
            if self.spool.lock.held:
                self._drainer.take_in()
                self._drainer.mend()
            else:
                self._drainer.make_durable()
        self.spool.close()
        if not self.left():
            self._of_process.pop(self.spool.folder, None)

    # -- the thread --------------------------------------------------------------------------

    def _take_over(self) -> None:
        """Take what another process of this job has left, as a rank that a strategy spawned."""
        if self.spool.lock.held:
            if self._mutex.acquire(blocking=False):  # else the thread is at work with it
                try:
                    self._drainer.mend()
                finally:
                    self._mutex.release()
        elif self.spool.folder.exists() and not self._given_up:
            with suppress(OSError), self._mutex:
                self._own()

    def _own(self) -> bool:
        """Hold the lock, with all that is in the spool; called with `_mutex` held.

        Returns:
            Whether this process has it. Else another one publishes, and what is added here too.
        """
        lock = self.spool.lock
        if lock.held:
            return True
        with self._adding:
            is_removed = lock.is_removed
            if not lock.acquire():
                return False
            if is_removed:
                self._drainer.mend()
            else:
                self._drainer.recover()
            return True

    def _spool_unsaved(self, is_durable: bool = False) -> None:
        """Spool what could not be spooled before; called with `_adding` held.

        Args:
            is_durable: Let it outlive a power cut at once: nobody will see to it later.

        Raises:
            OSError: Some jobs are kept for the next call.
        """
        failure: OSError | None = None
        for entry in list(self._unsaved):
            job, file, content, owner = entry
            try:
                name, job = self.spool.add(job, file, content)
                if is_durable:
                    self.spool.make_durable({name: job})
            except OSError as error:
                if file is not None and content is None and not file.exists():
                    self._unsaved.remove(entry)  # removed before it could be pinned
                else:
                    failure = error
                continue
            self._drainer.arrive(name, job, owner, content)
            self._unsaved.remove(entry)
        if failure is not None:
            raise failure

    def _waiting(self) -> list[Job]:
        return [*self._drainer.left(), *(job for job, *_ in list(self._unsaved))]

    def _waiting_anew(self) -> list[Job]:
        """Return what waits, with what other processes have added."""
        if not (waiting := self._waiting()) and self.spool.lock.held:
            with self._mutex, suppress(OSError):
                self._drainer.look()
            return self._waiting()
        return waiting

    def _start(self) -> None:
        if self._thread is not None and self._thread.is_alive() and not self._stopping.is_set():
            return
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="lamin-train", daemon=True)
        self._thread.start()
        atexit.register(self._at_exit)

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                if not self.spool.lock.held:  # soon, so that others know who publishes
                    with suppress(OSError), self._mutex:
                        self._own()
                self._rest()
                outcome = self._step()
                if outcome == "idle":
                    self._wait_for_a_job()
                elif outcome == "waiting":
                    self._stopping.wait(min(0.2, self._drainer.delay_s()))
                elif outcome == "elsewhere":
                    self._stopping.wait(_AGAIN_S)
        finally:
            with suppress(Exception):
                self._drainer.registry.disconnect()

    def _wait_for_a_job(self) -> None:
        if not self._wake.wait(_AGAIN_S if self._unsaved else _IDLE_S) and not self._unsaved:
            with suppress(Exception):
                self._drainer.registry.disconnect()
            self._wake.wait()
        self._wake.clear()

    def _rest(self) -> None:
        """Stay out of the way of a training that saves small files at short intervals.

        Light jobs consist of Python code, which would hold the interpreter lock just then. They
        wait for a pause, or for half a minute.
        """
        until_s = time.monotonic() + _LONGEST_REST_S
        while (now_s := time.monotonic()) < until_s:
            is_quiet = not self._savers and now_s - self._saved_s > _QUIET_S
            if is_quiet or self._is_draining or self._stopping.is_set():
                return
            if not self._drainer.waits_for_quiet():
                return
            time.sleep(0.005)

    def _step(self) -> Outcome | Literal["elsewhere"]:
        """Spool what could not be spooled before, and do one job."""
        if self._unsaved:
            with suppress(OSError), self._adding:
                self._spool_unsaved()
        with self._mutex:
            return self._step_if_own()

    def _step_if_own(self) -> Outcome | Literal["elsewhere"]:
        with suppress(OSError):
            if self._own():
                return self._drainer.step()
            self._drainer.make_durable()
        return "elsewhere"

    def _drain_here(self) -> None:
        with self._mutex:
            while self._step_if_own() == "done":
                pass

    def _is_away(self, patience_s: float) -> bool:
        drainer, now_s = self._drainer, time.monotonic()
        if not self.spool.lock.held:
            return False
        if drainer.failing_since_s is not None:
            return now_s - drainer.failing_since_s > patience_s
        current = drainer._current
        if current is None or drainer.busy_since_s is None:
            return False
        allowed_s = patience_s + current[1].size_bytes / _SLOWEST_BYTES_PER_S
        return now_s - drainer.busy_since_s > allowed_s

    def _at_exit(self) -> None:
        if self._pid != os.getpid():
            return
        if left := self.drain():
            jobs = console.counted(left, "job")
            console.warn(f"{jobs} not in LaminDB yet; publish with: lamin-train sync")
        self.close()


class _Wait:
    """Waiting for the process that publishes in the place of this one.

    Args:
        spool: What it publishes.
    """

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._since_s: float | None = None
        self._left = 0

    def for_longer_than(self, patience_s: float, left: int) -> bool:
        """Tell whether that process has done nothing for so long; say once who it is.

        Args:
            patience_s: Seconds.
            left: How many jobs are left by now.
        """
        if self._spool.lock.held:
            self._since_s = None
            return False
        now_s = time.monotonic()
        if self._since_s is None:
            holder = self._spool.lock.holder()
            if holder is not None:
                console.say(f"run {self._spool.folder.name} is being published by {holder}")
        if self._since_s is None or left != self._left:
            self._since_s, self._left = now_s, left
        return now_s - self._since_s > patience_s


def is_draining() -> bool:
    """Tell whether this process waits for what is not published yet."""
    return any(publisher._is_draining for publisher in list(Publisher._of_process.values()))


def skip_waiting() -> bool:
    """End every `drain` that this process waits in; returns whether there was one."""
    publishers = list(Publisher._of_process.values())
    draining = [publisher for publisher in publishers if publisher._is_draining]
    for publisher in draining:
        publisher.skip_waiting()
    return bool(draining)
