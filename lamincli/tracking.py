"""The life of a Run: begin it, tell every rank, and close it however the job ends.

A run that cannot be begun in LaminDB, for that is away or shall not be asked, is begun in its
spool: training goes on, and the publisher or `lamin-train sync` makes the record that would have
been made. What is written to LaminDB is in ``registry/runs.py``. This file touches the private
parts of lamindb that make a run the current one; each is named in ``docs/design.md``.
"""

import contextlib
import hashlib
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from functools import partial
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

import lamindb as ln
from django.db import DatabaseError, InterfaceError, transaction
from lamindb.base.types import RUN_STATUS_TO_CODE
from lamindb.base.uids import base62_16

from lamincli import __version__, console, hardware, slurm
from lamincli.closing import finish_ends
from lamincli.console import visible
from lamincli.endings import Status, in_short, shown
from lamincli.errors import (
    InstanceError,
    RecordError,
    UnreachableError,
    did_you_mean,
    first_line,
)
from lamincli.features import EXTRA_DATA_KEY, as_json, metric_values, strings_in
from lamincli.instance import Target
from lamincli.loaded import CHANGED
from lamincli.log import RunLog
from lamincli.offline import (
    SpooledRun,
    next_number,
    spools_of,
    spools_of_runs,
    stand_in,
    stand_in_for,
)
from lamincli.options import LaminOptions
from lamincli.process import (
    PARENT_VARIABLE,
    REPRODUCES_VARIABLE,
    RUN_UID_VARIABLE,
    SPOOLED_VARIABLE,
    ProcessIdentity,
    fit_number,
    job_id,
    started_program,
)
from lamincli.publisher import END_OF_RUN, Publisher, name_of
from lamincli.redaction import learn, redact, redact_argv, secrets_in_code
from lamincli.references import find_run
from lamincli.registry import arrays, runs
from lamincli.registry.lamin import LaminRegistry, how_to_create
from lamincli.registry.outages import asking, give_back_connections, storing, with_new_connection
from lamincli.registry.runs import Beginning, silent_lamindb
from lamincli.source import DOUBTS, Source, hashes_of_modules
from lamincli.spool import Job, Spool, known_spools
from lamincli.spool.index import FOLDER_NAME
from lamincli.spool.lock import Holder

_LATER = " now, but will be by lamin-train sync"
_MOST_NAMED = 5
_OWNED: set[str] = set()  # uids of the open runs that this process began


@dataclass(frozen=True)
class Place:
    """Where a run is recorded: in LaminDB, or in its spool if that is away.

    Args:
        target: The instance.
        root: The folder in which the spools of this job lie.
        why: Why LaminDB is not asked; empty where it is.
        is_held: Whether it shall not be asked later either, by this job.
    """

    target: Target
    root: Path
    why: str = ""
    is_held: bool = False


