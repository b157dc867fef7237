"""An account of what a trainer was asked for, and what became of it.

Lightning overwrites the state of a trainer with every call: after a fit that raised, a test that
went well leaves ``finished``. So the state itself remembers. It is what strategies that spawn the
ranks send back, so that the process which has only started them knows too.
"""

import sys
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerState, TrainerStatus

from lamincli.endings import Call
from lamincli.features import metric_values


class WatchedState(TrainerState):
    """The state of a trainer, which remembers its calls.

    Lightning sets `status` when a call begins, returns, and where it handles what was raised.
    """

    def __init__(self, state: TrainerState) -> None:
        self.calls: list[Call] = []
        super().__init__(state.status, state.fn, state.stage)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set it, and note what that means for the call."""
        was_running = vars(self).get("status") == TrainerStatus.RUNNING
        super().__setattr__(name, value)
        is_running = self.status == TrainerStatus.RUNNING
        if is_running and not was_running and self.fn is not None:
            self.calls.append(Call(str(self.fn.value)))
        elif was_running and not is_running and value == TrainerStatus.INTERRUPTED:
            self.calls[-1].interrupt(sys.exc_info()[1])
        elif was_running and not is_running:
            self.calls[-1].is_over = True


def watch(trainer: Any) -> None:
    """Let a trainer keep an account of its calls from here on."""
    if isinstance(trainer, Trainer) and not isinstance(trainer.state, WatchedState):
        trainer.state = WatchedState(trainer.state)


def calls_of(trainer: Any) -> Sequence[Call] | None:
    """Return the calls of a trainer; `None` where it keeps no account, as one of the user's own."""
    return trainer.state.calls if isinstance(trainer.state, WatchedState) else None


def metrics_of(trainer: Any) -> dict[str, float]:
    """Return what every call has logged last: Lightning forgets it when the next one begins."""
    metrics: dict[str, float] = {}
    for call in calls_of(trainer) or ():
        metrics |= call.metrics
    return metrics | metric_values(trainer.callback_metrics)


def note_metrics(trainer: Any) -> None:
    """Note what the present call has logged."""
    if isinstance(trainer.state, WatchedState) and trainer.state.calls:
        trainer.state.calls[-1].metrics = metric_values(trainer.callback_metrics)


def count(trainer: Any, batches: int = 1) -> None:
    """Note that a batch of the present call has come to its end; with 0, that they are counted."""
    if isinstance(trainer.state, WatchedState) and trainer.state.calls:
        call = trainer.state.calls[-1]
        call.batches = (call.batches or 0) + batches
