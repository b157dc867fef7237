"""Stop a training on a signal: at the end of a batch, with a last checkpoint, and say so.

Lightning can leave its loops at the end of a batch, by `received_sigterm`. Ctrl-C and a hang-up
take the same way here, so that they too leave a checkpoint. A second signal, or one while nothing
is trained, ends the job at once.
"""

import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.utils.data import get_worker_info

from lamincli import console
from lamincli.callbacks.calls import count, note_metrics
from lamincli.publisher import skip_waiting

_DEFAULTS: dict[str, Any] = {
    "SIGINT": signal.default_int_handler,
    "SIGTERM": signal.SIG_DFL,
    "SIGHUP": signal.SIG_DFL,
}
_CHECK_EVERY_S = 1.0
_CHECK_WITHIN_BATCHES = 100  # which may be slower than those before
_CLOSING_TAKES_S = 5.0


class StopOnSignal(pl.Callback):
    """End the training at the next batch end once a signal has come, after a last checkpoint.

    Only signals in their default disposition are taken over: one that the parent has ignored (as
    ``nohup`` does), or that the user's program handles, stays as it is. With several ranks, about
    once a second all learn at the same batch whether one of them has got a signal; a rank that
    left the loop alone would hang the others.

    It also counts the batches and notes the metrics, for it is called at the end of them anyway.

    Runs on: every rank.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self.closing_since_s: float | None = None  # signals wait while the run is being closed
        self.requeue_signal: int | None = None
        self._is_of_others = False  # the signal, which this rank has not got itself
        self._previous: dict[int, Any] = {}
        self._trainer: pl.Trainer | None = None  # while its loops run
        self._batches = 0
        self._check_after = 1
        self._is_even = True  # the validation: all ranks have as many batches
        self._checked_s = time.monotonic()

    @contextmanager
    def installed(self) -> Iterator["StopOnSignal"]:
        """Handle the signals of this process for a while; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        for name, default in _DEFAULTS.items():
            if (number := getattr(signal, name, None)) is not None:  # Windows has no SIGHUP
                self._take(number, default)
        if "SLURM_JOB_ID" in os.environ:  # before the trainer says which signal it is
            self.requeue_signal = signal.SIGUSR1
            self._take(signal.SIGUSR1, signal.SIG_DFL)
        try:
            yield self
        finally:
            for number, handler in self._previous.items():
                signal.signal(number, handler)

    def _take(self, number: int, default: Any) -> None:
        if signal.getsignal(number) == default:
            self._previous[number] = signal.signal(number, self._on_signal)

    def take_over_requeue(self, trainer: pl.Trainer | None) -> None:
        """Do in Lightning's place what it does when SLURM asks for a requeue.

        Lightning saves a checkpoint of its own within the signal handler, in the middle of a
        batch, and trains on. Here the requeue signal stops the training softly; the requeue
        follows when the run is closed. Without ``auto_requeue``, the signal is the user's.

        Args:
            trainer: The trainer; `None` leaves the requeue to Lightning.
        """
        connector = trainer and trainer._accelerator_connector
        environment = connector and connector.cluster_environment
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and self.requeue_signal in self._previous:
            signal.signal(self.requeue_signal, self._previous.pop(self.requeue_signal))
        self.requeue_signal = None
        if not (isinstance(environment, SLURMEnvironment) and environment.auto_requeue and is_main):
            return
        environment.auto_requeue = False
        self.requeue_signal = environment.requeue_signal
        if self.requeue_signal is not None:
            self._take(self.requeue_signal, signal.SIG_DFL)

    @property
    def exit_code(self) -> int:
        """128+N, as shells report a process that signal N ended."""
        return 128 + (self.signum or signal.SIGTERM)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if get_worker_info() is not None or skip_waiting():  # a data loader ends its workers
            return
        if hasattr(signal, "SIGCHLD"):
            # Workers of a data loader that got the signal too would end the batch by an error.
            handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._previous.setdefault(signal.SIGCHLD, handler)
        if self._is_of_others:  # this rank is stopping already
            self.signum, self._is_of_others = signum, False
            return
        again = self.signum is not None
        self.signum = self.signum or signum
        if self.closing_since_s is not None:
            if time.monotonic() - self.closing_since_s > _CLOSING_TAKES_S:
                raise SystemExit(self.exit_code)
            return
        trainer = self._trainer
        if again or trainer is None or not self._can_stop_softly(trainer):
            raise SystemExit(self.exit_code)
        if trainer.is_global_zero:
            # A handler may interrupt a print: os.write is safe there, print is not.
            name = signal.Signals(signum).name
            with suppress(OSError):  # the terminal may have gone, as with SIGHUP
                text = f"\n! {name}: stopping after this batch; again to stop at once\n"
                os.write(2, text.encode())
        if trainer.world_size == 1:
            self._leave_loops(trainer)

    @staticmethod
    def _can_stop_softly(trainer: pl.Trainer) -> bool:
        running: bool = trainer.state.status == TrainerStatus.RUNNING
        # Lightning has no stop that several ranks agree on in its other loops.
        return running and (trainer.world_size == 1 or trainer.state.fn == TrainerFn.FITTING)

    @staticmethod
    def _leave_loops(trainer: pl.Trainer) -> None:
        trainer._signal_connector.received_sigterm = True

    def _enter_loop(self, trainer: pl.Trainer) -> None:
        """Know the trainer that can be stopped, now that its loop begins.

        Lightning has just put a handler of its own before ours, which broadcasts between ranks
        from within the signal handler and so hangs them; only its own SLURM requeue needs it.
        """
        # A loop within a fit is left as the fit is. Several ranks begin one together, and agree.
        is_left_later = self._trainer is trainer or (
            trainer.world_size > 1 and trainer.state.fn == TrainerFn.FITTING
        )
        if self.signum is not None and not is_left_later:  # it came too late for the loop before
            raise SystemExit(self.exit_code)
        self._trainer = trainer
        environment = trainer._accelerator_connector.cluster_environment
        requeues = isinstance(environment, SLURMEnvironment) and environment.auto_requeue
        if signal.SIGTERM in self._previous and not requeues:
            signal.signal(signal.SIGTERM, self._on_signal)

    def is_stop(self, error: BaseException) -> bool:
        """Tell whether an error is how a signal has ended the training.

        Schedulers send it to all processes of a job. The workers of a data loader end by it at
        once, and the loader raises an error for them before the loop can be left.
        """
        return self.signum is not None and (
            isinstance(error, (SystemExit, KeyboardInterrupt)) or _is_of_loader(error)
        )

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Note that the batches of this call are counted."""
        count(trainer, 0)

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to stop softly."""
        self._enter_loop(trainer)

    on_train_start = on_sanity_check_start
    on_test_start = on_sanity_check_start
    on_predict_start = on_sanity_check_start

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Likewise, and agree soon: these batches may be slower than those of the training.

        Ranks may have different or unknown numbers of them, and then agree after the last one.
        """
        self._enter_loop(trainer)
        is_fit = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if is_fit and trainer.world_size > 1:
            number = sum(trainer.num_val_batches)
            is_same = trainer.strategy.broadcast(number) == number < math.inf
            self._is_even = trainer.strategy.reduce_boolean_decision(is_same)
        self._check_after = 1

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Likewise, the other way round."""
        self._check_after = 1

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Forget the trainer: from here on a signal ends the job at once."""
        self._trainer = None
        note_metrics(trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        """Let all ranks learn of a signal at the same batch."""
        count(trainer)
        self._agree(trainer)

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        """Likewise, in the validation of a fit."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            count(trainer)
        is_of_fit = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if is_of_fit and self._is_even:
            self._agree(trainer)

    def _agree(self, trainer: pl.Trainer) -> None:
        if trainer.world_size == 1:
            return
        self._batches += 1
        if self._batches < self._check_after:
            return
        now_s = time.monotonic()
        per_batch_s = (now_s - self._checked_s) / self._batches
        pause = min(max(1, int(_CHECK_EVERY_S / max(per_batch_s, 1e-6))), _CHECK_WITHIN_BATCHES)
        told = [self.signum is not None, pause if trainer.is_global_zero else 0]
        device = trainer.strategy.root_device
        sums = torch.tensor(told, dtype=torch.int32, device=device)
        stopped, self._check_after = trainer.strategy.reduce(sums, reduce_op="sum").tolist()
        self._batches, self._checked_s = 0, now_s
        if stopped and self.signum is None:
            self.signum, self._is_of_others = signal.SIGTERM, True
            if trainer.is_global_zero:
                console.warn("another rank was told to stop: stopping after this batch")
        if stopped:
            self._leave_loops(trainer)

    def on_test_batch_end(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        """Count it."""
        count(trainer)

    def on_predict_batch_end(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        """Stop a prediction too, which Lightning's own loop does not."""
        count(trainer)
        if trainer.received_sigterm:
            raise SIGTERMException

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Let every checkpoint callback save what was trained; they come after this one."""
        if isinstance(exception, SIGTERMException):
            exception.code = self.exit_code  # it is a SystemExit, whose code would be 0
        elif self.signum is None or not _is_of_loader(exception):
            return
        if trainer.state.fn != TrainerFn.FITTING:
            return
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint):
                callback.save_on_exception = True

    def __getstate__(self) -> dict[str, Any]:
        """Leave the trainer and the signals to this process, where a strategy spawns ranks."""
        return StopOnSignal().__dict__


def _is_of_loader(error: BaseException) -> bool:
    """Tell whether a data loader raised an error itself; those of a data set pass through it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__")).startswith(
        "torch.utils.data."
    )
