"""Know when a checkpoint is complete, whoever writes it, and when."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.plugins.io.wrapper import _WrappingCheckpointIO


class Completion:
    """Call back once a checkpoint is completely written.

    With `AsyncCheckpointIO`, or any other plugin that wraps one, saving returns before the file is
    there: the innermost plugin is watched, which returns when it has written. A plugin of its own
    kind that has a `teardown` may write until then. Everything else has written when it returns.

    Runs on: the training thread; `then` runs on the thread that writes.
    """

    def __init__(self) -> None:
        self._expected: dict[str, Callable[[], None]] = {}
        self._lock = threading.Lock()

    def expect(self, path: str, then: Callable[[], None]) -> None:
        """Say that a save of this path begins, and what follows its completion."""
        with self._lock:
            self._expected[str(path)] = then

    def forget(self, path: str) -> bool:
        """Forget a path that is not wanted any more; returns whether it was still expected."""
        with self._lock:
            return self._expected.pop(str(path), None) is not None

    def is_written(self, path: str) -> None:
        """Say that a path is complete."""
        with self._lock:
            then = self._expected.pop(str(path), None)
        if then is not None:
            then()

    def returned(self, plugin: CheckpointIO, path: str) -> None:
        """Say that the save of a path has returned, through this plugin."""
        if not _writes_later(plugin):
            self.is_written(path)

    def torn_down(self) -> None:
        """Say that the plugins have been torn down: what exists now is complete."""
        for path in list(self._expected):
            if "://" in path or Path(path).exists():
                self.is_written(path)
            else:
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
                save(checkpoint, path, *args, **kwargs)
                for watcher in tuple(inner._lamin_watchers):
                    watcher.is_written(str(path))

            inner.save_checkpoint = save_checkpoint
        if self not in watchers:
            watchers.append(self)


def _writes_later(plugin: CheckpointIO) -> bool:
    if isinstance(plugin, _WrappingCheckpointIO):
        return True  # `watch` tells
    return type(plugin).teardown is not CheckpointIO.teardown
