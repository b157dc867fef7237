"""The callback that keeps predictions: from the batches of all ranks to one file, in dataset order.

Every rank streams its batches into part files; rank zero merges them and publishes the result. A
batch whose values fit a table becomes Arrow, with the dataset index of each row; any other one is
kept by `torch.save`, and then the result is a ``.pt`` file. Neither way holds more than one batch,
or a chunk of the merge, in memory.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature

from lamincli import console, keys
from lamincli.errors import LaminTrainError, UsageError, first_line

if TYPE_CHECKING:
    from lamincli.callbacks.checkpoint import Checkpoint

FILE_NAME = "predictions.parquet"
_BARE = "prediction"
_LOADER = "dataloader"
_POSITION = ""  # the column of a part that holds dataset indices; no user's column has this name
_CHUNK_BYTES = 32 << 20
_FOLD = 1000
_MOST_SCHEMAS = 50


class UnsuitableError(Exception):
    """Report why the predictions of a batch are no rows of a table."""


class Predictions(BasePredictionWriter):
    """Keep what a model predicts as one artifact of the run, whatever the size of the dataset.

    One row a sample, in dataset order, with the samples that a `DistributedSampler` repeats to fill
    the last batches left out. Where Lightning cannot say which samples a batch holds, the order is
    that of the batches. The part files lie in a folder beside the result, which goes in the end.

    Args:
        key: Key of the artifact; `None` for ``predictions.parquet`` under the prefix of the run.

    Runs on: every rank; the result is written and published on global rank zero.
    """

    def __init__(self, key: str | None = None) -> None:
        super().__init__(write_interval="batch")
        self.wanted_key = key
        self.key: str | None = None
        self.local_path: Path | None = None
        self._folder: Path | None = None
        self._part: _Part | None = None
        self._loaders: list[Any] = []
        self._count = 0  # of the batches of a loader
        self._knows_samples = True

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Notice a `predict_step` that takes an iterator, of which Lightning knows no indices."""
        step = pl_module.predict_step
        self._knows_samples = not is_param_in_hook_signature(step, "dataloader_iter", explicit=True)

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make the folder for the parts, where every rank must see it."""
        folder = None
        if trainer.is_global_zero:
            place = _place(trainer)
            folder = place / f".predictions-{_publisher(trainer)._uid_of_run() or os.getpid()}"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        folder = trainer.strategy.broadcast(folder)
        assert folder is not None
        sees = folder.is_dir()
        if not trainer.strategy.reduce_boolean_decision(sees, all=True):
            if trainer.is_global_zero:
                shutil.rmtree(folder, ignore_errors=True)
            raise UsageError(
                f"{folder.parent} of rank zero is not there on every rank, so that predictions "
                "cannot be merged. Put the folder of the logger, or trainer.default_root_dir, on a "
                "shared file system, or predict without keeping: --lamin.predictions false."
            )
        self._folder = folder
        self._loaders = CombinedLoader(trainer.predict_dataloaders, "sequential").flattened
        self._part = None

    def write_on_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write a batch into the part file of this rank."""
        if self._folder is None:
            return
        if self._part is None or self._part.loader != dataloader_idx:
            self._close_part()
            self._count = 0
            as_rows = self.wanted_key is None or not self.wanted_key.endswith(".pt")
            self._part = _Part(self._folder, trainer.global_rank, dataloader_idx, as_rows)
        order = self._count * trainer.world_size + trainer.global_rank
        self._count += 1
        if prediction is None:
            return
        sampler = getattr(self._loaders[dataloader_idx], "batch_sampler", None)
        # Without such a sampler, Lightning hands over the indices of a batch of another loader.
        has_indices = self._knows_samples and hasattr(sampler, "seen_batch_indices")
        indices = batch_indices if has_indices else None
        self._part.write(prediction, indices, order, _may_repeat(sampler, trainer.world_size))

    def on_predict_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Merge the parts of all ranks, and publish the result."""
        super().on_predict_epoch_end(trainer, pl_module)
        self._close_part()
        trainer.strategy.barrier("predictions")
        if trainer.is_global_zero and self._folder is not None:
            try:
                self._merge_and_publish(trainer, self._folder)
            finally:
                shutil.rmtree(self._folder, ignore_errors=True)
        self._folder = None

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Remove the parts of predictions that will never be complete."""
        with suppress(OSError, pa.ArrowException):
            self._close_part()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._folder = None

    def _close_part(self) -> None:
        if self._part is not None:
            self._part.close()
        self._part = None

    def _merge_and_publish(self, trainer: pl.Trainer, folder: Path) -> None:
        merge = Merge(folder, len(self._loaders) > 1)
        if merge.is_empty:
            console.warn("predict_step returned nothing, so that there are no predictions to keep")
            return
        merged = merge.write()
        name = Path(self.wanted_key or FILE_NAME).with_suffix(merged.suffix).name
        path = _free(folder.parent / name)
        os.replace(merged, path)
        publisher = _publisher(trainer)
        if self.wanted_key is None:
            self.key = publisher.resolve_artifact_key(trainer, path, "config")
        else:
            self.key = str(PurePosixPath(self.wanted_key).with_suffix(merged.suffix))
        if merge.why_not_rows and not (self.wanted_key or "").endswith(".pt"):
            console.say(
                f"predictions are kept as {path.name}, batch by batch: {merge.why_not_rows}"
            )
        self.local_path = path
        publisher.save_predictions_artifact(trainer, path, self.key)

    def __getstate__(self) -> dict[str, Any]:
        """Leave behind what belongs to this process, for strategies that spawn the ranks."""
        return self.__dict__ | {"_part": None, "_folder": None, "_loaders": []}


