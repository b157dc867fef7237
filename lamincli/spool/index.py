"""Where the spools of this user on this machine lie, so that `sync` finds them all.

One symbolic link a spool, named after it, in ``~/.local/state/lamin-train/spools``.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from lamincli.folders import SPOOLS_NAME, make_private, state_folder

FOLDER_NAME = SPOOLS_NAME
_TRIES = 10


def index_folder() -> Path:
    """Return the folder of the links."""
    return state_folder() / "spools"


def remember(spool: Path) -> None:
    """Let `known_spools` find a spool. A home that cannot be written is no obstacle."""
    with contextlib.suppress(OSError):
        link = _link(spool)
        for _ in range(_TRIES):
            make_private(link.parent)
            with contextlib.suppress(FileExistsError, FileNotFoundError):  # by another process
                link.symlink_to(spool)
            if link.is_symlink():
                return


def forget(spool: Path) -> None:
    """Forget a spool that is empty, and where it lay before its project was moved."""
    with contextlib.suppress(OSError):
        _link(spool).unlink(missing_ok=True)
        for place in missing_spools():
            if place.name == spool.name:
                _link(place).unlink(missing_ok=True)
        index_folder().rmdir()


def known_spools() -> list[Path]:
    """Return the spools of this user on this machine; links to what is gone are dropped."""
    found = []
    try:
        links = sorted(index_folder().iterdir())
    except OSError:
        return []
    for link in links:
        with contextlib.suppress(OSError):
            if link.is_dir():
                found.append(Path(os.readlink(link)))
            elif link.is_symlink() and Path(os.readlink(link)).parents[1].is_dir():
                # Its project is there, its spool is not. A folder not mounted now stays listed.
                link.unlink(missing_ok=True)
    return found


def missing_spools() -> list[Path]:
    """Return the spools that are not where they were: moved with their project, or not mounted."""
    return [place for place in _noted() if not os.path.lexists(place)]


def places_of(name: str) -> list[Path]:
    """Return where spools of this name are, or were."""
    return [place for place in _noted() if place.name == name]


def _noted() -> list[Path]:
    with contextlib.suppress(OSError):
        links = sorted(index_folder().iterdir())
        return [Path(os.readlink(link)) for link in links if link.is_symlink()]
    return []


def spools_in(project: Path) -> list[Path]:
    """Return the spools of a project, without looking for them below it."""
    with contextlib.suppress(OSError):
        return sorted(path for path in (project / FOLDER_NAME).iterdir() if path.is_dir())
    return []


def spools_below(folder: Path) -> Iterator[Path]:
    """Yield the spools in a folder: itself, or those anywhere below it."""
    if _is_spool(folder) and folder.parent.name == FOLDER_NAME:
        yield folder
        return
    for place, folders, _ in os.walk(folder):
        if Path(place).name == FOLDER_NAME:
            spools = [Path(place) / name for name in sorted(folders)]
            folders.clear()
            yield from filter(_is_spool, spools)
            for empty in (*spools, Path(place)):  # left by a process that was killed just then
                with contextlib.suppress(OSError):
                    empty.rmdir()


def _is_spool(folder: Path) -> bool:
    """Tell whether a folder is a spool, or may be one that cannot be looked into."""
    names = ("ready", "lock")
    return any(os.path.lexists(folder / name) for name in names) or (
        folder.is_dir() and not os.access(folder, os.R_OK | os.X_OK)
    )


def _link(spool: Path) -> Path:
    spool = Path(os.path.abspath(spool))
    digest = hashlib.sha256(str(spool).encode()).hexdigest()[:8]
    return index_folder() / f"{spool.name}-{digest}"
