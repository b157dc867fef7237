"""The config that a run was given, beside the copy of it that is published without secrets.

What is published is a copy; what goes on is the original. It is the file that the run wrote for its
user. Where something was taken out of the copy, the file is readable for that user alone, and the
record notes where it lies. A note is a hint, whoever wrote it: what it names is taken only if it is
truly the original.
"""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lamincli.folders import read_own
from lamincli.redaction import redact_config
from lamincli.spool.seal import FIELD, is_ours, sealed

NOTE = "original"


def write(path: Path, text: str) -> None:
    """Write a new file; one that holds what is not published, for this user alone.

    It never was readable for anybody else: it has its mode from the start.

    Raises:
        FileExistsError: There is something of that name.

    Durability: one that nobody else has is fsynced on return.
    """
    is_private = redact_config(text) != text
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    with open(os.open(path, flags, 0o600 if is_private else 0o666), "w", encoding="utf-8") as file:
        file.write(text)
        if is_private:
            file.flush()
            os.fsync(file.fileno())


def note_of(path: Path, text: str, run: str) -> dict[str, str]:
    """Return what the record keeps, so that the original is found again.

    Args:
        path: The file.
        text: What it holds.
        run: Uid of the run.
    """
    here, path = Path.cwd(), Path(os.path.abspath(path))
    # Within the project, so that it is found where that has moved to.
    place = path.relative_to(here) if path.is_relative_to(here) else path
    seal = sealed({"config": text}, _about(run))[FIELD]
    return {"project": str(here), "file": str(place), FIELD: seal}


def find(note: Any, run: str, published: Path) -> Path | None:
    """Return the original of a published config, if it is on this machine and this user's.

    Args:
        note: What the record keeps of it.
        run: Uid of the run.
        published: The published copy.
    """
    if not isinstance(note, Mapping) or not isinstance(note.get("file"), str):
        return None
    copy = None
    with suppress(OSError):  # it may be published just now, and gone from the spool
        copy = published.read_text(encoding="utf-8", errors="replace")
    for project in (str(note.get("project", "")), os.getcwd()):
        path = Path(project, note["file"])
        text = _read(path)
        if text is None:
            continue
        # The rules of redaction may have changed since, and the seal of a moved home be gone.
        if redact_config(text) == copy or is_ours(
            {"config": text, FIELD: note.get(FIELD)}, _about(run)
        ):
            return path
    return None


def _about(run: str) -> str:
    return f"config of run {run}"


def _read(path: Path) -> str | None:
    """Read a file of this user; `None` for anything else, and for a link."""
    try:
        return read_own(path)
    except (OSError, ValueError):
        return None
