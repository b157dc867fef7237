"""The record of a run in LaminDB: begun with the uid and the times that it has, and closed.

What a run begins with is a `Beginning`, made where it trains. It is written at once where the
registry can be reached; else it waits in the spool, and the publisher or `sync` writes it by the
same code. `ln.track()` makes the run; what it would ask, guess or read from this process it is
told. The private parts of lamindb that this needs are named in ``docs/design.md``.
"""

import builtins
import contextlib
import hashlib
import json
import math
import os
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lamindb as ln
from django.db import Error, connection, transaction
from django.db.models import Model, ProtectedError
from django.db.models.signals import pre_save
from lamindb.base.types import RUN_STATUS_TO_CODE
from lamindb.core._secret_redaction import redact_secrets_in_source_code as _redact_code
from lamindb.errors import DoesNotExist

from lamincli import console
from lamincli import log as logs
from lamincli.errors import RecordError, did_you_mean, first_line
from lamincli.features import EXTRA_DATA_KEY
from lamincli.folders import Scratch, taking_turns
from lamincli.process import PARENT_VARIABLE, gives_back
from lamincli.redaction import redact, redact_text, secrets_in_code
from lamincli.registry import arrays, outages, values
from lamincli.source import Source
from lamincli.spool import Spool, known_spools

_CLI_ARGS_LENGTH = 1024
_REDACTION_OF_CODE = "redact_secrets_in_source_code"
_REFERENCE_LENGTH = 255
_REPORT = "__lamindb_run__"
_STATUSES = {code: status for status, code in RUN_STATUS_TO_CODE.items()}


@dataclass(frozen=True)
class Beginning:
    """What a run begins with, or an attempt to go on with one; JSON throughout.

    Args:
        uid: Uid of the run.
        started_at: When it began, ISO 8601 in UTC.
        key: Key of the transform.
        path: The file of its code, as it was called where the run began.
        code: Its text.
        is_file: Whether lamindb tracks the file, or the text only, as in a notebook.
        program: The program that was started.
        command: Its words, quoted and without secrets.
        project: Name or uid, as the next two.
        space: Likewise.
        branch: Likewise.
        parent: Uid of the run that started this one.
        array: The array of SLURM jobs that it belongs to, if its tasks shall have one parent; see
            `arrays.of_job`.
        has_lightning_features: Whether to create the Lightning features where they are missing.
        params: The resolved config, without secrets.
        record: What `extra_data` shall hold under our key.
        attempt: The entry for the list of its attempts.
        environment: The files that describe the environment: names and texts.
        references: References as they were typed, and what tells `find` their artifacts.
        used: Likewise for a checkpoint that is used from a local file.
        goes_on: Whether this is an attempt to go on with an earlier run.
        number: Orders the runs that wait in spools; 0 for one that did not have to wait.
    """

    uid: str
    started_at: str
    key: str = ""
    path: str = ""
    code: str = ""
    is_file: bool = False
    program: str = ""
    command: str = ""
    project: str | None = None
    space: str | None = None
    branch: str | None = None
    parent: str | None = None
    array: dict[str, Any] = field(default_factory=dict)
    has_lightning_features: bool = True
    params: dict[str, Any] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    attempt: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    references: dict[str, dict[str, Any]] = field(default_factory=dict)
    used: dict[str, Any] = field(default_factory=dict)
    goes_on: bool = False
    number: int = 0

    def describe(self, run: Any) -> None:
        """Put parameters and our record into a run, without saving it."""
        run.params = self.params
        if run.reference is None and (job := self.record.get("job")):
            run.reference, run.reference_type = job_reference(job), job.partition(":")[0]
        extra = dict(run.extra_data or {})
        before = extra.get(EXTRA_DATA_KEY) or {}
        attempts = [] if self.is_noted_in(run) else [self.attempt]
        slurm = {**before.get("slurm", {}), **self.record.get("slurm", {})}
        before = {name: value for name, value in before.items() if name != "reason"}
        extra[EXTRA_DATA_KEY] = {
            **before,
            **self.record,
            **({"slurm": slurm} if slurm else {}),
            "command": before.get("command", self.command),
            "attempts": [*before.get("attempts", []), *attempts],
        }
        run.extra_data = extra

    def is_noted_in(self, run: Any) -> bool:
        """Tell whether a run has this attempt in its list."""
        attempts = ((run.extra_data or {}).get(EXTRA_DATA_KEY) or {}).get("attempts", [])
        return any(one["started_at"] == self.attempt["started_at"] for one in attempts)


