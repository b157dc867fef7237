"""Every guide does what it says: its commands are run, in order, in a folder of their own."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GUIDES = [  # those of clusters have `sh` in the place of `bash`; see tests/distributed
    path
    for path in sorted((ROOT / "docs" / "guides").glob("*.md"))
    if "```bash" in path.read_text()
]


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_commands_of_the_guide(guide, project):
    shutil.copytree(ROOT / "configs", project / "configs")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    blocks = re.findall(r"^```bash\n(.*?)^```", guide.read_text(), re.MULTILINE | re.DOTALL)
    for block in blocks:
        done = subprocess.run(
            ["bash", "-euc", block], cwd=project, env=environment, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
