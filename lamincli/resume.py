"""Go on with a run: find it, and its last complete checkpoint wherever that is.

A checkpoint may lie on this machine's disk, in the spool of a training that was killed, or in
LaminDB. The one that was saved last is taken; one that is torn is passed over.
"""

import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from lamincli import checkpoint_file, console, order, originals, slurm
from lamincli.endings import EVALUATIONS
from lamincli.errors import (
    LaminReferenceError,
    SpoolCorruptError,
    UnreachableError,
    UsageError,
    first_line,
)
from lamincli.folders import write_own
from lamincli.instance import is_same
from lamincli.keys import NAME, split_key
from lamincli.memory import KnownJob, forget_job, recall_job
from lamincli.offline import beginning_in, is_stand_in, spools_of, spools_of_runs, stand_in
from lamincli.process import ProcessIdentity, fit_number, is_restarted, job_id
from lamincli.redaction import redact_argv
from lamincli.references import LATEST, TRASH, References, find_run, is_here, known_file
from lamincli.spool import Job, Spool
from lamincli.spool.disk import read_text
from lamincli.spool.seal import is_ours, sealed

AUTO = "auto"
RUN_FILE = Path(".lamin_run.json")
_LOOKED_AT = 100
_LOOKS_EVERY_S = 1.0


@dataclass
class Resumption:
    """A run that goes on.

    Args:
        run: The `lamindb.Run`; `None` on ranks other than zero.
        checkpoint: The local file to go on from; `None` if the run has saved none.
        step: Training steps that the checkpoint has behind it.
        prefixes: Key prefixes of its artifacts, by the callback that saved them.
        artifact: Uid of the checkpoint's artifact, if it has one.
        attempts: How many attempts of the run there were.
        epochs: Epochs that the checkpoint has behind it.
    """

    run: Any
    checkpoint: Path | None = None
    step: int = 0
    prefixes: dict[str, str] = field(default_factory=dict)
    artifact: str | None = None
    attempts: int = 1
    epochs: int = 0

    def told(self) -> dict[str, Any]:
        """Return what another rank needs to know, as JSON."""
        file = None if self.checkpoint is None else known_file(str(self.checkpoint))
        return {"file": file, "step": self.step, "artifact": self.artifact}

    @classmethod
    def heard(cls, told: dict[str, Any], fetch: Callable[[str], str]) -> "Resumption":
        """Go on as the rank that has told so.

        Args:
            told: What `told` has returned there.
            fetch: Returns the local path for a reference.

        Raises:
            UsageError: The checkpoint is neither on this host nor in LaminDB.
        """
        found, file = cls(None, step=told["step"]), told["file"]
        if file is None:
            return found
        if is_here(file):
            found.checkpoint = Path(file["path"])
        elif told["artifact"] is not None:
            found.checkpoint = Path(fetch(f"lamin:artifact/{told['artifact']}"))
        else:
            raise UsageError(
                f"The run goes on from {file['path']}, which is not on this host, and LaminDB does "
                "not have it. Put trainer.default_root_dir on a folder that all hosts share."
            )
        return found

    def why_enough(self, limits: Mapping[str, int | None]) -> str:
        """Say why nothing is left to train of a run that is complete; nothing if something is.

        Its last checkpoint may be of an earlier epoch, from which it would train the same again.

        Args:
            limits: Of ``epochs`` and ``steps``; `None` or -1 where there is none.

        Raises:
            UsageError: It shall be shorter than it is.
        """
        from lamincli.features import EXTRA_DATA_KEY

        is_complete = self.run.status == "completed"
        has = {"epochs": self.epochs, "steps": self.step}
        reached = self.run.extra_data[EXTRA_DATA_KEY].get("reached") if is_complete else None
        for what, number in (reached or has).items():
            limit = limits[what]
            if limit is None or limit < 0 or number < limit or number == 0:
                continue
            longer = f"To train longer, give --trainer.max_{what} more than {number}."
            if number > limit:
                raise UsageError(
                    f"Run {self.run.uid} has trained {number} {what} already, and "
                    f"trainer.max_{what} is {limit}. {longer}"
                )
            if reached and has[what] < number - (what == "epochs"):
                return f"run {self.run.uid} is complete: it has trained {number} {what}. {longer}"
        return ""

    def check_model(self, kind: str, word: str) -> None:
        """Refuse to go on with another model than that of the run.

        Args:
            kind: Class path of the model that the command trains.
            word: ``auto`` or ``latest``, by which the run was found.

        Raises:
            UsageError: It is another one.
        """
        from lamincli.features import EXTRA_DATA_KEY

        before = self.run.extra_data[EXTRA_DATA_KEY].get("model", kind)
        if before != kind and word == LATEST:
            raise UsageError(
                f"--lamin.resume latest: run {self.run.uid} trains {before}, and this command "
                f"{kind}. Name the run that is meant by its uid."
            )
        if before != kind:
            raise UsageError(
                f"Run {self.run.uid} of this job trains {before}, and this command {kind}. "
                f"Run it in another folder, or remove {RUN_FILE.absolute()} to start a new run."
            )

    def program_with_classes(self) -> str | None:
        """Return the script that started the run, if only it knows the class of the model."""
        from lamincli.features import EXTRA_DATA_KEY

        record = self.run.extra_data[EXTRA_DATA_KEY]
        model = (self.run.params or {}).get("model")
        knows = not isinstance(model, dict) or "class_path" in model
        return None if knows else Path((record.get("program") or {}).get("script", "")).name or None

    def config(self, away: str | None) -> str | None:
        """Return the local path of the config that the run was given, if it has published one.

        Only the published copy may be here, without what was taken out of it.

        Args:
            away: The instance, where it cannot be asked.

        Raises:
            UsageError: It has published one, which cannot be read now.
        """
        if (spooled := _spooled_config(self.run.uid)) is not None:
            return spooled
        if not is_stand_in(self.run):
            with suppress(LaminReferenceError):  # it may not be published yet
                return References(away=away).config_path(f"lamin:run/{self.run.uid}/config")
        if away is not None:
            raise UsageError(
                f"{away} is not asked now, and the config of run {self.run.uid} is not on this "
                "machine. Give it: --config FILE, or go on when LaminDB is back."
            )
        return None


