"""Go on with a run: find it, and its last complete checkpoint wherever that is.

A checkpoint may lie on this machine's disk, in the spool of a training that was killed, or in
LaminDB. The one of the latest step is taken; one that is torn is passed over.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from lamincli import checkpoint_file, console
from lamincli.errors import LaminReferenceError, UsageError
from lamincli.process import ProcessIdentity, job_id
from lamincli.redaction import redact_argv
from lamincli.references import References, find_run, is_here, known_file
from lamincli.spool import Spool, known_spools, spools_below

AUTO = "auto"
RUN_FILE = Path(".lamin_run.json")
_LOOKED_AT = 20


@dataclass
class Resumption:
    """A run that goes on.

    Args:
        run: The `lamindb.Run`; `None` on ranks other than zero.
        checkpoint: The local file to go on from; `None` if the run has saved none.
        step: Training steps that the checkpoint has behind it.
        prefixes: Key prefixes of its artifacts, by the callback that saved them.
        artifact: Uid of the checkpoint's artifact, if it has one.
    """

    run: Any
    checkpoint: Path | None = None
    step: int = 0
    prefixes: dict[str, str] = field(default_factory=dict)
    artifact: str | None = None

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

    def check_model(self, kind: str) -> None:
        """Refuse to go on with another model than that of the run.

        Args:
            kind: Class path of the model that the command trains.

        Raises:
            UsageError: It is another one.
        """
        from lamincli.registry.lamin import EXTRA_DATA_KEY

        before = self.run.extra_data[EXTRA_DATA_KEY].get("model", kind)
        if before != kind:
            raise UsageError(
                f"Run {self.run.uid} of this job trains {before}, and this command {kind}. "
                f"Run it in another folder, or remove {RUN_FILE.absolute()} to start a new run."
            )

    def config(self) -> str | None:
        """Return the local path of the run's config, if it has published one."""
        try:
            return References().local_path(f"lamin:run/{self.run.uid}/config")
        except LaminReferenceError:
            return None


