"""Finish the ends of runs whose process was killed between two steps of them.

A run ends in several steps: its metrics and their features, its status, that of its job array, its
log. The log is the last, and lies in the cache of this machine until it is a report. So a log that
is there still, of a run that has ended, tells that the rest may be missing too; every step may be
repeated.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import lamindb as ln

from lamincli import console, log
from lamincli.errors import first_line
from lamincli.features import EXTRA_DATA_KEY
from lamincli.process import ProcessIdentity
from lamincli.registry import runs
from lamincli.registry.outages import give_back_connections
from lamincli.spool import Spool, known_spools

_LONGEST_END = timedelta(hours=1)
"""After which a process that cannot be asked after, as on another host, has surely ended a run."""


def finish_ends() -> list[str]:
    """Finish what is missing of the ends of runs in the connected instance; returns their uids.

    Runs that are going on, or are being ended just now, are left alone, as are those whose end
    waits in a spool.
    """
    finished = []
    uids = list(log.left_in(Path(ln.setup.settings.cache_dir)))
    for run in ln.Run.objects.filter(uid__in=uids, finished_at__isnull=False):
        record = (run.extra_data or {}).get(EXTRA_DATA_KEY)
        if record is None or not _is_over(record, run.finished_at) or _waits(str(run.uid)):
            continue
        try:
            runs.finish_end(run)
            finished.append(str(run.uid))
        except Exception as error:  # of one run; a storage that is away, perhaps
            give_back_connections()
            console.warn(f"the end of run {run.uid} could not be finished: {first_line(error)}")
    if finished:
        console.say(f"finished what was left of the end of: {', '.join(finished)}")
    return finished


def _is_over(record: Mapping[str, Any], finished_at: datetime) -> bool:
    """Tell whether nobody is ending a run that has ended any more."""
    process = ProcessIdentity.from_dict(record.get("process"))
    if process is not None and process.is_gone():
        return True
    is_long_ago = datetime.now(timezone.utc) - finished_at > _LONGEST_END
    return is_long_ago and not (process is not None and process.is_alive())


def _waits(uid: str) -> bool:
    spools = (Spool(folder) for folder in known_spools() if folder.name == uid)
    return any(spool.holds("close") for spool in spools)
