"""LaminDB is away when a training starts, or shall not be asked: training begins all the same."""

import json
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

FIT = ["fit", "--model=tests_models.TinyModel", "--data=tests_models.TinyData",
       "--trainer.max_epochs=1", "--trainer.enable_progress_bar=false",
       "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu"]  # fmt: skip
OFFLINE = [*FIT, "--lamin.offline=true"]
AWAY = "ends within seconds: nobody waits for a database that is away"


@pytest.fixture(autouse=True)
def own_home(home):
    """Let `sync` find the spools of the test alone."""


@pytest.fixture
def postgres(instance):
    """A server that the test may stop."""
    yield instance
    subprocess.run(["bash", "-c", instance.command("start")], check=False)


def spool_of(folder: Path) -> Path:
    (spool,) = (folder / ".lamin_spool").iterdir()
    return spool


def connections(project: Path) -> list[str]:
    file = project / "connections"
    return file.read_text().split() if file.exists() else []


def described(run):
    """A run as `record` gives it, without what differs between any two runs."""
    hidden = {"uid", "finished", "after_start"}
    about = {k: v for k, v in vars(run).items() if k not in hidden}
    text = json.dumps(about).replace(run.uid, "UID")
    about = json.loads(text)
    ours = about["extra"]["lamin_train"]
    for name in ("process", "hardware", "command", "files"):
        ours.pop(name)
    for attempt in ours["attempts"]:
        assert attempt.pop("ended_at") > attempt.pop("started_at")
        attempt.pop("command")
    about.pop("cli_args")
    about["log"] = "completed" in about["log"]
    return json.loads(json.dumps(about).replace("version_1", "version_0"))


def test_offline_by_choice_leaves_the_same_record(shell, record, project, home):
    """Nothing is asked, neither the network nor the database; `sync` makes the record later."""
    code = (
        "import lamindb as ln; ln.Feature(name='organism', dtype=str).save();"
        "ln.Feature(name='val_loss', dtype=float).save();"
        "ln.Feature(name='learning_rate', dtype=float).save(); ln.Project(name='atlas').save()"
    )
    assert shell(*FIT).returncode == 0
    assert shell("-c", code, program=[sys.executable]).returncode == 0
    extra = ["--lamin.features.run.organism=human", "--lamin.project=atlas",
             "--lamin.features.artifact.val_loss=null"]  # fmt: skip
    assert shell(*FIT, *extra).returncode == 0
    done = shell(
        *OFFLINE, *extra, FORBID_NETWORK="1", COUNT_CONNECTIONS=str(project / "connections")
    )
    assert done.returncode == 0, done.stderr
    assert connections(project) == []
    assert "is kept in .lamin_spool/" in done.stdout
    assert "lamin-train sync" in done.stdout
    assert len(record()) == 2
    uid = spool_of(project).name
    listed = shell("sync", "--dry-run")
    assert f"begin run {uid}" in listed.stdout
    time_of_sync = time.time()
    synced = shell("sync")
    assert synced.returncode == 0, synced.stderr
    _, online, offline = record()
    assert offline.uid == uid
    assert described(offline) == described(online)
    features = """
import lamindb as ln, json
def of(host, run):
    links = host.links_jsonvalue.select_related("jsonvalue__feature")
    text = json.dumps(sorted((l.jsonvalue.feature.name, l.jsonvalue.value) for l in links))
    return text.replace("version_2", "version_1")
for run in ln.Run.objects.order_by("-id")[:2]:
    print("RECORD", of(run, run), [p.name for p in run.projects.all()],
          [(a.key.replace(run.uid, "RUN"), a.kind, a.description, of(a, run), len(a.projects.all()))
           for a in run.output_artifacts.order_by("key")])
    print("TIMES", run.started_at.timestamp(), run.finished_at.timestamp())
"""
    told = shell("-c", features, program=[sys.executable]).stdout
    one, two = (line for line in told.splitlines() if line.startswith("RECORD"))
    assert one == two
    assert "organism" in one
    assert "learning_rate" in one
    assert "val_loss" in one
    started_s, finished_s = map(float, told.split("TIMES")[1].split()[:2])
    assert started_s < finished_s < time_of_sync, "the times are those of the training"
    again = shell("sync")
    assert (again.returncode, "nothing to publish" in again.stdout) == (0, True)
    assert len(record()) == 3
    assert not (project / ".lamin_spool").exists()


