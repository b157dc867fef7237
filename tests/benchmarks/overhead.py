"""What a tracked run costs beside stock Lightning, in one go.

    python tests/benchmarks/overhead.py

Prints medians of ours and of the stock command line, and their difference: a tiny fit in one
process, 2,000 steps each of which logs a metric, a tiny fit as a whole process, and ``fit --help``.
"""

import contextlib
import io
import logging
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

HOME = Path(tempfile.mkdtemp(prefix="lamin-train-benchmark-"))
os.environ["HOME"] = str(HOME)
os.chdir(HOME)
REPEATS = int(os.environ.get("REPEATS", "7"))
FIT = ["fit", "--trainer.max_epochs=1", "--trainer.logger=false", "--trainer.accelerator=cpu",
       "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]  # fmt: skip
# After the other one: the later word wins.
LOGGED = ["--trainer.max_epochs=-1", "--trainer.max_steps=2000", "--trainer.log_every_n_steps=1",
          "--trainer.limit_val_batches=0", "--trainer.enable_checkpointing=false"]  # fmt: skip
DEMO = "lightning.pytorch.demos.boring_classes"
CLASSES = [f"--model={DEMO}.BoringModel", f"--data={DEMO}.BoringDataModule"]
COMMANDS = {
    "stock": ["-c", "from lightning.pytorch.cli import LightningCLI as C; "
                    "C(save_config_callback=None)"],
    "ours": ["-m", "lamincli"],
}  # fmt: skip


def median_s(work: Callable[[], None]) -> float:
    times = []
    for _ in range(REPEATS):
        shutil.rmtree("checkpoints", ignore_errors=True)
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def in_process(*words: str, logs: bool = False) -> dict[str, float]:
    from lightning.pytorch.cli import LightningCLI
    from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel

    from lamincli import LaminLightningCLI

    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    sys.argv = ["train.py"]

    class Model(BoringModel):
        def training_step(self, batch, batch_idx):
            output = super().training_step(batch, batch_idx)
            if logs:
                self.log("loss", output["loss"])
            return output

    def stock() -> None:
        LightningCLI(Model, BoringDataModule, args=[*FIT, *words], save_config_callback=None)

    def ours() -> None:
        LaminLightningCLI(Model, BoringDataModule, args=[*FIT, *words])

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        for work in (stock, ours):  # imports, and the first run of the instance
            work()
        return {"stock": median_s(stock), "ours": median_s(ours)}


def as_process(*words: str) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for repeat in range(REPEATS + 1):
        for name, command in COMMANDS.items():  # in turns: both see the same machine
            shutil.rmtree("checkpoints", ignore_errors=True)
            start = time.perf_counter()
            subprocess.run([sys.executable, *command, *words], check=True, capture_output=True)
            if repeat > 0:  # the first one makes the instance and compiles the modules
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    rows = {
        "tiny fit, in one process": in_process(),
        "2,000 steps, each logged": in_process(*LOGGED, logs=True),
        "tiny fit, whole process": as_process(*FIT, *CLASSES),
        "fit --help": as_process("fit", "--help"),
    }
    print(f"| median of {REPEATS} | stock | ours | ours − stock |\n|---|---|---|---|")
    for label, row in rows.items():
        stock, ours = row["stock"], row["ours"]
        print(f"| {label} | {stock:.2f} s | {ours:.2f} s | {ours - stock:+.2f} s |")
    shutil.rmtree(HOME)


if __name__ == "__main__":
    main()
