"""torchrun, restarted and over several hosts: one run all the same."""

import re
import shlex
import sys

import pytest
from cluster import hosts

TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
FIT = ["-m", "lamincli", "fit", "--data=tests_models.TinyData", "--data.size=400",
       "--trainer.max_epochs=1", "--trainer.enable_progress_bar=false",
       "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu",
       "--trainer.devices=2", "--trainer.strategy=ddp"]  # fmt: skip

FRAIL = """
import os, signal
from tests_models import TinyModel

class Frail(TinyModel):
    def training_step(self, batch, batch_idx):
        if batch_idx == 30 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            if os.environ["RANK"] == "1":
                if self.hparams["at"] == "frail kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise ValueError("boom in user code")
        return super().training_step(batch, batch_idx)

    def on_train_start(self):
        print(f"STEP {self.global_step} on rank {self.global_rank}", flush=True)
"""


@pytest.fixture
def frail(project):
    (project / "frail.py").write_text(FRAIL)
    return ["--model=frail.Frail", "--checkpoint.every_n_train_steps=10"]


@pytest.mark.parametrize("at", ["frail kill", "frail raise"])
@pytest.mark.parametrize(
    "rendezvous", [["--standalone"], ["--master-port={port}"]], ids=["standalone", "static"]
)
def test_a_restart_goes_on_with_the_run(shell, record, frail, rendezvous, at):
    from servers import free_port

    words = [word.format(port=free_port()) for word in rendezvous]
    program = [*TORCHRUN, *words, "--nproc-per-node=2", "--max-restarts=2"]
    done = shell(*FIT, *frail, f"--model.at={at}", program=program, timeout_s=90)
    assert done.returncode == 0, done.stderr
    (run,) = record()
    assert run.status == "completed", done.stderr
    attempts = run.extra["lamin_train"]["attempts"]
    assert [attempt["status"] for attempt in attempts[1:]] == ["completed"]
    assert attempts[1]["checkpoint"]["step"] >= 10
    assert "STEP 0 on rank 1" in done.stdout
    assert f"STEP {attempts[1]['checkpoint']['step']} on rank 1" in done.stdout


@pytest.fixture
def over_two_hosts():
    """Start the same command on two hosts at once; returns exit codes and outputs."""
    with hosts(2) as two:

        def run(*words):
            started = []
            for i, host in enumerate(two):
                program = [*TORCHRUN, "--nnodes=2", f"--node-rank={i}", "--nproc-per-node=2",
                           f"--master-addr={two[0].address}", "--master-port=29500"]  # fmt: skip
                command = shlex.join([*program, *FIT, "--trainer.num_nodes=2", *words])
                started.append(host.start("bash", "-c", f"exec {command} > host{i} 2>&1"))
            codes = [process.wait(timeout=300) for process in started]
            return codes, [open(f"host{i}").read() for i in (0, 1)]

        yield run


def test_processes_that_would_each_train_alone_are_a_mistake(shell, project, record):
    words = [word for word in FIT if not word.startswith(("--trainer.devices", "--trainer.strat"))]
    words += ["--model=tests_models.TinyModel"]
    done = shell(*words, program=[*TORCHRUN, "--standalone", "--nproc-per-node=2"])
    text = done.stdout + done.stderr
    assert text.count("torchrun has started 2 processes") == 1, text
    assert set(re.findall(r"exitcode *: (\d+)", text)) == {"2"}, text
    assert not list(project.rglob("*.ckpt"))
    assert record() == []


def test_two_hosts_are_one_run(over_two_hosts, project, record):
    codes, outputs = over_two_hosts("--model=tests_models.TinyModel")
    assert codes == [0, 0], outputs
    (run,) = record()
    assert run.status == "completed"
    names = [key.rpartition("/")[2] for key in run.outputs]
    assert names == ["epoch=0-step=25.ckpt", "hparams.yaml", "history.csv"]


def test_a_mistake_on_two_hosts_is_told_once(over_two_hosts, project):
    words = ["--model=tests_models.TinyModel", "--lamin.project=nowhere"]
    _, outputs = over_two_hosts(*words)
    text = "".join(outputs)
    assert text.count("no such project") == 1, text
    assert text.count("exitcode  : 2") >= 2, text
    assert "exitcode  : 1 " not in text, text  # 143 is a rank that torchrun ended
