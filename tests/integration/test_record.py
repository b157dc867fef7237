"""What the record of a run holds."""

import json
import os
import sys
from datetime import datetime, timezone
from pathlib import Path

import pytest
from tests_models import TinyModel

from lamincli import LaminLightningCLI

SECRET = "s3cr3t-value"


def test_run_is_complete(train, ln, last_run, project):
    before = ln.Run.filter().count()
    cli = train("fit", "--seed_everything=7")
    run = last_run()
    assert ln.Run.filter().count() == before + 1
    assert run.status == "completed"
    assert run.finished_at >= run.started_at
    assert run.environment is not None
    assert "torch==" in run.environment.path.read_text()
    assert cli.lamin_run.uid == run.uid
    assert ln.context.run is None, "the next run of this process begins afresh"
    assert run.extra_data["lamin_train"]["stage"] == "fit"
    assert run.extra_data["lamin_train"]["process"]["pid"] > 0


def test_resolved_config_is_nested_and_queryable(train, ln, last_run):
    train("fit", "--model.learning_rate=0.0123", "--seed_everything=7")
    run = last_run()
    assert run.params["model"]["learning_rate"] == 0.0123
    assert run.params["trainer"]["max_epochs"] == 1
    assert run.params["seed_everything"] == 7
    assert ln.Run.filter(params__model__learning_rate=0.0123).one().uid == run.uid


def test_seed_chosen_at_random_is_recorded(train, last_run):
    train("fit", "--seed_everything=true")
    assert isinstance(last_run().params["seed_everything"], int)


def test_tracking_leaves_random_numbers_alone(train):
    """The same seed trains the same model with and without a record."""
    import torch

    first = train("fit", "--seed_everything=3")
    other = train("fit", "--seed_everything=3", "--lamin.track=false")
    assert torch.equal(first.model.layer.weight, other.model.layer.weight)


def test_transform_is_the_users_file(train, last_run):
    train("fit")
    transform = last_run().transform
    assert transform.key == "conftest.py", "the caller, as ln.track() there would say"
    assert "def train(ln" in transform.source_code


def test_command_line_is_quoted_and_redacted(train, last_run):
    train("fit", "--model.at", "a b", "--model.api_key", SECRET)
    run = last_run()
    assert run.cli_args == "fit --model.at 'a b' --model.api_key '***REDACTED***'"
    assert run.extra_data["lamin_train"]["command"] == run.cli_args


def test_long_command_line_is_shortened_and_kept_complete(train, last_run):
    train("fit", "--model.at", "x" * 2000)
    run = last_run()
    assert len(run.cli_args) == 1024
    assert run.cli_args.endswith(" …")
    assert run.extra_data["lamin_train"]["command"].count("x") == 2000


def test_no_secret_leaves(train, ln, last_run, project):
    train("fit", "--model.api_key", SECRET, "--trainer.logger=lightning.pytorch.loggers.CSVLogger",
          "--trainer.logger.save_dir=logs")  # fmt: skip
    run = last_run()
    assert SECRET not in json.dumps([run.params, run.cli_args, run.extra_data])
    published = [*run.input_artifacts.all(), *run.output_artifacts.filter(kind="config")]
    assert len(published) == 2
    for artifact in published:
        assert SECRET not in artifact.path.read_text(), artifact.key
    local = project / "logs/lightning_logs/version_0"
    assert SECRET in (local / "config.yaml").read_text(), "the user's own files are untouched"
    assert SECRET in (local / "hparams.yaml").read_text()


def test_hyper_parameters_of_any_kind_are_published(train, last_run, monkeypatch):
    """Lightning writes tuples and objects with tags of Python into hparams.yaml."""
    # Where omegaconf is installed, Lightning refuses keys that are tuples.
    monkeypatch.setattr("lightning.pytorch.core.saving._OMEGACONF_AVAILABLE", False)

    class Odd(TinyModel):
        def __init__(self):
            super().__init__(api_key=SECRET)
            odd = {"edges": {("user", "item"): 1}, "path": Path("a")}
            plain = {"at": "", "learning_rate": 0.1, "api_key": SECRET}
            self.save_hyperparameters({**plain, **odd})

    train("fit", "--trainer.logger=lightning.pytorch.loggers.CSVLogger",
          "--trainer.logger.save_dir=logs", model_class=Odd)  # fmt: skip
    (hparams,) = last_run().output_artifacts.filter(key__endswith="hparams.yaml")
    assert "item" in hparams.path.read_text()
    assert SECRET not in hparams.path.read_text()


def test_metrics_of_every_stage_are_kept(train, last_run):
    train("fit")
    assert set(last_run().extra_data["metrics"]) == {"train_loss", "val_loss"}
    train("validate")
    assert set(last_run().extra_data["metrics"]) == {"val_loss"}
    train("test")
    assert set(last_run().extra_data["metrics"]) == {"test_loss"}


