"""The files that the jobs of a spool publish: pinned, so that nothing removes or replaces them."""

import errno
import os
import shutil
import stat
from dataclasses import replace
from itertools import chain, filterfalse
from pathlib import Path

from lamincli.errors import UntrustedError
from lamincli.spool import index
from lamincli.spool.content import digest, measure, why_changed
from lamincli.spool.disk import link, listdir, remove, rmdir
from lamincli.spool.job import Job

AT_ONCE_BYTES = 1 << 16
"""Up to which size a file is hashed while it is pinned: that takes a fraction of a millisecond."""
_BESIDE = "beside"
_CANNOT_LINK = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOSYS, errno.ENOTSUP}
_CANNOT_LINK |= {errno.EOPNOTSUPP}


class Pins:
    """The pinned files of one spool, a folder for each job, named by its number.

    A pin is a hard link to what was saved; a copy where the file system has none. On another file
    system it lies beside what was saved, and its folder holds a link to that place, by which it is
    found again after a crash.

    Args:
        spool: The folder of the spool.
        is_trusted: Whether its jobs are somebody else's, whose files may lie nowhere but here.
    """

    def __init__(self, spool: Path, is_trusted: bool) -> None:
        self._spool = spool
        self._is_trusted = is_trusted
        self.folder = spool / "pins"

    def numbers(self) -> list[str]:
        """Return the numbers of the jobs that have a pin."""
        return listdir(self.folder)

    def files(self, number: str) -> list[Path]:
        """Return what lies there for a job that cannot be read."""
        place = self.folder / number
        return [place / name for name in listdir(place) if name != _BESIDE]

    def make(self, number: str, job: Job, file: Path, content: str | None) -> Job:
        """Pin the file of a job; returns the job with its pin, and what that is known by.

        Args:
            number: The number of the job.
            job: The job.
            file: The file or folder.
            content: Text to pin in its place, under its name.

        Raises:
            OSError: The disk is full, or the folder cannot be written.
        """
        pin = self._pin(number, file, content)
        size_bytes, stamp = measure(pin)
        place = str(pin.relative_to(self._spool)) if pin.is_relative_to(self._spool) else str(pin)
        job = replace(job, pin=place, size_bytes=size_bytes, stamp=stamp)
        return replace(job, digest=digest(pin)) if size_bytes <= AT_ONCE_BYTES else job

    def of(self, job: Job) -> Path:
        """Return the file or folder that a job publishes.

        Raises:
            UntrustedError: It is none that this spool has made.
        """
        pin = self._spool / job.pin
        self._check(pin)
        return pin

    def put_back(self, job: Job) -> Path:
        """Return a checkpoint where it was saved, put back from its pin if it is lost or torn.

        The pin itself goes once it is published, which may be before a training has loaded it.
        """
        local = Path(job.local_path)
        if not job.pin:  # registered where it lies
            return local
        pin = self.of(job)
        is_folder_intact = local.is_dir() and not why_changed(
            local, job.size_bytes, job.stamp, job.digest
        )
        if local.is_file() or is_folder_intact or not pin.exists():
            return local
        try:
            remove(local)
            local.parent.mkdir(parents=True, exist_ok=True)
            link(pin, local)
        except OSError:
            return pin
        return local

    def remove(self, number: str) -> None:
        """Remove the pin of a job, wherever this spool has put it, and nothing else."""
        place = self.folder / number
        if (place / _BESIDE).is_symlink():
            beside = Path(os.readlink(place / _BESIDE))
            if beside.parts[-2:] == (index.FOLDER_NAME, f"{self._spool.name}-{number}"):
                remove(beside)
                rmdir(beside.parent)
        remove(place)

    def _pin(self, number: str, file: Path, content: str | None) -> Path:
        pin = self.folder / number / file.name
        pin.parent.mkdir(exist_ok=True)
        if content is not None:
            pin.write_text(content, encoding="utf-8")
            return pin
        source = file.resolve()
        try:
            link(source, pin)
            return pin
        except OSError as error:
            if error.errno not in _CANNOT_LINK:
                raise
        remove(pin)
        # Another file system: beside the checkpoint a link is possible, where links are at all.
        beside = source.parent / index.FOLDER_NAME / f"{self._spool.name}-{number}" / file.name
        try:
            (pin.parent / _BESIDE).symlink_to(beside.parent)  # found again after a crash
            beside.parent.parent.mkdir(exist_ok=True)
            beside.parent.mkdir(mode=0o700, exist_ok=True)
            link(source, beside)
            return beside
        except OSError as error:
            self.remove(number)
            if error.errno not in _CANNOT_LINK:
                raise
        pin.parent.mkdir(exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, pin)
        else:
            shutil.copyfile(source, pin)
        return pin

    def _check(self, pin: Path) -> None:
        """Make sure that a pin is a plain file or folder where this spool puts its pins."""
        folder = pin.parent
        is_here = folder.parent == self.folder
        run, _, number = folder.name.rpartition("-")
        is_beside = (folder.parent.name, run) == (index.FOLDER_NAME, self._spool.name)
        if not (is_here or (is_beside and number.isdecimal() and not self._is_trusted)):
            raise UntrustedError(f"{pin} is none of the files of this spool")
        within = [folder, *((self.folder, self._spool) if is_here else ())]
        below = (os.path.join(at, name) for at, *both in os.walk(pin) for name in chain(*both))
        if other := next(filterfalse(_is_plain, (pin, *within, *below)), None):
            raise UntrustedError(
                f"{other} is a link, a pipe or a device, and only plain files are published"
            )


def _is_plain(path: str | Path) -> bool:
    """Tell whether a path is a file or a folder itself; what is not there is neither."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return True  # which is told by whoever opens it
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode)
