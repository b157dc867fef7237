"""Take secrets out of what is published: nested config, params and command lines.

A value is a secret when its key says so (``api_key``, ``token``, ``password``, …, at any
depth) or when its form does (credentials in a URL, a bearer token, well-known key formats).
Pure: nothing here touches a file or a database.
"""

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

REDACTED = "***REDACTED***"

_WORD_BREAK = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_SECRET_KEY = re.compile(
    r"(?:^|_)(?:api_?keys?|access_?keys?|account_?key|(?:wandb|openai|comet|neptune|license)_?key|private_?keys?|secret_?keys?|signing_?key"
    r"|encryption_?key|secrets?|(?:access|auth|api|bot)?tokens?|passwords?\d*|passwd|pass|pwd|passphrase|credentials?|bearer|auth"
    r"|authorization|dsn|connection_?string|sas_?token|cookies?)(?:$|_)"
)
# `max_tokens: 512`, `num_token: 3` or `token_dim: 64` are numbers of tokens, not secrets.
_COUNTS = re.compile(r"(?:^|_)(?:tokens|cookies|(?:num|max|min|n)_token)(?:$|_)|(?:^|_)token_")

_URL_CREDENTIALS = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.\-]*://)[^/\s:@?#]*:[^/\s]*@")
_URL_TOKEN = re.compile(r"(?P<scheme>https?://)[^/\s:@?#]+@")
# api_key=X, "token": "X", X-Api-Key: X, Password=X;
_NAMED = re.compile(
    r"""(?P<name>["']?(?P<key>[A-Za-z][\w.\-]*)["']?\s*[=:]\s*)(?P<value>"[^"]*"|'[^']*'|[^\s"',;&}\]]+)"""
)
_URL_QUERY_SECRET = re.compile(
    r"(?P<name>[?&](?:[A-Za-z0-9_\-.]*[_\-.])?(?:api[_-]?key|access[_-]?key|key|secret|token|password"
    r"|signature|sig|credential)=)[^&\s#]+",
    re.IGNORECASE,
)
_BEARER = re.compile(r"(?P<name>\b(?:Bearer|Basic)\s+)[A-Za-z0-9._~+/\-]{8,}=*")
_KNOWN_FORMS = re.compile(
    r"\b(?:(?:AKIA|ASIA)[A-Z0-9]{16}"  # AWS access key ids
    r"|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}"  # GitHub
    r"|hf_[A-Za-z0-9]{20,}"  # Hugging Face
    r"|sk-[A-Za-z0-9_\-]{20,}"  # OpenAI, Anthropic
    r"|glpat-[A-Za-z0-9_\-]{16,}"  # GitLab
    r"|xox[abprs]-[A-Za-z0-9\-]{10,}"  # Slack
    r"|eyJ[A-Za-z0-9_\-]{8,}\.eyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]+)"  # JSON web tokens
)


def is_secret_key(key: str) -> bool:
    """Tell whether a key such as ``hub.apiKey`` or ``--db-password`` names a secret."""
    return bool(_SECRET_KEY.search(_words(key)))


def _words(key: str) -> str:
    return re.sub(r"[\W_]+", "_", _WORD_BREAK.sub("_", key).lower())


