"""The record has the code that ran, although its files are edited while it runs."""

import importlib
import sys
from pathlib import Path

import pytest
from conftest import TINY

from lamincli import LaminLightningCLI

SCRIPT = """
from lamincli import LaminLightningCLI
from pathlib import Path
from tests_models import TinyModel, TinyData

RATE = 0.1
me = Path(__file__)
me.write_text(me.read_text().replace("RATE = 0.1", "RATE = 0.2"))


class Model(TinyModel):
    def on_train_end(self):
        me.write_text("raise SystemExit('edited again')")


LaminLightningCLI(Model, TinyData)
"""


def test_script_that_is_edited_while_torch_is_imported_and_while_it_trains(shell, project, record):
    (project / "train.py").write_text(SCRIPT)
    done = shell("fit", *TINY, "--lamin.then=test", program=[sys.executable, "train.py"])
    assert done.returncode == 0, done.stderr
    fit, test = record()
    assert fit.source == test.source == SCRIPT
    assert (fit.key, test.key) == ("train.py", "train.py")
    assert "doubts" not in {*fit.extra["lamin_train"], *test.extra["lamin_train"]}
    attempts = [run.extra["lamin_train"]["attempts"][0] for run in (fit, test)]
    assert attempts[0]["code"] == attempts[1]["code"]


@pytest.fixture
def model(ln, project, monkeypatch):
    """Import a model of the project."""
    monkeypatch.syspath_prepend(project)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    path = project / "model_that_is_edited.py"
    path.write_text("from tests_models import TinyModel\nRATE = 0.1\nclass Mine(TinyModel): pass\n")
    importlib.invalidate_caches()
    yield importlib.import_module(path.stem)
    del sys.modules[path.stem]


def fit(kind, last_run, *words):
    from tests_models import TinyData

    LaminLightningCLI(kind, TinyData, args=["fit", *TINY, *words])
    return last_run().extra_data["lamin_train"]


def test_module_that_has_changed_before_it_could_be_read_is_told(model, last_run, capsys):
    path = Path(model.__file__)
    path.write_text(path.read_text().replace("0.1", "0.2"))
    record = fit(model.Mine, last_run)
    assert record["modules"][path.name] == "changed"
    assert record["doubts"] == {path.name: "changed"}
    told = f"{path.name}: changed since Python loaded it, so the record cannot hold the code"
    assert told in capsys.readouterr().err


def test_stage_after_a_fit_records_the_same_modules(model, last_run, ln):
    path = Path(model.__file__)

    class Edits(model.Mine):
        def on_train_end(self):
            path.write_text("RATE = 5\n")

    fit(Edits, last_run, "--lamin.then=test")
    test, fitted = ln.Run.objects.order_by("-id")[:2]
    records = [run.extra_data["lamin_train"] for run in (fitted, test)]
    assert [record["stage"] for record in records] == ["fit", "test"]
    assert records[0]["modules"] == records[1]["modules"]
    assert records[0]["modules"][path.name] != "changed"
