"""The callback that writes the references among hyper-parameters as they were given."""

from __future__ import annotations

import os
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from lamincli.references import walk


class WritesReferences(Callback):
    """Keep references in what is written, where `self.hparams` holds the paths they stand for.

    Checkpoints and loggers get the reference, which means the same file on every machine.

    Args:
        references: The exact references, by their paths on this machine.

    Runs on: every rank.
    """

    def __init__(self, references: dict[str, str]) -> None:
        self._references = references

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Replace the paths in what loggers are told, and in every checkpoint from here on."""
        owners = [one for one in (pl_module, trainer.datamodule) if one is not None]  # type: ignore[attr-defined]
        for owner in owners:
            if hasattr(owner, "_hparams_initial"):
                owner._hparams_initial = self._written(owner._hparams_initial)
        connector: Any = trainer._checkpoint_connector
        dump = type(connector).dump_checkpoint.__get__(connector)

        def dump_checkpoint(weights_only: bool | None = None) -> dict[str, Any]:
            checkpoint: dict[str, Any] = dump(weights_only)
            for key in {owner.CHECKPOINT_HYPER_PARAMS_KEY for owner in owners} & set(checkpoint):
                checkpoint[key] = self._written(checkpoint[key])
            return checkpoint

        connector.dump_checkpoint = dump_checkpoint

    def _written(self, hparams: Any) -> Any:
        def is_known(value: Any) -> bool:
            return isinstance(value, (str, os.PathLike)) and str(value) in self._references

        return walk(hparams, lambda path: self._references[str(path)], is_known)
