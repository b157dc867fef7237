"""Stop a training on a signal: at the end of a batch, with a last checkpoint, and say so.

Lightning already knows how to stop all ranks at the end of a batch: `received_sigterm`, which it
shares between ranks. Ctrl-C and a hang-up take the same way here, so that they too leave a
checkpoint. A second signal, or one while nothing is trained, ends the job at once.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus
from lightning.pytorch.utilities.exceptions import SIGTERMException


_DEFAULTS: dict[str, Any] = {
    "SIGINT": signal.default_int_handler,
    "SIGTERM": signal.SIG_DFL,
    "SIGHUP": signal.SIG_DFL,
}


class StopOnSignal(pl.Callback):
    """End the training at the next batch end once a signal has come, after a last checkpoint.

    Only signals in their default disposition are taken over: one that the parent has ignored (as
    ``nohup`` does), or that the user's program handles, stays as it is.

    Runs on: every rank. The decision is that of global rank zero, by Lightning's own broadcast.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._trainer: pl.Trainer | None = None

    @contextmanager
    def installed(self) -> Iterator["StopOnSignal"]:
        """Handle the signals of this process for a while; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        previous: dict[int, Any] = {}
        for name, default in _DEFAULTS.items():
            number = getattr(signal, name, None)  # Windows has no SIGHUP
            if number is not None and signal.getsignal(number) == default:
                previous[number] = signal.signal(number, self._on_signal)
        try:
            yield self
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    @property
    def exit_code(self) -> int:
        """128+N, as shells report a process that signal N ended."""
        return 128 + (self.signum or signal.SIGTERM)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        again = self.signum is not None
        self.signum = self.signum or signum
        if again or not self._is_training():
            raise SystemExit(self.exit_code)
        name = signal.Signals(signum).name
        # Handlers may interrupt a print: os.write is safe there, print is not.
        os.write(2, f"\n! {name}: stopping after this batch; again to stop at once\n".encode())
        assert self._trainer is not None
        self._trainer._signal_connector.received_sigterm = True

    def _is_training(self) -> bool:
        trainer = self._trainer
        return trainer is not None and trainer.state.status == TrainerStatus.RUNNING

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Know the trainer that can be stopped."""
        self._trainer = trainer

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Forget the trainer: from here on a signal ends the job at once."""
        self._trainer = None

    def on_predict_batch_end(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        """Stop a prediction too, which Lightning's own loop does not."""
        if trainer.received_sigterm:
            raise SIGTERMException

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Let every checkpoint callback save what was trained; they come after this one."""
        if not isinstance(exception, SIGTERMException):
            return
        exception.code = self.exit_code  # it is a SystemExit, whose code would be 0
        if trainer.state.fn != TrainerFn.FITTING:
            return
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint):
                callback.save_on_exception = True

    def __getstate__(self) -> dict[str, Any]:
        return {"signum": None, "_trainer": None}


