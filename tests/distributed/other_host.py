"""Run `python -m lamincli`; a rank other than zero as on a host of its own, in its own folder.

It has an empty home, and so no LaminDB instance and no credentials, and says in the end what it
has imported.
"""

import atexit
import os
import runpy
import sys
from pathlib import Path

rank = os.environ["RANK"]
if rank != "0":
    here = Path(f"host-of-rank-{rank}").absolute()
    (here / "home").mkdir(parents=True, exist_ok=True)
    os.environ["HOME"] = str(here / "home")
    os.chdir(here)
atexit.register(lambda: print(f"RANK {rank} HAS LAMINDB {'lamindb' in sys.modules}", flush=True))
runpy.run_module("lamincli", run_name="__main__", alter_sys=True)
