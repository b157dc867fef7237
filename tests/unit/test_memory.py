"""What references stood for is remembered for when LaminDB cannot be asked."""

import json
import os

import pytest

from lamincli import memory

FILE = {"path": "/data/a.ckpt", "size": 3}


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "index_folder", lambda: tmp_path / "state" / "spools")
    return tmp_path / "state"


def test_each_instance_has_a_memory_of_its_own():
    memory.remember("me/here", "lamin:run/latest/best", "lamin:artifact/A", FILE)
    memory.remember("me/there", "lamin:run/latest/best", "lamin:artifact/B", FILE)
    found = memory.recall("me/here", "lamin:run/latest/best")
    assert (found.pinned, found.file) == ("lamin:artifact/A", FILE)
    assert memory.recall("me/here", "lamin:run/latest/last") is None


def test_the_last_look_counts():
    for pinned in ("lamin:artifact/A", "lamin:artifact/B"):
        memory.remember("me/here", "lamin:run/latest/best", pinned, FILE)
    assert memory.recall("me/here", "lamin:run/latest/best").pinned == "lamin:artifact/B"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pinned": "x"}', json.dumps({"other": 1})])
def test_what_cannot_be_read_is_not_remembered(state, text):
    memory.remember("me/here", "lamin:artifact/A", "lamin:artifact/A", FILE)
    (file,) = (state / "references").iterdir()
    file.write_text(text)
    assert memory.recall("me/here", "lamin:artifact/A") is None


def test_home_that_cannot_be_written_is_no_obstacle(state):
    state.write_text("a file in the place of the folder")
    memory.remember("me/here", "lamin:artifact/A", "lamin:artifact/A", FILE)
    assert memory.recall("me/here", "lamin:artifact/A") is None


def test_job_is_remembered_until_its_run_is_complete():
    known = memory.KnownJob("RUN", "me/here", {"params": {}}, ["/data/checkpoints"], {"C": "RUN"})
    memory.remember_job("slurm:c:7", "fit --config a.yaml", 0, known)
    assert memory.recall_job("slurm:c:7", "fit --config a.yaml", 0) == known
    assert memory.recall_job("slurm:c:7", "fit --config b.yaml", 0) is None
    assert memory.recall_job("slurm:c:8", "fit --config a.yaml", 0) is None
    assert memory.recall_job("slurm:c:7", "fit --config a.yaml", 1) is None
    memory.forget_job("slurm:c:7", "fit --config a.yaml", 0)
    assert memory.recall_job("slurm:c:7", "fit --config a.yaml", 0) is None


KNOWN = {
    "run": "RUN",
    "instance": "me/here",
    "notes": {"started_at": "2026-01-01T00:00:00+00:00", "params": {}, "record": {}},
    "folders": ["/data/checkpoints"],
    "prefixes": {"C": "RUN"},
}


@pytest.mark.parametrize(
    "changed",
    [
        {"run": 7},
        {"instance": None},
        {"notes": []},
        {"notes": {"params": "x"}},
        {"notes": {"record": None}},
        {"notes": {"started_at": "yesterday"}},
        {"notes": {"started_at": 7}},
        {"folders": "/data"},
        {"folders": [["/data"]]},
        {"folders": ["/data\0"]},
        {"prefixes": ["RUN"]},
        {"prefixes": {"C": 1}},
        {"other": 1},
    ],
)
def test_job_of_other_types_is_not_remembered(state, changed):
    memory.remember_job("slurm:c:7", "fit", 0, memory.KnownJob(**KNOWN))
    (file,) = (state / "jobs").iterdir()
    assert memory.recall_job("slurm:c:7", "fit", 0) == memory.KnownJob(**KNOWN)
    file.write_text(json.dumps(KNOWN | changed))
    assert memory.recall_job("slurm:c:7", "fit", 0) is None


@pytest.mark.parametrize("changed", [{"file": "a"}, {"file": {}}, {"pinned": 1}, {"at": None}])
def test_reference_of_other_types_is_not_remembered(state, changed):
    memory.remember("me/here", "lamin:artifact/A", "lamin:artifact/A", FILE)
    (file,) = (state / "references").iterdir()
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    assert memory.recall("me/here", "lamin:artifact/A") is None


def test_nobody_else_can_read_or_plant_what_is_remembered(state):
    before = os.umask(0)
    try:
        memory.remember("me/here", "lamin:artifact/A", "lamin:artifact/A", FILE)
    finally:
        os.umask(before)
    (file,) = (state / "references").iterdir()
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    file.chmod(0o666)
    assert memory.recall("me/here", "lamin:artifact/A") is None


def test_full_disk_leaves_no_part_of_a_file(state, monkeypatch):
    memory.remember("me/here", "lamin:artifact/A", "lamin:artifact/A", FILE)
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    memory.remember("me/here", "lamin:artifact/B", "lamin:artifact/B", FILE)
    assert len(os.listdir(state / "references")) == 1


def test_what_is_old_is_forgotten(state):
    memory.remember("me/here", "lamin:artifact/A", "lamin:artifact/A", FILE)
    (old,) = (state / "references").iterdir()
    part = old.with_name(".killed.part")
    part.write_text("")
    for file, days in ((old, 179), (part, 1)):
        os.utime(file, (file.stat().st_mtime - days * 86_400,) * 2)
    memory.remember("me/here", "lamin:artifact/B", "lamin:artifact/B", FILE)
    assert old.exists()
    assert not part.exists()
    os.utime(old, (old.stat().st_mtime - 2 * 86_400,) * 2)
    memory.remember("me/here", "lamin:artifact/C", "lamin:artifact/C", FILE)
    assert not old.exists()
