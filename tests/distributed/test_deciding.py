"""What rank zero decides holds on every rank: a run, a mistake, a reference, a checkpoint."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
from servers import free_port

FIT = ["fit", "--model=tests_models.TinyModel", "--data=tests_models.TinyData",
       "--data.size=32", "--trainer.max_epochs=1", "--trainer.enable_progress_bar=false",
       "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu",
       "--trainer.devices=2", "--trainer.strategy=ddp"]  # fmt: skip
CLI = ["-m", "lamincli"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *CLI]
OTHER_HOST = [str(Path(__file__).parent / "other_host.py")]


class Rank:
    """One rank, started by hand, as srun starts them: rank zero hosts the store."""

    def __init__(self, number, port, words, program, folder, ranks, **environment):
        self.number, self.output, self.ranks = number, folder / f"rank-{number}.txt", ranks
        with open(self.output, "w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-u", *program, *words],
                cwd=folder, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                env={**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
                     "RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": "2",
                     "GROUP_RANK": "0", "LOCAL_WORLD_SIZE": "2",
                     "TORCHELASTIC_RUN_ID": "none", **environment},
            )  # fmt: skip

    def ends(self, timeout_s=100):
        try:
            return self.process.wait(timeout=timeout_s), self.output.read_text()
        except subprocess.TimeoutExpired:
            for rank in self.ranks:
                rank.process.send_signal(signal.SIGABRT)  # it says where all its threads are
                rank.process.wait(timeout=10)
            outputs = [f"rank {rank.number}:\n{rank.output.read_text()}" for rank in self.ranks]
            pytest.fail(f"rank {self.number} hangs\n" + "\n".join(outputs))


@pytest.fixture
def start(project):
    """Start a rank; what is still there in the end is killed."""
    port, ranks = free_port(), []

    def start(number, *words, program=CLI, **environment):
        ranks.append(Rank(number, port, words, program, project, ranks, **environment))
        return ranks[-1]

    yield start
    for rank in ranks:
        rank.process.kill()
        rank.process.wait()


@pytest.fixture
def both(start):
    """Run both ranks; return exit codes and outputs."""

    def run(*words, **options):
        ranks = [start(number, *words, **options) for number in (0, 1)]
        ends = [rank.ends() for rank in ranks]
        return [code for code, _ in ends], [output for _, output in ends]

    return run


def test_rank_on_a_host_that_knows_nothing_of_lamindb(both, record):
    codes, outputs = both(*FIT, program=OTHER_HOST)
    assert codes == [0, 0], outputs
    assert "RANK 0 HAS LAMINDB True" in outputs[0]
    assert "RANK 1 HAS LAMINDB False" in outputs[1]
    (run,) = record()
    assert run.status == "completed"
    names = [key.rpartition("/")[2] for key in run.outputs]
    assert names == ["epoch=0-step=4.ckpt", "hparams.yaml", "history.csv"]


@pytest.mark.parametrize("program", [CLI, TORCHRUN], ids=["ddp", "torchrun"])
def test_other_ranks_do_not_import_lamindb(shell, project, record, program):
    (project / "spy.py").write_text(
        "import sys\n"
        "from lightning.pytorch.callbacks import Callback\n"
        "class Spy(Callback):\n"
        "    def on_train_end(self, trainer, pl_module):\n"
        "        name = f'rank{trainer.global_rank}'\n"
        "        open(name, 'w').write(str('lamindb' in sys.modules))\n"
    )
    done = shell(*FIT, "--trainer.callbacks=spy.Spy", program=[sys.executable, *program])
    assert done.returncode == 0, done.stderr
    assert [(project / f"rank{i}").read_text() for i in (0, 1)] == ["True", "False"]
    assert len(record()) == 1


# -- rank zero cannot begin ------------------------------------------------------------------------

MISSING = "--lamin.features.run.no_such_feature=1"


@pytest.mark.parametrize("launcher", ["by hand", "torchrun"])
@pytest.mark.parametrize(
    ("mistake", "why"),
    [(MISSING, "no_such_feature not in"), ("--trainer.devices=two", "should be an int > 0")],
    ids=["before the run", "after it"],
)
def test_mistake_ends_every_rank_with_one_message(both, shell, record, launcher, mistake, why):
    assert shell("fit", "--trainer.fast_dev_run=true", *FIT[1:3]).returncode == 0
    if launcher == "by hand":
        codes, outputs = both(*FIT, mistake)
        assert codes == [2, 2], outputs
        text = "".join(outputs)
    else:
        done = shell(*FIT, mistake, program=[sys.executable, *TORCHRUN])
        text = done.stdout + done.stderr
        assert set(re.findall(r"exitcode *: (\d+)", text)) == {"2"}
    assert text.count(why) == 1, text
    assert "Traceback" not in text.partition("ChildFailedError")[0].rpartition("W1")[0]
    assert record() == []


def test_rank_that_starts_late_hears_of_the_mistake(start):
    zero = start(0, *FIT, MISSING)
    while "no_such_feature not in" not in zero.output.read_text():
        assert zero.process.poll() is None
        time.sleep(0.05)
    one = start(1, *FIT, MISSING)
    assert one.ends()[0] == 2
    assert zero.ends()[0] == 2


def test_taken_port_ends_what_lightning_has_started(shell, record):
    """A listener that never answers, as torch's client would wait for it for half an hour."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        done = shell(*FIT, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    assert done.returncode == 2, done.stderr
    assert f"cannot listen at 127.0.0.1:{port}" in done.stderr
    assert "Traceback" not in done.stderr
    assert not [p for p in psutil.process_iter() if f"MASTER_PORT={port}" in environment_of(p)]
    assert [run.status for run in record()] == ["errored"]


