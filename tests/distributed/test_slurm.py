"""A real SLURM: one run a job, however often it is started again."""

import re
import shlex
import sqlite3
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
    def setup(self, stage):
        if self.hparams["at"] == "setup" and "SLURM_RESTART_COUNT" not in os.environ:
            print("SETTING UP", flush=True)
            time.sleep(60)
        if self.hparams["at"] == stage == "test" and "SLURM_RESTART_COUNT" not in os.environ:
            print("TESTING", flush=True)
            time.sleep(60)

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


def test_tasks_without_tasks_per_node(slurm, record):
    """Lightning alone refuses, for it does not know how the tasks lie on the nodes."""
    done = slurm.run("srun", "--ntasks=2", "--nodes=1", *FIT, "--trainer.devices=2", SHORT)
    assert done.returncode == 0, done.stderr
    (run,) = record()
    assert run.status == "completed"


def test_two_tasks_without_srun_are_a_mistake(slurm, project):
    """Lightning alone waits for ever for the second one."""
    words = shlex.join([*FIT, "--trainer.devices=2", SHORT])
    job = slurm.submit(f"{words}; echo CODE $?", "--ntasks=2", "--ntasks-per-node=2")
    assert slurm.wait_for(job) == "COMPLETED"
    assert "CODE 2" in output(job)
    assert "srun lamin-train fit" in output(job)
    assert not (project / "lamindb").exists()


@pytest.mark.parametrize("how", ["preemption", "requeue", "time limit"])
def test_the_same_run_goes_on_after(slurm, record, how):
    words = [LONG, "--data.size=2000"] if how == "time limit" else [LONG]
    limit = ["--time=10", "--signal=USR1@60"] if how == "time limit" else []
    job = slurm.submit(srun(*words), "--ntasks=1", *limit)
    slurm.wait_for_output(job, "THIRD BATCH")
    other = None
    if how == "preemption":
        all_of_it = ["--partition=high", "--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=8"]
        other = slurm.submit("sleep 1", *all_of_it)
    elif how == "requeue":
        slurm.run("scontrol", "requeue", job)
    else:  # not from the start: SLURM may send the signal half a minute early, to an interpreter
        slurm.run("scontrol", "update", f"JobId={job}", "EndTime=now+90")
    assert slurm.wait_for(job, "PENDING", "COMPLETED", "FAILED") == "PENDING", output(job)
    (run,) = record()
    assert run.status == "scheduled", output(job)
    if how == "time limit":
        slurm.run("scontrol", "update", f"JobId={job}", "TimeLimit=10")
    if other is not None:
        slurm.wait_for(other)
    slurm.start_now(job)
    assert slurm.wait_for(job) == "COMPLETED", output(job)
    (again,) = record()
    assert (again.uid, again.status) == (run.uid, "completed"), output(job)
    assert again.extra["lamin_train"]["attempts"][1]["checkpoint"]["step"] > 0
    assert "Restarts=1 " in slurm.run("scontrol", "--oneliner", "show", "job", job).stdout


def test_requeued_before_it_saved_it_begins_again_as_the_same_run(slurm, record):
    job = slurm.submit(srun(LONG, "--model.at=setup"), "--ntasks=1")
    slurm.wait_for_output(job, "SETTING UP")
    slurm.run("scontrol", "requeue", job)
    slurm.wait_for(job, "PENDING")
    (run,) = record()
    assert (run.status, run.outputs) == ("scheduled", []), output(job)
    slurm.start_now(job)
    assert slurm.wait_for(job) == "COMPLETED", output(job)
    (again,) = record()
    assert (again.uid, again.status) == (run.uid, "completed")
    assert "goes on from its beginning" in output(job)


def test_job_that_is_requeued_after_its_fit_does_not_train_again(slurm, record):
    job = slurm.submit(srun(SHORT, "--model.at=test", "--lamin.then=test"), "--ntasks=1")
    slurm.wait_for_output(job, "TESTING")
    slurm.run("scontrol", "requeue", job)
    slurm.wait_for(job, "PENDING")
    slurm.start_now(job)
    assert slurm.wait_for(job) == "COMPLETED", output(job)
    fit, stopped, test = record()
    assert [run.extra["lamin_train"]["stage"] for run in (fit, stopped, test)] == [
        "fit", "test", "test",
    ], output(job)  # fmt: skip
    assert [run.status for run in (fit, stopped, test)] == ["completed", "aborted", "completed"]
    assert [one["status"] for one in fit.extra["lamin_train"]["attempts"]] == ["completed"]
    assert test.parent == fit.uid