def begin(beginning: Beginning) -> Any:
    """Make the run of a beginning the current one, creating it if it is not there yet.

    Every step may be repeated, for the process may be killed after any.

    Returns:
        The `lamindb.Run`.

    Raises:
        RecordError: A project, space or branch does not exist.
        ConnectionError: The run that started it waits in a spool of its own.
    """
    run = ln.Run.objects.filter(uid=beginning.uid).first()
    if beginning.goes_on:
        if run is None:
            raise RecordError(f"There is no run {beginning.uid} to go on with.")
        if not beginning.is_noted_in(run):
            run._status_code, run.finished_at = RUN_STATUS_TO_CODE["restarted"], None
            beginning.describe(run)
            run.save()
    with _code_of(beginning) as path:
        if run is None:
            run = _track(beginning, path)
        _keep_environment(beginning, run, path)
    arrays.join(run, beginning.array)
    ln.context._run, ln.context._transform = run, run.transform
    return run


def job_reference(job: str) -> str:
    """Return a job's id as the indexed column of a run holds it, by which it is found again."""
    return job[:_REFERENCE_LENGTH]


def leave_context() -> None:
    """Let the next run of this process begin afresh, as `ln.finish()` does."""
    for name in ("_run", "_transform", "_uid", "_version", "_description", "_path"):
        setattr(ln.context, name, None)
    # These outlive ln.finish(), so that the next run would inherit them.
    ln.context._project = ln.context._space = ln.context._branch = None


# -- its creation -------------------------------------------------------------------------------


def _track(beginning: Beginning, path: Path | None) -> Any:
    """Call `ln.track()` with all that it would otherwise ask, guess or take over."""
    from lamindb.core import _context, _secret_redaction
    from lamindb_setup.core.hashing import hash_file, hash_string

    if mistakes := record_mistakes(beginning.project, beginning.space, beginning.branch):
        raise RecordError("\n".join(mistakes))
    arguments: dict[str, Any] = {
        "project": beginning.project,
        "space": beginning.space,
        "branch": beginning.branch,
        "initiated_by_run": _parent(beginning.parent),
        "stream_tracking": False,  # or sys.stdout is no terminal any more, and signals are taken
        "key": beginning.key,
    }
    if path is not None:
        digest = hash_file(path)[1]
        arguments |= {"path": path}
    else:
        digest = hash_string(beginning.code)
        arguments |= {"source_code": beginning.code, "kind": "function"}

    def complete(sender: Any, instance: Any, **_: Any) -> None:
        if instance._state.adding:
            instance.uid = beginning.uid
            instance.started_at = datetime.fromisoformat(beginning.started_at)
            beginning.describe(instance)

    command = beginning.command
    if len(command) > _CLI_ARGS_LENGTH:
        command = command[: _CLI_ARGS_LENGTH - 2] + " …"
    told = {
        "get_cli_call": lambda: (Path(beginning.program).name, command) if command else None,
        "track_python_environment": lambda run: None,  # it is in the beginning
    }
    is_new = not ln.Transform.filter(hash=digest).exists()
    alone = one_at_a_time() if is_new else contextlib.nullcontext()

    def clean(sender: Any, instance: Any, **_: Any) -> None:
        if instance.reference:  # the remote of git, as its environment variable names it
            instance.reference = redact_text(instance.reference)

    pre_save.connect(complete, sender=ln.Run, weak=False)
    pre_save.connect(clean, sender=ln.Transform, weak=False)
    try:
        with (
            silent_lamindb(),
            _replaced(_context, told),
            _replaced(_secret_redaction, {_REDACTION_OF_CODE: _as_stored}),
            alone,
            gives_back(PARENT_VARIABLE),
        ):
            os.environ.pop(PARENT_VARIABLE, None)  # the parent is an argument, or left out
            arguments["transform"] = _transform_uid(digest, beginning.key)
            try:
                ln.track(**arguments)
            except Exception as error:
                if not _is_git_failure(error):
                    raise
                console.warn(f"no git reference for the transform: {first_line(error)}")
                with _without_git():
                    ln.track(**arguments)
    finally:
        pre_save.disconnect(complete, sender=ln.Run)
        pre_save.disconnect(clean, sender=ln.Transform)
    return ln.context.run


