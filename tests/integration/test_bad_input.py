"""What the user typed and cannot work: a clear message, exit code 2, no traceback, no run."""

import re

import pytest
import yaml
from tests_models import TinyData, TinyModel

from lamincli import LaminLightningCLI


@pytest.fixture
def refused(train, ln, capsys):
    """Train with words that cannot work; returns what the user is told."""

    def run(*words, code=2, **arguments):
        before = ln.Run.filter().count()
        with pytest.raises(SystemExit) as stop:
            train(*words, **arguments)
        assert stop.value.code == code
        err = capsys.readouterr().err
        assert "Traceback" not in err
        if code == 2:
            assert ln.Run.filter().count() == before
        return err

    return run


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--trainer.max_epocs=3"], "--trainer.max_epocs=3.*Did you mean --trainer.max_epochs"),
        (["--lamin.featurs.run.a=1"], "Did you mean --lamin.features"),
        (["--chekpoint.monitor=x"], "Did you mean --checkpoint.monitor"),
        (["--trainer.max_epochs=many"], "trainer.max_epochs.*many"),
        (["--checkpoint.mode=best"], "checkpoint.mode.*min.*max"),
        (["--lamin.track=perhaps"], "lamin.track.*perhaps"),
        (["--config=missing.yaml"], "missing.yaml"),
        (["--model.widht=3"], "--model.widht=3.*Did you mean --model.width"),
        (
            ["--lamin.project=nope"],
            r"--lamin.project nope: no such project .*Create it with:.*ln.Project",
        ),
        (["--lamin.space=nope"], "--lamin.space nope: no such space"),
        (["--lamin.branch=mian"], r"--lamin.branch mian: no such branch .*Did you mean main\?"),
        (["--lamin.features.runs.a=1"], "lamin.features.runs"),
        (["--ckpt_path=nowhere.ckpt"], "--ckpt_path nowhere.ckpt: there is no such file"),
        (["--checkpoint.artifact_observers+=tests_models.Colect"], "tests_models.Colect"),
        (["--checkpoint.save_top_k=2"], "save_top_k=2, monitor=None"),
        (["--checkpoint.every_n_epochs=1", "--checkpoint.every_n_train_steps=1"], "exclusive"),
    ],
)
def test_wrong_words_are_named(refused, words, message):
    assert re.search(message, refused("fit", *words), re.DOTALL)


def test_all_paths_that_cannot_be_written(refused, project):
    (project / "c.yaml").write_text(
        'checkpoint:\n  dirpath: "a\\0b"\n  filename: ' + "n" * 300 + "\n"
        "trainer:\n  logger:\n    class_path: CSVLogger\n    init_args:\n"
        '      save_dir: "\\0"\n      name: ' + "n" * 300 + "\n"
    )
    err = refused("fit", "--config=c.yaml", "--ckpt_path=nowhere.ckpt")
    for place in ("checkpoint.dirpath", "checkpoint.filename", "trainer.logger.init_args.save_dir",
                  "trainer.logger.init_args.name", "--ckpt_path nowhere.ckpt"):  # fmt: skip
        assert f"{place}: " in err


def test_wrong_key_in_a_config_file(refused, project):
    (project / "c.yaml").write_text("trainer:\n  max_epocs: 3\n")
    assert "'trainer.max_epocs'. Did you mean trainer.max_epochs" in refused(
        "fit", "--config=c.yaml"
    )


def test_config_that_is_no_yaml(refused, project):
    (project / "c.yaml").write_text("trainer: [\n")
    assert "line 2, column 1" in refused("fit", "--config=c.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe\x00binary", "--config config.yaml: it is no text"),
        (b"\x00\x01", "control characters are not allowed"),
        (b"", "is empty"),
        (b"- a", "begins: - a"),
        (b"a: " + b"[" * 2000 + b"]" * 2000, "--config config.yaml: the values lie too deeply"),
        (b"a: &a [*a]", "--config config.yaml: the values lie too deeply"),
        (b"model: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
    ],
)
def test_config_of_any_content(refused, project, content, message):
    (project / "config.yaml").write_bytes(content)
    assert message in refused("fit", "--config=config.yaml")


def test_config_that_is_a_folder(refused, project):
    (project / "config.yaml").mkdir()
    assert "Path is not a file" in refused("fit", "--config=config.yaml")


