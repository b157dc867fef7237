"""Write artifacts to LaminDB: what may be published, what is retired, and what is an outage."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from django.db import InterfaceError, OperationalError, connections
from lamindb.models._lineage import track_run_inputs

from lamincli.redaction import redact, redact_line


def is_outage(error: BaseException) -> bool:
    """Tell by type whether a database, a storage or a network is away, and not the user or us.

    A locked or unreachable database, a full disk, a refused connection, a throttling store.
    """
    if isinstance(error, (OperationalError, InterfaceError, OSError)):
        return not isinstance(error, (FileNotFoundError, IsADirectoryError, NotADirectoryError))
    # Imported by lamindb only where the storage is remote.
    return type(error).__module__.split(".")[0] in {"botocore", "aiohttp", "httpx", "gcsfs"}


def forget_lost_connections() -> None:
    """Let the next query open a new connection; Django would go on with the broken one."""
    for connection in connections.all(initialized_only=True):
        if not connection.in_atomic_block:
            connection.close()


def retire(artifact: Any, successor: Any = None) -> None:
    """Delete an artifact whose successor is committed, with its file.

    With `key_is_virtual=False` another artifact, its successor or that of another run, may lie in
    the same place; then the file is theirs.
    """
    place = str(artifact.path)
    others = [successor] if successor is not None else []
    if artifact.key is not None:
        others += type(artifact).objects.filter(key=artifact.key).exclude(id=artifact.id)
    artifact.delete(permanent=True, storage=all(str(other.path) != place for other in others))


def make_input(artifact: Any) -> None:
    """Make an artifact an input of the current run, and an output of none."""
    artifact.run = None
    artifact.save()
    track_run_inputs(artifact, is_run_input=True)


@contextmanager
def clean_copy(path: Path) -> Iterator[Path]:
    """Yield a config file to publish: the file itself, or a copy without its secrets.

    The user's own file is left as it is.

    Args:
        path: A file in YAML or JSON; of any other text, lines that name a secret are cleaned.
    """
    text = path.read_text()
    try:
        content = yaml.load(text, Loader=_PlainLoader)  # noqa: S506  builds no objects
        clean = redact(content)
        cleaned = text if clean == content else yaml.safe_dump(clean, sort_keys=False)
    except (yaml.YAMLError, RecursionError):
        cleaned = "".join(map(redact_line, text.splitlines(keepends=True)))
    if cleaned == text:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        copy.write_text(cleaned)
        yield copy


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