def test_doctor_closes_what_slurm_will_not_start_again(slurm, record):
    """A job that is cancelled while it waits to go on, and an array that never begins whole."""
    waits = slurm.submit(srun(LONG), "--ntasks=1")
    array = slurm.submit(srun("--lamin.parent=array", SHORT), "--ntasks=1", "--array=1-2%1")
    slurm.run("scontrol", "hold", f"{array}_2")
    slurm.wait_for_output(waits, "THIRD BATCH")
    slurm.run("scontrol", "requeue", waits)
    slurm.wait_for(waits, "PENDING")
    slurm.wait_for(f"{array}_1")
    doctor = [*FIT[:4], "doctor"]
    statuses = {"scheduled": "aborted", "completed": "completed", "started": "aborted"}
    before = {run.uid: run.status for run in record()}
    done = slurm.run(*doctor)
    assert {run.uid: run.status for run in record()} == before, done.stdout + output(waits)
    assert set(before.values()) == set(statuses), output(waits)
    for job in (waits, array):
        slurm.run("scancel", job)
        slurm.wait_for_all(job)
    done = slurm.run(*doctor)
    assert "their SLURM job is gone" in done.stdout + done.stderr
    after = {run.uid: run.status for run in record()}
    assert after == {uid: statuses[status] for uid, status in before.items()}
    assert all(run.finished for run in record())


def test_offline_job_goes_on_although_all_of_it_was_published_meanwhile(slurm, shell, record):
    assert shell(*FIT[4:], SHORT, program=FIT[:4]).returncode == 0  # the instance
    job = slurm.submit(srun(LONG, "--lamin.offline=true"), "--ntasks=1")
    slurm.wait_for_output(job, "THIRD BATCH")
    slurm.run("scontrol", "requeue", job)
    slurm.wait_for(job, "PENDING")
    assert slurm.run(*FIT[:4], "sync").returncode == 0
    assert not list(Path().glob(".lamin_spool/*")), "nothing of the run is left on the nodes"
    assert record()[-1].status == "scheduled"
    slurm.start_now(job)
    assert slurm.wait_for(job) == "COMPLETED", output(job)
    assert slurm.run(*FIT[:4], "sync").returncode == 0
    _, run = record()
    assert run.status == "completed", output(job)
    first, second = run.extra["lamin_train"]["attempts"]
    assert (first["status"], second["status"]) == ("requeued", "completed")
    assert second["checkpoint"]["step"] > 0
    assert f"run {run.uid} goes on from" in output(job)


def test_run_that_goes_on_in_a_job_is_not_taken_over(slurm, record):
    job = slurm.submit(srun(LONG), "--ntasks=1")
    slurm.wait_for_output(job, "THIRD BATCH")
    done = slurm.run(*FIT[:4], "resume", "latest")
    assert done.returncode == 2, done.stderr
    assert f"goes on in SLURM job {job}" in done.stderr
    slurm.run("scancel", job)
    slurm.wait_for(job)
    assert [run.status for run in record()] == ["aborted"]


def test_cancelled_job_is_aborted_with_a_checkpoint(slurm, record):
    job = slurm.submit(srun(LONG), "--ntasks=1")
    slurm.wait_for_output(job, "THIRD BATCH")
    slurm.run("scancel", job)
    slurm.wait_for_output(job, "aborted")
    assert slurm.wait_for(job) == "CANCELLED"
    (run,) = record()
    assert run.status == "aborted"
    assert any(key.endswith(".ckpt") for key in run.outputs)


