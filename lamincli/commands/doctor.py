"""``lamin-train doctor``: is everything in place, and are all runs closed that have ended?"""

import platform
import shlex
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from uuid import uuid4

from lamincli import __version__, console
from lamincli.connection import reached
from lamincli.errors import InstanceError
from lamincli.instance import DEFAULT_FOLDER
from lamincli.spool import Spool, left_behind, missing_spools, spools_below

TESTED = {"lightning": "2.6.6", "jsonargparse": "4.53.0", "lamindb": "2.12.1", "torch": "2.13.0"}
"""The versions that the tests run with; of another minor version, nothing is known."""


def main(words: Sequence[str]) -> int:
    """Check, mend what can be mended, and report.

    Args:
        words: The words after ``doctor``.

    Returns:
        0 if all is well, else 1.
    """
    parser = console.CommandParser(
        prog="lamin-train doctor",
        description="Check versions, instance, storage and what is not published yet, and close "
        "the runs whose process on this machine, or whose SLURM job, is gone.",
    )
    parser.add_argument("--instance", help="owner/name, or a folder for a local instance")
    options = parser.parse_args(words)
    versions = {name: _version(name) for name in TESTED}
    listed = ", ".join(f"{name} {found}" for name, found in versions.items())
    console.say(f"lamin-train {__version__} on Python {platform.python_version()}: {listed}")
    for name, tested in TESTED.items():
        if versions[name].split(".")[:2] != tested.split(".")[:2]:
            console.warn(f"{name} {versions[name]} is not tested with lamin-train; {tested} is")
    _tell_of_spools()
    try:
        return _check_instance(options.instance)
    except InstanceError as error:
        console.fail(str(error))
    except Exception as error:
        console.fail(f"the instance cannot be used: {type(error).__name__}: {error}")
    return 1


def _check_instance(instance: str | None) -> int:
    from lamindb_setup import settings

    if instance is None and not settings.is_configured and not DEFAULT_FOLDER.exists():
        console.say(f"no instance connected; a training creates a local one in {DEFAULT_FOLDER}")
        return 0
    with reached(instance) as slug:
        import lamindb as ln

        from lamincli.closing import finish_ends
        from lamincli.tracking import close_gone_runs, close_lost_jobs

        console.say(f"instance {slug}: {ln.Run.filter().count()} runs, {_where(ln)}")
        storage = ln.settings.storage
        if unwritable := _why_unwritable(storage.root):
            console.fail(f"storage {storage.root_as_str} cannot be written: {unwritable}")
        if not close_gone_runs() + close_lost_jobs() + finish_ends():
            console.say("no run to close")
    return 1 if unwritable else 0


def _tell_of_spools() -> None:
    left = left_behind(spools_below(Path.cwd()))
    for folder, jobs in left.items():
        console.warn(f"{console.counted(jobs, 'job')} not published: {folder}")
        for name, job, reason in Spool(folder).parked_jobs():
            cause = reason.splitlines()[-1]
            console.warn(f"  set aside: {job.local_path if job else name}: {cause}")
    found = {folder.name for folder in left}
    missing = [folder for folder in missing_spools() if folder.name not in found]
    for folder in missing:
        console.warn(
            f"{folder} is not there now, and may have jobs that are not published. If its project "
            "has moved, run lamin-train sync in it; if it is gone for ever: "
            f"lamin-train sync --discard {shlex.quote(str(folder))}"
        )
    if left:
        console.say("publish them with: lamin-train sync")
    elif not missing:
        console.say("nothing waits to be published")


def _where(ln: Any) -> str:
    return f"{ln.setup.settings.instance.dialect}, storage {ln.settings.storage.root_as_str}"


def _why_unwritable(root: Any) -> str | None:
    probe = root / ".lamindb" / f"lamin-train-doctor-{uuid4().hex}"
    try:
        probe.write_text("written by lamin-train doctor", encoding="utf-8")
        probe.unlink()
    except Exception as error:  # every storage has its own kinds of errors
        return f"{type(error).__name__}: {error}"
    return None


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"
