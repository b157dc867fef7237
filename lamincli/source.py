"""Which file is the user's code: the script that was run, else the file of the model class."""

import contextlib
import hashlib
import inspect
import sys
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from lamincli import loaded
from lamincli.loaded import CHANGED, NOT_THE_USER, UNKNOWN, Loaded

DOUBTS = (CHANGED, UNKNOWN)
"""In the place of a hash: the file has changed since it was loaded, or may have."""
_CAVEAT = (
    "# lamin-train: this file {was} changed after Python loaded it. What ran is not known; this\n"
    "# is what the file held when the run began.\n\n"
)
_LAUNCHER_FOLDERS = (Path(__file__).parent, Path(sys.base_prefix))


@dataclass(frozen=True)
class Source:
    """Name the code of a run.

    Args:
        path: The file, if there is one.
        key: Key of the transform, if it does not follow from the path: files of packages are
            called ``pypackages/<package>/<module>.py``, as lamindb calls them.
        code: The source text as it was loaded; only this where there is no file, as for a class in
            a notebook.
        doubt: As in `Loaded`. If it is not empty, `code` says so, and holds what is there now.
    """

    path: Path | None = None
    key: str | None = None
    code: str | None = None
    doubt: str = ""


def find_source(model: Any) -> Source:
    """Return the user's script, else where the model is defined.

    Args:
        model: The model class, or the function that returns the model.
    """
    return _script() or _definition(model)


def hashes_of_modules() -> dict[str, str]:
    """Return the hashes of the modules in the working folder that are imported, by their paths.

    The source of a run is one file; this tells whether the project around it was the same. Of one
    that has changed since it was loaded, or may have, there is one of `DOUBTS` instead.
    """
    here = Path.cwd()
    return {
        one.path.relative_to(here).as_posix(): one.doubt or _digest(one)
        for one in loaded.of_project()
    }


def _digest(one: Loaded) -> str:
    return hashlib.sha256(one.content).hexdigest()[:16]


def _script() -> Source | None:
    """Return the file from which the command line was built, as `ln.track()` there would."""
    frames = []
    frame: FrameType | None = inspect.currentframe()
    while frame is not None:
        if (module := frame.f_globals.get("__name__", "")).split(".")[0] not in NOT_THE_USER:
            frames.append((module, frame.f_code.co_filename))
        frame = frame.f_back
    # In `python train.py`, the script; else the caller, as in a console script of a package.
    # Launchers (lamin-train, pytest, torchrun, a notebook kernel) are no code of the user.
    scripts = [found for found in frames if found[0] == "__main__"]
    for module, filename in [*scripts, *frames[:1]]:
        path = Path(filename)
        is_there = path.suffix == ".py" and (path.is_file() or loaded.is_known(module, path))
        if is_there and not _is_launcher(module, path):
            return _source_of(module, path)
    return None


def _is_launcher(module: str, path: Path) -> bool:
    homes = ("site-packages" in path.parts, *map(path.is_relative_to, _LAUNCHER_FOLDERS))
    return module == "__main__" and any(homes)


def _definition(model: Any) -> Source:
    model = inspect.unwrap(model)
    with contextlib.suppress(OSError, TypeError):
        filename = inspect.getsourcefile(model)
        if filename is not None and Path(filename).is_file():
            return _source_of(model.__module__, Path(filename))
    name = f"{model.__module__}.{getattr(model, '__qualname__', repr(model))}"
    try:
        code = inspect.getsource(model)
    except (OSError, TypeError):
        code = f"# {name} was defined where Python keeps no source\n"
    return Source(key=name, code=code)


def _source_of(module: str, path: Path) -> Source:
    in_package = "." in module
    key = f"pypackages/{module.replace('.', '/')}.py" if in_package else None
    found = loaded.source(module, path)
    text = found.text
    if found.doubt:
        text = _CAVEAT.format(was="was" if found.doubt == CHANGED else "may have been") + text
    return Source(path=found.path, key=key, code=text, doubt=found.doubt)
