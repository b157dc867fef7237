"""A run whose first job is torn: what it began with, as far as its other jobs tell.

The first job of a run that began without LaminDB makes the record. Where a power cut has torn it,
the rest of the spool still knows the run's uid and instance, when it began and ended, its config,
its metrics and its log. What nobody knows any more is said, in the record too.
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import yaml

from lamincli import __version__, console
from lamincli.errors import LaminTrainError
from lamincli.features import as_json
from lamincli.memory import recall_run
from lamincli.redaction import redact
from lamincli.registry import runs
from lamincli.registry.runs import Beginning
from lamincli.spool import Job, Spool

NOTE = "rebuilt"
_KEY = "lamin-train: code that is not known"
_CODE = "# The code of this run is not known: the job that held it was torn.\n"
_STAGES = ("fit", "validate", "test", "predict")
_HEAD = re.compile(r"^run (?P<run>\w+) in \S+\n\$ (?P<program>\S+) ?(?P<command>.*)$", re.MULTILINE)
_LONGEST_START = timedelta(hours=1)
"""How long before its other jobs a run may have begun, by the time of the torn file."""


@dataclass(frozen=True)
class _Head:
    """What a log says at its beginning."""

    program: str = ""
    command: str = ""


def rebuild(spool: Spool) -> bool:
    """Put a job in the place of the torn one that begins the run.

    Args:
        spool: A spool without such a job, whose lock this process has, and whose run is not in the
            connected instance.

    Returns:
        Whether there was a torn one. Else the run was there, and was removed by somebody.
    """
    jobs, torn = list(spool.jobs()), spool.torn()
    # Of a run that was in LaminDB when it was saved, features are known by their uids.
    is_spooled = not any(job.features for _, job in jobs)
    if not (jobs and torn and is_spooled and torn[0] < jobs[0][0]):
        return False
    name, why = torn[0], "".join(r for n, _, r in spool.parked_jobs() if n == torn[0])
    beginning = _beginning(spool, [job for _, job in jobs], spool.parked / name, why)
    first = jobs[0][1]
    at = beginning.started_at
    job = Job("begin", first.run, first.instance, first.instance_id, at, notes=asdict(beginning))
    spool.replace_torn(name, job)
    unknown = ", ".join(beginning.record[NOTE]["unknown"])
    console.warn(
        f"run {first.run} is rebuilt from its other jobs, because the one that begins it "
        f"({name}) cannot be read. Not known any more: {unknown}"
    )
    return True


def _beginning(spool: Spool, jobs: Sequence[Job], torn: Path, why: str) -> Beginning:
    uid = jobs[0].run
    known = recall_run(uid)
    notes = known.notes if known is not None else {}
    head, params = _head(spool, jobs, uid), notes.get("params") or _params(spool, jobs)
    started_at = notes.get("started_at") or _started_at(jobs, torn)
    unknown = ["code", "environment"]
    unknown += [] if params else ["params"]
    unknown += [] if head.command else ["command"]
    unknown += [] if notes.get("record") else ["hardware", "process"]
    now = datetime.now(timezone.utc).isoformat()
    words = head.command.split()
    stage = next((word for word in words[:1] if word in _STAGES), None)
    has_trained = any(job.kind == "checkpoint" and job.action == "save" for job in jobs)
    record: dict[str, Any] = {
        "version": __version__,
        "stage": stage or ("fit" if has_trained else None),
        "model": _class_path(params),
        "process": None,
        "job": None,
        "fit_number": 0,
        "program": {},
        **notes.get("record", {}),
        NOTE: {"at": now, "why": why, "unknown": unknown},
    }
    return Beginning(
        uid=uid,
        started_at=started_at,
        key=_KEY,
        code=_CODE,
        program=head.program,
        command=head.command,
        params=params,
        record=record,
        attempt={"host": None, "started_at": started_at, "command": head.command,
                 "checkpoint": None},
    )  # fmt: skip


def _started_at(jobs: Sequence[Job], torn: Path) -> str:
    """Return when the run began: when the torn job was written, if that is likely, or the next."""
    first = min(datetime.fromisoformat(job.at) for job in jobs)
    with suppress(OSError):
        written = datetime.fromtimestamp(torn.stat().st_mtime, timezone.utc)
        if first - _LONGEST_START < written < first:
            first = written
    return first.isoformat()


def _params(spool: Spool, jobs: Sequence[Job]) -> dict[str, Any]:
    """Return the config that the run has saved; what is published of it is without secrets."""
    for job in jobs:
        if (job.action, job.kind) == ("save", "config") and job.pin:
            with suppress(OSError, ValueError, LaminTrainError, yaml.YAMLError):
                config = yaml.safe_load(spool.pin_of(job).read_text(encoding="utf-8"))
                return as_json(redact(config)) if isinstance(config, dict) else {}
    return {}


def _head(spool: Spool, jobs: Sequence[Job], uid: str) -> _Head:
    """Return what the log of the run says of its command, be it in the spool or where it was."""
    logs = [runs.log_path(uid)]
    for job in jobs:
        if job.action == "close" and job.pin:
            with suppress(LaminTrainError):
                logs.append(spool.pin_of(job))
    for log in logs:
        with suppress(OSError):
            for found in _HEAD.finditer(log.read_text(errors="replace")):
                if found["run"] == uid:
                    return _Head(found["program"], found["command"])
    return _Head()


def _class_path(params: dict[str, Any]) -> str | None:
    model = params.get("model")
    path = model.get("class_path") if isinstance(model, dict) else None
    return path if isinstance(path, str) else None
