"""Take secrets out of what is published; one cleaner for everything that leaves.

```
redact          nested values: config, params, hyper-parameters, notes
redact_argv     command lines
redact_config   the text of a config, which says at its head what was taken out
redact_text     logs, messages, names, environment files
learn           secrets that are taken out of texts by their value, from here on
secrets_in_code hard-coded ones, which are told, for code is published as it ran
```

A value is a secret when its name says so (``api_key``, ``password``, at any depth), when its form
does (private keys, web hooks, tokens as vendors make them, credentials in URLs), when its name may
and its look agrees (``token``), or when it was one elsewhere in the same run. What stands in no
such relation is left alone: numbers, marks such as ``pad_token``, paths, hashes, names of things.
Nothing here touches a file or a database.
"""

from typing import TYPE_CHECKING, Any

from lamincli.redaction.known import forget, remember
from lamincli.redaction.names import is_secret_key
from lamincli.redaction.nested import redact, redact_argv, redacted_keys, secrets_by_name
from lamincli.redaction.text import redact_line, redact_text
from lamincli.redaction.values import REDACTED

if TYPE_CHECKING:
    from lamincli.redaction.code import HardCoded

__all__ = [
    "REDACTED",
    "forget",
    "is_secret_key",
    "learn",
    "redact",
    "redact_argv",
    "redact_config",
    "redact_line",
    "redact_text",
    "redacted_keys",
    "secrets_in_code",
]


def learn(value: Any) -> None:
    """Take the secrets that stand under their names in a nested value out of all texts to come."""
    remember(secrets_by_name(value))


def redact_config(text: str) -> str:
    """Return the text of a config file without its secrets; see `config.redact_config`."""
    from lamincli.redaction import config  # imports YAML

    return config.redact_config(text)


def secrets_in_code(code: str) -> "list[HardCoded]":
    """Return the secrets in source code, by line; see `code.secrets_in_code`."""
    from lamincli.redaction import code as of_code  # needed once a run

    return of_code.secrets_in_code(code)