@dataclass
class TrackedRun:
    """A run of this process.

    Args:
        record: The `lamindb.Run`; what stands in its place while it is not in LaminDB.
        slug: The instance, owner/name.
        owned: Whether we began it; a run that the script began is the script's to end.
        log: The log of the run; `None` for a run of the script, whose log lamindb keeps.
        context_before: lamindb's context when the run began, for a run within a run.
        spool: The folder of the run's spool, where its end waits if it cannot be recorded.
        before: Columns of a run that goes on, as they were.
        ends: Jobs that would have closed it, with their spools.
        spooled: What is known of a run that is not in LaminDB yet.
        is_attempt: Whether that is one that goes on.
        is_task: Whether the array that this job is a task of counts on it.
        attempt: When this attempt began, by which the list of attempts knows it.
        ended: What its record is to hold that is known only when it ends.
    """

    record: Any
    slug: str
    owned: bool
    log: RunLog | None = None
    context_before: dict[str, Any] = field(default_factory=dict)
    spool: Path = Path(FOLDER_NAME)
    _metrics: dict[str, Any] = field(default_factory=dict, init=False)
    _best: dict[str, Any] = field(default_factory=dict, init=False)
    before: dict[str, Any] = field(default_factory=dict)
    ends: list[tuple[Path, Job]] = field(default_factory=list)
    spooled: SpooledRun | None = None
    is_attempt: bool = False
    is_task: bool = False
    attempt: str = ""
    used: Any = None
    earlier_log: str = ""
    ended: dict[str, Any] = field(default_factory=dict)
    _evaluated: dict[str, Any] = field(default_factory=dict, init=False)
    _owed: set[str] = field(default_factory=set, init=False)
    _is_finished: bool = field(default=False, init=False)
    _publisher: Publisher | None = field(default=None, init=False)

    @property
    def uid(self) -> str:
        """The uid of the run."""
        return str(self.record.uid)

    @property
    def known(self) -> tuple[str, str, dict[str, Any]]:
        """Uid, instance, and what a stand-in of the run needs, as `memory.KnownJob` holds them."""
        record = self.record
        notes = {
            "started_at": record.started_at.isoformat(),
            "params": record.params,
            "record": (record.extra_data or {}).get(EXTRA_DATA_KEY, {}),
        }
        return self.uid, self.slug, notes

    @property
    def is_reproduction(self) -> bool:
        """Whether the run trains again what another one has trained."""
        return "reproduces" in (self.record.extra_data or {}).get(EXTRA_DATA_KEY, {})

    @property
    def was_complete(self) -> bool:
        """Whether this is a run that went on, although it was complete."""
        return bool(self.before.get("_status_code") == RUN_STATUS_TO_CODE["completed"])

    def note(self, text: str) -> None:
        """Write a line into the log alone."""
        if self.log is not None:
            self.log.write(f"{visible(text)}\n")

    def arrive(self) -> None:
        """Take the run from LaminDB as soon as the publisher has begun it there."""
        spooled = self.spooled
        if spooled is None or spooled.is_held or self._is_finished:
            return
        if Spool(Path(spooled.folder)).holds("begin"):
            return
        with contextlib.suppress(DatabaseError, InterfaceError):
            self.record = ln.context._run = ln.Run.objects.get(uid=self.uid)
            self.spooled = None

    def artifact_uid(self, key: str) -> str | None:
        """Return the uid of the artifact that this run has under a key, if it can be known."""
        if self.spooled is not None:
            return None
        try:
            artifact = ln.Artifact.filter(key=key, run=self.record).first()
        except (DatabaseError, InterfaceError):
            return None
        return str(artifact.uid) if artifact else None

    def key_of(self, description: str) -> str | None:
        """Return the key of an output with a description, if it can be known."""
        if self.spooled is not None:
            return None
        try:
            artifact = ln.Artifact.filter(description=description, run=self.record).first()
        except (DatabaseError, InterfaceError):
            return None
        return str(artifact.key) if artifact else None

    def add_features(self, values: dict[str, Any]) -> None:
        """Annotate the run, where no checkpoint callback does it."""
        values = {name: redact(value, name) for name, value in values.items()}
        if values and self.spooled is not None:
            self.spooled.add(self.spooled.job("annotate", named={"wanted": values}))
        elif values:
            self.record.features.add_values(values)

    def record_metrics(self, values: Mapping[str, float], best: Mapping[str, Any]) -> None:
        """Keep the last value of every metric, and as a run feature where one has its name.

        Args:
            values: The last values.
            best: By metric, the best value, the mode, and the file name of its checkpoint.
        """
        if not values:
            return
        self._metrics = redact(as_json(values))  # saved with the ending at the latest
        self._best = redact(as_json(best))
        if self.spooled is not None:
            return

        def record() -> None:
            runs.add_metrics(self.record, self._metrics, self._best)
            self.record.save()
            runs.add_metric_features(self.record, values)

        self._record(record, "the metrics of the run", f"the metrics could not be recorded{_LATER}")

    def annotate_evaluated(self, artifact: Any, metrics: Mapping[str, Any]) -> None:
        """Give a checkpoint its metrics, as features that exist; earlier values are replaced.

        Args:
            artifact: Its artifact, or what `find` knows it by while LaminDB is away.
            metrics: What was logged.
        """
        if isinstance(artifact, dict):
            self._evaluated = artifact
            return
        text = f"the metrics could not be added to {artifact.key}{_LATER}"
        annotate = partial(runs.annotate_evaluated, artifact, metric_values(metrics), self.record)
        self._evaluated = {"uid": str(artifact.uid)}
        if self._record(annotate, f"the metrics of {artifact.key}", text):
            self._evaluated = {}

    def finish(
        self,
        status: Status,
        error: BaseException | None = None,
        farewell: Callable[[], None] | None = None,
        reason: str = "",
    ) -> None:
        """Close the run, with its status, its end and its log. Further calls do nothing.

        A run of the script is left open. A database that has gone away is a warning.

        Args:
            status: How the job ended.
            error: What ended it, whose traceback the log shall hold.
            farewell: Says the last words, which are part of the log.
            reason: Why it ended so, in a line without secrets.
        """
        if self._is_finished or not self.owned:
            return
        self._is_finished = True
        ended = max(datetime.now(timezone.utc), self.record.started_at)  # clocks go back
        if self.spooled is not None:
            self._owed.add(END_OF_RUN)
        else:
            end = partial(runs.set_ending, self.record, status, ended, reason, notes=self.ended)
            self._record(end, END_OF_RUN, f"run {self.uid} will be closed by lamin-train sync")
        if farewell is not None:
            self._try("told about", farewell)
        if self.log is not None:
            if error is not None:
                self.log.write(visible("".join(traceback.format_exception(error))))
            self.log.close()
        if END_OF_RUN not in self._owed:
            text = f"run {self.uid} will be given its log by lamin-train sync"
            self._record(partial(runs.save_report, self.record), "the log of the run", text)
        if self._owed:
            if log := self._log_file():
                self._try("given a log without secrets", partial(runs.clean_log, log))
            self._try("closed", lambda: self._leave_ending(status, ended, reason))
        self._let_go()

    def _record(self, record: Callable[[], object], what: str, message: str) -> bool:
        """Record a part of the end, or leave it to `sync` if that cannot be done now.

        Args:
            record: Does it.
            what: Names it.
            message: What the user is told, before the reason.

        Returns:
            Whether it is recorded.
        """
        try:
            with_new_connection(record)
        except Exception as failure:
            if not self.owned:
                raise
            self._owed.add(what)
            console.warn(f"{message}: {first_line(failure)}")
        return what not in self._owed

    def left(self) -> list[str]:
        """Name what of the run is not in LaminDB yet, in the words of `Publisher.left`."""
        spool = Spool(self._spool_folder)
        with contextlib.suppress(OSError):
            waiting = [name_of(entry.job) if entry.job else entry.name for entry in spool.entries()]
            return list(dict.fromkeys([*waiting, *sorted(self._owed)]))
        return sorted(self._owed)

    def take_back(self, with_new: bool = False) -> None:
        """Undo the beginning of this run, for nothing will come of it.

        Args:
            with_new: Remove a new run too, unless something has come of it by now. Else only one
                that was to go on is left as it was.
        """
        is_new = not (self.before or self.is_attempt)
        if self._is_finished or not self.owned:
            return
        if is_new and not (with_new and not self.is_task and self._remove()):
            return
        self._is_finished = True
        if self.log is not None:
            self.log.close()
            with contextlib.suppress(OSError):
                if self.earlier_log:
                    self.log.path.write_text(self.earlier_log, encoding="utf-8")
                else:
                    self.log.path.unlink(missing_ok=True)
        if self.before:
            vars(self.record).update(self.before)
            self._try("left as it was", self.record.save)
            self._try("left as it was", partial(arrays.settle, self.record))
        elif self.is_attempt and self.spooled is not None:
            self._try("left as it was", partial(_forget_last_beginning, self.spooled))
        log = self._log_file() if self.earlier_log else None
        for folder, job in self.ends:
            self._try("left as it was", partial(_leave, folder, job, log))
        self._let_go()

    def _remove(self) -> bool:
        """Remove a new run; returns whether nothing stood in the way."""
        if self.spooled is None:
            return runs.remove(self.record)
        self.leave_spool()  # or it would be made again, as one that somebody has removed
        Spool(Path(self.spooled.folder)).discard()
        return True

    def goes_on_no_more(self, reason: str = "") -> None:
        """Close a run as aborted that was to go on by itself."""
        now = datetime.now(timezone.utc)
        if self.spooled is not None or END_OF_RUN in self._owed:
            close = partial(self._leave_ending, "aborted", now, reason)
        else:
            end = partial(runs.set_ending, self.record, "aborted", now, reason)
            close = partial(with_new_connection, end)
        self._try("closed as aborted", close)

    def hold_spool(self) -> None:
        """Let others know by the lock of the spool that this run goes on, also before it saves."""
        folder = Path(self.spooled.folder) if self.spooled is not None else self.spool
        self._publisher = Publisher.of(folder, LaminRegistry)
        self._publisher.hold()

    def leave_spool(self) -> None:
        """Leave the spool to a process that is about to be started, unless it is in use here."""
        if self._publisher is not None:
            self._publisher.release()

    def _let_go(self) -> None:
        self.leave_spool()
        ln.setup.logger.set_handler()
        _OWNED.discard(self.uid)
        vars(ln.context).update(self.context_before)
        give_back_connections()
        for variable in (RUN_UID_VARIABLE, SPOOLED_VARIABLE):
            os.environ.pop(variable, None)
        if ln.context.run is not None:
            os.environ[RUN_UID_VARIABLE] = str(ln.context.run.uid)

    def _try(self, what: str, step: Callable[[], None]) -> None:
        """Take one step of the end; none of them keeps the others from being taken."""
        try:
            step()
        except Exception as failure:
            with contextlib.suppress(OSError, ValueError):  # the terminal may have gone too
                console.warn(f"run {self.uid} could not be {what}: {first_line(failure)}")

    def _leave_ending(self, status: Status, ended: datetime, reason: str = "") -> None:
        if self.spooled is not None:
            job = self.spooled.job("close")
        else:
            instance = ln.setup.settings.instance
            job = Job("close", self.uid, instance.slug, instance._id.hex, "")
        notes: dict[str, Any] = {
            "metrics": self._metrics,
            "best": self._best,
            "evaluated": self._evaluated,
        }
        notes |= {"reason": reason, "attempt": self.attempt, "record": self.ended}
        job = replace(job, at=ended.isoformat(), status=status, notes=notes)
        _leave(self._spool_folder, job, self._log_file())

    @property
    def _spool_folder(self) -> Path:
        return Path(self.spooled.folder) if self.spooled is not None else self.spool

    def _log_file(self) -> Path | None:
        return self.log.path if self.log is not None and self.log.path.is_file() else None


