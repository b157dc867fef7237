"""Let `load_from_checkpoint` find the files for the references among hyper-parameters.

A checkpoint keeps what was given: ``lamin:artifact/…``, which holds on every machine. A model or
data module that is made from one is given the local path, as it was in training. This module is an
entry point of the group ``lamindb_setup.on_import``, so that it works in every program that has
imported lamindb. It imports nothing but the standard library until it is called, and then Lightning
only once that is imported by somebody else.
"""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any

_MODULE = "lightning.pytorch.core.saving"


def resolve_references_when_loaded() -> None:
    """Prepare `load_from_checkpoint`, now or as soon as Lightning is imported. Repeats do nothing.

    Arguments that are given to `load_from_checkpoint` win over the checkpoint, as ever; what they
    replace is not looked up.
    """
    if _MODULE in sys.modules:
        _prepare(sys.modules[_MODULE])
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder:
    """Notices the import of the module, once."""

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> Any:
        """Find the spec of the module as others do, and prepare what it loads."""
        if name != _MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                _prepare(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _prepare(saving: Any) -> None:
    load = getattr(saving, "_load_state", None)
    if load is None or hasattr(load, "resolves_references"):
        return

    def _load_state(cls: Any, checkpoint: Any, *args: Any, **kwargs: Any) -> Any:
        key = cls.CHECKPOINT_HYPER_PARAMS_KEY
        if "lamin:" in str(checkpoint.get(key, "")):
            from lamincli.references import References, walk

            checkpoint[key] = walk(checkpoint[key], References().local_path)
        return load(cls, checkpoint, *args, **kwargs)

    _load_state.resolves_references = True  # type: ignore[attr-defined]
    saving._load_state = _load_state
