"""Take secrets out of text: logs, messages, command lines in strings, comments, source lines.

A secret is found by its form, as part of a URL, or by a name before it: ``api_key=…``,
``"token": "…"``, ``--password …``, ``Authorization: Token …``. A name that is only likely to stand
before a secret, as ``token``, needs a value that looks like one.

The time is linear in the text. Names are looked for in lines that hold a part of one.
"""

import base64
import binascii
import re
from functools import cache

from lamincli.redaction.forms import without_known_forms
from lamincli.redaction.known import without_known_values
from lamincli.redaction.named import without_named
from lamincli.redaction.names import kind_of
from lamincli.redaction.urls import without_credentials
from lamincli.redaction.values import REDACTED, is_number, is_secret

_WORD = re.compile(r"[\w.]{0,19}")  # shorter than any secret that is known by its form
_BASIC = re.compile(
    r"(?<!\w)(?P<name>basic\s+)(?P<value>[A-Za-z0-9+/]{8,2000}={0,2})", re.IGNORECASE
)
# Programs and files whose grammar says where the secret is.
_GRAMMARS: tuple[tuple[str, str, str], ...] = (
    (
        "password",
        r"\b(?:login|account|default)\s+\S{1,200}\s+(?:\S{1,200}\s+){0,3}password\s+",
        r"\S+",
    ),
    ("password", r"\bmachine\s+\S{1,200}\s+password\s+", r"\S+"),
    (
        "curl",
        r"\bcurl\s[^|;&]{0,200}?(?<=\s)(?:-u|--user)[=\s]\s{0,5}[\"']?[^\s:\"']{0,200}:",
        r"[\"']?[^\s\"']+",
    ),
    ("sshpass", r"\bsshpass\s+-p\s{0,5}", r"\S+"),
    (
        " -p",
        r"\b(?:docker|podman|helm|az|oc)\b[^\n]{0,40}\slogin\b[^\n]{0,100}?\s-p\s{0,5}",
        r"\S+",
    ),
    (":5432:", r"(?<![\w.\-*])[\w.\-*]{1,200}:5432:[\w*\-]{1,100}:[\w*\-]{1,100}:", r"[^\s\"']+"),
)


def redact_text(text: str) -> str:
    """Return a text without secrets.

    Args:
        text: Of any length and kind; the time is linear in its length.
    """
    text = without_known_values(text)
    if _WORD.fullmatch(text):  # as most values of a config are
        return text
    text = without_known_forms(text)
    if "://" in text:
        text = without_credentials(text)
    lower = text.lower()
    for word, before, secret in _GRAMMARS:
        if word in lower:
            text = _grammar(before, secret).sub(rf"\g<before>{REDACTED}", text)
    if "basic" in lower:
        text = _BASIC.sub(_clean_basic, text)
    return without_named(text)


def redact_line(line: str) -> str:
    """Return a line of a config that cannot be parsed, without its secrets."""
    named = re.match(r"""(\s*-?\s*["']?([\w.\-]+)["']?\s*[:=]\s*)(\S.*)""", line)
    if named is not None:
        value = named[3].rstrip(" ,;").strip("\"'")
        if not is_number(value) and is_secret(value, kind_of(named[2])):
            return f"{named[1]}{REDACTED}\n" if value[:1] not in "|>" else redact_text(line)
    return redact_text(line)


@cache
def _grammar(before: str, secret: str) -> "re.Pattern[str]":
    # What is a reference, or was taken out already, stays as it is.
    return re.compile(rf"(?P<before>{before})(?!\*\*\*|[\"']?\$[{{(A-Z]){secret}", re.IGNORECASE)


def _clean_basic(match: "re.Match[str]") -> str:
    try:
        padding = "=" * (-len(match["value"]) % 4)
        pair = base64.b64decode(match["value"] + padding, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return match[0]
    return f"{match['name']}{REDACTED}" if ":" in pair and pair.isprintable() else match[0]
