"""How several processes add jobs to one spool at once, without waiting for each other.

Each takes a number that no other gets. The file of a job that is being made has the name of the
process that makes it, so that whoever tidies up meanwhile leaves the half-made job alone.
"""

import hashlib
import os
import re
import secrets
import time
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path

from lamincli.process import ProcessIdentity

_YOUNG_S = 3600.0
"""How long one counts that cannot be asked after, as on another host: copies may take long."""
_WHO = re.compile(r"(\d{1,9})-(\d{1,18})-([0-9a-f]{8})-([0-9a-f]{8})-([0-9a-f]{8})", re.ASCII)
_NAME = re.compile(r"[0-9]{8}|[1-9][0-9]{8,}", re.ASCII)


class Numbers:
    """Number the jobs of a spool, in the order in which they are made, over all processes.

    The last number is the name of the only file in a folder. To take the next is to rename it,
    which one process can do and no second; one that comes too late looks again. No number is given
    twice while the spool lasts.

    Args:
        folder: The folder.

    Source: compare-and-swap, by rename(2).
    """

    def __init__(self, folder: Path) -> None:
        self._folder = os.fspath(folder)
        self.last = 0
        """The last number of this process, or of another that this one has heard of."""

    def start(self, at_least: int, beside: Path) -> None:
        """Make the folder where there is none, and go on after a number.

        Args:
            at_least: A number that was given already.
            beside: A folder for what is not complete yet.
        """
        at_least = max(at_least, self.last)
        made = beside / f"numbers.{secrets.token_hex(4)}"
        made.mkdir()
        (made / _text(at_least)).touch()
        try:
            os.rename(made, self._folder)  # whole, or not: another may be making it
        except OSError:
            with suppress(OSError):
                (made / _text(at_least)).unlink()
                made.rmdir()
        while (last := self._look()) < at_least:
            with suppress(FileNotFoundError):
                os.rename(self._place(last), self._place(at_least))
        self.last = last

    def take(self) -> int:
        """Take the next number.

        Raises:
            FileNotFoundError: Somebody has removed the folder.
        """
        while True:
            try:
                os.rename(self._place(self.last), self._place(self.last + 1))
            except FileNotFoundError:
                self.last = self._look()
                continue
            self.last += 1
            return self.last

    def give_back(self, number: int) -> None:
        """Give back the number that was taken last, if it is the last still."""
        with suppress(OSError):
            os.rename(self._place(number), self._place(number - 1))
            self.last = number - 1

    def remove(self) -> None:
        """Remove the folder; whoever adds meanwhile makes it anew."""
        with suppress(OSError):
            for name in os.listdir(self._folder):
                os.unlink(os.path.join(self._folder, name))
            os.rmdir(self._folder)

    def _place(self, number: int) -> str:
        return f"{self._folder}{os.sep}{_text(number)}"

    def _look(self) -> int:
        names = [name for name in os.listdir(self._folder) if _NAME.fullmatch(name)]
        if not names:
            raise FileNotFoundError(f"{self._folder} is empty")
        return max(map(int, names))


def _text(number: int) -> str:
    return f"{number:08d}"


def note(tmp: Path, what: str) -> Path:
    """Return the path of a file that says, while it is there, that this process is at work.

    Args:
        tmp: The folder of such files.
        what: What it is at work on: the number of a job, or a kind of file.
    """
    return tmp / f"{what}.{_me(os.getpid())}.part"


def at_work(tmp: Path) -> set[str]:
    """Return what living processes are at work on, or such as cannot be asked after."""
    with suppress(FileNotFoundError):
        notes = (name.split(".") for name in os.listdir(tmp))
        named = [parts for parts in notes if len(parts) == 3]
        return {what for what, who, end in named if _is_at_work(tmp / f"{what}.{who}.{end}", who)}
    return set()


def _is_at_work(note: Path, who: str) -> bool:
    me = ProcessIdentity.current()
    if who == _me(os.getpid()):
        return True
    found, mine = _WHO.fullmatch(who), _places(me)
    if found is not None:
        machine, boot, namespace = found.groups()[2:]
        is_here = machine == mine[0]
        if is_here and boot != mine[1] and me.machine_id and me.boot_id:
            return False  # of before the machine was booted
        if is_here and (boot, namespace) == mine[1:]:
            pid, ticks = int(found[1]), int(found[2])
            return not replace(me, pid=pid, started_s=ticks / 100).is_gone()
    with suppress(OSError):
        return time.time() - note.lstat().st_mtime < _YOUNG_S
    return False


@cache
def _me(pid: int) -> str:
    me = ProcessIdentity.current()
    return "-".join([str(pid), str(round(me.started_s * 100)), *_places(me)])


def _places(process: ProcessIdentity) -> tuple[str, ...]:
    """Return what tells the machine, its boot, and the container of a process from others."""
    texts = (process.host + process.machine_id, process.boot_id, process.pid_namespace)
    return tuple(hashlib.sha256(text.encode()).hexdigest()[:8] for text in texts)