def environment_of(process):
    try:
        return [f"{name}={value}" for name, value in process.environ().items()]
    except psutil.Error:
        return []


@pytest.mark.parametrize("port", ["taken", "http", "99999"])
def test_address_that_cannot_be_used(start, port, project):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        why = "cannot listen at 127.0.0.1" if port == "taken" else "no port"
        port = str(other.getsockname()[1]) if port == "taken" else port
        code, output = start(0, *FIT, MASTER_PORT=port).ends()
    assert code == 2, output
    assert output.count(why) == 1
    assert "Traceback" not in output
    assert not (project / "lamindb").exists()


def test_rank_zero_does_not_wait_for_ever_for_a_rank_that_was_killed(monkeypatch):
    from lamincli import ranks
    from lamincli.errors import LaminTrainError

    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    for name, value in {**address, "RANK": "0", "WORLD_SIZE": "3"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ranks, "default_pg_timeout", timedelta(seconds=0.3))
    with pytest.raises(LaminTrainError, match="Only 0 of 2 other ranks are ready"):
        ranks.Ranks().wait_for_all(3)


def test_rank_zero_that_is_killed_before_it_begins_leaves_no_rank_hanging(start):
    (zero, one) = (start(0, *FIT, program=["-c", WAITS]), start(1, *FIT))
    while "WAITING" not in zero.output.read_text():
        time.sleep(0.05)
    psutil.Process(one.process.pid)
    while not any(
        connection.status == "ESTABLISHED"
        for connection in psutil.Process(one.process.pid).net_connections()
    ):
        time.sleep(0.05)
    zero.process.send_signal(signal.SIGKILL)
    code, output = one.ends()
    assert code == 1
    assert "has lost rank zero" in output
    assert "Traceback" not in output


WAITS = """
import threading
from lamincli.ranks import Ranks
def wait():
    print("WAITING", flush=True)
    threading.Event().wait()
Ranks().agree(wait)
"""


def test_mistake_on_one_rank_alone_ends_both(start, project, record):
    """A file that is not on the host of rank 1."""
    (project / "weights.ckpt").write_bytes(b"")
    (project / "elsewhere").mkdir()
    words = [*FIT, "--ckpt_path=weights.ckpt", "--model=other.Model"]
    (project / "other.py").write_text("from tests_models import TinyModel as Model\n")
    script = "import os, sys; os.environ['RANK'] == '1' and os.chdir('elsewhere'); " \
             "import runpy; runpy.run_module('lamincli', run_name='__main__', alter_sys=True)"  # fmt: skip
    words = [*FIT, "--lamin.predictions=false", "--data=tests_models.FileData",
             f"--data.artifact={project.name}.csv"]  # fmt: skip
    words = [word for word in words if not word.startswith("--data.size")]
    (project / f"{project.name}.csv").write_text("1\n")
    zero = start(0, *words, program=["-c", script])
    one = start(1, *words, program=["-c", script])
    assert one.ends()[0] == 2
    code, output = zero.ends()
    assert code == 2, output
    assert "rank 1 on" in output
    assert "Traceback" not in output


# -- a rank that fails -----------------------------------------------------------------------------


