"""Folders that cannot be written, and what is left in those that can."""

import os
import sqlite3
from pathlib import Path

import pytest
from conftest import TINY

FIT = ["fit", "--model=tests_models.TinyModel", "--data=tests_models.TinyData", *TINY]


@pytest.fixture
def private(tmp_path_factory, monkeypatch):
    """Let the processes have a temporary folder and a home of their own."""
    place = tmp_path_factory.mktemp("private")
    for name, folder in (("TMPDIR", "tmp"), ("HOME", "home")):
        (place / folder).mkdir()
        monkeypatch.setenv(name, str(place / folder))
    return place


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_training_runs_without_a_home(shell, project, private):
    (private / "file").write_text("")
    done = shell(*FIT, HOME=str(private / "file" / "home"))
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert done.stderr.count("cannot be written: Not a directory") == 1
    assert "Set LAMIN_SETTINGS_DIR, LAMIN_CACHE_DIR and XDG_STATE_HOME" in done.stderr
    database = sqlite3.connect(project / "lamindb" / ".lamindb" / "lamin.db")
    query = "SELECT _status_code, report_id, environment_id FROM lamindb_run"
    ((status, report, environment),) = database.execute(query)
    assert (status, report is None, environment is None) == (0, False, False)


def test_nothing_is_left_behind(shell, project, private):
    done = shell(*FIT)
    assert done.returncode == 0, done.stderr
    assert [f for f in os.listdir(private / "tmp") if "lamin" in f] == []
    assert everything(private / "home" / ".cache") == []
    state = private / "home" / ".local" / "state" / "lamin-train"
    assert os.listdir(state) == ["key"]
    assert not (project / ".lamin_spool").exists()
