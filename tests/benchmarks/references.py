"""What a reference costs: looking it up with a warm cache, and how often a checkpoint is read.

    python tests/benchmarks/references.py [--repeats N]

The second figure is the bytes that a process reads for ``validate --ckpt_path`` with a checkpoint
of 100 MB, by stock Lightning with a file and by ours with a reference, less those that the same
process reads without the option. Linux only.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MODEL = """
import torch, lightning.pytorch as pl
from torch.utils.data import DataLoader, TensorDataset
class Big(pl.LightningModule):
    def __init__(self, width: int = 1):
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(4, width)
        self.register_buffer("ballast", torch.randn(25_000_000))
    def training_step(self, batch, batch_idx): return self.layer(batch[0]).pow(2).mean()
    def validation_step(self, batch, batch_idx): self.log("v", self.layer(batch[0]).mean())
    def configure_optimizers(self): return torch.optim.SGD(self.parameters(), lr=0.1)
    def train_dataloader(self): return DataLoader(TensorDataset(torch.randn(4, 4)), batch_size=4)
    val_dataloader = train_dataloader
"""
MAIN = """
import sys
from model import Big
from {module} import {cli}
{cli}(Big, **{arguments})
print("READ", next(l.split()[1] for l in open("/proc/self/io") if l.startswith("rchar")))
"""
LOOK_UP = """
import json, sys, time
from lamincli.instance import connect
connect("./lamindb")
from django.db import connection
from django.test.utils import CaptureQueriesContext
from lamincli.references import References
import lamin_cli._uri
times, queries = [], []
for _ in range(int(sys.argv[2])):
    with CaptureQueriesContext(connection) as captured:
        start = time.perf_counter()
        References().local_path(sys.argv[1])
        times.append(time.perf_counter() - start)
    queries.append(len(captured))
print("RESULT", json.dumps([times, queries]))
"""
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
         "--trainer.accelerator=cpu", "--trainer.max_epochs=1"]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lamin-train-benchmark-") as folder:
        os.chdir(folder)
        os.environ["HOME"] = folder
        Path("model.py").write_text(MODEL)
        stock = {"module": "lightning.pytorch.cli", "cli": "LightningCLI",
                 "arguments": {"save_config_callback": None}}  # fmt: skip
        ours = {"module": "lamincli", "cli": "LaminLightningCLI", "arguments": {}}
        for name, values in {"stock": stock, "ours": ours}.items():
            Path(f"{name}.py").write_text(MAIN.format(**values))
        run("ours.py", "fit", *QUIET)
        (checkpoint,) = Path("lightning_logs").rglob("*.ckpt")
        for reference in ("lamin:run/latest/best", "lamin:run/latest/config"):
            done = subprocess.run(
                [sys.executable, "-c", LOOK_UP, reference, str(options.repeats)],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            times, queries = json.loads(done.stdout.split("RESULT")[1])
            print(f"{reference}: {statistics.median(times) * 1e3:.1f} ms, first "
                  f"{times[0] * 1e3:.1f} ms, {max(queries)} queries")  # fmt: skip
        size = checkpoint.stat().st_size
        for name, path in {"stock": str(checkpoint), "ours": "lamin:run/latest/best"}.items():
            without = run(f"{name}.py", "validate", *QUIET)
            read = run(f"{name}.py", "validate", f"--ckpt_path={path}", *QUIET)
            print(f"{name}: reads {(read - without) / size:.2f} times the checkpoint")


def run(script: str, *words: str) -> int:
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, script, *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    print(f"  {script} {words[0]}: {time.perf_counter() - start:.1f} s", file=sys.stderr)
    return int(done.stdout.split("READ")[1].split()[0])


if __name__ == "__main__":
    main()