def _leave(spool: Path, job: Job, file: Path | None = None) -> None:
    Publisher.of(spool, LaminRegistry).leave(job, file)


def _forget_last_beginning(spooled: SpooledRun) -> None:
    spool = Spool(Path(spooled.folder))
    begun = [name for name, job in spool.jobs() if job.action == "begin"]
    if begun and spool.lock.acquire():
        spool.drop(begun[-1])
        spool.lock.release()


def begin(
    options: LaminOptions,
    *,
    place: Place,
    source: Source,
    params: dict[str, Any],
    argv: Sequence[str],
    stage: str | None,
    trains: bool | None,
    model: str,
    resumes: Any = None,
    checkpoint: Mapping[str, Any] | None = None,
    parent: str | None = None,
    references: Mapping[str, dict[str, Any]] | None = None,
    artifacts: Mapping[str, Any] | None = None,
    used: Mapping[str, Any] | None = None,
) -> TrackedRun:
    """Begin the run of this job, or go on with the one that the script began, or an earlier one.

    Args:
        options: What the user asked to record.
        place: Where it is recorded.
        source: The code that becomes the transform.
        params: The resolved config; secrets are taken out here.
        argv: The words of the command line, without the program.
        stage: The subcommand, if there is one.
        trains: Whether that is a training; `None` where only its end can tell.
        model: Class path of the model.
        resumes: The run that goes on, in the place of a new one.
        checkpoint: What it goes on from, for the list of its attempts.
        parent: Uid of the run that this one follows; it makes a run of its own in any case.
        references: What was used, by the references that were typed, in words of `runs.find`.
        artifacts: Those that were looked up here, by the same references.
        used: Likewise for a checkpoint that is used from a local file.

    Returns:
        The run, saved or spooled, with its parameters and its log open.

    Raises:
        RecordError: A feature, project, space or branch does not exist or does not fit; all
            such mistakes at once, and no run was made.
        InstanceError: The instance refuses, or neither it nor a spool can be written.
    """
    outer = ln.context.run
    is_outers = outer is not None and outer.uid not in _OWNED and parent is None
    if is_outers and resumes is not None:
        raise RecordError(
            f"--lamin.resume cannot go on with {resumes.uid}: the script tracks run "
            f"{outer.uid}. Leave out its ln.track()."
        )
    if is_outers and place.why:
        raise InstanceError(
            f"{place.why}, and the script tracks run {outer.uid} there. Leave out its ln.track()."
        )
    array = arrays.of_job() if options.parent == arrays.WORD else {}
    named = None if array else options.parent
    learn(params)
    command = redact_argv(argv)
    uid = str(resumes.uid) if resumes is not None else base62_16()
    process = ProcessIdentity.current().to_dict()
    now = datetime.now(timezone.utc).isoformat()
    code, modules = runs.source_of(source, place.target.slug), hashes_of_modules()
    doubts = _doubts(source, modules)
    # Taken out, so that a training within this one is none.
    reproduced = os.environ.pop(REPRODUCES_VARIABLE, None)
    beginning = Beginning(
        uid=outer.uid if is_outers else uid,
        started_at=now,
        program=sys.argv[0],
        command=command,
        project=options.project or os.environ.get("LAMIN_CURRENT_PROJECT"),
        space=options.space,
        branch=options.branch,
        parent=parent or named or (outer and outer.uid) or os.environ.get(PARENT_VARIABLE),
        array=array,
        has_lightning_features=options.auto_features,
        params=redact(as_json(redact(params))),  # what only JSON has made a text of, too
        record=redact(
            {
                "version": __version__,
                "stage": stage,
                **({} if trains is not False else {"trains": False}),
                "model": model,
                "process": process,
                "job": job_id(),
                "fit_number": fit_number(),
                **({"slurm": facts} if (facts := slurm.facts()) else {}),
                "program": started_program(),
                "hardware": hardware.describe(),
                "files": _hashes_of_files(params),
                "spool": str(place.root / FOLDER_NAME / (outer.uid if is_outers else uid)),
                "modules": modules,
                **({"doubts": doubts} if doubts else {}),
                **({"reproduces": {"run": reproduced}} if reproduced else {}),
            }
        ),
        attempt={
            "host": process["host"],
            "started_at": now,
            "command": command,
            "checkpoint": redact(dict(checkpoint)) if checkpoint else None,
            "code": hashlib.sha256(code["code"].encode()).hexdigest()[:16],
        },
        references=dict(references or {}),
        used=dict(used or {}),
        goes_on=resumes is not None,
        **code,
    )
    if not is_outers and resumes is None:
        _tell_of_secrets(beginning)
    context_before = dict(vars(ln.context))
    try:
        tracked = _begin_somewhere(
            options, beginning, place, outer if is_outers else None, resumes, artifacts or {}
        )
    except BaseException as error:
        if not is_outers and not place.why:
            _end_what_has_begun(uid, error)
        vars(ln.context).update(context_before)
        raise
    tracked.spool = place.root / FOLDER_NAME / tracked.uid
    if tracked.owned:
        tracked.hold_spool()
        tracked.context_before = context_before
        tracked.attempt = beginning.attempt["started_at"]
        tracked.is_task = bool(array)
        _OWNED.add(tracked.uid)
        tracked.log = _open_log(tracked, command)
    return tracked


