"""The run that the tasks of a SLURM job array share as their parent.

It is made by the task that comes first, and its status follows from those of the tasks. Its uid is
computed from the array's id, so that tasks which begin at the same moment, on any hosts, make one.
"""

import hashlib
import os
import string
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import Any

import lamindb as ln
from lamindb.base.types import RUN_STATUS_TO_CODE

from lamincli import __version__
from lamincli.errors import UsageError
from lamincli.features import EXTRA_DATA_KEY

WORD = "array"
_UID_LENGTH = 16
_STATUSES = {code: status for status, code in RUN_STATUS_TO_CODE.items()}


def of_job() -> dict[str, Any]:
    """Return the array that this job is a task of: its cluster, its id and its number of tasks.

    Raises:
        UsageError: This process is no task of a job array.
    """
    if "SLURM_ARRAY_JOB_ID" not in os.environ:
        raise UsageError(
            f"--lamin.parent {WORD}: this is no task of a SLURM job array. Submit one with sbatch "
            "--array, or give the uid of a run."
        )
    return {
        "cluster": os.environ.get("SLURM_CLUSTER_NAME", ""),
        "array_job_id": int(os.environ["SLURM_ARRAY_JOB_ID"]),
        "tasks": int(os.environ.get("SLURM_ARRAY_TASK_COUNT", "1")),
    }


def join(child: Any, array: Mapping[str, Any]) -> None:
    """Make a run a child of the run of its array, which is made if it is not there.

    Args:
        child: The run of a task, whose transform the parent gets. It may have a parent already.
        array: What `of_job` has returned there; empty where the run shall have no such parent.

    Durability: committed on return.
    """
    if array and child.initiated_by_run_id is None:
        child.initiated_by_run = _parent(child, array)
        child.save()
    settle(child)


def _parent(child: Any, array: Mapping[str, Any]) -> Any:
    number = array["array_job_id"]
    uid = _uid(f"{ln.setup.settings.instance._id.hex} {array['cluster']} {number}")
    record = {
        "version": __version__,
        "stage": WORD,
        "job": f"slurm:{array['cluster']}:{number}",
        "slurm": {"array_job_id": number},
        "tasks": array["tasks"],
    }
    parent = ln.Run(
        child.transform, name=f"array {number}", reference=str(number), reference_type="slurm",
        status="started",
    )  # fmt: skip
    parent.uid, parent.extra_data = uid, {EXTRA_DATA_KEY: record}
    # The row of another task stays as it is. save() would ask for it within the failed transaction.
    ln.Run.objects.bulk_create([parent], ignore_conflicts=True)
    return ln.Run.objects.get(uid=uid)


def settle(child: Any) -> None:
    """Give the parent of an array the status that follows from its tasks.

    It goes on until every task has ended, and is then as the worst of them. Whoever ends last sees
    the others ended, for each task is committed before it looks.
    """
    parent = child.initiated_by_run
    if ((parent and parent.extra_data) or {}).get(EXTRA_DATA_KEY, {}).get("stage") == WORD:
        _settle(parent)


def settle_those_over(is_over: Callable[[str], bool]) -> None:
    """Let arrays end of which no further task will begin, or whose last task was killed meanwhile.

    Args:
        is_over: Tells whether SLURM runs a job no more, by its id.
    """
    is_open = {"_status_code": RUN_STATUS_TO_CODE["started"], "reference_type": "slurm"}
    for parent in ln.Run.objects.filter(**is_open, name__startswith="array "):
        record = (parent.extra_data or {}).get(EXTRA_DATA_KEY, {})
        if record.get("stage") == WORD:
            _settle(parent, are_all_there=is_over(record.get("job", "")))


def _settle(parent: Any, are_all_there: bool = False) -> None:
    runs = ln.Run.objects.filter(initiated_by_run=parent)
    task = f"extra_data__{EXTRA_DATA_KEY}__slurm__array_task_id"
    children = list(runs.values_list("_status_code", task, "finished_at"))
    statuses = {_STATUSES[code] for code, _, _ in children}
    begun = {number for _, number, _ in children}
    missing = parent.extra_data[EXTRA_DATA_KEY]["tasks"] - len(begun)
    if missing and are_all_there:
        statuses.add("aborted")
    elif missing:
        statuses.add("scheduled")
    if statuses & {"scheduled", "started", "restarted"}:
        status, ended = "started", None
    else:
        status = next(s for s in ("errored", "aborted", "completed") if s in statuses)
        ends = [finished_at for _, _, finished_at in children if finished_at is not None]
        ended = max(ends, default=datetime.now(timezone.utc))
    ln.Run.objects.filter(id=parent.id).update(
        _status_code=RUN_STATUS_TO_CODE[status], finished_at=ended
    )


def _uid(text: str) -> str:
    alphabet = string.digits + string.ascii_letters
    number, letters = int(hashlib.sha256(text.encode()).hexdigest(), 16), ""
    for _ in range(_UID_LENGTH):
        number, rest = divmod(number, len(alphabet))
        letters += alphabet[rest]
    return letters
