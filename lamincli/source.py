"""Which file is the user's code: the script that was run, else the file of the model class."""

import contextlib
import hashlib
import inspect
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

_NOT_THE_USER = {
    "lamincli",
    "lightning",
    "jsonargparse",
    "runpy",
    "contextlib",
}
_STANDARD = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
_LAUNCHER_FOLDERS = (Path(__file__).parent, Path(sys.base_prefix))


@dataclass(frozen=True)
class Source:
    """Name the code of a run.

    Args:
        path: The file, if there is one.
        key: Key of the transform, if it does not follow from the path: files of packages are
            called ``pypackages/<package>/<module>.py``, as lamindb calls them.
        code: The source text where there is no file, as for a class in a notebook.
    """

    path: Path | None = None
    key: str | None = None
    code: str | None = None


def find_source(model: Any) -> Source:
    """Return the user's script, else where the model is defined.

    Args:
        model: The model class, or the function that returns the model.
    """
    return _script() or _definition(model)


def hashes_of_modules() -> dict[str, str]:
    """Return the hashes of the modules in the working folder that are imported, by their paths.

    The source of a run is one file; this tells whether the project around it was the same.
    """
    here = Path.cwd()
    installed = [Path(path).resolve() for path in {sys.prefix, sys.base_prefix, *_STANDARD}]
    hashes = {}
    for name, module in list(sys.modules.items()):
        # Modules are of any kind: some have no file, some are imported by being asked for it.
        with contextlib.suppress(Exception):
            file = module.__file__ or ""
            if name.partition(".")[0] in _NOT_THE_USER or not file.endswith(".py"):
                continue
            # Before a path is made of it: there are thousands.
            if "site-packages" in file or "dist-packages" in file:
                continue
            path = Path(file).resolve()
            if path.is_relative_to(here) and not any(map(path.is_relative_to, installed)):
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                hashes[path.relative_to(here).as_posix()] = digest[:16]
    return hashes


def _script() -> Source | None:
    """Return the file from which the command line was built, as `ln.track()` there would."""
    frames = []
    frame: FrameType | None = inspect.currentframe()
    while frame is not None:
        if (module := frame.f_globals.get("__name__", "")).split(".")[0] not in _NOT_THE_USER:
            frames.append((module, frame.f_code.co_filename))
        frame = frame.f_back
    # In `python train.py`, the script; else the caller, as in a console script of a package.
    # Launchers (lamin-train, pytest, torchrun, a notebook kernel) are no code of the user.
    scripts = [found for found in frames if found[0] == "__main__"]
    for module, filename in [*scripts, *frames[:1]]:
        path = Path(filename)
        if path.suffix == ".py" and path.is_file() and not _is_launcher(module, path):
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
    return Source(path=path.resolve(), key=key)
