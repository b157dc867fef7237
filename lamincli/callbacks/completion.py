"""Know when a checkpoint is complete, whoever writes it, on how many ranks, and when."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as pl
from lightning.fabric.plugins import CheckpointIO, TorchCheckpointIO
from lightning.pytorch.plugins.io.wrapper import _WrappingCheckpointIO
from lightning.pytorch.strategies import Strategy

from lamincli import checkpoint_file, console, ranks

_OTHERS_WRITE_WITHIN_S = 600.0
_OTHERS_WRITE_AFTER_ERROR_WITHIN_S = 5.0
_PAUSE_S = 0.02


@dataclass(eq=False)
class _Save:
    """One save of one path by this rank.

    Args:
        then: What follows its completion.
        is_zero: Whether this is rank zero, which publishes.
        others: The other ranks that write it, where they write later, and how far they are.
        in_flight: Whether an earlier save of the path was not complete when this one began.
    """

    then: Callable[[], None]
    is_zero: bool
    others: _OtherRanks | None
    in_flight: bool
    is_handed_over: bool = False  # to a plugin that is watched
    is_begun: bool = False
    is_written: bool = False  # by this rank
    done: threading.Event = field(default_factory=threading.Event)


class Completion:
    """Call back once a checkpoint is completely written, by every rank that writes it.

    A save has been written on all ranks when it returns, for Lightning lets them wait for each
    other, unless somebody writes later:

    - A plugin that wraps another, as `AsyncCheckpointIO`: the innermost is watched, which returns
      when it has written. Where the strategy lets all ranks save, each tells rank zero.
    - A strategy that goes on by itself, as with `torch.distributed.checkpoint.async_save`: the
      folder gets the file that is written last.
    - A plugin of another kind that has a `teardown` may write until then.

    Runs on: every rank, the training thread; `then` runs on the thread that knows.
    """

    def __init__(self) -> None:
        self._saves: dict[str, deque[_Save]] = {}  # by path, oldest first, until complete
        self._lock = threading.Lock()

    @contextmanager
    def saving(self, trainer: pl.Trainer, path: str, then: Callable[[], None]) -> Iterator[None]:
        """Save a path within this context.

        Rank zero first makes room for it, and the others do not write before that.

        Args:
            trainer: The trainer that saves.
            path: Where to.
            then: What follows its completion, on rank zero.
        """
        strategy, path, is_zero = trainer.strategy, str(path), trainer.is_global_zero
        plugin = strategy.checkpoint_io
        self._watch(plugin)
        is_joint = trainer.world_size > 1 and _do_all_ranks_save(strategy)
        if is_zero:
            self._let_strategy_finish(path, strategy)
        in_flight = path in self._saves
        if is_zero and not in_flight:
            make_room(path, _innermost(plugin))
        others = None
        if is_joint:
            strategy.barrier("lamin-train: room for a checkpoint")
            is_later = isinstance(plugin, _WrappingCheckpointIO)
            others = _OtherRanks(path, trainer.world_size - 1) if is_later else None
        save = _Save(then, is_zero, others, in_flight)
        with self._lock:
            self._saves.setdefault(path, deque()).append(save)
        try:
            yield
        except BaseException:
            self.forget(path)
            raise
        if save.is_handed_over:
            return
        if save.others is not None:  # this rank had nothing to write, or the strategy has written
            if is_zero:
                save.others.tell_of_room()
            self._is_written(path)
        elif not _may_write_until_teardown(plugin) and _is_there(path):
            self._is_written(path)

    def forget(self, path: str) -> None:
        """Forget a path that is not wanted any more."""
        with self._lock:
            for save in self._saves.pop(path, ()):
                save.done.set()

    def look(self) -> None:
        """Look whether what a strategy writes by itself is complete by now."""
        for path, saves in list(self._saves.items()):
            if not saves[0].is_handed_over and _is_marked(path):
                self._is_written(path)

    def torn_down(self, trainer: pl.Trainer) -> None:
        """Say that the plugins have been torn down: what exists now is complete."""
        limit_s = _OTHERS_WRITE_WITHIN_S
        if trainer.interrupted:
            limit_s = _OTHERS_WRITE_AFTER_ERROR_WITHIN_S
        until_s = time.monotonic() + limit_s
        for path, saves in list(self._saves.items()):
            for save in list(saves):
                if save.others is not None and save.is_handed_over:
                    save.done.wait(max(0.0, until_s - time.monotonic()))
            # A plugin that is watched would have told: no news means that it failed.
            if path in self._saves and not saves[0].is_handed_over and _is_there(path):
                self._is_written(path)
            self.forget(path)

    # -- the threads that write --------------------------------------------------------------

    def _next(self, path: str, has: str) -> _Save | None:
        """Return the oldest save of a path that has not come so far yet, and note that it has."""
        with self._lock:
            saves = self._saves.get(path, ())
            save = next((one for one in saves if not getattr(one, has)), None)
            if save is not None:
                setattr(save, has, True)
        return save

    def _await_turn(self, path: str, plugin: CheckpointIO) -> _Save | None:
        """Let an earlier save of a path be complete and pinned, before it is written over.

        Returns:
            The save that is to be written now; `None` if that is not of this callback.
        """
        save = self._next(path, "is_begun")
        if save is None:
            return None
        if not save.is_zero:
            if save.others is not None:
                save.others.await_room(save.done)
            return save
        if save.in_flight:
            earlier = [one for one in self._saves.get(path, ()) if one.is_written]
            for one in earlier:
                one.done.wait(_OTHERS_WRITE_WITHIN_S)
            make_room(path, plugin)
        if save.others is not None:
            save.others.tell_of_room()
        return save

    def _is_written(self, path: str, well: bool = True) -> None:
        """Say that this rank has written its part of the oldest save of a path, or has failed."""
        save = self._next(path, "is_written")
        if save is None:
            return
        if save.others is None:
            self._settle(path, save, well)
        elif not save.is_zero:
            save.others.report(well)
            self._settle(path, save, well)
        elif well:
            # Not on the thread of the plugin, which the process waits for when it ends.
            threading.Thread(target=self._wait_for_others, args=(path, save), daemon=True).start()
        else:
            self._settle(path, save, well=False)

    def _wait_for_others(self, path: str, save: _Save) -> None:
        assert save.others is not None
        well = save.others.have_written(save.done)
        if not well and not save.done.is_set():
            console.warn(f"{path} is not published: another rank could not write its part of it")
        self._settle(path, save, well)

    def _settle(self, path: str, save: _Save, well: bool) -> None:
        if well and not save.done.is_set():
            save.then()
            if save.is_zero and os.path.isdir(path):
                shutil.rmtree(_aside(path), ignore_errors=True)
        with self._lock:
            saves = self._saves.get(path, deque())
            with suppress(ValueError):  # it is not wanted any more
                saves.remove(save)
            if not saves:
                self._saves.pop(path, None)
        save.done.set()

    def _let_strategy_finish(self, path: str, strategy: Strategy) -> None:
        """Wait for what a strategy still writes into the folder that it is to write over.

        It would wait itself, within its next save, and leave no moment in which to pin.
        """
        until_s = time.monotonic() + _OTHERS_WRITE_WITHIN_S
        pending = self._saves.get(path)
        if not pending or pending[0].is_handed_over or not _do_all_ranks_save(strategy):
            return
        while not _is_marked(path) and time.monotonic() < until_s:
            time.sleep(_PAUSE_S)
        self.look()
        self.forget(path)

    def _watch(self, plugin: CheckpointIO) -> None:
        """Learn from a plugin that wraps another what it takes over, and what has been written."""
        inner = _innermost(plugin)
        if inner is plugin:
            return
        for one, wrap in ((plugin, _noting), (inner, _telling)):
            watchers: list[Completion] | None = vars(one).get("_lamin_watchers")
            if watchers is None:
                watchers = vars(one)["_lamin_watchers"] = []
                vars(one)["save_checkpoint"] = wrap(one, one.save_checkpoint, watchers)
            if self not in watchers:
                watchers.append(self)


def _noting(plugin: CheckpointIO, save: Any, watchers: list[Completion]) -> Any:
    """Wrap the method of the outermost plugin, which the training thread calls."""

    def save_checkpoint(checkpoint: Any, path: Any, *args: Any, **kwargs: Any) -> None:
        for watcher in tuple(watchers):
            watcher._next(str(path), "is_handed_over")
        save(checkpoint, path, *args, **kwargs)

    return save_checkpoint


def _telling(plugin: CheckpointIO, save: Any, watchers: list[Completion]) -> Any:
    """Wrap the method of the innermost plugin, which writes."""

    def save_checkpoint(checkpoint: Any, path: Any, *args: Any, **kwargs: Any) -> None:
        well = False
        saves = [watcher._await_turn(str(path), plugin) for watcher in tuple(watchers)]
        try:
            save(checkpoint, path, *args, **kwargs)
            well = True
        except FileNotFoundError:
            # fsspec gives a new file its mode last. Where the training has removed it by then, as
            # one that is not wanted any more, plain Lightning ends the training.
            if not any(one is not None and one.done.is_set() for one in saves):
                raise
        finally:
            for watcher in tuple(watchers):
                watcher._is_written(str(path), well)

    return save_checkpoint


class _OtherRanks:
    """How far the other ranks are with one save, by the key-value store of the job."""

    # Of the saves of a path in this process, as on every rank.
    _count: ClassVar[Counter[str]] = Counter()

    def __init__(self, path: str, number: int) -> None:
        self._key = f"{ranks.scope()}/saves/{self._count[path]}/{path}"
        self._count[path] += 1
        self._number = number

    def tell_of_room(self) -> None:
        """Let the others write; on rank zero."""
        self._store.set(f"{self._key}/room", "1")

    def await_room(self, unless: threading.Event) -> None:
        """Wait until rank zero lets this one write."""
        self._wait(lambda: self._store.check([f"{self._key}/room"]), unless)

    def report(self, well: bool) -> None:
        """Tell rank zero that this rank has written, or has failed."""
        if not well:
            self._store.set(f"{self._key}/failed", "1")
        self._store.add(f"{self._key}/written", 1)

    def have_written(self, unless: threading.Event) -> bool:
        """Wait until all others have written; returns whether they have; on rank zero."""
        have = self._wait(
            lambda: self._store.add(f"{self._key}/written", 0) >= self._number, unless
        )
        return have and not self._store.check([f"{self._key}/failed"])

    @property
    def _store(self) -> Any:
        return ranks.store()

    def _wait(self, condition: Callable[[], bool], unless: threading.Event) -> bool:
        until_s = time.monotonic() + _OTHERS_WRITE_WITHIN_S
        with suppress(RuntimeError):  # the store has gone, and the job with it
            while not unless.is_set() and time.monotonic() < until_s:
                if condition():
                    return True
                time.sleep(_PAUSE_S)
        return False


def make_room(path: str, plugin: CheckpointIO) -> None:
    """Let a save over an existing checkpoint make new files, where it would write into old ones.

    The pin of the earlier save is a link to the same content. Of a folder, the files of ranks that
    there are no more would be left, and the mark that it is complete: it is set aside until the new
    one is complete, and found there by `resume` if that is never. Lightning replaces a file by a
    rename, unless the folder for temporary files is on another device: then it copies into it.
    """
    with suppress(OSError, ValueError):
        status = os.stat(path)
        if os.path.isdir(path):
            _make_room_in(path)
        elif status.st_nlink > 1:
            is_replaced = (
                type(plugin) is TorchCheckpointIO
                and status.st_dev == os.stat(tempfile.gettempdir()).st_dev
            )
            if not is_replaced:
                os.unlink(path)


def _make_room_in(folder: str) -> None:
    if os.path.islink(folder):  # `save_last="link"`, in an earlier attempt
        os.unlink(folder)
    elif checkpoint_file.is_marked(Path(folder)):
        shutil.rmtree(_aside(folder), ignore_errors=True)
        os.rename(folder, _aside(folder))
    else:
        for place, _, files in os.walk(folder):
            for file in (os.path.join(place, name) for name in files):
                if os.stat(file).st_nlink > 1:
                    os.unlink(file)


def _aside(folder: str) -> str:
    place, name = os.path.split(folder)
    return os.path.join(place, f".before-{name}")


def _innermost(plugin: CheckpointIO) -> CheckpointIO:
    inner: CheckpointIO = plugin
    while isinstance(inner, _WrappingCheckpointIO) and inner.checkpoint_io is not None:
        inner = inner.checkpoint_io
    return inner


def _do_all_ranks_save(strategy: Strategy) -> bool:
    return type(strategy).save_checkpoint is not Strategy.save_checkpoint


def _may_write_until_teardown(plugin: CheckpointIO) -> bool:
    writes_itself = type(plugin).save_checkpoint is not TorchCheckpointIO.save_checkpoint
    is_wrapping = isinstance(plugin, _WrappingCheckpointIO)
    tears_down = type(plugin).teardown is not CheckpointIO.teardown
    return writes_itself and tears_down and not is_wrapping


def _is_there(path: str) -> bool:
    place = Path(path)
    return "://" in path or (checkpoint_file.is_whole(place) if place.is_dir() else place.exists())


def _is_marked(path: str) -> bool:
    place = Path(path)
    return "://" not in path and place.is_dir() and checkpoint_file.is_marked(place)
