"""Databases that are damaged, and ends that cannot be recorded: said, and never lost."""

import errno
import os
import re
import shutil
import sqlite3
from pathlib import Path

import lightning.pytorch as pl
import pytest
from conftest import TINY

from lamincli.commands import doctor, reproduce, sync
from lamincli.folders import settings_folder
from lamincli.instance import connect
from lamincli.main import main
from lamincli.spool import Spool

COPY = Path("copy")
DATABASE = COPY / ".lamindb" / "lamin.db"


@pytest.fixture
def copy(ln, project):
    """Give the project an instance of its own, which may be damaged, and is forgotten then."""
    known = set(settings_folder().iterdir())
    shutil.copytree(ln.setup.settings.instance.storage.root_as_str, COPY)
    yield project
    for file in set(settings_folder().iterdir()) - known:
        file.unlink()


def garbage():
    DATABASE.write_bytes(os.urandom(100_000))


def torn():
    os.truncate(DATABASE, 20_000)


def holes():
    with DATABASE.open("r+b") as file:
        for place in range(8192, DATABASE.stat().st_size, 8192):
            file.seek(place)
            file.write(os.urandom(4096))


def empty():
    os.truncate(DATABASE, 0)


def folder():
    DATABASE.unlink()
    DATABASE.mkdir()


def other_tables():
    DATABASE.unlink()
    with sqlite3.connect(DATABASE) as other:
        other.execute("CREATE TABLE things (id)")


def older_tables():
    with sqlite3.connect(DATABASE) as other:
        other.execute("ALTER TABLE lamindb_run DROP COLUMN cli_args")


@pytest.mark.parametrize(
    ("damage", "help_"),
    [
        (garbage, "is damaged. Restore it from a backup"),
        (torn, "is damaged. Restore it from a backup"),
        (holes, "is damaged. Restore it from a backup"),
        (empty, "is no database. Restore that file"),
        (folder, "is no database. Restore that file"),
        (other_tables, "does not have the tables of lamindb"),
        (older_tables, "does not have the tables of lamindb"),
    ],
)
def test_damaged_database_is_told_before_anything_is_trained(train, copy, capsys, damage, help_):
    damage()
    with pytest.raises(SystemExit) as stop:
        train("fit", "--lamin.instance=./copy")
    err = capsys.readouterr().err
    assert stop.value.code == 2
    assert "Traceback" not in err
    assert (str(DATABASE) in err, help_ in err) == (True, True), err
    assert not (copy / "lightning_logs").exists()


@pytest.mark.parametrize("damage", [garbage, empty])
def test_training_goes_on_without_a_damaged_database_if_asked(train, copy, damage):
    damage()
    cli = train("fit", "--lamin.instance=./copy", "--lamin.offline")
    assert (cli.ending.status, cli.is_offline) == ("completed", True)
    assert "the end of the run" in cli.unpublished


@pytest.mark.parametrize(("command", "code"), [(doctor, 1), (reproduce, 2)])
def test_commands_tell_of_a_damaged_database(copy, capsys, command, code):
    garbage()
    words = ["--instance=./copy", *(["latest"] if command is reproduce else [])]
    assert command.main(words) == code
    err = capsys.readouterr().err
    assert f"{DATABASE} is damaged" in err


