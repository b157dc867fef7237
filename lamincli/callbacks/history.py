"""The callback that keeps what was logged, step by step, so that two trainings can be compared."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import lamindb as ln
import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback

from lamincli import console
from lamincli.callbacks.save_config import config_saver, publisher_of
from lamincli.differences import read_stages
from lamincli.errors import first_line
from lamincli.features import DESCRIPTIONS, FILE_NAME_OF_HISTORY, HISTORY_COLUMNS
from lamincli.offline import is_stand_in
from lamincli.redaction import redact_text
from lamincli.registry.download import fetch
from lamincli.spool import Spool


class MetricsHistory(Callback):
    """Record every metric that a fit logs, and publish them as one artifact when it ends.

    What is recorded is what Lightning hands to the loggers, with the step that it tells them, also
    where there is no logger; and what callbacks and models send to a logger themselves. Values are
    exact: doubles, written so that they are read as the same. A value on an accelerator stays
    there until the next save, so that logging waits for nothing. What a tuner tries is no training.

    Stages that the same trainer runs after a fit are recorded too, each row with its stage. A run
    that goes on from a checkpoint goes on with its history, up to the step of that.

    Runs on: every rank; records on global rank zero only.
    Durability: a file beside the config, appended to at every checkpoint; published at the end, or
        by `sync` if the process is killed.
    """

    def __init__(self) -> None:
        self._rows: list[tuple[int, str, Any, str]] = []
        self._names: dict[str, str] = {}  # of metrics, as they are published
        self._file: Path | None = None
        self._is_begun = False
        self._stage = ""
        self._listened: list[Any] = []  # the connector of the trainer, and its loggers
        self._is_passed_on = False  # to the loggers, by the connector
        self._sent: dict[str, tuple[int, Any, Any]] = {}  # last, by callbacks: step, value, logger
        self._earlier: str | None = None  # what a killed attempt of this run has left

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Listen to what is logged."""
        is_first = not self._stage
        if not trainer.is_global_zero or (is_first and stage != "fit"):
            return
        self._stop_listening()  # an error has ended the stage before
        self._stage = stage
        connector: Any = trainer._logger_connector
        log = type(connector).log_metrics.__get__(connector)

        def log_metrics(metrics: Any, step: int | None = None) -> None:
            self._note(trainer, metrics, step)
            self._is_passed_on = True
            try:
                log(metrics, step)
            finally:
                self._is_passed_on = False

        connector.log_metrics = log_metrics
        for logger in trainer.loggers:
            self._listen(trainer, logger)
        self._listened = [connector, *trainer.loggers]
        if is_first:
            self._earlier = _left(trainer)

    def _listen(self, trainer: pl.Trainer, logger: Any) -> None:
        """Note what is sent to a logger past the trainer; once if to all loggers."""
        log = logger.log_metrics

        def log_metrics(*args: Any, **kwargs: Any) -> Any:
            named = dict(zip(("metrics", "step"), args, strict=False)) | kwargs
            if not self._is_passed_on and isinstance(named.get("metrics"), Mapping):
                self._note_sent(trainer, logger, named["metrics"], named.get("step"))
            return log(*args, **kwargs)

        logger.log_metrics = log_metrics

    def _note_sent(
        self, trainer: pl.Trainer, logger: Any, metrics: Mapping[str, Any], step: int | None
    ) -> None:
        step, new = _step_of(trainer, metrics, step), {}
        for name, value in metrics.items():
            if name == "hp_metric" and _is_equal(value, -1):  # what `TensorBoardLogger` begins with
                continue
            seen = self._sent.get(name)
            is_again = seen is not None and seen[0] == step and _is_equal(seen[1], value)
            if seen is None or not is_again or seen[2] is logger:
                new[name] = value
                self._sent[name] = (step, value, logger)
        self._note(trainer, new, step)

    def _stop_listening(self) -> bool:
        heard = [vars(one).pop("log_metrics", None) for one in self._listened]
        self._listened = []
        return any(heard)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go on with the history of the run, where it goes on from a checkpoint."""
        step = trainer.fit_loop.epoch_loop._batches_that_stepped
        if step == 0 or self._is_begun or not trainer.is_global_zero:
            return
        try:
            text = self._earlier or _published()
            before = [
                (*row, stage)
                for row, stage in (read_stages(text) if text else [])
                if stage != "fit" or row[0] < step
            ]
        except Exception as error:  # the training is worth more than its history
            console.warn(f"the metrics history begins anew: {first_line(error)}")
            return
        self._rows[:0] = before

    def _note(self, trainer: pl.Trainer, metrics: Any, step: int | None) -> None:
        if self not in trainer.callbacks:  # type: ignore[attr-defined]  # a tuner tries something
            return
        step = _step_of(trainer, metrics, step)
        for name, value in metrics.items():
            if name == "step":
                continue
            if isinstance(value, torch.Tensor):
                is_here = value.device.type == "cpu" and value.numel() == 1
                value = value.item() if is_here else value.detach().clone()
            self._rows.append((step, name, value, self._stage))

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Write what was logged so far, so that it outlives the process as the checkpoint does."""
        is_first = not self._is_begun
        self._write(trainer)
        if is_first and self._is_begun:
            self._hand_over(trainer, is_complete=False)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Publish what there is of a training that ends early."""
        self._publish(trainer)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Publish, before the checkpoint callback waits until everything is published."""
        self._publish(trainer)

    def _publish(self, trainer: pl.Trainer) -> None:
        if not self._stop_listening():
            return
        self._write(trainer)
        self._hand_over(trainer, is_complete=True)

    def _hand_over(self, trainer: pl.Trainer, is_complete: bool) -> None:
        publisher = publisher_of(trainer)
        if publisher is not None and self._file is not None and self._is_begun:
            publisher.publish_history(trainer, self._file, is_complete)

    def _write(self, trainer: pl.Trainer) -> None:
        if not self._rows or not trainer.is_global_zero:
            return
        rows, self._rows = self._rows, []
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if not self._is_begun:
            writer.writerow(HISTORY_COLUMNS)
        for step, name, value, stage in rows:
            if name not in self._names:
                self._names[name] = redact_text(str(name))
            with suppress(TypeError, ValueError, RuntimeError):  # what is no number
                number = float(value.item() if isinstance(value, torch.Tensor) else value)
                writer.writerow([step, self._names[name], repr(number), stage])
        self._file = self._file or _place(trainer)
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with open(self._file, "a" if self._is_begun else "w", encoding="utf-8") as file:
                file.write(text.getvalue())
            self._is_begun = True
        except OSError as error:  # the training is worth more than its history
            console.warn(f"the metrics history cannot be written: {first_line(error)}")


