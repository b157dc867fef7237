"""Take secrets out of nested values: config, parameters, hyper-parameters, command lines."""

import copy
import re
import shlex
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from lamincli.redaction.known import spellings_of, without_values
from lamincli.redaction.names import Kind, kind_of
from lamincli.redaction.text import redact_text
from lamincli.redaction.values import REDACTED, is_secret

_NAMES = ("name", "key", "header", "field", "option", "variable", "var", "param", "arg", "env")
_VALUES = ("value", "val", "default", "content", "secret")
_DEEPEST = 100
_URL_AS_PATH = re.compile(r"^([A-Za-z][\w+.\-]+):/(?=[^/])")
_RECURSIVE = "<recursive>"
_UNDER_WAY = object()


class Pairs(list[tuple[Any, Any]]):
    """A mapping that may have a key twice, as the text of a config may."""


class Cleaner:
    """Copy a value without its secrets.

    Args:
        tell: Receives every text that is taken out or changed, what is left of it, and whether its
            name gave it away.
        known: Secrets that are taken out wherever they are.
    """

    def __init__(
        self,
        tell: Callable[[Any, str, bool], None] | None = None,
        known: Iterable[str] = (),
    ) -> None:
        self._tell = tell
        self._known = spellings_of(known)
        # What was met, kept alive so that no other object gets its id, and what became of it.
        self._met: dict[tuple[int, Kind], tuple[Any, Any]] = {}

    def clean(self, value: Any, kind: Kind = Kind.NONE, depth: int = 0) -> Any:
        """Return a value without its secrets.

        Args:
            value: The value.
            kind: What its name says.
            depth: How deep it lies.
        """
        if value is None or isinstance(value, (bool, int, float, complex)):
            return value
        if isinstance(value, str):
            return self._text(value, kind)
        if isinstance(value, (bytes, bytearray)):
            return self._bytes(value, kind)
        if isinstance(value, PurePath):
            return self._path(value, kind)
        if depth > _DEEPEST:
            return REDACTED
        met = (id(value), kind)
        if met in self._met:
            known = self._met[met][1]
            return _RECURSIVE if known is _UNDER_WAY else known
        self._met[met] = (value, _UNDER_WAY)
        try:
            clean = self._container(value, kind, depth + 1)
        except Exception:  # an object of any kind, which may refuse anything
            clean = REDACTED
        self._met[met] = (value, clean)
        return clean

    def _text(self, text: str, kind: Kind) -> str:
        is_named = is_secret(text, kind)
        clean = REDACTED if is_named else redact_text(without_values(text, self._known))
        if clean == text:
            return text
        if self._tell is not None:
            self._tell(text, clean, is_named)
        return clean

    def _bytes(self, value: bytes | bytearray, kind: Kind) -> bytes | bytearray:
        text = value.decode("utf-8", "surrogateescape")
        clean = self._text(text, kind)
        return value if clean == text else type(value)(clean.encode("utf-8", "surrogateescape"))

    def _path(self, path: PurePath, kind: Kind) -> Any:
        # As a path, a URL has lost one of its slashes.
        text = _URL_AS_PATH.sub(r"\1://", str(path))
        clean = self._text(text, kind)
        return path if clean == text else type(path)(clean)

    def _container(self, value: Any, kind: Kind, depth: int) -> Any:
        if isinstance(value, Pairs):
            return Pairs(self._items(value, kind, depth))
        if isinstance(value, Mapping):
            return _like(value, _with_own_keys(self._items(value.items(), kind, depth)))
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            items = self._items(zip(value._fields, value, strict=True), kind, depth)
            return type(value)(*(item for _, item in items))
        if isinstance(value, (list, tuple, deque)):
            return _like(value, self._sequence(value, kind, depth))
        if isinstance(value, (set, frozenset)):
            return type(value)(self.clean(item, kind, depth) for item in value)
        if (fields := _fields_of(value)) is not None:
            return _with_fields(value, dict(self._items(fields.items(), kind, depth)))
        return REDACTED if kind is Kind.SURE else value

    def _items(
        self, items: Iterable[tuple[Any, Any]], kind: Kind, depth: int
    ) -> list[tuple[Any, Any]]:
        items = list(items)
        values = _values_of_names(items)
        clean = []
        for key, item in items:
            name = ".".join(map(str, key)) if isinstance(key, tuple) else str(key)
            own = values.get(name, kind_of(name))
            # All that lies below the name of a secret is secret, whatever it is called there.
            below = max(own, kind) if kind >= Kind.PLACE else own
            is_name = isinstance(key, (str, bytes, tuple))
            new = self.clean(key, Kind.NONE, depth) if is_name else key
            clean.append((new, self.clean(item, below, depth)))
        return clean

    def _sequence(self, items: Sequence[Any], kind: Kind, depth: int) -> list[Any]:
        # Below the name of a secret, the first of two may be one as well.
        if kind < Kind.PLACE and _are_pairs(items):
            pairs = [dict(self._items([tuple(pair)], kind, depth)) for pair in items]
            made = (next(iter(pair.items())) for pair in pairs)
            return [_like(old, list(new)) for old, new in zip(items, made, strict=True)]
        if _is_pair(items):
            of_second = min(kind_of(items[0]), Kind.LIKELY)
            is_name = kind_of(items[1]) >= Kind.LIKELY
            second = kind if is_name else max(kind, of_second)
            return [self.clean(items[0], kind, depth), self.clean(items[1], second, depth)]
        clean, of_next = [], Kind.NONE
        for item in items:
            is_option = isinstance(item, str) and re.match(r"--?[A-Za-z]", item) is not None
            clean.append(self.clean(item, kind if is_option else max(kind, of_next), depth))
            of_next = kind_of(item) if is_option and "=" not in item else Kind.NONE
        return clean


