"""The durable queue between training and LaminDB: one folder a run, one file a job.

Nothing but the standard library is imported here. ``ls`` explains the folder::

    .lamin_spool/<run uid>/
    ├── ready/00000001.json     jobs, in the order in which they were made
    ├── claimed/                the job that is being published
    ├── parked/                  jobs that cannot be published for now, each with its reason
    ├── pins/00000001/a.ckpt    the file of a job: a hard link to what Lightning saved
    ├── tmp/                    files that are being written
    └── lock                    held by the process that publishes

A job moves between the states by rename(2), which nothing can tear. A pin lives exactly as long
as its job. A job file in ``ready`` is an acknowledged checkpoint.
"""

from lamincli.spool.folder import NOT_OURS, Entry, Spool, left_behind
from lamincli.spool.index import known_spools, spools_below
from lamincli.spool.job import Action, Job

__all__ = [
    "NOT_OURS",
    "Action",
    "Entry",
    "Job",
    "Spool",
    "known_spools",
    "left_behind",
    "spools_below",
]
