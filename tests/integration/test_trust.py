"""A folder that others can fill: a clone, an archive, a shared project."""

import hashlib
import os
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from lamincli.errors import UntrustedError, UsageError

FIT = ["fit", "--model=tests_models.TinyModel", "--data=tests_models.TinyData",
       "--trainer.max_epochs=1", "--trainer.enable_progress_bar=false",
       "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu"]  # fmt: skip


@pytest.fixture(autouse=True)
def own_home(home):
    """What this user knows is what the test lets them know."""


def contents(folder: Path) -> dict[str, str]:
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != "lock")
    return {str(p): hashlib.md5(p.read_bytes()).hexdigest() for p in files}


def test_a_clone_is_listed_and_published_only_where_the_user_trusts_it(shell, project, tmp_path):
    """As `git clone X && cd X && lamin-train sync`."""
    theirs = {"HOME": str(tmp_path / "their-home")}
    Path(theirs["HOME"]).mkdir()
    assert shell(*FIT, **theirs).returncode == 0
    assert shell(*FIT, "--lamin.offline", **theirs).returncode == 0
    (spool,) = (project / ".lamin_spool").iterdir()
    before = contents(project)
    for words in (["sync"], ["sync", "."], ["sync", "--dry-run"]):
        done = shell(*words)
        assert done.returncode == (0 if "--dry-run" in words else 3), done.stderr
        assert "not written by your lamin-train" in done.stderr
        listed = done.stdout + done.stderr
        assert f"begin run {spool.name} in anonymous/" in listed
        assert "save pins/" in listed
        assert "close as completed" in listed
    assert (
        f"lamin-train sync {shlex.quote(os.path.relpath(spool, project))} --trust"
        in shell("sync").stdout
    )
    done = shell("resume", "latest")
    assert (done.returncode, "which you have not used before" in done.stderr) == (2, True)
    assert "which you have not used before" in shell("doctor").stderr
    assert "needs a folder" in shell("sync", "--trust").stderr
    assert contents(project).items() >= before.items(), "nothing is touched"
    done = shell("sync", ".", "--trust")
    assert done.returncode == 0, done.stderr
    assert not spool.exists()


def test_auto_resumes_no_run_that_somebody_elses_note_names(project, monkeypatch, tmp_path):
    from lamincli import resume

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "theirs"))
    resume.remember("TheirRun00000001", "me/here")
    assert resume._noted_in_folder() == ("TheirRun00000001", "me/here")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "mine"))
    with pytest.raises(UsageError, match="names run TheirRun00000001, and was not written by your"):
        resume._noted_in_folder()


@pytest.fixture
def contained(ln):
    from lamincli.registry.lamin import LaminRegistry

    return LaminRegistry(is_contained=True)


def test_jobs_of_somebody_else_replace_and_remove_nothing(train, contained, tmp_path, ln):
    from lamincli.spool import Job
    from lamincli.spool.content import measure

    run = train("fit").lamin_run
    artifact = ln.Artifact.filter(run=run, kind="model").one()
    file = tmp_path / "a.ckpt"
    file.write_text("theirs")
    size, stamp = measure(file)
    job = Job("save", run.uid, "me/here", "ab", "2026-01-01T00:00:00+00:00", uid="u" * 20,
              key=artifact.key, artifact_kind="model", local_path=str(file), pin=str(file),
              size_bytes=size, stamp=stamp, callback="C", key_is_virtual=False)  # fmt: skip
    saved = contained.save(job, file, lambda job: None)
    assert saved.uid[:-4] == artifact.uid[:-4], "a new version"
    assert saved.path.parent.name == ".lamindb", "no file that its key names is written"
    contained.remove(replace(job, action="remove"), lambda job: None)
    artifact.refresh_from_db()
    assert artifact.path.exists()


def test_jobs_reach_no_storage_that_the_instance_does_not_manage(contained, tmp_path, ln):
    from lamincli.registry.lamin import LaminRegistry
    from lamincli.spool import Job
    from lamincli.spool.content import measure

    place = ln.Storage(root=str(tmp_path / "theirs"), host="elsewhere").save()
    ln.Storage.objects.filter(id=place.id).update(instance_uid="theirs")
    file = tmp_path / "a.ckpt"
    file.write_text("mine")
    size, stamp = measure(file)
    job = Job("save", "", "me/here", "ab", "2026-01-01T00:00:00+00:00", uid="v" * 20, key="k/a.ckpt",
              storage=place.uid, local_path=str(file), pin=str(file), size_bytes=size, stamp=stamp)  # fmt: skip
    for registry in (contained, LaminRegistry()):
        with pytest.raises(UntrustedError, match="is none that"):
            registry.save(job, file, lambda job: None)
    in_place = replace(job, storage="", pin="", local_path="s3://somewhere/a.ckpt", uid="w" * 20)
    with pytest.raises(UntrustedError, match="is in no storage of"):
        contained.save(in_place, None, lambda job: None)


def test_environment_files_are_written_by_their_names_alone(ln, tmp_path):
    from lamincli.registry import runs

    beginning = runs.Beginning(
        uid="envTestRun000001", started_at="2026-01-01T00:00:00+00:00", key="k.py", code="pass\n",
        environment={"../../../../evil.txt": "x", "requirements.txt": "torch\n"},
    )  # fmt: skip
    runs.begin(beginning)
    cache = Path(ln.setup.settings.cache_dir)
    assert not list(cache.parents[1].rglob("evil.txt")) or all(
        path.is_relative_to(cache / "environments") for path in cache.parents[1].rglob("evil.txt")
    )


def test_note_that_is_a_link_is_not_written_through(train, project, tmp_path_factory):
    """A clone may hold a link to a file of the user, which is there or not."""
    home = tmp_path_factory.mktemp("home")
    (project / ".lamin_run.json").symlink_to(home / "rc")
    train("fit", "--lamin.resume=auto")
    assert not (home / "rc").exists()
    (home / "rc").write_text("mine")
    (project / ".lamin_run.json").symlink_to(home / "rc")
    with pytest.raises(SystemExit) as stop:
        train("fit", "--lamin.resume=auto")
    assert stop.value.code == 2
    assert (home / "rc").read_text() == "mine"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_note_that_is_a_pipe_hangs_nobody(train, project, capsys):
    os.mkfifo(project / ".lamin_run.json")
    with pytest.raises(SystemExit) as stop:
        train("fit", "--lamin.resume=auto")
    assert stop.value.code == 2
    assert "cannot be read. Remove it" in capsys.readouterr().err


def test_reason_is_not_written_through_a_link(tmp_path):
    from lamincli.spool import Spool

    mine = tmp_path / "mine"
    mine.write_text("mine")
    spool = Spool(tmp_path / ".lamin_spool" / "RUN")
    for folder in (spool.ready, spool.parked):
        folder.mkdir(parents=True)
    (spool.ready / "00000001.json").write_text("{}")
    (spool.parked / "00000001.json.reason.txt").symlink_to(mine)
    spool._park(spool.ready / "00000001.json", "it is torn")
    assert mine.read_text() == "mine"
    assert (spool.parked / "00000001.json.reason.txt").read_text() == "it is torn\n"