def _parent(uid: str | None) -> Any:
    """Return the run that has started another one; `None` if it is not there and will not come."""
    run = uid and ln.Run.objects.filter(uid=uid).first()
    if run or not uid:
        return run or None
    if any(folder.name == uid and Spool(folder).holds("begin") for folder in known_spools()):
        raise ConnectionError(f"run {uid}, which started this one, waits to be published too")
    slug = ln.setup.settings.instance.slug
    console.warn(
        f"run {uid}, which started this one, is not in {slug}: no parent is recorded. If"
        f" {PARENT_VARIABLE} was set for another job, unset it."
    )
    return None


@contextlib.contextmanager
def _code_of(beginning: Beginning) -> Iterator[Path | None]:
    """Yield the file of the code as it was when the run began; `None` for code without one."""
    if not beginning.is_file:
        yield None
        return
    path = Path(beginning.path)
    if _holds(path, beginning.code):
        yield path
        return
    with Scratch("code") as folder:
        # The folders are kept, for lamindb finds earlier versions by the end of the path.
        copy = folder.joinpath(*(part for part in path.parts[1:] if part != ".."))
        copy.parent.mkdir(parents=True)
        copy.write_text(beginning.code, encoding="utf-8")
        yield copy


def _holds(path: Path, text: str) -> bool:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return path.read_text(encoding="utf-8") == text
    return False


@contextlib.contextmanager
def _replaced(module: Any, functions: Mapping[str, Any]) -> Iterator[None]:
    before = {name: getattr(module, name) for name in functions}
    vars(module).update(functions)
    try:
        yield
    finally:
        vars(module).update(before)


def source_of(source: Source, slug: str) -> dict[str, Any]:
    """Return the code of a run as its beginning holds it."""
    # In a notebook, lamindb takes every path for that of the notebook.
    in_notebook = getattr(builtins, "__IPYTHON__", False)
    return {
        "key": source.key or _transform_key(source.path, slug),
        "path": str(source.path or ""),
        "code": source.code or Path(str(source.path)).read_text(encoding="utf-8"),
        "is_file": source.path is not None and not in_notebook,
    }


def stored_code(code: str) -> str:
    """Return a source text as the record holds it.

    lamindb takes out what is assigned to certain names, ``pad_token = "[PAD]"`` among them: code
    that never ran. Here it takes out secrets alone, of which the user was told.
    """
    return _as_stored(code)[0]


def _as_stored(code: str) -> tuple[str, int]:
    redacted, _ = _redact_code(code)
    secret = {one.line for one in secrets_in_code(code)}
    pairs = enumerate(zip(code.split("\n"), redacted.split("\n"), strict=True), 1)
    lines = [new if number in secret else old for number, (old, new) in pairs]
    return "\n".join(lines), len(secret)


def _transform_key(path: Path | None, slug: str) -> str:
    """Return the key that `ln.track()` in this script would choose."""
    assert path is not None, "a source without a path has a key"
    from lamindb_setup.core._settings_store import dev_dir_containing

    root = dev_dir_containing(path, instance_slug=slug)
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


# -- its environment and its log ----------------------------------------------------------------


def environment_of(uid: str) -> dict[str, str]:
    """Return the files by which lamindb describes the environment of this process.

    None, and the user is told, where they cannot be written or read: no training waits for them.
    """
    from lamindb.core import _track_environment

    texts = {}
    try:
        with silent_lamindb(), _environment_folder(_track_environment, uid) as folder:
            _track_environment.track_python_environment(SimpleNamespace(uid=uid))
            for file in folder.glob("*"):
                texts[file.name] = file.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        console.warn(f"the run has no list of its packages: {first_line(error)}")
        return {}
    # The remotes of editable and VCS installs may hold credentials.
    return {name: redact_text(text) for name, text in texts.items()}


