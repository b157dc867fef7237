"""What the guide calls MyModel and MyDataModule, without showing them."""

import torch
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel


class MyModel(BoringModel):
    def __init__(self, learning_rate: float) -> None:
        super().__init__()
        self.save_hyperparameters()

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.log("val/loss", self.layer(batch).pow(2).mean())


class MyDataModule(BoringDataModule):
    def __init__(self, batch_size: int) -> None:
        super().__init__()
        self.batch_size = batch_size
