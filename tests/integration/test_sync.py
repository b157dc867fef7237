"""`lamin-train sync` beside other processes: what it says is what has come of it."""

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from lamindb.base.uids import base62_16

from lamincli.commands import sync
from lamincli.spool import Job, Spool, lock

NAMES = [f"epoch={number}.ckpt" for number in range(3)]

HOLDER = """
import sys
from pathlib import Path
from lamincli.spool import Spool
print(Spool(Path(sys.argv[1])).lock.acquire(sys.argv[2]), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def left(ln, project):
    """A run whose checkpoints are in its spool still; returns both."""
    transform = ln.Transform(key="sync", source_code="sync", kind="function").save()
    run = ln.Run(transform=transform).save()
    spool = Spool(project / ".lamin_spool" / run.uid)
    for number, name in enumerate(NAMES):
        add(spool, run, ln, number, name)
    return run, spool


def add(spool, run, ln, number, name):
    path = Path(name)
    path.write_bytes(f"weights {name}".encode())
    instance = ln.setup.settings.instance
    job = Job("save", run.uid, instance.slug, instance._id.hex, f"2026-01-0{number + 1}",
              uid=base62_16() + "0000", key=f"sync/{run.uid}/{name}", artifact_kind="model",
              local_path=str(path.absolute()))  # fmt: skip
    return spool.add(job, path)


def names_of(run):
    return sorted(a.key.rpartition("/")[2] for a in run.output_artifacts.filter(kind="model"))


def leave_mark_of_another_host(spool):
    process = {"host": "node7", "pid": 4242, "started_s": 1.0, "boot_id": "another"}
    mark = spool.folder / "lock.0123456789abcdef"
    mark.write_text(json.dumps({"what": "training", "process": process}))
    return mark


@pytest.fixture
def hold():
    """Let another process hold a spool."""
    processes = []

    def start(spool, what):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(spool.folder), what],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        processes.append(process)
        assert process.stdout.readline() == "True\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_sync_waits_for_another_sync_and_does_the_rest(left, hold, capsys):
    """As where it was killed: nothing is said to be done that is not."""
    run, spool = left
    other = hold(spool, "sync")
    threading.Timer(0.5, other.kill).start()
    assert sync.main(["."]) == 0
    told = capsys.readouterr().out
    who = f"run {run.uid} is being published by lamin-train sync, process {other.pid} on"
    assert told.count(who) == 1
    assert "waiting for it" in told
    assert "3 of 3 jobs done" in told
    assert names_of(run) == NAMES


def test_sync_that_waits_in_vain_says_for_whom(left, hold, capsys, monkeypatch):
    run, spool = left
    other = hold(spool, "sync")
    monkeypatch.setattr(sync, "_PATIENCE_S", 0.3)
    assert sync.main(["."]) == 3
    told = capsys.readouterr()
    assert "done" not in told.out
    assert f"lamin-train sync, process {other.pid} on" in told.err
    assert "3 jobs left" in told.err
    assert names_of(run) == []


def test_what_another_sync_has_done_meanwhile_is_said_to_be_done(left, hold, capsys):
    run, spool = left
    other = hold(spool, "sync")

    def publish():
        shutil.rmtree(spool.folder)  # as one that has published all
        other.kill()

    threading.Timer(0.5, publish).start()
    assert sync.main(["."]) == 0
    assert f"run {run.uid}: all " in capsys.readouterr().out
    assert not spool.folder.exists()


@pytest.mark.parametrize("waits", [True, False])
def test_run_that_its_own_training_publishes_is_left_to_it(left, hold, capsys, waits):
    run, spool = left
    other = hold(spool, "training")
    if not waits:
        shutil.rmtree(spool.ready)
    assert sync.main(["."]) == (3 if waits else 0)
    told = capsys.readouterr()
    who = f"run {run.uid} is being published by its own training, process {other.pid} on"
    assert who in (told.err if waits else told.out)
    assert ("3 jobs left" in told.err) is waits
    assert sync.main(["--discard", "."]) == 3
    assert (spool.folder / "lock").exists()


def test_training_of_another_host_that_may_have_ended_is_watched(left, capsys, monkeypatch):
    """The record lock is free: it was killed, or it is one that this host does not see."""
    run, spool = left
    leave_mark_of_another_host(spool)
    monkeypatch.setattr(lock, "SILENT_S", 0.5)
    assert sync.main(["."]) == 0
    told = capsys.readouterr().out
    assert "process 4242 on node7; waiting to see whether it lives" in told
    assert names_of(run) == NAMES
    assert not spool.folder.exists()


def test_training_of_another_host_that_shows_that_it_lives_is_left_alone(left, capsys, monkeypatch):
    run, spool = left
    mark = leave_mark_of_another_host(spool)
    threading.Timer(0.5, os.utime, [mark, (2e9, 2e9)]).start()
    assert sync.main(["."]) == 3
    assert "jobs left" in capsys.readouterr().err
    assert names_of(run) == []


def test_file_that_still_grew_is_published_although_nothing_else_waits(left, ln, capsys):
    run, spool = left
    Path("history.csv").write_text("step,name,value\n")
    for name in spool.names():
        spool.drop(name)
    instance = ln.setup.settings.instance
    job = Job("save", run.uid, instance.slug, instance._id.hex, "2026-01-01", kind="history",
              uid=base62_16() + "0000", key="sync/history.csv", artifact_kind="model",
              local_path=str(Path("history.csv").absolute()))  # fmt: skip
    spool.defer(job)
    assert sync.main(["."]) == 0, "its training lives"
    assert names_of(run) == []
    (note,) = spool.tmp.glob("deferred history.*")
    note.unlink()  # it is gone
    assert sync.main(["."]) == 0
    assert "1 of 1 jobs done" in capsys.readouterr().out
    assert names_of(run) == ["history.csv"]
    assert not spool.folder.exists()


def test_dry_run_says_who_has_a_spool(left, hold, capsys):
    _, spool = left
    other = hold(spool, "sync")
    assert sync.main(["--dry-run", "."]) == 0
    assert f"(in use by lamin-train sync, process {other.pid} on" in capsys.readouterr().out


def test_what_a_training_adds_while_sync_publishes_is_published_too(left, ln, capsys, monkeypatch):
    run, spool = left
    from lamincli.registry.lamin import LaminRegistry

    save, added = LaminRegistry.save, []

    def adding(self, job, file, note):
        if not added:
            added.append(add(Spool(spool.folder), run, ln, 8, "late.ckpt"))
        return save(self, job, file, note)

    monkeypatch.setattr(LaminRegistry, "save", adding)
    assert sync.main(["."]) == 0
    assert "4 of 4 jobs done" in capsys.readouterr().out
    assert names_of(run) == [*NAMES, "late.ckpt"]
    assert not spool.folder.exists()
