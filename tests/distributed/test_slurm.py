"""A real SLURM: one run a job, however often it is started again."""

import re
import shlex
import sys
from pathlib import Path

import pytest
from cluster import Slurm, slurm_cluster

FIT = [sys.executable, "-u", "-m", "lamincli", "fit", "--model=slow.Slow",
       "--data=tests_models.TinyData", "--trainer.max_epochs=1", "--trainer.accelerator=cpu",
       "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
       "--trainer.callbacks=slow.Spy"]  # fmt: skip
LONG, SHORT = "--data.size=400", "--data.size=16"
TWO_HOSTS = ["--nodes=2", "--ntasks=2", "--ntasks-per-node=1"]
ON_TWO_HOSTS = ["--trainer.num_nodes=2", "--trainer.devices=1", "--trainer.strategy=ddp"]

SLOW = """
import os, sys, time
from lightning.pytorch.callbacks import Callback
from tests_models import TinyModel

class Slow(TinyModel):
    def training_step(self, batch, batch_idx):
        if batch_idx == 2:
            print("THIRD BATCH", flush=True)
        if "SLURM_RESTART_COUNT" not in os.environ:
            time.sleep(0.3)
        return super().training_step(batch, batch_idx)

class Spy(Callback):
    def on_train_start(self, trainer, pl_module):
        print(f"RANK {trainer.global_rank} of {trainer.world_size} at {trainer.global_step}",
              "lamindb" in sys.modules, flush=True)
"""


@pytest.fixture(scope="module")
def cluster():
    with slurm_cluster() as started:
        yield started


@pytest.fixture
def slurm(cluster: Slurm, project: Path) -> Slurm:
    (project / "slow.py").write_text(SLOW)
    return cluster


def srun(*words: str) -> str:
    return shlex.join(["srun", *FIT, *words])


def output(job: str) -> str:
    return "".join(file.read_text() for file in sorted(Path().glob(f"job-{job}_*.out")))


def test_srun_is_one_run(slurm, record):
    done = slurm.run("srun", *TWO_HOSTS, *FIT, *ON_TWO_HOSTS, SHORT)
    assert done.returncode == 0, done.stderr
    (run,) = record()
    assert run.status == "completed"
    ranks = sorted(line for line in done.stdout.splitlines() if line.startswith("RANK"))
    assert ranks == ["RANK 0 of 2 at 0 True", "RANK 1 of 2 at 0 False"]
    assert len([key for key in run.outputs if key.endswith(".ckpt")]) == 1


def test_a_batch_job_is_in_the_record(slurm, record):
    job = slurm.submit(srun(SHORT), "--ntasks=1", "--job-name=Restarts=9 x")
    assert slurm.wait_for(job) == "COMPLETED", output(job)
    (run,) = record()
    assert run.status == "completed"
    facts = run.extra["lamin_train"]["slurm"]
    assert re.fullmatch(r"h\d", facts.pop("node_list"))
    assert facts == {
        "job_id": int(job), "partition": "low", "num_nodes": 1, "num_tasks": 1, "restart_count": 0,
    }  # fmt: skip


@pytest.mark.parametrize("hosts", [1, 2])
def test_requeue_signal_saves_and_the_same_run_goes_on(slurm, record, project, hosts):
    options, words = (TWO_HOSTS, ON_TWO_HOSTS) if hosts == 2 else (["--ntasks=1"], [])
    job = slurm.submit(f"{srun(LONG, *words)}; echo NEXT COMMAND", *options)
    slurm.wait_for_output(job, "THIRD BATCH")
    slurm.run("scancel", "--signal=USR1", job)
    assert slurm.wait_for(job, "PENDING", "COMPLETED", "FAILED") == "PENDING", output(job)
    (run,) = record()
    attempts = run.extra["lamin_train"]["attempts"]
    assert (run.status, run.finished) == ("scheduled", False), output(job)
    assert [attempt["status"] for attempt in attempts] == ["requeued"]
    assert len([key for key in run.outputs if key.endswith(".ckpt")]) == 1
    assert "NEXT COMMAND" not in output(job)
    slurm.start_now(job)
    assert slurm.wait_for(job) == "COMPLETED", output(job)
    (again,) = record()
    assert (again.uid, again.status) == (run.uid, "completed"), output(job)
    attempts = again.extra["lamin_train"]["attempts"]
    assert [attempt["status"] for attempt in attempts] == ["requeued", "completed"]
    assert attempts[1]["checkpoint"]["step"] > 0
    assert again.extra["lamin_train"]["slurm"]["restart_count"] == 1
    assert re.search(r"RANK 0 of \d at [1-9]", output(job)), "it goes on where it stopped"
    assert not list(project.rglob("hpc_ckpt_*")), "Lightning's own requeue stays out of it"
    assert "Restarts=1 " in slurm.run("scontrol", "--oneliner", "show", "job", job).stdout