def find(word: str, slug: str, of_folder: bool = True) -> Resumption | None:
    """Find the run to go on with, and its last checkpoint.

    Args:
        word: The uid of a run, a prefix of one, ``latest`` for the latest training of this user, or
            ``auto`` for the run of this job.
        slug: The connected instance.
        of_folder: Let ``auto`` take the last run of this folder where the job has none.

    Returns:
        `None` for ``auto`` where this job has no run that could go on.

    Raises:
        LaminReferenceError: There is no such run, or more than one.
        UsageError: It cannot go on: it is running, is no training, or its checkpoints are gone.
    """
    import lamindb as ln

    runs = ln.Run.objects
    if word == LATEST:  # never that of a colleague, whose record it would change
        runs = runs.filter(created_by__uid=ln.setup.settings.user.uid)
    _tell_of_foreign(spools_of_runs().values())
    begin_what_waits()
    if word == AUTO:
        run = _of_this_job(runs, slug, of_folder)
    else:
        run = find_run(word, runs, slug, f"{LATEST} of this user" if word == LATEST else "")
    return run and _with_checkpoint(run, is_auto=word == AUTO)


def find_in_spools(word: str, slug: str, of_folder: bool = True) -> Resumption | None:
    """Find the run to go on with while LaminDB is away: by what it has left in its spool.

    Args:
        word: As in `find`.
        slug: The instance.
        of_folder: As in `find`.

    Returns:
        As `find`.

    Raises:
        LaminReferenceError: No spool here is of such a run, or more than one.
        UnreachableError: The job was started before, and left no spool here.
        UsageError: As in `find`.
    """
    spools = spools_of_runs()
    _tell_of_foreign(spools.values())
    began = {uid: beginning_in(folder) for uid, folder in spools.items()}
    if word == AUTO:
        noted = [_noted_in_folder()[0]] if of_folder and RUN_FILE.exists() else []
        job, words = job_id(), redact_argv(sys.argv[1:])
        records = {uid: begin.notes for uid, begin in began.items() if begin is not None}
        of_job = [
            uid for uid, notes in sorted(records.items(), key=lambda r: order.of_beginning(r[1]))
            if job is not None and _is_of_this_fit(notes["record"], job)
            and notes["command"] == words
        ]  # fmt: skip
        known = None if job is None else recall_job(job, words, fit_number())
        found = of_job[-1:] or noted
        if not of_job and known is not None and known.instance == slug:
            return _with_checkpoint(stand_in(known.run, known.notes), is_auto=True, known=known)
        if not found and is_restarted():
            raise UnreachableError(
                f"{slug} is not asked now, and this job was started before: only LaminDB knows "
                "its run. Start it again when LaminDB is back, or a new run: --lamin.resume null."
            )
        if not found:
            return None
    elif word == LATEST:
        found = _latest_of(began)
    else:
        found = [u for u in spools if u.startswith(word)]
    if len(found) != 1 or found[0] not in spools:
        which = f" It may be any of {', '.join(found)}." if len(found) > 1 else ""
        raise LaminReferenceError(
            f"--lamin.resume {word}: {slug} is not asked now, and no single spool of this machine "
            f"is of such a run.{which} Go on where the run was, or when LaminDB is back."
        )
    started = began[found[0]]
    run = stand_in(found[0], started.notes if started else None)
    return _with_checkpoint(run, is_auto=word == AUTO)