def test_metric_becomes_a_run_feature_where_one_has_its_name(train, ln, last_run):
    ln.Feature(name="val_loss", dtype=float).save()
    try:
        train("fit")
        run = last_run()
        assert run.features.get_values()["val_loss"] == run.extra_data["metrics"]["val_loss"]
    finally:
        run.features.remove_values("val_loss")
        ln.Feature.get(name="val_loss").delete(permanent=True)


def test_log_holds_what_the_user_saw(train, last_run, capsys):
    class Chatty(TinyModel):
        def on_train_start(self):
            print("hello from the model")
            print("\x1b[31mred\x1b[0m", file=sys.stderr)

    train("fit", model_class=Chatty)
    log = last_run().report.path.read_text()
    assert "hello from the model" in log
    assert "red\n" in log
    assert f"run {last_run().uid} completed" in log, "to the last word"
    assert "\x1b" not in log
    assert not hasattr(sys.stdout, "_copy"), "the streams are given back"


@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
def test_config_is_an_input_of_every_stage(train, last_run, stage):
    train(stage)
    run = last_run()
    config = run.input_artifacts.get(key__endswith="config.yaml")
    assert config.kind == "config"
    assert config.run is None
    assert "max_epochs: 1" in config.path.read_text()


@pytest.mark.parametrize("words", [["--trainer.fast_dev_run=true"], ["--lamin.track=false"]])
def test_untracked_leaves_no_trace(train, ln, words):
    counts = [registry.filter().count() for registry in (ln.Run, ln.Artifact, ln.Transform)]
    cli = train("fit", *words)
    assert cli.lamin_run is None
    assert counts == [registry.filter().count() for registry in (ln.Run, ln.Artifact, ln.Transform)]
    assert cli.trainer.state.finished


def test_untracked_is_plain_lightning(train, project):
    cli = train(
        "fit", "--lamin.track=false", "--checkpoint.save_top_k=-1", "--trainer.max_epochs=2"
    )
    callback = cli.trainer.checkpoint_callback
    assert type(callback).__module__ == "lightning.pytorch.callbacks.model_checkpoint"
    assert callback.save_top_k == -1
    assert (project / "lightning_logs/version_0/config.yaml").exists()


def test_run_of_the_script_is_used_and_left_open(train, ln, last_run):
    ln.track(path=__file__, stream_tracking=False)
    uid = ln.context.run.uid
    cli = train("fit")
    assert cli.lamin_run.uid == uid == last_run().uid
    assert last_run().status == "started"
    assert last_run().params["trainer"]["max_epochs"] == 1
    ln.finish()
    assert last_run().status == "completed"


def test_run_false_is_closed_by_finish(train, ln, last_run, project):
    from tests_models import TinyData

    cli = LaminLightningCLI(TinyModel, TinyData, run=False, args=["--trainer.max_epochs=1"])
    assert cli.lamin_run.status == "started"
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    cli.finish()
    cli.finish()
    run = last_run()
    assert run.status == "completed"
    assert set(run.extra_data["metrics"]) == {"train_loss", "val_loss"}
    assert run.output_artifacts.filter(kind="model").count() == 1


def test_next_run_of_the_process_closes_an_open_one(train, last_run, project):
    from tests_models import TinyData

    first = LaminLightningCLI(TinyModel, TinyData, run=False, args=[])
    train("fit")
    assert last_run().uid != first.lamin_run.uid
    assert first.lamin_run.status == "aborted", "it has trained nothing"


def test_run_within_a_run_is_its_child(train, last_run, ln):
    from tests_models import TinyData

    class Outer(TinyModel):
        def on_train_epoch_end(self):
            if self.current_epoch == 0:
                LaminLightningCLI(TinyModel, TinyData, args=["fit", "--trainer.max_epochs=1"])

    cli = train("fit", "--trainer.max_epochs=2", "--checkpoint.save_top_k=-1", model_class=Outer)
    inner = last_run()
    assert cli.lamin_run.uid != inner.uid
    assert inner.initiated_by_run.uid == cli.lamin_run.uid
    assert inner.status == cli.lamin_run.status == "completed"
    assert inner.output_artifacts.filter(kind="model").count() == 1
    assert cli.lamin_run.output_artifacts.filter(kind="model").count() == 2
    assert ln.context.run is None


def test_training_after_the_end_of_the_run_publishes_nothing(train, ln, project):
    from tests_models import TinyData

    cli = LaminLightningCLI(TinyModel, TinyData, run=False, args=["--trainer.max_epochs=1"])
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    cli.finish()
    before = ln.Artifact.filter().count()
    cli.trainer.fit_loop.max_epochs = 2
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    assert ln.Artifact.filter().count() == before


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError("no"), "errored"), (KeyboardInterrupt(), "aborted")]
)
def test_run_whose_beginning_is_ended_is_closed(train, last_run, ln, monkeypatch, error, status):
    from lamincli.registry import runs

    train("fit")
    first = last_run()
    with monkeypatch.context() as patch:
        patch.setattr(runs, "use_noted", lambda *_: (_ for _ in ()).throw(error))
        with pytest.raises(type(error)):
            train("fit")
    assert last_run() != first
    assert (last_run().status, last_run().finished_at is not None) == (status, True)
    assert ln.context.run is None
    train("fit")
    assert last_run().status == "completed"


