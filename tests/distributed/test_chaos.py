"""Two hosts, and everything dies at random: one true record all the same."""

import random
import subprocess
import sys
from pathlib import Path

from cluster import PROGRAMS, skip_without
from servers import postgres_server


def test_chaos_ends_with_one_true_run(tmp_path):
    """See `chaos.py`, which takes a seed to repeat, and more attempts."""
    skip_without(PROGRAMS)
    with postgres_server():  # or skip
        pass
    seed = random.randrange(10_000)
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "chaos.py"), str(tmp_path), str(seed), "1"],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    logs = [log.read_text()[-3000:] for log in sorted(tmp_path.glob("project/log*"))]
    assert done.returncode == 0, "\n".join([done.stdout, done.stderr[-3000:], *logs])
