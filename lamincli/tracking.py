"""The life of a Run: begin it, tell every rank, and close it however the job ends.

`ln.track()` makes the run. What it lacks for a training job is added here: it never prompts,
leaves the streams and the signal handlers of the process alone, and an over-long command line
does not end the job. This file touches lamindb's private parts that this needs; each is named in
``docs/design.md``, with the test that fails when a release moves it.
"""

import builtins
import contextlib
import hashlib
import json
import math
import os
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import partial
from multiprocessing import parent_process
from pathlib import Path
from typing import Any, Literal

import lamindb as ln
from django.db import Error, InterfaceError, OperationalError, connection, transaction
from filelock import FileLock
from lamindb.base.types import RUN_STATUS_TO_CODE
from lamindb.errors import DoesNotExist

from lamincli import __version__, console, hardware
from lamincli.errors import InstanceError, RecordError, did_you_mean, first_line
from lamincli.features import as_json, dtype_of, metric_values, strings_in
from lamincli.instance import lock_path
from lamincli.log import RunLog
from lamincli.options import LaminOptions
from lamincli.process import (
    PARENT_VARIABLE,
    REPRODUCES_VARIABLE,
    RUN_UID_VARIABLE,
    ProcessIdentity,
    gives_back,
    job_id,
    started_program,
)
from lamincli.publisher import Publisher
from lamincli.redaction import redact, redact_argv, redact_text
from lamincli.registry.lamin import EXTRA_DATA_KEY, LaminRegistry, add_metrics, set_ending
from lamincli.registry.outages import give_back_connections
from lamincli.source import Source, hashes_of_modules
from lamincli.spool import Job, Spool, known_spools

Status = Literal["completed", "errored", "aborted"]

_CLI_ARGS_LENGTH = 1024
_OWNED: set[str] = set()  # uids of the open runs that this process began


