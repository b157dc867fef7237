"""The first job of an offline run is torn: all else is saved, and the run is rebuilt from it."""

from dataclasses import asdict, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from lamindb.base.uids import base62_16

from lamincli.commands import sync
from lamincli.features import EXTRA_DATA_KEY
from lamincli.memory import KnownJob, remember_job
from lamincli.process import ProcessIdentity
from lamincli.registry.runs import Beginning
from lamincli.spool import Job, Spool

BEGAN = datetime(2026, 1, 1, 10, tzinfo=timezone.utc)
ENDED = BEGAN + timedelta(minutes=9)
LOG = "run {uid} in me/here\n$ lamin-train fit --config a.yaml\nepoch 0\n"
CONFIG = "seed_everything: 1\nmodel:\n  class_path: my.Model\n  init_args:\n    width: 8\n"


def at(minutes):
    return (BEGAN + timedelta(minutes=minutes)).isoformat()


@pytest.fixture
def offline(ln, project):
    """A run that began offline: its first job, a config, a checkpoint, features and its end."""
    uid, instance = base62_16(), ln.setup.settings.instance
    spool = Spool(project / ".lamin_spool" / uid)

    def add(action, minutes, file=None, text="", **about):
        if file is not None:
            Path(file).write_text(text)
            about["local_path"] = str(Path(file).absolute())
        key = f"rebuilt/{uid}/{file}" if action == "save" else ""
        job = Job(action, uid, instance.slug, instance._id.hex, at(minutes), key=key,
                  uid=base62_16() + "0000", **about)  # fmt: skip
        return spool.add(job, file and Path(file))

    record = {"process": ProcessIdentity.current().to_dict(), "stage": "fit"}
    record["process"]["pid"] = 999_999_999
    beginning = Beginning(
        uid=uid, started_at=at(0), key="train.py", code="1", command="fit", record=record,
        attempt={"host": "node7", "started_at": at(0), "command": "fit", "checkpoint": None},
    )  # fmt: skip
    name, _ = add("begin", 0, notes=asdict(beginning))
    add("save", 1, "config.yaml", CONFIG, kind="config", artifact_kind="config", is_input=True)
    add("save", 5, "a.ckpt", "weights", artifact_kind="model",
        named={"lightning": {"score": 0.5}})  # fmt: skip
    add("close", 9, "log.txt", LOG.format(uid=uid), status="completed",
        notes={"metrics": {"loss": 0.25}})  # fmt: skip
    return spool, spool.ready / name, add


def run_of(spool, ln):
    return ln.Run.objects.filter(uid=spool.folder.name).first()


def keys_of(run):
    return sorted(a.key.rpartition("/")[2] for a in run.output_artifacts.all() if a.key)


@pytest.mark.parametrize("how", ["empty", "zeros", "half"])
def test_run_is_rebuilt_from_what_its_jobs_know(offline, ln, capsys, how):
    spool, begin, _ = offline
    text = begin.read_bytes()
    begin.write_bytes({"empty": b"", "zeros": b"\0" * len(text), "half": text[:700]}[how])
    assert sync.main(["."]) == 0
    told = capsys.readouterr()
    assert f"run {spool.folder.name} is rebuilt from its other jobs" in told.err
    assert "Not known any more: code, environment, hardware, process" in told.err
    assert "4 of 4 jobs done" in told.out
    assert "--discard" not in told.out
    run = run_of(spool, ln)
    assert (run.status, run.finished_at) == ("completed", ENDED)
    assert run.started_at == BEGAN + timedelta(minutes=1), "as its first job that can be read"
    assert run.params == {
        "seed_everything": 1, "model": {"class_path": "my.Model", "init_args": {"width": 8}}
    }  # fmt: skip
    assert run.cli_args.endswith("fit --config a.yaml")
    assert run.extra_data["metrics"] == {"loss": 0.25}
    record = run.extra_data[EXTRA_DATA_KEY]
    assert record["rebuilt"]["unknown"] == ["code", "environment", "hardware", "process"]
    assert "no job file" in record["rebuilt"]["why"]
    assert (record["stage"], record["model"]) == ("fit", "my.Model")
    assert keys_of(run) == ["a.ckpt"]
    assert [a.key.rpartition("/")[2] for a in run.input_artifacts.all()] == ["config.yaml"]
    assert "epoch 0" in Path(run.report.path).read_text()
    assert "not known" in run.transform.source_code
    assert not spool.folder.exists()