@pytest.mark.parametrize("words", [[], ["--trainer.logger=false"]])
def test_folder_to_which_nothing_can_be_written(refused, project, words):
    (project / "file").write_text("")
    err = refused("fit", "--trainer.default_root_dir=file/root", *words)
    assert "trainer.default_root_dir file/root: Not a directory. Name a folder that" in err


def test_folder_to_which_nothing_is_written(train, last_run, project):
    (project / "file").write_text("")
    logger = "--trainer.logger={class_path: lightning.pytorch.loggers.CSVLogger, init_args: {save_dir: logs}}"
    train("fit", "--trainer.default_root_dir=file/root", logger)
    assert (last_run().status, last_run().output_artifacts.count() > 2) == ("completed", True)


def test_all_mistakes_of_the_record_at_once(refused, ln):
    ln.Feature(name="plates", dtype=int).save()
    err = refused(
        "fit", "--lamin.project=nope", "--lamin.features.run.assay=RNA",
        "--lamin.features.run.plates=many", "--lamin.features.artifact.depth=1.5",
    )  # fmt: skip
    assert "--lamin.project nope" in err
    assert "depth, assay not in" in err
    assert 'ln.Feature(name="assay", dtype=str).save()' in err
    assert 'ln.Feature(name="depth", dtype=float).save()' in err
    assert "--lamin.features.run.plates: 'many' does not fit the type int" in err


def test_the_line_that_creates_features_works_as_shown(refused, ln):
    err = refused("fit", "--lamin.features.run.assay_2=RNA")
    import shlex

    line = next(line for line in err.splitlines() if "python -c" in line)
    exec(shlex.split(line)[2])
    assert ln.Feature.get(name="assay_2")._dtype_str == "str"


@pytest.mark.parametrize(
    ("dtype", "good", "bad"),
    [(int, 3, "x"), (float, 0.5, "x"), (float, 1, True), (bool, True, "x"), (str, "x", 3)],
)
def test_feature_values_are_checked_against_their_type(refused, train, ln, dtype, good, bad):
    name = f"typed_{dtype.__name__}_{good}".replace(".", "_")
    ln.Feature(name=name, dtype=dtype).save()
    import json

    err = refused("fit", "--lamin.features.run", json.dumps({name: bad}))
    assert re.search(rf"features.run.{name}: {bad!r} does not fit the type {dtype.__name__}", err)
    cli = train("fit", "--lamin.features.run", json.dumps({name: good}))
    assert cli.lamin_run.features.get_values()[name] == good


