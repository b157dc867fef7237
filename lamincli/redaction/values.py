"""What a value says of itself: whether it may be a secret, given the kind of its name."""

import re
from datetime import date
from functools import cache
from itertools import pairwise
from typing import Any

from lamincli.redaction.names import Kind

REDACTED = "***REDACTED***"

# Ordinary values of names that are likely to hold a secret: `token: mean`, `auth: basic`.
_ORDINARY = (
    "none null nil true false auto default basic bearer digest negotiate ntlm kerberos ldap oauth"
    " oidc saml jwt iam token tokens key keys api apikey password secret auth session cookie env"
    " environment prompt ask required optional disabled enabled inherit read write admin user"
    " anonymous public private all any both each mean max min sum avg average median first last"
    " middle cls class eos bos pad padding mask masked sep unk special pooled pooler pool pooling"
    " attention attn weighted concat cat add linear learned learnable fixed random zero zeros one"
    " ones gene genes cell cells protein peptide residue base nucleotide kmer codon word words"
    " subword char chars character characters byte bytes bpe wordpiece unigram sentencepiece"
    " sentence text image patch patches pixel frame audio video speech phoneme node edge graph"
    " layer head global local mixed per wise level type label index id ids name mouse human session"
    " day run trial subject batch sample str int float bool string object self optional list dict"
    " tuple set begin end start stop next prev previous forward backward single multi two low high"
    " band your my the a an here changeme example placeholder redacted hidden todo tbd na github"
    " gitlab google huggingface wandb"
)
# `${oc.env:TOKEN}`, `$TOKEN`, `{{ token }}`, `%TOKEN%`, OmegaConf's `???`: where the secret is.
_REFERENCE = re.compile(
    r"\$\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}|\$\{\{.*\}\}|\{\{.*\}\}|\$\([^()]*\)|\$[A-Z][A-Z0-9_]{2,}"
    r"|%[A-Z][A-Z0-9_]{2,}%|\?\?\?"
)
_DEFAULT = re.compile(r"\$\{(?:[\w.]+:)?\w+\s*(?:,|:?-)\s*(?P<default>[^{}]+)\}")
_NAME_OF_VARIABLE = re.compile(r"[A-Z]{2,}(?:_[A-Z]+)+")
_NOTHING = ("null", "none", "nil", "~")
_MARK = re.compile(r"<[^<>]*>|\[[^\[\]]*\]|\{[^{}]*\}|<?\|.*\|>?|__\w+__")
_PATH = re.compile(r"(?:~|\.{1,2}|[A-Za-z]:|file:/|\$\w+|\$\{\w+\})?(?:[/\\][^/\\\s]+){2,}[/\\]?")
_SHORT_PATH = re.compile(r"(?:~|\.{1,2}|[A-Za-z]:)?[/\\][\w. \-]+[/\\]?")
_FILE = re.compile(r"[\w. \-/\\~:{}$]*\.[A-Za-z][A-Za-z0-9]{1,9}(?:\.[a-z0-9]{2,4})?")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]{1,20}:/{1,3}[^\s@]*")
_DOTTED = re.compile(r"[A-Za-z_][A-Za-z_]*\d{0,3}(?:\.[A-Za-z_][A-Za-z_]*\d{0,3})+")
_PARTS = re.compile(r"[\s_\-./:,=|+]+")
_WORD_OR_NUMBER = re.compile(
    r"[A-Za-z]{0,20}\d{0,4}|\d{1,8}(?:[A-Za-z]{1,4})?|[A-Z]{2,8}\d{3,}|[vVrR]?\d+(?:\.\d+)*[a-z]?"
)
_DIGITS_AT_END = re.compile(r"\d+$")
_NUMBER = re.compile(r"[+\-]?[\d_]+(?:\.\d*)?(?:[eE][+\-]?\d+)?[,;.]?")
_SHORTEST_RANDOM, _SHORTEST_OF_LETTERS = 8, 16
LONGEST_RANDOM = 1024


def is_secret(value: Any, kind: Kind) -> bool:
    """Tell whether a scalar is a secret, given what its name says. Numbers and booleans never are.

    Args:
        value: The scalar.
        kind: What its name says.
    """
    if kind is Kind.NONE or not isinstance(value, (str, date)):
        return False
    text = str(value)
    if not text or text == REDACTED:
        return False
    if (reference := _DEFAULT.fullmatch(text)) is not None:
        default = reference["default"].strip().strip("\"'")
        return default.lower() not in _NOTHING and is_secret(default, kind)
    if _REFERENCE.fullmatch(text):
        return False
    if kind is Kind.SURE:
        return not _NAME_OF_VARIABLE.fullmatch(text)
    if kind is Kind.PLACE:
        return not (is_path(text) or _NAME_OF_VARIABLE.fullmatch(text))
    if kind is Kind.HOOK:
        return "://" in text or looks_random(text)
    if kind is Kind.LIKELY:
        return not is_ordinary(text)
    return looks_random(text)


def is_number(text: str) -> bool:
    """Tell whether a word is a number, maybe with the sign behind it."""
    return _NUMBER.fullmatch(text) is not None


def is_ordinary(text: str) -> bool:
    """Tell whether a text is a word, a mark, a path or the name of something."""
    if _is_mark(text) or is_path(text) or _URL.fullmatch(text) or _DOTTED.fullmatch(text):
        return True
    if _NAME_OF_VARIABLE.fullmatch(text):
        return True
    words = (_DIGITS_AT_END.sub("", part).lower() for part in _PARTS.split(text))
    return all(not word or word in _ordinary_words() for word in words)


def looks_random(text: str) -> bool:
    """Tell whether a text looks as if a generator, or somebody who thinks of passwords, made it."""
    if len(text) < _SHORTEST_RANDOM or len(text) > LONGEST_RANDOM or any(map(str.isspace, text)):
        return False
    if _is_mark(text) or is_path(text) or _URL.fullmatch(text) or _REFERENCE.search(text):
        return False
    if all(_WORD_OR_NUMBER.fullmatch(part) for part in _PARTS.split(text)):
        return len(text) >= _SHORTEST_OF_LETTERS and _is_scrambled(text)
    has_both = any(map(str.isdigit, text)) and any(map(str.isalpha, text))
    return has_both or _is_scrambled(text)


@cache
def _ordinary_words() -> frozenset[str]:
    return frozenset(_ORDINARY.split())


def is_path(text: str) -> bool:
    """Tell whether a text is the path, or the name, of a file."""
    if not any(mark in text for mark in "/\\.") or len(text) > 1024:
        return False
    forms = (_PATH, _SHORT_PATH, _FILE)
    return any(form.fullmatch(text) for form in forms) and not _is_scrambled(text)


def _is_mark(text: str) -> bool:
    return _MARK.fullmatch(text) is not None or not any(map(str.isalnum, text))


def _is_scrambled(text: str) -> bool:
    """Tell whether letters change their case, and give way to digits, as in no word."""
    kinds = ["d" if c.isdigit() else "u" if c.isupper() else "l" for c in text if c.isalnum()]
    if len(kinds) < _SHORTEST_OF_LETTERS:
        return False
    changes = sum(one != other for one, other in pairwise(kinds))
    return changes / len(kinds) > 0.3
