"""The model and the data of the README's example: handwritten digits, from scikit-learn."""

from lamincli.demo.data import DigitsDataModule
from lamincli.demo.model import DigitsClassifier

__all__ = ["DigitsClassifier", "DigitsDataModule"]
