"""Find secrets in source code, which is published as it is: code that was changed did not run."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lamincli.redaction.forms import without_known_forms
from lamincli.redaction.names import Kind, kind_of
from lamincli.redaction.text import redact_text
from lamincli.redaction.urls import without_credentials
from lamincli.redaction.values import is_secret, looks_random

_NAME = re.compile(r"[A-Za-z]+(?:[_-][A-Za-z]+)+|[a-z]+(?:[A-Z][a-z]+)+")


@dataclass(frozen=True, order=True)
class HardCoded:
    """A secret in source code. Its value is not kept.

    Args:
        line: The line, from 1.
        name: What it is called; empty where it has no name.
    """

    line: int
    name: str = ""

    def __str__(self) -> str:
        return f"{self.name} in line {self.line}" if self.name else f"line {self.line}"


def secrets_in_code(code: str) -> list[HardCoded]:
    """Return the secrets in a Python file, by line; one a line.

    Code that Python does not parse, as that of a notebook with its magics, is read line by line.
    """
    try:
        found = list(_named(ast.parse(code)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        found = []
        for number, line in enumerate(code.splitlines(), 1):
            if re.search("[\"']", line) and redact_text(line) != line:
                found.append(HardCoded(number, _name_in(line)))
    known = {one.line for one in found}
    for number, line in enumerate(code.splitlines(), 1):
        if number not in known and without_credentials(without_known_forms(line)) != line:
            found.append(HardCoded(number, _name_in(line)))
    first: dict[int, HardCoded] = {}
    for one in sorted(found):
        if not first.get(one.line, HardCoded(0)).name:
            first[one.line] = one
    return list(first.values())


def _name_in(line: str) -> str:
    named = re.match(r"\s*(?:self\.)?([A-Za-z_]\w*)\s*(?::[^=]*)?=[^=]", line)
    return named[1] if named is not None else ""


def _named(tree: ast.AST) -> Iterator[HardCoded]:
    """Yield the texts that stand under the name of a secret."""
    for node in ast.walk(tree):
        for name, value in _names_and_values(node):
            if _is_hard_coded(name, value):
                yield HardCoded(value.lineno, name)
        if isinstance(node, ast.Call) and _called(node.func) == "login":  # wandb.login(key="…")
            arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
            for text in filter(_is_text, arguments):
                if looks_random(text.value):  # type: ignore[attr-defined]
                    yield HardCoded(text.lineno, "login")


def _names_and_values(node: ast.AST) -> Iterator[tuple[str, Any]]:
    if isinstance(node, ast.Assign):
        for target in node.targets:
            yield from _pairs(target, node.value)
    elif isinstance(node, (ast.AnnAssign, ast.NamedExpr)) and node.value is not None:
        yield _called(node.target), node.value
    elif isinstance(node, ast.keyword):
        yield node.arg or "", node.value
    elif isinstance(node, ast.Dict):
        for key, value in zip(node.keys, node.values, strict=True):
            yield _text_of(key), value
    elif isinstance(node, ast.arguments):
        arguments = [*node.posonlyargs, *node.args]
        defaults = node.defaults
        for argument, value in zip(
            arguments[len(arguments) - len(defaults) :], defaults, strict=True
        ):
            yield argument.arg, value
        for argument, default in zip(node.kwonlyargs, node.kw_defaults, strict=True):
            yield argument.arg, default
    elif isinstance(node, ast.Call):
        # setenv("API_KEY", "…"), add_argument("--api-key", default="…")
        if len(node.args) > 1:
            yield _text_of(node.args[0]), node.args[1]
        if node.args:
            for keyword in node.keywords:
                if keyword.arg == "default":
                    yield _text_of(node.args[0]), keyword.value


def _pairs(target: ast.expr, value: ast.expr) -> Iterator[tuple[str, Any]]:
    are_several = isinstance(target, (ast.Tuple, ast.List)) and isinstance(
        value, (ast.Tuple, ast.List)
    )
    if are_several and len(target.elts) == len(value.elts):  # type: ignore[attr-defined]
        for one, item in zip(target.elts, value.elts, strict=True):  # type: ignore[attr-defined]
            yield from _pairs(one, item)
    else:
        yield _called(target), value


def _called(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return node.attr
    return _text_of(node.slice) if isinstance(node, ast.Subscript) else ""


def _text_of(node: Any) -> str:
    return node.value if _is_text(node) else ""


def _is_text(node: Any) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _is_hard_coded(name: str, value: Any) -> bool:
    if isinstance(value, (ast.List, ast.Tuple, ast.Set)):
        return any(_is_hard_coded(name, item) for item in value.elts)
    if not name or not _is_text(value):
        return False
    text = value.value
    # In code a text is often the name of a secret: SECRET = "client_secret", TOKEN = "token".
    is_name = _NAME.fullmatch(text) is not None and kind_of(text) >= Kind.LIKELY
    return is_secret(text, kind_of(name)) and not is_name and text.lower() not in name.lower()
