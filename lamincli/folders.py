"""Folders of this user alone on this machine, and what stands in for one that cannot be written.

All that lies in the temporary folder is in one folder that nobody else can enter: the files by
which jobs take turns, and what a process needs for a while. Each of them is locked as long as its
process lives. What a killed one has left is told by that, and removed by the next start.

Source: safe directories in ``/tmp``, as tmux and ssh-agent keep them; a lock as a sign of life, as
    systemd-tmpfiles takes it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lamincli.errors import UsageError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

SETTINGS_VARIABLE = "LAMIN_SETTINGS_DIR"
CACHE_VARIABLE = "LAMIN_CACHE_DIR"
STATE_VARIABLE = "XDG_STATE_HOME"

SPOOLS_NAME = ".lamin_spool"
"""Name of the folders of spools, in the trainer's default_root_dir."""

_NAME = "lamin-train"
_STAND_INS = ("home", "settings", "state", "cache")
_TRIES = 1000
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
_FOLDER = getattr(os, "O_DIRECTORY", 0)


# -- what is this user's alone -------------------------------------------------------------------


def private_folder() -> Path:
    """Return the folder of this user among the temporary ones, made if it is not there.

    Where somebody else has made it, or the temporary folder cannot be written, it is one in the
    user's own state: the same for all processes of the user, for they take turns in it.

    Raises:
        UsageError: There is no folder that can be written, or none that is the user's alone.
    """
    reasons = []
    for find in (_temporary, _within_state):
        try:
            folder = find()
            make_private(folder)
        except OSError as error:
            reasons.append(str(error))
        else:
            return folder
    raise UsageError(
        f"There is no temporary folder for this user alone: {'; '.join(reasons)}. Set TMPDIR to a "
        "folder that you can write."
    )


def make_private(folder: Path) -> None:
    """Make a folder that nobody but this user can enter, or see to it that it is one.

    A folder of our name above it is made likewise.

    Raises:
        PermissionError: It is another user's, or a link, which might lead anywhere.
        OSError: It cannot be made.
    """
    for tries_left in reversed(range(_TRIES)):
        try:
            status = _made(folder)
            break
        except FileNotFoundError:  # it was empty, and another process has removed it just then
            if not tries_left:
                raise
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(f"{folder} is no folder")
    if not _is_own(status):
        raise PermissionError(f"{folder} belongs to another user")
    if status.st_mode & 0o077:
        with contextlib.suppress(FileNotFoundError):
            folder.chmod(0o700)


def _made(folder: Path) -> os.stat_result:
    if folder.parent.name == _NAME:
        make_private(folder.parent)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    return os.lstat(folder)


def read_own(path: Path) -> str:
    """Return the text of a file that nobody but this user can have written.

    Raises:
        PermissionError: It is another user's, or others may write; or it is a link.
        OSError: It cannot be read.
        ValueError: It is no text.
    """
    handle = os.open(path, os.O_RDONLY | _NO_FOLLOW | getattr(os, "O_NONBLOCK", 0))
    with open(handle, encoding="utf-8") as file:
        status = os.fstat(handle)
        if not (stat.S_ISREG(status.st_mode) and _is_own(status)) or status.st_mode & 0o022:
            raise PermissionError(f"{path} can be written by others")
        return file.read()


def write_own(path: Path, text: str) -> None:
    """Write a file that nobody but this user can read, at once or not at all.

    Raises:
        OSError: The disk is full, or the folder cannot be written.
    """
    handle, part = tempfile.mkstemp(prefix=f".{path.name[:100]}-", suffix=".part", dir=path.parent)
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(part)
        raise


@contextlib.contextmanager
def taking_turns(name: str) -> Iterator[None]:
    """Let the jobs of this user on this machine do something one after the other.

    The file that is locked goes with its last user. Who waited for it looks whether what was locked
    is still the file of that name, for the one before may have removed it.

    Args:
        name: What is done in turns.
    """
    lock = f"{hashlib.sha256(name.encode()).hexdigest()[:24]}.lock"
    for _ in range(_TRIES):
        folder = private_folder()
        try:
            flags = os.O_RDWR | os.O_CREAT | _NO_FOLLOW
            handle = os.open(folder / lock, flags, 0o600)
        except FileNotFoundError:  # the folder was empty for a moment, and removed
            continue
        try:
            _lock(handle)
            if _is_at(folder / lock, handle):
                break
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
    else:
        raise UsageError(f"{folder} is removed again and again. Set TMPDIR to another folder.")
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.unlink(folder / lock)
        os.close(handle)
        _remove_if_empty(folder)


