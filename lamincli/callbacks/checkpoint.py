"""The checkpoint callback that publishes what Lightning saves."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from functools import cache
from pathlib import Path
from types import MethodType
from typing import Any, Literal

import lamindb as ln
import lightning.pytorch as pl
from lamindb.integrations import lightning as ll
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint

from lamincli import console
from lamincli.errors import MonitorNotLoggedError, did_you_mean, first_line
from lamincli.registry.lamin import (
    clean_copy,
    forget_lost_connections,
    is_outage,
    make_input,
    retire,
)
from lamincli.tracking import adopt_from_parent


class Checkpoint(ll.Checkpoint):
    """Save checkpoints with Lightning's `ModelCheckpoint` and publish each as an artifact.

    What is persisted is what `lamindb.integrations.lightning.Checkpoint` persists: keys, kinds,
    features, lineage and events. Four things are done with more care. An artifact is created
    before the one it replaces is removed, and an artifact of another run is never removed: its
    key gets a new version. An observer that raises is reported and ends nothing. A database or a
    storage that is away ends nothing either: the file stays where it is and is named at the end.
    Every argument of `ModelCheckpoint` is taken.

    Args:
        dirpath: Folder for the checkpoints, also the prefix of their artifact keys.
        filename: Template of the file names, as in ``{epoch}-{val_loss:.2f}``.
        features: Feature values, ``{"run": {...}, "artifact": {...}}``. A value of `None` for an
            artifact is taken from the trainer attribute or the logged metric of that name.
        monitor: Logged metric that ranks the checkpoints.
        verbose: Print a line for every save.
        save_last: Also save ``last.ckpt``; ``"link"`` makes it a symbolic link.
        save_top_k: Number of best checkpoints to keep: -1 keeps all, 0 saves none.
        save_on_exception: Save a checkpoint when training fails.
        save_weights_only: Save the weights without the state of optimizer and trainer.
        mode: Whether the best score is the smallest or the largest.
        auto_insert_metric_name: Write ``epoch=1`` rather than ``1`` into file names.
        every_n_train_steps: Save every so many training steps.
        train_time_interval: Save whenever so much time has passed.
        every_n_epochs: Save every so many epochs.
        save_on_train_epoch_end: Save at the end of the training epoch, not after validation.
        enable_version_counter: Add ``-v1``, ``-v2``, … to the name of a file that exists.
        run_uid_is_version: Put the uid of the run into the keys.
        key_is_virtual: Let LaminDB choose the file names in its storage.
        artifact_observers: Objects that are told of saved and removed artifacts.

    Raises:
        MonitorNotLoggedError: By the first save, if `monitor` was never logged.

    Runs on: every rank; the database is used on global rank zero only.
    """

    # Class attributes, since `adopt` turns instances of lamindb's class into instances of this.
    _run_uid: str | None = None
    _features_of_run: str | None = None
    unpublished: tuple[str, ...] = ()
    _key_is_virtual: bool

    def __init__(
        self,
        dirpath: str | Path | None = None,
        filename: str | None = None,
        *,
        features: dict[Literal["run", "artifact"], dict[str, Any]] | None = None,
        monitor: str | None = None,
        verbose: bool = False,
        save_last: bool | Literal["link"] | None = None,
        save_top_k: int = 1,
        save_on_exception: bool = False,
        save_weights_only: bool = False,
        mode: Literal["min", "max"] = "min",
        auto_insert_metric_name: bool = True,
        every_n_train_steps: int | None = None,
        train_time_interval: timedelta | None = None,
        every_n_epochs: int | None = None,
        save_on_train_epoch_end: bool | None = None,
        enable_version_counter: bool = True,
        run_uid_is_version: bool = True,
        key_is_virtual: bool = True,
        artifact_observers: list[Any] | None = None,
    ) -> None:
        super().__init__(
            dirpath=dirpath,
            features=features,
            monitor=monitor,
            verbose=verbose,
            save_last=save_last,
            save_top_k=save_top_k,
            save_weights_only=save_weights_only,
            mode=mode,
            auto_insert_metric_name=auto_insert_metric_name,
            every_n_train_steps=every_n_train_steps,
            train_time_interval=train_time_interval,
            every_n_epochs=every_n_epochs,
            save_on_train_epoch_end=save_on_train_epoch_end,
            enable_version_counter=enable_version_counter,
            run_uid_is_version=run_uid_is_version,
            key_is_virtual=key_is_virtual,
            artifact_observers=artifact_observers,
        )
        # lamindb's class has no arguments for these two attributes of ModelCheckpoint.
        self.filename = filename
        self.save_on_exception = save_on_exception

    # -- the run ---------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Learn the run on every rank, and check the features once a run."""
        if trainer.is_global_zero:
            adopt_from_parent()
            self._run_uid = ln.context.run.uid if ln.context.run else None
        self._run_uid = trainer.strategy.broadcast(self._run_uid)
        if self._run_uid and self._features_of_run == self._run_uid:
            ModelCheckpoint.setup(self, trainer, pl_module, stage)
            self._trainer = trainer
            return
        super().setup(trainer, pl_module, stage)
        self._features_of_run = self._run_uid

    def _active_run_uid(self) -> str | None:
        if not self._run_uid_is_version:
            return None
        return self._run_uid or super()._active_run_uid()

    # -- Lightning saves, we publish -------------------------------------------------------

    def _save_topk_checkpoint(
        self, trainer: pl.Trainer, monitor_candidates: dict[str, Any]
    ) -> None:
        try:
            super()._save_topk_checkpoint(trainer, monitor_candidates)
        except MisconfigurationException as error:
            if self.monitor is None or self.monitor in monitor_candidates:
                raise
            logged = sorted(set(monitor_candidates) - {"epoch", "step"})
            raise MonitorNotLoggedError(
                f"The monitored metric {self.monitor!r} was never logged."
                f"{did_you_mean(self.monitor, logged)} Logged are: {', '.join(logged) or 'none'}. "
                "Set checkpoint.monitor to one of them, or log it with self.log()."
            ) from error

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        ModelCheckpoint._save_checkpoint(self, trainer, filepath)
        if trainer.is_global_zero:
            self._survive_outage(self._publish, trainer, filepath)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Save what was trained, if asked to; its score is not that of an earlier checkpoint."""
        self.current_score = None
        super().on_exception(trainer, pl_module, exception)

    def _publish(self, trainer: pl.Trainer, filepath: str) -> None:
        annotator = self._feature_annotator
        self._save_hparams_yaml(trainer)
        annotator.save_run_features(trainer, monitor=self.monitor, mode=self.mode)
        is_best = self.best_model_path == str(filepath)
        values = annotator.collect_checkpoint_features(
            trainer,
            is_best=is_best,
            current_score=self.current_score,
            save_weights_only=self.save_weights_only,
            monitor=self.monitor,
            mode=self.mode,
        )
        annotator.clear_last_model_flags(self.checkpoint_key_prefix)
        if is_best:
            annotator.clear_best_model_flags(self.checkpoint_key_prefix)
        self.save_checkpoint_artifact(trainer, filepath, feature_values=values)
        annotator.update_model_ranks(self.checkpoint_key_prefix, mode=self.mode)

    def save_checkpoint_artifact(
        self,
        trainer: pl.Trainer,
        filepath: Path | str,
        *,
        feature_values: dict[Any, Any] | None = None,
    ) -> Any:
        """Create the artifact, then retire the one that this run had under the same key."""
        key = self.resolve_artifact_key(trainer=trainer, filepath=filepath, kind="checkpoint")
        replaced = self._artifacts_of_this_run(key)
        artifact = self._create_lamin_artifact(
            filepath, key=key, description="model checkpoint", kind="model", skip_hash_lookup=True
        )
        if feature_values:
            artifact.features.add_values(feature_values)
        for old in replaced:
            if old.id != artifact.id:  # lamindb returns the old one for equal content
                retire(old, successor=artifact)
        self._notify_artifact_saved(
            trainer, kind="checkpoint", key=key, artifact=artifact, local_path=filepath
        )
        return artifact

    def _create_lamin_artifact(self, local_path: Path | str, **arguments: Any) -> Any:
        path = Path(local_path)
        is_config = arguments.get("kind") == "config"
        wanted: bool = self._key_is_virtual
        if not wanted and self._is_key_of_another_run(arguments["key"]):
            self._key_is_virtual = True  # a real key would write over the file of that run
        try:
            with clean_copy(path) if is_config else nullcontext(path) as published:
                artifact = super()._create_lamin_artifact(published, **arguments)
        finally:
            self._key_is_virtual = wanted
        if arguments.get("add_as_input_to_run") and artifact.run is not None:
            # lamindb found an artifact of equal key and content, and made it an output.
            make_input(artifact)
        return artifact

    def _remove_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        ModelCheckpoint._remove_checkpoint(self, trainer, filepath)
        self.unpublished = tuple(path for path in self.unpublished if path != filepath)
        if trainer.is_global_zero:
            self._survive_outage(self._unpublish, trainer, filepath, keep=False)

    def _unpublish(self, trainer: pl.Trainer, filepath: str) -> None:
        key = self.resolve_artifact_key(trainer=trainer, filepath=filepath, kind="checkpoint")
        artifacts = self._artifacts_of_this_run(key)
        self._notify_artifact_removed(
            trainer,
            kind="checkpoint",
            key=key,
            local_path=filepath,
            artifact=artifacts[0] if artifacts else None,
        )
        for artifact in artifacts:
            retire(artifact)

    def _is_key_of_another_run(self, key: str) -> bool:
        run_id = ln.context.run.id if ln.context.run else None
        return any(a.run_id is None or a.run_id != run_id for a in ln.Artifact.filter(key=key))

    def _artifacts_of_this_run(self, key: str) -> list[Any]:
        return list(ln.Artifact.filter(key=key, run=ln.context.run).order_by("-created_at"))

    # -- what must not end a training ------------------------------------------------------

    def _survive_outage(
        self,
        write: Callable[[pl.Trainer, str], None],
        trainer: pl.Trainer,
        filepath: str,
        keep: bool = True,
    ) -> None:
        try:
            write(trainer, filepath)
        except Exception as error:
            if not is_outage(error):
                raise
            forget_lost_connections()
            if keep:
                self.unpublished = (*self.unpublished, str(filepath))
            console.warn(f"LaminDB was not updated for {filepath}: {first_line(error)}")

    def _notify_artifact_observers(self, method_name: str, event: Any) -> None:
        for observer in tuple(self._artifact_observers):
            method = getattr(observer, method_name, None)
            if callable(method):
                self._survive_observer(method, event)

    def _survive_observer(self, method: Callable[[Any], None], event: Any) -> None:
        try:
            method(event)
        except Exception as error:
            name = getattr(method, "__qualname__", repr(method))
            last = traceback.extract_tb(error.__traceback__)[-1]
            console.warn(
                f"{name} failed for {event.key}: {type(error).__name__}: {error} "
                f"({last.filename}:{last.lineno}); training goes on"
            )


def adopt(callback: ll.ArtifactPublishingModelCheckpoint) -> None:
    """Give an instance of lamindb's class, or of a user's subclass of it, the care of ours.

    The user's overrides stay in front: in the combined class they come first. A callback that
    persists to a place of its own, on the generic base class, is left as it is.
    """
    kind: Any = type(callback)
    if isinstance(callback, ll.Checkpoint) and not isinstance(callback, Checkpoint):
        callback.__class__ = Checkpoint if kind is ll.Checkpoint else _combined(kind)


@cache
def _combined(kind: Any) -> type[Checkpoint]:
    names = {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
    # Spawned ranks unpickle the callback: they find the user's class by name and adopt it again.
    names["__reduce_ex__"] = lambda self, protocol: (_restore, (kind, self.__dict__))
    return type(kind.__name__, (kind, Checkpoint), names)


def _restore(kind: Any, state: dict[str, Any]) -> Checkpoint:
    callback = _combined(kind).__new__(_combined(kind))
    callback.__dict__.update(state)
    return callback


def make_plain(callback: ModelCheckpoint) -> None:
    """Let a publishing checkpoint callback do what `ModelCheckpoint` does, and no more."""
    for name in ("setup", "_save_checkpoint", "_remove_checkpoint", "_save_topk_checkpoint"):
        setattr(callback, name, MethodType(getattr(ModelCheckpoint, name), callback))
