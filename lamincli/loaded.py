"""What Python has loaded: the text of a module as it ran, though its file may be another by now.

Importing torch takes seconds, data may take minutes, and a stage after a fit begins hours later;
meanwhile people edit. So the files are read as early as we can, each once, and each is compared
with what Python made of it: the code of the script that is being run, else the byte code that the
import has left, else the functions of the module. Standard library only, and without `inspect`.
"""

import contextlib
import linecache
import marshal
import os
import struct
import subprocess
import sys
import sysconfig
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.machinery import SourceFileLoader
from importlib.util import MAGIC_NUMBER, decode_source
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

from lamincli.process import ProcessIdentity

NOT_THE_USER = {"lamincli", "lightning", "jsonargparse", "runpy", "contextlib"}
CHANGED, UNKNOWN = "changed", "unknown"
_STANDARD = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
_CLOCK_S = 1.0
"""How exactly the start of the process and the times of files can be compared."""
_GIT_S = 5.0


@dataclass(frozen=True)
class Loaded:
    """The source of a module.

    Args:
        path: Its file.
        content: What Python has loaded; what the file holds now, where that is not known any more.
        doubt: Empty if it is what Python has loaded; `CHANGED` if it certainly is not, `UNKNOWN` if
            nothing tells: the file was touched since the process began.
    """

    path: Path
    content: bytes
    doubt: str = ""

    @property
    def text(self) -> str:
        """The text, decoded as Python does."""
        return decode_source(self.content)


@dataclass(frozen=True)
class _Seen:
    spec: Any  # that of the module, which a reload replaces
    loaded: Loaded


_SEEN: dict[str, _Seen] = {}
_IRRELEVANT: dict[str, int] = {}  # ids of the modules that are none of the project, by name
_of_folder = ""


def keep() -> None:
    """Look at the modules of the project that were imported since the last time.

    It costs a few milliseconds the first time, and less than one after that.
    """
    global _of_folder
    if (here := os.getcwd()) != _of_folder:
        _IRRELEVANT.clear()
        _of_folder = here
    for name, module in list(sys.modules.items()):
        if _IRRELEVANT.get(name) == id(module):
            continue
        # Modules are of any kind: some have no file, some are imported by being asked for it.
        try:
            about = vars(module)
            path = _path_in_project(name, about.get("__file__") or "")
            if path is None:
                _IRRELEVANT[name] = id(module)
            elif (seen := _SEEN.get(name)) is None or seen.spec is not about.get("__spec__"):
                _SEEN[name] = _Seen(about.get("__spec__"), _look(name, path))
        except Exception:
            _IRRELEVANT[name] = id(module)


def _path_in_project(name: str, file: str) -> Path | None:
    """Return the file of a module of the user's in the working folder."""
    # Before a path is made of it: there are thousands.
    if not file.endswith(".py") or "site-packages" in file or "dist-packages" in file:
        return None
    path = Path(file).resolve()
    if name.partition(".")[0] in NOT_THE_USER or not path.is_relative_to(_of_folder):
        return None
    return None if any(map(path.is_relative_to, _installed())) else path


@cache
def _installed() -> list[Path]:
    return [Path(path).resolve() for path in {sys.prefix, sys.base_prefix, *_STANDARD}]


def of_project() -> Iterator[Loaded]:
    """Yield the modules in the working folder that are imported, as they were loaded."""
    keep()
    here = Path.cwd()
    for name, seen in list(_SEEN.items()):
        if name in sys.modules and seen.loaded.path.is_relative_to(here):
            yield seen.loaded


def source(name: str, path: Path) -> Loaded:
    """Return the source of a module, as it was loaded.

    Args:
        name: Name of the module.
        path: Its file.

    Raises:
        OSError: The file cannot be read, and was not looked at before.
    """
    path, seen = path.resolve(), _SEEN.get(name)
    spec = _about(name).get("__spec__")
    if seen is not None and seen.spec is spec and seen.loaded.path == path:
        return seen.loaded
    found = _look(name, path)
    _SEEN[name] = _Seen(spec, found)
    return found


def is_known(name: str, path: Path) -> bool:
    """Tell whether a module was looked at, so that its source is there without its file."""
    seen = _SEEN.get(name)
    return seen is not None and seen.loaded.path == path.resolve()


def _about(name: str) -> dict[str, Any]:
    module = sys.modules.get(name)
    return {} if module is None else vars(module)


def _look(name: str, path: Path) -> Loaded:
    module, stat = _about(name), path.stat()
    touched_s, began_s = max(stat.st_ctime, stat.st_mtime), _process_began_s()
    content = path.read_bytes()
    running = _running(module, path)
    if running is None and touched_s < began_s - _CLOCK_S:
        return Loaded(path, content)
    if (code := running or _compiled(module, path, stat)) is not None:
        for candidate in _candidates(path, content):
            if (other := _compile(candidate, path)) is not None and is_same_code(code, other):
                return Loaded(path, candidate)
        return Loaded(path, content, CHANGED)
    if not _has_functions_of(module, path, content):
        return Loaded(path, content, CHANGED)
    # What stands outside of functions cannot be compared: a file that changed meanwhile may differ.
    return Loaded(path, content, "" if touched_s < began_s + _CLOCK_S else UNKNOWN)


