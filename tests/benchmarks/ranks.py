"""What a record costs every rank of a job, beside stock Lightning under torchrun.

    pip install -c constraints.txt -e ".[test]"
    python tests/benchmarks/ranks.py [WORK ...] [--ranks N ...] [--repeats N] [--json FILE]

Every cell is a job of its own, and the two ways take turns. Printed are medians:

- ``near`` and ``far``: what a save blocks the training, on the rank that it blocks longest, with
  SQLite and local storage, and with PostgreSQL and S3 behind 100 ms (needs both servers), and the
  statements of a whole job at that PostgreSQL. Between two saves there are 0.4 s, for a disk or its
  rate limit evens out all differences where saves follow each other at once.
- ``start``: from the start of a process to its first batch, as processor time of ranks other than
  zero, which is their own work, and as time on the wall, in which all ranks wait for rank zero.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WORKS = {
    "near": "20 x 50 MB, SQLite and local storage",
    "far": "8 x 50 MB, PostgreSQL and S3 behind 100 ms",
    "start": "until the first batch, in an instance that has seen a run",
}
SAVES = {"near": 20, "far": 8, "start": 2}
PAUSE_S = 0.4  # between two saves, in the place of computing on an accelerator
LATENCY_S = 0.1


def train(work: str, way: str, ranks: int) -> None:
    """Train once, as one rank of a job, and write what was measured into a file."""
    import lightning.pytorch as pl
    import torch
    from lightning.pytorch.callbacks import Callback, ModelCheckpoint
    from lightning.pytorch.cli import LightningCLI
    from publishing import watch
    from torch.utils.data import DataLoader, TensorDataset

    class Model(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 1)
            size = 0 if work == "start" else 50 * 250_000
            self.ballast = torch.nn.Parameter(torch.randn(size), requires_grad=False)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            time.sleep(PAUSE_S)
            return self.layer(batch[0]).pow(2).mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.layer.parameters(), lr=0.01)

    class Data(pl.LightningDataModule):
        def train_dataloader(self) -> Any:
            return DataLoader(TensorDataset(torch.randn(SAVES[work] * ranks, 4)), batch_size=1)

    class Spy(Callback):
        def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            self.blocked = watch(trainer.checkpoint_callback)

        def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
            if trainer.global_step == 0:
                import psutil

                self.wall_s = time.time() - psutil.Process().create_time()
                self.cpu_s = time.process_time()

        def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            found = {"wall_s": self.wall_s, "cpu_s": self.cpu_s, "blocked_s": self.blocked}
            Path(f"rank{trainer.global_rank}.json").write_text(json.dumps(found))

    options = {"dirpath": "checkpoints", "filename": "{step}",
               "every_n_train_steps": 1 if work != "start" else 1000}  # fmt: skip
    defaults: dict[str, Any] = {
        "max_epochs": 1, "devices": ranks, "strategy": "ddp" if ranks > 1 else "auto",
        "accelerator": "cpu", "logger": False, "enable_progress_bar": False,
        "enable_model_summary": False, "callbacks": [Spy()],
    }  # fmt: skip
    kind: Any = LightningCLI
    words = ["fit"]
    if way == "ours":
        from lamincli import LaminLightningCLI

        kind = LaminLightningCLI
        if "BENCHMARK_INSTANCE" in os.environ:
            words += [f"--lamin.instance={os.environ['BENCHMARK_INSTANCE']}"]
            if os.environ.get("RANK") == "0":
                from publishing import connect

                connect(work)
        words += [f"--checkpoint.{name}={value}" for name, value in options.items()]
    else:
        defaults["callbacks"].append(ModelCheckpoint(**options))
    kind(Model, Data, trainer_defaults=defaults, args=words)


def run(work: str, way: str, ranks: int, folder: Path, environment: dict[str, str]) -> Any:
    """Run one job; returns what each rank has measured."""
    with tempfile.TemporaryDirectory(prefix="job-", dir=folder) as job:
        done = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--standalone",
             f"--nproc-per-node={ranks}", os.path.abspath(__file__),
             "--rank-of", work, way, str(ranks)],
            cwd=job, env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"{work} {way} on {ranks} ranks failed:\n{done.stderr[-4000:]}")
        return [json.loads((Path(job) / f"rank{i}.json").read_text()) for i in range(ranks)]


def blocked_s(of_ranks: list[dict[str, Any]]) -> float:
    """Return the median over the saves of the time on the rank that waits longest."""
    return statistics.median(map(max, zip(*(one["blocked_s"] for one in of_ranks), strict=True)))


@contextlib.contextmanager
def place(work: str) -> Any:
    """Yield a folder, the environment of the jobs, and the PostgreSQL that they use."""
    with tempfile.TemporaryDirectory(prefix="lamin-train-benchmark-") as folder:
        if work != "far":
            instance = {"HOME": folder, "BENCHMARK_INSTANCE": f"{folder}/lamindb"}
            yield Path(folder), instance, None
            return
        sys.path.insert(0, str(Path(__file__).parents[1]))
        from servers import distant_instance

        with distant_instance(LATENCY_S) as (environment, postgres):
            yield Path(folder), environment, postgres


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("works", nargs="*", metavar="WORK", help=", ".join(WORKS))
    parser.add_argument("--ranks", nargs="*", type=int, default=[1, 2, 4])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write all that was measured there too")
    parser.add_argument("--rank-of", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank_of:
        work, way, ranks = options.rank_of
        train(work, way, int(ranks))
        return
    measured: dict[str, Any] = {}
    for work in options.works or list(WORKS):
        print(f"\n{WORKS[work]}", flush=True)
        with place(work) as (folder, environment, postgres):
            run(work, "ours", 1, folder, environment)  # makes the instance and its features
            for ranks in options.ranks:
                found: dict[str, list[Any]] = {"plain": [], "ours": []}
                statements = []
                for _ in range(options.repeats):
                    for way, jobs in found.items():
                        with contextlib.ExitStack() as stack:
                            if counts := postgres and postgres.counted("distant"):
                                counts = stack.enter_context(counts)
                            jobs.append(run(work, way, ranks, folder, environment))
                        if counts and way == "ours":
                            statements.append(counts["statements"])
                measured[f"{work} {ranks}"] = found | {"statements": statements}
                show(work, ranks, found, statements)
                if options.json:
                    options.json.write_text(json.dumps(measured, indent=1))


def show(work: str, ranks: int, found: dict[str, list[Any]], statements: list[int]) -> None:
    if work == "start":
        first = 1 if ranks > 1 else 0
        for what, label in (("cpu_s", "processor"), ("wall_s", "wall")):
            plain, ours = (
                statistics.median(one[what] for job in jobs for one in job[first:])
                for jobs in found.values()
            )
            print(f"{ranks} ranks  {label:10} plain {plain:5.2f} s  ours {ours:5.2f} s  "
                  f"{ours - plain:+.2f} s", flush=True)  # fmt: skip
        return
    plain, ours = (statistics.median(map(blocked_s, jobs)) for jobs in found.values())
    told = f"  statements {statements}" if statements else ""
    print(f"{ranks} ranks  blocked per save: plain {plain * 1e3:6.1f} ms  ours {ours * 1e3:6.1f} ms"
          f"  ÷ plain {ours / plain:.2f}{told}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
