"""A run that is going on in another container of the machine, or on another host, is left alone."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests_models import TinyModel

from lamincli import tracking
from lamincli.errors import UsageError
from lamincli.resume import _check_spools
from lamincli.spool import Spool
from lamincli.spool.lock import Holder

ELSEWHERE = """
import sys, lamincli.process
from pathlib import Path
lamincli.process._pid_namespace = lambda: "pid:[another container]"
from lamincli.spool import Spool
assert Spool(Path(sys.argv[1])).lock.acquire(sys.argv[2])
print("holds", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def elsewhere():
    """Hold a spool in a process whose pid means nothing here."""
    started = []

    def hold(folder, what="training"):
        process = subprocess.Popen(
            [sys.executable, "-c", ELSEWHERE, str(folder), what],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        assert process.stdout.readline() == "holds\n"
        return process

    yield hold
    for process in started:
        process.communicate()


def opened(run, **process):
    """Let a run be open still, and its process another one."""
    run.extra_data["lamin_train"]["process"] |= process
    run._status_code = -1
    run.save()


def test_run_in_another_container_is_not_taken_over(train, last_run, elsewhere, capsys, project):
    train("fit")
    run = last_run()
    opened(run, pid=1, pid_namespace="pid:[another container]")
    other = elsewhere(run.extra_data["lamin_train"]["spool"])
    with pytest.raises(SystemExit) as stop:
        train("fit", f"--lamin.resume={run.uid}", "--trainer.max_epochs=2")
    assert stop.value.code == 2
    who = f"Run {run.uid} is in use by its own training, process {other.pid} on "
    assert who in capsys.readouterr().err
    with pytest.raises(tracking.RecordError, match="going on already: it is in use by"):
        tracking._reopen(run, "me/here", "")
    other.communicate()
    train("fit", f"--lamin.resume={run.uid}", "--trainer.max_epochs=2")
    run.refresh_from_db()
    assert run.status == "completed"


def test_spool_is_found_where_the_record_says_it_is(train, last_run, elsewhere, tmp_path_factory, monkeypatch):  # fmt: skip
    train("fit")
    run = last_run()
    monkeypatch.chdir(tmp_path_factory.mktemp("another folder"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("another home")))
    spool = Path(run.extra_data["lamin_train"]["spool"])
    assert spool.name == run.uid
    elsewhere(spool)
    assert tracking._trained_by(run.uid, run.extra_data["lamin_train"]).what == "training"
    assert tracking._trained_by(run.uid, {"spool": str(spool.parent)}) is None
    assert tracking._trained_by(run.uid, {"spool": "relative"}) is None


def test_run_with_a_rank_that_lives_is_not_closed_as_gone(train, last_run, elsewhere, ln):
    """The process that has started the ranks was killed; one of them trains on, and holds it."""
    train("fit")
    run = last_run()
    opened(run, pid=999_999_999)
    other = elsewhere(run.extra_data["lamin_train"]["spool"])
    assert tracking.close_gone_runs() == []
    assert last_run().status == "started"
    other.communicate()
    assert tracking.close_gone_runs() == [run.uid]
    assert last_run().extra_data["lamin_train"]["reason"] == "its process is gone"


def test_run_is_held_from_its_beginning_to_its_end(train, last_run, project):
    holders = []

    class Slow(TinyModel):
        """Takes long to be made, long before anything is saved."""

        def __init__(self, width: int = 4, learning_rate: float = 0.1, at: str = ""):
            super().__init__(width, learning_rate, at)
            (folder,) = (project / ".lamin_spool").iterdir()
            holders.append((folder.name, Spool(folder).lock.holder()))

        def prepare_data(self):
            (folder,) = (project / ".lamin_spool").iterdir()
            holders.append((folder.name, Spool(folder).lock.holder()))

    train("fit", model_class=Slow)
    assert [(uid, holder.what) for uid, holder in holders] == [(last_run().uid, "training")] * 2
    assert holders[0][1].process.pid == os.getpid()
    assert not (project / ".lamin_spool").exists()


def test_run_that_cannot_begin_leaves_no_spool(train, project):
    class Broken(TinyModel):
        def __init__(self):
            raise RuntimeError("no data")

    with pytest.raises(RuntimeError, match="no data"):
        train("fit", model_class=Broken)
    assert not (project / ".lamin_spool").exists()


def test_sync_that_publishes_what_was_saved_before_is_named_and_stops_nobody(project, elsewhere, capsys):  # fmt: skip
    folder = project / ".lamin_spool" / "R"
    elsewhere(folder, "sync")
    _check_spools("R", [Spool(folder)])
    told = "what run R has saved before is being published by lamin-train sync, process"
    assert told in capsys.readouterr().out


def test_holder_that_shows_no_life_is_waited_for(monkeypatch, capsys):
    silent = Holder("training")

    def spool(*answers):
        answers = iter(answers)
        return SimpleNamespace(lock=SimpleNamespace(holder=lambda: next(answers)))

    monkeypatch.setattr("lamincli.resume.time.sleep", lambda _: None)
    _check_spools("R", [spool(silent, silent, None)])
    assert capsys.readouterr().out.count("waiting to see whether it lives") == 1
    with pytest.raises(UsageError, match="Run R is in use by its own training"):
        _check_spools("R", [spool(silent, Holder("training", is_alive=True))])