def why_no_key(key: str) -> str | None:
    """Say why predictions cannot be kept under a key; `None` if they can."""
    if not key.endswith((".parquet", ".pt")):
        stem = key.rpartition("/")[2].partition(".")[0] or "predictions"
        return f"it ends in neither .parquet nor .pt. Write {stem}.parquet."
    if why := keys.why_no_key(key):
        return why
    if key.rpartition("/")[2].startswith("."):
        return "the file has no name. Write one before the dot: predictions.parquet."
    return None


def _publisher(trainer: pl.Trainer) -> Checkpoint:
    from lamincli.callbacks.checkpoint import Checkpoint
    from lamincli.callbacks.save_config import config_saver, publisher_of

    saver = config_saver(trainer)
    return publisher_of(trainer) or Checkpoint(**(saver.key_defaults if saver else {}))


def _place(trainer: pl.Trainer) -> Path:
    """Return the folder for the result: that of the config, else that of the logger."""
    from lamindb.integrations.lightning import LoggerInfo

    from lamincli.callbacks.save_config import config_saver

    saver = config_saver(trainer)
    if saver is not None and saver.local_path is not None:
        return Path(os.path.abspath(saver.local_path.parent))
    return Path(os.path.abspath(LoggerInfo(trainer).trainer_log_dir_without_broadcast))


def _free(path: Path) -> Path:
    counted = (path.with_stem(f"{path.stem}-{n}") for n in range(1, 10_000))
    return next(p for p in (path, *counted) if not p.exists()) if path.exists() else path


def _may_repeat(batch_sampler: Any, world_size: int) -> bool:
    """Tell whether several ranks may predict the same sample.

    Lightning's own sampler for predictions repeats none, unless ranks share their part of the data.
    """
    sampler = getattr(batch_sampler, "sampler", None)
    if isinstance(sampler, UnrepeatedDistributedSampler) and sampler.num_replicas == world_size:
        return False
    return world_size > 1


# -- one batch as rows ------------------------------------------------------------------------


