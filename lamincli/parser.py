"""The argument parser of the command line: its errors say what was probably meant."""

from __future__ import annotations

import importlib
import os
import re
import sys
from inspect import signature
from typing import Any, NoReturn

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from lamincli import console
from lamincli.errors import did_you_mean
from lamincli.taken_out import without_placeholders

HELP_OF_REFERENCES = {
    "--config": "A file, or a config in LaminDB: lamin:run/RUN/config.",
    "--ckpt_path": (
        "A file, a URL, or a checkpoint in LaminDB: lamin:run/RUN/best (or last, rank/1, a file "
        "name), lamin:artifact/UID. RUN is a uid, the beginning of one, or latest."
    ),
    "--weights_only": (
        "False also loads Python objects, whose code then runs: only for a checkpoint whose maker "
        "you trust, for whoever can write to the registry could have stored it."
    ),
}
"""What the help of Lightning's own options does not say, by option."""
_ON = ("true", "yes", "1")


class LaminArgumentParser(LightningArgumentParser):
    """Lightning's parser, whose errors name what was probably meant instead of every option."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End with a message and exit code 2, or raise where the parser was made to raise.

        ``JSONARGPARSE_DEBUG=true`` shows the traceback, as with any parser of jsonargparse.
        """
        if not self.exit_on_error or os.environ.get("JSONARGPARSE_DEBUG", "").lower() in _ON:
            super().error(message, ex)
        if message.startswith("Unexpected config: "):  # followed by all of it
            start = message.split("\n")[0].removeprefix("Unexpected config: ")
            what = f"begins: {start[:60]}" if start.strip() else "is empty"
            message = f"A config is a YAML file of options, and one given {what}"
        parser = getattr(ex, "subcommand_parser", None) or self
        if "subcommand" in message and not parser._is_subcommand_parser():
            console.tell(parser.format_usage(), stderr=True)
        console.fail(_in_short(message) + parser._did_you_mean(message))
        program = parser.prog.replace(" [options]", "")
        if stage := re.search(r"required: (fit|validate|test|predict)\.", message):
            program += f" {stage[1]}"
        console.tell(f"All options: {program} --help\n", stderr=True)
        sys.exit(2)

    def _load_config_parser_mode(
        self, content: str, path: Any = "", *args: Any, **kwargs: Any
    ) -> Namespace:
        is_resolved = self.parser_mode.startswith("omegaconf")
        has_sections = not self._is_subcommand_parser()
        content = without_placeholders(content, path, has_sections, is_resolved)
        return super()._load_config_parser_mode(content, path, *args, **kwargs)

    def _is_subcommand_parser(self) -> bool:
        return not any(hasattr(action, "_name_parser_map") for action in self._actions)

    def _did_you_mean(self, message: str) -> str:
        if re.search(r"required: (\w+\.)?model(,|$)", message):
            return ". Give --model CLASS_PATH, or model.class_path in the config file."
        if refused := re.search(r"class_path '([^']+)':\s+Option '(\w+)' is not", message):
            taken = signature(import_class(refused[1])).parameters
            hint = did_you_mean(refused[2], taken).strip()
            return "\n" + (hint or f"It takes: {', '.join(taken)}")
        if "not correspond to a subclass of" in message:
            named = re.findall(r"[A-Za-z_]\w*(?:\.\w+)+", message.partition("Given value: ")[2])
            if why := next(filter(None, map(_why_of_other_package, named)), None):
                return f"\n{why}"
        if missing := re.search(r"module '([\w.]+)' has no attribute '(\w+)'", message):
            return "\n" + did_you_mean(missing[2], dir(sys.modules.get(missing[1]))).strip()
        wrong = re.findall(r"unrecognized arguments: (--[^\s=]+)", message)
        wrong += re.findall(r"does not accept option '([^']+)'", message)
        options = [option for option in self._option_string_actions if option.startswith("--")]
        keys = [option.removeprefix("--") for option in options]
        for key in wrong:
            if hint := did_you_mean(key, options if key.startswith("--") else keys):
                return "." + hint
        return ""


def _in_short(message: str) -> str:
    """Leave out of an error what says nothing: that the type is a union, and may be none."""
    if "Does not validate against any of the Union subtypes" not in message:
        return message
    lines = [line for line in message.splitlines() if not _SAYS_NOTHING.match(line)]
    return "\n".join(lines)


_SAYS_NOTHING = re.compile(
    r"\s*(Does not validate against any|Subtypes: |Errors:|- Expected a <class 'NoneType'>|"
    r"Given value type: |Given value: (NestedArg|Namespace)\()"
)


def why_of_other_package(kind: Any) -> str | None:
    """Say why a class of `pytorch_lightning` is none of Lightning's; `None` of any other."""
    bases = kind.__mro__ if isinstance(kind, type) else ()
    if not any(base.__module__.partition(".")[0] == "pytorch_lightning" for base in bases):
        return None
    return (
        f"{class_path_of(kind)} is made of pytorch_lightning, which is a different package from "
        "lightning.pytorch. Import from the latter: import lightning.pytorch as pl"
    )


def _why_of_other_package(class_path: str) -> str | None:
    if class_path.partition(".")[0] not in sys.modules:
        return None
    try:
        return why_of_other_package(import_class(class_path))
    except (ImportError, AttributeError):
        return None


def class_path_of(kind: Any) -> str:
    """Return module and name of a class or function; of the type, where it has no name."""
    kind = kind if hasattr(kind, "__qualname__") else type(kind)
    return f"{kind.__module__}.{kind.__qualname__}"


def import_class(class_path: str) -> Any:
    """Return the class, function or method that a class path names, nested ones included.

    Raises:
        ImportError: There is no such module.
        AttributeError: The module has not got it.
    """
    module, _, names = class_path.rpartition(".")
    while True:
        try:
            found = importlib.import_module(module)
            break
        except ModuleNotFoundError as error:
            outer, _, name = module.rpartition(".")
            if not outer or error.name != module:
                raise
            module, names = outer, f"{name}.{names}"
    for name in names.split("."):
        found = getattr(found, name)
    return found
