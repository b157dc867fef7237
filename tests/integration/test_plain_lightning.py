"""What a colleague without lamin-train can use: the plain LightningCLI reads a config of ours."""

import sys
from pathlib import Path

import pytest
import yaml

from lamincli.plain_config import plain_config

PLAIN = """
import sys
from lightning.pytorch.cli import LightningCLI
cli = LightningCLI()
callback, = cli.trainer.checkpoint_callbacks
print("MONITOR", callback.monitor, callback.save_top_k, callback.mode, type(callback).__module__)
"""


@pytest.mark.parametrize("where", ["group", "listed"])
def test_plain_cli_trains_with_our_config(shell, project, where):
    options = {"monitor": "val_loss", "save_top_k": 2, "mode": "max"}
    words = [f"--checkpoint.{name}={value}" for name, value in options.items()]
    if where == "listed":
        callbacks = [{"class_path": "lamincli.Checkpoint", "init_args": options}]
        Path("callbacks.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": callbacks}}))
        words = ["--config=callbacks.yaml"]
    done = shell("fit", "--model=tests_models.TinyModel", "--data=tests_models.TinyData", *words,
                 "--trainer.max_epochs=1", "--trainer.accelerator=cpu",
                 "--trainer.logger=lightning.pytorch.loggers.CSVLogger",
                 "--trainer.logger.save_dir=logs")  # fmt: skip
    assert done.returncode == 0, done.stderr
    (config,) = Path("logs").rglob("config.lightning.yaml")
    assert config.with_name("config.yaml").exists()
    Path("plain.py").write_text(PLAIN)
    done = shell("fit", "--config", str(config), program=[sys.executable, "plain.py"])
    assert done.returncode == 0, done.stderr
    assert "MONITOR val_loss 2 max lightning.pytorch.callbacks.model_checkpoint" in done.stdout


def test_own_callbacks_stay():
    given = {
        "lamin": {"track": True}, "checkpoint": {"monitor": "a", "key_is_virtual": True},
        "trainer": {"callbacks": {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint"}},
        "model": {"class_path": "m.Net", "init_args": {"lamin": 1}},
    }  # fmt: skip
    plain = yaml.safe_load(plain_config(yaml.safe_dump(given)))
    assert plain == {"trainer": {"callbacks": [given["trainer"]["callbacks"]]},
                     "model": given["model"]}  # fmt: skip


@pytest.mark.parametrize(
    ("trainer", "listed"),
    [
        ({"enable_checkpointing": False}, None),
        ({}, ["lightning.pytorch.callbacks.ModelCheckpoint"]),
        ({"callbacks": [{"class_path": "m.Own"}]},
         ["m.Own", "lightning.pytorch.callbacks.ModelCheckpoint"]),
    ],
)  # fmt: skip
def test_checkpoint_options_become_a_callback(trainer, listed):
    given = {"trainer": trainer, "checkpoint": {"monitor": "a", "artifact_observers": None}}
    callbacks = yaml.safe_load(plain_config(yaml.safe_dump(given)))["trainer"]["callbacks"]
    assert (callbacks and [one["class_path"] for one in callbacks]) == listed
    if listed:
        assert callbacks[-1]["init_args"] == {"monitor": "a"}


@pytest.mark.parametrize("text", ["- 1", "a: !own 1", ""])
def test_what_is_no_config(text):
    assert plain_config(text) is None
