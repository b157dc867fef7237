"""Options that must be known before anything is parsed: what to import, and how to read configs."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import yaml

from lamincli.errors import UsageError, first_line
from lamincli.options import options_in


def imports(words: Sequence[str]) -> list[str]:
    """Return the modules of ``--lamin.imports``, from the words and from the configs they name."""
    found: list[str] = []
    for value in _values("imports", words):
        found += [str(one) for one in (value if isinstance(value, list) else [value])]
    return list(dict.fromkeys(found))


def parser_mode(words: Sequence[str]) -> str | None:
    """Return ``--lamin.parser_mode``, likewise; the last one holds."""
    modes = _values("parser_mode", words)
    return str(modes[-1]) if modes else None


def import_modules(names: Sequence[str]) -> None:
    """Import modules, so that their classes can be named without them.

    Raises:
        UsageError: One cannot be imported, or is no name of a module.
    """
    for name in names:
        if not all(part.isidentifier() for part in name.split(".")):
            raise UsageError(
                f"--lamin.imports {name}: that is no name of a module, as in my_project.models."
            )
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # an import within the module: its traceback says where
            raise UsageError(
                f"--lamin.imports {name}: there is no module of that name here. Start in the "
                "folder of the project, or install it."
            ) from error


def use_mode(parsers: Sequence[Any], mode: str | None) -> None:
    """Let parsers read configs in a mode of jsonargparse.

    Raises:
        UsageError: There is no such mode, or its package is missing.
    """
    try:
        for parser in parsers if mode is not None else ():
            parser.parser_mode = mode
    except (ValueError, ImportError) as error:
        raise UsageError(
            f"--lamin.parser_mode {mode}: {first_line(error)}. For omegaconf: pip install omegaconf"
        ) from error


def _values(name: str, words: Sequence[str]) -> list[Any]:
    """Return all values of an option of ours; those of the words come last, for they win."""
    found = []
    for file in options_in(words, "--config", "-c"):
        config = _read(file)
        sections = [config, *config.values()]
        groups = [one.get("lamin") for one in sections if isinstance(one, Mapping)]
        found += [one[name] for one in groups if isinstance(one, Mapping) and one.get(name)]
    typed = options_in(words, f"--lamin.{name}", f"--lamin.{name}+")
    with suppress(yaml.YAMLError):  # the parser refuses it
        found += [value for word in typed if (value := yaml.safe_load(word))]
    return found


def _read(file: str) -> Mapping[str, Any]:
    """Return a config, or what is typed in the place of one; empty where the parser will refuse."""
    try:
        with open(file, encoding="utf-8") as opened:
            content = yaml.safe_load(opened)
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return {}
    return content if isinstance(content, Mapping) else {}
