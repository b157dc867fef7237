"""Everything that a class path of jsonargparse can name trains, is recorded and goes on."""

import sys
from pathlib import Path

import pytest
from tests_models import TinyModel

from lamincli.parser import import_class


class Made(TinyModel):
    """A model that methods make, as those of model hubs are."""

    class Nested(TinyModel):
        """A class within a class."""

    @classmethod
    def from_pretrained(cls, name: str = "tiny", learning_rate: float = 0.1) -> "Made":
        return cls(learning_rate=learning_rate)

    @staticmethod
    def tiny(learning_rate: float = 0.1) -> "Made":
        return Made(learning_rate=learning_rate)


def make(learning_rate: float = 0.1) -> Made:
    return Made(learning_rate=learning_rate)


@pytest.mark.parametrize("name", ["Made.from_pretrained", "Made.tiny", "Made.Nested", "make"])
def test_it_trains_and_goes_on_and_is_tested(train, last_run, name):
    words = [f"--model={__name__}.{name}", "--model.learning_rate=0.2"]
    train("fit", *words, model_class=None)
    run = last_run()
    assert run.status == "completed"
    assert run.params["model"]["class_path"].endswith(name)
    cli = train("test", *words, "--ckpt_path=lamin:run/latest/best", model_class=None)
    assert cli.ending.status == "completed"
    resumed = train(
        "fit", *words, f"--lamin.resume={run.uid}", "--trainer.max_epochs=2", model_class=None
    )
    assert (resumed.ending.status, resumed.trainer.current_epoch) == ("completed", 2)


@pytest.mark.parametrize(
    "path", ["nowhere.at.all", f"{__name__}.Made.not_there", "tests_models.No.no"]
)
def test_what_is_not_there(path):
    with pytest.raises((ImportError, AttributeError)):
        import_class(path)


MOVED = """
from tests_models import TinyModel

class Net(TinyModel):
    def __init__(self, learning_rate: float = 0.1, at: str = "", old: int = 1):
        super().__init__(learning_rate=learning_rate)
        self.save_hyperparameters()
"""


@pytest.fixture
def moved(train, project, monkeypatch):
    """A checkpoint whose class has moved from `before_move` to `after_move`, and lost `old`."""
    monkeypatch.syspath_prepend(str(project))
    Path("before_move.py").write_text(MOVED)
    cli = train("fit", "--model=before_move.Net", "--model.learning_rate=0.3", model_class=None)
    Path("after_move.py").write_text(MOVED.replace(", old: int = 1", ""))
    Path("before_move.py").unlink()
    del sys.modules["before_move"]
    yield cli.trainer.checkpoint_callback.best_model_path
    sys.modules.pop("after_move", None)


def test_class_that_has_moved(train, moved, capsys):
    words = ["test", "--ckpt_path", moved, "--model=after_move.Net"]
    cli = train(*words, model_class=None)
    assert cli.ending.status == "completed"
    assert cli.model.hparams["learning_rate"] == 0.3, "as of the checkpoint"
    out = capsys.readouterr().out
    assert "the model is after_move.Net, as given; the checkpoint has before_move.Net" in out
    assert "old: in the checkpoint, and no argument of the model" in out
    cli = train(*words, "--model.learning_rate=0.4", model_class=None)
    assert cli.model.hparams["learning_rate"] == 0.4


def test_class_that_is_not_here(train, moved, capsys, ln):
    number = ln.Run.objects.count()
    with pytest.raises(SystemExit) as ended:
        train("test", "--ckpt_path", moved, model_class=None)
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert ln.Run.objects.count() == number
    assert "--model" in err
