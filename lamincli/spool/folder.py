"""One spool: the only place that knows its file names."""

import contextlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from lamincli.errors import (
    SpoolCorruptError,
    SpoolVersionError,
    UntrustedError,
)
from lamincli.spool import adding, foreign, index
from lamincli.spool.content import digest, is_certainly_same, measure
from lamincli.spool.disk import listdir, read_text, remove, rmdir, try_fsync
from lamincli.spool.job import Action, Job, content_of
from lamincli.spool.lock import ProcessLock
from lamincli.spool.pins import AT_ONCE_BYTES, Pins
from lamincli.spool.seal import FIELD, is_ours, sealed

_JOB_NAME = re.compile(r"\d{8,}\.json")
_REASON = ".reason.txt"
_PLAIN = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
NOT_OURS = "it was not written by your lamin-train"
_ATTEMPTS = 5

_T = TypeVar("_T")


@dataclass(frozen=True)
class Entry:
    """A job file as it lies in a spool.

    Args:
        state: The name of its folder.
        name: Its own name.
        job: The job; `None` if it cannot be read.
        is_ours: Whether this user's own lamin-train has written it.
    """

    state: str
    name: str
    job: Job | None
    is_ours: bool


class Spool:
    """The queue of one run on disk.

    Any process may add, at any time; one at a time publishes, the one that holds the lock. Every
    change of state is one rename, so a process that is killed at any instruction leaves a spool
    that `recover` puts right: a pin without a job goes, and a claimed job is done once more.
    A folder that somebody removes meanwhile is made anew by whoever adds next.

    Only jobs that this user's own lamin-train has written are acted on. Others are left as they
    are, unless the user trusts them; then they may do what `foreign.contained` leaves of them.

    Args:
        folder: The folder of the spool. It is made when the first job is added.
        is_trusted: Whether the user trusts what somebody else has written.
    """

    def __init__(self, folder: Path, is_trusted: bool = False) -> None:
        self.folder = Path(os.path.abspath(folder))
        self.is_trusted = is_trusted
        self.ready = self.folder / "ready"
        self.claimed = self.folder / "claimed"
        self.parked = self.folder / "parked"
        self._pins = Pins(self.folder, is_trusted)
        self.pins = self._pins.folder
        self.deferred = self.folder / "deferred"
        self.tmp = self.folder / "tmp"
        self.lock = ProcessLock(self.folder / "lock")
        self.times_made = 0
        """How often the folders were made, or found: again after somebody has removed them."""
        self._numbers = adding.Numbers(self.folder / "last")
        self._own: set[int] = set()  # numbers that were taken here
        self._deferred: dict[str, Job] = {}
        self._adding = threading.RLock()

    # -- the training's side -----------------------------------------------------------------

    def add(
        self, job: Job, file: Path | None = None, content: str | None = None
    ) -> tuple[str, Job]:
        """Pin a file and write its job; returns the name of the job, and the job with its pin.

        Args:
            job: What is to be done with the file.
            file: The file or folder to pin; `None` for a job without one.
            content: Text to pin in its place, under the name of the file.

        Raises:
            OSError: The disk is full, or the folder cannot be written. No job was made.

        Durability: survives the death of the process on return, and a power cut once
            `make_durable` has been called for it. It is not called here: on ext4 it would wait
            until the whole checkpoint is on the disk.
        """
        with self._adding:
            source = file if content is None else None
            return self._in_its_folders(lambda: self._add(job, file, content), source)

    def _add(self, job: Job, file: Path | None, content: str | None) -> tuple[str, Job]:
        self._own.add(taken := self._numbers.take())
        number = f"{taken:08d}"
        half = adding.note(self.tmp, number)
        try:
            # There before the pin, which would be nobody's; and open, since ext4 takes its time to
            # write what is opened anew.
            with open(half, "x", encoding="utf-8", opener=_for_this_user) as text:
                if file is not None:
                    job = self._pins.make(number, job, file, content)
                text.write(self._text_of(f"{number}.json", job))
            os.replace(half, self.ready / f"{number}.json")
        except BaseException:
            with contextlib.suppress(OSError):
                half.unlink(missing_ok=True)
                self._pins.remove(number)
                self._numbers.give_back(taken)
            self._own.discard(taken)
            raise
        return f"{number}.json", job

    def defer(self, job: Job) -> None:
        """Note a job for a file that is still being written, in case this process is killed.

        `recover` makes it ready then, with the file as it is. `undefer` forgets it.
        """
        self._deferred[job.kind] = replace(job, project=str(self.project))
        with self._adding:
            self._in_its_folders(self._write_deferred)

    def _write_deferred(self) -> None:
        for kind, job in self._deferred.items():
            self.deferred.mkdir(exist_ok=True)
            self._note_of_deferred(kind).touch()
            self._write(self.deferred / f"{kind}.json", job, durable=False)

    def undefer(self, kind: str) -> None:
        """Forget a deferred job: its file is complete, and has a job of its own."""
        self._deferred.pop(kind, None)
        (self.deferred / f"{kind}.json").unlink(missing_ok=True)
        self._note_of_deferred(kind).unlink(missing_ok=True)

    def _note_of_deferred(self, kind: str) -> Path:
        return adding.note(self.tmp, f"deferred {kind}")

    @property
    def project(self) -> Path:
        """The folder of the project in which the spool lies."""
        return self.folder.parents[1]

    def _in_its_folders(self, step: Callable[[], _T], file: Path | None = None) -> _T:
        """Take a step, with the folders made before it, or anew: somebody may remove them."""
        for attempt in range(_ATTEMPTS):
            try:
                if attempt or not self.times_made:
                    self._open()
                return step()
            except (FileNotFoundError, NotADirectoryError):
                if attempt == _ATTEMPTS - 1 or (file is not None and not file.exists()):
                    raise
        raise AssertionError("it has returned, or raised")

    def _open(self) -> None:
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self.folder.mkdir(mode=0o700, exist_ok=True)  # nobody else's, in a shared project
        self.check()
        for folder in (self.ready, self.claimed, self.parked, self.pins, self.tmp):
            folder.mkdir(exist_ok=True)
        index.remember(self.folder)
        try_fsync(self.folder)
        try_fsync(self.folder.parent)
        used = [*self.names(self.ready), *self.names(self.claimed), *self.names(self.parked)]
        # Pins too: one that lost its job must not be taken for that of a new one.
        used += [name for name in self._pins.numbers() if name.isdecimal()]
        last = max((int(name.split(".")[0]) for name in used), default=0)
        self._numbers.start(last, beside=self.tmp)
        self.times_made += 1

    # -- the publisher's side ----------------------------------------------------------------

    def make_durable(self, jobs: dict[str, Job]) -> None:
        """Let ready jobs and the names of their pins outlive a power cut, once this returns.

        The data of a large pin is the file that Lightning wrote, which the system writes to the
        disk within half a minute; one that was not there yet is told by its content, and parked.
        """
        folders = {self.ready, self.pins}
        for name, job in jobs.items():
            if job.pin:
                pin = self.folder / job.pin
                folders |= {pin.parent, pin.parent.parent}
                if job.size_bytes <= AT_ONCE_BYTES:
                    try_fsync(pin)
            try_fsync(self.ready / name)
        for name in listdir(self.deferred):
            try_fsync(self.deferred / name)
            folders.add(self.deferred)
        for folder in folders:
            try_fsync(folder)

    def recover(self) -> None:
        """Put right what a killed process left. Only the holder of the lock may call this."""
        self.check()
        self._tidy()
        for name in listdir(self.ready):
            if not _JOB_NAME.fullmatch(name):
                self._park(self.ready / name, "it is no job file: its name is none of a job")
        busy = adding.at_work(self.tmp)
        for name in listdir(self.deferred):
            entry = self.entry(self.deferred, name)
            if not self._may_act(entry) or f"deferred {_stem(name)}" in busy:
                continue
            if entry.job is not None and (file := self._deferred_file(entry.job)) is not None:
                self.add(entry.job, file)
            remove(self.deferred / name)

    def _tidy(self) -> None:
        """Remove what killed processes have left half-made; other processes may be adding.

        A pin without a job is nobody's only if it was seen before its maker was looked for, and its
        job after that: what says that it is being made becomes the job.
        """
        numbers = self._pins.numbers()
        busy = adding.at_work(self.tmp)
        for name in listdir(self.tmp):
            if name.partition(".")[0] not in busy:  # a job without a pin, if at all: it is repeated
                remove(self.tmp / name)
        jobs = [*self.pending(), *self.names(self.parked)]
        kept = {name.split(".")[0] for name in jobs} | busy
        for number in numbers:
            if number not in kept:
                self._pins.remove(number)

    def mend(self, name: str, job: Job, content: str | None = None) -> Job | None:
        """Put back what somebody has removed of a pending job, its pin from where it was saved.

        Args:
            name: The name of the job.
            job: The job.
            content: The text that was pinned in the place of a file.

        Returns:
            The job, with its pin; `None` if the file that it was about is no more.

        Raises:
            OSError: The disk is full, or the folder cannot be written.
        """
        with self._adding:
            return self._in_its_folders(lambda: self._mend(name, job, content))

    def _mend(self, name: str, job: Job, content: str | None) -> Job | None:
        if job.pin and not self._pins.of(job).exists():
            file = Path(job.local_path)
            saved = (job.size_bytes, job.stamp, job.digest)
            if self.is_trusted or (content is None and not is_certainly_same(file, *saved)):
                return None
            self._pins.remove(_stem(name))
            job = self._pins.make(_stem(name), job, file, content)
        states = (self.claimed, self.ready, self.parked)
        if not any((state / name).exists() for state in states):
            self._write(self.ready / name, job, durable=True)
        return job

    def set_aside(self, name: str, job: Job, reason: str) -> None:
        """Park a job whose own file, too, may have been removed."""
        if not any((state / name).exists() for state in (self.claimed, self.ready)):
            self._write(self.ready / name, job, durable=True)
        state = self.claimed if (self.claimed / name).exists() else self.ready
        self._park(state / name, reason)

    def reopen(self) -> None:
        """Make the folders that somebody has removed."""
        with self._adding:
            self._open()
            self._write_deferred()

    def _deferred_file(self, job: Job) -> Path | None:
        """Return the file of a deferred job: within the project, and reached by no link from it."""
        with contextlib.suppress(OSError, ValueError):
            file = Path(job.local_path)
            if job.project and not file.exists():  # the project has moved
                file = self.project / file.relative_to(job.project)
            is_within = file.resolve(strict=True).is_relative_to(self.project.resolve())
            is_plain = file.is_file() and not file.is_symlink()
            if is_plain and (is_within or not self.is_trusted):
                return file
        return None

    def names(self, state: Path | None = None) -> list[str]:
        """Return the names of the jobs in a state, oldest first; of the ready ones by default."""
        found = (name for name in listdir(state or self.ready) if _JOB_NAME.fullmatch(name))
        return sorted(found, key=_number)

    def added_by_others(self) -> list[str]:
        """Return the names of the ready jobs that were not added here, oldest first."""
        return [name for name in self.names() if _number(name) not in self._own]

    def pending(self) -> list[str]:
        """Return the names of the jobs that are to be done, oldest first."""
        return sorted([*self.names(self.claimed), *self.names(self.ready)], key=_number)

    def read(self, name: str) -> Job | None:
        """Read a pending job; one that cannot be read is parked, and `None` is returned.

        `None` also for one that is somebody else's, which stays where it is.
        """
        state = self.claimed if (self.claimed / name).exists() else self.ready
        try:
            job, is_ours = self._parse(state, name)
        except FileNotFoundError:
            return None
        except (OSError, SpoolCorruptError, SpoolVersionError, UnicodeDecodeError) as error:
            self._park(state / name, str(error))
            return None
        if is_ours:
            return job
        try:
            return foreign.contained(job, name) if self.is_trusted else None
        except UntrustedError as error:
            self._park(state / name, str(error))
            return None

    def look(self, state: Path, name: str) -> Job | None:
        """Read a job in any state without moving it; `None` if it cannot be read, or acted on."""
        entry = self.entry(state, name)
        return entry.job if self._may_act(entry) else None

    def entry(self, state: Path, name: str) -> Entry:
        """Look at a job file, whoever has written it."""
        try:
            return Entry(state.name, name, *self._parse(state, name))
        except (OSError, UnicodeDecodeError, SpoolCorruptError, SpoolVersionError):
            return Entry(state.name, name, None, is_ours=False)

    def entries(self) -> list[Entry]:
        """Look at all job files, whoever has written them, in the order in which they were made."""
        states = (self.claimed, self.ready, self.parked)
        found = [self.entry(state, name) for state in states for name in self.names(state)]
        found.sort(key=lambda entry: _number(entry.name))
        return found + [self.entry(self.deferred, name) for name in listdir(self.deferred)]

    def foreign(self) -> list[Entry]:
        """Return the jobs of somebody else, which are not acted on."""
        return [e for e in self.entries() if e.job is not None and not self._may_act(e)]

    def _may_act(self, entry: Entry) -> bool:
        return entry.is_ours or self.is_trusted

    def _parse(self, state: Path, name: str) -> tuple[Job, bool]:
        content = content_of(read_text(state / name))
        is_sealed = is_ours(content, self._about(name))
        content.pop(FIELD, None)
        return Job.from_dict(content), is_sealed

    def _about(self, name: str) -> str:
        return f"{self.folder.name}/{name}"

    def check(self) -> None:
        """Make sure that every folder is one, for through a link others' files could be reached.

        Raises:
            UntrustedError: One is something else.
        """
        folders = (self.ready, self.claimed, self.parked, self.pins, self.deferred, self.tmp)
        for folder in (self.folder, self.folder / "last", *folders):
            if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
                raise UntrustedError(f"{folder} is no folder, but a link or a file; remove it")

    def claim(self, name: str) -> None:
        """Take a pending job in hand.

        It stays claimed until it is finished or parked, also over failures and crashes: a claimed
        job may have stored its file already.

        Raises:
            FileNotFoundError: Somebody has removed it.
        """
        if not (self.claimed / name).exists():
            os.replace(self.ready / name, self.claimed / name)

    def note(self, name: str, job: Job) -> None:
        """Write a claimed job anew, with what has been decided about it."""
        self._write(self.claimed / name, job, durable=True)

    def finish(self, name: str) -> None:
        """Forget a claimed job that is done, and its pin."""
        (self.claimed / name).unlink(missing_ok=True)
        self._pins.remove(_stem(name))
        self._own.discard(_number(name))

    def drop(self, name: str) -> None:
        """Forget a ready or parked job that is not wanted any more, and its pin."""
        (self.ready / name).unlink(missing_ok=True)
        (self.parked / name).unlink(missing_ok=True)
        (self.parked / (name + _REASON)).unlink(missing_ok=True)
        self._pins.remove(_stem(name))
        self._own.discard(_number(name))

    def park(self, name: str, reason: str) -> None:
        """Put a claimed job aside, with the reason, so that it blocks no other."""
        self._park(self.claimed / name, reason)

    def unpark(self) -> int:
        """Make all parked jobs ready again; returns their number."""
        self.check()
        names = self.names(self.parked)
        for name in names:
            os.replace(self.parked / name, self.ready / name)
            (self.parked / (name + _REASON)).unlink(missing_ok=True)
        return len(names)

    def files_of(self, name: str) -> list[Path]:
        """Return the pinned files of a job whose own file may be torn."""
        return self._pins.files(_stem(name))

    def torn(self) -> list[str]:
        """Return the names of the parked jobs that are torn, and not only of another version."""
        return [name for name in self.names(self.parked) if self._is_torn(self.parked / name)]

    def _is_torn(self, file: Path) -> bool:
        try:
            content_of(read_text(file))
        except (SpoolCorruptError, UnicodeDecodeError):
            return True
        except OSError:
            pass
        return False

    def replace_torn(self, name: str, job: Job) -> None:
        """Put a job in the place of a parked one that is torn."""
        self._write(self.ready / name, job, durable=True)
        for file in (name, name + _REASON):
            (self.parked / file).unlink(missing_ok=True)

    def parked_jobs(self) -> Iterator[tuple[str, Job | None, str]]:
        """Yield name, job and reason of what is parked; the job is `None` if it is unreadable."""
        for name in listdir(self.parked):
            if name.endswith(_REASON):
                continue
            job = self.look(self.parked, name)
            reason = self.parked / (name + _REASON)
            text = (
                reason.read_text(encoding="utf-8").strip()
                if reason.exists()
                else "no reason is noted"
            )
            yield name, job, text

    def jobs(self) -> Iterator[tuple[str, Job]]:
        """Yield the jobs that wait here and may be done, parked ones among them, oldest first."""
        for entry in self.entries():
            if entry.job is not None and self._may_act(entry) and entry.state != "deferred":
                yield entry.name, entry.job

    def holds(self, action: Action) -> bool:
        """Tell whether a job of this kind waits here."""
        return any(job.action == action for _, job in self.jobs())

    def close(self) -> None:
        """Remove the folder if nothing is left in it, and give the lock back."""
        if not self.lock.held:
            return
        with self._adding:
            states = (self.ready, self.claimed, self.parked, self.deferred)
            if not any(map(listdir, states)):
                self._remove_folders()
            self._numbers.last = 0  # somebody else may remove it now, and begin anew
            self.lock.release()

    def _remove_folders(self) -> None:
        """Remove the empty folders, as far as nobody is adding: he makes anew what he misses."""
        self._tidy()
        if not (rmdir(self.pins) and rmdir(self.tmp)):
            return
        # Last what `sync` knows a spool by.
        for folder in (self.claimed, self.parked, self.deferred, self.ready):
            rmdir(folder)
        self._numbers.remove()
        self.lock.remove()
        if not rmdir(self.folder):
            return
        rmdir(self.folder.parent)
        index.forget(self.folder)
        if self.folder.exists():  # again, by now
            index.remember(self.folder)

    def discard(self) -> None:
        """Forget all jobs of a spool that nobody serves."""
        for number in self._pins.numbers():
            self._pins.remove(number)
        remove(self.folder)
        rmdir(self.folder.parent)
        index.forget(self.folder)

    def pin_of(self, job: Job) -> Path:
        """Return the file or folder that a job publishes; raises as `Pins.of` does."""
        return self._pins.of(job)

    def put_back(self, job: Job) -> Path:
        """Return a checkpoint where it was saved; see `Pins.put_back`."""
        return self._pins.put_back(job)

    def identify(self, name: str, job: Job) -> Job:
        """Note the hash of a pending job's content, by which any copy of the file is known.

        Returns:
            The job with it; the same job if the file is not any more what was saved.
        """
        pin = self._pins.of(job)
        found = digest(pin)
        if measure(pin)[1] != job.stamp:
            return job
        job = replace(job, digest=found)
        state = self.claimed if (self.claimed / name).exists() else self.ready
        self._write(state / name, job, durable=True)
        return job

    def _park(self, file: Path, reason: str) -> None:
        self.parked.mkdir(exist_ok=True)
        name = file.name
        while (self.parked / name).is_dir():
            name = f"other-{name}"
        remove(self.parked / (name + _REASON))  # which may be a link of somebody else
        (self.parked / (name + _REASON)).write_text(reason + "\n", encoding="utf-8")
        os.replace(file, self.parked / name)

    def _write(self, place: Path, job: Job, durable: bool) -> None:
        temporary = adding.note(self.tmp, _stem(place.name))
        try:
            with open(temporary, "w", encoding="utf-8", opener=_for_this_user) as file:
                file.write(self._text_of(place.name, job))
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            os.replace(temporary, place)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        if durable:
            try_fsync(place.parent)

    def _text_of(self, name: str, job: Job) -> str:
        content = job.to_dict()
        if not self.is_trusted:  # what somebody else has written does not become ours
            content = sealed(content, self._about(name))
        return json.dumps(content, indent=1, default=str)


def _for_this_user(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o600)


def _number(name: str) -> int:
    return int(_stem(name))


def _stem(name: str) -> str:
    return name.split(".")[0]


def left_behind(others: Iterable[Path] = ()) -> dict[Path, int]:
    """Return the spools that no process serves, and their jobs.

    Args:
        others: Spools beside those that this user is known to have on this machine.
    """
    left = {}
    for folder in dict.fromkeys([*index.known_spools(), *map(Path, map(os.path.abspath, others))]):
        spool = Spool(folder)
        with contextlib.suppress(OSError):  # an old one, on a disk that is read-only or away
            jobs = len(spool.pending()) + len(spool.names(spool.parked))
            jobs += len(listdir(spool.deferred))
            if jobs and spool.lock.holder() is None:
                left[folder] = jobs
    return left
