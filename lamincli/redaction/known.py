"""Secrets that are known by their value, wherever they turn up again.

A password that the config holds under its name may stand in the log without one. What a run was
given is remembered for the life of the process, and taken out of every text that leaves.
"""

import json
import re
import sys
from collections.abc import Iterable
from urllib.parse import quote

from lamincli.redaction.values import REDACTED, is_ordinary

_SHORTEST = 8
_KNOWN: dict[str, None] = {}


def remember(secrets: Iterable[str]) -> None:
    """Remember secrets, for the life of the process."""
    _KNOWN.update(dict.fromkeys(spellings_of(secrets)))


def forget() -> None:
    """Forget all secrets."""
    _KNOWN.clear()


def without_known_values(text: str) -> str:
    """Return a text without the secrets that are remembered."""
    return without_values(text, tuple(_KNOWN)) if _KNOWN else text


def spellings_of(secrets: Iterable[str]) -> tuple[str, ...]:
    """Return how secrets may be spelled in a text: as they are, in JSON, in a URL, in Python.

    Those that are short or a word are left out, for texts are full of them.
    """
    found: dict[str, None] = {}
    for secret in sorted(secrets):
        if len(secret) >= _SHORTEST and not is_ordinary(secret) and secret not in sys.modules:
            as_url = quote(secret, safe="", errors="replace")
            found |= dict.fromkeys((secret, json.dumps(secret)[1:-1], as_url, repr(secret)[1:-1]))
    return tuple(found)


def without_values(text: str, spellings: Iterable[str]) -> str:
    """Return a text without secrets of which the spellings are known."""
    present = [one for one in spellings if one in text]
    for one in sorted(present, key=len, reverse=True):
        text = re.sub(rf"(?<![A-Za-z0-9]){re.escape(one)}(?![A-Za-z0-9])", REDACTED, text)
    return text
