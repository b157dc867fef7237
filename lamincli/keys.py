"""Artifact keys: the one that is nearest to a path, and why a text is none.

Plain names are left as they are. What a file system takes and LaminDB refuses, as ``../x``, has a
key all the same, so that a training is not refused for the folder it writes to. Pure.

Source: `lamindb.models.sqlrecord.check_key`, and the length of `Artifact.key`.
"""

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

NAME = "name"
"""Under which name the notes of a checkpoint hold its own, if that has folders in it."""

MOST_CHARACTERS = 1024
"""Length of the column of keys."""

_MOST_BYTES_OF_NAME = 250  # a file system takes 255; a file that is being written has a suffix
_REST_CHARACTERS = len("/checkpoints/") + 16 + _MOST_BYTES_OF_NAME  # with the uid of the run
_REFUSED = re.compile(r"[\\\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_MANAGED = ".lamindb/"  # where lamindb itself chooses the names
_FIELD = re.compile(r"\{.*?\}")
_OF_LOGGER = ("save_dir", "name", "version", "sub_dir")


def as_key(path: str, is_virtual: bool = True) -> str:
    """Return the key that is nearest to a path.

    Steps up and characters that no key has are left out or replaced, and nothing else is changed.

    Args:
        path: Names with slashes between them.
        is_virtual: Whether LaminDB chooses the place in the storage. Else the key is that place,
            and must not lead out of it.
    """
    text = path.replace("\\", "/") if os.name == "nt" else path
    if {".", ".."} & set(text.split("/")):
        text = _without_steps(text)
    text = _REFUSED.sub("_", text).replace(_MANAGED, f"_{_MANAGED[1:]}")
    return text if is_virtual else text.lstrip("/")


def _without_steps(path: str) -> str:
    names: list[str] = []
    for name in path.split("/"):
        if name == "..":
            names = names[:-1]
        elif name not in ("", "."):
            names.append(name)
    return "/" * path.startswith("/") + "/".join(names)


def name_below(path: str, folder: str) -> str:
    """Return the name of a file, with the folders in which it lies below another one.

    Of a file that lies elsewhere, it is the name alone.
    """
    if "://" in path or "://" in folder:
        inside = path.removeprefix(folder.rstrip("/") + "/")
        return inside if inside != path else path.rpartition("/")[2]
    inside = os.path.relpath(path, folder or os.curdir).replace(os.sep, "/")
    return os.path.basename(path) if inside.startswith("../") else inside


def split_key(key: str, notes: Mapping[str, Any]) -> tuple[str, str]:
    """Split the key of a checkpoint into the prefix of its callback and the name below that.

    Args:
        key: The key.
        notes: The notes of the checkpoint, which hold a name that has folders in it.
    """
    depth = str(notes.get(NAME) or "").count("/") + 1
    names = key.split("/")
    return "/".join(names[:-depth]), "/".join(names[-depth:])


def why_no_key(key: str) -> str | None:
    """Say why a text that shall be a key cannot be one; `None` if it can."""
    if found := _REFUSED.search(key):
        what = "a backslash" if found[0] == "\\" else f"the character {found[0]!r}"
        return f"it holds {what}, which no key may have. Leave it out."
    names = key.split("/")
    is_path = "://" in key or key.startswith("lamin:")
    if is_path or not all(names) or {".", ".."} & set(names) or _MANAGED in key:
        return "it is no key. Write names with slashes between them: folder/predictions.parquet."
    if len(key) > MOST_CHARACTERS:
        return f"it has {len(key)} characters, and a key has {MOST_CHARACTERS} at most. Shorten it."
    return _why_too_long(names)


def _why_too_long(names: Iterable[str]) -> str | None:
    for name in names:
        if (size := len(os.fsencode(name))) > _MOST_BYTES_OF_NAME:
            return (
                f"{name[:16]}… has {size} bytes, and the name of a file has "
                f"{_MOST_BYTES_OF_NAME} at most. Shorten it."
            )
    return None


def mistakes_in_paths(checkpoints: Mapping[str, Mapping[str, Any]], trainer: Any) -> list[str]:
    """Find the paths of a config to which nothing can be written, or that give no key.

    Args:
        checkpoints: The arguments of the checkpoint callbacks, by their place in the config.
        trainer: The arguments of the trainer, a mapping.
    """
    mistakes = []
    prefixes: dict[str, tuple[str, str]] = {}
    for place, arguments in checkpoints.items():
        folder, name = arguments.get("dirpath"), arguments.get("filename")
        if name is not None and (why := _why_no_path(_FIELD.sub("", str(name)))):
            mistakes.append(f"{place}.filename: {why}")
        if folder is None:
            continue
        if why := _why_no_path(str(folder)):
            mistakes.append(f"{place}.dirpath: {why}")
            continue
        text = os.path.normpath(str(folder))
        other, before = prefixes.setdefault(as_key(text).rstrip("/"), (place, text))
        if before != text:
            mistakes.append(
                f"{place}.dirpath {text}: artifact keys are made of it, and they are those of "
                f"{other}.dirpath {before}. Give one of the folders another name."
            )
    root = str(trainer.get("default_root_dir") or "")
    if why := _why_unwritable(root):
        mistakes.append(f"trainer.default_root_dir: {why}")
    loggers = trainer.get("logger")
    loggers = loggers if isinstance(loggers, list) else [loggers]
    for i, logger in enumerate(loggers):
        place = f"trainer.logger[{i}]" if len(loggers) > 1 else "trainer.logger"
        arguments = (logger.get("init_args") or {}) if hasattr(logger, "get") else {}
        for argument in _OF_LOGGER:
            value = arguments.get(argument)
            if isinstance(value, (str, os.PathLike)) and (why := _why_no_path(str(value))):
                mistakes.append(f"{place}.init_args.{argument}: {why}")
    return mistakes


def _why_no_path(path: str) -> str | None:
    if why := _why_unwritable(path):
        return why
    if (length := len(as_key(path))) > (most := MOST_CHARACTERS - _REST_CHARACTERS):
        return f"it has {length} characters, and artifact keys leave room for {most}. Shorten it."
    return None


def _why_unwritable(path: str) -> str | None:
    if "\0" in path:
        return f"{path!r} holds the character '\\x00', which no path may have. Leave it out."
    return _why_too_long(path.split("/"))