@contextlib.contextmanager
def _environment_folder(module: Any, uid: str) -> Iterator[Path]:
    """Yield where a module of lamindb writes or reads the environment of a run, for a while.

    In its cache, nothing would remove it.
    """
    with Scratch("environment") as cache:
        settings = SimpleNamespace(cache_dir=cache, instance=ln.setup.settings.instance)
        setup = SimpleNamespace(settings=settings, _TESTING=module.ln_setup._TESTING)
        with _replaced(module, {"ln_setup": setup}):
            yield cache / "environments" / f"run_{uid}"


def _keep_environment(beginning: Beginning, run: Any, path: Path | None) -> None:
    """Store what `ln.track()` keeps of runs of files only, and after the run is there."""
    from lamindb.core import _finish, _secret_redaction

    if run.environment_id is not None or not beginning.environment:
        return
    file = path or Path("no file")
    with silent_lamindb(), _environment_folder(_finish, str(run.uid)) as folder:
        folder.mkdir(parents=True)
        for name, text in beginning.environment.items():
            (folder / Path(name).name).write_text(text, encoding="utf-8")
        with _replaced(_secret_redaction, {_REDACTION_OF_CODE: _as_stored}):
            _finish.save_context_core(run=run, transform=run.transform, filepath=file)
    environment = run.environment
    if environment is not None and environment.run_id is not None:
        # Two runs of one environment that begin at once: lamindb takes it for an output of one.
        ln.Artifact.objects.filter(id=environment.id).update(run_id=None)


def log_path(uid: str) -> Path:
    """Return the file into which the log of a run is written."""
    return Path(ln.setup.settings.cache_dir) / logs.name_of(uid)


def clean_log(log: Path) -> None:
    """Take secrets out of a log that waits in the spool, where its process still knows them."""
    text = log.read_bytes()
    if (clean := _without_secrets(text)) != text:
        part = log.with_suffix(".part")
        part.write_bytes(clean)
        part.replace(log)


