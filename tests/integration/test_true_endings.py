"""A run says what happened to its training, however the program around it has ended."""

import sys

import pytest
from lightning.pytorch import Trainer
from tests_models import TinyData, TinyModel

from lamincli import LaminLightningCLI

QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
         "--trainer.accelerator=cpu", "--trainer.max_epochs=1"]  # fmt: skip


@pytest.fixture
def made(ln):
    """Make the objects only, as a script does that calls the trainer itself."""

    def make(*words):
        return LaminLightningCLI(TinyModel, TinyData, run=False, args=[*QUIET, *words])

    return make


def said(run):
    run.refresh_from_db()
    record = run.extra_data["lamin_train"]
    assert record["attempts"][-1]["status"] == run.status
    assert record["attempts"][-1].get("reason") == record.get("reason")
    return run.status, record.get("reason")


def fit(cli):
    cli.trainer.fit(cli.model, cli.datamodule)


def test_fit_that_raised_and_was_caught(made, capsys):
    cli = made("--model.at=raise")
    with pytest.raises(ValueError, match="boom"):
        fit(cli)
    cli.finish()
    reason = "fit was ended by ValueError: boom in user code, which the program caught"
    assert said(cli.lamin_run) == ("errored", reason)
    panel = capsys.readouterr().out
    assert reason in panel
    assert "best checkpoint" not in panel
    assert cli.ending.exit_code == 1


def test_test_after_a_fit_that_raised_does_not_hide_it(made):
    cli = made("--model.at=raise")
    with pytest.raises(ValueError, match="boom"):
        fit(cli)
    cli.trainer.test(cli.model, cli.datamodule)
    cli.finish()
    assert said(cli.lamin_run)[0] == "errored"


def test_fit_that_is_tried_again_and_comes_to_its_end(made):
    cli = made("--model.at=raise")
    with pytest.raises(ValueError, match="boom"):
        fit(cli)
    cli.model.hparams["at"] = ""
    fit(cli)
    cli.trainer.test(cli.model, cli.datamodule)
    cli.finish()
    assert said(cli.lamin_run) == ("completed", None)


def test_test_that_raised_after_a_fit_is_told(made):
    cli = made()
    fit(cli)
    cli.datamodule.test_dataloader = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        cli.trainer.test(cli.model, cli.datamodule)
    cli.finish()
    reason = "test was ended by ZeroDivisionError: division by zero"
    assert said(cli.lamin_run) == ("completed", reason)


def test_run_in_which_nothing_was_called(made, capsys):
    cli = made()
    cli.finish()
    reason = "nothing was trained or evaluated: its trainer was not called"
    assert said(cli.lamin_run) == ("aborted", reason)
    assert reason in capsys.readouterr().out


def test_word_of_the_script_is_kept(made):
    cli = made()
    fit(cli)
    cli.finish("errored")
    assert said(cli.lamin_run) == ("errored", None)


class Careless(Trainer):
    """A trainer whose fit raises nothing."""

    def fit(self, *args, **kwargs):
        try:
            super().fit(*args, **kwargs)
        except BaseException as error:
            print("caught", error)


class Lazy(Trainer):
    def fit(self, *args, **kwargs):
        """Train nothing."""


def test_overridden_fit_that_swallows(train, last_run):
    cli = train("fit", "--model.at=raise", trainer_class=Careless)
    status, reason = said(last_run())
    assert status == "errored"
    assert "boom in user code" in reason
    assert cli.ending.exit_code == 1


def test_overridden_fit_that_trains_nothing(train, last_run):
    train("fit", trainer_class=Lazy)
    assert said(last_run()) == ("aborted", "nothing was trained: its trainer was not called")


def test_no_stage_follows_a_fit_that_failed(train, last_run, capsys, ln):
    number = ln.Run.objects.count()
    cli = train("fit", "--model.at=raise", "--lamin.then=test", trainer_class=Careless)
    assert "--lamin.then test is left out: the fit is errored" in capsys.readouterr().err
    assert cli.then is None
    assert ln.Run.objects.count() == number + 1


def test_exit_with_zero_in_a_step_is_no_completion(train, last_run, capsys):
    with pytest.raises(SystemExit) as stop:
        train("fit", "--model.at=exit0", "--checkpoint.every_n_train_steps=1")
    assert stop.value.code == 0
    assert said(last_run()) == ("aborted", "fit was ended by sys.exit(0)")
    assert "continue it" in capsys.readouterr().out


