"""The local copy of the config: it never stands in the way, and never overwrites a file."""

from pathlib import Path

import pytest
import yaml
from lightning.pytorch.cli import SaveConfigCallback as StockCallback

import lamincli


def test_users_own_config_file_is_left_alone(train, project):
    """Without a logger, Lightning would write over (or refuse because of) ./config.yaml."""
    own = "# my own file\nmodel:\n  learning_rate: 0.5\n"
    Path("config.yaml").write_text(own)
    for _ in range(2):
        cli = train("fit", "--config=config.yaml", "--trainer.logger=false")
        copy = project / f"lamin_runs/{cli.lamin_run.uid}/config.yaml"
        assert yaml.safe_load(copy.read_text())["model"]["learning_rate"] == 0.5
    assert Path("config.yaml").read_text() == own


def test_second_run_in_the_same_version_folder(train, project):
    logger = ["--trainer.logger=lightning.pytorch.loggers.CSVLogger",
              "--trainer.logger.save_dir=logs", "--trainer.logger.version=same"]  # fmt: skip
    first, second = train("fit", *logger), train("fit", *logger, "--model.learning_rate=0.3")
    folder = project / "logs/lightning_logs/same"
    assert yaml.safe_load((folder / "config.yaml").read_text())["model"]["learning_rate"] == 0.1
    copy = folder / second.lamin_run.uid / "config.yaml"
    assert yaml.safe_load(copy.read_text())["model"]["learning_rate"] == 0.3
    keys = [cli.lamin_run.input_artifacts.get().key for cli in (first, second)]
    assert keys == [f"logs/lightning_logs/{c.lamin_run.uid}/config.yaml" for c in (first, second)]


def test_published_config_trains_the_same_again(train, last_run):
    import torch

    first = train("fit", "--model.learning_rate=0.3", "--seed_everything=5")
    config = last_run().input_artifacts.get().path
    second = train("fit", f"--config={config}")
    assert torch.equal(first.model.layer.weight, second.model.layer.weight)


@pytest.mark.parametrize("overwrite", [True, False])
def test_overwrite_is_as_asked(train, project, overwrite):
    logger = ["--trainer.logger=lightning.pytorch.loggers.CSVLogger",
              "--trainer.logger.save_dir=logs", "--trainer.logger.version=same"]  # fmt: skip
    for rate in ("0.1", "0.2"):
        train("fit", *logger, f"--model.learning_rate={rate}",
              save_config_kwargs={"overwrite": overwrite})  # fmt: skip
    rate = yaml.safe_load((project / "logs/lightning_logs/same/config.yaml").read_text())
    assert rate["model"]["learning_rate"] == (0.2 if overwrite else 0.1)


class LogsTheConfig(StockCallback):
    seen: list[str] = []  # noqa: RUF012

    def save_config(self, trainer, pl_module, stage):
        LogsTheConfig.seen.append(stage)


class OfLamin(lamincli.SaveConfigCallback):
    pass


@pytest.mark.parametrize("callback", [None, StockCallback, LogsTheConfig, OfLamin])
def test_callback_of_the_user_keeps_its_overrides(train, callback):
    LogsTheConfig.seen.clear()
    cli = train("fit", save_config_callback=callback)
    assert LogsTheConfig.seen == (["fit"] if callback is LogsTheConfig else [])
    savers = [cb for cb in cli.trainer.callbacks if isinstance(cb, StockCallback)]
    assert len(savers) == 1
    assert isinstance(savers[0], lamincli.SaveConfigCallback)
    assert cli.lamin_run.input_artifacts.count() == 1


def test_changes_before_instantiation_are_published(train):
    class CLI(lamincli.LaminLightningCLI):
        def before_instantiate_classes(self):
            self.config.fit.model.learning_rate = 0.77

    run = train("fit", cli=CLI).lamin_run
    assert run.params["model"]["learning_rate"] == 0.77
    assert "learning_rate: 0.77" in run.input_artifacts.get().path.read_text()