def _latest_of(began: Mapping[str, Job | None]) -> list[str]:
    """Return the run that began last, of those that wait; all that it may be, where that is open.

    One that began in LaminDB has left no number here.
    """
    numbered = sorted((order.of_beginning(b.notes), u) for u, b in began.items() if b is not None)
    latest = [uid for _, uid in numbered[-1:]]
    return [*latest, *(uid for uid, begin in began.items() if begin is None)]


def _tell_of_foreign(folders: Iterable[Path]) -> None:
    """Say which spools are not looked into, for their run may be the one that is meant."""
    for folder in folders:
        if Spool(folder).foreign():
            place = shlex.quote(os.path.relpath(folder))
            console.warn(
                f"{place} is left alone, because your lamin-train did not write it. If you trust "
                f"it: lamin-train sync {place} --trust"
            )


def begin_what_waits() -> None:
    """Let runs that began without LaminDB begin there now, so that they are found there.

    One that cannot is left to `sync`, which says what is to be done about it.
    """
    import lamindb as ln
    from django.db import InterfaceError, OperationalError

    from lamincli.registry.lamin import LaminRegistry

    before = dict(vars(ln.context))
    began = [(job, folder) for folder in spools_of_runs().values() if (job := beginning_in(folder))]
    for begin, folder in sorted(began, key=lambda one: order.of_beginning(one[0].notes)):
        spool = Spool(folder)
        if not is_same(begin.instance) or not spool.lock.acquire():
            continue
        registry = LaminRegistry()
        try:
            for name, job in spool.jobs():
                if job.action in ("begin", "close") and not (spool.parked / name).exists():
                    spool.claim(name)
                    if job.action == "begin":
                        registry.begin_run(job)
                    else:
                        registry.close_run(job, spool.pin_of(job) if job.pin else None)
                    spool.finish(name)
        except (OperationalError, InterfaceError):
            raise
        except Exception as error:
            console.warn(f"run {begin.run} cannot begin in LaminDB yet: {first_line(error)}")
        finally:
            spool.lock.release()
            vars(ln.context).update(before)


