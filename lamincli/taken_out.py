"""What was taken out of a published config has to be given again before it is trained with.

A published config holds a placeholder in the place of every secret. Where such a config is parsed,
those values are left out of it, so that no type refuses the placeholder, and noted; what neither
the command line, a later config nor the environment gives is asked for by name.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lamincli.differences import leaves
from lamincli.options import options_in
from lamincli.redaction import REDACTED, redact, redacted_keys

_CLASS = "class_path"
_ARGUMENTS = ("init_args", "dict_kwargs")
_VARIABLE = re.compile(r"\$\{oc\.env:(\w+)\}")  # of OmegaConf; one with a default may hold a secret
_NOTHING = object()


@dataclass
class TakenOut:
    """What was taken out of the configs of one job.

    Args:
        of: What a config is called, by its local path, where that is not what the user typed.
        given: Values for items of lists, which no option of a parser reaches, by their keys.
        keys: The keys of what was taken out, with what the config is called.
        sectioned: Those that begin with a stage, for the config was given before that.
        classes: The classes whose arguments some of them are, by the key of the class.
        variables: What stands in a config for the value of an environment variable, by its key,
            where the parser resolves it.
    """

    of: dict[str, str] = field(default_factory=dict)
    given: dict[str, str] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    sectioned: set[str] = field(default_factory=set)
    classes: dict[str, str] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Leave out, and note, what was taken out of the configs that are parsed meanwhile."""
        token = _noting.set(self)
        try:
            yield
        finally:
            _noting.reset(token)

    def take_from(self, words: Sequence[str]) -> list[str]:
        """Keep the values that are given for items of lists; returns the other words.

        Args:
            words: Those of a command line, with configs that can be read.
        """
        configs = [_content(value) for value in options_in(words, "--config", "-c")]
        keys = {key for config in configs for key in redacted_keys(config) if _is_in_list(key)}
        rest: list[str] = []
        following = iter(words)
        for word in following:
            option, equals, value = word.partition("=")
            key = option.removeprefix("--")
            if key not in keys or key == option:
                rest.append(word)
            else:
                self.given[key] = value if equals else next(following, "")
        return rest

    @staticmethod
    def are_any(words: Sequence[str]) -> bool:
        """Tell whether something was taken out of the configs that words name."""
        return any(REDACTED in _text(value) for value in options_in(words, "--config", "-c"))

    def missing(self, given: Any, subcommand: str | None) -> dict[str, str]:
        """Say what has to be given: a sentence for each key.

        Args:
            given: What was given, without defaults.
            subcommand: The stage, whose options are a section of it.
        """
        section = (given.get(subcommand) or {}) if subcommand else given
        missing = {}
        for key, of in self.keys.items():
            stage, _, name = key.partition(".") if key in self.sectioned else (subcommand, "", key)
            values = given if key in self.sectioned else section
            if stage == subcommand and not self._is_given(key.split("."), values):
                missing[name] = f"{name} was taken out of {of}. Give it: --{name} VALUE"
        return missing

    def _is_given(self, parts: list[str], section: Any) -> bool:
        if _value(section, parts) is not _NOTHING:
            return True
        # The arguments of a class are not those of another one that was given in its place.
        for depth, part in enumerate(parts):
            was = self.classes.get(".".join(parts[:depth]))
            if part in _ARGUMENTS and was is not None:
                kind = _value(section, [*parts[:depth], _CLASS])
                if kind not in (_NOTHING, was):
                    return True
        return False

    def leave_out(self, content: str, path: str | os.PathLike[str], has_sections: bool) -> str:
        """Return the text of a config without what was taken out of it, which is noted."""
        try:
            root = yaml.compose(content, Loader=yaml.SafeLoader)
        except yaml.YAMLError:  # of another format: the placeholder is found in the end
            return content
        if not isinstance(root, yaml.MappingNode):
            return content
        typed = str(path)
        of = self.of.get(os.path.abspath(typed), typed) if typed else "a config that was given"
        before = set(self.keys)
        rest = self._rest(root, "", of, is_in_list=False) or yaml.MappingNode(root.tag, [])
        self.sectioned |= set(self.keys) - before if has_sections else set()
        return yaml.serialize(rest, Dumper=yaml.SafeDumper, width=2**30, allow_unicode=True)

    def _rest(self, node: yaml.Node, key: str, of: str, is_in_list: bool) -> yaml.Node | None:
        """Return a node without what was taken out below it; `None` if that is all of it.

        An item of a list stays, for the places of the others count; it is found in the end.
        """
        if isinstance(node, yaml.ScalarNode) and REDACTED in node.value:
            if key in self.given:
                # As a word of the command line: the type makes of it what it is.
                return yaml.ScalarNode("tag:yaml.org,2002:str", self.given[key], style='"')
            if is_in_list:
                return node
            self.keys[key] = of
            return None
        if isinstance(node, yaml.SequenceNode):
            items = [self._rest(item, f"{key}.{i}", of, True) for i, item in enumerate(node.value)]
            return yaml.SequenceNode(node.tag, items, flow_style=node.flow_style)
        if not isinstance(node, yaml.MappingNode):
            return node
        pairs = []
        for name, value in node.value:
            if name.value == _CLASS and isinstance(value, yaml.ScalarNode):
                self.classes[key] = value.value
            below = f"{key}.{name.value}" if key else str(name.value)
            is_merged = name.tag == "tag:yaml.org,2002:merge"  # what is below has other keys
            rest = value if is_merged else self._rest(value, below, of, is_in_list)
            if rest is not None:
                pairs.append((name, rest))
        if node.value and not pairs:
            return None
        return yaml.MappingNode(node.tag, pairs, flow_style=node.flow_style)

    def note_variables(self, content: str, has_sections: bool) -> None:
        """Note the values of a config that are those of environment variables."""
        try:
            found = leaves(yaml.safe_load(content))
        except yaml.YAMLError:
            return
        for key, value in found:
            if isinstance(value, str) and _VARIABLE.fullmatch(value):
                self.variables[key.partition(".")[2] if has_sections else key] = value


