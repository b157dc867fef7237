"""A process that is killed at any instruction loses nothing that was acknowledged."""

import subprocess
import sys
from pathlib import Path

import pytest

PARTS = 4
STRIDE = 6 * PARTS


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="the runner forks")
@pytest.mark.parametrize("first", range(1, STRIDE, STRIDE // PARTS))
@pytest.mark.parametrize("scenario", ["training", "sync", "twice"])
def test_killed_at_the_nth_call(scenario, first, tmp_path):
    """See `runner.py`; every sixth N is looked at, in parts that can run side by side.

    For every N: ``python tests/crash/runner.py SCENARIO FOLDER 1 1``.
    """
    runner = Path(__file__).parent / "runner.py"
    done = subprocess.run(
        [sys.executable, str(runner), scenario, str(tmp_path), str(first), str(STRIDE)],
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert f"{scenario}: killed at {first}" in done.stdout
