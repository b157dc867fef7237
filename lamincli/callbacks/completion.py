"""Know when a checkpoint is complete, whoever writes it, and when."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import CheckpointIO, TorchCheckpointIO
from lightning.pytorch.plugins.io.wrapper import _WrappingCheckpointIO


class Completion:
    """Call back once a checkpoint is completely written.

    With `AsyncCheckpointIO`, or any other plugin that wraps one, saving returns before the file is
    there: the innermost plugin is watched, which returns when it has written. A plugin of its own
    kind that has a `teardown` may write until then. Everything else has written when it returns.

    Runs on: the training thread; `then` runs on the thread that writes.
    """

    def __init__(self) -> None:
        self._expected: dict[str, deque[Callable[[], None]]] = {}
        self._watched: set[str] = set()  # a plugin will tell; no news means that it failed
        self._lock = threading.Lock()

    def expect(self, path: str, then: Callable[[], None], plugin: CheckpointIO) -> None:
        """Say that a save of this path begins, and what follows its completion."""
        with self._lock:
            self._expected.setdefault(path, deque()).append(then)
            if isinstance(plugin, _WrappingCheckpointIO):
                self._watched.add(path)

    def forget(self, path: str) -> None:
        """Forget a path that is not wanted any more."""
        with self._lock:
            self._drop(path)

    def _drop(self, path: str) -> None:
        self._expected.pop(path, None)
        self._watched.discard(path)

    def is_written(self, path: str, well: bool = True) -> None:
        """Say that the oldest save of a path is complete, or has failed."""
        with self._lock:
            waiting = self._expected.get(path)
            then = waiting.popleft() if waiting else None
            if not waiting:
                self._drop(path)
        if then is not None and well:
            then()

    def returned(self, plugin: CheckpointIO, path: str) -> None:
        """Say that the save of a path has returned, through this plugin."""
        if not _writes_later(plugin):
            self.is_written(path)

    def torn_down(self) -> None:
        """Say that the plugins have been torn down: what exists now is complete."""
        for path in list(self._expected):
            is_there = "://" in path or Path(path).exists()
            if is_there and path not in self._watched:
                self.is_written(path)
            self.forget(path)

    def watch(self, plugin: CheckpointIO) -> None:
        """Learn from the innermost of wrapped plugins when a file is written."""
        inner: Any = plugin
        while isinstance(inner, _WrappingCheckpointIO) and inner.checkpoint_io is not None:
            inner = inner.checkpoint_io
        if inner is plugin:
            return
        watchers: list[Completion] | None = vars(inner).get("_lamin_watchers")
        if watchers is None:
            watchers = inner._lamin_watchers = []
            save = inner.save_checkpoint

            def save_checkpoint(checkpoint: Any, path: Any, *args: Any, **kwargs: Any) -> None:
                well = False
                try:
                    save(checkpoint, path, *args, **kwargs)
                    well = True
                finally:
                    for watcher in tuple(inner._lamin_watchers):
                        watcher.is_written(str(path), well)

            inner.save_checkpoint = save_checkpoint
        if self not in watchers:
            watchers.append(self)


def _writes_later(plugin: CheckpointIO) -> bool:
    if isinstance(plugin, _WrappingCheckpointIO):
        return True  # `watch` tells
    writes_itself = type(plugin).save_checkpoint is not TorchCheckpointIO.save_checkpoint
    return writes_itself and type(plugin).teardown is not CheckpointIO.teardown