def as_rows(prediction: Any, size: int | None) -> tuple[Any, dict[str, pa.Array]]:
    """Return the values of a batch as columns.

    Args:
        prediction: What `predict_step` returned.
        size: Number of samples; `None` if it is not known.

    Returns:
        The structure, as JSON, from which `restore` makes the batch again, and the columns.

    Raises:
        UnsuitableError: It is not one row a sample, or a value fits no column.

    Shapes: a tensor [num_samples, ...] is a column of numbers, or of lists as deep as its shape.
    """
    columns: dict[str, Any] = {}
    structure = _take_apart(prediction, "", columns)
    sizes = {name: len(column) for name, column in columns.items() if isinstance(column, pa.Array)}
    if size is None:
        if not sizes:
            raise UnsuitableError("a batch is one value, not one for each sample")
        size = next(iter(sizes.values()))
    for name, length in sizes.items():
        if length != size:
            raise UnsuitableError(f"{name} has {length} rows in a batch of {size}")
    if not sizes and size != 1:
        raise UnsuitableError(f"one value for a batch of {size}")
    for name, column in columns.items():
        if not isinstance(column, pa.Array):  # one value for the whole batch
            columns[name] = pa.repeat(column, size)
    return structure, columns


def _take_apart(value: Any, name: str, columns: dict[str, Any]) -> Any:
    """Fill in the columns of a nested value; returns its structure."""
    if isinstance(value, (Mapping, tuple)):
        is_dict = isinstance(value, Mapping)
        names = getattr(value, "_fields", range(len(value)))
        items = value.items() if isinstance(value, Mapping) else zip(names, value, strict=True)
        if not len(value):
            raise UnsuitableError(f"{name or _BARE} is empty")
        if is_dict and not all(isinstance(key, str) and key for key in value):
            raise UnsuitableError(f"the keys of {name or _BARE} are not all strings")
        prefix = f"{name}." if name else "" if is_dict else f"{_BARE}."
        inner = {key: _take_apart(item, f"{prefix}{key}", columns) for key, item in items}
        return {"dict" if is_dict else "tuple": inner}
    name = name or _BARE
    if name in columns:
        raise UnsuitableError(f"two values have the name {name}")
    column, about = _column(value, name)
    columns[name] = column
    return {"column": name, **about}


