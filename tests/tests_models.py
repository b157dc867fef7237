"""Models and data of the tests: as small as they can be and still train."""

import os
import random
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as pl
import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

from lamincli import ArtifactPath


class TinyModel(pl.LightningModule):
    """One linear layer; `at` says what happens in the third training batch, `at@1` on rank 1."""

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
        at, _, rank = at.partition("@")
        if rank and int(rank) != self.global_rank:
            return
        if at == "raise":
            raise ValueError("boom in user code")
        if at.startswith("exit"):
            sys.exit(int(at.removeprefix("exit")))
        if at == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if at == "wait":
            print("THIRD BATCH", flush=True)
            time.sleep(1.5)  # a busy machine may take as long to send the signal
        if at == "stuck":  # where no exception reaches the main thread
            threading.Event().wait()
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
        self.workers = 0

    def _loader(self) -> DataLoader:
        data = TensorDataset(torch.randn(self.size, 4))
        return DataLoader(data, batch_size=self.batch_size, num_workers=self.workers)

    train_dataloader = val_dataloader = test_dataloader = predict_dataloader = _loader


class WorkerData(TinyData):
    """Loaded by processes of its own."""

    def __init__(self, size: int = 16, batch_size: int = 4) -> None:
        super().__init__(size, batch_size)
        self.workers = 2


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


class NoisyModel(TinyModel):
    """Draws from every generator in every step; stops where the environment says so."""

    def __init__(self, learning_rate: float = 0.01) -> None:
        super().__init__(learning_rate=learning_rate)
        self.drop = torch.nn.Dropout(0.5)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        at = str(self.global_step)
        if os.environ.get("STOP_AT") == at:
            raise RuntimeError("preempted")
        if os.environ.get("KILL_AT") == at:
            os.kill(os.getpid(), signal.SIGKILL)
        if os.environ.get("WAIT_AT") == at:
            print("WAITING", flush=True)
            time.sleep(30)
        noise = float(np.random.rand() + random.random())
        loss = self.layer(self.drop(batch[0])).pow(2).mean() * (1 + noise)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.hparams["learning_rate"])


class NoisyData(TinyData):
    """Shuffled anew in every epoch."""

    def _set(self) -> TensorDataset:
        return TensorDataset(torch.randn(16, 4, generator=torch.Generator().manual_seed(0)))

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self._set(), batch_size=4, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self._set(), batch_size=4)


class StatefulLoader(DataLoader):
    """A loader that goes on in the middle of an epoch, as that of torchdata does."""

    epoch = position = _start = 0

    def __iter__(self):
        start, self._start = self._start, 0
        self.epoch += not start
        order = torch.Generator().manual_seed(self.epoch)
        batches = torch.randperm(len(self.dataset), generator=order).split(self.batch_size)
        for i in range(start, len(batches)):
            self.position = i + 1
            yield [torch.stack([self.dataset[j][0] for j in batches[i]])]

    def state_dict(self):
        return {"epoch": self.epoch, "position": self.position % len(self)}

    def load_state_dict(self, state):
        self.epoch, self._start = state["epoch"], state["position"]


class StatefulData(NoisyData):
    def train_dataloader(self) -> DataLoader:
        return StatefulLoader(self._set(), batch_size=4)


class SecretModel(TinyModel):
    """Takes secrets of several shapes, and notes with what it was made."""

    made: ClassVar[list[dict[str, Any]]] = []

    def __init__(
        self,
        api_key: str,
        db: str | None = "",
        gain: float = 40.0,
        hub: dict[str, Any] | None = None,
        learning_rate: float = 0.1,
    ) -> None:
        super().__init__(learning_rate=learning_rate)
        self.save_hyperparameters()
        SecretModel.made.append(dict(self.hparams))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        if os.environ.get("STOP_AT") == str(self.global_step):
            raise RuntimeError("preempted")
        return self.layer(batch[0]).pow(2).mean()
