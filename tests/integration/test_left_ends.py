"""A run whose process was killed between two steps of its end is finished by whoever comes next."""

import signal
import sys
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from lamindb.base.types import RUN_STATUS_TO_CODE

from lamincli.closing import finish_ends
from lamincli.commands import doctor, sync
from lamincli.features import EXTRA_DATA_KEY
from lamincli.process import ProcessIdentity
from lamincli.registry import arrays, runs
from lamincli.spool import Job, Spool

GONE = replace(ProcessIdentity.current(), pid=999_999_999)
ELSEWHERE = replace(GONE, host="node7", machine_id="another", boot_id="another")
NOW = datetime.now(timezone.utc)


@pytest.fixture
def killed(ln, project):
    """Make a run as a process leaves it that is killed between its status and its log."""
    made = []

    def make(process=GONE, ended=NOW, status="completed", log="the log\n", **values):
        transform = ln.Transform(key="left", source_code="left", kind="function").save()
        run = ln.Run(transform=transform).save()
        attempt = {"started_at": (ended - timedelta(minutes=1)).isoformat()}
        record = {"process": process.to_dict(), "attempts": [attempt], **values.pop("record", {})}
        run.extra_data = {EXTRA_DATA_KEY: record, **values}
        run._status_code, run.finished_at = RUN_STATUS_TO_CODE[status], ended
        run.save()
        if log:
            header = f"run {run.uid} in {ln.setup.settings.instance.slug}\n"
            runs.log_path(run.uid).write_text(header + log)
        made.append(run)
        return run

    yield make
    for run in made:
        runs.log_path(run.uid).unlink(missing_ok=True)


def text_of(report):
    return Path(report.path).read_text()


def reports_of(run, ln):
    about = {"kind": "__lamindb_run__", "description": f"log streams of run {run.uid}"}
    return list(ln.Artifact.objects.filter(**about))


@pytest.mark.parametrize("status", ["completed", "errored", "aborted"])
def test_everything_that_is_missing_is_there_then(killed, ln, status):
    ln.Feature(name="left_loss", dtype=float).save()
    run = killed(status=status, metrics={"left_loss": 0.25})
    assert finish_ends() == [run.uid]
    run.refresh_from_db()
    assert run.status == status
    assert run.finished_at == NOW
    assert text_of(run.report).endswith("the log\n")
    assert not runs.log_path(run.uid).exists()
    (attempt,) = run.extra_data[EXTRA_DATA_KEY]["attempts"]
    assert (attempt["status"], attempt["ended_at"]) == (status, NOW.isoformat())
    values = run.json_values.select_related("feature")
    assert [(v.feature.name, v.value) for v in values] == [("left_loss", 0.25)]
    assert finish_ends() == []


@pytest.mark.parametrize("by", ["sync", "doctor", "start"])
def test_whoever_comes_next_finishes_it(killed, train, capsys, by):
    run = killed()
    if by == "start":
        train("validate")
    elif by == "sync":
        assert sync.main(["."]) == 0
    else:
        doctor.main([])
    assert f"finished what was left of the end of: {run.uid}" in capsys.readouterr().out
    run.refresh_from_db()
    assert text_of(run.report).endswith("the log\n")


@pytest.mark.parametrize(
    ("process", "ago", "finished"),
    [
        (GONE, timedelta(), True),
        (ProcessIdentity.current(), timedelta(), False),  # at its end just now
        (ELSEWHERE, timedelta(minutes=1), False),  # who knows
        (ELSEWHERE, timedelta(hours=2), True),
    ],
)
def test_run_that_is_being_ended_is_left_alone(killed, process, ago, finished):
    run = killed(process=process, ended=NOW - ago)
    assert finish_ends() == ([run.uid] if finished else [])
    assert runs.log_path(run.uid).exists() is not finished


def test_run_that_goes_on_or_waits_in_a_spool_is_left_alone(killed, project, ln):
    going_on, waiting = killed(), killed()
    ln.Run.objects.filter(id=going_on.id).update(finished_at=None)
    Spool(project / ".lamin_spool" / waiting.uid).add(
        Job("close", waiting.uid, "a/b", "ab", "2026")
    )
    assert finish_ends() == []


def test_array_ends_with_its_last_task(killed, ln):
    """Killed after its own status, and before that of the array."""
    array = {"cluster": "", "array_job_id": 4711, "tasks": 1}
    run = killed(status="errored", record={"slurm": {"array_task_id": 0}})
    run.initiated_by_run = parent = arrays._parent(run, array)
    run.save()
    assert parent.status == "started"
    finish_ends()
    parent.refresh_from_db()
    assert (parent.status, parent.finished_at) == ("errored", NOW)


