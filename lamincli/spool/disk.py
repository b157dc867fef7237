"""What the spool asks of a file system, in small steps that tolerate what others do meanwhile."""

import contextlib
import os
import shutil
import stat
from pathlib import Path

from lamincli.errors import SpoolCorruptError

_LONGEST_BYTES = 1 << 26


def link(source: Path, target: Path) -> None:
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


def listdir(folder: Path) -> list[str]:
    """Return the names in a folder; none where there is no folder, or a link."""
    try:
        return [] if folder.is_symlink() else os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


def read_text(file: Path) -> str:
    """Read a small file that is none of a link, a pipe or a device."""
    handle = os.open(
        file, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    )
    with open(handle, encoding="utf-8") as content:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise SpoolCorruptError(f"{file.name} is no file")
        return content.read(_LONGEST_BYTES)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def rmdir(folder: Path) -> bool:
    """Remove a folder if it is empty; returns whether it is gone."""
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def fsync(path: Path) -> None:
    """Make a file, or the names in a folder, durable. Windows cannot, and does it by itself."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # it may be a pipe
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def try_fsync(path: Path) -> None:
    """Make it durable, where that is a precaution."""
    with contextlib.suppress(OSError):
        fsync(path)
