"""Credentials in URLs: before the host, where passwords may hold any sign, and in the query."""

import re

from lamincli.redaction.names import Kind, kind_of
from lamincli.redaction.values import REDACTED, is_secret, looks_random

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]{0,30}$")
_RUN = re.compile(r"[^\s\"'`<>\\]{1,8192}")
_PORT = re.compile(r":\d{1,5}(?=[/?#,]|$)")
_HOST = re.compile(
    r"(?:[\w.\-]+\.[A-Za-z]{2,}|localhost|\[[\da-fA-F:.]+\])(?::\d+)?(?=[/?#,;:)}\]]|$)"
)
_ANY_HOST = re.compile(r"[\w.\-%]*(?::\d+)?(?=[/?#,;)}\]]|$)")
# In these, a user without a password is a token.
_TOKEN_SCHEMES = re.compile(r"(?:[\w.\-]+\+)?https?$", re.IGNORECASE)
_OTHER_SCHEMES = re.compile(
    r"(?:[\w.\-]+\+)?(?:https?|wss?|ssh|git|file|s3|gs|gcs)$", re.IGNORECASE
)
_PARAMETER = re.compile(r"(?P<name>(?:^|[?&#;])(?P<key>[\w.\-%\[\]]{1,80})=)(?P<value>[^&#;]+)")
_REFERENCE = re.compile(r"[^:]*:?(?:\$\{.*\}|\$\w+|\{\{.*\}\}|\{\w+\}|<[^<>]+>|%\w+%)")
_SIGNATURES = frozenset(["sig", "signature", "x-amz-signature", "x-goog-signature"])
_MAYBE = frozenset(["key", "code", "sid", "k"])


def without_credentials(text: str) -> str:
    """Return a text without the credentials in its URLs."""
    kept, end, at = [], 0, text.find("://")
    while at >= 0:
        scheme = _SCHEME.search(text, max(end, at - 31), at)
        run = _RUN.match(text, at + 3)
        if scheme is None or run is None:
            at = text.find("://", at + 3)
            continue
        kept += [text[end : at + 3], _clean(scheme[0], run[0])]
        end = run.end()
        at = text.find("://", end)
    return "".join([*kept, text[end:]])


def _clean(scheme: str, rest: str, depth: int = 0) -> str:
    inner = rest.find("://") if depth < 4 else -1  # a URL within this one, as that of a proxy
    if inner >= 0:
        start = _SCHEME.search(rest, max(0, inner - 31), inner)
        if start is not None and start.start() > 0:
            tail = _clean(start[0], rest[inner + 3 :], depth + 1)
            return _clean(scheme, rest[: start.start()], 4) + rest[start.start() : inner + 3] + tail
    cut = _end_of_credentials(scheme, rest)
    if cut and not _REFERENCE.fullmatch(rest[:cut]):
        rest = f"{REDACTED}@{rest[cut + 1 :]}"
    query = min((at for at in map(rest.find, "?#") if at >= 0), default=-1)
    return rest if query < 0 else rest[:query] + _PARAMETER.sub(_clean_parameter, rest[query:])


def _end_of_credentials(scheme: str, rest: str) -> int:
    """Return where the `@` behind the credentials stands; 0 if there are none."""
    signs = [match.start() for match in re.finditer("@", rest)]
    if not signs or rest.startswith(("@", REDACTED)):
        return 0
    plausible = [at for at in signs if _HOST.match(rest, at + 1)]
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "@" not in authority and _is_host_alone(scheme, authority, bool(plausible)):
        return 0
    query = rest.find("?") if "?" in rest else len(rest)
    before = [at for at in signs if at < query]
    certain = [at for at in before if at in plausible]
    hosts = [at for at in before if _ANY_HOST.match(rest, at + 1)]
    cut = (certain or plausible or hosts or signs)[-1]
    if ":" not in rest[:cut] and not _TOKEN_SCHEMES.fullmatch(scheme):
        return 0  # a user, a bucket or a container
    return cut


def _is_host_alone(scheme: str, authority: str, is_host_later: bool) -> bool:
    """Tell whether what precedes the path holds no part of a password that has a slash in it."""
    if ":" not in authority or authority.startswith("["):
        return True
    if not _PORT.search(authority) or not _OTHER_SCHEMES.fullmatch(scheme):
        return False
    return not is_host_later or _HOST.match(authority) is not None


def _clean_parameter(match: "re.Match[str]") -> str:
    name, key, value = match["name"], match["key"].lower(), match["value"]
    kind = Kind.SURE if key in _SIGNATURES else kind_of(key)
    if kind is Kind.NONE and key in _MAYBE:
        kind = Kind.RANDOM
    if kind is Kind.LIKELY and not looks_random(value):
        return match[0]
    return f"{name}{REDACTED}" if is_secret(value, kind) else match[0]