def redact(value: Any, key: str = "") -> Any:
    """Return a copy of a nested value without its secrets. It never raises.

    Args:
        value: Dicts, lists, tuples, sets, named tuples, dataclasses, namespaces, paths, bytes and
            scalars, nested to any depth; what is of another kind is left as it is.
        key: The key under which the value stands.

    Returns:
        The same structure; secrets are replaced by `REDACTED`, everything else is equal. Numbers
        and booleans are never secrets.
    """
    found: set[str] = set()
    clean = _noting(found).clean(value, kind_of(key))
    # A secret that has a name in one place may stand in another without.
    return Cleaner(known=found).clean(value, kind_of(key)) if spellings_of(found) else clean


def secrets_by_name(value: Any) -> set[str]:
    """Return the texts in a nested value that are secrets because of their names."""
    found: set[str] = set()
    _noting(found).clean(value)
    return found


def _noting(found: set[str]) -> Cleaner:
    def note(text: Any, clean: str, is_named: bool) -> None:
        if is_named:
            found.add(str(text))

    return Cleaner(note)


def redacted_keys(value: Any) -> list[str]:
    """Return the dotted paths of the values that were taken out of a nested value, in order.

    Items of lists are counted from zero: ``data.init_args.headers.0.value``.
    """
    return list(_redacted_below(value, 0))


def _redacted_below(value: Any, depth: int) -> Iterable[str]:
    if isinstance(value, str):
        return [""] if REDACTED in value else []
    if depth > _DEEPEST:
        return []
    if isinstance(value, Mapping):
        items: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    else:
        return []
    below = ((str(key), path) for key, item in items for path in _redacted_below(item, depth + 1))
    return (f"{key}.{path}" if path else key for key, path in below)


