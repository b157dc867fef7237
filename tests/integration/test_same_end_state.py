"""Once published, a training leaves what lamindb's own checkpoint class leaves."""

from uuid import uuid4

import lightning.pytorch as pl
import pytest
import torch
from tests_models import TinyData, TinyModel

SCORES = [3.0, 1.0, 2.0, 1.0, 0.5, 4.0]


class Scripted(TinyModel):
    """Logs scores that go up, down and tie."""

    def validation_step(self, batch, batch_idx):
        self.log("score_of_epoch", torch.tensor(SCORES[self.current_epoch]))


def settings(i):
    """Spread the values of all options over sixteen trainings, so that pairs of them meet."""
    top_k = [-1, 0, 1, 3][i % 4]
    monitor = "score_of_epoch" if top_k == 3 or i % 3 else None
    logger = i % 4 != 2
    dirpath = "deployments/model" if i % 8 in (1, 6) else None
    return {
        "save_top_k": top_k,
        "monitor": monitor,
        "mode": ["min", "max"][i // 4 % 2],
        "save_last": [None, True, "link", None][(i // 4 + i) % 4],
        "save_weights_only": i % 5 == 0,
        "dirpath": dirpath,
        # Without all three, the second training would make versions of the first one's artifacts.
        "run_uid_is_version": i % 7 != 3 or not (logger or dirpath),
        "logger": logger,
        "enable_version_counter": i % 6 != 0,
    }


@pytest.fixture
def train_one(ln, project, monkeypatch):
    """Train with one of the classes in a folder of its own; returns its record and the callback."""
    from lightning.pytorch.loggers import CSVLogger

    from lamincli import save_lightning_features

    save_lightning_features()
    ln.Feature(name="learning_rate", dtype=float).save()
    ln.Feature(name="current_epoch", dtype=int).save()
    ln.Feature(name="dataset", dtype=str).save()

    def train(kind, name, logger, epochs=None, **options):
        name = f"{name}-{uuid4().hex[:8]}"  # keys without a run uid are shared by all tests
        folder = project / name
        folder.mkdir()
        monkeypatch.chdir(folder)
        transform = ln.Transform(key=f"{project.name}/{name}.py", source_code=name, kind="function")
        run = ln.context._run = ln.Run(transform=transform.save()).save()
        if options.get("dirpath") and not options["run_uid_is_version"]:
            options["dirpath"] = f"{name}-{options['dirpath']}"
        pl.seed_everything(1, verbose=False)
        callback = kind(features={"artifact": {"current_epoch": None, "dataset": "v1"}}, **options)
        pl.Trainer(
            max_epochs=epochs or len(SCORES),
            callbacks=[callback],
            logger=CSVLogger(f"logs-{name}") if logger else False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        ).fit(Scripted(), datamodule=TinyData())
        ln.context._run = None
        return record(ln, run, name), callback

    return train


@pytest.fixture
def both(train_one):
    """Train with both classes in twin folders."""
    from lamindb.integrations import lightning as ll

    from lamincli import Checkpoint

    def train_both(**options):
        stock = train_one(ll.Checkpoint, "stock", **options)
        return stock, train_one(Checkpoint, "ours", **options)

    return train_both


def record(ln, run, name):
    """What a query can see of a run, without what is random."""
    features = {
        row.jsonvalue.feature.name: row.jsonvalue.value
        for row in run.links_jsonvalue.select_related("jsonvalue__feature")
    }
    known = {}
    for artifact in ln.Artifact.objects.filter(run=run):
        key = artifact.key.replace(run.uid, "RUN").replace(name, "NAME")
        assert key not in known
        assert artifact.path.exists()
        values = {}
        links = artifact.links_jsonvalue.select_related("jsonvalue__feature")
        for link in links:
            feature = link.jsonvalue.feature
            full_name = f"{feature.type.name}.{feature.name}" if feature.type else feature.name
            values.setdefault(full_name, []).append(link.jsonvalue.value)
        known[key] = {
            "kind": artifact.kind,
            "description": artifact.description,
            "suffix": artifact.suffix,
            "otype": artifact.otype,
            "key is virtual": artifact._key_is_virtual,
            "real key": artifact._real_key,
            "is latest": artifact.is_latest,
            "files": artifact.n_files,
            "hash type": artifact._hash_type,
            "branch and space": (artifact.branch_id, artifact.space_id),
            "storage": artifact.storage_id,
            "values": values,
        }
    return {
        "run features": {k: str(v).replace(name, "NAME") for k, v in features.items()},
        "inputs": [a.key for a in run.input_artifacts.all()],
        "artifacts": known,
    }


@pytest.mark.parametrize("i", range(16))
def test_the_record_is_that_of_lamindbs_class(both, i):
    (stock, _), (ours, callback) = both(**settings(i))
    assert ours == stock
    assert callback.unpublished == []
    if settings(i)["save_top_k"]:
        assert ours["artifacts"]
        assert callback.last_checkpoint_artifact.key


def test_real_keys_too(both):
    options = settings(3) | {"key_is_virtual": False}
    (stock, _), (ours, _) = both(**options)
    assert ours == stock


def test_score_that_is_no_number_ends_nothing_and_is_not_ranked(train_one, monkeypatch):
    """lamindb's class ends the training there: no database stores NaN in JSON."""
    monkeypatch.setitem(globals(), "SCORES", [2.0, float("nan"), 1.0])
    from lamincli import Checkpoint

    ours, _ = train_one(
        Checkpoint, "ours", logger=False, epochs=3, monitor="score_of_epoch", save_top_k=-1
    )
    ranks = {
        key.split("/")[-1]: value["values"].get("lamindb.lightning.model_rank")
        for key, value in ours["artifacts"].items()
    }
    assert ranks == {
        "epoch=0-step=4.ckpt": [1],
        "epoch=1-step=8.ckpt": None,
        "epoch=2-step=12.ckpt": [0],
    }