def test_run_that_its_scheduler_does_not_start_again_is_closed(train, last_run, ln):
    from lamincli.registry import runs

    cli = train("fit")
    run = last_run()
    runs.set_ending(run, "scheduled", run.finished_at)
    assert last_run().status == "scheduled"
    cli._tracked.goes_on_no_more()
    assert (last_run().status, last_run().finished_at is not None) == ("aborted", True)


def test_run_that_ends_while_it_is_looked_at_is_not_closed(train, last_run, monkeypatch, ln):
    from lamincli import tracking
    from lamincli.process import ProcessIdentity

    train("fit")
    run = last_run()
    run.extra_data["lamin_train"]["process"]["pid"] = 999_999_999
    run._status_code = -1
    run.save()

    def ends_now(self):
        ln.Run.objects.filter(id=run.id).update(_status_code=0)
        return True

    monkeypatch.setattr(ProcessIdentity, "is_gone", ends_now)
    assert tracking.close_gone_runs() == []
    assert last_run().status == "completed"


def test_project_and_branch(train, ln, last_run):
    ln.Project(name="atlas").save()
    ln.Branch(name="trial").save()
    train("fit", "--lamin.project=atlas", "--lamin.branch=trial")
    run = last_run()
    assert [p.name for p in run.projects.all()] == ["atlas"]
    assert run.branch.name == "trial"
    train("fit")
    assert last_run().branch.name == "main", "the next run does not inherit them"
    assert not last_run().projects.exists()


def test_parent_run_is_recorded(train, last_run, monkeypatch):
    train("fit")
    monkeypatch.setenv("LAMIN_INITIATED_BY_RUN_UID", parent := last_run().uid)
    train("fit")
    assert last_run().initiated_by_run.uid == parent


def test_parent_that_the_instance_does_not_have_is_left_out(train, last_run, monkeypatch, capsys):
    """lamindb ends the job with InvalidArgument, although it may only have inherited the name."""
    monkeypatch.setenv("LAMIN_INITIATED_BY_RUN_UID", "staleStaleStale1")
    train("fit")
    run = last_run()
    assert (run.status, run.initiated_by_run) == ("completed", None)
    assert "run staleStaleStale1, which started this one, is not in" in capsys.readouterr().err
    assert os.environ["LAMIN_INITIATED_BY_RUN_UID"] == "staleStaleStale1"


def test_same_source_under_another_key_never_prompts(ln, project, last_run, monkeypatch):
    """lamindb asks whether the file was renamed or copied; a batch job cannot answer."""
    from lamindb.base.uids import base62_16

    from lamincli.registry.runs import Beginning, begin, leave_context, source_of
    from lamincli.source import Source

    monkeypatch.setattr("builtins.input", lambda _: pytest.fail("a prompt"))
    keys = []
    for name, text in (("a.py", "x = 1"), ("b.py", "x = 1"), ("b.py", "x = 1"), ("b.py", "x = 2"),
                       ("b.py", "x = 1"), ("a.py", "x = 2")):  # fmt: skip
        (project / name).write_text(text)
        source = source_of(Source(path=project / name), "me/project")
        now = datetime.now(timezone.utc).isoformat()
        begin(Beginning(base62_16(), now, **source, attempt={"started_at": now}))
        keys.append((ln.context.transform.key, ln.context.transform.uid))
        assert ln.context.transform.source_code == text
        leave_context()
    assert [key for key, _ in keys] == ["a.py", "b.py", "b.py", "b.py", "b.py", "a.py"]
    uids = [uid for _, uid in keys]
    assert uids[1] == uids[2] == uids[4], "the same text under the same key is the same version"
    assert uids[1][:12] == uids[3][:12] != uids[0][:12], "a copy is a transform of its own"


def test_git_reference_that_cannot_be_had_is_a_warning(train, ln, last_run, monkeypatch, capsys):
    monkeypatch.setenv("LAMINDB_SYNC_GIT_REPO", "https://github.com/nobody/nothing")
    train("fit")
    assert last_run().status == "completed"
    assert "no git reference" in capsys.readouterr().err


def test_environment_that_runs_share_is_an_output_of_none(train, ln, last_run):
    """As lamindb makes it of the first, where two runs of one environment begin at once."""
    train("fit")
    first = last_run()
    ln.Artifact.objects.filter(id=first.environment_id).update(run_id=first.id)
    train("fit")
    assert last_run().environment_id == first.environment_id
    assert ln.Artifact.objects.get(id=first.environment_id).run_id is None
