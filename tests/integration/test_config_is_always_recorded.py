"""What is published does not hang on what a user's callback does with the file of the config."""

from pathlib import Path

import pytest
import yaml
from lightning.pytorch.cli import SaveConfigCallback

from lamincli import LaminLightningCLI


class Silent(SaveConfigCallback):
    """Overrides `setup` without `super()`."""

    def setup(self, trainer, pl_module, stage):
        self.saw = stage


class Logs(SaveConfigCallback):
    """Lightning's own recipe: the config goes to the logger alone."""

    def save_config(self, trainer, pl_module, stage):
        self.saw = stage


def config_of(run):
    return run.input_artifacts.filter(description="Lightning CLI config")


@pytest.mark.parametrize(
    ("callback", "options"),
    [(Silent, {}), (Logs, {"save_to_log_dir": False})],
)
def test_config_is_recorded(train, last_run, project, callback, options):
    arguments = {"save_config_callback": callback}
    cli = train("fit", "--model.learning_rate=0.3", save_config_kwargs=options, **arguments)
    (config,) = config_of(last_run())
    assert yaml.safe_load(Path(config.cache()).read_text())["model"]["learning_rate"] == 0.3
    assert config.key.endswith("/config.yaml")
    assert list(project.rglob("config*.yaml")) == [], "only the copy in the storage"
    assert cli._config_saver.saw == "fit"
    again = train("fit", f"--lamin.resume={last_run().uid}", "--trainer.max_epochs=2",
                  save_config_kwargs=options, **arguments)  # fmt: skip
    (config,) = config_of(last_run())
    assert again.lamin_run == last_run()
    assert yaml.safe_load(Path(config.cache()).read_text())["trainer"]["max_epochs"] == 2


def test_stages_other_than_fit(train, last_run):
    train("fit")
    train("test", "--ckpt_path=lamin:run/latest/best", save_config_callback=Silent)
    assert len(config_of(last_run())) == 1


def test_once(train, last_run):
    class Twice(LaminLightningCLI):
        def after_fit(self):
            self.trainer.validate(self.model, self.datamodule)

    train("fit", cli=Twice, save_config_callback=Silent)
    assert len(config_of(last_run())) == 1