def _column(value: Any, name: str) -> tuple[Any, dict[str, Any]]:
    """Return a value as an Arrow array, or a scalar for the whole batch, and what it was."""
    try:
        if isinstance(value, torch.Tensor):
            about = {"was": "tensor", "dtype": str(value.dtype)[6:], "ndim": value.ndim}
            return _of_array(_as_numpy(value)), about
        if isinstance(value, (np.ndarray, np.generic)):
            about = {"was": "array", "dtype": str(value.dtype), "ndim": value.ndim}
            if value.dtype == np.float16:
                value = value.astype(np.float32)
            return _of_array(np.asarray(value)), about
        if isinstance(value, list) and all(isinstance(item, _PLAIN) for item in value):
            return pa.array(value), {"was": "list"}
        if isinstance(value, _PLAIN):
            return pa.scalar(value), {"was": "scalar"}
    except (pa.ArrowException, TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise UnsuitableError(f"{name} fits no column: {first_line(error)}") from error
    raise UnsuitableError(f"{name} is a {type(value).__name__}")


_PLAIN = (bool, int, float, str, np.number, np.bool_, type(None))


def _as_numpy(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    if tensor.layout is not torch.strided or tensor.is_complex():
        raise TypeError(f"it is a tensor of the kind {tensor.layout}, {tensor.dtype}")
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point() and tensor.itemsize < 4:  # Parquet's readers know no bfloat16
        tensor = tensor.float()
    return tensor.numpy()


def _of_array(array: np.ndarray[Any, Any]) -> Any:
    if _holds_texts(array) and array.ndim < 2:
        return pa.array(array.tolist(), pa.string()) if array.ndim else pa.scalar(array.item())
    if array.dtype.kind not in "biuf":
        raise TypeError(f"it is an array of {array.dtype}")
    if array.ndim == 0:
        return pa.scalar(array.item(), pa.from_numpy_dtype(array.dtype))
    if 0 in array.shape[1:]:  # Arrow has no lists of the fixed size 0
        kind = pa.from_numpy_dtype(array.dtype)
        for _ in array.shape[1:]:
            kind = pa.list_(kind)
        return pa.array(array.tolist(), kind)
    column = pa.array(np.ascontiguousarray(array).reshape(-1))
    for length in reversed(array.shape[1:]):
        column = pa.FixedSizeListArray.from_arrays(column, length)
    return column


def _holds_texts(array: np.ndarray[Any, Any]) -> bool:
    """Tell whether an array holds texts, also as Python strings, as the names in AnnData are."""
    is_of_objects = array.dtype.kind == "O"
    return array.dtype.kind == "U" or (
        is_of_objects and all(isinstance(one, (str, type(None))) for one in array.flat)
    )


def restore(structure: Any, batch: pa.RecordBatch) -> Any:
    """Make a batch again from its columns, as `as_rows` found it."""
    if "dict" in structure:
        return {key: restore(inner, batch) for key, inner in structure["dict"].items()}
    if "tuple" in structure:
        return tuple(restore(inner, batch) for inner in structure["tuple"].values())
    column = batch.column(structure["column"])
    if structure["was"] == "list":
        return column.to_pylist()
    if structure["was"] == "scalar":
        return column[0].as_py()
    shape = [len(column)]
    if structure.get("ndim") == 0:
        column, shape = column.slice(0, 1), []
    while pa.types.is_fixed_size_list(column.type):
        shape.append(column.type.list_size)
        column = column.flatten()
    if pa.types.is_list(column.type) or pa.types.is_string(column.type):
        array = np.array(column.to_pylist())
        array = array if shape else array.reshape(())
    else:
        array = column.to_numpy(zero_copy_only=False).reshape(shape)
    if structure["was"] == "array":
        return array.astype(structure["dtype"])
    return torch.tensor(array).to(getattr(torch, structure["dtype"]))


# -- the parts of one rank --------------------------------------------------------------------


class _Part:
    """What one rank predicts for one loader, on disk.

    Args:
        folder: Where the parts of all ranks lie.
        rank: The global rank.
        loader: Number of the loader.
        as_rows: Try to make rows of the batches.
    """

    def __init__(self, folder: Path, rank: int, loader: int, as_rows: bool) -> None:
        self.loader = loader
        self._folder = folder
        self._stem = f"{loader}-{rank}"
        self._as_rows = as_rows
        self._count = 0
        self._writer: Any = None
        self._schema: pa.Schema | None = None

    def write(
        self, prediction: Any, indices: Sequence[int] | None, order: int, may_repeat: bool
    ) -> None:
        """Append a batch.

        Args:
            prediction: What the model predicted.
            indices: Dataset index of each sample; `None` where they are not known.
            order: Position of the batch among those of all ranks.
            may_repeat: Whether another rank may have predicted the same samples.
        """
        if self._as_rows:
            try:
                self._write_rows(prediction, indices, order, may_repeat)
                return
            except UnsuitableError as reason:
                self._as_rows = False
                (self._folder / f"{self._stem}.reason").write_text(str(reason), encoding="utf-8")
        path = self._folder / _batch_name(self.loader, order)
        try:
            torch.save(move_data_to_device(prediction, torch.device("cpu")), path)
        except OSError:
            raise
        except Exception as error:  # pickle raises whatever the object raises
            raise LaminTrainError(
                f"the predictions cannot be kept: {first_line(error)}. Return tensors, arrays, "
                "numbers, strings or dicts of them, or do not keep them: --lamin.predictions false."
            ) from error

    def _write_rows(
        self, prediction: Any, indices: Sequence[int] | None, order: int, may_repeat: bool
    ) -> None:
        structure, columns = as_rows(prediction, None if indices is None else len(indices))
        size = len(next(iter(columns.values())))
        try:
            positions = np.full(size, order) if indices is None else np.array(indices, np.int64)
        except (TypeError, ValueError) as error:
            raise UnsuitableError(f"the sampler gives no indices: {first_line(error)}") from error
        if positions.ndim != 1:
            raise UnsuitableError("the sampler gives more than one index for a sample")
        about = {"structure": structure, "unique": may_repeat and indices is not None}
        batch = pa.RecordBatch.from_arrays(
            [pa.array(positions, pa.int64()), *columns.values()], [_POSITION, *columns]
        ).replace_schema_metadata({"lamin": json.dumps(about)})
        if self._count > 1:  # sizes differ between batches: lists of any size then
            batch = _with_any_size(batch)
        if self._writer is None or not batch.schema.equals(self._schema, check_metadata=True):
            if self._count == _MOST_SCHEMAS:
                raise UnsuitableError("the batches are of too many kinds")
            batch = _with_any_size(batch) if self._count else batch
            self.close()
            path = self._folder / f"{self._stem}-{self._count:06d}.arrow"
            self._count += 1
            self._schema = batch.schema
            self._writer = pa.ipc.new_file(str(path), batch.schema)
        self._writer.write_batch(batch, {"order": str(order)})

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer = None


def _with_any_size(batch: pa.RecordBatch) -> pa.RecordBatch:
    fields = [field.with_type(_any_size(field.type)) for field in batch.schema]
    return batch.cast(pa.schema(fields, batch.schema.metadata))


def _any_size(kind: pa.DataType) -> pa.DataType:
    return pa.list_(_any_size(kind.value_type)) if pa.types.is_fixed_size_list(kind) else kind


def _batch_name(loader: int, order: int) -> str:
    return f"{loader:04d}-{order:012d}.pt"


# -- all parts together -----------------------------------------------------------------------


class _Rows:
    """A part in Arrow, mapped into memory; nothing is read before it is asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.loader = int(path.name.partition("-")[0])
        self.reader = pa.ipc.open_file(pa.memory_map(str(path)))
        about = json.loads(self.reader.schema.metadata[b"lamin"])
        self.structure, self.is_unique = about["structure"], about["unique"]
        self.schema = pa.schema([f for f in self.reader.schema if f.name != _POSITION])

    def __len__(self) -> int:
        return int(self.reader.num_record_batches)

    @cached_property
    def positions(self) -> list[np.ndarray[Any, Any]]:
        """The dataset indices, batch by batch."""
        batches = map(self.reader.get_batch, range(len(self)))
        return [batch.column(0).to_numpy() for batch in batches]

    def batch(self, number: int) -> pa.RecordBatch:
        batch = self.reader.get_batch(number)
        return batch.select(self.schema.names)

    def restored(self) -> Iterator[tuple[int, Any]]:
        """Return order and prediction of each batch."""
        for number in range(len(self)):
            batch, about = self.reader.get_batch_with_custom_metadata(number)
            yield int(about[b"order"]), restore(self.structure, batch)


class Merge:
    """Make one file of the parts of all ranks.

    Rows are gathered chunk by chunk from the mapped parts, in any order that the sampler had;
    beside a chunk, 16 bytes a sample are held for their order.

    Args:
        folder: The folder of the parts.
        names_loaders: Add a column that numbers the loaders.
    """

    def __init__(self, folder: Path, names_loaders: bool) -> None:
        self.folder = folder
        self.names_loaders = names_loaders
        self._rows = [_Rows(path) for path in sorted(folder.glob("*.arrow"))]
        self._batches = sorted(folder.glob("*.pt"))
        reasons = sorted(folder.glob("*.reason"))
        self.why_not_rows = reasons[0].read_text(encoding="utf-8") if reasons else ""

    @property
    def is_empty(self) -> bool:
        """Whether nothing was predicted."""
        return not self._rows and not self._batches

    def write(self) -> Path:
        """Write the result; returns its path, which ends in ``.parquet`` or ``.pt``."""
        if not self._batches:
            try:
                return self._write_table(self.folder / "merged.parquet")
            except (pa.ArrowException, UnsuitableError) as error:
                self.why_not_rows = f"batches differ: {first_line(error)}"
        return self._write_batches(self.folder / "merged.pt")

    def _write_table(self, path: Path) -> Path:
        schema = pa.unify_schemas(
            [rows.schema for rows in self._rows], promote_options="permissive"
        )
        label = _LOADER if _LOADER not in schema.names else f"{_LOADER}_idx"
        written = schema.insert(0, pa.field(label, pa.int64())) if self.names_loaders else schema
        with pq.ParquetWriter(str(path), written, compression="zstd") as writer:
            for loader in sorted({rows.loader for rows in self._rows}):
                for table in self._in_order(loader):
                    table = _aligned(table, schema)
                    if self.names_loaders:
                        numbers = pa.repeat(pa.scalar(loader, pa.int64()), len(table))
                        table = table.add_column(0, written.field(0), numbers)
                    writer.write_table(table, row_group_size=max(1, len(table)))
        return path

    def _in_order(self, loader: int) -> Iterator[pa.Table]:
        """Return the rows of a loader in the order of the dataset, in chunks."""
        parts = [rows for rows in self._rows if rows.loader == loader]
        batches = [(rows, number) for rows in parts for number in range(len(rows))]
        lengths = [len(positions) for rows in parts for positions in rows.positions]
        starts = np.cumsum([0, *lengths])
        positions = np.concatenate([one for rows in parts for one in rows.positions])
        order = np.argsort(positions, kind="stable")
        if any(rows.is_unique for rows in parts):
            in_order = positions[order]
            order = order[np.concatenate([[True], in_order[1:] != in_order[:-1]])]
        size_bytes = sum(rows.path.stat().st_size for rows in parts)
        step = max(1, int(_CHUNK_BYTES * max(1, len(positions)) / max(1, size_bytes)))
        for first in range(0, len(order), step):
            chosen = order[first : first + step]
            owner = np.searchsorted(starts, chosen, side="right") - 1
            by_owner = np.argsort(owner, kind="stable")
            numbers, firsts = np.unique(owner[by_owner], return_index=True)
            taken = []
            for number, inner in zip(numbers, np.split(chosen[by_owner], firsts[1:]), strict=True):
                rows, index = batches[number]
                taken.append(pa.table(rows.batch(index).take(pa.array(inner - starts[number]))))
            gathered = pa.concat_tables(taken, promote_options="permissive")
            yield gathered.take(pa.array(np.argsort(by_owner, kind="stable")))

    def _write_batches(self, path: Path) -> Path:
        """Write the list of batches that `torch.load` reads; of several loaders, a list of lists.

        The batches are mapped, not read, while they are saved. A process may have some 65,000
        mappings, so that there are never more than a thousand single ones.
        """
        for rows in self._rows:
            for order, prediction in rows.restored():
                torch.save(prediction, self.folder / _batch_name(rows.loader, order))
        paths = sorted(self.folder.glob("*.pt"))
        loaders = [int(one.name.partition("-")[0]) for one in paths]
        folds = []
        for first in range(0, len(paths), _FOLD):
            fold = [_mapped(one) for one in paths[first : first + _FOLD]]
            if len(paths) > _FOLD:
                target = self.folder / f"{first}.fold"
                torch.save(fold, target)
                fold = _mapped(target)
                for one in paths[first : first + _FOLD]:
                    one.unlink()
            folds.append(fold)
        batches = [batch for fold in folds for batch in fold]
        if self.names_loaders:
            pairs = list(zip(loaders, batches, strict=True))
            batches = [[b for n, b in pairs if n == one] for one in range(max(loaders) + 1)]
        torch.save(batches, path)
        return path


def _mapped(path: Path) -> Any:
    # These are our own files; what is in them was made by this job.
    return torch.load(path, map_location="cpu", mmap=True, weights_only=False)


def _aligned(table: pa.Table, schema: pa.Schema) -> pa.Table:
    columns = [
        table.column(field.name).cast(field.type)
        if field.name in table.column_names
        else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)