def test_array_whose_last_task_has_left_no_log_is_settled_by_doctor(killed, capsys):
    array = {"cluster": "", "array_job_id": 4712, "tasks": 1}
    run = killed(log="", record={"slurm": {"array_task_id": 0}})
    run.initiated_by_run = parent = arrays._parent(run, array)
    run.save()
    doctor.main([])
    parent.refresh_from_db()
    assert (parent.status, parent.finished_at) == ("completed", NOW)


class Kill(BaseException):
    pass


def die(*_, **__):
    raise Kill


@pytest.mark.parametrize("at", ["saved", "linked", "retired"])
def test_report_is_there_once_wherever_it_was_interrupted(killed, ln, monkeypatch, at):
    """Of a run that has been resumed, so that an earlier report is replaced."""
    run = killed(log="first\n")
    runs.save_report(run)
    text = "first\nsecond\n"
    runs.log_path(run.uid).write_text(text_of(run.report).replace("first\n", text))
    with monkeypatch.context() as patch:
        if at == "saved":
            patch.setattr(type(run), "save", die)
        elif at == "linked":
            patch.setattr(ln.Artifact, "delete", die)
        else:
            patch.setattr(Path, "unlink", die)
        with pytest.raises(Kill):
            runs.save_report(run)
    assert finish_ends() == [run.uid]
    run.refresh_from_db()
    assert text_of(run.report).endswith(text)
    assert reports_of(run, ln) == [run.report]
    assert not runs.log_path(run.uid).exists()


@pytest.mark.parametrize("at", ["describe_ending", "finish_end"])
def test_run_that_is_closed_by_somebody_who_is_killed_is_closed(killed, monkeypatch, at):
    from lamincli.tracking import close_gone_runs

    run = killed()
    run._status_code, run.finished_at = RUN_STATUS_TO_CODE["started"], None
    run.save()
    with monkeypatch.context() as patch:
        patch.setattr(runs, at, die)
        with pytest.raises(Kill):
            close_gone_runs()
    run.refresh_from_db()
    assert run.status == ("started" if at == "describe_ending" else "aborted"), "in one step"
    assert run.uid in (close_gone_runs() if at == "describe_ending" else finish_ends())
    run.refresh_from_db()
    (attempt,) = run.extra_data[EXTRA_DATA_KEY]["attempts"]
    assert (run.status, attempt["status"]) == ("aborted", "aborted")
    assert "its process is gone" in run.extra_data[EXTRA_DATA_KEY]["reason"]
    assert text_of(run.report).endswith("the log\n")


def test_end_of_an_earlier_attempt_does_not_end_the_one_that_goes_on(killed):
    """`sync` publishes it, while the run was resumed."""
    from lamincli.registry.lamin import LaminRegistry

    run = killed()
    record = run.extra_data[EXTRA_DATA_KEY]
    first = record["attempts"][0]["started_at"]
    record["attempts"].append({"started_at": NOW.isoformat()})
    run._status_code, run.finished_at = RUN_STATUS_TO_CODE["restarted"], None
    run.save()
    job = Job("close", run.uid, "a/b", "ab", NOW.isoformat(), status="errored",
              notes={"attempt": first, "reason": "an error", "metrics": {"loss": 1.0}})  # fmt: skip
    LaminRegistry().close_run(job, None)
    run.refresh_from_db()
    one, two = run.extra_data[EXTRA_DATA_KEY]["attempts"]
    assert (run.status, run.finished_at) == ("restarted", None)
    assert (one["status"], one["reason"], "status" in two) == ("errored", "an error", False)
    assert run.extra_data["metrics"] == {"loss": 1.0}


def test_killed_between_status_and_log(shell, record, project, home):
    """The whole way, with real processes."""
    code = """
import os, signal, sys
from lamincli.registry import runs
runs.save_report = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
from lamincli.main import main
sys.exit(main(sys.argv[1:]))
"""
    fit = ["fit", "--model=tests_models.TinyModel", "--data=tests_models.TinyData",
           "--trainer.max_epochs=1", "--trainer.accelerator=cpu"]  # fmt: skip
    done = shell("-c", code, *fit, program=[sys.executable])
    assert done.returncode == -signal.SIGKILL, done.stderr
    (run,) = record()
    assert (run.status, run.log) == ("completed", None)
    done = shell("sync")
    assert done.returncode == 0, done.stderr
    assert f"finished what was left of the end of: {run.uid}" in done.stdout
    (run,) = record()
    assert f"run {run.uid}" in run.log
