"""A process that is killed at any instruction loses nothing that was acknowledged."""

import subprocess
import sys
from pathlib import Path

import pytest

PARTS = 4


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="the runner forks")
@pytest.mark.parametrize("first", range(1, PARTS + 1))
@pytest.mark.parametrize("scenario", ["training", "sync", "twice"])
def test_killed_at_the_nth_call(scenario, first, tmp_path):
    """See `runner.py`; every N is looked at, in four parts that can run side by side."""
    runner = Path(__file__).parent / "runner.py"
    done = subprocess.run(
        [sys.executable, str(runner), scenario, str(tmp_path), str(first), str(PARTS)],
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert f"{scenario}: killed at {first}" in done.stdout
