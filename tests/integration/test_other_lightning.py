"""Classes of the package `pytorch_lightning` are told from those of `lightning.pytorch`."""

import sys
from types import ModuleType

import pytest
import yaml


@pytest.fixture
def other(monkeypatch):
    """Stand in for the package, which has classes of the same names."""
    package, project = ModuleType("pytorch_lightning"), ModuleType("other_project")
    for name in ("LightningModule", "LightningDataModule", "Callback"):
        theirs = type(name, (), {"__module__": "pytorch_lightning.core"})
        setattr(package, name, theirs)
        setattr(project, name, type(name, (theirs,), {"__module__": "other_project"}))
    monkeypatch.setitem(sys.modules, "pytorch_lightning", package)
    monkeypatch.setitem(sys.modules, "other_project", project)
    return project


def told(train, capsys, *words, **arguments):
    with pytest.raises(SystemExit) as stop:
        train("fit", *words, **arguments)
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return err


WHY = "is made of pytorch_lightning, which is a different package from lightning.pytorch"


@pytest.mark.parametrize(
    ("option", "name", "arguments"),
    [
        ("--model", "LightningModule", {"model_class": None}),
        ("--data", "LightningDataModule", {"datamodule_class": None}),
        ("--trainer.callbacks", "Callback", {}),
    ],
)
def test_in_a_config(other, train, capsys, project, option, name, arguments):
    path = f"other_project.{name}"
    err = told(train, capsys, f"{option}={path}", **arguments)
    assert f"{path} {WHY}" in err
    config = {"class_path": path}
    for part in reversed(option.removeprefix("--").split(".")):
        config = {part: config}
    (project / "c.yaml").write_text(yaml.safe_dump(config))
    assert f"{path} {WHY}" in told(train, capsys, "--config=c.yaml", **arguments)


def test_in_a_script(other, train, capsys):
    assert WHY in told(train, capsys, model_class=other.LightningModule)
    assert WHY in told(train, capsys, datamodule_class=other.LightningDataModule)


def test_other_mistakes_are_told_as_before(train, capsys):
    err = told(train, capsys, "--model=pathlib.Path", model_class=None)
    assert "does not correspond to a subclass of LightningModule" in err
    assert "pytorch_lightning" not in err
