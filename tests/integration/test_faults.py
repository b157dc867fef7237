"""Real servers and disks that fail: training ends well each time, and nothing is lost."""

import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import lightning.pytorch as pl
import pytest
from servers import create_instance, postgres_server

from lamincli.commands import sync

FIT = ["fit", "--model=tests_models.TinyModel", "--data=tests_models.TinyData",
       "--trainer.max_epochs=4", "--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu",
       "--checkpoint.save_top_k=-1"]  # fmt: skip
NAMES = [f"epoch={epoch}-step={4 * (epoch + 1)}.ckpt" for epoch in range(4)]


def names_of(run):
    return sorted(a.key.rpartition("/")[2] for a in run.output_artifacts.filter(kind="model"))


def same_bytes(run, folder):
    """Tell whether every artifact holds what Lightning wrote."""
    artifacts = run.output_artifacts.filter(kind="model")
    return all(
        Path(a.cache()).read_bytes() == next(folder.rglob(a.key.rpartition("/")[2])).read_bytes()
        for a in artifacts
    )


class At(pl.Callback):
    """Does something at the start of some epochs."""

    def __init__(self, **steps):
        self.steps = steps

    def on_train_epoch_start(self, trainer, pl_module):
        step = self.steps.get(f"epoch_{trainer.current_epoch}")
        if step is not None:
            step()


# -- PostgreSQL that is stopped -------------------------------------------------------------------

STOPPING = """
import os, subprocess
from lightning.pytorch.callbacks import Callback
class Switch(Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        for what in ("STOP", "START"):
            if os.environ.get(what + "_AT") == str(trainer.current_epoch):
                subprocess.run(os.environ[what], shell=True, check=True, cwd="/")
"""


@pytest.fixture
def postgres(project):
    with postgres_server() as server:
        name = f"faults-{server.port}"
        create_instance(name, "store", server.create_database(name))
        (project / "switch.py").write_text(STOPPING)
        yield server


def test_database_that_is_stopped_for_a_while(postgres, shell, record):
    environment = {"STOP_AT": "1", "STOP": postgres.command("stop"),
                   "START_AT": "3", "START": postgres.command("start")}  # fmt: skip
    done = shell(*FIT, "--trainer.callbacks=switch.Switch", **environment)
    assert done.returncode == 0, done.stderr
    (run,) = record()
    assert run.status == "completed"
    assert sorted(key.rpartition("/")[2] for key in run.outputs if key.endswith("ckpt")) == NAMES
    assert done.stderr.count("LaminDB cannot be reached") <= 1
    assert "Traceback" not in done.stderr


def test_database_that_stays_away(postgres, shell, record, project):
    """Exit code 3, and one command later all is there: files, features, status, end and log."""
    environment = {"STOP_AT": "1", "STOP": postgres.command("stop")}
    done = shell(*FIT, "--trainer.callbacks=switch.Switch", "--lamin.patience_s=2", **environment)
    assert done.returncode == 3, done.stderr
    assert done.stdout.count("not in LaminDB:") >= 3
    assert "lamin-train sync" in done.stdout
    assert "Traceback" not in done.stderr
    postgres.start()
    mentioned = shell("doctor")
    assert "not published" in mentioned.stderr
    assert "closed as aborted" not in mentioned.stdout, "its end is known, and waits in the spool"
    listed = shell("sync", "--dry-run")
    assert "close as completed" in listed.stdout
    synced = shell("sync")
    assert synced.returncode == 0, synced.stderr
    assert "jobs done" in synced.stdout
    (run,) = record()
    assert run.status == "completed"
    assert run.after_start
    assert sorted(key.rpartition("/")[2] for key in run.outputs if key.endswith("ckpt")) == NAMES
    assert "cannot be reached" in run.log
    assert not (project / ".lamin_spool").exists()
    assert set(run.extra["metrics"]) == {"train_loss", "val_loss"}
    assert run.extra["lamin_train"]["attempts"][-1]["status"] == "completed"
    assert "nothing to publish" in shell("sync").stdout


def test_mistake_in_a_resume_leaves_the_end_that_waits(postgres, shell, record, project):
    """With its log, which the mistake had taken from it."""
    environment = {"STOP_AT": "1", "STOP": postgres.command("stop")}
    words = ["--trainer.callbacks=switch.Switch", "--lamin.patience_s=1"]
    assert shell(*FIT, *words, **environment).returncode == 3
    postgres.start()
    done = shell("resume", "latest", "--trainer.devices=0")
    assert done.returncode == 2, done.stderr
    synced = shell("sync")
    assert synced.returncode == 0, synced.stdout + synced.stderr
    (run,) = record()
    assert (run.status, len(run.extra["lamin_train"]["attempts"])) == ("completed", 1)
    assert "cannot be reached" in run.log
    assert "completed" in run.log


# -- S3 that fails --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "faults",
    [{}, {"fail_every": 3}, {"stall_every": 4, "stall_s": 1}, {"cut_every": 2}],
    ids=["well", "fails", "stalls", "cuts"],
)
def test_bucket(train, s3, last_run, project, faults):
    s3(**faults)
    cli = train("fit", "--trainer.max_epochs=4", "--checkpoint.save_top_k=-1")
    assert cli.unpublished == []
    assert names_of(last_run()) == NAMES
    assert same_bytes(last_run(), project / "lightning_logs")
    assert all(str(a.path).startswith("s3://") for a in last_run().output_artifacts.all())