def redact_argv(argv: Sequence[str]) -> str:
    """Return a command line, quoted for a shell, without its secrets.

    ``--a.token X``, ``--a.token=X`` and secrets inside JSON or YAML values are found.
    """
    redacted: list[str] = []
    option = ""
    for word in argv:
        if re.match(r"--[A-Za-z_]", word):
            option, equals, value = word.partition("=")
            clean = redact_text(word) if not equals else f"{option}={_argument(option, value)}"
            redacted.append(clean)
            option = "" if equals else option
        else:
            redacted.append(_argument(option, word))  # a list may take several words
    return shlex.join(redacted)


def _argument(option: str, text: str) -> str:
    import yaml

    kind = kind_of(option)
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError):
        value = text
    if isinstance(value, (dict, list)):
        clean = redact(value, option)
        if clean != value:
            dumped: str = yaml.safe_dump(clean, default_flow_style=True, width=10**9)
            return dumped.strip()
        return redact_text(text)
    if value is None or isinstance(value, (bool, int, float)):
        return text
    return REDACTED if is_secret(text, kind) else redact_text(text)


# -- the shapes of values --------------------------------------------------------------------------


def _values_of_names(items: Sequence[tuple[Any, Any]]) -> dict[str, Kind]:
    """Return the kinds of values whose names stand beside them: `{name: api_key, value: X}`."""
    named = {key: item for key, item in items if isinstance(key, str) and isinstance(item, str)}
    kinds = [kind_of(named[name]) for name in _NAMES if name in named]
    kind = max(kinds, default=Kind.NONE)
    return dict.fromkeys(_VALUES, kind) if kind is not Kind.NONE else {}


def _is_pair(items: Sequence[Any]) -> bool:
    """Tell whether items are a name of a secret, and what may be one: `["api_key", "X"]`."""
    is_pair = len(items) == 2 and all(isinstance(item, str) for item in items)
    return is_pair and items[0][:1] != "-" and kind_of(items[0]) is not Kind.NONE


def _are_pairs(items: Sequence[Any]) -> bool:
    """Tell whether items are pairs of names and values: `[["api_key", "X"], ["user", "me"]]`."""
    return bool(items) and all(
        isinstance(item, (list, tuple))
        and len(item) == 2
        and isinstance(item[0], str)
        and item[0][:1] != "-"
        for item in items
    )


def _with_own_keys(items: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """Return a dict of items, where keys that have become equal are told apart by a number."""
    found: dict[Any, Any] = {}
    for key, item in items:
        own, number = key, 2
        while own in found:
            own, number = f"{key} ({number})", number + 1
        found[own] = item
    return found


def _like(value: Any, items: Any) -> Any:
    """Return items in a container of the same type, or of the plain one if that refuses."""
    if type(value) in (dict, list):
        return items
    if isinstance(value, tuple) and type(value) is tuple:
        return tuple(items)
    try:
        made = copy.copy(value)
        if isinstance(value, Mapping):
            made.clear()
            made.update(items)
        elif isinstance(value, tuple):
            made = type(value)(items)
        else:
            made.clear()
            made.extend(items)
    except Exception:  # one that cannot be changed, or wants other arguments
        return items if not isinstance(value, tuple) else tuple(items)
    return made


def _fields_of(value: Any) -> dict[str, Any] | None:
    """Return the fields of a dataclass, an attrs class or a namespace; `None` of other objects."""
    if isinstance(value, type):
        return None
    kinds = {kind.__name__ for kind in type(value).__mro__}
    if kinds & {"Namespace", "SimpleNamespace"}:
        return dict(vars(value))
    if names := getattr(type(value), "__dataclass_fields__", None):
        return {name: getattr(value, name) for name in names if hasattr(value, name)}
    if attributes := getattr(type(value), "__attrs_attrs__", None):
        return {one.name: getattr(value, one.name) for one in attributes}
    return None


def _with_fields(value: Any, fields: dict[str, Any]) -> Any:
    made = copy.copy(value)
    for name, item in fields.items():
        if getattr(value, name) is not item:
            object.__setattr__(made, name, item)
    return made