class Damage(pl.Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        if index == 1:
            garbage()


def test_database_that_is_damaged_meanwhile_ends_no_training(train, copy, capsys):
    callbacks = {"callbacks": [Damage()]}
    cli = train("fit", "--lamin.instance=./copy", trainer_defaults=callbacks)
    assert cli.trainer.global_step == 4
    assert cli.ending.status == "completed"
    assert "the end of the run" in cli.unpublished
    assert any(path.endswith(".ckpt") for path in cli.unpublished)
    out, err = capsys.readouterr()
    assert out.count("not in LaminDB: ") == len(cli.unpublished), err
    assert "Traceback" not in err
    garbage()  # SQLite may have written its pages back
    assert sync.main(["."]) == 3
    err = capsys.readouterr().err  # the copy, or the instance that it is a copy of
    assert f"{DATABASE} is damaged" in err or "It has no run" in err


def test_copied_instance_is_the_one_that_is_used(train, ln, copy):
    original = ln.setup.settings.instance.storage.root_as_str
    runs = ln.Run.filter().count()
    cli = train("fit", "--lamin.instance=./copy")
    assert ln.Storage.get(cli.lamin_run.output_artifacts.first().storage_id).root == str(
        copy / "copy"
    )
    assert ln.Run.filter().count() == runs + 1
    connect(original)
    assert ln.Run.filter().count() == runs
    assert ln.Storage.filter(root=original).count() == 1


# -- ends that cannot be recorded -----------------------------------------------------------------


def failing(monkeypatch, place, name, error, times=1):
    """Let a function fail, once unless told otherwise."""
    function, left = getattr(place, name), [times]

    def fail(*args, **kwargs):
        if left[0]:
            left[0] -= 1
            raise error
        return function(*args, **kwargs)

    monkeypatch.setattr(place, name, fail)


@pytest.fixture
def runs(ln):
    from lamincli.registry import runs

    return runs


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("set_ending", "the end of the run"),
        ("save_report", "the log of the run"),
        ("add_metric_features", "the metrics of the run"),
    ],
)
def test_what_cannot_be_recorded_at_the_end_is_left_to_sync(
    train, ln, last_run, runs, monkeypatch, capsys, name, what
):
    failing(monkeypatch, runs, name, OSError(28, "No space left on device"))
    cli = train("fit")
    assert what in cli.unpublished
    assert f"! {'the metrics' if 'metrics' in what else 'run'}" in capsys.readouterr().err
    assert sync.main(["."]) == 0
    run = last_run()
    assert (run.status, run.report is None) == ("completed", False)
    assert "train_loss" in run.extra_data["metrics"]
    assert "completed" in Path(run.report.cache()).read_text()


def test_end_that_cannot_be_recorded_is_in_the_panel(train, ln, runs, monkeypatch, capsys):
    failing(monkeypatch, runs, "set_ending", RuntimeError("anything"))
    cli = train("fit")
    out = capsys.readouterr().out
    assert cli.unpublished == ["the end of the run"]
    assert "not in LaminDB: the end of the run" in out
    assert "lamin-train sync" in out


def test_end_without_a_trainer_is_left_to_sync_too(train, ln, last_run, runs, monkeypatch, capsys):
    from tests_models import TinyModel

    class Broken(TinyModel):
        def __init__(self, width: int = 4) -> None:
            raise RuntimeError("boom")

    failing(monkeypatch, runs, "set_ending", OSError(28, "No space left on device"))
    with pytest.raises(RuntimeError, match="boom"):
        train("fit", model_class=Broken)
    assert "will be closed by lamin-train sync" in capsys.readouterr().err
    assert last_run().status == "started"
    assert sync.main(["."]) == 0
    assert last_run().status == "errored"


@pytest.mark.parametrize("words", [[], ["--model.at=exit0"]])
def test_exit_code_says_that_something_is_left(train, ln, runs, monkeypatch, words):
    failing(monkeypatch, runs, "save_report", OSError(28, "No space left on device"))
    with pytest.raises(SystemExit) as stop:
        main(
            ["fit", "--model=tests_models.TinyModel", "--data=tests_models.TinyData", *TINY, *words]
        )
    assert stop.value.code == 3


# -- spools that cannot be published --------------------------------------------------------------


def file_for_folder(spool, monkeypatch):
    shutil.rmtree(spool / "ready")
    (spool / "ready").write_text("")


def no_recovery(spool, monkeypatch):
    recover = Spool.recover

    def fail(self):
        if self.folder.name == spool.name:
            raise OSError(5, "Input/output error")
        return recover(self)

    monkeypatch.setattr(Spool, "recover", fail)


def no_lock(spool, monkeypatch):
    (spool / "lock").unlink(missing_ok=True)
    (spool / "lock").mkdir()


def torn_lock_and_jobs(spool, monkeypatch):
    for file in (spool / "ready").iterdir():
        file.write_bytes(os.urandom(50))


