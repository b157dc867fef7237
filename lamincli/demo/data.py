"""Handwritten digits: 1,797 images that come with scikit-learn, so nothing is downloaded."""

import sys
from importlib.resources import files
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset, random_split

Batch = tuple[torch.Tensor, ...]
ARTIFACT_KEY = "demo/digits.csv.gz"


class DigitsDataModule(pl.LightningDataModule):
    """Split the digits into training, validation and test data.

    In a tracked run the file is registered in LaminDB once, and used from there as an input of the
    run: the record then shows data → run → checkpoint.

    Args:
        batch_size: Images a batch.
        seed: Seed of the split, so that every run tests on the same images.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998.
    """

    def __init__(self, batch_size: int = 64, seed: int = 0) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.batch_size = batch_size
        self.seed = seed
        self._file = Path(str(files("sklearn.datasets.data") / "digits.csv.gz"))

    def prepare_data(self) -> None:
        """Register the file and use it as an input, where a run is tracked."""
        ln = sys.modules.get("lamindb")
        if ln is None or ln.context.run is None or ln.context.run._state.adding:
            return
        artifact = ln.Artifact.filter(key=ARTIFACT_KEY).first()
        if artifact is None:
            # run=False: the data comes from elsewhere, this run does not produce it.
            artifact = ln.Artifact(
                self._file,
                key=ARTIFACT_KEY,
                kind="dataset",
                description="8x8 images of handwritten digits, the last column is the label",
                run=False,
            ).save()
        self._file = Path(artifact.cache(is_run_input=True))

    def setup(self, stage: str) -> None:
        """Read and split; 1,297 images to train, 200 to validate, 300 to test."""
        table = np.loadtxt(self._file, delimiter=",", dtype=np.float32)
        images = torch.from_numpy(table[:, :-1] / 16).reshape(-1, 1, 8, 8)
        labels = torch.from_numpy(table[:, -1]).long()
        generator = torch.Generator().manual_seed(self.seed)
        parts = random_split(TensorDataset(images, labels), [1297, 200, 300], generator)
        self._train, self._val, self._test = parts

    def _loader(self, part: Dataset[Batch], shuffle: bool = False) -> "DataLoader[Batch]":
        return DataLoader(part, batch_size=self.batch_size, shuffle=shuffle)

    def train_dataloader(self) -> "DataLoader[Batch]":
        """Return shuffled training batches."""
        return self._loader(self._train, shuffle=True)

    def val_dataloader(self) -> "DataLoader[Batch]":
        """Return validation batches."""
        return self._loader(self._val)

    def test_dataloader(self) -> "DataLoader[Batch]":
        """Return test batches."""
        return self._loader(self._test)

    def predict_dataloader(self) -> "DataLoader[Batch]":
        """Return the test images again."""
        return self._loader(self._test)
