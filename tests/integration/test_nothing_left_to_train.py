"""What goes on with a run that is complete, or shorter than it is, leaves it as it is."""

import pytest
from lightning.pytorch.callbacks import Callback
from tests_models import TinyModel

from lamincli import LaminLightningCLI


class Other(TinyModel):
    """Another model."""


class Fails(Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 2 or (trainer.current_epoch == 1 and trainer.max_epochs == 2):
            raise ValueError("boom")


class Stops(LaminLightningCLI):
    def before_fit(self):
        self.trainer.callbacks.insert(0, Fails())


def state_of(run):
    run.refresh_from_db()
    record = run.extra_data["lamin_train"]
    return run.status, run.finished_at, len(record["attempts"]), run.output_artifacts.count()


@pytest.fixture
def run(train):
    """A run of three epochs, whose only checkpoint is of the first."""
    words = ["--checkpoint.monitor=train_loss", "--checkpoint.mode=max"]
    cli = train("fit", "--trainer.max_epochs=3", *words, model_class=Falls)
    assert "epoch=0" in cli.trainer.checkpoint_callback.best_model_path
    assert cli.lamin_run.extra_data["lamin_train"]["reached"] == {"epochs": 3, "steps": 12}
    return cli.lamin_run


class Falls(TinyModel):
    """Is best in the beginning."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("train_loss", -float(self.current_epoch))
        return loss


@pytest.mark.parametrize("word", ["latest", "uid"])
@pytest.mark.parametrize(("epochs", "code"), [(1, 2), (3, 0)])
def test_shorter_and_as_long(train, run, capsys, word, epochs, code):
    before = state_of(run)
    word = run.uid if word == "uid" else word
    with pytest.raises(SystemExit) as ended:
        train("fit", f"--lamin.resume={word}", f"--trainer.max_epochs={epochs}", model_class=Falls)
    assert ended.value.code == code
    told = capsys.readouterr()
    assert "give --trainer.max_epochs more than 3" in told.out + told.err
    assert state_of(run) == before


def test_longer_goes_on(train, run):
    cli = train("fit", "--lamin.resume=latest", "--trainer.max_epochs=4", model_class=Falls)
    assert (cli.lamin_run.uid, cli.ending.status) == (run.uid, "completed")
    assert cli.lamin_run.extra_data["lamin_train"]["reached"] == {"epochs": 4, "steps": 16}


def test_fewer_steps(train, capsys):
    run = train("fit", "--trainer.max_steps=6", "--checkpoint.every_n_train_steps=2").lamin_run
    before = state_of(run)
    with pytest.raises(SystemExit) as ended:
        train("fit", "--lamin.resume=latest", "--trainer.max_steps=2")
    assert ended.value.code == 2
    assert "has trained 4 steps already, and trainer.max_steps is 2" in capsys.readouterr().err
    assert state_of(run) == before


def test_shorter_than_what_an_aborted_run_has(train, capsys, ln):
    with pytest.raises(ValueError, match="boom"):
        train("fit", "--trainer.max_epochs=3", cli=Stops)
    run = ln.Run.objects.order_by("-id").first()
    before = state_of(run)
    with pytest.raises(SystemExit) as ended:
        train("fit", "--lamin.resume=latest", "--trainer.max_epochs=1")
    assert ended.value.code == 2
    assert "has trained 2 epochs already" in capsys.readouterr().err
    assert state_of(run) == before


def test_run_in_the_trash(train, capsys, ln):
    first = train("fit").lamin_run
    second = train("fit").lamin_run
    second.delete()
    with pytest.raises(SystemExit) as ended:
        train("fit", f"--lamin.resume={second.uid}", "--trainer.max_epochs=2")
    assert ended.value.code == 2
    assert f"Run {second.uid} is in the trash" in capsys.readouterr().err
    cli = train("fit", "--lamin.resume=latest", "--trainer.max_epochs=2")
    assert cli.lamin_run.uid == first.uid
    tested = train("test", "--ckpt_path=lamin:run/latest/best")
    assert first in [a.run for a in tested.lamin_run.input_artifacts.filter(kind="model")]


def test_latest_of_another_model(train, capsys, ln):
    run = train("fit").lamin_run
    before = state_of(run)
    with pytest.raises(SystemExit) as ended:
        train("fit", "--lamin.resume=latest", "--trainer.max_epochs=2", model_class=Other)
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert f"run {run.uid} trains tests_models.TinyModel" in err
    assert "Name the run that is meant by its uid" in err
    assert state_of(run) == before


def test_best_without_a_fit(train, capsys, ln):
    train("fit")
    number = ln.Run.objects.count()
    with pytest.raises(SystemExit) as ended:
        train("test", "--ckpt_path=best")
    assert ended.value.code == 2
    assert "--ckpt_path lamin:run/latest/best" in capsys.readouterr().err
    assert ln.Run.objects.count() == number


def test_program_of_a_project_is_continued_by_its_own_words(train, capsys, monkeypatch):
    monkeypatch.setattr("lamincli.cli._program", lambda: ["my-trainer"])
    with pytest.raises(ValueError, match="boom"):
        train("fit", "--trainer.max_epochs=2", "--checkpoint.every_n_train_steps=1", cli=Stops)
    out = capsys.readouterr().out
    assert "my-trainer fit --lamin.resume=" in out