def test_database_is_down_to_the_end(postgres, shell, record, project):
    words = [*FIT, "--lamin.patience_s=2"]
    assert shell(*words).returncode == 0
    postgres.stop()
    done = shell(*words, COUNT_CONNECTIONS=str(project / "connections"))
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.count("is kept in") == 1
    assert connections(project).count("main") == 1, "asked once; the rest is the publisher's"
    assert shell("sync").returncode == 3
    postgres.start()
    assert shell("sync").returncode == 0
    online, offline = record()
    assert described(offline) == described(online)


@pytest.mark.parametrize("command", ["fit", "references", "resume"])
def test_lost_at_any_statement(postgres, shell, record, project, command):
    """What is begun goes on, and leaves the record that it would have left."""
    words = {
        "fit": FIT,
        "references": ["test", "--config=lamin:run/latest/config",
                       "--ckpt_path=lamin:run/latest/last"],
        "resume": ["fit", "--lamin.resume=latest", "--model.at="],
    }[command]  # fmt: skip

    def prepare():
        if command == "resume":
            options = ["--trainer.max_epochs=2", "--checkpoint.every_n_train_steps=1"]
            assert shell(*FIT, *options, "--model.at=raise").returncode == 1

    if command != "fit":
        assert shell(*FIT).returncode == 0
    prepare()
    assert shell(*words).returncode == 0
    online = record()[-1]
    lost = project / "lost"
    for at in (1, 28, 66, 120):
        prepare()
        count = len(record())
        lose = {"LOSE_AT": str(at), "LOSE": f"touch {lost}; {postgres.command('stop')}"}
        done = shell(*words, "--lamin.patience_s=1", **lose)
        told = f"statement {at}: {done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr, told
        if not lost.exists():
            break
        lost.unlink()
        postgres.start()
        if command == "resume" and done.returncode == 2:  # it is not known which run to go on with
            assert record()[-1].status == "errored", told
            assert shell(*words).returncode == 0
        else:
            assert done.returncode in (0, 3), told
            assert shell("sync").returncode == 0
        *_, run = runs = record()
        assert len(runs) == count + (command != "resume"), told
        assert (run.status, run.outputs != []) == ("completed", online.outputs != []), told
        assert sorted(key.rpartition("/")[2] for key in run.inputs) == sorted(
            key.rpartition("/")[2] for key in online.inputs
        ), told
    assert at > 10, "it is lost before, while and after the run begins"


def test_database_returns_while_training(postgres, shell, record, project):
    (project / "again.py").write_text(
        "import os, subprocess\n"
        "from lightning.pytorch.callbacks import Callback\n"
        "class Again(Callback):\n"
        "    def on_train_epoch_start(self, trainer, pl_module):\n"
        "        if trainer.current_epoch == 1:\n"
        "            subprocess.run(['bash', '-c', os.environ['START']], check=True)\n"
    )
    postgres.stop()
    words = [
        "--trainer.max_epochs=3",
        "--trainer.callbacks=again.Again",
        "--checkpoint.save_top_k=-1",
    ]
    done = shell(*FIT, *words, START=postgres.command("start"))
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = record()
    assert (run.status, run.environment, len(run.inputs)) == ("completed", True, 1)
    assert sum(key.endswith(".ckpt") for key in run.outputs) == 3
    assert f"run {run.uid} completed" in run.log
    assert not (project / ".lamin_spool").exists()


@pytest.mark.parametrize("change", [":1/", "@nowhere.invalid:{port}/"])
def test_address_at_which_nobody_answers(postgres, shell, home, change):
    settings = next((home / ".lamin").glob("instance--*.env"))
    text = settings.read_text()
    old = f"@127.0.0.1:{postgres.port}/"
    new = change.format(port=postgres.port) if "@" in change else f"@127.0.0.1{change}"
    settings.write_text(text.replace(old, new))
    done = shell(*FIT, "--lamin.patience_s=1")
    assert done.returncode == 3, done.stderr
    assert "is kept in" in done.stdout


def test_address_that_swallows_packets_costs_seconds(postgres, shell, home, project):
    settings = next((home / ".lamin").glob("instance--*.env"))
    old = f"@127.0.0.1:{postgres.port}/"
    # Nothing answers there, by the specification of the network.
    settings.write_text(settings.read_text().replace(old, "@192.0.2.1:5432/"))
    began_s = time.monotonic()
    done = shell(*FIT, "--lamin.patience_s=1", PGCONNECT_TIMEOUT="2",
                 COUNT_CONNECTIONS=str(project / "connections"))  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert connections(project).count("main") == 1, AWAY
    assert time.monotonic() - began_s < 60


