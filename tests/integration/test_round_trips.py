"""A config that was saved, printed or published says what the one that was typed said."""

import pytest
import yaml
from conftest import TINY

LISTED = {
    "ours": {
        "class_path": "lamincli.Checkpoint",
        "init_args": {"monitor": "val_loss", "save_top_k": 2, "mode": "max"},
    },
    "guide": {
        "class_path": "lamindb.integrations.lightning.Checkpoint",
        "init_args": {"monitor": "val_loss", "features": {"run": {"organism": "mouse"}}},
    },
}


@pytest.fixture(params=LISTED)
def listed(request, project):
    """Write a config that lists a checkpoint callback."""
    callbacks = [LISTED[request.param]]
    (project / "typed.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": callbacks}}))
    return ["--config=typed.yaml"]


@pytest.fixture
def organism(ln):
    ln.Feature(name="organism", dtype=str).save()


def saved_by(cli):
    return cli._config_saver.local_path


def ranked(cli):
    (callback,) = cli.trainer.checkpoint_callbacks
    return callback.monitor, callback.save_top_k, callback.mode


def test_saved_config_says_what_was_typed(train, listed, organism):
    typed = train("fit", *listed)
    saved = f"--config={saved_by(typed)}"
    again = train("fit", saved)
    assert ranked(again) == ranked(typed)
    assert ranked(train("fit", f"--config={saved_by(again)}")) == ranked(typed)
    assert train("test", saved, "--ckpt_path=lamin:run/latest/best").ending.status == "completed"


def test_default_in_one_place_contradicts_nothing(train, project):
    callbacks = [{"class_path": "lamincli.Checkpoint", "init_args": {"save_top_k": 1}}]
    (project / "a.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": callbacks}}))
    typed = train(
        "fit", "--config=a.yaml", "--checkpoint.save_top_k=2", "--checkpoint.monitor=val_loss"
    )
    assert ranked(typed) == ("val_loss", 2, "min")
    assert ranked(train("fit", f"--config={saved_by(typed)}")) == ("val_loss", 2, "min")


@pytest.mark.parametrize(
    "words", [["--checkpoint.save_top_k=3"], ["--checkpoint.mode=min", "--checkpoint.save_top_k=3"]]
)
def test_what_differs_from_its_default_in_both_places_is_refused(train, project, capsys, words):
    (project / "a.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [LISTED["ours"]]}}))
    with pytest.raises(SystemExit) as stop:
        train("fit", "--config=a.yaml", *words)
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert "checkpoint.save_top_k is 3, but trainer.callbacks[0].init_args.save_top_k is 2" in err


def test_then_resume_and_reproduce(train, listed, organism, last_run):

    train("fit", *listed, "--lamin.then=test")
    assert last_run().status == "completed"


NOISY = "print('from the module')\nfrom lamincli import Checkpoint\nimport sys; print('more')\n"


def test_printed_config_is_yaml_and_nothing_else(shell, project):
    (project / "noisy.py").write_text(NOISY + "class Mine(Checkpoint): pass\n")
    words = ["fit", "--model=tests_models.TinyModel", "--data=tests_models.TinyData", *TINY,
             "--trainer.callbacks=noisy.Mine", "--trainer.callbacks.monitor=val_loss"]  # fmt: skip
    done = shell(*words, "--print_config")
    assert done.returncode == 0, done.stderr
    printed = yaml.safe_load(done.stdout)
    assert printed["trainer"]["callbacks"][0]["init_args"]["monitor"] == "val_loss"
    assert "from the module" in done.stderr
    (project / "printed.yaml").write_text(done.stdout)
    again = shell("fit", "--config=printed.yaml", "--print_config")
    assert yaml.safe_load(again.stdout) == printed
    wrong = shell(*words, "--print_config", "--trainer.max_epocs=3")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "Did you mean --trainer.max_epochs" in wrong.stderr


def test_debugging_shows_the_traceback_of_a_mistake(shell):
    words = ["fit", "--model=tests_models.TinyModel", "--trainer.max_epocs=3"]
    assert "Traceback" not in shell(*words).stderr
    assert "Traceback" in shell(*words, JSONARGPARSE_DEBUG="true").stderr