@pytest.mark.parametrize("launcher", ["by hand", "ddp", "torchrun"])
def test_traceback_of_another_rank_is_in_the_log(both, shell, record, launcher):
    words = [*FIT, "--model.at=raise@1"]
    if launcher == "by hand":
        codes, outputs = both(*words)
        assert codes == [1, 1], outputs
    else:
        program = TORCHRUN if launcher == "torchrun" else CLI
        assert shell(*words, program=[sys.executable, *program]).returncode == 1
    (run,) = record()
    assert run.status == "errored"
    assert "rank 1 on" in run.log
    assert "ValueError: boom in user code" in run.log


@pytest.mark.parametrize("launcher", ["by hand", "ddp", "torchrun"])
def test_rank_that_is_killed_leaves_a_closed_run(both, shell, record, launcher):
    words = [*FIT, "--model.at=kill@1"]
    if launcher == "by hand":
        assert both(*words)[0] == [1, -signal.SIGKILL]
    else:
        program = TORCHRUN if launcher == "torchrun" else CLI
        assert shell(*words, program=[sys.executable, *program]).returncode == 1
    (run,) = record()
    assert run.status == "errored"


IMPATIENT = """
import runpy
import lamincli.cli
lamincli.cli._HANGS_AFTER_S = 2
runpy.run_module("lamincli", run_name="__main__", alter_sys=True)
"""


def test_run_is_closed_where_rank_zero_hangs_in_a_collective(project, both, record):
    (project / "models.py").write_text(
        "from tests_models import TinyModel\n"
        "class Model(TinyModel):\n"
        "    def _misbehave(self, at):\n"
        "        super()._misbehave('raise@1')\n"
        "        super()._misbehave('stuck@0')\n"
    )
    words = [word.replace("tests_models.TinyModel", "models.Model") for word in FIT]
    codes, outputs = both(*words, program=["-c", IMPATIENT])
    assert codes == [1, 1], outputs
    (run,) = record()
    assert run.status == "errored"
    assert "boom in user code" in run.log


# -- references and checkpoints --------------------------------------------------------------------


def test_references_reach_a_host_of_its_own(both, shell, record, project):
    """What rank zero has looked up is taken from a shared folder, without a database."""
    single = [word for word in FIT if not word.startswith(("--trainer.devices", "--trainer.strat"))]
    assert shell(*single).returncode == 0
    codes, outputs = both("fit", "--config=lamin:run/latest/config", "--trainer.devices=2",
                          "--trainer.strategy=ddp", "--ckpt_path=lamin:run/latest/last",
                          "--trainer.max_epochs=2", program=OTHER_HOST)  # fmt: skip
    assert codes == [0, 0], outputs
    assert "RANK 1 HAS LAMINDB False" in outputs[1]
    _, run = record()
    assert run.status == "completed"
    assert any(key.endswith("epoch=0-step=8.ckpt") for key in run.inputs)


def test_all_ranks_go_on_from_the_same_checkpoint(both, shell, record):
    single = [word for word in FIT if not word.startswith(("--trainer.devices", "--trainer.strat"))]
    done = shell(*single, "--trainer.max_epochs=3", "--model.at=raise", "--data.size=8",
                 "--trainer.limit_train_batches=3", "--checkpoint.every_n_train_steps=1",
                 "--data.batch_size=2")  # fmt: skip
    assert done.returncode == 1
    codes, outputs = both("fit", "--lamin.resume=latest", "--model.at=", "--trainer.devices=2",
                          "--trainer.strategy=ddp", program=OTHER_HOST)  # fmt: skip
    assert codes == [0, 0], outputs
    assert "RANK 1 HAS LAMINDB False" in outputs[1]
    (run,) = record()
    assert run.status == "completed"
    assert len(run.extra["lamin_train"]["attempts"]) == 2


@pytest.mark.parametrize("program", [CLI, TORCHRUN], ids=["ddp", "torchrun"])
def test_stage_after_the_fit_is_one_run_too(shell, record, program):
    done = shell(*FIT, "--lamin.then=test", program=[sys.executable, *program])
    assert done.returncode == 0, done.stderr
    fit, test = record()
    assert (fit.status, test.status) == ("completed", "completed")
    assert test.parent == fit.uid


def test_config_from_a_pipe_reaches_the_ranks(project, record):
    """One that is longer than a variable of the environment may be on Linux, too."""
    comment = f"# {'x' * 78}\n" * 2_500
    (project / "config.yaml").write_text(f"{comment}model: tests_models.TinyModel\n")
    words = " ".join([sys.executable, *CLI, "fit", "--config", "<(cat config.yaml)", *FIT[2:]])
    done = subprocess.run(["bash", "-c", words], cwd=project, capture_output=True, text=True,
                          check=False, timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stderr
    (run,) = record()
    assert run.status == "completed"
