"""How to train again from the record of a run alone: which program, with which config, from where.

The process starts in the folder in which the command was started, so that relative paths go on
working wherever they stand, in the config or in the code. Everything that the config lets a
training write goes to the scratch folder instead.
"""

import os
import re
import shutil
import sys
from copy import deepcopy
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from lamincli.errors import UsageError
from lamincli.options import LaminOptions
from lamincli.process import PARENT_VARIABLE, REPRODUCES_VARIABLE
from lamincli.redaction import REDACTED

_OUTPUTS = {"dirpath", "save_dir", "root_dir", "log_dir", "output_dir", "default_root_dir"}
_PACKAGES = "pypackages/"
_LAUNCHER = "lamincli"
# What goes on after the training, or with another one, is no part of reproducing it.
_RESET = ("then", "resume")


@dataclass(frozen=True)
class Recipe:
    """A command that trains again.

    Args:
        command: The words to run, the interpreter first.
        environment: What the process finds in its environment beyond ours.
        config: The config that the run was given, but for where it writes.
        notes: What the user should know before.
        script_name: Name of the project's script, if the run was started by one.
    """

    command: list[str]
    environment: dict[str, str]
    config: dict[str, Any]
    notes: list[str]
    script_name: str | None = None


def plan(
    record: dict[str, Any],
    *,
    uid: str,
    transform_key: str,
    source: str | None,
    config: dict[str, Any],
    scratch: Path,
    recorded_code: bool,
) -> Recipe:
    """Plan how to train again; nothing is written yet.

    Args:
        record: What lamin-train has noted in the run's `extra_data`.
        uid: Uid of the run.
        transform_key: Key of the run's transform.
        source: Its source text.
        config: The config that the run was given.
        scratch: The folder to write to.
        recorded_code: Run the recorded source instead of the installed one.

    Raises:
        UsageError: The code that it needs is not here, or not recorded.
    """
    notes = []
    stage = record.get("stage")
    words = [str(scratch / "config.yaml")]
    arguments = [*([stage] if stage else []), "--config", *words]
    script = _script(record.get("program") or {}, transform_key)
    environment = {PARENT_VARIABLE: uid, REPRODUCES_VARIABLE: uid}
    if recorded_code:
        if not source:
            raise UsageError(f"run {uid} has no recorded source. Leave out --code recorded.")
        if REDACTED in source:
            raise UsageError(
                f"the recorded source of run {uid} holds {REDACTED} in the place of a secret that "
                "was taken out, so it is not what ran. Leave out --code recorded."
            )
        place = scratch / "code"
        program, path = _recorded(transform_key, script, place)
        if path:
            environment["PYTHONPATH"] = os.pathsep.join(path)
            environment["PYTHONSAFEPATH"] = "1"  # or the current folder comes before it
            if sys.version_info < (3, 11):
                raise UsageError("--code recorded needs Python 3.11. Leave it out, or upgrade.")
    else:
        program = _installed(uid, transform_key, script, record.get("program") or {})
    if (seed := config.get("seed_everything")) is None or seed is False:  # 0 is a seed
        notes.append("the run has no seed (seed_everything), so its results come from chance")
    return Recipe(
        command=[sys.executable, *program, *arguments],
        environment=environment,
        config=redirected(config, scratch),
        notes=notes,
        script_name=script.name if script else None,
    )


def redirected(config: dict[str, Any], scratch: Path) -> dict[str, Any]:
    """Return a config that writes to a scratch folder, and is else the same.

    Folders keep their last name, from which artifact keys are made.
    """
    config = deepcopy(config)
    trainer = config.get("trainer")
    if isinstance(trainer, dict):
        root = trainer.get("default_root_dir") or Path.cwd()
        config["trainer"] = _moved(trainer, scratch)
        config["trainer"]["default_root_dir"] = _within(scratch, root)
    if (config.get("checkpoint") or {}).get("dirpath"):
        config["checkpoint"]["dirpath"] = _within(scratch, config["checkpoint"]["dirpath"])
    if isinstance(lamin := config.get("lamin"), dict):
        lamin["instance"] = None  # the one of the run, by the environment
        lamin["run_uid_is_version"] = True  # no key of the run is touched
        for name in _RESET:
            if name in lamin:
                lamin[name] = getattr(LaminOptions(), name, None)
        if "track" in lamin:
            lamin["track"] = True
    return config


def _moved(value: Any, scratch: Path) -> Any:
    if isinstance(value, dict):
        return {
            name: _within(scratch, item)
            if name in _OUTPUTS and isinstance(item, str)
            else True
            if name == "run_uid_is_version"
            else _moved(item, scratch)
            for name, item in value.items()
        }
    if isinstance(value, list):
        return [_moved(item, scratch) for item in value]
    return value


def _within(scratch: Path, folder: Any) -> str:
    name = PurePosixPath(str(folder)).name
    if name in ("", ".", ".."):
        name = Path(str(folder)).resolve().name or "root"
    return str(scratch / name)


# -- the program -----------------------------------------------------------------------------------


def _script(program: dict[str, str], transform_key: str) -> Path | None:
    """Return the project's script, if the run was started by one."""
    if program.get("module"):
        return None
    path = Path(program["script"]) if program.get("script") else None
    if path is not None and path.suffix == ".py":
        return path
    if path is None and transform_key.endswith(".py") and not transform_key.startswith(_PACKAGES):
        here = Path.cwd() / transform_key  # recorded by an earlier version
        return here if here.is_file() and b"LightningCLI" in here.read_bytes() else None
    return None


