"""Metrics as the record holds them. Pure: no database, no torch."""

import math
from collections.abc import Mapping
from typing import Any

EXTRA_DATA_KEY = "lamin_train"
"""Where runs and artifacts keep what only this package knows, in their `extra_data`."""
DESCRIPTIONS = {
    "config": "Lightning CLI config",
    "hparams": "Lightning run hyperparameters",
    "predictions": "Lightning predictions",
    "history": "Lightning metrics history",
}
"""Descriptions of the artifacts of a run that are no checkpoints, by what they are."""
FILE_NAME_OF_HISTORY = "history.csv"
HISTORY_COLUMNS = ("step", "name", "value", "stage")


def metric_values(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return logged metrics as numbers.

    Args:
        metrics: Names and scalars or one-element tensors, as in `Trainer.callback_metrics`.

    Returns:
        Names and floats; what is no number is left out.
    """
    values = {}
    for name, value in metrics.items():
        try:
            values[name] = float(value.item() if hasattr(value, "item") else value)
        except (TypeError, ValueError, RuntimeError):
            continue
    return values


def as_json(value: Any) -> Any:
    """Return a nested value as JSON that every database accepts.

    NaN and infinities become their names and NUL characters are dropped, since PostgreSQL refuses
    both; what JSON does not know becomes its text.
    """
    if isinstance(value, Mapping):
        return {str(k): as_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [as_json(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if value is None or isinstance(value, (bool, int)):
        return value
    return str(value).replace("\x00", "")


def strings_in(value: Any) -> list[str]:
    """Return the strings of a nested value, keys aside."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple, set)):
        return [text for item in value for text in strings_in(item)]
    return [value] if isinstance(value, str) and value else []


def dtype_of(value: Any) -> str:
    """Return the Python type with which a feature for this value is created."""
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind.__name__
    return "float" if value is None else "dict" if isinstance(value, dict) else "list[str]"
