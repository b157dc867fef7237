"""What a job of somebody else may do, once the user trusts it: publish a file of its own spool.

Nothing here looks at the disk: a job comes in, and what is left of it goes out.
"""

from dataclasses import replace
from pathlib import PurePath
from typing import Any

from lamincli.errors import UntrustedError
from lamincli.spool.job import Job


def contained(job: Job, name: str) -> Job:
    """Return what a job of somebody else may do.

    Args:
        job: The job.
        name: The name of its file.

    Raises:
        UntrustedError: It is no such job.
    """
    if job.pin and PurePath(job.pin).parts[:-1] != ("pins", name.partition(".")[0]):
        raise UntrustedError(f"{job.pin} is no file of this spool")
    job = replace(job, doomed={})  # what it says is being deleted may be anybody's
    return replace(job, notes=_of_beginning(job)) if job.action == "begin" else job


def _of_beginning(job: Job) -> dict[str, Any]:
    """Return what a run begins with, without what is looked up in other instances."""
    references = job.notes.get("references") or {}
    here = {text: about for text, about in references.items() if _is_here(about, job)}
    used = job.notes.get("used") or {}
    return {**job.notes, "references": here, "used": used if _is_here(used, job) else {}}


def _is_here(about: Any, job: Job) -> bool:
    return isinstance(about, dict) and about.get("instance") in (None, "", job.instance)
