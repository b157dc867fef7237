"""Train PyTorch Lightning models from a config file and keep a true record in LaminDB.

The public names are imported on first use, so that ``import lamincli`` and
``lamin-train --version`` cost neither torch nor a database connection.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from lamindb.integrations.lightning import save_lightning_features

    from lamincli.callbacks.checkpoint import Checkpoint
    from lamincli.callbacks.save_config import SaveConfigCallback
    from lamincli.cli import LaminLightningCLI
    from lamincli.events import (
        ArtifactEvent,
        ArtifactObserver,
        ArtifactRemovedEvent,
        ArtifactSavedEvent,
    )
    from lamincli.references import ArtifactPath

_HOME = {
    "ArtifactEvent": "lamincli.events",
    "ArtifactObserver": "lamincli.events",
    "ArtifactPath": "lamincli.references",
    "ArtifactRemovedEvent": "lamincli.events",
    "ArtifactSavedEvent": "lamincli.events",
    "Checkpoint": "lamincli.callbacks.checkpoint",
    "LaminLightningCLI": "lamincli.cli",
    "SaveConfigCallback": "lamincli.callbacks.save_config",
    "save_lightning_features": "lamindb.integrations.lightning",
}

__all__ = [
    "ArtifactEvent",
    "ArtifactObserver",
    "ArtifactPath",
    "ArtifactRemovedEvent",
    "ArtifactSavedEvent",
    "Checkpoint",
    "LaminLightningCLI",
    "SaveConfigCallback",
    "save_lightning_features",
]


def __getattr__(name: str) -> Any:
    """Import a public name from the module that defines it."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "LaminLightningCLI":  # before torch is imported: that takes seconds
        import_module("lamincli.loaded").keep()
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