def find(word: str, slug: str, of_folder: bool = True) -> Resumption | None:
    """Find the run to go on with, and its last checkpoint.

    Args:
        word: The uid of a run, a prefix of one, ``latest``, or ``auto`` for the run of this job.
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
    run = _of_this_job(runs, slug, of_folder) if word == AUTO else find_run(word, runs, slug)
    if run is None:
        return None
    _check(run)
    checkpoints = _checkpoints(run)
    prefixes = {one.callback: one.prefix for one in checkpoints if one.callback}
    found = Resumption(run, prefixes=prefixes)
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
            found.artifact = checkpoint.artifact and str(checkpoint.artifact.uid)
            return found
    if holds_weights:
        raise UsageError(
            f"Run {run.uid} has saved weights only, so its training cannot go on. Start "
            f"another one from them: --ckpt_path lamin:run/{run.uid}/last"
        )
    nowhere = "It has no checkpoint in LaminDB, on this disk or in a spool of this machine."
    if word != AUTO:
        raise UsageError(
            f"Run {run.uid} cannot go on. {nowhere} If another machine has one, run lamin-train "
            f"sync there. To start anew: lamin-train fit --config lamin:run/{run.uid}/config"
        )
    console.warn(f"run {run.uid} goes on from its beginning. {nowhere}")
    return found


def remember(run_uid: str, slug: str) -> None:
    """Let ``auto`` find the run of this folder where no scheduler names the job."""
    try:
        RUN_FILE.write_text(json.dumps({"run": run_uid, "instance": slug}) + "\n")
    except OSError as error:
        console.warn(f"--lamin.resume auto will not find this run again: {error}")


def forget(run_uid: str) -> None:
    """Forget the run of this folder, for it is complete."""
    try:
        if json.loads(RUN_FILE.read_text()).get("run") == run_uid:
            RUN_FILE.unlink()
    except (OSError, ValueError, AttributeError):  # none of ours
        pass


# -- the run ------------------------------------------------------------------------------------


def _of_this_job(runs: Any, slug: str, of_folder: bool) -> Any:
    from lamincli.registry.lamin import EXTRA_DATA_KEY

    run, job = None, job_id()
    # A job may train several models in turn; a scheduler repeats its commands word for word.
    is_repeated = job is not None and job.startswith("slurm:")
    words = redact_argv(sys.argv[1:])
    if job is not None:
        of_job = runs.filter(**{f"extra_data__{EXTRA_DATA_KEY}__job": job}).order_by("-id")
        run = of_job.filter(**{f"extra_data__{EXTRA_DATA_KEY}__command": words}).first()
        if run is None and not is_repeated:
            run = of_job.first()
    if run is None and of_folder and RUN_FILE.exists():
        try:
            note = json.loads(RUN_FILE.read_text())
            uid, instance = note["run"], note["instance"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"{RUN_FILE.absolute()} cannot be read. Remove it to start a new run."
            ) from error
        run = runs.filter(uid=uid).first() if instance == slug else None
        if run is None:
            raise UsageError(
                f"{RUN_FILE.absolute()} names run {uid} in {instance}, and {slug} has no such run. "
                "Remove the file to start a new run."
            )
        if is_repeated and run.extra_data[EXTRA_DATA_KEY].get("command", words) != words:
            console.say(f"{RUN_FILE} names run {uid}, of another command; this one starts a run")
            run = None
    return None if run is None or run.status == "completed" else run


def _check(run: Any) -> None:
    from lamincli.registry.lamin import EXTRA_DATA_KEY

    record = (run.extra_data or {}).get(EXTRA_DATA_KEY)
    if record is None:
        raise UsageError(f"Run {run.uid} was not made by lamin-train, so it cannot go on.")
    if record.get("stage") not in (None, "fit"):
        raise UsageError(f"Run {run.uid} is a {record['stage']}; only a training can go on.")
    process = ProcessIdentity.from_dict(record.get("process"))
    is_open = run.status in ("started", "restarted")
    if is_open and process is not None and process.is_alive():
        raise UsageError(
            f"Run {run.uid} is still running: process {process.pid} on {process.host}. "
            "Wait for it, or stop it first."
        )


# -- its checkpoints ----------------------------------------------------------------------------


@dataclass
class _Found:
    step: int
    saved_at: str
    local: Path | None = None
    artifact: Any = None
    callback: str = ""
    key: str = ""
    put_back: Callable[[], Path] | None = None
    _is_checked: bool = False

    @property
    def prefix(self) -> str:
        return self.key.rpartition("/")[0].removesuffix("checkpoints").rstrip("/")

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


def _checkpoints(run: Any) -> list[_Found]:
    """Return all checkpoints of a run that are known, the latest first."""
    found = [*_published(run), *_spooled(run.uid)]
    newest = max((one.saved_at for one in found), default="")
    folders = {one.local.parent for one in found if one.local is not None}
    found += _unknown(folders, newest, {one.local for one in found})
    return sorted(found, key=lambda one: (one.step, one.saved_at), reverse=True)


def _published(run: Any) -> Iterator[_Found]:
    import lamindb as ln

    from lamincli.registry.lamin import EXTRA_DATA_KEY

    for artifact in ln.Artifact.filter(run=run, kind="model").select_related("storage"):
        notes = (artifact.extra_data or {}).get(EXTRA_DATA_KEY) or {}
        if not notes and not str(artifact.key).endswith(".ckpt"):
            continue  # a model that the user's code has saved
        local = Path(str(notes.get("path") or "nowhere"))
        # What is still where it was saved needs no download.
        is_here = local.is_dir() or (local.is_file() and local.stat().st_size == artifact.size)
        saved_at = notes.get("saved_at") or artifact.created_at.isoformat()
        yield _Found(notes.get("step", 0), saved_at, local if is_here else None, artifact,
                     notes.get("checkpoint", ""), artifact.key)  # fmt: skip


def _spooled(uid: str) -> Iterator[_Found]:
    folders = {Path(os.path.abspath(f)) for f in (*known_spools(), *spools_below(Path.cwd()))}
    for folder in folders:
        spool = Spool(folder)
        for state in (spool.claimed, spool.ready, spool.parked):
            for name in spool.names(state):
                job = spool.look(state, name)
                if job is None or (job.action, job.kind, job.run) != ("save", "checkpoint", uid):
                    continue
                yield _Found(job.notes.get("step", 0), job.at, Path(job.local_path), None,
                             job.callback, job.key, partial(spool.put_back, job))  # fmt: skip


def _unknown(folders: set[Path], newest: str, known: set[Path | None]) -> Iterator[_Found]:
    """Yield checkpoints on the disk that were saved so late that they did not become jobs."""
    after_s = datetime.fromisoformat(newest).timestamp() if newest else 0.0
    files = [file for folder in folders for file in folder.glob("*.ckpt") if file not in known]
    files += [file for file in Path.cwd().glob("hpc_ckpt_*.ckpt") if newest]
    late = sorted(
        ((file.stat().st_mtime, file) for file in files if file.stat().st_mtime > after_s - 1),
        reverse=True,
    )
    for saved_s, file in late[:_LOOKED_AT]:
        if content := checkpoint_file.read(file):
            saved_at = datetime.fromtimestamp(saved_s).astimezone().isoformat()
            yield _Found(int(content.get("global_step", 0)), saved_at, file)
