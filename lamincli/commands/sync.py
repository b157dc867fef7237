"""``lamin-train sync``: publish what earlier jobs on this machine left in their spools."""

import argparse
import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lamincli import console
from lamincli.errors import InstanceError, first_line
from lamincli.instance import DEFAULT_FOLDER, connected
from lamincli.publisher import Publisher
from lamincli.spool import Job, Spool, known_spools, spools_below


def main(words: Sequence[str]) -> int:
    """Publish what is left, into the instance and the run of each job.

    Args:
        words: The words after ``sync``.

    Returns:
        0 if nothing is left, 2 if there is no such folder, 3 if jobs are left.
    """
    parser = argparse.ArgumentParser(
        prog="lamin-train sync",
        description="Publish the checkpoints that earlier trainings saved and LaminDB does not "
        "have yet, those of crashed ones included. Jobs that were set aside are tried again. Safe "
        "while a training is running, and to repeat.",
    )
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        help="only what was left in this project folder, or in this spool; the default is all "
        "that this user has left on this machine",
    )
    parser.add_argument("--dry-run", action="store_true", help="only list what would be published")
    parser.add_argument(
        "--discard",
        action="store_true",
        help="forget for ever what was left in FOLDER, as when its instance is gone; the "
        "checkpoints themselves stay where they are",
    )
    options = parser.parse_args(words)
    if options.discard and options.folder is None:
        console.fail("--discard needs a folder: lamin-train sync --discard FOLDER")
        return 2
    if options.folder is not None and not options.folder.is_dir():
        console.fail(f"There is no folder {options.folder}.")
        return 2
    found = spools_below(options.folder or Path.cwd())
    folders = {Path(os.path.abspath(folder)): None for folder in found}
    if options.folder is None:
        folders |= dict.fromkeys(known_spools())
    others = [folder for folder in folders if not os.access(folder, os.W_OK)]
    for folder in others:
        console.warn(f"{folder} is left as it is: it is another user's, or on a disk to read only")
        del folders[folder]
    # A run begins after the one that started it.
    spools = sorted((Spool(folder) for folder in folders), key=_began_at)
    if options.dry_run:
        for spool in spools:
            _list(spool)
        if not spools:
            console.say("nothing to publish")
        return 0
    if options.discard:
        discarded = [_discard(spool) for spool in spools]
        return 0 if all(discarded) and not others else 3
    left = [_publish(spool) for spool in spools]
    if not any(number for number, _ in left):
        console.say("nothing to publish")
    return 3 if others or any(rest for _, rest in left) else 0


def _began_at(spool: Spool) -> str:
    return next((job.at for _, job in spool.jobs()), "")


def _discard(spool: Spool) -> bool:
    """Forget the jobs of a spool; returns whether it could be done."""
    if not spool.lock.acquire():
        console.fail(f"{spool.folder} is in use by its training.")
        return False
    jobs = len(spool.pending()) + len(spool.names(spool.parked))
    spool.lock.release()
    spool.discard()
    console.say(f"{spool.folder}: {jobs} job{'s' * (jobs != 1)} discarded")
    return True


def _list(spool: Spool) -> None:
    is_free = spool.lock.acquire()
    console.say(f"{spool.folder}" + ("" if is_free else " (in use by its training)"))
    for state in (spool.claimed, spool.ready, spool.deferred):
        for name in spool.names(state):
            job = spool.look(state, name)
            console.say(f"  {name}  {_describe(job)}")
    for name, job, reason in spool.parked_jobs():
        console.warn(f"  {name}  {_describe(job)}\n    set aside: {reason}")
    spool.lock.release()


def _describe(job: Job | None) -> str:
    if job is None:
        return "cannot be read"
    if job.action == "save":
        return f"save {job.local_path} as {job.key} in {job.instance}, {_size(job.size_bytes)}"
    if job.action == "remove":
        return f"remove {job.key} from {job.instance}"
    what = f"close as {job.status}" if job.action == "close" else job.action
    return f"{what} run {job.run} in {job.instance}"


def _size(size_bytes: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= scale:
            return f"{size_bytes / scale:.1f} {unit}"
    return f"{size_bytes} bytes"


def _publish(spool: Spool) -> tuple[int, int]:
    """Publish one spool; returns the numbers of jobs that it had and that are left."""
    if not spool.lock.acquire():
        console.say(f"{spool.folder.name}: its own training publishes it")
        return 1, 0
    spool.unpark()
    spool.recover()
    jobs = [job for name in spool.pending() if (job := spool.read(name)) is not None]
    spool.lock.release()
    unreadable = len(spool.names(spool.parked))
    for name, _, reason in spool.parked_jobs():
        console.warn(f"{spool.folder.name}/{name} is set aside: {reason}")
    if not jobs:
        if not unreadable and spool.lock.acquire():
            spool.close()
        return unreadable, unreadable
    first = jobs[0]
    try:
        with _connected(spool, first.instance) as slug:
            return len(jobs), _publish_into(spool, first, slug, len(jobs))
    except Exception as error:  # of one spool; the others are published all the same
        console.fail(
            f"{len(jobs)} jobs of run {first.run} wait for {first.instance}: {first_line(error)}"
        )
        if isinstance(error, InstanceError):
            place = shlex.quote(os.path.relpath(spool.folder))
            console.say(f"if it is gone for ever: lamin-train sync --discard {place}")
        return len(jobs) + unreadable, len(jobs) + unreadable


@contextmanager
def _connected(spool: Spool, instance: str) -> Iterator[str]:
    """Connect the instance of a job: a local one also if only another home knows it, by name."""
    beside = spool.folder.parents[1] / DEFAULT_FOLDER
    with ExitStack() as stack:
        try:
            slug = stack.enter_context(connected(instance, create=False))
        except InstanceError:
            if not beside.is_dir():
                raise
            slug = stack.enter_context(connected(str(beside), create=False))
        yield slug


def _publish_into(spool: Spool, first: Job, slug: str, number: int) -> int:
    import lamindb as ln

    from lamincli.registry.lamin import LaminRegistry
    from lamincli.registry.runs import leave_context
    from lamincli.tracking import close_killed, save_left_log

    instance_id = ln.setup.settings.instance._id.hex
    if first.instance_id and instance_id != first.instance_id:
        raise InstanceError(
            f"{slug} is another instance by now: its id is {instance_id}, not {first.instance_id}."
        )
    run = ln.Run.objects.filter(uid=first.run).first()
    begun = spool.holds("begin")
    if run is None and first.run and not begun:
        raise InstanceError(f"It has no run {first.run}.")
    # New artifacts get the project of the context, as in the training itself.
    ln.context._project = run and run.projects.first()
    try:
        number += begun and close_killed(spool)
        publisher = Publisher(spool, LaminRegistry(), inline=True)
        left = publisher.drain()
        publisher.close()
        if ln.Run.objects.filter(uid=first.run).exists():
            save_left_log(first.run)
    finally:
        leave_context()
    of = f"run {first.run}" if first.run else "no run"
    console.say(f"{of} in {slug}: {number - left} of {number} jobs done")
    return left
