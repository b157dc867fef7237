"""Lightning's own checkpoint callbacks, as thousands of configs have them, are published."""

from pathlib import Path

import pytest
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from tests_models import TinyModel

from lamincli import Checkpoint, LaminLightningCLI
from lamincli.references import References

STOCK = "lightning.pytorch.callbacks.ModelCheckpoint"
RANKS = {"monitor": "val_loss", "mode": "max", "save_top_k": 2, "save_last": True}


class Mine(ModelCheckpoint):
    """A user's own, with an argument more and an override."""

    def __init__(self, note: str = "", **arguments):
        super().__init__(**arguments)
        self.note, self.saved = note, []

    def _save_checkpoint(self, trainer, filepath):
        self.saved.append(Path(filepath).name)
        super()._save_checkpoint(trainer, filepath)


class BringsItsOwn(TinyModel):
    """A model that configures its checkpoints itself."""

    def configure_callbacks(self):
        return [ModelCheckpoint(monitor="val_loss", save_top_k=-1, filename="of-the-model-{epoch}")]


@pytest.fixture
def listing(project):
    def write(*callbacks):
        text = yaml.safe_dump({"trainer": {"callbacks": list(callbacks)}})
        (project / "callbacks.yaml").write_text(text)
        return "--config=callbacks.yaml"

    return write


def on_disk(project):
    return sorted(file.name for file in project.rglob("*.ckpt") if "lamindb" not in file.parts)


def published(run):
    return sorted(a.key.rpartition("/")[2] for a in run.output_artifacts.filter(kind="model"))


@pytest.mark.parametrize("name", [STOCK, "ModelCheckpoint"])
def test_it_ranks_and_is_published_and_is_the_only_one(train, last_run, listing, project, name):
    config = listing({"class_path": name, "init_args": RANKS})
    cli = train("fit", config, "--trainer.max_epochs=3")
    (callback,) = cli.trainer.checkpoint_callbacks
    assert isinstance(callback, Checkpoint)
    assert len(on_disk(project)) == 3
    assert published(last_run()) == on_disk(project)
    best = Path(References().local_path("lamin:run/latest/best"))
    assert best.read_bytes() == Path(callback.best_model_path).read_bytes()
    assert train("test", config, "--ckpt_path=lamin:run/latest/best").ending.status == "completed"


def test_options_reach_it(train, last_run, listing):
    config = listing({"class_path": STOCK, "init_args": {"monitor": "val_loss"}})
    cli = train("fit", config, "--checkpoint.save_top_k=-1", "--trainer.max_epochs=2",
                "--lamin.run_uid_is_version=false", "--checkpoint.key_is_virtual=false")  # fmt: skip
    assert cli.trainer.checkpoint_callback.save_top_k == -1
    keys = [a.key for a in last_run().output_artifacts.filter(kind="model")]
    assert len(keys) == 2
    assert not any(last_run().uid in key for key in keys)


def test_folder_is_the_prefix_of_keys(train, last_run, listing):
    train("fit", listing({"class_path": STOCK, "init_args": {"dirpath": "crash"}}))
    (artifact,) = last_run().output_artifacts.filter(kind="model")
    assert artifact.key.startswith(f"crash/{last_run().uid}/checkpoints/")


def test_several_and_a_users_own(train, last_run, listing, project):
    config = listing(
        {"class_path": f"{__name__}.Mine", "init_args": {"note": "a", "filename": "mine-{step}"}},
        {"class_path": STOCK, "init_args": {"monitor": "val_loss", "filename": "stock-{epoch}"}},
    )
    cli = train("fit", config)
    mine, _ = cli.trainer.checkpoint_callbacks
    assert (mine.note, mine.saved, type(mine).__name__) == ("a", ["mine-step=4.ckpt"], "Mine")
    assert published(last_run()) == on_disk(project) == ["mine-step=4.ckpt", "stock-epoch=0.ckpt"]


def test_one_that_the_project_forces(train, last_run, project):
    class CLI(LaminLightningCLI):
        def add_arguments_to_parser(self, parser):
            parser.add_lightning_class_args(ModelCheckpoint, "mine")
            parser.set_defaults({"mine.monitor": "val_loss", "mine.filename": "forced"})

    cli = train("fit", cli=CLI)
    assert len(cli.trainer.checkpoint_callbacks) == 1
    assert published(last_run()) == on_disk(project) == ["forced.ckpt"]


def test_one_that_the_model_brings(train, last_run, project):
    cli = train("fit", "--trainer.max_epochs=2", model_class=BringsItsOwn)
    assert len(cli.trainer.checkpoint_callbacks) == 1
    names = [f"of-the-model-epoch={n}.ckpt" for n in range(2)]
    assert published(last_run()) == on_disk(project) == names


def test_other_kinds_of_checkpoints(train, last_run, listing):
    kind = "lightning.pytorch.callbacks.OnExceptionCheckpoint"
    config = listing({"class_path": kind, "init_args": {"dirpath": "crash"}})
    train("fit", config, "--lamin.then=test")
    assert last_run().status == "completed"


def scores(callback):
    return sorted(round(float(score), 6) for score in callback.best_k_models.values())


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("is_tracked_first", [True, False])
def test_what_it_has_ranked_goes_with_the_checkpoint(train, listing, listed, is_tracked_first):
    """From a plain Lightning checkpoint to ours, and back."""
    ranks = {**RANKS, "dirpath": "kept"}  # Lightning ranks anew in another folder
    words = [f"--checkpoint.{name}={value}" for name, value in ranks.items()]
    words = [listing({"class_path": STOCK, "init_args": ranks})] if listed else words
    track = [f"--lamin.track={is_tracked_first}", f"--lamin.track={not is_tracked_first}"]
    first = train("fit", *words, track[0], "--trainer.max_epochs=2").trainer.checkpoint_callback
    path = first.last_model_path
    second = train("fit", *words, track[1], "--trainer.max_epochs=2", f"--ckpt_path={path}")
    assert second.trainer.checkpoint_callback.best_model_path == first.best_model_path
    assert scores(second.trainer.checkpoint_callback) == scores(first)


@pytest.mark.parametrize("strategy", ["ddp", "ddp_spawn"])
def test_two_ranks(shell, record, listing, strategy):
    config = listing({"class_path": STOCK, "init_args": RANKS})
    done = shell("fit", "--model=tests_models.TinyModel", "--data=tests_models.TinyData", config,
                 "--trainer.devices=2", f"--trainer.strategy={strategy}", "--trainer.max_epochs=2",
                 "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false")  # fmt: skip
    assert done.returncode == 0, done.stderr
    (run,) = record()
    assert run.status == "completed"
    assert sum(key.endswith(".ckpt") for key in run.outputs) == 3


@pytest.mark.parametrize("save_dir", ["logs", "./logs", "{project}/logs"])
def test_run_goes_on_with_relative_paths(train, last_run, project, save_dir):
    """A relative and an absolute path of one file are one file."""
    logger = {
        "class_path": "lightning.pytorch.loggers.CSVLogger",
        "init_args": {"save_dir": save_dir.format(project=project)},
    }
    (project / "logger.yaml").write_text(yaml.safe_dump({"trainer": {"logger": logger}}))
    words = ["--config=logger.yaml", "--checkpoint.monitor=val_loss"]
    train("fit", *words)
    uid = last_run().uid
    for epochs in (2, 3):
        train("fit", *words, f"--lamin.resume={uid}", f"--trainer.max_epochs={epochs}")
    assert published(last_run()) == on_disk(project)
    assert len(on_disk(project)) == 1
