"""Models and data of the tests: as small as they can be and still train."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from lamincli import ArtifactPath


class TinyModel(pl.LightningModule):
    """One linear layer; `at` says what happens in the third training batch."""

    def __init__(
        self, width: int = 4, learning_rate: float = 0.1, at: str = "", api_key: str = ""
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(width, 1)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        if batch_idx == 2:
            self._misbehave(self.hparams["at"])
        loss = self.layer(batch[0]).pow(2).mean()
        self.log("train_loss", loss)
        return loss

    def _misbehave(self, at: str) -> None:
        if at == "raise":
            raise ValueError("boom in user code")
        if at.startswith("exit"):
            sys.exit(int(at.removeprefix("exit")))
        if at == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if at == "wait":
            print("THIRD BATCH", flush=True)
            time.sleep(0.3)
        if at == "hang":
            print("THIRD BATCH", flush=True)
            time.sleep(60)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.layer(batch[0]).pow(2).mean())

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", self.layer(batch[0]).pow(2).mean())

    def predict_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        out: torch.Tensor = self.layer(batch[0])
        return out

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.hparams["learning_rate"])


class TinyData(pl.LightningDataModule):
    def __init__(self, size: int = 16, batch_size: int = 4) -> None:
        super().__init__()
        self.size = size
        self.batch_size = batch_size

    def _loader(self) -> DataLoader:
        return DataLoader(TensorDataset(torch.randn(self.size, 4)), batch_size=self.batch_size)

    train_dataloader = val_dataloader = test_dataloader = predict_dataloader = _loader


class Collect:
    """An observer that remembers what it was told."""

    told: ClassVar[list[tuple[str, Any]]] = []

    def __init__(self, name: str = "collect") -> None:
        self.name = name

    def on_artifact_saved(self, event):
        Collect.told.append((self.name, event))

    def on_artifact_removed(self, event):
        Collect.told.append((self.name, event))


class Raise:
    """An observer that fails; it has one of the two methods only."""

    def on_artifact_saved(self, event):
        raise RuntimeError("the model registry is down")


class FileData(TinyData):
    """Data from files: paths of several types, at several depths."""

    def __init__(
        self,
        file: str = "",
        path: Path | None = None,
        artifact: ArtifactPath | None = None,
        files: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.file, self.path, self.artifact, self.files = file, path, artifact, files