@dataclass
class TrackedRun:
    """A run of this process.

    Args:
        record: The `lamindb.Run`.
        slug: The instance, owner/name.
        owned: Whether we began it; a run that the script began is the script's to end.
        log: The log of the run; `None` for a run of the script, whose log lamindb keeps.
        context_before: lamindb's context when the run began, for a run within a run.
        spool: The folder of the run's spool, where its end waits if the database is away.
        before: Columns of a run that goes on, as they were.
        ends: Jobs that would have closed it, with their spools.
    """

    record: Any
    slug: str
    owned: bool
    log: RunLog | None = None
    context_before: dict[str, Any] = field(default_factory=dict)
    spool: Path | None = None
    _metrics: dict[str, Any] = field(default_factory=dict, init=False)
    before: dict[str, Any] = field(default_factory=dict)
    ends: list[tuple[Path, Job]] = field(default_factory=list)
    _is_finished: bool = field(default=False, init=False)

    @property
    def uid(self) -> str:
        """The uid of the run."""
        return str(self.record.uid)

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
            self.log.write(f"{text}\n")

    def artifact_uid(self, key: str) -> str | None:
        """Return the uid of the artifact that this run has under a key, if it can be known."""
        try:
            artifact = ln.Artifact.filter(key=key, run=self.record).first()
        except (OperationalError, InterfaceError):
            return None
        return str(artifact.uid) if artifact else None

    def key_of(self, description: str) -> str | None:
        """Return the key of an output with a description, if it can be known."""
        try:
            artifact = ln.Artifact.filter(description=description, run=self.record).first()
        except (OperationalError, InterfaceError):
            return None
        return str(artifact.key) if artifact else None

    def use(self, artifacts: Mapping[str, Any]) -> None:
        """Make artifacts inputs of the run.

        Args:
            artifacts: The artifacts, of any instance, by the references that were typed for them.
        """
        from lamindb.models._lineage import track_run_inputs

        if not artifacts:
            return
        with _silent_lamindb():
            for artifact in artifacts.values():
                track_run_inputs(artifact, is_run_input=True, run=self.record)
        extra = dict(self.record.extra_data or {})
        references = {text: str(artifact.uid) for text, artifact in artifacts.items()}
        extra[EXTRA_DATA_KEY] = {**extra[EXTRA_DATA_KEY], "references": references}
        self.record.extra_data = extra
        self.record.save()

    def use_file(self, path: str, of_run: Any = None) -> Any | None:
        """Make the artifact that a local file is a copy of an input of the run, if there is one.

        Args:
            path: The file.
            of_run: The run that has saved it, where that is known.

        Returns:
            The artifact.
        """
        from lamindb.models._lineage import track_run_inputs
        from lamindb_setup.core.hashing import hash_file

        artifact = None
        if of_run is not None:
            name = path.rpartition("/")[2]
            own = list(ln.Artifact.filter(run=of_run, kind="model", key__endswith=f"/{name}"))
            artifact = own[0] if len(own) == 1 else None
        if artifact is None and Path(path).is_file():
            digest = hash_file(Path(path))[1]  # of parts only, where the file is large
            artifact = ln.Artifact.filter(hash=digest, kind="model").first()
        if artifact is not None:
            with _silent_lamindb():
                track_run_inputs(artifact, is_run_input=True, run=self.record)
        return artifact

    def add_features(self, values: dict[str, Any]) -> None:
        """Annotate the run, where no checkpoint callback does it."""
        if values:
            self.record.features.add_values(values)

    def record_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Keep the last value of every metric, and as a run feature where one has its name."""
        values = metric_values(metrics)
        if not values:
            return
        self._metrics = as_json(values)  # saved with the ending at the latest
        add_metrics(self.record, self._metrics)
        self.record.save()
        known = _numbers(ln.Feature.filter(name__in=list(values), is_type=False))
        if known:
            self.record.features.add_values(
                {feature: _as_dtype(values[name], feature) for name, feature in known.items()}
            )

    def annotate_evaluated(self, artifact: Any, metrics: Mapping[str, Any]) -> None:
        """Give a checkpoint its metrics, as features that exist; earlier values are replaced.

        The Lightning features say how the training has ranked it, and stay.
        """
        from lamincli.registry import values as feature_values

        values = {k: v for k, v in metric_values(metrics).items() if math.isfinite(v)}
        features = ln.Feature.filter(name__in=list(values), is_type=False)
        known = _numbers(features.exclude(type__name="lamindb.lightning"))
        with transaction.atomic():
            feature_values.unlink(artifact, known.values())
            stored = {
                feature: feature_values.as_stored(feature, _as_dtype(values[name], feature))
                for name, feature in known.items()
            }
            feature_values.link_values(artifact, stored, self.record)

    def finish(
        self,
        status: Status,
        error: BaseException | None = None,
        farewell: Callable[[], None] | None = None,
    ) -> None:
        """Close the run, with its status, its end and its log. Further calls do nothing.

        A run of the script is left open. A database that has gone away is a warning.

        Args:
            status: How the job ended.
            error: What ended it, whose traceback the log shall hold.
            farewell: Says the last words, which are part of the log.
        """
        if self._is_finished or not self.owned:
            return
        self._is_finished = True
        self._try(f"closed as {status}", lambda: self._set_ending(status))
        if farewell is not None:
            self._try("told about", farewell)
        if self.log is not None:
            if error is not None:
                self.log.write("".join(traceback.format_exception(error)))
            self.log.close()
        self._try("given its log", lambda: _save_report(self.record))
        self._let_go()

    def take_back(self) -> None:
        """Leave a run that was to go on as it was, for a mistake was found before it did."""
        if self._is_finished or not self.before:
            return
        self._is_finished = True
        if self.log is not None:
            self.log.close()
            self.log.path.unlink(missing_ok=True)
        vars(self.record).update(self.before)
        self._try("left as it was", self.record.save)
        for folder, job in self.ends:
            self._try("left as it was", partial(_leave, folder, job))
        self._let_go()

    def _let_go(self) -> None:
        ln.setup.logger.set_handler()
        _OWNED.discard(self.uid)
        vars(ln.context).update(self.context_before)
        give_back_connections()
        os.environ.pop(RUN_UID_VARIABLE, None)
        if ln.context.run is not None:
            os.environ[RUN_UID_VARIABLE] = str(ln.context.run.uid)

    def _try(self, what: str, step: Callable[[], None]) -> None:
        """Take one step of the end; none of them keeps the others from being taken."""
        try:
            step()
        except Exception as failure:
            with contextlib.suppress(OSError, ValueError):  # the terminal may have gone too
                console.warn(f"run {self.uid} could not be {what}: {first_line(failure)}")

    def _set_ending(self, status: Status) -> None:
        ended = datetime.now(timezone.utc)
        try:
            set_ending(self.record, status, ended)
        except (OperationalError, InterfaceError):
            # The connection may have been lost in the hours since it was used.
            give_back_connections()
            try:
                set_ending(self.record, status, ended)
            except (OperationalError, InterfaceError) as error:
                if self.spool is None:
                    raise
                self._leave_ending(status, ended)
                console.warn(
                    f"run {self.uid} will be closed by lamin-train sync: {first_line(error)}"
                )

    def _leave_ending(self, status: Status, ended: datetime) -> None:
        assert self.spool is not None
        instance = ln.setup.settings.instance
        job = Job("close", self.uid, instance.slug, instance._id.hex, ended.isoformat())
        _leave(self.spool, replace(job, status=status, notes={"metrics": self._metrics}))


def _leave(spool: Path, job: Job) -> None:
    Publisher.of(spool, LaminRegistry).leave(job)


def begin(
    options: LaminOptions,
    *,
    slug: str,
    source: Source,
    params: dict[str, Any],
    argv: Sequence[str],
    stage: str | None,
    model: str,
    resumes: Any = None,
    checkpoint: Mapping[str, Any] | None = None,
    parent: str | None = None,
) -> TrackedRun:
    """Begin the run of this job, or go on with the one that the script began, or an earlier one.

    Args:
        options: What the user asked to record.
        slug: The connected instance.
        source: The code that becomes the transform.
        params: The resolved config; secrets are taken out here.
        argv: The words of the command line, without the program.
        stage: The subcommand, if there is one.
        model: Class path of the model.
        resumes: The run that goes on, in the place of a new one.
        checkpoint: What it goes on from, for the list of its attempts.
        parent: Uid of the run that this one follows; it makes a run of its own in any case.

    Returns:
        The run, saved, with its parameters and its log open.

    Raises:
        RecordError: A feature, project, space or branch does not exist or does not fit; all
            such mistakes at once, and no run was made.
        InstanceError: The database cannot be reached.
    """
    with _reachable(slug):
        _check_records(options, slug)
        if options.auto_features:
            _ensure_lightning_features()
        close_gone_runs()
        command = redact_argv(argv)
        outer = ln.context.run
        if outer is not None and outer.uid not in _OWNED and parent is None:
            if resumes is not None:
                raise RecordError(
                    f"--lamin.resume cannot go on with {resumes.uid}: the script tracks run "
                    f"{outer.uid}. Leave out its ln.track()."
                )
            tracked = TrackedRun(outer, slug, owned=False)
        else:
            context_before = dict(vars(ln.context))
            _leave_context()
            if resumes is None:
                _track(options, source, command, parent=parent or (outer and outer.uid))
                tracked = TrackedRun(ln.context.run, slug, owned=True)
            else:
                tracked = _reopen(resumes, slug, source)
            tracked.context_before = context_before
            _OWNED.add(tracked.uid)
        run = tracked.record
        if resumes is not None or not run.params:
            run.params = as_json(redact(params))
        # Taken out, so that a training within this one is none.
        reproduced = os.environ.pop(REPRODUCES_VARIABLE, None)
        process = ProcessIdentity.current().to_dict()
        extra = dict(run.extra_data or {})
        record = extra.get(EXTRA_DATA_KEY) or {}
        attempt = {
            "host": process["host"],
            "started_at": datetime.now(timezone.utc).isoformat(),
            "command": command,
            "checkpoint": dict(checkpoint) if checkpoint else None,
        }
        extra[EXTRA_DATA_KEY] = {
            **record,
            "version": __version__,
            "stage": stage,
            "model": model,
            "command": record.get("command", command),
            "process": process,
            "job": job_id(),
            "program": started_program(),
            "hardware": hardware.describe(),
            "files": _hashes_of_files(params),
            "modules": hashes_of_modules(),
            **({"reproduces": {"run": reproduced}} if reproduced else {}),
            "attempts": [*record.get("attempts", []), attempt],
        }
        run.extra_data = extra
        run.save()
        os.environ[RUN_UID_VARIABLE] = tracked.uid
        if tracked.owned:
            tracked.log = _open_log(tracked, command)
        return tracked


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
                    hashes[redact_text(text)] = hash_file(Path(text))[1]
    return hashes


@contextlib.contextmanager
def _reachable(slug: str) -> Iterator[None]:
    try:
        yield
    except (OperationalError, InterfaceError) as error:
        is_server = connection.vendor == "postgresql"
        mend = "Start its database" if is_server else "See to its disk"
        raise InstanceError(
            f"LaminDB instance {slug} cannot be {'reached' if is_server else 'written'}: "
            f"{first_line(error)}. {mend}, or train without a record: --lamin.track false."
        ) from error


def _reopen(run: Any, slug: str, source: Source) -> TrackedRun:
    """Make an earlier run the current one again."""
    ended = [RUN_STATUS_TO_CODE[status] for status in ("completed", "errored", "aborted")]
    with _one_at_a_time():
        run.refresh_from_db()
        process = ProcessIdentity.from_dict(run.extra_data[EXTRA_DATA_KEY].get("process"))
        if run._status_code not in ended and process is not None and process.is_alive():
            raise RecordError(f"Run {run.uid} is going on already: process {process.pid}.")
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
        for name in spool.names() if folder.name == run.uid else ():
            job = spool.look(spool.ready, name)
            if job is not None and job.action == "close":
                spool.drop(name)
                ends.append((folder, job))
    code = source.code or Path(str(source.path)).read_text()
    if run.transform.source_code and code != run.transform.source_code:
        console.warn(f"the code is not what run {run.uid} began with; its record keeps the first")
    ln.context._run, ln.context._transform = run, run.transform
    return TrackedRun(run, slug, owned=True, before=earlier, ends=ends)


def _open_log(tracked: TrackedRun, command: str) -> RunLog | None:
    path = _log_path(tracked.uid)
    earlier = ""
    if tracked.record.report_id is not None:
        with contextlib.suppress(OSError):
            earlier = Path(tracked.record.report.cache(is_run_input=False)).read_text() + "\n"
    elif path.exists():
        earlier = path.read_text() + "\n"
    log = RunLog(path)
    header = f"run {tracked.uid} in {tracked.slug}\n$ {Path(sys.argv[0]).name} {command}\n"
    try:
        log.open(earlier + header)
    except OSError as error:
        console.warn(f"the run has no log: {error}")
        return None
    ln.setup.logger.set_handler()  # lamindb's messages follow sys.stdout
    return log


def adopt_from_parent() -> None:
    """Make the run of the parent current in a process that a strategy spawned as rank zero."""
    uid = os.environ.get(RUN_UID_VARIABLE)
    if ln.context.run is None and uid is not None and parent_process() is not None:
        ln.context._run = ln.Run.get(uid)
        ln.context._transform = ln.context._run.transform


def close_gone_runs() -> list[str]:
    """Close the runs of this machine whose process is gone, as aborted; returns their uids.

    `finished_at` becomes the last sign of life: the last output in the log, where one is left.
    """
    me = ProcessIdentity.current()
    open_codes = [RUN_STATUS_TO_CODE["started"], RUN_STATUS_TO_CODE["restarted"]]
    closed = []
    for run in ln.Run.objects.filter(
        _status_code__in=open_codes, **{f"extra_data__{EXTRA_DATA_KEY}__process__host": me.host}
    ):
        process = ProcessIdentity.from_dict(run.extra_data[EXTRA_DATA_KEY]["process"])
        if process is None or process == me or not process.is_gone():
            continue
        spools = (Spool(folder) for folder in known_spools() if folder.name == run.uid)
        if any(spool.holds("close") for spool in spools):  # `sync` closes it, and truly
            continue
        log = _log_path(run.uid)
        ended_s = log.stat().st_mtime if log.exists() else time.time()
        last_sign = max(datetime.fromtimestamp(ended_s, timezone.utc), run.started_at)
        # Only if it is open still: it may have ended, truly, since we asked.
        still_open = ln.Run.objects.filter(id=run.id, _status_code__in=open_codes)
        if not still_open.update(_status_code=RUN_STATUS_TO_CODE["aborted"], finished_at=last_sign):
            continue
        run.refresh_from_db()
        set_ending(run, "aborted", last_sign)
        _save_report(run)
        closed.append(str(run.uid))
    if closed:
        console.say(f"closed as aborted, for their process is gone: {', '.join(closed)}")
    return closed


def _save_report(run: Any) -> None:
    from lamindb.core._finish import save_run_logs

    earlier = run.report
    with _silent_lamindb():
        save_run_logs(run, save_run=True)
        if earlier is not None and earlier.id != run.report_id:
            earlier.delete(permanent=True)
    _log_path(run.uid).unlink(missing_ok=True)


def save_left_log(uid: str) -> None:
    """Give a run that ended while the database was away its log, which is here still."""
    run = ln.Run.objects.get(uid=uid)
    if run.finished_at is not None and _log_path(uid).exists():
        try:
            _save_report(run)
        except OSError as error:
            console.warn(f"run {uid} could not be given its log: {first_line(error)}")


def _leave_context() -> None:
    """Let the next run of this process begin afresh, as `ln.finish()` does."""
    for name in ("_run", "_transform", "_uid", "_version", "_description", "_path"):
        setattr(ln.context, name, None)
    # These outlive ln.finish(), so that the next run would inherit them.
    ln.context._project = ln.context._space = ln.context._branch = None


def _log_path(uid: str) -> Path:
    # The name is lamindb's, so that its own tools find the file.
    return Path(ln.setup.settings.cache_dir) / f"run_logs_{uid}.txt"


def _track(options: LaminOptions, source: Source, command: str, parent: str | None = None) -> None:
    """Call `ln.track()` with all that it would otherwise ask, guess or take over."""
    from lamindb_setup.core.hashing import hash_file, hash_string

    arguments: dict[str, Any] = {
        "project": options.project,
        "space": options.space,
        "branch": options.branch,
        "initiated_by_run": parent,
        "stream_tracking": False,  # or sys.stdout is no terminal any more, and signals are taken
    }
    key = source.key or _transform_key(source.path)
    # In a notebook, lamindb takes every path for that of the notebook.
    in_notebook = getattr(builtins, "__IPYTHON__", False)
    if source.path is not None and not in_notebook:
        digest = hash_file(source.path)[1]
        arguments |= {"path": source.path}
    else:
        code = source.code or Path(str(source.path)).read_text()
        digest = hash_string(code)
        arguments |= {"source_code": code, "kind": "function"}
    is_new = not ln.Transform.filter(hash=digest).exists()
    alone = _one_at_a_time() if is_new else contextlib.nullcontext()
    known = contextlib.nullcontext() if parent else _known_parent()
    with _silent_lamindb(), _recorded_command(command), alone, known:
        arguments |= {"key": key, "transform": _transform_uid(digest, key)}
        try:
            ln.track(**arguments)
        except Exception as error:
            if not _is_git_failure(error):
                raise
            console.warn(f"no git reference for the transform: {first_line(error)}")
            with _without_git():
                ln.track(**arguments)
        if "path" not in arguments:
            from lamindb.core._finish import save_context_core

            # ln.track() keeps the environment of runs of files only.
            save_context_core(
                run=ln.context.run, transform=ln.context.transform, filepath=Path("no file")
            )


@contextlib.contextmanager
def _known_parent() -> Iterator[None]:
    """Leave out a parent that the instance does not have: a job may only have inherited it."""
    uid = os.environ.get(PARENT_VARIABLE)
    with gives_back(PARENT_VARIABLE):
        if uid is not None and not ln.Run.filter(uid=uid).exists():
            del os.environ[PARENT_VARIABLE]
            slug = ln.setup.settings.instance.slug
            console.warn(
                f"{PARENT_VARIABLE} names run {uid!r}, which {slug} does not have; this run has no "
                "parent. Unset the variable, or connect the instance of that run."
            )
        yield


def _transform_key(path: Path | None) -> str:
    """Return the key that `ln.track()` in this script would choose."""
    assert path is not None, "a source without a path has a key"
    from lamindb_setup.core._settings_store import dev_dir_containing

    root = dev_dir_containing(path, instance_slug=ln.setup.settings.instance.slug)
    return path.relative_to(root).as_posix() if root else path.name


def _transform_uid(digest: str, key: str) -> str | None:
    """Return a uid only where `ln.track()` would ask whether the file was renamed or copied.

    It asks when the same text is known under another key. A batch job cannot answer; a file under
    its own key is a transform of its own.
    """
    from lamindb.base.uids import base62_12

    same_text = ln.Transform.filter(hash=digest)
    first = same_text.first()
    if first is None or first.key.endswith(key):
        return None
    if (own := same_text.filter(key=key).first()) is not None:
        return str(own.uid)
    latest = ln.Transform.filter(key=key, is_latest=True).order_by("-created_at").first()
    if latest is None:
        return f"{base62_12()}0000"
    from lamindb_setup.core.base62 import increment_base62

    return str(latest.uid[:-4] + increment_base62(latest.uid[-4:]))


def _is_git_failure(error: Exception) -> bool:
    from subprocess import CalledProcessError

    from lamindb.errors import BlobHashNotFound

    return ln.settings.sync_git_repo is not None and isinstance(
        error, (BlobHashNotFound, CalledProcessError, RuntimeError)
    )


@contextlib.contextmanager
def _without_git() -> Iterator[None]:
    instance = ln.setup.settings.instance
    environment = os.environ.pop("LAMINDB_SYNC_GIT_REPO", None)
    repositories = ln.settings._sync_git_repo, instance._git_repo
    ln.settings._sync_git_repo = instance._git_repo = None
    try:
        yield
    finally:
        ln.settings._sync_git_repo, instance._git_repo = repositories
        if environment is not None:
            os.environ["LAMINDB_SYNC_GIT_REPO"] = environment


@contextlib.contextmanager
def _recorded_command(command: str) -> Iterator[None]:
    """Let `ln.track()` read a quoted, redacted command line that fits its column."""
    argv = sys.argv
    if len(command) > _CLI_ARGS_LENGTH:
        command = command[: _CLI_ARGS_LENGTH - 2] + " …"
    sys.argv = [argv[0], command] if command else argv[:1]
    try:
        yield
    finally:
        sys.argv = argv


@contextlib.contextmanager
def _silent_lamindb() -> Iterator[None]:
    logger, verbosity = ln.setup.logger, ln.settings.verbosity
    was_disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = was_disabled
        ln.settings.verbosity = verbosity  # ln.track() raises it


def _check_records(options: LaminOptions, slug: str) -> None:
    """Find everything that the options name and the instance does not have."""
    mistakes = []
    for registry, name in (
        (ln.Project, options.project),
        (ln.Space, options.space),
        (ln.Branch, options.branch),
    ):
        if name is None or _exists(registry, name):
            continue
        label = registry.__name__.lower()
        names = [record.name for record in registry.filter()]
        code = f"import lamindb as ln; ln.{registry.__name__}(name={json.dumps(name)}).save()"
        create = f" Create it with:\n    python -c {shlex.quote(code)}"
        mistakes.append(
            f"--lamin.{label} {name}: no such {label} in {slug}."
            + (did_you_mean(name, names) or ("" if registry is ln.Space else create))
        )
    mistakes += _feature_mistakes(options, slug)
    if mistakes:
        raise RecordError("\n".join(mistakes))


def _exists(registry: Any, name: str) -> bool:
    return any(registry.filter(**{by: name}).exists() for by in ("name", "uid"))


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
        create = "; ".join(
            f"ln.Feature(name={json.dumps(name)}, dtype={dtype_of(wanted[name])}).save()"
            for name in missing
        )
        mistakes.append(
            f"--lamin.features: {', '.join(missing)} not in {slug}.{hints} Create with:\n"
            f"    python -c {shlex.quote(f'import lamindb as ln; {create}')}"
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
        with _silent_lamindb():
            DictCurator({feature.name: value}, ln.Schema([feature])).validate()
    except ValidationError as error:
        kind = feature._dtype_str
        # For plain types lamindb prints a report in JSON; the rest speaks for itself.
        reason = "" if str(error).lstrip().startswith("{") else f": {first_line(error)}"
        quoting = f" Quote it: '\"{value}\"'." if kind == "str" else ""
        return f"{value!r} does not fit the type {kind}{reason}.{quoting}"
    return None


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Let one job of this instance at a time create what several could create at once.

    Features and transforms have no unique names in the database, so two jobs that start together
    would both create them. PostgreSQL locks for all hosts, SQLite for this one.
    """
    name = f"lamin-train {ln.setup.settings.instance._id.hex}"
    digest = hashlib.sha256(name.encode()).hexdigest()
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_lock(%s)", [number := int(digest[:15], 16)])
            try:
                yield
            finally:
                cursor.execute("SELECT pg_advisory_unlock(%s)", [number])
    else:
        with FileLock(lock_path(digest)):
            yield


def _ensure_lightning_features() -> None:
    """Create the Lightning features once, where they are missing and the database permits it."""
    from lamindb.integrations.lightning import _SUPPORTED_AUTO_FEATURES as NAMES
    from lamindb.integrations.lightning import save_lightning_features

    def are_there() -> bool:
        present = ln.Feature.filter(type__name="lamindb.lightning", name__in=NAMES)
        return bool(present.count() == len(NAMES))

    if are_there():
        return
    try:
        with _silent_lamindb(), _one_at_a_time():
            if not are_there():
                save_lightning_features()
    except (Error, DoesNotExist, PermissionError) as error:
        console.warn(
            f"the Lightning features cannot be created ({first_line(error)}); "
            "ask an owner of the instance to call save_lightning_features() once"
        )


def _numbers(features: Any) -> dict[str, Any]:
    """Return those of some features that hold numbers, by name."""
    kinds = {"float", "num", "int"}
    return {feature.name: feature for feature in features if feature._dtype_str in kinds}


def _as_dtype(value: float, feature: Any) -> float | int:
    return round(value) if feature._dtype_str == "int" else value