def _tell_of_secrets(beginning: Beginning) -> None:
    """Say which lines of the code, which is published as it is, hold a secret."""
    if found := secrets_in_code(beginning.code):
        named = ", ".join(str(one) for one in found[:_MOST_NAMED])
        more = f" and {len(found) - _MOST_NAMED} more" if len(found) > _MOST_NAMED else ""
        console.warn(
            f"{beginning.path or beginning.key} seems to hold secrets: {named}{more}. It is "
            "published as the transform of the run. Take them from environment variables."
        )


def _begin_somewhere(
    options: LaminOptions,
    beginning: Beginning,
    place: Place,
    outer: Any,
    resumes: Any,
    artifacts: Mapping[str, Any],
) -> TrackedRun:
    """Begin a run in LaminDB; in its spool, where that is away or goes away meanwhile."""
    context_before = dict(vars(ln.context))
    if not place.why:
        try:
            with asking(place.target.slug):
                tracked = _begin_in_registry(options, beginning, place, outer, resumes)
                tracked.used = runs.use_noted(tracked.record, beginning, artifacts)
                return tracked
        except UnreachableError as error:
            if outer is not None:
                raise
            give_back_connections()
            place = replace(place, why=str(error))
            vars(ln.context).update(context_before)
    named = None if beginning.array else options.parent
    if named is not None and len(named) != len(beginning.uid):
        raise RecordError(
            f"--lamin.parent {named}: {place.why.removesuffix('.')}, so the run cannot be "
            "looked up. Give its whole uid."
        )
    return _begin_in_spool(beginning, place, resumes)