@pytest.fixture
def spools(train, ln):
    """Leave two runs to `sync`; returns their spools, in their order."""
    uids = [train("fit", "--lamin.offline").lamin_run.uid for _ in range(2)]
    return [Path(".lamin_spool", uid).absolute() for uid in uids]


@pytest.mark.parametrize("broken", [file_for_folder, no_recovery, no_lock, torn_lock_and_jobs])
def test_spool_that_is_broken_keeps_no_other_back(ln, spools, monkeypatch, capsys, broken):
    first, second = spools
    broken(first, monkeypatch)
    assert sync.main(["."]) == 3
    assert ln.Run.get(second.name).status == "completed"
    assert not second.exists()
    err = capsys.readouterr().err
    assert first.name in err
    assert "Traceback" not in err


def test_spool_that_is_broken_keeps_no_training_back(train, spools, monkeypatch):
    file_for_folder(spools[0], monkeypatch)
    assert train("fit", "--lamin.offline").ending.status == "completed"
    assert train("fit").ending.status == "completed"


def test_listing_and_discarding_go_past_a_broken_spool(spools, monkeypatch, capsys):
    first, second = spools
    file_for_folder(first, monkeypatch)
    assert sync.main([".", "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert (second.name in out, f"{first} is left as it is" in err) == (True, True)
    assert sync.main([".", "--discard"]) == 3
    assert (first.exists(), second.exists()) == (True, False)


# -- a storage that is full, or refuses, as the run begins ----------------------------------------


@pytest.fixture
def upload_fails(monkeypatch):
    """Let the first upload fail with an error; gives what was tried to be uploaded."""
    from lamindb.models import artifact as of_lamindb

    upload = of_lamindb.check_and_attempt_upload

    def fail(error):
        tried = []

        def once(artifact, *words, **options):
            tried.append(artifact.description)
            return error if len(tried) == 1 else upload(artifact, *words, **options)

        monkeypatch.setattr(of_lamindb, "check_and_attempt_upload", once)
        return tried

    return fail


def another_environment(monkeypatch):
    """One that no run had before, or nothing is uploaded."""
    monkeypatch.setattr(
        "lamincli.registry.runs.environment_of",
        lambda uid: {"run_env_pip.txt": f"package=={uid}"},
    )


def test_storage_that_is_full_as_the_run_begins(train, last_run, upload_fails, monkeypatch, capsys):
    another_environment(monkeypatch)
    tried = upload_fails(OSError(errno.ENOSPC, "No space left on device"))
    train("fit")
    assert tried[:2] == ["requirements.txt", "requirements.txt"]
    run = last_run()
    assert (run.status, run.environment is None) == ("completed", False)
    assert "cannot be written: [Errno 28] No space left" in capsys.readouterr().out


def test_storage_that_refuses_as_the_run_begins(train, ln, upload_fails, monkeypatch, capsys):
    another_environment(monkeypatch)
    upload_fails(PermissionError(errno.EACCES, "Permission denied"))
    with pytest.raises(SystemExit) as stop:
        train("fit")
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert "The storage of LaminDB instance" in err
    assert "--lamin.offline" in err
    assert not list(Path.cwd().rglob("*.ckpt"))


def test_environment_that_cannot_be_read(train, last_run, monkeypatch, capsys):
    from lamindb.core import _track_environment

    def fail(run):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(_track_environment, "track_python_environment", fail)
    train("fit")
    assert (last_run().status, last_run().environment) == ("completed", None)
    assert "has no list of its packages: [Errno 5]" in capsys.readouterr().err


def test_no_text_of_ours_has_the_encoding_of_the_locale(shell, project):
    done = shell("fit", "--model=tests_models.TinyModel", "--data=tests_models.TinyData", *TINY,
                 PYTHONWARNDEFAULTENCODING="1")  # fmt: skip
    assert done.returncode == 0, done.stderr
    warned = re.findall(r"^(.*): EncodingWarning", done.stderr, re.MULTILINE)
    assert warned, "others do not care"
    assert not [place for place in warned if "lamincli" in place]