@pytest.mark.parametrize("mistake", ["password", "database"])
def test_server_that_refuses_is_a_mistake(postgres, shell, home, project, mistake):
    settings = next((home / ".lamin").glob("instance--*.env"))
    text = settings.read_text()
    name = text.split(f":{postgres.port}/")[1].split()[0].strip("'\"")
    if mistake == "database":
        settings.write_text(text.replace(f"/{name}", "/nothing"))
    else:
        access = postgres.folder / "data" / "pg_hba.conf"
        before = access.read_text()
        access.write_text("host all all 127.0.0.1/32 scram-sha-256\n")
        postgres.stop()
        postgres.start()
    try:
        done = shell(*FIT)
    finally:
        if mistake == "password":
            access.write_text(before)
            postgres.stop()
            postgres.start()
    assert done.returncode == 2, done.stderr
    assert "cannot be used" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (project / ".lamin_spool").exists()


def test_locked_database_file(shell, record, project):
    assert shell(*FIT).returncode == 0
    database = sqlite3.connect(project / "lamindb/.lamindb/lamin.db")
    database.execute("BEGIN IMMEDIATE")
    done = shell(*FIT, "--lamin.patience_s=1")
    database.rollback()
    assert done.returncode == 3, done.stderr
    assert shell("sync").returncode == 0
    assert [run.status for run in record()] == ["completed", "completed"]


def test_machine_that_knows_no_instance(shell, record, project, home, monkeypatch):
    """A compute node: the instance is named, and not connected; the login node publishes."""
    assert shell(*FIT).returncode == 0
    slug = next((home / ".lamin").glob("instance--*.env")).stem.split("--", 1)[1].replace("--", "/")
    node = project / "node"
    node.mkdir()
    words = ["-c", 'cd node && exec "$0" "$@"', sys.executable, "-m", "lamincli", *OFFLINE]
    elsewhere = {"HOME": str(node), "FORBID_NETWORK": "1", "LAMIN_CURRENT_INSTANCE": ""}
    refused = shell(*words, program=["bash"], **elsewhere)
    assert (refused.returncode, "Name it: --lamin.instance" in refused.stderr) == (2, True)
    done = shell(*words, f"--lamin.instance={slug}", program=["bash"], **elsewhere)
    assert done.returncode == 0, done.stderr
    told = shell("sync", "node")
    assert (told.returncode, "not written by your lamin-train" in told.stderr) == (3, True)
    assert shell("sync", "node", "--trust").returncode == 0, "another home, another key"
    assert [run.status for run in record()] == ["completed", "completed"]


def test_killed_offline_is_closed_by_sync(shell, record, project):
    assert shell(*FIT).returncode == 0
    words = ["--checkpoint.every_n_train_steps=1", "--checkpoint.save_top_k=-1"]
    done = shell(*OFFLINE, *words, "--model.at=kill")
    assert done.returncode == -signal.SIGKILL
    assert shell("sync").returncode == 0
    _, run = record()
    assert (run.status, run.finished, run.after_start) == ("aborted", True, True)
    assert sum(key.endswith(".ckpt") for key in run.outputs) == 2
    assert run.log
    assert not (project / ".lamin_spool").exists()


def test_sync_that_is_killed_anywhere_makes_one_run(shell, record, project):
    """Killed after every commit to the database in turn, until nothing is left."""
    assert shell(*FIT).returncode == 0
    assert shell(*OFFLINE).returncode == 0
    code = """
import os, signal, sys
from django.db.backends.base.base import BaseDatabaseWrapper as Wrapper
from lamincli.commands import sync
number, commit = [int(sys.argv[1])], Wrapper._commit
def counted(self):
    commit(self)
    number[0] -= 1
    if number[0] == 0: os.kill(os.getpid(), signal.SIGKILL)
Wrapper._commit = counted
sys.exit(sync.main([]))
"""
    for number in (1, 2, 3, 5, 8):
        shell("-c", code, str(number), program=[sys.executable])
    assert shell("sync").returncode == 0
    online, offline = record()
    assert described(offline) == described(online)


