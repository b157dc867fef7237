"""What ranks other than zero have in the place of the callbacks that publish.

They save, remove and go on exactly as rank zero does, collectives included, and know nothing of
LaminDB: it is not imported, which saves each rank its start-up time and a database connection.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import SaveConfigCallback as LightningSaveConfigCallback
from lightning.pytorch.trainer.states import TrainerFn

from lamincli.callbacks import rng
from lamincli.callbacks.completion import Completion
from lamincli.errors import MonitorNotLoggedError, did_you_mean

_NAMES = ("Checkpoint", "ModelCheckpoint")


class GoesOn(ModelCheckpoint):
    """A checkpoint callback that can go on where an earlier attempt of its run has stopped.

    It takes the state in the checkpoint for its own, goes back to the folder of the run, and holds
    the state of the random number generators.

    Runs on: every rank.
    """

    _original_dirpath: Any = None
    _trainer: pl.Trainer | None = None
    _goes_on: bool = False
    _prefix: str | None = None
    _random: dict[str, Any] | None = None
    _completion: Completion | None = None

    def go_on(self, prefixes: dict[str, str]) -> None:
        """Take the checkpoint to be loaded for one of this run: go on as if it had not ended.

        Args:
            prefixes: Key prefixes that the run has used, by the callback that did.
        """
        self._goes_on = True
        self._prefix = prefixes.get(self.state_key)

    @property
    def state_key(self) -> str:
        """Return the key of the state in a checkpoint: that of Lightning's own callback.

        So a training goes on from a checkpoint of plain Lightning with what it has ranked, and
        plain Lightning from one of ours.
        """
        key = super().state_key
        return key.replace(*_NAMES, 1) if type(self).__qualname__ == _NAMES[0] else key

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take the state that lamindb's callback has left under a name of its own."""
        states = checkpoint.get("callbacks") or {}
        before = self.state_key.replace(_NAMES[1], _NAMES[0], 1)
        if self.state_key not in states and before in states:
            states[self.state_key] = states.pop(before)

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a checkpoint holds, with that of the random number generators."""
        return {**super().state_dict(), "random": rng.collect()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load it; a run that goes on gets back its folder, its best ones and its randomness."""
        if self._trainer is not None and self._trainer.state.fn != TrainerFn.FITTING:
            # An evaluation saves nothing; Lightning would warn that it does so elsewhere.
            self.best_model_path = state_dict["best_model_path"]
            return
        if self._goes_on:
            self._random = state_dict.get("random")
            state_dict = self._at_home(state_dict)
        super().load_state_dict(state_dict)

    def _at_home(self, state: dict[str, Any]) -> dict[str, Any]:
        """Go back to the folder of the run, or take its paths along where it cannot be used."""
        there = state.get("dirpath")
        here = str(self.dirpath)
        if there is None or there == here:
            return state
        if self._original_dirpath is None and self._can_be_used_everywhere(there):
            self.dirpath = there
            return state

        def moved(path: str) -> str:
            inside = str(path).startswith(there)
            return f"{here}{str(path)[len(there) :]}" if inside else path

        paths = ("best_model_path", "kth_best_model_path", "last_model_path")
        return {
            **state,
            "dirpath": here,
            "best_k_models": {moved(path): s for path, s in state["best_k_models"].items()},
            **{name: moved(state[name]) for name in paths if name in state},
        }

    def _can_be_used_everywhere(self, folder: str) -> bool:
        """Let rank zero find out whether it can save there: all ranks must name the same files."""
        trainer = self._trainer
        usable = trainer is None or not trainer.is_global_zero or _can_be_used(folder)
        return usable if trainer is None else bool(trainer.strategy.broadcast(usable))

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        self._save_then(trainer, filepath, lambda: None)

    def _save_then(self, trainer: pl.Trainer, filepath: str, then: Callable[[], None]) -> None:
        """Save, and call back once every rank has written."""
        self._completion = self._completion or Completion()
        with self._completion.saving(trainer, filepath, then):
            ModelCheckpoint._save_checkpoint(self, trainer, filepath)

    def _should_remove_checkpoint(self, trainer: pl.Trainer, previous: str, current: str) -> bool:
        # Lightning keeps the one that training goes on from, for it may be another run's.
        is_its_start = _absolute(str(trainer.ckpt_path)) == _absolute(previous)
        if self._goes_on and _absolute(previous) != _absolute(current) and is_its_start:
            return True
        return bool(super()._should_remove_checkpoint(trainer, previous, current))

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

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Set the generators to where they were, before the data loaders draw from them."""
        super().on_fit_start(trainer, pl_module)
        if self._random is not None:
            rng.restore(self._random)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Set them once more for the middle of an epoch, where no new epoch draws anything."""
        super().on_train_start(trainer, pl_module)
        done = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        is_within = trainer.fit_loop.restarted_mid_epoch and 0 < done < trainer.num_training_batches
        if self._random is not None and is_within:
            rng.restore(self._random)
        self._random = None


