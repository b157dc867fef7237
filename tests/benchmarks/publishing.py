"""What publishing checkpoints costs a training, beside plain Lightning and other trackers.

    pip install -c constraints.txt -e ".[test,benchmark]"
    python tests/benchmarks/publishing.py [WORK ...] [--repeats N] [--json FILE]

Every cell is a process of its own. For each work, the ways take turns, so that a machine that
slows down slows all of them. Printed are medians, and ratios to plain `ModelCheckpoint`.
Blocked is what the training thread waits in a save, removals among it; whole is `Trainer.fit`,
publishing included. The work `distant` needs PostgreSQL's server and moto.
"""

import argparse
import contextlib
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path
from typing import Any

WORKS = {
    "tiny": "200 tiny checkpoints, all kept, auto features, SQLite",
    "thousand": "1,000 tiny checkpoints, all kept",
    "big": "20 x 100 MB, all kept, SQLite, local storage",
    "async": "20 x 100 MB with AsyncCheckpointIO",
    "busy": "50 MB after every second of CPU-bound compute",
    "distant": "20 x 100 MB, PostgreSQL and S3 behind 20 ms",
    "writers": "eight trainings at once on one SQLite file, 30 saves each",
}
WAYS = {
    "tiny": ["plain", "ours", "lamindb", "mlflow", "dvclive"],
    "thousand": ["plain", "ours"],
    "big": ["plain", "ours", "lamindb", "mlflow", "dvclive"],
    "async": ["plain", "plain-async", "ours"],
    "busy": ["plain", "ours", "process"],
    "distant": ["plain", "ours", "lamindb"],
    "writers": ["plain", "ours"],
}