def _with_checkpoint(run: Any, is_auto: bool, known: KnownJob | None = None) -> Resumption | None:
    """Find the last complete checkpoint of a run; `None` for a complete run that has none."""
    _check(run)
    checkpoints = _checkpoints(run, known.folders if known else ())
    prefixes = {one.callback: one.prefix for one in checkpoints if one.callback}
    found = Resumption(run, prefixes={**(known.prefixes if known else {}), **prefixes})
    found.attempts = _attempts(run, checkpoints)
    holds_weights = False
    for checkpoint in checkpoints:
        try:
            path = checkpoint.path()
        except LaminReferenceError as error:
            console.warn(f"{error} Looking for an earlier checkpoint.")
            continue
        if (content := checkpoint_file.read(path)) is None:
            console.warn(f"{path} is incomplete; looking for an earlier checkpoint")
        elif content and "lr_schedulers" not in content:
            holds_weights = True
        else:
            found.checkpoint, found.step = path, checkpoint.step
            found.epochs = checkpoint_file.epochs(content)
            found.artifact = checkpoint.artifact and str(checkpoint.artifact.uid)
            return found
    if holds_weights:
        raise UsageError(
            f"Run {run.uid} has saved weights only, so its training cannot go on. Start "
            f"another one from them: --ckpt_path lamin:run/{run.uid}/last"
        )
    nowhere = "It has no checkpoint in LaminDB, on this disk or in a spool of this machine."
    if not is_auto:
        raise UsageError(
            f"Run {run.uid} cannot go on. {nowhere} If another machine has one, run lamin-train "
            f"sync there. To start anew: lamin-train fit --config lamin:run/{run.uid}/config"
        )
    if run.status == "completed":
        return None
    console.warn(f"run {run.uid} goes on from its beginning. {nowhere}")
    return found


def remember(run_uid: str, slug: str) -> None:
    """Let ``auto`` find the run of this folder where no scheduler names the job."""
    try:
        note = sealed({"run": run_uid, "instance": slug}, RUN_FILE.name)
        write_own(RUN_FILE, json.dumps(note) + "\n")
    except OSError as error:
        console.warn(f"--lamin.resume auto will not find this run again: {error}")


def forget(run_uid: str) -> None:
    """Forget the run of this folder and job, for it is complete."""
    if (job := job_id()) is not None:
        forget_job(job, redact_argv(sys.argv[1:]), fit_number())
    try:
        if json.loads(read_text(RUN_FILE)).get("run") == run_uid:
            RUN_FILE.unlink()
    except (OSError, ValueError, AttributeError, SpoolCorruptError):  # none of ours
        pass


# -- the run ------------------------------------------------------------------------------------


def _of_this_job(runs: Any, slug: str, of_folder: bool) -> Any:
    from lamincli.features import EXTRA_DATA_KEY
    from lamincli.registry.runs import job_reference

    run, job = None, job_id()
    # A job may train several models in turn; a scheduler repeats its commands word for word.
    is_repeated = job is not None and job.startswith("slurm:")
    words = redact_argv(sys.argv[1:])
    if job is not None:
        # The column has an index; the JSON, which every run would have to be read for, decides.
        of_job = runs.filter(reference=job_reference(job)).order_by("-id")
        records = [(run, (run.extra_data or {}).get(EXTRA_DATA_KEY, {})) for run in of_job]
        records = [(run, record) for run, record in records if _is_of_this_fit(record, job)]
        same = [run for run, record in records if record.get("command") == words]
        others = [] if is_repeated else [run for run, _ in records]
        run = next(iter(same + others), None)
    if run is None and of_folder and RUN_FILE.exists():
        uid, instance = _noted_in_folder()
        run = runs.filter(uid=uid).first() if is_same(instance) else None
        if run is None:
            raise UsageError(
                f"{RUN_FILE.absolute()} names run {uid} in {instance}, and {slug} has no such run. "
                "Remove the file to start a new run."
            )
        if is_repeated and run.extra_data[EXTRA_DATA_KEY].get("command", words) != words:
            console.say(f"{RUN_FILE} names run {uid}, of another command; this one starts a run")
            run = None
    # A job that is started again may have been stopped in what followed its fit.
    is_over = run is not None and run.status == "completed" and not (job and is_restarted())
    return None if is_over else run


def _is_of_this_fit(record: Mapping[str, Any], job: str) -> bool:
    """Tell whether a record is that of this fit in an earlier start of a job, by its place."""
    return (
        _is_training(record)
        and record.get("job") == job
        and record.get("fit_number", 0) == fit_number()
    )


def _is_training(record: Mapping[str, Any]) -> bool:
    stage = record.get("stage")
    return stage not in (*EVALUATIONS, "array") and record.get("trains", True)