class Checkpoint(GoesOn):
    """The checkpoint callback of a rank other than zero: `lamincli.Checkpoint` without LaminDB.

    Args:
        run_uid: Uid of the run, which rank zero has begun.
        dirpath: As in `ModelCheckpoint`.
        filename: As in `ModelCheckpoint`.
        save_on_exception: As in `ModelCheckpoint`.
        arguments: The others of `ModelCheckpoint`.

    Runs on: every rank but zero.
    """

    base_prefix: str = ""
    last_checkpoint_artifact = last_config_artifact = last_hparams_artifact = None
    last_artifact_event = None

    def __init__(self, dirpath: Any = None, **arguments: Any) -> None:
        super().__init__(dirpath=dirpath, **arguments)
        self._original_dirpath = dirpath

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Learn the keys that rank zero gives to its artifacts."""
        super().setup(trainer, pl_module, stage)
        self._trainer = trainer
        _, self.base_prefix = trainer.strategy.broadcast((None, ""))

    @property
    def checkpoint_key_prefix(self) -> str:
        """Prefix of the keys of checkpoints."""
        return f"{self.base_prefix}/checkpoints".lstrip("/")

    def get_last_artifact(self, kind: str) -> None:
        """Return nothing: rank zero has the artifacts."""

    def add_artifact_observer(self, observer: Any) -> None:
        """Take no notice: rank zero tells its observers."""

    def remove_artifact_observer(self, observer: Any) -> None:
        """Likewise."""


class TakesOver(pl.Callback):
    """Takes over the checkpoint callbacks that a model brings by `configure_callbacks`.

    As in Lightning, they are there in the place of one that nobody has asked for.

    Args:
        take_over: Turns a `ModelCheckpoint` into one of ours.
        forced: The one that nobody has asked for.
    """

    def __init__(
        self, take_over: Callable[[ModelCheckpoint], None], forced: ModelCheckpoint | None
    ) -> None:
        self._take_over = take_over
        self._replaced = [] if forced is None else [forced]

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Take them over before their own `setup`, which comes later."""
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        brought = [one for one in callbacks if is_stock(one)]
        if not brought:
            return
        for callback in brought:
            self._take_over(callback)
        callbacks[:] = [one for one in callbacks if one not in self._replaced]
        self._replaced = brought  # when the model is asked again


def is_stock(callback: Any) -> bool:
    """Tell whether a callback is a `ModelCheckpoint` that neither we nor lamindb care for."""
    is_ours = isinstance(callback, GoesOn) or hasattr(callback, "resolve_artifact_key")
    return isinstance(callback, ModelCheckpoint) and not is_ours


def take_over(callback: ModelCheckpoint, goes_on: bool = False) -> None:
    """Let Lightning's `ModelCheckpoint`, or a subclass, follow what rank zero makes of its own."""
    if is_stock(callback):
        for name, value in vars(Checkpoint()).items():
            vars(callback).setdefault(name, value)
        vars(callback)["_original_dirpath"] = as_typed(callback.dirpath)
        kind: Any = type(callback)
        bases = (Checkpoint,) if issubclass(Checkpoint, kind) else (kind, Checkpoint)
        names = {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
        callback.__class__ = type(kind.__name__, bases, names)
    if goes_on and isinstance(callback, GoesOn):
        callback.go_on({})


def as_typed(folder: Any) -> Any:
    """Return a folder as a user may have typed it: `ModelCheckpoint` keeps the absolute path."""
    text = str(folder)
    is_here = folder is not None and "://" not in text and text.startswith(os.getcwd() + os.sep)
    return os.path.relpath(text) if is_here else folder


class SaveConfigCallback(LightningSaveConfigCallback):
    """The config callback of a rank other than zero, which writes nothing.

    Runs on: every rank but zero.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Wait until rank zero has written."""
        if not self.already_saved:
            self.already_saved = trainer.strategy.broadcast(True)


def following(kind: type[Any] | None) -> type[Any]:
    """Return a user's config callback class with the care of the following one behind it.

    One that knows LaminDB already, for its class is made from ours, is used as on rank zero.
    """
    if kind is None or issubclass(SaveConfigCallback, kind):
        return SaveConfigCallback
    if "lamincli.callbacks.save_config" in sys.modules:
        from lamincli.callbacks.save_config import combined_with_ours

        return combined_with_ours(kind)
    return type(kind.__name__, (kind, SaveConfigCallback), {"__module__": kind.__module__})


def _absolute(path: str) -> str:
    return path if "://" in path else os.path.abspath(path)


def _can_be_used(folder: str) -> bool:
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError:
        return "://" in folder
    return os.access(folder, os.W_OK)