def _without_secrets(log: bytes) -> bytes:
    return redact_text(log.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")


def save_report(run: Any, log: Path | None = None) -> None:
    """Make the log of a run, without secrets, its report.

    Args:
        run: The run.
        log: The log, where it was kept in the spool; by default it is where it was written.
    """
    here, earlier = log_path(run.uid), run.report
    if log is None and not here.exists():
        return
    text = _without_secrets((log or here).read_bytes())
    if earlier is not None:
        before = Path(earlier.cache(is_run_input=False)).read_bytes()
        if before.endswith(text):  # an attempt at this has come so far
            _remove_other_reports(run)
            _forget_log(here, log)
            return
        if not text.startswith(before):  # an attempt that could not read it, and go on with it
            text = before + b"\n" + text
    with silent_lamindb(), Scratch("report") as folder:
        copy = folder / here.name
        copy.write_bytes(text)
        run.report = ln.Artifact(
            copy, description=_description_of_report(run), kind=_REPORT, run=False
        ).save(upload=True, print_progress=False)
        run.save()
        if earlier is not None and earlier.id != run.report_id:
            earlier.delete(permanent=True)
    _forget_log(here, log)


def _description_of_report(run: Any) -> str:
    return f"log streams of run {run.uid}"  # lamindb's own words, as its kind


def _remove_other_reports(run: Any) -> None:
    """Remove the reports that an attempt at a newer one has left."""
    reports = ln.Artifact.objects.filter(kind=_REPORT, description=_description_of_report(run))
    with silent_lamindb():
        for report in reports.exclude(id=run.report_id):
            report.delete(permanent=True)


def _forget_log(here: Path, log: Path | None) -> None:
    # That of an attempt which is going on has grown since.
    if log is None or (here.exists() and here.stat().st_size == log.stat().st_size):
        here.unlink(missing_ok=True)


# -- what it has used and logged ----------------------------------------------------------------


def use(run: Any, artifacts: Mapping[str, Any]) -> None:
    """Make artifacts inputs of a run.

    Args:
        run: The run.
        artifacts: The artifacts, of any instance, by the references that were typed for them.
    """
    if not artifacts:
        return
    for artifact in artifacts.values():
        make_input(run, artifact)
    extra = dict(run.extra_data or {})
    references = redact({text: str(artifact.uid) for text, artifact in artifacts.items()})
    extra[EXTRA_DATA_KEY] = {**extra[EXTRA_DATA_KEY], "references": references}
    run.extra_data = extra
    run.save()


def make_input(run: Any, artifact: Any) -> None:
    """Make an artifact an input of a run."""
    from lamindb.models._lineage import track_run_inputs

    with silent_lamindb():
        track_run_inputs(artifact, is_run_input=True, run=run)


def use_noted(
    run: Any, beginning: Beginning, artifacts: Mapping[str, Any] | None = None
) -> Any | None:
    """Make what was used before the run was in LaminDB its inputs.

    Args:
        run: The run.
        beginning: How it began.
        artifacts: Those that have been looked up, by the references that were typed.

    Returns:
        The artifact of the checkpoint that is used from a local file, if it has one.
    """
    found = {
        text: (artifacts or {}).get(text) or find(known)
        for text, known in beginning.references.items()
    }
    for text in (text for text, artifact in found.items() if artifact is None):
        console.warn(
            f"{text} is no input of run {run.uid}: its artifact is not in LaminDB any more"
        )
    use(run, {text: artifact for text, artifact in found.items() if artifact is not None})
    used = find(beginning.used) if beginning.used else None
    if used is not None:
        make_input(run, used)
    return used


def describe_file(path: str, of_run: str | None) -> dict[str, Any]:
    """Describe a checkpoint on this machine, so that `find` knows its artifact.

    Args:
        path: The file.
        of_run: Uid of the run that has saved it, where that is known.
    """
    from lamindb_setup.core.hashing import hash_file

    # Of parts only, where the file is large.
    digest = hash_file(Path(path))[1] if Path(path).is_file() else None
    return {"name": path.rpartition("/")[2], "hash": digest, "run": of_run}


def find(known: Mapping[str, Any]) -> Any | None:
    """Return the artifact that is known by its uid, or as a file that a run has saved."""
    if uid := known.get("uid"):
        slug = known.get("instance")
        artifacts = ln.Artifact.connect(slug).filter() if slug else ln.Artifact.objects.all()
        return artifacts.filter(uid=uid).first()
    if (run := known["run"]) is not None:
        named = {"kind": "model", "key__endswith": f"/{known['name']}"}
        own = list(ln.Artifact.filter(run__uid=run, **named))
        if len(own) == 1:
            return own[0]
    digest = known["hash"]
    return ln.Artifact.filter(hash=digest, kind="model").first() if digest else None


def add_metrics(run: Any, metrics: Mapping[str, Any], best: Mapping[str, Any]) -> None:
    """Add last and best values of metrics to those that a run has, without saving it."""
    extra = dict(run.extra_data or {})
    for name, values_ in (("metrics", metrics), ("best_metrics", best)):
        if values_:
            extra[name] = {**extra.get(name, {}), **values_}
    run.extra_data = extra or run.extra_data


def add_metric_features(run: Any, metrics: Mapping[str, float]) -> None:
    """Annotate a run with last values of metrics, where a feature has the name of one."""
    finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
    features = ln.Feature.filter(name__in=list(finite), is_type=False)
    values.link_values(run, _stored(finite, features), run)


def annotate_evaluated(artifact: Any, metrics: Mapping[str, float], run: Any) -> None:
    """Give a checkpoint its metrics, as features that exist; earlier values are replaced.

    The Lightning features say how the training has ranked it, and stay.
    """
    finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
    features = ln.Feature.filter(name__in=list(finite), is_type=False)
    stored = _stored(finite, features.exclude(type__name="lamindb.lightning"))
    with transaction.atomic():
        values.unlink(artifact, stored)
        values.link_values(artifact, stored, run)


def set_ending(
    run: Any,
    status: str,
    finished_at: datetime,
    reason: str = "",
    attempt: str = "",
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Record how, why and when a run, and one of its attempts, has ended.

    A run that its scheduler will start again is ``scheduled``, and its attempt ``requeued``.

    Args:
        run: The run.
        status: How it has ended.
        finished_at: When.
        reason: Why, in a line without secrets.
        attempt: When the attempt began that has ended; the last one by default. If another has
            begun since, the run goes on, or has ended as that one says.
        notes: What else of it is known now, for its record.
    """
    if notes:
        mine = {**(run.extra_data or {}).get(EXTRA_DATA_KEY, {}), **notes}
        run.extra_data = {**(run.extra_data or {}), EXTRA_DATA_KEY: mine}
    describe_ending(run, status, finished_at, reason, attempt)
    run.save()
    arrays.settle(run)


def describe_ending(
    run: Any, status: str, finished_at: datetime, reason: str = "", attempt: str = ""
) -> None:
    """Put the end into a run, as `set_ending` does, without saving it."""
    goes_on = status == "scheduled"
    record = dict((run.extra_data or {}).get(EXTRA_DATA_KEY) or {})
    attempts = list(record.get("attempts") or [])
    why = {"reason": redact_text(reason)} if reason else {}
    begun = [one["started_at"] for one in attempts]
    number = begun.index(attempt) if attempt in begun else len(attempts) - 1
    if attempts:
        ended = {"ended_at": finished_at.isoformat(), "status": "requeued" if goes_on else status}
        attempts[number] = {**attempts[number], **ended, **why}
        record["attempts"] = attempts
    is_last = number == len(attempts) - 1
    if is_last:
        run._status_code = RUN_STATUS_TO_CODE[status]
        run.finished_at = None if goes_on else finished_at
    if record:
        run.extra_data = {**run.extra_data, EXTRA_DATA_KEY: {**record, **(why if is_last else {})}}


def finish_end(run: Any) -> None:
    """Take the steps of an end that are missing, of a run whose status says that it has ended."""
    attempts = run.extra_data[EXTRA_DATA_KEY].get("attempts") or []
    if attempts and "ended_at" not in attempts[-1]:
        describe_ending(run, _STATUSES[run._status_code], run.finished_at)
        run.save()
    add_metric_features(run, run.extra_data.get("metrics") or {})
    arrays.settle(run)
    save_report(run)


def remove(run: Any) -> bool:
    """Remove a run of which nothing has come: no record, and no other run.

    Its code and its environment stay, for they may be those of others.

    Returns:
        Whether it was removed. Else it is as it was.

    Durability: committed on return.
    """
    try:
        if run.initiated_runs.exists():  # which would go with it
            return False
        Model.delete(run)  # lamindb's would start a process that looks for artifacts to remove
    except (ProtectedError, Error):
        return False
    return True


def _stored(metrics: Mapping[str, float], features: Any) -> dict[Any, Any]:
    """Return the values of those of some features that hold numbers, one a name."""
    known = {one.name: one for one in features if one._dtype_str in {"float", "num", "int"}}
    return {
        one: values.as_stored(
            one, round(metrics[name]) if one._dtype_str == "int" else metrics[name]
        )
        for name, one in known.items()
    }


# -- what it needs to be there ------------------------------------------------------------------


def record_mistakes(project: str | None, space: str | None, branch: str | None) -> list[str]:
    """Say which of the records do not exist, and how to create them."""
    mistakes = []
    slug = ln.setup.settings.instance.slug
    for registry, name in ((ln.Project, project), (ln.Space, space), (ln.Branch, branch)):
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
    return mistakes


def _exists(registry: Any, name: str) -> bool:
    return any(registry.filter(**{by: name}).exists() for by in ("name", "uid"))


def ensure_lightning_features() -> None:
    """Create the Lightning features once, where they are missing and the database permits it."""
    from lamindb.integrations.lightning import _SUPPORTED_AUTO_FEATURES as NAMES
    from lamindb.integrations.lightning import save_lightning_features

    def are_there() -> bool:
        present = ln.Feature.filter(type__name="lamindb.lightning", name__in=NAMES)
        return bool(present.count() == len(NAMES))

    if are_there():
        return
    try:
        with silent_lamindb(), one_at_a_time():
            if not are_there():
                save_lightning_features()
    except (Error, DoesNotExist, PermissionError) as error:
        if outages.verdict(error) == "retry":
            raise
        console.warn(
            f"the Lightning features cannot be created ({first_line(error)}); "
            "ask an owner of the instance to call save_lightning_features() once"
        )


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
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
        with taking_turns(name):
            yield


@contextlib.contextmanager
def silent_lamindb() -> Iterator[None]:
    """Let lamindb say nothing for a while."""
    logger, verbosity = ln.setup.logger, ln.settings.verbosity
    was_disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = was_disabled
        ln.settings.verbosity = verbosity  # ln.track() raises it
