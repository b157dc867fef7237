"""What is remembered on this machine, or in a shared home, for when LaminDB cannot be asked.

What references stood for when they were last looked up, and which run a job has trained: one JSON
file each, in ``~/.local/state/lamin-train``, in ``references`` and ``jobs``.
"""

import contextlib
import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
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
        originals: What is noted of the originals of a config, by their runs.
    """

    pinned: str
    file: dict[str, Any]
    at: str
    originals: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class KnownJob:
    """The run of a job that a scheduler may start again.

    Args:
        run: Uid of the run.
        instance: The instance that has it.
        notes: What a stand-in of the run needs: times, params and record.
        folders: Where it saves its checkpoints.
        prefixes: The prefixes of their keys, by the callback that saves them.
    """

    run: str
    instance: str
    notes: dict[str, Any]
    folders: list[str]
    prefixes: dict[str, str]


def remember(
    slug: str,
    text: str,
    pinned: str,
    file: dict[str, Any],
    originals: dict[str, Any] | None = None,
) -> None:
    """Keep what a reference stands for. A home that cannot be written is no obstacle.

    Args:
        slug: The connected instance.
        text: The reference.
        pinned: As in `Remembered`.
        file: As in `Remembered`.
        originals: As in `Remembered`.
    """
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    _write(_place("references", slug, text), asdict(Remembered(pinned, file, now, originals or {})))


def recall(slug: str, text: str) -> Remembered | None:
    """Return what a reference stood for when it was last looked up on this machine."""
    try:
        return Remembered(**json.loads(_place("references", slug, text).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def remember_job(job: str, command: str, fit_number: int, known: KnownJob) -> None:
    """Keep which run a command of a job has trained.

    Args:
        job: As `process.job_id` names it.
        command: The words, without secrets: a job may train several models in turn.
        fit_number: As `process.fit_number` gives it: so may a command.
        known: What is known of the run.
    """
    _write(_place("jobs", job, f"{fit_number} {command}"), asdict(known))


def recall_job(job: str, command: str, fit_number: int) -> KnownJob | None:
    """Return what is known of the run that a command of a job has trained."""
    try:
        place = _place("jobs", job, f"{fit_number} {command}")
        return KnownJob(**json.loads(place.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def forget_job(job: str, command: str, fit_number: int) -> None:
    """Forget it, for the run is complete."""
    with contextlib.suppress(OSError):
        _place("jobs", job, f"{fit_number} {command}").unlink(missing_ok=True)


def _write(place: Path, content: dict[str, Any]) -> None:
    part = place.with_suffix(f".{os.getpid()}.part")
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(content))
        part.replace(place)


def _place(kind: str, of: str, text: str) -> Path:
    digest = hashlib.sha256(f"{of} {text}".encode()).hexdigest()[:32]
    return index_folder().with_name(kind) / f"{digest}.json"
