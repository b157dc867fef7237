"""The durable queue between training and LaminDB: one folder a run, one file a job.

Nothing but the standard library is imported here. ``ls`` explains the folder::

    .lamin_spool/<run uid>/
    ├── ready/00000001.json     jobs, in the order in which they were made
    ├── claimed/                the job that is being published
    ├── parked/                  jobs that cannot be published for now, each with its reason
    ├── pins/00000001/a.ckpt    the file of a job: a hard link to what Lightning saved
    ├── deferred/history.json   the job of a file that still grows
    ├── last/00000001           the last number that was given
    ├── tmp/                    files that are being written, with the process that writes them
    └── lock, lock.5f3a…        held by the process that publishes, and who that is

A job moves between the states by rename(2), which nothing can tear. A pin lives exactly as long
as its job. A job file in ``ready`` is an acknowledged checkpoint.
"""

from lamincli.spool.folder import NOT_OURS, Entry, Spool, left_behind
from lamincli.spool.index import (
    known_spools,
    missing_spools,
    places_of,
    spools_below,
    spools_in,
)
from lamincli.spool.job import Action, Job

__all__ = [
    "NOT_OURS",
    "Action",
    "Entry",
    "Job",
    "Spool",
    "known_spools",
    "left_behind",
    "missing_spools",
    "places_of",
    "spools_below",
    "spools_in",
]
