"""``lamin-train sync``: publish what earlier jobs on this machine left in their spools."""

import os
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from lamincli import console, log, order
from lamincli.console import one_line
from lamincli.errors import InstanceError, UnreachableError, first_line
from lamincli.instance import DEFAULT_FOLDER, connected, find_near, is_remote, is_same
from lamincli.publisher import Publisher
from lamincli.spool import Entry, Job, Spool, known_spools, missing_spools, places_of, spools_below
from lamincli.spool.lock import SILENT_S

_T = TypeVar("_T")
_PATIENCE_S = SILENT_S + 15.0
"""How long another process that has a spool may get nothing done."""
_LOOKS_EVERY_S = 0.2


def main(words: Sequence[str]) -> int:
    """Publish what is left, into the instance and the run of each job.

    Args:
        words: The words after ``sync``.

    Returns:
        0 if nothing is left, 2 if there is no such folder, 3 if jobs are left.
    """
    parser = console.CommandParser(
        prog="lamin-train sync",
        description="Publish the checkpoints that earlier trainings saved and LaminDB does not "
        "have yet, those of crashed ones included. Jobs that were set aside are tried again. Safe "
        "while a training is running, and to repeat. What your own lamin-train has not written, as "
        "in a clone, an archive or a colleague's folder, is only listed.",
    )
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        help="only what was left in this project folder, or in this spool; the default is all "
        "that this user has left on this machine",
    )
    parser.add_argument("--dry-run", action="store_true", help="only list what would be done")
    parser.add_argument(
        "--trust",
        action="store_true",
        help="also publish what somebody else, another machine or an earlier version has left in "
        "FOLDER, into the instance that it names; look at it first with --dry-run",
    )
    parser.add_argument(
        "--discard",
        action="store_true",
        help="forget for ever what was left in FOLDER, as when its instance is gone; the "
        "checkpoints themselves stay where they are",
    )
    options = parser.parse_args(words)
    for name in ("discard", "trust"):
        if getattr(options, name) and options.folder is None:
            console.fail(f"--{name} needs a folder: lamin-train sync FOLDER --{name}")
            return 2
    if options.discard and (gone := Path(os.path.abspath(options.folder))) in missing_spools():
        Spool(gone).discard()
        console.say(f"{gone} is forgotten")
        return 0
    if options.folder is not None and not options.folder.is_dir():
        console.fail(f"There is no folder {options.folder}.")
        return 2
    found = spools_below(options.folder or Path.cwd())
    folders = {Path(os.path.abspath(folder)): None for folder in found}
    if options.folder is None:
        folders |= dict.fromkeys(known_spools())
    others = [folder for folder in folders if not os.access(folder, os.W_OK)]
    for folder in others:
        console.warn(f"{folder} is left as it is: you may not write there, or it is read-only")
        del folders[folder]
    # A run begins after the one that started it.
    spools = sorted((_open(folder, options.trust) for folder in folders), key=_began_at)
    if options.dry_run:
        for spool in spools:
            _apart(spool, _list, None)
        if not spools:
            console.say("nothing to publish")
        return 0
    if options.discard:
        discarded = [_apart(spool, _discard, False) for spool in spools]
        return 0 if all(discarded) and not others else 3
    left = [_apart(spool, _publish, (1, 1)) for spool in spools]
    has_finished = not spools and _finish_ends()
    if not any(number for number, _ in left) and not has_finished:
        console.say("nothing to publish")
    return 3 if others or any(rest for _, rest in left) else 0


def _finish_ends() -> bool:
    """Finish ends of runs in the instance of this folder; returns whether there were any.

    Those of other instances are finished by `doctor`, or the next start, where they are connected.
    """
    from lamindb_setup import settings

    with suppress(Exception):  # it is away, or gone: nothing waits in a spool all the same
        logs = log.left_in(Path(settings.cache_dir)).values()
        if settings.is_configured and any(map(is_same, log.instances_of(logs))):
            with connected(None, create=False):
                from lamincli.closing import finish_ends

                return bool(finish_ends())
    return False


def _apart(spool: Spool, do: Callable[[Spool], _T], otherwise: _T) -> _T:
    """Do something with a spool; what is wrong with it keeps nothing of the others back."""
    try:
        spool.check()
        return do(spool)
    except Exception as error:
        console.fail(f"{spool.folder} is left as it is: {first_line(error)}")
        spool.lock.release()
        return otherwise


