"""Everything that a class path of jsonargparse can name trains, is recorded and goes on."""

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