def test_unknown_feature_in_a_listed_callback(refused, project):
    callback = {"class_path": "lamincli.Checkpoint",
                "init_args": {"features": {"artifact": {"nowhere": 1}}}}  # fmt: skip
    (project / "c.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [callback]}}))
    assert "nowhere not in" in refused("fit", "--config=c.yaml")


def test_missing_model_class(refused):
    err = refused("fit", model_class=None)
    assert "required: fit.model" in err
    assert "Give --model CLASS_PATH, or model.class_path in the config file." in err
    assert "fit --help" in err


def test_model_class_that_cannot_be_imported(refused):
    assert "No module named 'nowhere'" in refused("fit", "--model=nowhere.Model", model_class=None)


def test_class_name_with_a_typo(refused):
    assert "Did you mean TinyModel" in refused(
        "fit", "--model=tests_models.TinyModl", model_class=None
    )


@pytest.mark.parametrize(
    ("observer", "why"),
    [
        ("tests_models.Colect", "cannot be imported: module 'tests_models' has no attribute"),
        ("tests_models.TinyData", "has no method on_artifact_saved or on_artifact_removed"),
    ],
)
def test_observer_that_is_none(refused, project, observer, why):
    observers = [{"class_path": observer}]
    (project / "c.yaml").write_text(
        yaml.safe_dump({"checkpoint": {"artifact_observers": observers}})
    )
    assert f"checkpoint.artifact_observers: {observer} {why}" in refused("fit", "--config=c.yaml")


def test_unknown_argument_of_a_class_path(refused):
    err = refused(
        "fit", "--model=tests_models.TinyModel", "--model.widht=3", model_class=None
    )  # fmt: skip
    assert "Did you mean width?" in err


def test_wrong_value_is_told_in_few_lines(train, capsys):
    with pytest.raises(SystemExit):
        train("fit", "--model=tests_models.TinyModel", "--model.width=wide", model_class=None)
    err = capsys.readouterr().err
    assert "Expected a <class 'int'>. Got value: wide" in err
    assert "Union" not in err
    assert len(err.splitlines()) == 5
    with pytest.raises(SystemExit):
        train("fit", "--lamin.then=tets")
    err = capsys.readouterr().err
    assert "Expected a typing.Literal['validate', 'test', 'predict']" in err
    assert "Given value: tets" in err


def test_config_that_is_no_yaml_is_not_printed_whole(shell, project):
    (project / "cells.csv").write_text("a,b\n" * 1000)
    done = shell("fit", "--config=cells.csv")
    assert done.returncode == 2
    assert "A config is a YAML file of options, and one given begins: a,b" in done.stderr
    assert len(done.stderr.splitlines()) < 5


def test_unknown_instance(shell):
    done = shell("fit", "--model=tests_models.TinyModel", "--lamin.instance=nobody")
    assert done.returncode == 2
    assert re.search("LaminDB instance anonymous/nobody not found", done.stderr)
    assert "Traceback" not in done.stderr


def test_monitor_that_is_never_logged(refused, last_run):
    err = refused("fit", "--checkpoint.monitor=val_los", code=1)
    assert "The monitored metric 'val_los' was never logged. Did you mean val_loss?" in err
    assert "Logged are: train_loss, val_loss." in err
    assert last_run().status == "errored"


def test_no_stage(ln, capsys, monkeypatch):
    import sys

    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(SystemExit) as stop:
        LaminLightningCLI(TinyModel, TinyData)
    assert stop.value.code == 2
    assert "usage: train.py" in capsys.readouterr().err


def test_parser_that_shall_raise_raises(train, ln):
    with pytest.raises(Exception, match="max_epocs"):
        train("fit", "--trainer.max_epocs=3", parser_kwargs={"exit_on_error": False,
              "fit": {"exit_on_error": False}})  # fmt: skip
    from lamincli.errors import RecordError

    with pytest.raises(RecordError, match="no such project"):
        train("fit", "--lamin.project=nope", parser_kwargs={"exit_on_error": False})


def test_looking_is_free(ln, capsys, monkeypatch, project):
    before = ln.Run.filter().count()
    for words in (["fit", "--help"], ["fit", "--print_config"], ["--help"]):
        with pytest.raises(SystemExit) as stop:
            LaminLightningCLI(TinyModel, TinyData, args=words)
        assert stop.value.code == 0
    assert ln.Run.filter().count() == before
    assert list(project.iterdir()) == []


def test_help_speaks_to_the_person_at_the_terminal(capsys):
    with pytest.raises(SystemExit):
        LaminLightningCLI(TinyModel, TinyData, args=["fit", "--help"])
    out = re.sub(r"\s+", " ", capsys.readouterr().out)
    for text in ("What is recorded in LaminDB, and where:", "Which checkpoints are saved",
                 "--lamin.features.run", "--lamin.run_uid_is_version", "--checkpoint.save_on_exception",
                 "Put the uid of the run into artifact keys"):  # fmt: skip
        assert text in out


def test_run_of_which_something_has_come_is_closed(train, ln, last_run):
    """Here a label, which names the run it was made in; such a run is no mere mistake."""

    class Labelling(TinyModel):
        def __init__(self, learning_rate: float = 0.1, at: str = ""):
            super().__init__(learning_rate=learning_rate, at=at)
            self.label = ln.ULabel(name=f"of {ln.context.run.uid}").save()

    with pytest.raises(SystemExit) as stop:
        train("fit", "--trainer.devices=two", model_class=Labelling)
    assert stop.value.code == 2
    assert last_run().status == "errored"
    assert "devices" in last_run().report.cache().read_text()
    assert ln.ULabel.get(name=f"of {last_run().uid}")


@pytest.mark.parametrize("words", [[], ["--lamin.offline"], ["--lamin.resume=auto"]])
def test_value_that_the_trainer_refuses(refused, train, ln, project, words):
    """The run has begun by then, and would be the latest one."""
    assert "devices" in refused("fit", "--trainer.devices=two", *words)
    assert "not a valid duration" in refused("fit", "--trainer.max_time=1", *words)
    assert ln.context.run is None
    assert not [path for path in project.iterdir() if path.name.startswith(".lamin_")]
    assert train("fit").lamin_run.status == "completed"