def _open(folder: Path, trust: bool) -> Spool:
    spool = Spool(folder)
    with suppress(OSError):  # said when it is published
        return Spool(folder, is_trusted=True) if trust and spool.foreign() else spool
    return spool


def _began_at(spool: Spool) -> tuple[int, str]:
    jobs: list[Job] = []
    with suppress(OSError):
        jobs = [job for _, job in spool.jobs()]
    begun = (order.of_beginning(job.notes) for job in jobs if job.action == "begin")
    return next(begun, (order.UNNUMBERED, jobs[0].at if jobs else ""))


def _discard(spool: Spool) -> bool:
    """Forget the jobs of a spool; returns whether it could be done."""
    if not _take(spool):
        return False
    jobs = len(spool.pending()) + len(spool.names(spool.parked))
    spool.discard()
    spool.lock.release()
    console.say(f"{spool.folder}: {console.counted(jobs, 'job')} discarded")
    return True


def _list(spool: Spool) -> None:
    """List every job, with what it does."""
    holder = spool.lock.holder()
    console.say(f"{spool.folder}" + (f" (in use by {holder})" if holder is not None else ""))
    reasons = {name: reason for name, _, reason in spool.parked_jobs()}
    for entry in spool.entries():
        set_aside = reasons.get(entry.name) if entry.state == "parked" else None
        is_foreign = entry.job is not None and not entry.is_ours
        notes = ["not written by your lamin-train"] if is_foreign and not spool.is_trusted else []
        notes += [f"set aside: {set_aside}"] if set_aside else []
        about = "".join(f"\n    {note}" for note in notes)
        show = console.warn if notes else console.say
        show(f"  {one_line(f'{entry.state}/{entry.name}')}  {_describe(entry.job)}{about}")


def _describe(job: Job | None) -> str:
    if job is None:
        return "cannot be read"
    where = f"{job.instance}, storage {job.storage}" if job.storage else job.instance
    if job.action == "save":
        file = job.pin or job.local_path
        return one_line(f"save {file} ({_size(job.size_bytes)}) as {job.key} in {where}")
    if job.action == "remove":
        return one_line(f"remove {job.key} from {where}")
    what = f"close as {job.status}" if job.action == "close" else job.action
    return one_line(f"{what} run {job.run} in {where}")


def _tell_of_foreign(spool: Spool, foreign: list[Entry]) -> None:
    """List what is not acted on, and say how the user can let it be."""
    console.warn(
        f"{spool.folder}: {console.counted(len(foreign), 'job')} not written by your "
        "lamin-train, but by another user, another machine or an earlier version:"
    )
    for entry in foreign:
        console.say(f"  {one_line(f'{entry.state}/{entry.name}')}  {_describe(entry.job)}")
    place = shlex.quote(os.path.relpath(spool.folder))
    console.say(f"nothing was done with them. If you trust them: lamin-train sync {place} --trust")