def test_bucket_that_is_gone(train, s3, last_run, ln):
    """NoSuchBucket calls for somebody: the jobs are set aside, with the reason."""
    import boto3

    url = s3()
    client = boto3.client("s3", endpoint_url=url)

    def empty():
        while client.list_buckets()["Buckets"]:
            for item in client.list_objects(Bucket="bucket").get("Contents", []):
                client.delete_object(Bucket="bucket", Key=item["Key"])
            with suppress(client.exceptions.ClientError):  # the publisher put one meanwhile
                client.delete_bucket(Bucket="bucket")

    cli = train("fit", "--trainer.max_epochs=4", "--checkpoint.save_top_k=-1",
                trainer_defaults={"callbacks": [At(epoch_1=empty)]})  # fmt: skip
    assert cli.unpublished
    assert last_run().status == "completed"
    client.create_bucket(Bucket="bucket")
    assert sync.main(["."]) == 0
    assert names_of(last_run()) == NAMES


def test_retries_draw_from_a_generator_of_their_own(train, s3):
    """Or trainings of the same seed part where the data are augmented with Python's generator."""
    import random

    from botocore import retryhandler

    s3()
    train("fit")
    state = random.getstate()
    retryhandler.delay_exponential("rand", 2, 3)
    assert random.getstate() == state


def test_checkpoints_in_a_bucket_are_registered_where_they_lie(
    train, s3, last_run, ln, monkeypatch
):
    url = s3()
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    import fsspec

    fsspec.get_filesystem_class("s3").clear_instance_cache()
    root = f"s3://bucket/theirs?endpoint_url={url}"
    ln.Storage(root=root).save()
    cli = train("fit", "--trainer.max_epochs=3", "--checkpoint.dirpath=s3://bucket/theirs/run",
                "--checkpoint.save_top_k=2", "--checkpoint.monitor=val_loss")  # fmt: skip
    assert cli.unpublished == []
    artifacts = list(last_run().output_artifacts.filter(kind="model"))
    assert len(artifacts) == 2
    for artifact in artifacts:
        name = artifact.key.rpartition("/")[2]
        assert str(artifact.path).endswith(f"bucket/theirs/run/{name}")
        assert artifact.path.exists()
        assert artifact.features.get_values()["is_last_model"] in (True, False)
    files = fsspec.filesystem("s3", endpoint_url=url).ls("bucket/theirs/run")
    assert len(files) == 2


# -- disks ----------------------------------------------------------------------------------------


@pytest.fixture
def disk(ln, tmp_path):
    """A small disk of its own for the storage; gives a function that mounts it anew."""
    if os.getuid() != 0 or not shutil.which("mount"):
        pytest.skip("mounting a small disk needs root")
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this machine mounts no tmpfs")
    before = ln.setup.settings.instance._storage
    root = str(place / "storage")
    ln.Storage(root=root).save()
    ln.settings.storage = root

    def remount(options):
        subprocess.run(["mount", "-o", f"remount,{options}", str(place)], check=True)

    yield remount
    ln.setup.settings.instance._storage = before
    subprocess.run(["umount", str(place)], check=True)


def fit_wide(train, *words, **arguments):
    """Checkpoints of 200 kB each, four of them."""
    return train("fit", "--trainer.max_epochs=4", "--checkpoint.save_top_k=-1",
                 "--lamin.patience_s=1", *words, cli=arguments.pop("cli", None) or wide_cli(),
                 **arguments)  # fmt: skip


def wide_cli():
    import torch
    from tests_models import TinyModel

    from lamincli import LaminLightningCLI

    class Wide(TinyModel):
        def __init__(self, learning_rate: float = 0.1, at: str = ""):
            super().__init__(learning_rate=learning_rate, at=at)
            self.register_buffer("ballast", torch.randn(50_000))

    def make(model_class=None, **arguments):
        return LaminLightningCLI(Wide, **arguments)

    return make


def test_disk_that_is_full(train, disk, last_run, project, capsys):
    cli = fit_wide(train)
    assert len(cli.unpublished) >= 1
    assert last_run().status == "completed"
    assert "No space left on device" in capsys.readouterr().err
    disk("size=20m")
    assert sync.main(["."]) == 0
    assert names_of(last_run()) == NAMES
    assert same_bytes(last_run(), project / "lightning_logs")


def test_disk_that_is_read_only(train, disk, last_run, project, capsys):
    disk("size=20m")
    cli = fit_wide(train, trainer_defaults={"callbacks": [At(epoch_1=lambda: disk("ro"))]})
    assert cli.unpublished
    assert last_run().status == "completed"
    assert "Read-only file system" in capsys.readouterr().err
    assert sync.main(["."]) == 3, "it is read-only still"
    disk("rw")
    assert sync.main(["."]) == 0
    assert names_of(last_run()) == NAMES


# -- SQLite ---------------------------------------------------------------------------------------


def test_database_that_another_program_locks(train, ln, last_run):
    path = ln.setup.settings.instance._sqlite_file_local
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    steps = At(
        epoch_1=lambda: other.execute("BEGIN EXCLUSIVE"), epoch_3=lambda: other.execute("ROLLBACK")
    )
    cli = train("fit", "--trainer.max_epochs=4", "--checkpoint.save_top_k=-1",
                trainer_defaults={"callbacks": [steps]})  # fmt: skip
    other.close()
    assert cli.unpublished == []
    assert names_of(last_run()) == NAMES


def test_eight_trainings_at_once_on_one_file(project, shell, record):
    shell("fit", "--trainer.max_epochs=0", *FIT[1:3])  # creates the instance
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "lamincli", *FIT, "--trainer.logger=false",
             f"--trainer.default_root_dir=job-{i}"],
            cwd=project, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for i in range(8)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=400) for process in processes]
    assert [process.returncode for process in processes] == [0] * 8, outputs
    runs = record()[1:]
    assert [run.status for run in runs] == ["completed"] * 8
    for run in runs:
        assert sorted(k.rpartition("/")[2] for k in run.outputs if k.endswith("ckpt")) == NAMES