def _end_what_has_begun(uid: str, error: BaseException) -> None:
    """Close a run whose row was written before something ended its beginning."""
    is_stopped = isinstance(error, (KeyboardInterrupt, SystemExit))
    with contextlib.suppress(Exception):
        run = ln.Run.objects.filter(uid=uid).first()
        record = ((run and run.extra_data) or {}).get(EXTRA_DATA_KEY, {})
        if record.get("process") == ProcessIdentity.current().to_dict():
            status = "aborted" if is_stopped else "errored"
            runs.set_ending(run, status, datetime.now(timezone.utc), shown(in_short(error)))
    os.environ.pop(RUN_UID_VARIABLE, None)


def _begin_in_registry(
    options: LaminOptions, beginning: Beginning, place: Place, outer: Any, resumes: Any
) -> TrackedRun:
    slug = place.target.slug
    _check_records(options, slug)
    if beginning.parent is not None and beginning.parent == options.parent:
        text = f"--lamin.parent {options.parent}"
        parent = str(find_run(options.parent, ln.Run.objects, slug, text).uid)
        beginning = replace(beginning, parent=parent)
    if options.auto_features:
        runs.ensure_lightning_features()
    close_gone_runs()
    finish_ends()
    if outer is not None:
        beginning = replace(beginning, params=outer.params or beginning.params)
        tracked = TrackedRun(outer, slug, owned=False)
    else:
        runs.leave_context()
        if resumes is None:
            environment = runs.environment_of(beginning.uid)
            with storing(slug):
                run = runs.begin(replace(beginning, environment=environment))
            tracked = TrackedRun(run, slug, owned=True)
        else:
            tracked = _reopen(resumes, slug, beginning.code)
    if outer is not None or resumes is not None:
        beginning.describe(tracked.record)
        tracked.record.save()
        arrays.join(tracked.record, beginning.array)
    os.environ[RUN_UID_VARIABLE] = tracked.uid
    return tracked