def _size(size_bytes: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= scale:
            return f"{size_bytes / scale:.1f} {unit}"
    return f"{size_bytes} bytes"


def _publish(spool: Spool) -> tuple[int, int]:
    """Publish one spool; returns the numbers of jobs that it had and that are left."""
    foreign = spool.foreign()
    if foreign:
        _tell_of_foreign(spool, foreign)
    if foreign and not any(entry.is_ours for entry in spool.entries()):
        return len(foreign), len(foreign)
    number, left = _publish_ours(spool)
    return number + len(foreign), left + len(foreign)


def _publish_ours(spool: Spool) -> tuple[int, int]:
    """Publish what may be published of one spool."""
    before = _left(spool)
    if not _take(spool):
        left = _left(spool)
        return max(before, left, 1), left
    try:
        number, left = _publish_taken(spool)
    finally:
        spool.lock.release()
    if before and not number:  # whoever had it has done them
        console.say(f"{_run(spool)}: all {before} jobs are done")
    return max(before, number), left


def _take(spool: Spool) -> bool:
    """Take a spool; another `sync` is waited for, while it gets on, and a training is not.

    Who has it is said, and whether this waits. One on another host that does not show that it lives
    is waited for until it is certain that it does not.
    """
    said: set[str] = set()
    progress_s, left = time.monotonic(), -1
    while not spool.lock.acquire("sync"):
        holder, now_s = spool.lock.holder(), time.monotonic()
        if (now := _left(spool)) != left:
            progress_s, left = now_s, now
        is_over = now_s - progress_s > _PATIENCE_S
        is_training = holder is not None and holder.what != "sync" and holder.is_alive
        if is_training or is_over:
            tell = console.warn if left else console.say
            rest = f"{console.counted(left, 'job')} left" if left else "nothing waits"
            who = holder or "another process"
            tell(f"{_run(spool)} is being published by {who}: {rest}")
            return False
        if holder is not None and str(holder) not in said:
            said.add(str(holder))
            what = "to see whether it lives" if holder.what != "sync" else "for it"
            console.say(f"{_run(spool)} is being published by {holder}; waiting {what}")
        time.sleep(_LOOKS_EVERY_S)
    return True


def _run(spool: Spool) -> str:
    return f"run {spool.folder.name}"


def _left(spool: Spool) -> int:
    """Return how many jobs wait in a spool to be done, those of somebody else aside."""
    foreign = [entry for entry in spool.foreign() if entry.state != spool.deferred.name]
    return len(spool.pending()) + len(spool.names(spool.parked)) - len(foreign)


def _publish_taken(spool: Spool) -> tuple[int, int]:
    """Publish the jobs of a spool that this process has; returns their number, and what is left."""
    spool.unpark()
    spool.recover()
    jobs = [job for name in spool.pending() if (job := spool.read(name)) is not None]
    for name, _, reason in spool.parked_jobs():
        kept = "".join(f"; its file is kept: {file}" for file in spool.files_of(name))
        console.warn(f"{spool.folder.name}/{name} is set aside: {reason}{kept}")
    if not jobs:
        left = _left(spool)
        spool.close()
        return left, left
    first = jobs[0]
    from lamincli.registry.outages import reaching

    try:
        with reaching(first.instance), _connected(spool, first) as slug:
            done = _publish_into(spool, first, slug)
    except Exception as error:  # of one spool; the others are published all the same
        left = _left(spool)
        console.fail(
            f"{console.counted(len(jobs), 'job')} of run {first.run} not yet in {first.instance}: "
            f"{first_line(error)}"
        )
        if isinstance(error, InstanceError) and not isinstance(error, UnreachableError):
            place = shlex.quote(os.path.relpath(spool.folder))
            console.say(f"if it is gone for ever: lamin-train sync --discard {place}")
        return left, left
    left = _left(spool)
    of = f"run {first.run}" if first.run else "no run"
    console.say(f"{of} in {slug}: {done} of {done + left} jobs done")
    return done + left, left


@contextmanager
def _connected(spool: Spool, job: Job) -> Iterator[str]:
    """Connect the instance of a job, that which lies with the project first: it has moved with it.

    A local one is also connected if only another home knows it by its name.
    """
    places = [place.parents[1] for place in places_of(spool.folder.name)]
    near = None
    if job.instance_id and not is_remote(job.instance):
        near = find_near(spool.project, job.instance_id, places)
    beside = spool.project / DEFAULT_FOLDER
    with ExitStack() as stack:
        try:
            instance = job.instance if near is None else str(near)
            slug = stack.enter_context(connected(instance, create=False))
        except InstanceError:
            if near is not None or not beside.is_dir():
                raise
            slug = stack.enter_context(connected(str(beside), create=False))
        yield slug


def _publish_into(spool: Spool, first: Job, slug: str) -> int:
    """Publish into the connected instance; returns how many jobs are done."""
    import lamindb as ln

    from lamincli.closing import finish_ends
    from lamincli.rebuilding import rebuild
    from lamincli.registry.lamin import LaminRegistry
    from lamincli.registry.runs import leave_context
    from lamincli.tracking import close_killed, save_left_log

    instance_id = ln.setup.settings.instance._id.hex
    if first.instance_id and instance_id != first.instance_id:
        raise InstanceError(
            f"{slug} is another instance by now: its id is {instance_id}, not {first.instance_id}."
        )
    run = ln.Run.objects.filter(uid=first.run).first()
    begins = any(job.action == "begin" and not job.notes.get("goes_on") for _, job in spool.jobs())
    if run is None and first.run and not begins and not rebuild(spool):
        raise InstanceError(f"It has no run {first.run}.")
    # New artifacts get the project of the context, as in the training itself.
    ln.context._project = run and run.projects.first()
    try:
        if spool.holds("begin"):
            close_killed(spool)
        publisher = Publisher(spool, LaminRegistry(is_contained=spool.is_trusted), inline=True)
        publisher.take_over()
        publisher.drain()
        publisher.close()
        if ln.Run.objects.filter(uid=first.run).exists():
            save_left_log(first.run)
        finish_ends()
    finally:
        leave_context()
    return publisher.done