@pytest.mark.parametrize("plugin", ["auto_requeue: false", "requeue_signal: SIGUSR2"])
def test_requeue_of_the_user_is_respected(slurm, project, record, plugin):
    (project / "plugins.yaml").write_text(
        "trainer:\n  plugins:\n"
        "  - class_path: lightning.pytorch.plugins.environments.SLURMEnvironment\n"
        f"    init_args:\n      {plugin}\n"
    )
    job = slurm.submit(srun(LONG, "--config=plugins.yaml"), "--ntasks=1")
    slurm.wait_for_output(job, "THIRD BATCH")
    signum = plugin[-7:] if "SIG" in plugin else "USR1"
    slurm.run("scancel", f"--signal={signum}", job)
    ended = slurm.wait_for(job, "PENDING", "COMPLETED", "FAILED")
    assert ended == ("PENDING" if "SIG" in plugin else "FAILED"), output(job)
    assert not list(project.rglob("hpc_ckpt_*"))
    if ended == "PENDING":
        assert record()[0].status == "scheduled"
        slurm.run("scancel", job)


def test_an_array_is_one_run_a_task_with_one_parent(slurm, record):
    at = "at=$([ $SLURM_ARRAY_TASK_ID = 2 ] && echo raise)"
    line = (
        srun("--lamin.parent=array", SHORT, "--checkpoint.every_n_train_steps=1")
        + ' --model.at="$at"'
    )
    job = slurm.submit(f"{at}\n{line}", "--ntasks=1", "--array=1-3")
    slurm.wait_for_all(job)
    runs = record()
    text = output(job)
    (parent,) = [run for run in runs if run.extra["lamin_train"]["stage"] == "array"]
    tasks = {
        run.extra["lamin_train"]["slurm"]["array_task_id"]: run for run in runs if run is not parent
    }
    assert {number: run.status for number, run in tasks.items()} == {
        1: "completed", 2: "errored", 3: "completed",
    }, text  # fmt: skip
    assert {run.parent for run in tasks.values()} == {parent.uid}
    assert (parent.status, parent.finished, parent.parent) == ("errored", True, None)
    # Task 2 again, mended: the array is as its tasks are.
    words = [f"--lamin.resume={tasks[2].uid}", "--model.at="]
    again = slurm.run("srun", "--ntasks=1", *FIT, SHORT, *words)
    assert again.returncode == 0, again.stderr
    assert [run.status for run in record()] == ["completed"] * 4


def test_a_run_is_the_child_of_the_run_that_is_named(slurm, shell, record):
    assert shell(*FIT[4:], SHORT, program=FIT[:4]).returncode == 0
    (first,) = record()
    done = shell(*FIT[4:], SHORT, f"--lamin.parent={first.uid[:8]}", program=FIT[:4])
    assert done.returncode == 0, done.stderr
    assert record()[1].parent == first.uid
    for word, why in [("nowhere", "no run in"), ("array", "no task of a SLURM job array")]:
        done = shell(*FIT[4:], SHORT, f"--lamin.parent={word}", program=FIT[:4])
        assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
        assert why in done.stderr
    assert len(record()) == 2


def test_login_node_publishes_what_a_short_grace_has_left(slurm, record, project, tmp_path_factory):
    job = slurm.submit(srun(LONG), "--ntasks=1")
    slurm.wait_for_output(job, "THIRD BATCH")
    database = sqlite3.connect(project / "lamindb/.lamindb/lamin.db", isolation_level=None)
    database.execute("BEGIN EXCLUSIVE")
    slurm.run("scancel", job)
    slurm.wait_for(job)
    slurm.wait_until_gone()
    database.execute("ROLLBACK")
    assert "stopping after this batch" in output(job)
    # Another home, on another host: what it needs lies in the shared folder, but for the key.
    home = tmp_path_factory.mktemp("home")
    sync = [sys.executable, "-m", "lamincli", "sync", str(project)]
    told = slurm.run(*sync, HOME=str(home), timeout_s=60)
    assert (told.returncode, "not written by your lamin-train" in told.stderr) == (3, True)
    done = slurm.run(*sync, "--trust", HOME=str(home), timeout_s=60)
    assert done.returncode == 0, done.stdout + done.stderr + output(job)
    (run,) = record()
    assert (run.status, run.finished) == ("aborted", True), done.stdout + done.stderr + output(job)
    assert any(key.endswith(".ckpt") for key in run.outputs)
