"""A spool that an earlier version wrote is drained by this one. Never change what lies here."""

import shutil
from pathlib import Path

import pytest
from registries import MemoryRegistry

from lamincli.publisher import Drainer
from lamincli.spool import Spool


@pytest.fixture
def unpacked(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    def unpack(version):
        folder = tmp_path / ".lamin_spool" / "aBcDeFgHiJkLmNoP"
        shutil.copytree(Path(__file__).parent / version, folder)
        for state in ("ready", "claimed", "parked", "pins", "tmp"):
            (folder / state).mkdir(exist_ok=True)  # git keeps no empty folders
        spool = Spool(folder, is_trusted=True)  # these formats have no seal
        assert spool.lock.acquire()
        return spool

    return unpack


def test_spool_of_the_first_version_is_drained(unpacked):
    spool = unpacked("spool-1")
    assert [reason for *_, reason in spool.parked_jobs()] == [
        "PermissionError: [Errno 13] Permission denied"
    ]
    spool.unpark()
    registry = Reading()
    drainer = Drainer(spool, registry)
    drainer.recover()
    while drainer.step() == "done":
        pass
    assert drainer.parked == []
    assert registry.calls == [
        ("annotate", "aBcDeFgHiJkLmNoP"),
        ("save", "logs/run/checkpoints/config.yaml"),
        ("save", "logs/run/checkpoints/epoch=0.ckpt"),
        ("save", "logs/run/checkpoints/sharded.ckpt"),
        ("save", "logs/run/checkpoints/epoch=2.ckpt"),
        ("remove", "logs/run/checkpoints/epoch=1.ckpt"),
        ("close", "completed"),
    ]
    jobs = {item.job.key.rpartition("/")[2]: item.job for item in drainer.published}
    first = jobs["epoch=0.ckpt"]
    assert (first.is_best, first.callback, first.mode) == (True, "C", "min")
    assert first.features == {"FeAtUrEuId01": 0.25, "FeAtUrEuId02": True}
    assert (first.instance, first.storage) == ("me/project", "sToRaGeUiD00")
    assert jobs["config.yaml"].is_input
    assert not jobs["epoch=2.ckpt"].key_is_virtual
    assert registry.read == {
        "config.yaml": "a: 1\n", "epoch=0.ckpt": "first", "epoch=2.ckpt": "third",
        "sharded.ckpt": ["rank0", "rank1"],
    }  # fmt: skip
    spool.close()
    assert not spool.folder.exists()


def test_spool_of_the_second_version_is_drained(unpacked):
    """The run itself is in it, features by their names, and its log."""
    from lamincli.registry.runs import Beginning

    registry = Reading()
    drainer = Drainer(unpacked("spool-2"), registry)
    drainer.recover()
    (begun, annotated, saved, closed) = drainer.left()
    beginning = Beginning(**begun.notes)
    assert (beginning.started_at, beginning.key) == ("2026-11-25T10:00:00.000000+00:00", "train.py")
    assert annotated.named["wanted"] == {"organism": "human"}
    assert saved.named == {"lightning": {"score": 0.25, "model_rank": 0}}
    assert closed.notes["metrics"] == {"loss": 0.25}
    while drainer.step() == "done":
        pass
    assert drainer.parked == []
    assert registry.calls == [
        ("begin", "aBcDeFgHiJkLmNoP"),
        ("annotate", "aBcDeFgHiJkLmNoP"),
        ("save", "logs/run/checkpoints/epoch=0.ckpt"),
        ("close", "completed"),
    ]
    assert registry.read == {"epoch=0.ckpt": "first", "log": "the log\n"}


class Reading(MemoryRegistry):
    def __init__(self):
        super().__init__()
        self.read = {}

    def save(self, job, file, note):
        self._call("save", job.key)
        files = sorted(p.name for p in file.iterdir()) if file.is_dir() else file.read_text()
        self.read[file.name] = files
        return object()

    def close_run(self, job, log):
        super().close_run(job, log)
        if log is not None:
            self.read["log"] = log.read_text()
