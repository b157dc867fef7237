"""What is remembered on this machine, or in a shared home, for when LaminDB cannot be asked.

What references stood for when they were last looked up, and which run a job has trained: one JSON
file each, in ``~/.local/state/lamin-train``, in ``references`` and ``jobs``.
"""

import contextlib
import hashlib
import json
import time
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

from lamincli.folders import make_private, read_own, write_own
from lamincli.spool.index import index_folder

_KEPT_S = 180 * 86_400.0
_PART_KEPT_S = 3_600.0
_T = TypeVar("_T", "Remembered", "KnownJob")


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

    def is_sound(self) -> bool:
        """Whether it has the types that it should: it was read from a file."""
        path = isinstance(self.file, dict) and self.file.get("path")
        texts = (self.pinned, self.at, path)
        return all(isinstance(text, str) and "\0" not in text for text in texts)


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

    def is_sound(self) -> bool:
        """Likewise."""
        if not (isinstance(self.notes, dict) and isinstance(self.prefixes, dict)):
            return False
        kinds = {"started_at": str, "params": dict, "record": dict}
        if not all(isinstance(self.notes.get(name, kind()), kind) for name, kind in kinds.items()):
            return False
        if not (isinstance(self.folders, list) and _is_date(self.notes.get("started_at"))):
            return False
        texts = [self.run, self.instance, *self.folders, *self.prefixes, *self.prefixes.values()]
        return all(isinstance(text, str) and "\0" not in text for text in texts)


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
    return _read(_place("references", slug, text), Remembered)


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
    return _read(_place("jobs", job, f"{fit_number} {command}"), KnownJob)


def recall_run(run: str) -> KnownJob | None:
    """Return what is known of a run that some job has trained."""
    folder = _place("jobs", "", "").parent
    with contextlib.suppress(OSError):
        for file in sorted(folder.glob("*.json")):
            known = _read(file, KnownJob)
            if known is not None and known.run == run:
                return known
    return None


def forget_job(job: str, command: str, fit_number: int) -> None:
    """Forget it, for the run is complete."""
    with contextlib.suppress(OSError):
        _place("jobs", job, f"{fit_number} {command}").unlink(missing_ok=True)


def _write(place: Path, content: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):
        make_private(place.parent)
        write_own(place, json.dumps(content))
        _prune(place.parent)


def _prune(folder: Path) -> None:
    """Remove what was not looked up, or trained, for half a year, and what a killed job left."""
    now_s = time.time()
    for file in folder.iterdir():
        with contextlib.suppress(OSError):
            age_s = now_s - file.lstat().st_mtime
            if age_s > (_PART_KEPT_S if file.name.endswith(".part") else _KEPT_S):
                file.unlink()


def _read(place: Path, kind: type[_T]) -> _T | None:
    """Read what was remembered, if this user has written it, and it is what it should be."""
    try:
        found = kind(**json.loads(read_own(place)))
    except (OSError, ValueError, TypeError):
        return None
    return found if found.is_sound() else None


def _place(kind: str, of: str, text: str) -> Path:
    digest = hashlib.sha256(f"{of} {text}".encode()).hexdigest()[:32]
    return index_folder().with_name(kind) / f"{digest}.json"


def _is_date(text: str | None) -> bool:
    try:
        return text is None or bool(datetime.fromisoformat(text))
    except ValueError:
        return False