def _noted_in_folder() -> tuple[str, str]:
    """Return the run of this folder, and its instance."""
    try:
        note = json.loads(read_text(RUN_FILE))
        run, instance = note["run"], note["instance"]
    except (OSError, ValueError, KeyError, TypeError, SpoolCorruptError) as error:
        raise UsageError(
            f"{RUN_FILE.absolute()} cannot be read. Remove it to start a new run."
        ) from error
    if not is_ours(note, RUN_FILE.name):
        raise UsageError(
            f"{RUN_FILE.absolute()} names run {run}, and was not written by your lamin-train, but "
            "by another user, another machine or an earlier version. Remove the file to start a "
            f"new run, or resume that one: --lamin.resume {run}"
        )
    return run, instance


def _check(run: Any) -> None:
    from lamincli.features import EXTRA_DATA_KEY

    record = (run.extra_data or {}).get(EXTRA_DATA_KEY)
    if record is None:
        raise UsageError(f"Run {run.uid} was not made by lamin-train, so it cannot go on.")
    if getattr(run, "branch_id", None) == TRASH:
        raise UsageError(
            f"Run {run.uid} is in the trash. Restore it first: python -c "
            f"'import lamindb as ln; ln.Run.get(\"{run.uid}\").restore()'"
        )
    if not _is_training(record):
        what = f"a {record['stage']}" if record.get("stage") else "no training"
        raise UsageError(f"Run {run.uid} is {what}; only a training can go on.")
    process = ProcessIdentity.from_dict(record.get("process"))
    is_open = run.status in ("started", "restarted")
    job = record.get("job") or ""
    if (is_open or run.status == "scheduled") and job != job_id() and slurm.is_going_on(job):
        raise UsageError(
            f"Run {run.uid} goes on in SLURM job {job.rpartition(':')[2]}. Wait for it, or end it "
            "first with scancel."
        )
    if is_open and process is not None and process.is_alive():
        raise UsageError(
            f"Run {run.uid} is still running: process {process.pid} on {process.host}. "
            "Wait for it, or stop it first."
        )
    if not job or job != job_id():  # else its scheduler has seen the attempt before end
        _check_spools(run.uid, spools_of(run.uid, record))


def _check_spools(uid: str, spools: Iterable[Spool]) -> None:
    """Ask the spool whether the run is going on: in another container, perhaps, or on another host.

    Raises:
        UsageError: A training has it.
    """
    for spool in spools:
        is_told = False
        while (holder := spool.lock.holder()) is not None and not holder.is_alive:
            if not is_told:
                console.say(f"run {uid} may be in use by {holder}; waiting to see whether it lives")
            is_told = True
            time.sleep(_LOOKS_EVERY_S)
        if holder is not None and holder.what == "sync":
            console.say(f"what run {uid} has saved before is being published by {holder}")
        elif holder is not None:
            raise UsageError(f"Run {uid} is in use by {holder}. Wait for it, or stop it first.")


# -- its checkpoints ----------------------------------------------------------------------------


def _attempts(run: Any, checkpoints: Iterable["_Found"]) -> int:
    """Return how many attempts of a run there were, by all that is known of it here."""
    from lamincli.features import EXTRA_DATA_KEY

    noted = (run.extra_data or {}).get(EXTRA_DATA_KEY, {}).get("attempts") or ()
    folder = spools_of_runs().get(run.uid)
    jobs = Spool(folder).jobs() if folder is not None else ()
    begun = sum(job.action == "begin" for _, job in jobs)
    saved = (order.attempt_of(one.order) + 1 for one in checkpoints)
    return max(1, len(noted) + (0 if is_stand_in(run) else begun), begun, *saved)


@dataclass
class _Found:
    step: int
    saved_at: str
    order: int
    local: Path | None = None
    artifact: Any = None
    callback: str = ""
    key: str = ""
    notes: Mapping[str, Any] = field(default_factory=dict)
    put_back: Callable[[], Path] | None = None
    _is_checked: bool = False

    @property
    def prefix(self) -> str:
        return split_key(self.key, self.notes)[0].removesuffix("checkpoints").rstrip("/")

    def places(self) -> Iterator[tuple[Path, str]]:
        """Yield where others of its callback may lie: folders, and patterns within them."""
        if self.local is None:
            return
        yield self.local.parent, "*.ckpt"
        if depth := str(self.notes.get(NAME) or "").count("/"):
            yield self.local.parents[depth], "*/" * depth + "*.ckpt"

    def path(self) -> Path:
        """Return the file on this machine."""
        from lamincli.registry import download, storage

        if self.put_back is not None:
            return self.put_back()
        if self.artifact is None or self._is_checked:
            assert self.local is not None
            return self.local
        self._is_checked = True
        # The path was noted by another machine, perhaps, and may be that of another file here.
        if self.local is None or storage.describe(self.local)["hash"] != self.artifact.hash:
            self.local = download.fetch(self.artifact)
        return self.local