class Scratch:
    """A folder that goes with this process, or before: however the process ends.

    Args:
        what: How its name begins.
        within: Where it is made; by default in the private folder.
    """

    def __init__(self, what: str, within: Path | None = None) -> None:
        self._pid = os.getpid()
        for _ in range(_TRIES):
            parent = within or private_folder()
            try:
                parent.mkdir(parents=True, exist_ok=True)
                self.path = Path(tempfile.mkdtemp(prefix=f"{what}-", dir=parent))
                self._handle = _hold(self.path)
            except FileNotFoundError:  # removed by a start that took it for left
                continue
            return
        raise UsageError(f"{parent} is removed again and again. Set TMPDIR to another folder.")

    def remove(self) -> None:
        """Remove it, with all that is in it. Further calls do nothing."""
        if self._pid != os.getpid():
            return  # a forked process has a copy of this object
        shutil.rmtree(self.path, ignore_errors=True)
        if self._handle is not None:
            os.close(self._handle)
        self._pid = 0
        _remove_if_empty(self.path.parent)

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.remove()


def remove_left(folder: Path | None = None) -> None:
    """Remove what processes have left that were killed.

    Args:
        folder: Where `Scratch` has made folders; by default all that is in the private folder.
    """
    places = [folder] if folder is not None else _present()
    for place in places:
        with contextlib.suppress(OSError):
            names = sorted(set(os.listdir(place)) - set(_STAND_INS))
            for name in names:
                with contextlib.suppress(OSError):
                    _remove_if_left(place / name)
            _remove_if_empty(place)


def _temporary() -> Path:
    return Path(tempfile.gettempdir()) / f"{_NAME}-{user_number()}"


def _within_state() -> Path:
    return state_folder() / "tmp"


def _present() -> list[Path]:
    found = []
    for find in (_temporary, _within_state):
        with contextlib.suppress(OSError):
            if _is_own(os.lstat(folder := find())):
                found.append(folder)
    return found


def user_number() -> str:
    """Return what tells this user from others: a number, for a name is not always known."""
    return str(os.geteuid()) if hasattr(os, "geteuid") else "user"


def _is_own(status: os.stat_result) -> bool:
    return not hasattr(os, "geteuid") or status.st_uid == os.geteuid()


def _hold(folder: Path) -> int | None:
    """Lock a folder until this process ends; `None` where folders cannot be locked."""
    if fcntl is None:
        return None
    handle = os.open(folder, os.O_RDONLY | _FOLDER | _NO_FOLLOW)
    try:
        _lock(handle)
        if not _is_at(folder, handle):
            raise FileNotFoundError(folder)
    except BaseException:
        os.close(handle)
        raise
    return handle


def _remove_if_left(path: Path) -> None:
    if fcntl is None:
        return
    handle = os.open(path, os.O_RDONLY | _NO_FOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while its process lives
        if not _is_at(path, handle):
            return
        if not path.is_dir():
            path.unlink()
        elif not any(path.rglob(SPOOLS_NAME)):  # what waits there is not published yet
            shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(handle)


def _lock(handle: int) -> None:
    """Wait for the lock of an open file; does nothing where there are no locks."""
    if fcntl is None:
        return _lock_on_windows(handle)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EBADF):
            raise


def _lock_on_windows(handle: int) -> None:
    import msvcrt

    while True:
        with contextlib.suppress(OSError):  # after ten seconds
            msvcrt.locking(handle, msvcrt.LK_LOCK, 1)  # type: ignore[attr-defined]
            return


def _is_at(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(path))
    except FileNotFoundError:
        return False


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


# -- what stands in for the user's own -----------------------------------------------------------


@dataclass(frozen=True)
class StandIn:
    """A folder that cannot be written, so that another one is used.

    Args:
        folder: The folder.
        why: Why not.
        variable: What names another one.
    """

    folder: str
    why: str
    variable: str


_standing_in: list[StandIn] = []
_told: set[str] = set()