def redact(value: Any, key: str = "") -> Any:
    """Return a copy of a nested value without its secrets.

    Args:
        value: Dicts, lists, tuples and scalars, nested to any depth.
        key: The key under which the value stands.

    Returns:
        The same structure; secrets are replaced by `REDACTED`, everything else is equal.
    """
    if isinstance(value, str) and re.fullmatch(r"\$\{[^{}]*\}", value):  # names a variable
        return value
    secret = is_secret_key(key)
    if isinstance(value, dict):
        named = next((value[k] for k in ("name", "key") if isinstance(value.get(k), str)), "")
        if "value" in value and is_secret_key(named):  # {name: api_key, value: X}
            return {k: REDACTED if k == "value" else v for k, v in value.items()}
        # All that lies below a secret key is secret, whatever it is called there.
        return {k: redact(v, key if secret else str(k)) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(redact(item, key) for item in value)
    if value is None or isinstance(value, bool):
        return value
    if secret and not (isinstance(value, (int, float)) and _COUNTS.search(_words(key))):
        return REDACTED if value != "" else value
    return redact_text(value) if isinstance(value, str) else value


def redacted_keys(value: Any) -> list[str]:
    """Return the dotted paths of the values that were taken out of a nested value, in order.

    Items of lists are counted from zero: ``data.init_args.headers.0.value``.
    """
    if isinstance(value, str):
        return [""] if REDACTED in value else []
    if isinstance(value, Mapping):
        items: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    else:
        return []
    below = ((str(key), path) for key, item in items for path in redacted_keys(item))
    return [f"{key}.{path}" if path else key for key, path in below]


def redact_text(text: str) -> str:
    """Return text without credentials in URLs, bearer tokens and keys of well-known form."""
    text = _URL_CREDENTIALS.sub(rf"\g<scheme>{REDACTED}@", text)
    text = _URL_TOKEN.sub(rf"\g<scheme>{REDACTED}@", text)
    text = _URL_QUERY_SECRET.sub(rf"\g<name>{REDACTED}", text)
    text = _BEARER.sub(rf"\g<name>{REDACTED}", text)
    text = _KNOWN_FORMS.sub(REDACTED, text)
    return _NAMED.sub(_redact_named, text)


def _redact_named(match: "re.Match[str]") -> str:
    key, value = match["key"], match["value"].strip("\"'")
    is_count = value.isdigit() and _COUNTS.search(_words(key))
    # The scheme of an authorization header is no secret; what follows was found by its form.
    harmless = value in ("", "null", "None", "Bearer", "Basic") or value.startswith(REDACTED)
    if harmless or is_count or not is_secret_key(key):
        return match[0]
    return f"{match['name']}{REDACTED}"


def redact_line(line: str) -> str:
    """Return a line of a config that cannot be parsed, without its secrets."""
    if (named := re.match(r"""(\s*-?\s*["']?([\w.\-]+)["']?\s*[:=]\s*)\S""", line)) and (
        is_secret_key(named[2])
    ):
        return f"{named[1]}{REDACTED}\n"
    return redact_text(line)


def redact_argv(argv: Sequence[str]) -> str:
    """Return a command line, quoted for a shell, without its secrets.

    ``--a.token X``, ``--a.token=X`` and secrets inside JSON or YAML values are found.
    """
    redacted: list[str] = []
    option = ""
    for word in argv:
        if word.startswith("--"):
            option, equals, value = word.partition("=")
            redacted.append(f"{option}={_redact_option(option, value)}" if equals else word)
            if equals:
                option = ""
        else:
            redacted.append(_redact_option(option, word))  # a list may take several words
    return shlex.join(redacted)


def _redact_option(option: str, text: str) -> str:
    if option and is_secret_key(option):
        return str(redact(_parse(text), option))
    nested = _parse(text)
    if isinstance(nested, (dict, list)) and (clean := redact(nested)) != nested:
        return yaml.safe_dump(clean, default_flow_style=True, width=10**9).strip()
    return redact_text(text)


def _parse(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def redact_config(text: str) -> str:
    """Return the text of a config file without its secrets; unchanged if it has none.

    Args:
        text: YAML or JSON; of any other text, lines that name a secret are cleaned.
    """
    try:
        content = yaml.load(text, Loader=_PlainLoader)  # noqa: S506  builds no objects
        clean = redact(content)
        return text if clean == content else yaml.safe_dump(clean, sort_keys=False)
    except (yaml.YAMLError, RecursionError):
        return "".join(map(redact_line, text.splitlines(keepends=True)))


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
    "tag:yaml.org,2002:map", lambda loader, node: _construct_plain(loader, "", node)
)
