"""One spool: the only place that knows its file names."""

import contextlib
import errno
import os
import re
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from lamincli.errors import SpoolCorruptError, SpoolVersionError
from lamincli.spool import index
from lamincli.spool.job import Action, Job
from lamincli.spool.lock import ProcessLock

_JOB_NAME = re.compile(r"\d{8,}\.json")
_REASON = ".reason.txt"
_BESIDE = "beside"
_CANNOT_LINK = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOSYS, errno.ENOTSUP}
_CANNOT_LINK |= {errno.EOPNOTSUPP}


class Spool:
    """The queue of one run on disk.

    One process at a time adds and publishes: the one that holds the lock. Every change of state is
    one rename, so a process that is killed at any instruction leaves a spool that `recover` puts
    right: a pin without a job goes, and a claimed job is done once more.

    Args:
        folder: The folder of the spool. It is made when the first job is added.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(os.path.abspath(folder))
        self.ready = self.folder / "ready"
        self.claimed = self.folder / "claimed"
        self.parked = self.folder / "parked"
        self.pins = self.folder / "pins"
        self.deferred = self.folder / "deferred"
        self.tmp = self.folder / "tmp"
        self.lock = ProcessLock(self.folder / "lock")
        self._last: int | None = None
        self._adding = threading.Lock()

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
            if self._last is None:
                self._open()
            assert self._last is not None
            number = f"{self._last + 1:08d}"
            try:
                if file is not None:
                    pin = self._pin(number, file, content)
                    size_bytes, stamp = measure(pin)
                    place = str(pin.relative_to(self.folder)) if self._is_inside(pin) else str(pin)
                    job = replace(job, pin=place, size_bytes=size_bytes, stamp=stamp)
                self._write(self.ready / f"{number}.json", job, durable=False)
            except BaseException:
                self._remove_pin(number)
                raise
            self._last += 1
            return f"{number}.json", job

    def defer(self, job: Job) -> None:
        """Note a job for a file that is still being written, in case this process is killed.

        `recover` makes it ready, with the file as it then is. `undefer` forgets it.
        """
        with self._adding:
            if self._last is None:
                self._open()
            self.deferred.mkdir(exist_ok=True)
            self._write(self.deferred / f"{job.kind}.json", job, durable=False)

    def undefer(self, kind: str) -> None:
        """Forget a deferred job: its file is complete, and has a job of its own."""
        (self.deferred / f"{kind}.json").unlink(missing_ok=True)

    def _open(self) -> None:
        for folder in (self.ready, self.claimed, self.parked, self.pins, self.tmp):
            folder.mkdir(parents=True, exist_ok=True)
        index.remember(self.folder)
        _fsync(self.folder)
        _fsync(self.folder.parent)
        used = [*self.names(self.ready), *self.names(self.claimed), *self.names(self.parked)]
        # Pins too: one that lost its job must not be taken for that of a new one.
        used += [name for name in _listdir(self.pins) if name.isdecimal()]
        self._last = max((int(name.split(".")[0]) for name in used), default=0)

    def _pin(self, number: str, file: Path, content: str | None) -> Path:
        pin = self.pins / number / file.name
        pin.parent.mkdir(exist_ok=True)
        if content is not None:
            pin.write_text(content)
            return pin
        source = file.resolve()
        try:
            _link(source, pin)
            return pin
        except OSError as error:
            if error.errno not in _CANNOT_LINK:
                raise
        _remove(pin)
        # Another file system: beside the checkpoint a link is possible, where links are at all.
        beside = source.parent / index.FOLDER_NAME / f"{self.folder.name}-{number}" / file.name
        try:
            (pin.parent / _BESIDE).symlink_to(beside.parent)  # found again after a crash
            beside.parent.mkdir(parents=True, exist_ok=True)
            _link(source, beside)
            return beside
        except OSError as error:
            self._remove_pin(number)
            if error.errno not in _CANNOT_LINK:
                raise
        pin.parent.mkdir(exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, pin)
        else:
            shutil.copyfile(source, pin)
        return pin

    # -- the publisher's side ----------------------------------------------------------------

    def make_durable(self, jobs: dict[str, Job]) -> None:
        """Let ready jobs and the names of their pins outlive a power cut, once this returns.

        The data of the pins is the file that Lightning wrote, which the system writes to the disk
        within half a minute; one that was not there yet is told by its size, and parked.
        """
        folders = {self.ready, self.pins}
        for name, job in jobs.items():
            if job.pin:
                pin = self.pin_of(job)
                folders |= {pin.parent, pin.parent.parent}
            _fsync(self.ready / name)
        for folder in folders:
            _fsync(folder)

    def recover(self) -> None:
        """Put right what a killed process left. Only the holder of the lock may call this."""
        for name in _listdir(self.tmp):
            _remove(self.tmp / name)
        jobs = [*self.pending(), *self.names(self.parked)]
        with_a_job = {name.split(".")[0] for name in jobs}
        for number in _listdir(self.pins):
            if number not in with_a_job:
                self._remove_pin(number)
        for name in _listdir(self.ready):
            if not _JOB_NAME.fullmatch(name):
                self._park(self.ready / name, "it is no job file: its name is none of a job")
        for name in _listdir(self.deferred):
            job = self.look(self.deferred, name)
            if job is not None and (file := Path(job.local_path)).is_file():
                self.add(job, file)
            _remove(self.deferred / name)

    def names(self, state: Path | None = None) -> list[str]:
        """Return the names of the jobs in a state, oldest first; of the ready ones by default."""
        found = (name for name in _listdir(state or self.ready) if _JOB_NAME.fullmatch(name))
        return sorted(found, key=_number)

    def pending(self) -> list[str]:
        """Return the names of the jobs that are to be done, oldest first."""
        return sorted([*self.names(self.claimed), *self.names(self.ready)], key=_number)

    def read(self, name: str) -> Job | None:
        """Read a pending job; one that cannot be read is parked, and `None` is returned."""
        state = self.claimed if (self.claimed / name).exists() else self.ready
        try:
            return Job.from_json((state / name).read_text())
        except FileNotFoundError:
            return None
        except (OSError, SpoolCorruptError, SpoolVersionError, UnicodeDecodeError) as error:
            self._park(state / name, str(error))
            return None

    def look(self, state: Path, name: str) -> Job | None:
        """Read a job in any state without moving it; `None` if it cannot be read."""
        try:
            return Job.from_json((state / name).read_text())
        except (OSError, UnicodeDecodeError, SpoolCorruptError, SpoolVersionError):
            return None

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
        self._remove_pin(name.split(".")[0])

    def drop(self, name: str) -> None:
        """Forget a ready or parked job that is not wanted any more, and its pin."""
        (self.ready / name).unlink(missing_ok=True)
        (self.parked / name).unlink(missing_ok=True)
        (self.parked / (name + _REASON)).unlink(missing_ok=True)
        self._remove_pin(name.split(".")[0])

    def park(self, name: str, reason: str) -> None:
        """Put a claimed job aside, with the reason, so that it blocks no other."""
        self._park(self.claimed / name, reason)

    def unpark(self) -> int:
        """Make all parked jobs ready again; returns their number."""
        names = self.names(self.parked)
        for name in names:
            os.replace(self.parked / name, self.ready / name)
            (self.parked / (name + _REASON)).unlink(missing_ok=True)
        return len(names)

    def parked_jobs(self) -> Iterator[tuple[str, Job | None, str]]:
        """Yield name, job and reason of what is parked; the job is `None` if it is unreadable."""
        for name in _listdir(self.parked):
            if name.endswith(_REASON):
                continue
            job = self.look(self.parked, name)
            reason = self.parked / (name + _REASON)
            text = reason.read_text().strip() if reason.exists() else "no reason is noted"
            yield name, job, text

    def jobs(self) -> Iterator[tuple[str, Job]]:
        """Yield the jobs that wait here and can be read, parked ones among them, oldest first."""
        states = (self.claimed, self.ready, self.parked)
        found = [(name, state) for state in states for name in self.names(state)]
        for name, state in sorted(found, key=lambda one: _number(one[0])):
            if (job := self.look(state, name)) is not None:
                yield name, job

    def holds(self, action: Action) -> bool:
        """Tell whether a job of this kind waits here."""
        return any(job.action == action for _, job in self.jobs())

    def close(self) -> None:
        """Remove the folder if nothing is left in it, and give the lock back."""
        if not self.lock.held:
            return
        with self._adding:
            self._last = None
            states = (self.ready, self.claimed, self.parked, self.deferred)
            empty = not any(map(_listdir, states))
            if empty:
                # Last what `sync` knows a spool by.
                states = (self.claimed, self.parked, self.deferred, self.ready)
                for folder in (self.pins, self.tmp, *states):
                    _rmdir(folder)
                (self.folder / "lock").unlink(missing_ok=True)
                _rmdir(self.folder)
                _rmdir(self.folder.parent)
                index.forget(self.folder)
            self.lock.release()

    def discard(self) -> None:
        """Forget all jobs of a spool that nobody serves."""
        for number in _listdir(self.pins):
            self._remove_pin(number)
        _remove(self.folder)
        _rmdir(self.folder.parent)
        index.forget(self.folder)

    def pin_of(self, job: Job) -> Path:
        """Return the file or folder that a job publishes."""
        return self.folder / job.pin

    def put_back(self, job: Job) -> Path:
        """Return a checkpoint where it was saved, put back from its pin if it is lost or torn.

        The pin itself goes once it is published, which may be before a training has loaded it.
        """
        local, pin = Path(job.local_path), self.pin_of(job)
        is_folder_intact = local.is_dir() and measure(local) == (job.size_bytes, job.stamp)
        if local.is_file() or is_folder_intact or not (job.pin and pin.exists()):
            return local
        try:
            _remove(local)
            local.parent.mkdir(parents=True, exist_ok=True)
            _link(pin, local)
        except OSError:
            return pin
        return local

    def _remove_pin(self, number: str) -> None:
        place = self.pins / number
        if (place / _BESIDE).is_symlink():
            beside = Path(os.readlink(place / _BESIDE))
            _remove(beside)
            _rmdir(beside.parent)
        _remove(place)

    def _is_inside(self, pin: Path) -> bool:
        return pin.is_relative_to(self.folder)

    def _park(self, file: Path, reason: str) -> None:
        self.parked.mkdir(exist_ok=True)
        name = file.name
        while (self.parked / name).is_dir():
            name = f"other-{name}"
        (self.parked / (name + _REASON)).write_text(reason + "\n")
        os.replace(file, self.parked / name)

    def _write(self, place: Path, job: Job, durable: bool) -> None:
        temporary = self.tmp / place.name
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            with open(handle, "w", encoding="utf-8") as file:
                file.write(job.to_json())
                file.flush()
                if durable:
                    os.fsync(handle)
            os.replace(temporary, place)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        if durable:
            _fsync(place.parent)


def _number(name: str) -> int:
    return int(name.split(".")[0])


def left_behind() -> dict[Path, int]:
    """Return the spools of this user on this machine that no process serves, and their jobs."""
    left = {}
    for folder in index.known_spools():
        spool = Spool(folder)
        with contextlib.suppress(OSError):  # an old one, on a disk that is read-only or away
            jobs = len(spool.pending()) + len(spool.names(spool.parked))
            jobs += len(_listdir(spool.deferred))
            if jobs and spool.lock.acquire():
                spool.lock.release()
                left[folder] = jobs
    return left


def measure(path: Path) -> tuple[int, str]:
    """Return the size of a file, or of all files of a folder, and a stamp that tells changes."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    stats = [file.stat() for file in files]
    newest_ns = max((stat.st_mtime_ns for stat in stats), default=0)
    return sum(stat.st_size for stat in stats), f"{len(files)}-{newest_ns}"


def _link(source: Path, target: Path) -> None:
    """Link a file, or every file of a folder."""
    if not source.is_dir():
        os.link(source, target)
        return
    target.mkdir()
    for place, folders, files in os.walk(source):
        there = target / Path(place).relative_to(source)
        for name in folders:
            (there / name).mkdir(exist_ok=True)
        for name in files:
            os.link(os.path.join(place, name), there / name)


def _listdir(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _rmdir(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def fsync(path: Path) -> None:
    """Make a file, or the names in a folder, durable. Windows cannot, and does it by itself."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _fsync(path: Path) -> None:
    """Likewise, where it is a precaution."""
    with contextlib.suppress(OSError):
        fsync(path)