def _begin_in_spool(beginning: Beginning, place: Place, resumes: Any) -> TrackedRun:
    """Begin a run whose first job creates it, or lets it go on, in LaminDB later."""
    uid, target = beginning.uid, place.target
    folder = spools_of_runs().get(uid, place.root / FOLDER_NAME / uid)
    spooled = SpooledRun(uid, target.slug, target.id, str(folder), place.is_held)
    beginning = replace(beginning, number=next_number())
    if resumes is None:
        beginning = replace(beginning, environment=runs.environment_of(uid))
    job = spooled.job("begin", notes=asdict(beginning))
    try:
        spooled.add(job)
    except OSError as error:
        raise InstanceError(
            f"{place.why} The run cannot be kept in {folder} either: {first_line(error)}. Name a "
            "folder that can be written with --trainer.default_root_dir."
        ) from error
    runs.leave_context()
    record = stand_in(uid, job.notes) if resumes is None else stand_in_for(resumes)
    ln.context._run = record
    spooled.to_environment()
    when = "" if place.is_held else "when that returns, or later "
    console.say(
        f"{place.why.removesuffix('.')}; run {uid} is kept in {_short(folder)} and published "
        f"{when}by: lamin-train sync"
    )
    attempt = resumes is not None
    return TrackedRun(record, target.slug, owned=True, spooled=spooled, is_attempt=attempt)