def cell(work: str, way: str, seconds: int) -> dict[str, Any]:
    """Train once, in this process, and measure."""
    import lightning.pytorch as pl
    import psutil
    import torch
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.loggers import CSVLogger
    from torch.utils.data import DataLoader, TensorDataset

    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    size_mb = {"tiny": 0, "thousand": 0, "writers": 0, "busy": 50}.get(work, 100)
    saves = {"tiny": 200, "thousand": 1000, "busy": 12, "writers": 30}.get(work, 20)
    if work == "busy":
        torch.set_num_threads(1)

    class Model(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 1)
            self.register_buffer("ballast", torch.randn(size_mb * 250_000))

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if work == "busy":
                compute(seconds)
            loss = self.layer(batch[0]).pow(2).mean()
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    options = {
        "dirpath": "checkpoints",
        "monitor": "loss",
        "save_top_k": -1,
        "every_n_train_steps": 1,
        "filename": "{step}",
    }
    statements = [0]
    logger: Any = CSVLogger("logs")
    publishes = way in ("ours", "lamindb")
    if publishes:
        import lamindb as ln

        from lamincli import save_lightning_features

        connect(work)
        ln.settings.verbosity = "error"
        save_lightning_features()
        transform = ln.Transform(key=f"{os.getpid()}.py", source_code=str(os.getpid()),
                                 kind="function").save()  # fmt: skip
        ln.context._run = ln.Run(transform=transform).save()
    if way == "ours":
        from django.db.backends.utils import CursorWrapper

        from lamincli import Checkpoint

        execute = CursorWrapper.execute

        def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
            statements[0] += 1
            return execute(self, *args, **kwargs)

        CursorWrapper.execute = counted
        callback: Any = Checkpoint(**options)
    elif way == "lamindb":
        from lamindb.integrations.lightning import Checkpoint as Stock

        callback = Stock(**{k: v for k, v in options.items() if k != "filename"})
    else:
        callback = ModelCheckpoint(**options)
    if way == "mlflow":
        from lightning.pytorch.loggers import MLFlowLogger

        logger = MLFlowLogger(tracking_uri=f"file:{Path.cwd()}/mlruns", log_model="all")
    if way == "dvclive":
        from dvclive.lightning import DVCLiveLogger

        subprocess.run(["git", "init", "-q"], check=True)
        identity = ["-c", "user.name=benchmark", "-c", "user.email=benchmark@localhost"]
        subprocess.run(["git", *identity, "commit", "-q", "--allow-empty", "-m", "."], check=True)
        subprocess.run([sys.executable, "-m", "dvc", "init", "-q"], check=True)
        logger = DVCLiveLogger(save_dvc_exp=False, log_model="all", dvcyaml=None)
    plugins = []
    if work == "async" and way != "plain":
        from lightning.pytorch.plugins.io import AsyncCheckpointIO

        plugins = [AsyncCheckpointIO()]
    blocked = watch(callback)
    memory = Memory(psutil.Process())
    trainer = pl.Trainer(
        max_epochs=1,
        callbacks=[callback],
        logger=logger,
        plugins=plugins,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    model = Model()
    data = DataLoader(TensorDataset(torch.randn(saves, 4)), batch_size=1)
    with memory:
        start = time.perf_counter()
        trainer.fit(model, data)
        whole_s = time.perf_counter() - start
    tenth = max(1, saves // 10)
    if publishes:
        published = ln.Artifact.objects.filter(run=ln.context._run, kind="model").count()
        assert published == saves, f"{published} of {saves} published"
    return {
        "blocked_s": statistics.median(blocked),
        "first_s": statistics.median(blocked[:tenth]),
        "last_s": statistics.median(blocked[-tenth:]),
        "whole_s": whole_s,
        "memory_mb": memory.grown_mb,
        "statements": statements[0] / saves,
    }


def compute(rounds: int) -> float:
    """Work as a training loop does: many small operations, each of which takes the lock."""
    import torch

    x = torch.randn(64, 64)
    for _ in range(rounds):
        x = torch.tanh(x @ x * 0.01)
    return float(x.sum())


def rounds_per_second() -> int:
    import torch

    torch.set_num_threads(1)
    compute(2000)
    start = time.perf_counter()
    compute(20_000)
    return int(20_000 / (time.perf_counter() - start))


def watch(callback: Any) -> list[float]:
    """Measure how long the training thread is in each save."""
    blocked: list[float] = []
    save = callback._save_checkpoint

    def timed(*args: Any) -> None:
        start = time.perf_counter()
        save(*args)
        blocked.append(time.perf_counter() - start)

    callback._save_checkpoint = timed
    return blocked


class Memory:
    """How much the resident memory grows while the training runs, at its highest."""

    def __init__(self, process: Any) -> None:
        self._process = process
        self._stop = threading.Event()
        self.grown_mb = 0.0

    def __enter__(self) -> None:
        self._before = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(0.05):
            grown = (self._process.memory_info().rss - self._before) / 1e6
            self.grown_mb = max(self.grown_mb, grown)


def connect(work: str) -> None:
    from lamincli.instance import connect as connect_instance

    connect_instance(os.environ.get("BENCHMARK_INSTANCE", "./lamindb"))
    if root := os.environ.get("BENCHMARK_STORAGE"):
        import lamindb as ln

        ln.Storage(root=root).save()
        ln.settings.storage = root


def run(work: str, way: str, rounds: int, environment: dict[str, str]) -> dict[str, Any]:
    """Measure one cell in a process and a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="lamin-train-benchmark-") as folder:
        command = [sys.executable, os.path.abspath(__file__), "--cell", work, way, str(rounds)]
        env = {**os.environ, "HOME": folder, "MLFLOW_ALLOW_FILE_STORE": "true", **environment}
        processes = [
            subprocess.Popen(
                command,
                cwd=folder if work != "writers" else _made(Path(folder) / str(i)),
                env=env,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for i in range(8 if work == "writers" else 1)
        ]
        drainer = None
        if way == "process":
            drainer = subprocess.Popen(
                [sys.executable, "-c", PROCESS], cwd=folder, env=env, stdin=subprocess.PIPE
            )
        results = []
        for process in processes:
            out, err = process.communicate()
            if process.returncode:
                raise SystemExit(f"{work} {way} failed:\n{err[-3000:]}")
            results.append(json.loads(out.strip().splitlines()[-1]))
        if drainer is not None:
            drainer.kill()
        return {name: statistics.median(result[name] for result in results) for name in results[0]}


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


# What a publisher in a process of its own would do beside the training: the same work.
PROCESS = """
import hashlib, os, shutil, time
from pathlib import Path
import lamindb
done = set()
while True:
    for file in sorted(Path('checkpoints').glob('*.ckpt')):
        if file.name not in done:
            done.add(file.name)
            shutil.copyfile(file, file.with_suffix('.copy'))
            hashlib.md5(file.read_bytes())
            for _ in range(20): sum(range(20000))
    time.sleep(0.02)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("works", nargs="*", metavar="WORK", help=", ".join(WORKS))
    parser.add_argument("--ways", nargs="*", help="only these")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the medians there too")
    parser.add_argument("--cell", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell:
        work, way, rounds = options.cell
        with contextlib.redirect_stdout(sys.stderr):
            result = cell(work, way, int(rounds))
        print(json.dumps(result))
        return
    rounds = rounds_per_second()
    table: dict[str, dict[str, dict[str, Any]]] = {}
    for work in options.works or list(WORKS):
        ways = [way for way in WAYS[work] if not options.ways or way in options.ways]
        found: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
        with servers(work) as environment:
            for repeat in range(options.repeats):
                for way in ways:
                    if way == "lamindb" and work in ("tiny", "distant") and repeat:
                        continue  # minutes each
                    found[way].append(run(work, way, rounds, environment))
        table[work] = {
            way: {name: statistics.median(r[name] for r in results) for name in results[0]}
            for way, results in found.items()
            if results
        }
        show(work, table[work])
        if options.json:
            options.json.write_text(json.dumps(table, indent=1))


@contextlib.contextmanager
def servers(work: str) -> Any:
    if work == "distant":
        sys.path.insert(0, str(Path(__file__).parents[1]))
        from servers import distant_instance

        with distant_instance(latency_s=0.02) as (environment, _):
            yield environment
    elif work == "writers":
        with tempfile.TemporaryDirectory(prefix="lamin-train-benchmark-") as folder:
            yield {"BENCHMARK_INSTANCE": f"{folder}/shared"}
    else:
        yield {}


def show(work: str, ways: dict[str, dict[str, Any]]) -> None:
    plain = ways["plain"]
    print(f"\n{WORKS[work]}")
    print(f"{'':12}{'blocked':>10}{'÷ plain':>9}{'first':>10}{'last':>10}{'whole':>9}{'÷ plain':>9}"
          f"{'memory':>10}{'statements':>12}")  # fmt: skip
    for way, r in ways.items():
        print(
            f"{way:12}{r['blocked_s'] * 1e3:8.2f}ms{r['blocked_s'] / plain['blocked_s']:9.2f}"
            f"{r['first_s'] * 1e3:8.2f}ms{r['last_s'] * 1e3:8.2f}ms{r['whole_s']:8.2f}s"
            f"{r['whole_s'] / plain['whole_s']:9.2f}{r['memory_mb']:8.0f}MB{r['statements']:12.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