def _installed(
    uid: str, transform_key: str, script: Path | None, program: dict[str, str]
) -> list[str]:
    if script is not None:
        places = [script, Path.cwd() / script.name, Path.cwd() / transform_key]
        for place in places:
            if place.is_file():
                return [str(place)]
        raise UsageError(
            f"run {uid} was started by the script {script}, which is not there, nor in this "
            "folder. Start in the folder of the script, or run the recorded one: --code recorded."
        )
    if module := _module(transform_key):
        if not _can_be_found(module):
            raise UsageError(
                f"run {uid} needs the module {module}, which is neither installed nor in this "
                "folder. Start in the folder of the project, install it, or run the recorded "
                "source: --code recorded."
            )
    elif transform_key.endswith(".py") and not _can_be_found(Path(transform_key).stem):
        raise UsageError(
            f"run {uid} needs {transform_key}, which is not in this folder. Start in the folder of "
            "the project, or run the recorded source: --code recorded."
        )
    return _launcher(program)


def _launcher(program: dict[str, str]) -> list[str]:
    module = program.get("module", "")
    path = Path(program.get("script", ""))
    is_ours = module.split(".")[0] == _LAUNCHER or path.stem == "lamin-train"
    if module and not is_ours and _can_be_found(module):
        return ["-m", module]
    # The console script of a package, whose module is the transform.
    if not module and not is_ours and path.suffix == "" and path.is_file():
        return [str(path)]
    return ["-m", _LAUNCHER]


def _can_be_found(module: str) -> bool:
    """Tell whether a module is there, where the child will look for it; imports no module."""
    top, _, rest = module.partition(".")
    if top == _LAUNCHER:
        return True
    places = [Path.cwd(), *map(Path, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    tail = Path(*module.split("."))
    if any((p / tail).with_suffix(".py").is_file() or (p / tail).is_dir() for p in places if p):
        return True
    try:
        spec = find_spec(top)
    except (ImportError, ValueError):
        return False
    if spec is None:
        return False
    if not rest:
        return True
    inner = Path(*rest.split("."))
    folders = [Path(place) for place in spec.submodule_search_locations or ()]
    return any((f / inner).with_suffix(".py").is_file() or (f / inner).is_dir() for f in folders)


def _module(transform_key: str) -> str | None:
    if not transform_key.startswith(_PACKAGES):
        return None
    return transform_key.removeprefix(_PACKAGES).removesuffix(".py").replace("/", ".")


# -- recorded code ---------------------------------------------------------------------------------


def _recorded(transform_key: str, script: Path | None, place: Path) -> tuple[list[str], list[str]]:
    """Return the program that runs the recorded source, and the folders to import from."""
    inherited = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    here = str(Path.cwd())
    if script is not None:
        return [str(place / script.name)], [here, str(script.parent), *inherited]
    return ["-m", _LAUNCHER], [str(place), here, *inherited]


def write_code(transform_key: str, source: str, script_name: str | None, place: Path) -> Path:
    """Write the recorded source where it is found before the installed one.

    A module of a package gets a copy of the package around it made of links, so that everything
    else in the package is what is installed.

    Returns:
        The file that holds the recorded source.
    """
    place.mkdir(parents=True, exist_ok=True)
    module = _module(transform_key)
    if script_name is not None or module is None:
        name = script_name or PurePosixPath(transform_key).name
        if not re.fullmatch(r"[\w.-]+", name):
            raise UsageError(f"the transform {transform_key} is no file that can be imported.")
        target = place / name
    else:
        parts = module.split(".")
        if not all(part.isidentifier() for part in parts):
            raise UsageError(f"the transform {transform_key} is no module that can be imported.")
        target = place.joinpath(*parts).with_suffix(".py")
        package = _folder_of(parts[0])
        for depth in range(1, len(parts)):
            _mirror(package, place.joinpath(*parts[:depth]))
            package = package and package / parts[depth]
        if target.with_suffix("").is_dir():  # the source of a package itself
            target = target.with_suffix("") / "__init__.py"
        target.unlink(missing_ok=True)
    target.write_text(source, encoding="utf-8")
    return target


def _folder_of(package: str) -> Path | None:
    for place in (Path.cwd(), *map(Path, sys.path)):
        if (place / package).is_dir():
            return (place / package).resolve()
    return None


def _mirror(package: Path | None, target: Path) -> None:
    if target.is_symlink():
        target.unlink()
    target.mkdir(parents=True, exist_ok=True)
    if package is None or not package.is_dir():
        (target / "__init__.py").touch()
        return
    for entry in package.iterdir():
        if entry.name == "__pycache__" or (target / entry.name).exists():
            continue
        try:
            (target / entry.name).symlink_to(entry, target_is_directory=entry.is_dir())
        except OSError:  # a system that gives links to administrators only
            copy = shutil.copytree if entry.is_dir() else shutil.copyfile
            copy(entry, target / entry.name)


def write_config(config: dict[str, Any], path: Path) -> None:
    """Write the config of the child, which may hold secrets, for this user alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(handle, "w", encoding="utf-8") as file:
        file.write(yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
