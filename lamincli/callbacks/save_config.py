"""The callback that writes the resolved config and publishes it as an input of the run."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import lamindb as ln
import lightning.pytorch as pl
from lamindb.integrations import lightning as ll

from lamincli import originals
from lamincli.callbacks.checkpoint import Checkpoint, spool_root
from lamincli.folders import Scratch
from lamincli.memory import KnownJob, remember_job
from lamincli.plain_config import plain_config
from lamincli.process import job_id
from lamincli.redaction import redact_argv
from lamincli.tracking import adopt_from_parent


class SaveConfigCallback(ll.SaveConfigCallback):
    """Save the resolved config beside the checkpoints and publish it as an input of the run.

    Beside ``config.yaml`` lies ``config.lightning.yaml``, which the plain `LightningCLI` reads.

    It never refuses to start because a file exists, and never overwrites one: where the place is
    taken, and where there is no logger, the file goes to a folder of its own run. The artifact key
    is that of the specification in either case, also without a checkpoint callback.

    Args:
        parser: The parser that read the config.
        config: The parsed configuration.
        config_filename: File name of the local copy.
        overwrite: Write over an existing local file.
        multifile: Keep the structure of several config files.
        save_to_log_dir: Write the local copy. It is published without one too.

    Runs on: every rank; files and database on global rank zero only.
    """

    is_of_resumption: bool = False
    """The run goes on: its config is replaced by one with which the checkpoint could be loaded."""

    variables: Mapping[str, str] = {}
    """What the config says instead of the values of environment variables, as in `TakenOut`."""

    # Arguments for the callback that derives the key where the trainer has no checkpoint callback.
    key_defaults: dict[str, Any] = {}  # noqa: RUF012  never changed in place

    def __init__(
        self,
        parser: Any,
        config: Any,
        config_filename: str = "config.yaml",
        overwrite: bool = False,
        multifile: bool = False,
        save_to_log_dir: bool = True,
    ) -> None:
        super().__init__(parser, config, config_filename, overwrite, multifile, save_to_log_dir)
        self.already_saved: bool = False
        self.local_path: Path | None = None
        self.key: str | None = None
        self.publisher: Checkpoint | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write, publish, and call `save_config`, once."""
        if self.already_saved:
            return
        if trainer.is_global_zero:
            adopt_from_parent()
            if self.save_to_log_dir:
                self.local_path = self._write(trainer)
            if not self.is_of_resumption:
                self.publish(trainer, pl_module)
            self.save_config(trainer, pl_module, stage)
        self.already_saved = trainer.strategy.broadcast(True)

    def publish(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Publish the config, once, whether or not there is a file of it."""
        if self.key is not None or not trainer.is_global_zero:
            return
        _learn_features(trainer, pl_module)
        if self.local_path is not None:
            self._save_config(trainer, self.local_path)
            return
        with Scratch("config") as folder:
            path = folder / self.config_filename
            path.write_text(self.parser.dump(self.config, skip_unset=False), encoding="utf-8")
            self._save_config(trainer, path)

    def _write(self, trainer: pl.Trainer) -> Path:
        """Write the config; the files that hold what is not published, for this user alone."""
        texts = self._texts()
        for folder in self._places(trainer):
            paths = {folder / name: text for name, text in texts.items()}
            if self.overwrite:
                for path in paths:
                    path.unlink(missing_ok=True)
            elif any(path.exists() for path in paths):
                continue
            folder.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):  # another process has just taken the place
                for path, text in paths.items():
                    originals.write(path, text)
                return next(iter(paths))
        raise FileExistsError(self.config_filename)

    def _texts(self) -> dict[str, str]:
        """Return the text of each file, that of the config itself first."""
        if not self.multifile:
            text = self.parser.dump(self.config, skip_unset=False)
            name = Path(self.config_filename)
            plain = {f"{name.stem}.lightning{name.suffix}": plain_config(text)}
            return {self.config_filename: text, **{k: v for k, v in plain.items() if v}}
        with Scratch("config") as folder:
            path = folder / self.config_filename
            self.parser.save(self.config, path, skip_unset=False)
            files = [path, *(file for file in folder.iterdir() if file != path)]
            return {file.name: file.read_text(encoding="utf-8") for file in files}

    def _places(self, trainer: pl.Trainer) -> Iterator[Path]:
        """Yield the folders for the config; one that is taken is left as it is.

        The original stays on this machine: not in a bucket to which the logger may write.
        """
        uid = str(ln.context.run.uid) if ln.context.run else "untracked"
        root = str(trainer.default_root_dir)
        logged = [str(getattr(one, "save_dir", None) or root) for one in trainer.loggers[:1]]
        if logged and "://" not in logged[0]:
            usual: Path = self._config_path(trainer).parent
            yield usual
            own = usual / uid
        else:
            own = spool_root(root, os.getcwd()) / "lamin_runs" / uid
        yield own
        yield from (own / str(n) for n in range(1, 10_000))

    def _save_config(self, trainer: pl.Trainer, config_path: Path) -> None:
        publisher = self._get_artifact_checkpoint_callback(trainer)
        if publisher is None:
            publisher = self.publisher = Checkpoint(**self.key_defaults)
        if isinstance(publisher, Checkpoint):
            publisher._variables = self.variables
        publisher.save_config_artifact(trainer, config_path)
        self.key = publisher.resolve_artifact_key(trainer, config_path, "config")

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Wait until the config is published, where no checkpoint callback does."""
        if self.publisher is not None:
            self.publisher.drain(trainer)


class Beginning(pl.Callback):
    """Know that training has begun, and only then publish the config of a run that goes on.

    Apart from the callback that saves it, whose hooks users override. A job that a scheduler may
    start again remembers its run from here on.

    Args:
        run: Uid, instance and notes of the run, as `memory.KnownJob` holds them.

    Runs on: every rank; publishes on global rank zero only.
    """

    def __init__(self, run: tuple[str, str, dict[str, Any]]) -> None:
        self._run = run
        self.is_set_up = False
        self.has_begun = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Note that the hooks are called in this process."""
        self.is_set_up = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Publish the config, now that the checkpoint is loaded."""
        self.has_begun = True
        saver = config_saver(trainer)
        if saver is not None and saver.is_of_resumption:
            saver.publish(trainer, pl_module)
        job = job_id()
        if job is not None and trainer.is_global_zero:
            callbacks = [one for one in trainer.checkpoint_callbacks if isinstance(one, Checkpoint)]
            folders = [str(one.dirpath) for one in callbacks if one.dirpath]
            prefixes = {one.state_key: one._base_prefix(trainer) for one in callbacks}
            known = KnownJob(*self._run, folders, prefixes)
            number = known.notes["record"].get("fit_number", 0)
            remember_job(job, redact_argv(sys.argv[1:]), number, known)


def _learn_features(trainer: Any, pl_module: pl.LightningModule) -> None:
    """Let the callbacks ask the database what they need before a thread publishes by its side."""
    for callback in trainer.callbacks:
        if isinstance(callback, Checkpoint):
            callback.learn_features(trainer, pl_module)


def config_saver(trainer: Any) -> SaveConfigCallback | None:
    """Return the callback of a trainer that saves the config."""
    found = (one for one in trainer.callbacks if isinstance(one, SaveConfigCallback))
    return next(found, None)


def publisher_of(trainer: Any) -> Checkpoint | None:
    """Return the callback that publishes; that of the config where there are no checkpoints."""
    found = (one for one in trainer.callbacks if isinstance(one, Checkpoint))
    saver = config_saver(trainer)
    return next(found, None) or (saver and saver.publisher)


def combined_with_ours(kind: type[Any] | None) -> type[Any]:
    """Return a user's callback class with the care of ours behind its overrides.

    Args:
        kind: A subclass of Lightning's or lamindb's callback; `None` and those two become ours.
    """
    if kind is None or issubclass(SaveConfigCallback, kind):
        return SaveConfigCallback
    if not issubclass(kind, SaveConfigCallback):
        names = {"__module__": kind.__module__}
        kind = type(kind.__name__, (kind, SaveConfigCallback), names)
    if kind.setup is SaveConfigCallback.setup:
        return kind

    def setup(
        self: Any, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str, of: Any = kind
    ) -> None:
        """Do what the user's class does, and publish: that does not hang on its `super()`."""
        of.setup(self, trainer, pl_module, stage)
        if trainer.is_global_zero and not self.is_of_resumption:
            adopt_from_parent()
            self.publish(trainer, pl_module)

    return type(kind.__name__, (kind,), {"__module__": kind.__module__, "setup": setup})
