"""Take secrets out of the text of a config, and say at its head which.

The text is edited where the secrets stand, so that comments, anchors, tags and the order stay, and
what parsed before parses as before. Comments are cleaned too.
"""

import base64
import binascii
import json
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import yaml

from lamincli.redaction.names import Kind, kind_of
from lamincli.redaction.nested import Cleaner, Pairs, redacted_keys, secrets_by_name
from lamincli.redaction.text import redact_line, redact_text
from lamincli.redaction.values import REDACTED

TAKEN_OUT = "# Taken out of this copy: "
"""How the first line of a published config begins, which names what is not in it."""

_STANDARD = "tag:yaml.org,2002:"
_NO_TEXTS = {f"{_STANDARD}{name}" for name in ("int", "float", "bool", "null")}
_FLOAT = re.compile(r"[+\-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+\-]?\d+)?")  # 1e-3 is one to us
_ANCHOR = re.compile(r"(?:!\S*\s+)?(&\S+)\s")
_OBJECT = f"{_STANDARD}python/object"
_BOM = "\ufeff"

_Edits = dict[int, tuple[int, str]]


class _Text(str):
    """A scalar with the node that it was read from."""

    node: yaml.ScalarNode


def redact_config(text: str) -> str:
    """Return the text of a config file without its secrets; unchanged if it has none.

    Args:
        text: YAML or JSON, of several documents and with tags of any kind; of what is neither,
            lines that name a secret are cleaned.

    Returns:
        The text; its first line is a comment that names what was taken out, but in JSON, which
        knows no comments.
    """
    try:
        nodes = list(yaml.compose_all(text, Loader=yaml.SafeLoader))
        clean = _edited(text, _edits(text, nodes))
        documents = list(yaml.load_all(clean, Loader=_PlainLoader))  # it builds no objects
        names = [name for document in documents for name in redacted_keys(document)]
    except (yaml.YAMLError, RecursionError, ValueError, TypeError):
        clean, names = _line_by_line(text)
    if clean == text or _is_json(text):
        return clean
    head = f"{TAKEN_OUT}{', '.join(dict.fromkeys(names)) or 'names or comments'}\n"
    return f"{_BOM}{head}{clean[1:]}" if clean.startswith(_BOM) else f"{head}{clean}"


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _line_by_line(text: str) -> tuple[str, list[str]]:
    lines = redact_text(text).splitlines(keepends=True)
    cleaned = list(map(redact_line, lines))
    number = sum(REDACTED in line for line in cleaned)
    return "".join(cleaned), [f"values in {number} lines"] if number else []


# -- edits -----------------------------------------------------------------------------------------


def _edits(text: str, nodes: list[Any]) -> _Edits:
    """Return what is to be written where: begin, end and text."""
    edits: _Edits = {}

    def note(old: Any, new: str, is_named: bool) -> None:
        if not isinstance(old, _Text):
            return
        node, begin, end = old.node, old.node.start_mark.index, old.node.end_mark.index
        earlier = edits.get(begin)
        if earlier is None or new == REDACTED:
            slice_ = text[begin:end]
            anchor = _ANCHOR.match(slice_)
            rest = "\n" if node.style in ("|", ">") and slice_.endswith("\n") else ""
            edits[begin] = (end, f"{anchor[1] + ' ' if anchor else ''}{json.dumps(new)}{rest}")

    spans: list[tuple[int, int]] = []
    values = _Values(spans)
    roots = [values.of(node) for node in nodes]
    cleaner = Cleaner(note, secrets_by_name(roots))
    for root in roots:
        cleaner.clean(root)
    for begin, end in _gaps(text, spans):
        gap = text[begin:end]
        if "#" in gap and (clean := redact_text(gap)) != gap:
            edits[begin] = (end, clean)
    return edits


def _edited(text: str, edits: _Edits) -> str:
    parts, at = [], 0
    for begin, (end, new) in sorted(edits.items()):
        if begin >= at:
            parts += [text[at:begin], new]
            at = end
    return "".join([*parts, text[at:]])


def _gaps(text: str, spans: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield what lies between the scalars: comments, tags and punctuation."""
    at = 0
    for begin, end in sorted(set(spans)):
        if begin > at:
            yield at, begin
        at = max(at, end)
    yield at, len(text)


class _Values:
    """Turn nodes into values that `Cleaner` knows, and note where their scalars stand."""

    def __init__(self, spans: list[tuple[int, int]]) -> None:
        self._spans = spans
        self._made: dict[int, Any] = {}

    def of(self, node: Any) -> Any:
        """Return the value of a node; that of an alias is the same object."""
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        if id(node) in self._made:
            return self._made[id(node)]
        if isinstance(node, yaml.SequenceNode) or node.tag == f"{_STANDARD}set":
            return self._sequence(node)
        made = self._made[id(node)] = Pairs()
        made += [(self.of(key), self.of(value)) for key, value in node.value]
        return made

    def _sequence(self, node: Any) -> Any:
        made: list[Any] = []
        self._made[id(node)] = made
        is_set = isinstance(node, yaml.MappingNode)
        items = [self.of(item[0] if is_set else item) for item in node.value]
        names = _field_names(node.tag, len(items))
        if names is not None:
            pairs = self._made[id(node)] = Pairs(zip(names, items, strict=True))
            return pairs
        made += items
        return made

    def _scalar(self, node: Any) -> Any:
        self._spans.append((node.start_mark.index, node.end_mark.index))
        is_plain = node.style is None
        if node.tag in _NO_TEXTS or (is_plain and _FLOAT.fullmatch(node.value)):
            return None
        value = node.value
        if node.tag == f"{_STANDARD}binary":
            try:
                value = base64.b64decode(value).decode("utf-8", "surrogateescape")
            except (binascii.Error, ValueError):
                value = node.value
        made = _Text(value)
        made.node = node
        return made


def _field_names(tag: str, count: int) -> list[str] | None:
    """Return the names of the items of a named tuple, whose class this process has imported.

    Of another object, its own name stands for those of its arguments: `Credentials("…")`.
    """
    if not tag.startswith(_OBJECT):
        return None
    module, _, name = tag.partition(":")[2].partition(":")[2].rpartition(".")
    fields = getattr(getattr(sys.modules.get(module), name, None), "_fields", None)
    if isinstance(fields, tuple) and len(fields) == count:
        return [str(field) for field in fields]
    return [name] * count if kind_of(name) is not Kind.NONE else None


# -- reading ---------------------------------------------------------------------------------------


class _PlainLoader(yaml.SafeLoader):
    """Read YAML of any tag as dicts, lists and scalars; hparams.yaml may hold Python objects."""


def _construct_plain(loader: Any, suffix: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        # Keys that are no text, as tuples, become text.
        return {
            key if isinstance(key, str) else str(key): loader.construct_object(value, deep=True)
            for key_node, value in node.value
            for key in (loader.construct_object(key_node, deep=True),)
        }
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return loader.construct_scalar(node)


_PlainLoader.add_multi_constructor("", _construct_plain)
_PlainLoader.add_constructor(
    f"{_STANDARD}map", lambda loader, node: _construct_plain(loader, "", node)
)
