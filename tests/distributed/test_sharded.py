"""Checkpoints that are folders, written by all ranks: published once, when the last has written."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch


def of_tests(*, strategy, **options):
    """Return the words for a strategy of the tests, as users give theirs."""
    options = {"strategy": strategy, **options}
    given = {name: json.dumps({"class_path": f"sharded.{kind}"}) for name, kind in options.items()}
    words = [f"--trainer.{name}={value}" for name, value in given.items()]
    return ["--model=tests_models.TinyModel", *words]


STRATEGIES = {
    "ModelParallel": [
        "--model=sharded.FullyShardedModel",
        "--trainer.strategy=lightning.pytorch.strategies.ModelParallelStrategy",
        "--trainer.strategy.data_parallel_size=2",
        "--trainer.strategy.tensor_parallel_size=1",
    ],
    "dcp": of_tests(strategy="ShardedStrategy"),
    "dcp-async": of_tests(strategy="AsyncShardedStrategy"),
    "plugin": of_tests(strategy="EachRankStrategy", plugins="PartOfEachRank"),
    "plugin-async": of_tests(strategy="EachRankStrategy", plugins="AsyncPartOfEachRank"),
}
FIT = ["fit", "--data=tests_models.TinyData", "--data.size=16", "--trainer.max_epochs=3",
       "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
       "--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.logger=false",
       "--checkpoint.dirpath=work/checkpoints", "--checkpoint.enable_version_counter=false",
       "--checkpoint.save_last=true"]  # fmt: skip
NAMES = {
    "ModelParallel": [".metadata", "__0_0.distcp", "__1_0.distcp", "meta.pt"],
    "dcp": [".metadata", "__0_0.distcp", "__1_0.distcp"],
    "dcp-async": [".metadata", "__0_0.distcp", "__1_0.distcp"],
    "plugin": ["rank0.pt", "rank1.pt"],
    "plugin-async": ["rank0.pt", "rank1.pt"],
}
CODE = """
import json, lamindb as ln
print("RECORD" + json.dumps([
    dict(key=a.key, path=str(a.path), n_files=a.n_files, run=a.run.uid, status=a.run.status)
    for a in ln.Artifact.filter(kind="model").order_by("key")
]))
"""


@pytest.fixture
def checkpoints(project):
    """Read the checkpoints that are published."""

    def read():
        words = [sys.executable, "-c", CODE]
        done = subprocess.run(words, cwd=project, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.split("RECORD", 1)[1])

    return read


def files_of(folder):
    return {file.name: file.read_bytes() for file in sorted(Path(folder).iterdir())}


@pytest.mark.parametrize("kind", STRATEGIES)
def test_folder_is_published_when_all_ranks_have_written(shell, project, checkpoints, kind):
    done = shell(*FIT, *STRATEGIES[kind], timeout_s=200)
    assert done.returncode == 0, done.stderr
    assert "set aside" not in done.stderr, done.stderr
    found = checkpoints()
    local = project / "work/checkpoints"
    assert [one["key"].rpartition("/")[2] for one in found] == ["epoch=2-step=6.ckpt", "last.ckpt"]
    for one in found:
        assert one["status"] == "completed"
        assert one["n_files"] == len(NAMES[kind])
        published = files_of(one["path"])
        assert sorted(published) == NAMES[kind]
        assert published == files_of(local / one["key"].rpartition("/")[2])
        if kind.startswith("plugin"):
            steps = {torch.load(Path(one["path"], name))["step"] for name in NAMES[kind]}
            assert steps == {6}
    assert not list(project.rglob(".lamin_spool"))


def sharded_over(ranks, strategy="lightning.pytorch.strategies.ModelParallelStrategy"):
    return [
        "--model=sharded.FullyShardedModel",
        f"--trainer.devices={ranks}",
        f"--trainer.strategy={strategy}",
        f"--trainer.strategy.data_parallel_size={ranks}",
        "--trainer.strategy.tensor_parallel_size=1",
    ]


def test_reference_is_loaded_by_another_number_of_ranks(shell, project, checkpoints):
    learned = ["--model.learning_rate=0.03"]
    done = shell(*FIT, *sharded_over(2), *learned, "--trainer.max_epochs=1", timeout_s=200)
    assert done.returncode == 0, done.stderr
    (project / "work").rename(project / "gone")  # it comes from LaminDB
    words = ["--ckpt_path=lamin:run/latest/last", "--checkpoint.dirpath=other"]
    done = shell(*FIT, *sharded_over(1), *words, timeout_s=200)
    assert done.returncode == 0, done.stderr
    names = sorted(one["key"].rpartition("/")[2] for one in checkpoints())
    assert names == ["epoch=0-step=2.ckpt", "epoch=2-step=10.ckpt", "last.ckpt", "last.ckpt"]
    hparams = torch.load(project / "other/last.ckpt/meta.pt")["hyper_parameters"]
    assert hparams["learning_rate"] == 0.03, "as the checkpoint has it"
    done = shell("test", *FIT[1:3], *sharded_over(2), *words[:1], timeout_s=200)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("is_away", [False, True])
@pytest.mark.parametrize("torn", ["epoch=1-step=4.ckpt", "last.ckpt"])
def test_torn_folder_is_passed_over(shell, project, checkpoints, torn, is_away):
    """A rank is killed while it writes: also over a checkpoint that is in the spool only."""
    words = [*FIT, *sharded_over(2, "sharded.TearingStrategy")]
    outage = {"TAKE_AWAY": "lamindb/.lamindb"} if is_away else {}
    done = shell(*words, "--lamin.patience_s=1", timeout_s=200, TEAR=f"{torn}:4", **outage)
    assert done.returncode != 0
    local = project / "work/checkpoints"
    assert not (local / torn / ".metadata").exists()
    is_over_another = torn == "last.ckpt"
    assert (local / f".before-{torn}" / ".metadata").exists() == is_over_another
    if is_away:
        (project / "away").rename(project / "lamindb/.lamindb")
    done = shell("resume", "latest", "--lamin.patience_s=60", timeout_s=200)
    assert done.returncode == 0, done.stderr
    found = checkpoints()
    assert [one["key"].rpartition("/")[2] for one in found] == ["epoch=2-step=6.ckpt", "last.ckpt"]
    assert not list(local.glob(".before-*"))
    assert len({one["run"] for one in found}) == 1
    for one in found:
        assert one["status"] == "completed"
        published = files_of(one["path"])
        assert sorted(published) == NAMES["ModelParallel"]
        assert published == files_of(project / "work/checkpoints" / one["key"].rpartition("/")[2])
    assert not list(project.rglob(".lamin_spool"))


def test_part_that_a_rank_could_not_write_is_not_published(shell, checkpoints):
    words = [*FIT, *STRATEGIES["plugin-async"]]
    done = shell(*words, timeout_s=200, FAIL_WRITING="epoch=2-step=6.ckpt")
    assert "another rank could not write its part of it" in done.stderr
    assert [one["key"].rpartition("/")[2] for one in checkpoints()] == ["last.ckpt"]


def test_folder_goes_into_a_bucket_and_back(ln, s3, project, request):
    """With its hidden file, by which it is known to be whole."""
    from lamincli.references import References
    from lamincli.registry.lamin import LaminRegistry
    from lamincli.spool import Job, Spool

    s3()
    folder = project / "a.ckpt"
    folder.mkdir()
    for name in NAMES["ModelParallel"]:
        (folder / name).write_text(f"{name} of {project.name}")
    slug, uid = ln.setup.settings.instance.slug, ln.base.uids.base62(16) + "0000"
    job = Job("save", "", slug, "", "2026-01-01T00:00:00+00:00", uid=uid, key=f"{uid}/a.ckpt")
    spool = Spool(project / "spool")
    request.addfinalizer(spool.lock.release)
    assert spool.lock.acquire()
    _, job = spool.add(job, folder)
    artifact = LaminRegistry().save(job, spool.pin_of(job), lambda changed: None)
    assert artifact.n_files == 4
    there = References().local_path(f"lamin:artifact/{artifact.uid}")
    assert there != str(folder)
    assert files_of(there) == files_of(folder)
