"""A small convolutional classifier."""

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy


class DigitsClassifier(pl.LightningModule):
    """Classify 8×8 images of handwritten digits.

    Args:
        channels: Channels of the first convolution; the second has twice as many.
        dropout: Share of activations that are dropped before the last layer.
        learning_rate: Step size of Adam.

    Shapes: images [batch, 1, 8, 8], float32, in 0..1; labels [batch], int64, 0..9.
    """

    def __init__(
        self, channels: int = 32, dropout: float = 0.2, learning_rate: float = 2e-3
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.learning_rate = learning_rate
        self.network = nn.Sequential(
            nn.Conv2d(1, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, 2 * channels, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(2 * channels * 16, 10),
        )
        self.accuracy = MulticlassAccuracy(num_classes=10, average="micro")

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [batch, 10]."""
        logits: Tensor = self.network(images)
        return logits

    def _loss(self, batch: tuple[Tensor, Tensor], stage: str) -> Tensor:
        images, labels = batch
        logits = self(images)
        loss = nn.functional.cross_entropy(logits, labels)
        self.log(f"{stage}/loss", loss, prog_bar=True)
        if stage != "train":
            accuracy = self.accuracy(logits, labels)
            self.log(f"{stage}/accuracy", accuracy, prog_bar=True)
        return loss

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        return self._loss(batch, "train")

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log loss and accuracy of a batch."""
        self._loss(batch, "val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log loss and accuracy of a batch."""
        self._loss(batch, "test")

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the predicted digits [batch], int64."""
        images, _ = batch
        digits: Tensor = self(images).argmax(dim=1)
        return digits

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)
