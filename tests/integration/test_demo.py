"""The demo and the config files, as the README shows them."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lamincli import LaminLightningCLI

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
QUIET = "--trainer.enable_progress_bar=false"


def run_line(line, project):
    """Run a line of the closing panel as if it were pasted into a shell."""
    words = shlex.split(line)
    program = {"lamin-train": [sys.executable, "-m", "lamincli"], "python": [sys.executable]}
    return subprocess.run(
        [*program[words[0]], *words[1:]], cwd=project, capture_output=True, text=True, check=False
    )


def test_digits_end_to_end(shell, record, project):
    done = shell("fit", "--config", str(ROOT / "configs/digits.yaml"), QUIET)
    assert done.returncode == 0, done.stderr
    (run,) = record()
    assert run.inputs == ["demo/digits.csv.gz", f"logs/digits/{run.uid}/config.yaml"]
    assert run.extra["metrics"]["val/accuracy"] > 0.95
    panel = done.stdout
    assert f"run {run.uid} completed" in panel
    assert re.search(
        rf"best checkpoint key  logs/digits/{run.uid}/checkpoints/\S+\.ckpt  val/acc", panel
    )
    assert f"config key           logs/digits/{run.uid}/config.yaml" in panel
    commands = dict(re.findall(r"^  (test it|load it)\n    (.+)$", panel, re.MULTILINE))

    tested = run_line(commands["test it"].replace("python -m lamincli", "lamin-train"), project)
    assert tested.returncode == 0, tested.stderr
    accuracy = float(re.search(r"test/accuracy\s+(0\.\d+)", tested.stdout)[1])
    assert accuracy > 0.95
    assert [key for key in record()[-1].inputs if key.endswith(".ckpt")], "what was tested"
    loaded = run_line(commands["load it"], project)
    assert loaded.returncode == 0, loaded.stderr
    assert "DigitsClassifier(" in loaded.stdout

    again = shell("fit", "--config", str(ROOT / "configs/digits.yaml"), QUIET,
                  "--trainer.max_epochs=1")  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert record()[-1].inputs[0] == "demo/digits.csv.gz", "registered once, used again"


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.name)
def test_every_config_file_parses(config, ln, capsys):
    with pytest.raises(SystemExit) as stop:
        LaminLightningCLI(args=["fit", "--config", str(config), "--print_config"])
    assert stop.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)["model"]["class_path"]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.name)
def test_every_config_file_trains(config, ln, monkeypatch):
    for name, dtype in (("organism", str), ("dataset_version", str), ("val/loss", float)):
        ln.Feature(name=name, dtype=dtype).save()
    cli = LaminLightningCLI(
        args=["fit", "--config", str(config), QUIET, "--trainer.max_epochs=1",
              "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1"]
    )  # fmt: skip
    if cli.lamin_run is not None:
        assert cli.lamin_run.status == "completed"