def test_process_that_was_killed_too_is_closed(offline, ln):
    spool, begin, _ = offline
    begin.write_bytes(b"")
    (close,) = [name for name, job in spool.jobs() if job.action == "close"]
    spool.drop(close)
    assert sync.main(["."]) == 0
    run = run_of(spool, ln)
    assert (run.status, keys_of(run)) == ("aborted", ["a.ckpt"])
    assert run.finished_at == BEGAN + timedelta(minutes=5)


def test_what_a_scheduler_may_start_again_is_remembered(offline, ln, capsys):
    spool, begin, _ = offline
    process = replace(ProcessIdentity.current(), pid=999_999_999).to_dict()
    record = {"process": process, "hardware": {"cpus": 2}, "stage": "fit", "job": "slurm::7"}
    notes = {"started_at": at(0), "params": {"a": 1}, "record": record}
    known = KnownJob(spool.folder.name, "me/here", notes, [], {})
    remember_job("slurm::7", "fit", 0, known)
    begin.write_bytes(b"")
    assert sync.main(["."]) == 0
    assert "Not known any more: code, environment\n" in capsys.readouterr().err
    run = run_of(spool, ln)
    assert (run.started_at, run.params) == (BEGAN, {"a": 1})
    assert run.extra_data[EXTRA_DATA_KEY]["hardware"] == {"cpus": 2}


def test_run_that_was_resumed_meanwhile_is_rebuilt_too(offline, ln):
    spool, begin, add = offline
    begin.write_bytes(b"")
    again = Beginning(
        uid=spool.folder.name, started_at=at(20), goes_on=True, command="resume", key="train.py",
        code="1", attempt={"host": "node7", "started_at": at(20), "command": "resume"},
        record={"process": replace(ProcessIdentity.current(), pid=999_999_999).to_dict()},
    )  # fmt: skip
    add("begin", 20, notes=asdict(again))
    add("save", 25, "b.ckpt", "more", artifact_kind="model")
    add("close", 30, status="errored")
    assert sync.main(["."]) == 0
    run = run_of(spool, ln)
    assert (run.status, keys_of(run)) == ("errored", ["a.ckpt", "b.ckpt"])
    attempts = run.extra_data[EXTRA_DATA_KEY]["attempts"]
    assert [attempt["status"] for attempt in attempts] == ["completed", "errored"]
    assert "rebuilt" in run.extra_data[EXTRA_DATA_KEY]


def test_torn_save_is_set_aside_and_its_file_is_named(offline, ln, capsys):
    spool, _, _ = offline
    save = spool.ready / "00000003.json"
    save.write_bytes(b"\0" * 100)
    assert sync.main(["."]) == 3
    told = capsys.readouterr()
    assert f"its file is kept: {spool.pins}/00000003/a.ckpt" in told.err
    assert "3 of 4 jobs done" in told.out
    assert run_of(spool, ln).status == "completed"


@pytest.mark.parametrize("case", ["newer", "was there", "only it"])
def test_no_run_is_rebuilt_where_it_is_not_its_beginning_that_is_torn(offline, ln, capsys, case):
    spool, begin, add = offline
    if case == "newer":
        begin.write_text('{"version": 99}')
    elif case == "was there":  # a run that began in LaminDB, and was removed there
        begin.write_bytes(b"")
        add("save", 6, "c.ckpt", "more", artifact_kind="model", features={"FeAtUrE00001": 1.0})
    else:
        for name in spool.names()[1:]:
            spool.drop(name)
        begin.write_bytes(b"")
    assert sync.main(["."]) == 3
    assert "is rebuilt" not in capsys.readouterr().err
    assert run_of(spool, ln) is None
    assert spool.folder.exists()
