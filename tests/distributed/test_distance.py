"""Database and bucket far away, behind lines that break: the training of no rank notices."""

import os
import re
import sys
from pathlib import Path

import pytest
from servers import distant_instance, postgres_binary
from test_ranks import FIT

TRAIN = """
import os
import socket
import sys
from pathlib import Path
from types import ModuleType

from lightning.pytorch.callbacks import Callback

from lamincli import LaminLightningCLI

TALK = ("_socket", "socket", "_ssl", "ssl", "psycopg2", "sqlite3", "_sqlite3")


def settle_in():
    '''Let the bucket be the default storage, however often the line breaks.'''
    from lamincli.instance import connect
    connect(os.environ["BENCHMARK_INSTANCE"])
    import lamindb as ln
    from django.db import Error, connection
    while True:
        try:
            ln.Storage(root=os.environ["BENCHMARK_STORAGE"]).save()
            ln.settings.storage = os.environ["BENCHMARK_STORAGE"]
            return
        except Error:
            connection.close()


class Watch(Callback):
    '''Write down what the training thread says to a database or to the network.'''

    def on_train_start(self, trainer, pl_module):
        self.seen = []
        sys.setprofile(self.look)
        socket.socket().close()
        assert self.seen
        self.seen = []

    def look(self, frame, event, arg):
        place = f"{frame.f_code.co_filename}:{frame.f_lineno}"
        if event == "c_call":
            owner = getattr(arg, "__self__", None)
            name = owner.__name__ if isinstance(owner, ModuleType) else type(owner).__module__
            if name.split(".")[0] in TALK:
                self.seen.append(f"{arg} at {place}")
        elif event == "call" and frame.f_code.co_filename.endswith("fsspec/asyn.py"):
            self.seen.append(place)

    def on_train_end(self, trainer, pl_module):
        sys.setprofile(None)
        Path(f"rank{trainer.global_rank}.txt").write_text("\\n".join(self.seen))


if __name__ == "__main__":
    if os.environ["RANK"] == "0":
        settle_in()
    LaminLightningCLI(trainer_defaults={"callbacks": [Watch()]})
"""


@pytest.fixture
def distant(project, monkeypatch):
    if postgres_binary("initdb") is None:
        pytest.skip("PostgreSQL's server is not installed (Debian: apt-get install postgresql)")
    with distant_instance(latency_s=0.05, drop_after_s=10) as (environment, server):
        os.chdir(project)
        environment["LAMIN_CURRENT_INSTANCE"] = environment["BENCHMARK_INSTANCE"]
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        settings = Path(
            environment["LAMIN_SETTINGS_DIR"], ".lamin/instance--anonymous--distant.env"
        )

        def come_near():
            text = re.sub(r"(?<=@127.0.0.1:)\d+", str(server.port), settings.read_text())
            settings.write_text(text)

        yield come_near


def test_training_thread_of_no_rank_asks_database_or_network(distant, project, shell, record):
    Path("train.py").write_text(TRAIN)
    done = shell(
        *FIT, "--data.size=64", "--trainer.strategy=ddp",
        "--checkpoint.every_n_train_steps=2", "--checkpoint.save_top_k=-1",
        program=[sys.executable, "-m", "torch.distributed.run", "--standalone",
                 "--nproc_per_node=2", "train.py"],
        timeout_s=400,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    assert [Path(f"rank{rank}.txt").read_text() for rank in (0, 1)] == ["", ""]
    for _ in range(20):  # the line breaks for sync, too
        if shell("sync", timeout_s=300).returncode == 0:
            break
    distant()
    (run,) = record()
    assert run.status == "completed"
    names = sorted(key.rpartition("/")[2] for key in run.outputs)
    assert names == [*(f"epoch=0-step={step}.ckpt" for step in (2, 4, 6, 8)), "history.csv",
                     "hparams.yaml"], done.stderr  # fmt: skip
