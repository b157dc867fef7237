"""The configs of a project, as they are: short class names, and values that OmegaConf fills in."""

import sys
from pathlib import Path

import pytest
import yaml

PROJECT = """
from tests_models import TinyData, TinyModel

class ShortlyNamed(TinyModel):
    pass

class ShortData(TinyData):
    pass
"""
CONFIG = {
    "model": {"class_path": "ShortlyNamed", "init_args": {"learning_rate": 0.25}},
    "data": {"class_path": "ShortData"},
    "trainer": {"logger": False},
}


@pytest.fixture
def config(project, monkeypatch):
    """A config that names its classes without their module; returns a function that writes one."""
    Path("short_project.py").write_text(PROJECT)
    monkeypatch.syspath_prepend(str(project))

    def write(**more):
        Path("config.yaml").write_text(yaml.safe_dump({**CONFIG, **more}))
        return "--config=config.yaml"

    yield write
    sys.modules.pop("short_project", None)


def both(train):
    """Train as `lamin-train` does: with any model and data."""
    from lightning.pytorch import LightningDataModule, LightningModule

    return lambda *words: train(
        *words, model_class=LightningModule, datamodule_class=LightningDataModule,
        subclass_mode_model=True, subclass_mode_data=True,
    )  # fmt: skip


@pytest.mark.parametrize("where", ["word", "list", "config", "section"])
def test_short_names_after_an_import(train, config, last_run, where):
    if where in ("word", "list"):
        value = "short_project" if where == "word" else "[short_project]"
        words = [config(), f"--lamin.imports={value}"]
    elif where == "config":
        words = [config(lamin={"imports": ["short_project"]})]
    else:
        words = [config()]
        Path("lamin.yaml").write_text("lamin: {imports: short_project}\n")
        words += ["--config=lamin.yaml"]
    both(train)("fit", *words)
    run = last_run()
    assert run.status == "completed"
    assert run.params["model"]["class_path"] == "short_project.ShortlyNamed"
    sys.modules.pop("short_project")
    resumed = both(train)("fit", f"--lamin.resume={run.uid}", "--trainer.max_epochs=2")
    assert resumed.lamin_run == run
    assert resumed.ending.status == "completed"


def test_module_that_is_not_there(train, config, capsys, ln):
    number = ln.Run.objects.count()
    with pytest.raises(SystemExit) as ended:
        both(train)("fit", config(), "--lamin.imports=shrt_project.models")
    assert ended.value.code == 2
    assert "--lamin.imports shrt_project.models: there is no module" in capsys.readouterr().err
    assert ln.Run.objects.count() == number


@pytest.mark.parametrize("name", [".models", "models/net.py", 3])
def test_what_is_no_name_of_a_module(train, config, capsys, name):
    with pytest.raises(SystemExit) as ended:
        both(train)("fit", config(lamin={"imports": [name]}))
    assert ended.value.code == 2
    assert f"--lamin.imports {name}: that is no name of a module" in capsys.readouterr().err


def test_omegaconf(train, config, last_run):
    pytest.importorskip("omegaconf")
    trainer = {"logger": False, "max_steps": "${seed_everything}"}
    word = config(seed_everything=3, trainer=trainer,
                  lamin={"imports": "short_project", "parser_mode": "omegaconf"})  # fmt: skip
    cli = both(train)("fit", word)
    assert cli.trainer.max_steps == 3
    assert last_run().params["trainer"]["max_steps"] == 3
    words = ["--trainer.max_steps=5", "--trainer.max_epochs=2"]
    resumed = both(train)("fit", "--lamin.resume=latest", *words)
    assert (resumed.trainer.max_steps, resumed.lamin_run) == (5, last_run())


def test_omegaconf_that_is_not_installed(train, config, capsys, monkeypatch):
    def refuse(parsers, mode):
        from lamincli.early import use_mode

        class Parser:
            @property
            def parser_mode(self):
                return ""

            @parser_mode.setter
            def parser_mode(self, value):
                raise ImportError(f"omegaconf package is required for {value}")

        use_mode([Parser()], mode)

    monkeypatch.setattr("lamincli.cli.use_mode", refuse)
    with pytest.raises(SystemExit) as ended:
        both(train)("fit", config(), "--lamin.parser_mode=omegaconf")
    assert ended.value.code == 2
    assert "pip install omegaconf" in capsys.readouterr().err
