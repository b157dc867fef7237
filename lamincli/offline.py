"""A run that is not in LaminDB yet: where its jobs wait, and what stands in its place.

Such a run has its uid from the start. Its first job creates it in LaminDB, with the times that it
had; the publisher does that when the database returns, or `lamin-train sync` later.
"""

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from lamincli import order
from lamincli.features import EXTRA_DATA_KEY
from lamincli.process import RUN_UID_VARIABLE, SPOOLED_VARIABLE
from lamincli.spool import Action, Job, Spool, known_spools, spools_below
from lamincli.spool.index import FOLDER_NAME


@dataclass(frozen=True)
class SpooledRun:
    """A run of this job that is kept in the spool.

    Args:
        uid: Its uid.
        instance: The LaminDB instance for which it waits, as in `Job`.
        instance_id: Likewise.
        folder: Its spool.
        is_held: Whether its jobs are left to `sync`: LaminDB is not asked for anything here.
    """

    uid: str
    instance: str
    instance_id: str
    folder: str
    is_held: bool

    @classmethod
    def current(cls) -> "SpooledRun | None":
        """Return the run of this job, or of the process that started this one, if it is one."""
        text = os.environ.get(SPOOLED_VARIABLE)
        found = cls(**json.loads(text)) if text else None
        return found if found and found.uid == os.environ.get(RUN_UID_VARIABLE) else None

    def to_environment(self) -> None:
        """Let this process, and those that it starts, know the run."""
        os.environ[RUN_UID_VARIABLE] = self.uid
        os.environ[SPOOLED_VARIABLE] = json.dumps(asdict(self))

    def job(self, action: Action, **values: Any) -> Job:
        """Make a job of the run."""
        now = datetime.now(timezone.utc).isoformat(timespec="microseconds")
        return Job(action, self.uid, self.instance, self.instance_id, now, **values)

    def add(self, job: Job, file: Path | None = None) -> None:
        """Spool a job, and leave the spool to whoever publishes.

        Raises:
            OSError: The spool cannot be written.
        """
        spool = Spool(Path(self.folder))
        name, job = spool.add(job, file)
        spool.make_durable({name: job})


def stand_in(uid: str, notes: Mapping[str, Any] | None = None) -> Any:
    """Return a `lamindb.Run` that is not saved, in the place of one that is not in LaminDB yet.

    Args:
        uid: Uid of the run.
        notes: Its times, params and record, as the job with which it began holds them.
    """
    import lamindb as ln

    values: dict[str, Any] = {column.attname: None for column in ln.Run._meta.concrete_fields}
    values |= {"uid": uid, "_status_code": -1, "extra_data": {EXTRA_DATA_KEY: {}}}
    if notes is not None:
        if "started_at" in notes:
            values["started_at"] = datetime.fromisoformat(notes["started_at"])
        values["params"] = notes.get("params", {})
        values["extra_data"] = {EXTRA_DATA_KEY: notes.get("record", {})}
    return ln.Run(*values.values())  # as Django makes the object of a row


def stand_in_for(run: Any) -> Any:
    """Return a stand-in for a run that was read from LaminDB before that went away."""
    import lamindb as ln

    values = {column.attname: getattr(run, column.attname) for column in run._meta.concrete_fields}
    return ln.Run(*(values | {"id": None, "report_id": None}).values())


def is_stand_in(run: Any) -> bool:
    """Tell whether a run is not in LaminDB yet."""
    return run is not None and bool(run._state.adding)


def spools_of_runs() -> dict[str, Path]:
    """Return the spools of this user on this machine, and those below here, by their runs.

    That of a colleague in a shared folder is not this user's to go on with.
    """
    folders = (*known_spools(), *spools_below(Path.cwd()))
    ours = (folder for folder in folders if os.access(folder, os.W_OK))
    return {folder.name: Path(os.path.abspath(folder)) for folder in ours}


def spools_of(uid: str, record: Mapping[str, Any]) -> list[Spool]:
    """Return the spools of a run that can be reached: by this user's index, from here, or by name.

    Args:
        uid: Uid of the run.
        record: What lamin-train has noted in its `extra_data`, its spool among it.
    """
    folders = [folder for name, folder in spools_of_runs().items() if name == uid]
    noted = Path(str(record.get("spool") or ""))
    if noted.is_absolute() and (noted.parent.name, noted.name) == (FOLDER_NAME, uid):
        folders.append(noted)
    return [Spool(folder) for folder in dict.fromkeys(folders)]


def next_number() -> int:
    """Return a number for a run that begins here, larger than those of all that wait here."""
    begun = (beginning_in(folder) for folder in spools_of_runs().values())
    numbers = [order.of_beginning(job.notes)[0] for job in begun if job is not None]
    return 1 + max(numbers, default=0)


def beginning_in(folder: Path) -> Job | None:
    """Return the job with which a run began, where that waits in its spool."""
    with contextlib.suppress(OSError):  # it cannot be read, which `sync` says
        jobs = [job for _, job in Spool(folder).jobs()]
        return next((j for j in jobs if j.action == "begin" and not j.notes["goes_on"]), None)
    return None