def _candidates(path: Path, content: bytes) -> Iterator[bytes]:
    """Yield texts that may be the one that was loaded: the file, what was shown of it, git's."""
    yield content
    shown = linecache.cache.get(str(path))
    if shown is not None and len(shown) == 4:
        yield "".join(shown[2]).encode()
    # Nothing is fetched: the blob is here, or it is not.
    git = ["git", "-C", str(path.parent), "-c", "protocol.allow=never"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(  # noqa: S603
            [*git, "cat-file", "blob", f"HEAD:./{path.name}"],
            env={**os.environ, "GIT_NO_LAZY_FETCH": "1", "GIT_OPTIONAL_LOCKS": "0"},
            capture_output=True,
            timeout=_GIT_S,
            check=True,
        )
        yield done.stdout


# -- what Python has made of it ----------------------------------------------------------------


def _running(module: dict[str, Any], path: Path) -> CodeType | None:
    """Return the code of a module that is being run, as a script is."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "<module>" and (frame.f_globals is module or not module):
            is_it = bool(module) or Path(frame.f_code.co_filename).resolve() == path
            if is_it and _is_plain(frame.f_globals):
                return frame.f_code
        frame = frame.f_back
    return None


def _compiled(module: dict[str, Any], path: Path, stat: os.stat_result) -> CodeType | None:
    """Return the code of a module that its import has left beside it, if it is that."""
    cached = getattr(module.get("__spec__"), "cached", None)
    if not cached or not _is_plain(module):
        return None
    try:
        data = Path(cached).read_bytes()
        code = marshal.loads(data[16:]) if data[:4] == MAGIC_NUMBER else None  # noqa: S302
        is_of_file = struct.unpack("<II", data[8:16]) == (
            int(stat.st_mtime) & 0xFFFFFFFF, stat.st_size & 0xFFFFFFFF
        )  # fmt: skip
    except (OSError, ValueError, EOFError, TypeError, struct.error):
        return None
    can_write = not sys.dont_write_bytecode and os.access(Path(cached).parent, os.W_OK)
    if not is_of_file and not can_write:
        return None  # it may be older than the import, which could not replace it
    # Another process may have written it anew, of another text.
    return code if isinstance(code, CodeType) and _are_in(module, path, code) else None


def _has_functions_of(module: dict[str, Any], path: Path, content: bytes) -> bool:
    """Tell whether the functions of a module are those of a text."""
    if not _is_plain(module):
        return True  # a test, or what an import hook has changed: its code is not that of the text
    code = _compile(content, path)
    return code is not None and _are_in(module, path, code)


def _are_in(module: dict[str, Any], path: Path, code: CodeType) -> bool:
    """Tell whether the functions of a module are all in a code."""
    every: dict[str, list[CodeType]] = {}
    for one in _nested(code):
        every.setdefault(one.co_name, []).append(one)
    return all(
        any(
            is_same_code(function.__code__, one) for one in every.get(function.__code__.co_name, ())
        )
        for function in _functions(module, path)
    )


def _functions(module: dict[str, Any], path: Path) -> Iterator[FunctionType]:
    """Yield the functions and methods that the text of a module defines."""
    values = list(module.values())
    for kind in [value for value in values if isinstance(value, type)]:
        if kind.__module__ == module.get("__name__"):
            values += list(vars(kind).values())
    for value in values:
        inner = getattr(value, "__func__", None) or getattr(value, "fget", None) or value
        is_its_own = isinstance(inner, FunctionType) and inner.__globals__ is module
        if is_its_own and Path(inner.__code__.co_filename).name == path.name:
            yield inner


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield from _nested(const)


def _is_plain(module: dict[str, Any]) -> bool:
    """Tell whether a module was compiled from its text as it stands there."""
    return type(module.get("__loader__")) in (SourceFileLoader, type(None))


def _compile(content: bytes, path: Path) -> CodeType | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return compile(content, str(path), "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return None


def is_same_code(one: CodeType, other: CodeType) -> bool:
    """Tell whether two codes do the same; where their lines stand is left aside."""
    names = ("co_name", "co_code", "co_flags", "co_names", "co_varnames", "co_freevars",
             "co_cellvars", "co_argcount", "co_posonlyargcount", "co_kwonlyargcount")  # fmt: skip
    if any(getattr(one, name) != getattr(other, name) for name in names):
        return False
    if len(one.co_consts) != len(other.co_consts):
        return False
    return all(map(_is_same_const, one.co_consts, other.co_consts))


def _is_same_const(one: Any, other: Any) -> bool:
    if isinstance(one, CodeType) and isinstance(other, CodeType):
        return is_same_code(one, other)
    if type(one) is not type(other):  # 1 is True, and 1.0
        return False
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(_is_same_const, one, other))
    if isinstance(one, frozenset):
        return sorted(map(repr, one)) == sorted(map(repr, other))
    return repr(one) == repr(other)  # 0.0 is not -0.0


def _process_began_s() -> float:
    """Return when this process began, by the wall clock as it goes now."""
    me = ProcessIdentity.current()
    if me.boot_id and hasattr(time, "CLOCK_BOOTTIME"):  # then the start counts from the boot
        return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - me.started_s)
    return me.started_s
