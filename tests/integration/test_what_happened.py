"""What a run has done is in its record, whatever it is called and whoever has called it."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from tests_models import TinyModel

from lamincli import LaminLightningCLI

MONITORED = ["--checkpoint.monitor=val_loss", "--checkpoint.mode=max"]
LOGGER = ["--trainer.logger=lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir=logs",
          "--trainer.log_every_n_steps=1"]  # fmt: skip


class FitAndTest(Trainer):
    def fit_and_test(
        self, model: Any, datamodule: Any = None, ckpt_path: str | None = None
    ) -> None:
        """Train, then test the best checkpoint."""
        self.fit(model, datamodule=datamodule, ckpt_path=ckpt_path)
        self.test(model, datamodule=datamodule, ckpt_path="best")

    def fit_anew(self, model: Any, datamodule: Any = None) -> None:
        """Train from the beginning."""
        self.fit(model, datamodule=datamodule)

    def look(self, model: Any, datamodule: Any = None) -> None:
        """Evaluate."""
        self.validate(model, datamodule=datamodule)


class CLI(LaminLightningCLI):
    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        own = {name: {"model", "datamodule"} for name in ("fit_and_test", "fit_anew", "look")}
        return {**LaminLightningCLI.subcommands(), **own}


class Tests(LaminLightningCLI):
    def after_fit(self) -> None:
        self.trainer.test(self.model, self.datamodule, ckpt_path="best")


def rows_of(run: Any) -> list[dict[str, str]]:
    (history,) = run.output_artifacts.filter(description="Lightning metrics history")
    return list(csv.DictReader(Path(history.cache()).open(encoding="utf-8")))


@pytest.mark.parametrize("how", ["after_fit", "subcommand"])
def test_a_test_after_the_fit_in_one_run(train, last_run, capsys, how):
    if how == "after_fit":
        train("fit", *MONITORED, *LOGGER, cli=Tests)
    else:
        train("fit_and_test", *MONITORED, *LOGGER, cli=CLI, trainer_class=FitAndTest)
    run = last_run()
    assert run.status == "completed"
    assert set(run.extra_data["metrics"]) == {"train_loss", "val_loss", "test_loss"}
    rows = rows_of(run)
    assert {(row["stage"], row["name"]) for row in rows} >= {
        ("fit", "train_loss"), ("fit", "val_loss"), ("test", "test_loss"),
    }  # fmt: skip
    assert {row["stage"] for row in rows if row["name"] == "train_loss"} == {"fit"}
    assert len([row for row in rows if row["name"] == "train_loss"]) == 4
    out = capsys.readouterr().out
    assert "best checkpoint key" in out
    assert "load it" in out
    assert "test it" not in out, "it was"


def test_own_subcommand_goes_on_and_is_the_latest(train, last_run, capsys):
    arguments = {"cli": CLI, "trainer_class": FitAndTest}
    run = train("fit_and_test", *MONITORED, *LOGGER, **arguments).lamin_run
    train("look", *LOGGER, **arguments)
    assert "is look" not in capsys.readouterr().err
    again = train("fit_and_test", "--lamin.resume=latest", "--trainer.max_epochs=2",
                  *MONITORED, *LOGGER, **arguments)  # fmt: skip
    assert again.lamin_run.uid == run.uid
    assert again.trainer.current_epoch == 2
    rows = rows_of(last_run().__class__.get(uid=run.uid))
    assert [row["step"] for row in rows if row["name"] == "train_loss"] == list("01234567")
    assert len([row for row in rows if row["name"] == "test_loss"]) == 2


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["look"], "only fit can go on with a run, and this is look"),
        (["fit_anew"], "fit_anew takes no ckpt_path"),
        (["test"], "only fit can go on with a run, and this is test"),
    ],
)
def test_what_cannot_go_on_says_so(train, capsys, ln, words, why):
    train("fit")
    number = ln.Run.objects.count()
    with pytest.raises(SystemExit) as ended:
        train(*words, "--lamin.resume=latest", cli=CLI, trainer_class=FitAndTest)
    assert ended.value.code == 2
    assert why in capsys.readouterr().err
    assert ln.Run.objects.count() == number


def test_evaluation_of_its_own_is_not_the_latest_training(train, ln):
    trained = train("fit").lamin_run
    train("look", cli=CLI, trainer_class=FitAndTest)
    cli = train("--trainer.max_epochs=1", run=False)  # no subcommand
    cli.trainer.validate(cli.model, cli.datamodule)
    cli.finish()
    assert cli.lamin_run.extra_data["lamin_train"]["trains"] is False
    loaded = train("--trainer.max_epochs=1", run=False)
    loaded.finish()  # nothing was called
    from lamincli.references import find_run

    assert find_run("latest", ln.Run.filter(), "tests") == trained


class Folds(LaminLightningCLI):
    def fit(self, model: Any, datamodule: Any = None, **options: Any) -> None:
        for _ in range(3):
            self.trainer.fit_loop.epoch_progress.reset()
            self.trainer.fit(model, datamodule=datamodule)
        self.trainer.validate(model, datamodule=datamodule)


def test_folds_are_all_in_the_history(train, last_run):
    train("fit", *LOGGER, cli=Folds)
    rows = [row for row in rows_of(last_run()) if row["name"] == "train_loss"]
    assert len(rows) == 12
    assert {row["stage"] for row in rows} == {"fit"}
    assert [r["stage"] for r in rows_of(last_run()) if r["name"] == "val_loss"][-1] == "validate"


class Sends(TinyModel):
    """Sends values to its loggers itself."""

    def on_train_epoch_end(self) -> None:
        for logger in self.loggers:
            logger.log_metrics({"sent_to_all": 0.1 + 0.2})
        self.loggers[-1].log_metrics({"sent_to_last": 2.0}, step=7)
        self.loggers[-1].log_metrics({"sent_to_last": 2.0}, step=7)


class Adam(TinyModel):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.5)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)]


def test_values_sent_to_the_logger_are_in_the_history(train, last_run):
    train("fit", *LOGGER, "--trainer.callbacks=LearningRateMonitor", "--trainer.max_epochs=2",
          "--trainer.callbacks.logging_interval=step", model_class=Adam)  # fmt: skip
    rows = [row for row in rows_of(last_run()) if row["name"] == "lr-Adam"]
    assert [(row["step"], row["value"]) for row in rows] == [
        *((str(i), "0.5") for i in range(4)), *((str(i), "0.25") for i in range(4, 8)),
    ]  # fmt: skip
    assert last_run().extra_data["metrics"]["lr-Adam"] == 0.25


def test_value_sent_to_two_loggers_is_one_row(train, last_run):
    csv_, other = (f"lightning.pytorch.loggers.{name}" for name in ("CSVLogger", "CSVLogger"))
    loggers = [{"class_path": csv_, "init_args": {"save_dir": "one"}},
               {"class_path": other, "init_args": {"save_dir": "two"}}]  # fmt: skip
    import json

    cli = train("fit", f"--trainer.logger={json.dumps(loggers)}", model_class=Sends)
    rows = [(r["step"], r["name"], float(r["value"])) for r in rows_of(last_run())]
    assert rows.count(("4", "sent_to_all", 0.1 + 0.2)) == 1
    assert rows.count(("7", "sent_to_last", 2.0)) == 2
    assert all("log_metrics" not in vars(logger) for logger in cli.trainer.loggers)


class SendsAll(TinyModel):
    """Sends to its logger what is no number too."""

    def on_train_epoch_end(self) -> None:
        for value in ("text", torch.ones(3), np.ones(2), None, torch.tensor(2.5)):
            for _ in range(2):
                self.logger.log_metrics(metrics={"odd": value}, step=1)


def test_what_is_no_number_ends_nothing(train, last_run):
    from lightning.pytorch.loggers.logger import Logger

    class Own(Logger):
        name, version = "own", 0

        def log_metrics(self, *, step, metrics):
            seen.append(metrics)

        def log_hyperparams(self, *args, **kwargs):
            pass

    class CLI(LaminLightningCLI):
        def before_fit(self):
            self.trainer.loggers = [Own()]

    seen: list[Any] = []
    train("fit", cli=CLI, model_class=SendsAll)
    assert len([one for one in seen if "odd" in one]) == 10
    assert [row["value"] for row in rows_of(last_run()) if row["name"] == "odd"] == ["2.5"] * 2


class Tunable(TinyModel):
    """Has what both tuners change."""

    def __init__(self, lr: float = 0.1, learning_rate: float = 0.1, at: str = "") -> None:
        super().__init__()
        self.save_hyperparameters()


@pytest.mark.parametrize("tuner", ["LearningRateFinder", "BatchSizeFinder"])
def test_trials_of_a_tuner_are_no_training(train, last_run, tuner):
    argument = {"LearningRateFinder": "num_training_steps", "BatchSizeFinder": "max_trials"}[tuner]
    train("fit", *LOGGER, f"--trainer.callbacks={tuner}", f"--trainer.callbacks.{argument}=3",
          "--trainer.max_epochs=2", model_class=Tunable)  # fmt: skip
    rows = rows_of(last_run())
    steps = [int(row["step"]) for row in rows if row["name"] == "train_loss"]
    assert steps == list(range(len(steps)))
    assert len(steps) == last_run().extra_data["lamin_train"]["reached"]["steps"] > 0
    keys = [artifact.key for artifact in last_run().output_artifacts.filter(suffix=".ckpt")]
    assert len(keys) == 1


def test_best_is_beside_last(train, last_run):
    cli = train("fit", *MONITORED, "--trainer.max_epochs=3")
    best = last_run().extra_data["best_metrics"]
    callback = cli.trainer.checkpoint_callback
    assert best == {"val_loss": {"value": float(callback.best_model_score), "mode": "max",
                                 "checkpoint": Path(callback.best_model_path).name}}  # fmt: skip


class OwnTestStep(TinyModel):
    """Inherits its test_step."""


def test_inherited_test_step_can_be_tested(train, capsys):
    train("fit", *LOGGER, model_class=OwnTestStep)
    assert "test it" in capsys.readouterr().out


def test_a_history_of_an_earlier_version_is_read():
    from lamincli.differences import read_rows, read_stages

    text = "step,name,value\n0,loss,1.5\n"
    assert read_rows(text) == [(0, "loss", 1.5)]
    text = "step,name,value,stage\n0,loss,1.5,fit\n4,loss,2.5,test\n"
    assert read_rows(text) == [(0, "loss", 1.5)]
    assert read_stages(text)[1] == ((4, "loss", 2.5), "test")
