"""A reference is a path in `self.hparams`, and a reference wherever those are written."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.loggers import CSVLogger
from tests_models import TinyData, TinyModel

from lamincli import ArtifactPath


class ReadingData(TinyData):
    """Reads its files by `self.hparams`, some as soon as it is made."""

    def __init__(
        self, path: str, files: dict[str, Any] | None = None, typed: ArtifactPath | None = None
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.columns = Path(self.hparams.path).read_text().split(",")

    def setup(self, stage: str) -> None:
        for path in [self.hparams.path, *(self.hparams.files or {}).values(), self.hparams.typed]:
            assert path is None or Path(path).read_text() == "a,b"


class ReadingModel(TinyModel):
    """Has a vocabulary, of which it is as wide as that."""

    def __init__(self, vocabulary: Path, learning_rate: float = 0.1, at: str = "") -> None:
        super().__init__()
        self.save_hyperparameters()
        self.size = len(Path(self.hparams.vocabulary).read_text().split(","))


MODEL = """
import lightning.pytorch as pl, torch
from pathlib import Path
from torch.utils.data import DataLoader, TensorDataset

class Reads(pl.LightningModule):
    def __init__(self, vocabulary: str):
        super().__init__()
        self.save_hyperparameters()
        self.size = len(Path(vocabulary).read_text().split(","))
        self.layer = torch.nn.Linear(4, self.size)
    def training_step(self, batch, batch_idx):
        return self.layer(batch[0]).pow(2).mean()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)
"""


@pytest.fixture
def file(ln, project):
    Path("columns.csv").write_text("a,b")
    return ln.Artifact("columns.csv", key=f"{project.name}/columns.csv").save()


@pytest.fixture
def words(file):
    key = f"lamin:artifact/key/{file.key}"
    return [f"--model.vocabulary={key}", f"--data.path={key}", f"--data.typed={key}",
            f'--data.files={{"one": "{key}"}}']  # fmt: skip


@pytest.fixture
def fit(train, words):
    def run(*more: str, **arguments: Any) -> Any:
        arguments = {"model_class": ReadingModel, "datamodule_class": ReadingData, **arguments}
        return train("fit", *words, *more, **arguments)

    return run


def hparams_of(path: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    checkpoint = torch.load(path, weights_only=True)
    return checkpoint["hyper_parameters"], checkpoint["datamodule_hyper_parameters"]


@pytest.mark.parametrize("weights_only", ["true", "false"])
def test_checkpoint_and_logger_have_the_reference(fit, file, ln, last_run, weights_only):
    cli = fit("--trainer.logger=lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir=.",
              f"--checkpoint.save_weights_only={weights_only}")  # fmt: skip
    assert isinstance(cli.trainer.logger, CSVLogger)
    exact = f"lamin:artifact/{file.uid}"
    path = cli.trainer.checkpoint_callback.best_model_path
    model, data = hparams_of(path)
    assert model["vocabulary"] == exact
    assert (data["path"], data["files"], data["typed"]) == (exact, {"one": exact}, exact)
    logged = yaml.safe_load(Path(cli.trainer.logger.log_dir, "hparams.yaml").read_text())
    assert (logged["vocabulary"], logged["path"], logged["files"]["one"]) == (exact, exact, exact)
    assert file in last_run().input_artifacts.all()
    assert Path(cli.model.hparams.vocabulary).is_file()
    assert (cli.config_dump["model"]["vocabulary"], cli.config.fit.data.path) == (exact, exact)
    assert ReadingModel.load_from_checkpoint(path).size == 2
    assert ReadingData.load_from_checkpoint(path).columns == ["a", "b"]


def test_what_is_given_to_load_from_checkpoint_wins(fit, project):
    path = fit().trainer.checkpoint_callback.best_model_path
    Path("other.csv").write_text("a,b,c")
    assert ReadingModel.load_from_checkpoint(path, vocabulary=Path("other.csv")).size == 3


def test_the_run_goes_on_and_is_tested(fit, train, words, last_run):
    uid = fit().lamin_run.uid
    again = fit(f"--lamin.resume={uid}", "--trainer.max_epochs=2")
    assert (again.ending.status, again.lamin_run.uid) == ("completed", uid)
    tested = train("test", "--ckpt_path=lamin:run/latest/best", *words,
                   model_class=ReadingModel, datamodule_class=ReadingData)  # fmt: skip
    assert (tested.ending.status, tested.model.size) == ("completed", 2)


def test_without_support_for_load_from_checkpoint(fit, file):
    cli = fit(load_from_checkpoint_support=False)
    path = cli.trainer.checkpoint_callback.best_model_path
    assert str(hparams_of(path)[0]["vocabulary"]) == f"lamin:artifact/{file.uid}"
    assert ReadingModel.load_from_checkpoint(path).size == 2


def test_untracked_and_saved_by_hand(fit, file, project):
    cli = fit("--lamin.track=false")
    assert cli.lamin_run is None
    cli.trainer.save_checkpoint("own.ckpt", weights_only=True)
    assert hparams_of("own.ckpt")[0]["vocabulary"] == f"lamin:artifact/{file.uid}"


@pytest.mark.parametrize("first", ["lamindb", "lightning.pytorch", "reads"])
def test_program_that_has_imported_lamindb_loads_it(shell, project, home, first):
    """Whatever it imports first, and although it doesn't know lamin-train."""
    (project / "reads.py").write_text(MODEL)
    Path("columns.csv").write_text("a,b,c")
    code = "import lamindb as ln; print('UID', ln.Artifact('columns.csv', key='c.csv').save().uid)"
    done = shell("-c", f"import lamincli.instance; lamincli.instance.connect(None); {code}",
                 program=[sys.executable])  # fmt: skip
    assert done.returncode == 0, done.stderr
    words = ["fit", "--model=reads.Reads", "--data=tests_models.TinyData",
             "--model.vocabulary=lamin:artifact/key/c.csv", "--trainer.accelerator=cpu",
             "--trainer.max_epochs=1", "--trainer.logger=false"]  # fmt: skip
    done = shell(*words)
    assert done.returncode == 0, done.stderr
    (path,) = Path("checkpoints").glob("*.ckpt")
    code = f"import {first}; import lamindb, lightning.pytorch; from reads import Reads; "
    code += f"model = Reads.load_from_checkpoint({str(path)!r}); print('SIZE', model.size)"
    told = shell("-c", code, program=["env", sys.executable])
    assert "SIZE 3" in told.stdout, told.stderr


def test_ranks_that_are_spawned(shell, project, home):
    (project / "reads.py").write_text(MODEL)
    Path("columns.csv").write_text("a,b,c")
    code = "import lamindb as ln; ln.Artifact('columns.csv', key='c.csv').save()"
    done = shell("-c", f"import lamincli.instance; lamincli.instance.connect(None); {code}",
                 program=[sys.executable])  # fmt: skip
    done = shell("fit", "--model=reads.Reads", "--data=tests_models.TinyData",
                 "--model.vocabulary=lamin:artifact/key/c.csv", "--trainer.accelerator=cpu",
                 "--trainer.devices=2", "--trainer.strategy=ddp_spawn", "--trainer.max_epochs=1",
                 "--trainer.logger=false")  # fmt: skip
    assert done.returncode == 0, done.stderr
    (path,) = Path("checkpoints").glob("*.ckpt")
    hparams = torch.load(path, weights_only=True)["hyper_parameters"]
    assert hparams["vocabulary"].startswith("lamin:artifact/")