def state_folder() -> Path:
    """Return where this user's spools, references and jobs are remembered, by the XDG rules.

    A user without a home has one that cannot be written.
    """
    if state := os.environ.get(STATE_VARIABLE):
        return Path(state) / _NAME
    try:
        return Path.home() / ".local" / "state" / _NAME
    except RuntimeError:
        return Path(os.devnull) / _NAME


def settings_folder() -> Path:
    """Return where lamindb keeps its settings."""
    return Path(os.environ.get(SETTINGS_VARIABLE) or Path.home()) / ".lamin"


def provide_home() -> None:
    """Let there be a home, and settings of LaminDB that can be written.

    Called before lamindb is imported, which reads its settings then. Where both are there, nothing
    is changed or left.
    """
    if not os.path.isabs(os.path.expanduser("~")):
        os.environ["HOME"] = str(_stand_in("home"))
        _standing_in.append(StandIn("~", "this user has no home folder", "HOME"))
    settings = settings_folder()
    if (why := why_unwritable(settings)) is None:
        return
    there = _stand_in("settings") / ".lamin"
    _take_over_settings(settings, there)
    os.environ[SETTINGS_VARIABLE] = str(there.parent)
    for name in ("_settings_store", "_settings"):
        if (module := sys.modules.get(f"lamindb_setup.core.{name}")) is not None:
            vars(module)["settings_dir"] = there
    _standing_in.append(StandIn(str(settings), why, SETTINGS_VARIABLE))


def provide_cache_and_state() -> None:
    """Let there be a cache of LaminDB, and a state, that can be written."""
    from lamindb_setup import logger, settings

    was_disabled, logger.disabled = logger.disabled, True  # it would say that it has failed
    try:
        cache = Path(settings.cache_dir)
    finally:
        logger.disabled = was_disabled
    if (why := why_unwritable(cache)) is not None:
        os.environ[CACHE_VARIABLE] = str(_stand_in("cache"))
        _standing_in.append(StandIn(str(cache), why, CACHE_VARIABLE))
    state = state_folder()
    if (why := why_unwritable(state)) is not None:
        there = _stand_in("state")
        with contextlib.suppress(OSError, shutil.Error):
            shutil.copytree(state, there / _NAME, symlinks=True, dirs_exist_ok=True)
        os.environ[STATE_VARIABLE] = str(there)
        _standing_in.append(StandIn(str(state), why, STATE_VARIABLE))


def news() -> str | None:
    """Say which folders are not used, and why; `None` where that was said, or all are."""
    new = [one for one in _standing_in if one.variable not in _told]
    if not new:
        return None
    variables = [one.variable for one in new]
    _told.update(variables)
    folders: dict[str, list[str]] = {}
    for one in new:
        folders.setdefault(one.why, []).append(one.folder)
    facts = [f"{_listed(some)} cannot be written: {why}" for why, some in folders.items()]
    what = "a folder" if len(new) == 1 else "folders"
    return (
        f"{'; '.join(facts)}. {private_folder()} is used instead. "
        f"Set {_listed(variables)} to {what} that you can write."
    )


def why_unwritable(folder: Path) -> str | None:
    """Say why no file can be written in a folder; it is made for the trial if it is not there."""
    missing = []
    for place in (folder, *folder.parents):
        if os.path.lexists(place):
            break
        missing.append(place)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{_NAME}-", dir=folder)
        try:
            os.write(handle, b"lamin-train")
        finally:
            os.close(handle)
            os.unlink(name)
    except OSError as error:
        return error.strerror or str(error)
    finally:
        for place in missing:
            _remove_if_empty(place)
    return None


def _stand_in(name: str) -> Path:
    folder = private_folder() / name
    make_private(folder)
    return folder


def _take_over_settings(source: Path, target: Path) -> None:
    """Let the settings be found in another folder. What is written there stays there.

    They hold passwords: of what is only read, there is no copy.
    """
    make_private(target)
    for file in target.iterdir():
        if not (file.exists() and _is_own(os.lstat(file))):
            file.unlink()
    with contextlib.suppress(OSError):
        for file in source.iterdir():
            here = target / file.name
            if not file.is_file() or here.exists():
                continue
            if file.name.endswith("current_instance.env"):  # written over when one is made
                write_own(here, file.read_text(encoding="utf-8"))
            else:
                here.symlink_to(file)


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