def with_variables(text: str, variables: Mapping[str, str]) -> str:
    """Return the text of a config that names environment variables where it was given them.

    So a published config says where a secret is, and nothing has to be taken out.

    Args:
        text: The resolved config.
        variables: As in `TakenOut`.
    """
    content = yaml.safe_load(text) if variables else None
    is_changed = False
    for key in redacted_keys(redact(content)):
        *above, last = key.split(".")
        said = _VARIABLE.fullmatch(variables.get(key, ""))
        place = _value(content, above)
        if said and isinstance(place, dict) and place[last] == os.environ.get(said[1]):
            place[last] = said[0]
            is_changed = True
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True) if is_changed else text


_noting: ContextVar[TakenOut | None] = ContextVar("_noting", default=None)


def without_placeholders(
    content: str, path: str | os.PathLike[str], has_sections: bool, has_variables: bool = False
) -> str:
    """Return the text of a config that is parsed just now, without what was taken out of it.

    Args:
        content: The text.
        path: Its file, if it has one.
        has_sections: Whether the options of each stage are a section of it.
        has_variables: Whether the parser resolves what stands for environment variables.
    """
    noting = _noting.get()
    if noting is not None and has_variables and "${" in content:
        noting.note_variables(content, has_sections)
    if noting is None or REDACTED not in content:
        return content
    return noting.leave_out(content, path, has_sections)


def mistakes_in(config: Mapping[str, Any]) -> list[str]:
    """Name the placeholders in a parsed config, of which nothing may be made."""
    return [
        f"{key} holds {REDACTED}, which stands for what was taken out of a published copy. "
        f"Give it: --{key} VALUE"
        for key in dict.fromkeys([*redacted_keys(config), *_with_redacted_names(config)])
    ]


def _with_redacted_names(value: Any, key: str = "") -> Iterator[str]:
    """Yield the keys of mappings in which a name was taken out, with which none can be named."""
    if isinstance(value, Mapping):
        if any(REDACTED in str(name) for name in value):
            yield key
        for name, item in value.items():
            yield from _with_redacted_names(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from _with_redacted_names(item, f"{key}.{i}")


def _is_in_list(key: str) -> bool:
    return any(part.isdecimal() for part in key.split("."))


def _value(values: Any, parts: Sequence[str]) -> Any:
    for part in parts:
        try:
            values = values[part]
        except (KeyError, TypeError, IndexError, AttributeError):
            return _NOTHING
    return values


def _text(value: str) -> str:
    """Return the text of a config, which is a file or stands among the words itself."""
    try:
        return Path(value).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return value


def _content(value: str) -> Any:
    text = _text(value)
    if REDACTED not in text:
        return None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None