def _checkpoints(run: Any, folders: Iterable[str]) -> list[_Found]:
    """Return all checkpoints of a run that are known, or lie in its folders, the latest first."""
    published = [] if is_stand_in(run) else _published(run)
    found = [*published, *_spooled(run.uid)]
    began = run.started_at.isoformat() if folders else ""
    newest = max((one.saved_at for one in found), default=began)
    places = {place for one in found for place in one.places()}
    places |= {(Path(folder), "*.ckpt") for folder in folders}
    found += _unknown(run.uid, places, newest, {one.local for one in found})
    return sorted(found, key=lambda one: (one.order, one.step, one.saved_at), reverse=True)


def _published(run: Any) -> Iterator[_Found]:
    import lamindb as ln

    from lamincli.features import EXTRA_DATA_KEY

    for artifact in ln.Artifact.filter(run=run, kind="model").select_related("storage"):
        notes = (artifact.extra_data or {}).get(EXTRA_DATA_KEY) or {}
        if not notes and not str(artifact.key).endswith(".ckpt"):
            continue  # a model that the user's code has saved
        local = Path(str(notes.get("path") or "nowhere"))
        # What is still where it was saved needs no download.
        is_here = local.is_dir() or (local.is_file() and local.stat().st_size == artifact.size)
        saved_at = notes.get("saved_at") or artifact.created_at.isoformat()
        yield _Found(notes.get("step", 0), saved_at, order.of_notes(notes),
                     local if is_here else None, artifact, notes.get("checkpoint", ""),
                     artifact.key, notes)  # fmt: skip


def _spooled(uid: str) -> Iterator[_Found]:
    for spool, job in _saves_in_spools(uid, "checkpoint"):
        yield _Found(job.notes.get("step", 0), job.at, order.of_notes(job.notes),
                     Path(job.local_path), None, job.callback, job.key, job.notes,
                     partial(spool.put_back, job))  # fmt: skip


def _spooled_config(uid: str) -> str | None:
    """Return the latest config of a run that is not published yet: what it was given, or a copy."""
    jobs = list(_saves_in_spools(uid, "config"))
    if not jobs:
        return None
    spool, job = jobs[-1]
    pin = spool.pin_of(job)
    found = originals.find(job.notes.get(originals.NOTE), uid, pin)
    return str(found or pin) if found or pin.exists() else None


def _saves_in_spools(uid: str, kind: str) -> Iterator[tuple[Spool, Job]]:
    for spool in map(Spool, spools_of_runs().values()):
        for _, job in spool.jobs():
            if (job.action, job.kind, job.run) == ("save", kind, uid):
                yield spool, job


def _unknown(
    uid: str, places: set[tuple[Path, str]], newest: str, known: set[Path | None]
) -> Iterator[_Found]:
    """Yield checkpoints on the disk that were saved so late that they did not become jobs.

    Those that say whose they are count if they are of this run. Of weights alone, and of what an
    earlier version has saved, only the time of the file tells.
    """
    after_s = datetime.fromisoformat(newest).timestamp() if newest else 0.0
    files = [file for folder, all_ in places for file in folder.glob(all_) if file not in known]
    files += [file for file in Path.cwd().glob("hpc_ckpt_*.ckpt") if newest]
    dated = sorted(((file.stat().st_mtime, file) for file in files), reverse=True)
    for saved_s, file in dated[:_LOOKED_AT]:
        if not (content := checkpoint_file.read(file)):
            continue
        run, number = checkpoint_file.saved_by(content)
        if run == uid or (run is None and saved_s > after_s - 1):
            saved_at = datetime.fromtimestamp(saved_s).astimezone().isoformat()
            yield _Found(int(content.get("global_step", 0)), saved_at, number, file)
