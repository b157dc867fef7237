"""How several processes add jobs to one spool at once, without waiting for each other.

Each takes a number that no other gets, and leaves a note for as long as it is at work on it, so
that whoever tidies up meanwhile leaves its half-made job alone.
"""

import json
import os
import re
import secrets
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

from lamincli.process import ProcessIdentity

_YOUNG_S = 3600.0
"""How long a note counts whose process cannot be asked after: copying a file may take long."""
_SUFFIX = ".adding"
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
        self._folder = folder
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
                os.rename(self._folder / _text(last), self._folder / _text(at_least))
        self.last = last

    def take(self) -> int:
        """Take the next number.

        Raises:
            FileNotFoundError: Somebody has removed the folder.
        """
        while True:
            try:
                os.rename(self._folder / _text(self.last), self._folder / _text(self.last + 1))
            except FileNotFoundError:
                self.last = self._look()
                continue
            self.last += 1
            return self.last

    def give_back(self, number: int) -> None:
        """Give back the number that was taken last, if it is the last still."""
        with suppress(OSError):
            os.rename(self._folder / _text(number), self._folder / _text(number - 1))
            self.last = number - 1

    def remove(self) -> None:
        """Remove the folder; whoever adds meanwhile makes it anew."""
        with suppress(OSError):
            for name in os.listdir(self._folder):
                (self._folder / name).unlink(missing_ok=True)
            self._folder.rmdir()

    def _look(self) -> int:
        names = [name for name in os.listdir(self._folder) if _NAME.fullmatch(name)]
        if not names:
            raise FileNotFoundError(f"{self._folder} is empty")
        return max(map(int, names))


def _text(number: int) -> str:
    return f"{number:08d}"


def begin(tmp: Path, what: str) -> None:
    """Note that this process is at work on something, until it calls `end`.

    The note is a link to nowhere, whose text is there at once or not at all.
    """
    note = tmp / f"{what}{_SUFFIX}"
    try:
        os.symlink(_me(os.getpid()), note)
    except FileExistsError:
        end(tmp, what)
        begin(tmp, what)
    except FileNotFoundError:
        raise
    except (OSError, NotImplementedError):  # no links here
        note.write_text(_me(os.getpid()))


def end(tmp: Path, what: str) -> None:
    """Take the note back."""
    (tmp / f"{what}{_SUFFIX}").unlink(missing_ok=True)


def at_work(tmp: Path) -> set[str]:
    """Return what processes are at work on; the notes of those that are gone are removed."""
    busy = set()
    with suppress(FileNotFoundError):
        for name in os.listdir(tmp):
            if not name.endswith(_SUFFIX):
                continue
            if _is_at_work(tmp / name):
                busy.add(name.removesuffix(_SUFFIX))
            else:
                with suppress(OSError):
                    (tmp / name).unlink(missing_ok=True)
    return busy


def _is_at_work(note: Path) -> bool:
    process = None
    with suppress(OSError, ValueError):
        text = os.readlink(note) if note.is_symlink() else note.read_text()
        process = ProcessIdentity.from_dict(json.loads(text))
    if process is not None:
        if process == ProcessIdentity.current() or process.is_alive():
            return True
        if process.is_gone():
            return False
    with suppress(OSError):
        return time.time() - note.lstat().st_mtime < _YOUNG_S
    return False


@cache
def _me(pid: int) -> str:
    return json.dumps(ProcessIdentity.current().to_dict())
