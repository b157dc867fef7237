"""In a real terminal the progress bars stay live and coloured, and the log stays readable."""

import os
import re
import sys

import pexpect
import pytest

FIT = ["-m", "lamincli", "fit", "--model=tests_models.TinyModel", "--data=tests_models.TinyData",
       "--data.size=1200", "--trainer.max_epochs=3", "--trainer.accelerator=cpu"]  # fmt: skip


def run_in_terminal(project, *words):
    """Return everything that the terminal received, with its control sequences."""
    environment = {k: v for k, v in os.environ.items() if k != "COLUMNS"} | {
        "TERM": "xterm-256color"
    }
    child = pexpect.spawn(
        sys.executable, [*FIT, *words], cwd=str(project), dimensions=(40, 100), timeout=120,
        env=environment,
    )  # fmt: skip
    output = child.read().decode()
    child.close()
    assert child.exitstatus == 0, output
    return output


@pytest.mark.parametrize("bar", ["RichProgressBar", "TQDMProgressBar"])
def test_progress_is_live_and_the_log_readable(project, record, bar):
    output = run_in_terminal(project, f"--trainer.callbacks={bar}",
                             f"--trainer.callbacks.refresh_rate={10}")  # fmt: skip
    frames = re.findall(r"Epoch 1\D", output)
    assert len(frames) > 3, "the bar was drawn again and again while it moved"
    assert re.search(r"\x1b\[\d|\r", output)
    if bar == "RichProgressBar":
        assert re.search(r"\x1b\[38?;?\d*m", output), "in colour"
    (run,) = record()
    assert "\x1b" not in run.log
    assert "\r" not in run.log
    assert len(re.findall(r"Epoch 1\D", run.log)) <= 1
    assert "Epoch 2" in run.log
    assert f"run {run.uid} completed" in run.log
    assert len(run.log) < 20_000


def test_panel_fits_the_terminal_and_commands_stay_whole(project):
    output = run_in_terminal(project, "--trainer.enable_progress_bar=false")
    text = re.sub(r"\x1b\[[0-9;]*m", "", output)
    rule = next(line for line in text.splitlines() if line.startswith("───"))
    assert len(rule.strip()) == 100
    command = next(line for line in text.splitlines() if line.strip().startswith("python -c"))
    assert command.rstrip().endswith("'"), "not broken over two lines"