def test_exit_with_zero_after_the_fit_is_one(train, last_run):
    class CLI(LaminLightningCLI):
        def after_fit(self):
            sys.exit(0)

    with pytest.raises(SystemExit):
        train("fit", cli=CLI)
    assert said(last_run()) == ("completed", None)


def test_exit_with_zero_before_the_fit_trains_nothing(train, last_run):
    class CLI(LaminLightningCLI):
        def before_fit(self):
            sys.exit(0)

    with pytest.raises(SystemExit):
        train("fit", cli=CLI)
    assert said(last_run()) == ("aborted", "nothing was trained: its trainer was not called")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["fit", "--trainer.limit_train_batches=0"], "trained: there were no training batches"),
        (["fit", "--trainer.max_epochs=0"], "trained: it has reached trainer.max_epochs 0"),
        (["test", "--trainer.limit_test_batches=0"], "evaluated: no batch was run"),
        (["predict", "--trainer.limit_predict_batches=0"], "predicted: no batch was run"),
    ],
)
def test_run_without_a_batch_says_so(train, last_run, capsys, words, why):
    train(*words)
    assert said(last_run()) == ("completed", f"nothing was {why}")
    streams = capsys.readouterr()
    assert f"nothing was {why}" in streams.out
    assert f"nothing was {why}" in streams.err
    assert "test it" not in streams.out


def test_reason_of_an_attempt_ends_with_it(train, last_run):
    with pytest.raises(ValueError, match="boom"):
        train("fit", "--model.at=raise", "--checkpoint.every_n_train_steps=1")
    run = last_run()
    assert said(run) == ("errored", "ValueError: boom in user code")
    train("fit", f"--lamin.resume={run.uid}", "--model.at=")
    run.refresh_from_db()
    record = run.extra_data["lamin_train"]
    assert (run.status, record.get("reason")) == ("completed", None)
    assert [a.get("reason") for a in record["attempts"]] == ["ValueError: boom in user code", None]


class Late(TinyModel):
    """Fails when everything is trained and saved."""

    fails = True

    def on_train_end(self):
        if type(self).fails:
            raise ValueError("too late")


def test_run_that_was_trained_by_an_attempt_before_is_completed(train, last_run, monkeypatch):
    words = ["--checkpoint.save_on_train_epoch_end=true"]
    with pytest.raises(ValueError, match="too late"):
        train("fit", *words, model_class=Late)
    run = last_run()
    assert said(run) == ("errored", "ValueError: too late")
    monkeypatch.setattr(Late, "fails", False)
    train("fit", *words, f"--lamin.resume={run.uid}", model_class=Late)
    reason = "nothing was left to train: the checkpoint has reached trainer.max_epochs 1"
    assert said(run) == ("completed", reason)


def test_reason_holds_no_secret(made):
    cli = made()
    try:
        raise ValueError("cannot log in at https://me:hunter2secret@host/x")
    except ValueError as error:
        cli.finish(error=error)
    status, reason = said(cli.lamin_run)
    assert status == "errored"
    assert "hunter2" not in reason


@pytest.fixture
def at_exit(monkeypatch):
    """Return what the end of the program would call."""
    calls = []
    monkeypatch.setattr("lamincli.cli.atexit.register", calls.append)
    return lambda: next(call for call in calls if call.__name__ == "finish")()


def test_program_that_ends_well_in_the_middle_of_its_training(made, at_exit):
    cli = made("--model.at=exit0")
    with pytest.raises(SystemExit):
        fit(cli)
    at_exit()
    assert said(cli.lamin_run) == (
        "aborted",
        "fit was ended by sys.exit(0)",
    )


def test_exit_that_the_program_caught_and_went_on(made, at_exit):
    cli = made()
    fit(cli)
    with pytest.raises(SystemExit):
        sys.exit(3)
    cli.trainer.test(cli.model, cli.datamodule)
    at_exit()
    assert said(cli.lamin_run) == ("completed", None)


def test_ranks_that_a_strategy_started_are_accounted_for(train, last_run):
    apart = ["--trainer.strategy=ddp_fork", "--trainer.devices=1"]
    train("fit", *apart)
    assert said(last_run()) == ("completed", None)
    train("fit", *apart, "--trainer.limit_train_batches=0")
    assert said(last_run()) == ("completed", "nothing was trained: no batch was run")
