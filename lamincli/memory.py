"""What references stood for when they were last looked up, for when LaminDB cannot be asked.

One JSON file a reference and instance, in ``~/.local/state/lamin-train/references``.
"""

import contextlib
import hashlib
import json
import os
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from lamincli.spool.index import index_folder


@dataclass(frozen=True)
class Remembered:
    """A reference as it was looked up.

    Args:
        pinned: The reference with the exact artifact.
        file: The file on this machine, as `known_file` describes it.
        at: When, ISO 8601 in UTC.
    """

    pinned: str
    file: dict[str, Any]
    at: str


def remember(slug: str, text: str, pinned: str, file: dict[str, Any]) -> None:
    """Keep what a reference stands for. A home that cannot be written is no obstacle.

    Args:
        slug: The connected instance.
        text: The reference.
        pinned: As in `Remembered`.
        file: As in `Remembered`.
    """
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    place = _place(slug, text)
    part = place.with_suffix(f".{os.getpid()}.part")
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(asdict(Remembered(pinned, file, now))))
        part.replace(place)


def recall(slug: str, text: str) -> Remembered | None:
    """Return what a reference stood for when it was last looked up on this machine."""
    try:
        return Remembered(**json.loads(_place(slug, text).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _place(slug: str, text: str) -> Path:
    digest = hashlib.sha256(f"{slug} {text}".encode()).hexdigest()[:32]
    return index_folder().with_name("references") / f"{digest}.json"