def test_resume_while_it_is_away(shell, record, project):
    assert shell(*FIT).returncode == 0
    epochs = ["--trainer.max_epochs=2", "--checkpoint.every_n_train_steps=1"]
    assert shell(*OFFLINE, *epochs, "--model.at=raise").returncode == 1
    uid = spool_of(project).name
    done = shell("resume", uid[:6], "--model.at=", "--lamin.offline")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"run {uid} goes on from" in done.stdout
    assert spool_of(project).name == uid
    assert shell("sync").returncode == 0
    _, run = record()
    assert (run.uid, run.status) == (uid, "completed")
    attempts = run.extra["lamin_train"]["attempts"]
    assert [attempt["status"] for attempt in attempts] == ["errored", "completed"]
    assert run.params["model"]["init_args"]["at"] == ""


def test_resume_when_it_is_back(shell, record, project):
    """The run is not in LaminDB yet: it begins there first, and then goes on as any other."""
    assert shell(*FIT).returncode == 0
    epochs = ["--trainer.max_epochs=2", "--checkpoint.every_n_train_steps=1"]
    assert shell(*OFFLINE, *epochs, "--model.at=raise").returncode == 1
    uid = spool_of(project).name
    done = shell("resume", uid, "--model.at=")
    assert done.returncode == 0, done.stdout + done.stderr
    _, run = record()
    assert (run.uid, run.status) == (uid, "completed")
    attempts = run.extra["lamin_train"]["attempts"]
    assert [attempt["status"] for attempt in attempts] == ["errored", "completed"]
    assert not (project / ".lamin_spool").exists()


def test_references_from_memory(shell, record, project):
    assert shell(*FIT).returncode == 0
    (first,) = record()
    best = f"lamin:run/{first.uid}/last"
    test = ["test", *FIT[1:], f"--ckpt_path={best}"]
    done = shell(*test, "--lamin.offline")
    assert done.returncode == 2
    assert "has not used the reference before" in done.stderr
    assert not (project / ".lamin_spool").exists()
    assert shell(*test).returncode == 0
    done = shell(*test, "--lamin.offline=true")
    assert done.returncode == 0, done.stderr
    assert f"{best} is taken for lamin:artifact/" in done.stdout
    assert shell("sync").returncode == 0
    _, online, offline = record()
    checkpoints = [[k for k in run.inputs if k.endswith(".ckpt")] for run in (online, offline)]
    assert checkpoints[0] == checkpoints[1] != []
    ours = [run.extra["lamin_train"]["references"] for run in (online, offline)]
    assert ours[0] == ours[1] != {}


def test_missing_feature_parks_its_values_alone(shell, record, project):
    assert shell(*FIT).returncode == 0
    assert shell(*OFFLINE, "--lamin.features.run.tissue=lung").returncode == 0
    done = shell("sync")
    assert done.returncode == 3
    assert "tissue not in" in done.stderr
    assert 'ln.Feature(name="tissue", dtype=str).save()' in done.stderr.replace("\\", "")
    _, run = record()
    assert run.status == "completed"
    assert any(key.endswith(".ckpt") for key in run.outputs)
    code = "import lamindb as ln; ln.Feature(name='tissue', dtype=str).save()"
    assert shell("-c", code, program=[sys.executable]).returncode == 0
    assert shell("sync").returncode == 0
    assert not (project / ".lamin_spool").exists()


def test_many_runs_and_the_stage_after_a_fit(shell, record, project):
    assert shell(*FIT).returncode == 0
    assert shell(*OFFLINE, "--lamin.then=test").returncode == 0
    assert shell(*OFFLINE).returncode == 0
    assert len(list((project / ".lamin_spool").iterdir())) == 3
    assert shell("sync").returncode == 0
    _, fit, test, other = record()
    assert [run.status for run in (fit, test, other)] == ["completed"] * 3
    assert [test.parent, fit.parent, other.parent] == [fit.uid, None, None]
    assert any(key.endswith(".ckpt") for key in test.inputs)


@pytest.mark.parametrize("strategy", ["ddp", "ddp_spawn"])
def test_ranks(shell, record, project, strategy):
    assert shell(*FIT).returncode == 0
    words = [f"--trainer.strategy={strategy}", "--trainer.devices=2"]
    done = shell(
        *OFFLINE, *words, FORBID_DATABASE="1", COUNT_CONNECTIONS=str(project / "connections")
    )
    assert done.returncode == 0, done.stderr
    assert connections(project) == []
    assert shell("sync").returncode == 0
    _, run = record()
    assert run.status == "completed"
    assert sum(key.endswith(".ckpt") for key in run.outputs) == 1
    assert len(run.inputs) == 1
