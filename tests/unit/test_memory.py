"""What references stood for is remembered for when LaminDB cannot be asked."""

import json

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