def _short(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def _doubts(source: Source, modules: Mapping[str, str]) -> dict[str, str]:
    """Return the files of code that may not be what runs, with the doubt; tell what is certain."""
    doubts = {path: digest for path, digest in modules.items() if digest in DOUBTS}
    if source.doubt and source.path is not None:
        doubts = {_short(source.path): source.doubt, **doubts}
    if changed := [path for path, doubt in doubts.items() if doubt == CHANGED]:
        console.warn(
            f"{', '.join(changed)}: changed since Python loaded it, so the record cannot hold the "
            "code that runs. It says so. Start again to run and record what is there now."
        )
    return doubts


def _hashes_of_files(params: Mapping[str, Any]) -> dict[str, str]:
    """Return the content hashes of the local files that the config names as model or data.

    Of a large file lamindb hashes parts only, so this takes a fraction of a second.
    """
    from lamindb_setup.core.hashing import hash_file

    hashes = {}
    for section in ("model", "data", "ckpt_path"):
        for text in strings_in(params.get(section)):
            with contextlib.suppress(OSError, ValueError):
                if Path(text).is_file():
                    hashes[text] = hash_file(Path(text))[1]
    return hashes


def _reopen(run: Any, slug: str, code: str) -> TrackedRun:
    """Make an earlier run the current one again."""
    ended = [RUN_STATUS_TO_CODE[status] for status in ("completed", "errored", "aborted")]
    with runs.one_at_a_time():
        run.refresh_from_db()
        process = ProcessIdentity.from_dict(run.extra_data[EXTRA_DATA_KEY].get("process"))
        if run._status_code not in ended and process is not None and process.is_alive():
            raise RecordError(f"Run {run.uid} is going on already: process {process.pid}.")
        if holder := _trained_by(run.uid, run.extra_data[EXTRA_DATA_KEY]):
            raise RecordError(f"Run {run.uid} is going on already: it is in use by {holder}.")
        columns = ("_status_code", "finished_at", "extra_data", "params")
        earlier = {name: getattr(run, name) for name in columns}
        run._status_code = RUN_STATUS_TO_CODE["restarted"]
        run.finished_at = None
        mine = {**run.extra_data[EXTRA_DATA_KEY], "process": ProcessIdentity.current().to_dict()}
        run.extra_data = {**run.extra_data, EXTRA_DATA_KEY: mine}
        run.save()
    ends = []
    for folder in known_spools():  # its earlier end is none any more
        spool = Spool(folder)
        if folder.name != run.uid or not spool.lock.acquire():
            continue  # whoever has it records the end of that attempt, and this one goes on
        for name in spool.names():
            job = spool.look(spool.ready, name)
            if job is not None and job.action == "close":
                if job.pin and not runs.log_path(run.uid).exists():
                    shutil.copyfile(spool.pin_of(job), runs.log_path(run.uid))
                spool.drop(name)
                ends.append((folder, replace(job, pin="", size_bytes=0, stamp="")))
        spool.lock.release()
    recorded = run.transform.source_code
    if recorded and recorded not in (code, runs.stored_code(code)):
        console.warn(f"the code is not what run {run.uid} began with; its record keeps the first")
    ln.context._run, ln.context._transform = run, run.transform
    return TrackedRun(run, slug, owned=True, before=earlier, ends=ends)


def _trained_by(uid: str, record: Mapping[str, Any]) -> Holder | None:
    """Return the training that certainly has the spool of a run, if there is one."""
    if record.get("job") and record.get("job") == job_id():
        return None  # its scheduler has seen the attempt before end
    holders = (spool.lock.holder() for spool in spools_of(uid, record))
    return next((one for one in holders if one and one.is_alive and one.what != "sync"), None)


def _open_log(tracked: TrackedRun, command: str) -> RunLog | None:
    path = runs.log_path(tracked.uid)
    tracked.earlier_log = kept = _text_of(path)
    reported = ""
    if tracked.record.report_id is not None:
        with contextlib.suppress(Exception):  # else it is put before this one in the end
            reported = _text_of(Path(tracked.record.report.cache(is_run_input=False)))
    if not kept.startswith(reported):  # that of an attempt whose end was not published yet
        kept = f"{reported}\n{kept}" if kept else reported
    log = RunLog(path)
    header = f"run {tracked.uid} in {tracked.slug}\n$ {Path(sys.argv[0]).name} {command}\n"
    header = visible(header)
    try:
        log.open(f"{kept}\n{header}" if kept else header)
    except OSError as error:
        console.warn(f"the run has no log: {error}")
        return None
    ln.setup.logger.set_handler()  # lamindb's messages follow sys.stdout
    return log


def _text_of(log: Path) -> str:
    """Return the text of a log, which a power cut may have torn; an empty one if there is none."""
    return log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""


def adopt_from_parent() -> None:
    """Make the run of the parent current in a process that a strategy spawned as rank zero."""
    uid = os.environ.get(RUN_UID_VARIABLE)
    if ln.context.run is None and uid is not None and parent_process() is not None:
        if SpooledRun.current() is not None:
            ln.context._run = stand_in(uid)
            return
        ln.context._run = ln.Run.get(uid)
        ln.context._transform = ln.context._run.transform


def close_gone_runs() -> list[str]:
    """Close the runs of this machine whose process is gone, as aborted; returns their uids."""
    me = ProcessIdentity.current()
    here = {f"extra_data__{EXTRA_DATA_KEY}__process__host": me.host}

    def is_gone(record: Mapping[str, Any]) -> bool:
        process = ProcessIdentity.from_dict(record["process"])
        return process is not None and process != me and process.is_gone()

    return _close(ln.Run.objects.filter(**here), ["started", "restarted"], is_gone, "process")


def close_lost_jobs() -> list[str]:
    """Close the runs whose SLURM job is over, on any host, as aborted; returns their uids.

    Such a job was cancelled while it waited to go on, or its node has failed. An array of which
    some tasks have never begun ends with those that have.
    """
    runs_of_jobs = ln.Run.objects.filter(reference_type="slurm")

    def is_over(record: Mapping[str, Any]) -> bool:
        process = ProcessIdentity.from_dict(record.get("process"))
        is_seen = process is not None and process.is_alive()  # it has left its job
        is_task = record.get("stage") != arrays.WORD
        return is_task and not is_seen and slurm.is_over(record.get("job") or "")

    closed = _close(runs_of_jobs, ["scheduled", "started", "restarted"], is_over, "SLURM job")
    arrays.settle_those_over(slurm.is_over)
    return closed


def _close(
    some_runs: Any, statuses: Sequence[str], has_ended: Callable[[Mapping[str, Any]], bool], of: str
) -> list[str]:
    """Close runs as aborted that are open and have ended by what their record says.

    `finished_at` becomes the last sign of life: the last output in the log, where one is left.
    """
    open_codes = [RUN_STATUS_TO_CODE[status] for status in statuses]
    closed = []
    for run in some_runs.filter(_status_code__in=open_codes):
        record = (run.extra_data or {}).get(EXTRA_DATA_KEY)
        if record is None or not has_ended(record):
            continue
        spools = spools_of(run.uid, record)
        if any(spool.holds("close") for spool in spools):  # `sync` closes it, and truly
            continue
        if any(spool.lock.holder() for spool in spools):  # a rank of it lives, or `sync` is at it
            continue
        log = runs.log_path(run.uid)
        ended_s = log.stat().st_mtime if log.exists() else time.time()
        last_sign = max(datetime.fromtimestamp(ended_s, timezone.utc), run.started_at)
        # Only if it is open still: it may have ended, truly, since we asked.
        still_open = ln.Run.objects.filter(id=run.id, _status_code__in=open_codes)
        with transaction.atomic():
            ended = {"_status_code": RUN_STATUS_TO_CODE["aborted"], "finished_at": last_sign}
            if not still_open.update(**ended):
                continue
            run.refresh_from_db()
            runs.describe_ending(run, "aborted", last_sign, f"its {of} is gone")
            run.save()
        runs.finish_end(run)
        closed.append(str(run.uid))
    if closed:
        console.say(f"closed as aborted, for their {of} is gone: {', '.join(closed)}")
    return closed


def close_killed(spool: Spool) -> bool:
    """Spool the end of a run whose process was killed before LaminDB had begun it.

    The end is the last sign of life: the last output in the log, or the last job.

    Returns:
        Whether there was one.
    """
    jobs = list(spool.jobs())
    numbers = {job.action: number for number, (_, job) in enumerate(jobs)}  # the last of each
    begun = jobs[numbers["begin"]][1]
    process = ProcessIdentity.from_dict(begun.notes["record"]["process"])
    is_open = numbers.get("close", -1) < numbers["begin"]
    if not is_open or (process is not None and process.is_alive()):
        return False
    log = runs.log_path(begun.run)
    last_job = datetime.fromisoformat(jobs[-1][1].at)
    seen = log.stat().st_mtime if log.exists() else last_job.timestamp()
    ended = max(datetime.fromtimestamp(seen, timezone.utc), last_job)
    job = Job("close", begun.run, begun.instance, begun.instance_id, ended.isoformat())
    notes = {"reason": "its process is gone", "attempt": begun.notes["attempt"]["started_at"]}
    job = replace(job, status="aborted", notes=notes)
    spool.add(job, log if log.exists() else None)
    return True


def save_left_log(uid: str) -> None:
    """Give a run that ended while the database was away its log, which is here still."""
    run = ln.Run.objects.get(uid=uid)
    if run.finished_at is not None and runs.log_path(uid).exists():
        try:
            runs.save_report(run)
        except OSError as error:
            console.warn(f"run {uid} could not be given its log: {first_line(error)}")


def _check_records(options: LaminOptions, slug: str) -> None:
    """Find everything that the options name and the instance does not have."""
    mistakes = runs.record_mistakes(options.project, options.space, options.branch)
    mistakes += _feature_mistakes(options, slug)
    if mistakes:
        raise RecordError("\n".join(mistakes))


def _feature_mistakes(options: LaminOptions, slug: str) -> list[str]:
    wanted = {**options.features.artifact, **options.features.run}
    if not wanted:
        return []
    known = {f.name: f for f in ln.Feature.filter(name__in=list(wanted), is_type=False)}
    for values in (options.features.run, options.features.artifact):
        for name, value in values.items():
            # 1 is a float to the user, though not to lamindb.
            if name in known and known[name]._dtype_str == "float" and type(value) is int:
                values[name] = float(value)
    mistakes = []
    if missing := [name for name in wanted if name not in known]:
        others = ln.Feature.filter(is_type=False).exclude(type__name="lamindb.lightning")
        names = [feature.name for feature in others]
        hints = "".join(did_you_mean(name, names) for name in missing)
        mistakes.append(
            f"--lamin.features: {', '.join(missing)} not in {slug}.{hints} Create with:\n"
            f"    {how_to_create({name: wanted[name] for name in missing})}"
        )
    for kind, values in (("run", options.features.run), ("artifact", options.features.artifact)):
        for name, value in values.items():
            if name in known and value is not None and (why := _misfit(known[name], value)):
                mistakes.append(f"--lamin.features.{kind}.{name}: {why}")
    return mistakes


def _misfit(feature: Any, value: Any) -> str | None:
    """Say why a value does not fit a feature, as lamindb would when it is saved."""
    from lamindb.curators.core import DictCurator
    from lamindb.errors import ValidationError

    try:
        with silent_lamindb():
            DictCurator({feature.name: value}, ln.Schema([feature])).validate()
    except ValidationError as error:
        kind = feature._dtype_str
        # For plain types lamindb prints a report in JSON; the rest speaks for itself.
        reason = "" if str(error).lstrip().startswith("{") else f": {first_line(error)}"
        quoting = f" Quote it: '\"{value}\"'." if kind == "str" else ""
        return f"{value!r} does not fit the type {kind}{reason}.{quoting}"
    return None
