"""Models and strategies whose checkpoints are folders that every rank writes into."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from tests_models import TinyModel
from torch.distributed.fsdp import fully_shard


class FullyShardedModel(TinyModel):
    """A model for `ModelParallelStrategy`: FSDP2, which runs on CPU too."""

    def configure_model(self) -> None:
        fully_shard(self.layer, mesh=self.device_mesh["data_parallel"])


class SlowWriter(dcp.FileSystemWriter):
    """Rank one is slower than rank zero."""

    def write_data(self, plan, planner):  # type: ignore[no-untyped-def]
        written = super().write_data(plan, planner)
        if dist.get_rank() == 1:
            time.sleep(0.3)
        return written


class ShardedStrategy(DDPStrategy):
    """Saves with `torch.distributed.checkpoint`, each rank its part."""

    def save_checkpoint(self, checkpoint, filepath, storage_options=None):  # type: ignore[no-untyped-def]
        self._save(checkpoint, SlowWriter(filepath))

    def _save(self, checkpoint: dict[str, Any], writer: SlowWriter) -> None:
        dcp.save(checkpoint, storage_writer=writer)


class AsyncShardedStrategy(ShardedStrategy):
    """Goes on writing when the save has returned, on all ranks."""

    _writing: Any = None

    def _save(self, checkpoint: dict[str, Any], writer: SlowWriter) -> None:
        self._wait()
        group = dist.new_group(backend="gloo")
        self._writing = dcp.async_save(checkpoint, storage_writer=writer, process_group=group)

    def _wait(self) -> None:
        if self._writing is not None:
            self._writing.result()

    def teardown(self) -> None:
        self._wait()
        super().teardown()


class EachRankStrategy(DDPStrategy):
    """Lets every rank call the plugin."""

    def save_checkpoint(self, checkpoint, filepath, storage_options=None):  # type: ignore[no-untyped-def]
        self.checkpoint_io.save_checkpoint(checkpoint, filepath)


class PartOfEachRank(TorchCheckpointIO):
    """Writes a file for each rank, in place, and says nowhere that all have done so."""

    def save_checkpoint(self, checkpoint, path, storage_options=None):  # type: ignore[no-untyped-def]
        rank = dist.get_rank()
        Path(path).mkdir(parents=True, exist_ok=True)
        with open(Path(path, f"rank{rank}.pt"), "wb") as file:
            time.sleep(0.5 * rank)
            if rank == 1 and os.environ.get("FAIL_WRITING") == Path(path).name:
                raise OSError(28, "No space left on device")
            torch.save({"step": checkpoint["global_step"], "weights": torch.randn(9)}, file)


class AsyncPartOfEachRank(AsyncCheckpointIO):
    def __init__(self) -> None:
        super().__init__(PartOfEachRank())


class TearingStrategy(ModelParallelStrategy):
    """Rank one is killed half-way through the save that the environment names."""

    def setup(self, trainer):  # type: ignore[no-untyped-def]
        super().setup(trainer)
        if self.global_rank == 0 and "TAKE_AWAY" in os.environ:  # the database, once it has a run
            os.rename(os.environ["TAKE_AWAY"], "away")

    def save_checkpoint(self, checkpoint, filepath, storage_options=None):  # type: ignore[no-untyped-def]
        name = f"{Path(filepath).name}:{checkpoint['global_step']}"
        if self.global_rank == 1 and os.environ.get("TEAR") == name:
            Path(filepath).mkdir(exist_ok=True)
            Path(filepath, "__1_0.distcp").write_bytes(b"torn")
            os.kill(os.getpid(), signal.SIGKILL)
        super().save_checkpoint(checkpoint, filepath, storage_options)