def _is_equal(a: Any, b: Any) -> bool:
    """Tell whether two values are known to be the same, of which none is read from a device."""
    return a is b or (isinstance(a, (int, float)) and isinstance(b, (int, float)) and a == b)


def _step_of(trainer: pl.Trainer, metrics: Any, step: int | None) -> int:
    """Return the step that Lightning would tell a logger, as in `_LoggerConnector.log_metrics`."""
    if step is None:
        step = metrics.get("step")
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped if step is None else step)


def _left(trainer: pl.Trainer) -> str | None:
    """Return what an earlier attempt of this run has written, if it was killed."""
    publisher = publisher_of(trainer)
    if publisher is None:
        return None
    spool = Spool(publisher.spool_folder(trainer))
    job = spool.look(spool.deferred, "history.json")
    with suppress(OSError, ValueError):
        if job is not None:
            return Path(job.local_path).read_text(encoding="utf-8")
    return None


def _published() -> str | None:
    """Return what an earlier attempt of this run has published."""
    run = ln.context.run
    if is_stand_in(run):
        return None
    found = run and ln.Artifact.filter(run=run, description=DESCRIPTIONS["history"]).first()
    return fetch(found).read_text(encoding="utf-8") if found else None


def _place(trainer: Any) -> Path:
    saver = config_saver(trainer)
    config = saver and saver.local_path
    folder = config.parent if config is not None else Path(trainer.default_root_dir)
    return folder / FILE_NAME_OF_HISTORY
