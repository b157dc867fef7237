"""Train again from the record alone: identical, or what differs, and from which step."""

import json
import shutil
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tests_models import TinyModel

from lamincli import differences
from lamincli.commands.reproduce import main
from lamincli.references import References

ROOT = Path(__file__).parents[2]
QUIET = "--trainer.enable_progress_bar=false"

MODEL = """
import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

RATE = 0.1


class Model(pl.LightningModule):
    def __init__(self, power: int = 2):
        super().__init__()
        self.power = power
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        loss = self.layer(batch[0]).pow(self.power).mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=RATE)


class Data(pl.LightningDataModule):
    def __init__(self, path: str):
        super().__init__()
        self.path = path

    def train_dataloader(self):
        numbers = [[float(line)] for line in open(self.path)]
        return DataLoader(TensorDataset(torch.tensor(numbers)), batch_size=2, shuffle=True)
"""

CONFIG = """
seed_everything: 7
trainer:
  max_epochs: 2
  accelerator: cpu
  log_every_n_steps: 1
  enable_progress_bar: false
  enable_model_summary: false
  logger:
    class_path: lightning.pytorch.loggers.CSVLogger
    init_args:
      save_dir: logs
checkpoint:
  dirpath: ckpts/mine
"""

SCRIPT = """
import lightning.pytorch as pl
from lamincli import LaminLightningCLI
from my_code import Data, Model

SEED = 7


class CLI(LaminLightningCLI):
    def before_instantiate_classes(self):
        self.config[self.subcommand].seed_everything = pl.seed_everything(SEED)


if __name__ == "__main__":
    CLI(Model, Data)
"""


@pytest.fixture
def code(project):
    """Write a project of a model, its data and a config that name each other by relative paths."""
    (project / "my_code.py").write_text(MODEL)
    (project / "data").mkdir()
    (project / "data/numbers.txt").write_text("".join(f"{n / 10}\n" for n in range(10)))
    (project / "config.yaml").write_text(CONFIG)
    return ["--model=my_code.Model", "--data=my_code.Data", "--data.path=data/numbers.txt"]


@pytest.fixture
def temporary(tmp_path_factory, monkeypatch):
    """Give the commands a folder for temporary files of their own."""
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


def files(folder):
    skipped = (".lamin", "lamindb", "__pycache__")
    found = (p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    return sorted(str(p) for p in found if p.parts[0] not in skipped)


def report(done, project, code):
    assert done.returncode == code, done.stdout + done.stderr
    found = json.loads((project / "report.json").read_text())
    found["findings"] = {f["subject"]: SimpleNamespace(**f) for f in found["findings"]}
    return SimpleNamespace(**found)


def test_digits_reproduce_bit_for_bit(shell, record, project, temporary):
    done = shell("fit", "--config", str(ROOT / "configs/digits.yaml"), QUIET,
                 "--trainer.max_epochs=2", "--trainer.log_every_n_steps=5")  # fmt: skip
    assert done.returncode == 0, done.stderr
    before = files(project)
    done = shell("reproduce", "latest", "--json", "report.json")
    found = report(done, project, 0)
    assert found.identical
    assert {f.state for f in found.findings.values()} == {"identical"}
    assert "the same bit for bit (24 tensors)" in done.stdout
    assert "test it" not in done.stdout, "its files are gone"
    original, child = record()
    assert found.run == original.uid
    assert child.parent == original.uid
    assert child.extra["lamin_train"]["reproduces"] == {
        "run": original.uid, "identical": True, "differs": []
    }  # fmt: skip
    assert f"run {child.uid} reproduces {original.uid}: identical" in done.stdout
    assert [key.replace(child.uid, original.uid) for key in child.outputs] == original.outputs
    assert files(project) == [*before, "report.json"], "written to the scratch folder"
    assert not list(temporary.glob("lamin-train-reproduce-*")), "which is gone"


def test_relative_paths_hold_and_what_differs_is_named(shell, record, project, code, temporary):
    done = shell("fit", "--config=config.yaml", *code)
    assert done.returncode == 0, done.stderr
    before = files(project)
    uid = record()[0].uid
    report(shell("reproduce", uid[:8], "--json=report.json", "--keep=kept"), project, 0)
    assert [p for p in files(project) if not p.startswith("kept/")] == [*before, "report.json"]
    assert (project / "kept/logs").is_dir()
    assert list((project / "kept/mine").glob("*.ckpt"))

    (project / "my_code.py").write_text(MODEL.replace("RATE = 0.1", "RATE = 0.2"))
    done = shell("reproduce", uid, "--json=report.json")
    found = report(done, project, 4)
    assert found.differs == ["code", "results"]
    assert {"-RATE = 0.1", "+RATE = 0.2"} <= set(found.findings["code"].facts)
    assert found.parting["loss"]["step"] == 1, "the first step is before the first update"
    assert "metrics part at step 1: loss: was" in done.stdout
    assert "state dict: 2 of 2 values differ" in done.stdout
    assert record()[-1].extra["lamin_train"]["reproduces"]["differs"] == found.differs

    found = report(shell("reproduce", uid, "--json=report.json", "--code=recorded"), project, 0)
    assert found.findings["code"].state == "identical"

    (project / "my_code.py").write_text(MODEL)
    (project / "data/numbers.txt").write_text("1\n2\n3\n4\n5\n6\n7\n8\n9\n10\n")
    found = report(shell("reproduce", uid, "--json=report.json"), project, 4)
    assert found.differs == ["data", "results"]
    assert found.findings["data"].facts[0].startswith("file data/numbers.txt: was ")
    assert found.parting["loss"]["step"] == 0

    (project / "my_code.py").write_text(MODEL.replace("RATE = 0.1", "raise SystemExit('no')"))
    done = shell("reproduce", uid)
    assert done.returncode == 1, done.stdout
    (project / "my_code.py").write_text(MODEL.replace("return loss", "raise ValueError('boom')"))
    done = shell("reproduce", uid)
    assert done.returncode == 1, done.stdout
    assert "errored, not compared to its end" in done.stdout
    assert "+        raise ValueError('boom')" in done.stdout

    assert set(record()[0].extra["lamin_train"]["modules"]) == {"my_code.py"}
    (project / "data/numbers.txt").unlink()
    done = shell("reproduce", uid)
    assert done.returncode == 2
    assert "has read data/numbers.txt, and there is no such file" in done.stderr
    assert not list(temporary.glob("lamin-train-reproduce-*"))


def test_script_is_started_again_and_a_changed_seed_is_found(shell, record, project, code):
    (project / "train.py").write_text(SCRIPT)
    program = [sys.executable, "train.py"]
    done = shell("fit", "--config=config.yaml", "--data.path=data/numbers.txt", program=program)
    assert done.returncode == 0, done.stderr
    found = report(shell("reproduce", "latest", "--json=report.json"), project, 0)
    assert record()[-1].key == "train.py"
    (project / "train.py").write_text(SCRIPT.replace("SEED = 7", "SEED = 8"))
    found = report(shell("reproduce", "latest", "--json=report.json"), project, 4)
    assert found.run == record()[0].uid, "latest is the latest training, no reproduction of it"
    assert found.differs == ["code", "config", "results"]
    assert found.findings["config"].facts == ["seed_everything: was 7, here 8"]
    report(shell("reproduce", "latest", "--json=report.json", "--code=recorded"), project, 0)
    (project / "train.py").unlink()
    done = shell("reproduce", "latest")
    assert done.returncode == 2
    assert "train.py, which is not there" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(record()) == 4, "nothing was begun"


def test_recorded_source_of_a_package_runs_before_the_installed_one(shell, project, code, record):
    package = project / "pack"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "rates.py").write_text("RATE = 0.1\n")
    source = MODEL.replace("RATE = 0.1", "from pack.rates import RATE")
    (package / "model.py").write_text(source)
    words = ["--model=pack.model.Model", "--data=pack.model.Data", "--data.path=data/numbers.txt"]
    assert shell("fit", "--config=config.yaml", *words).returncode == 0
    (package / "model.py").write_text(source.replace("shuffle=True", "shuffle=False"))
    done = shell("reproduce", "latest", "--code=recorded", "--json=report.json")
    assert report(done, project, 0).findings["code"].state == "identical"
    assert record()[-1].key == "pypackages/pack/model.py"
    assert "running the recorded source of pypackages/pack/model.py" in done.stdout
    shutil.rmtree(package)
    done = shell("reproduce", "latest")
    assert done.returncode == 2
    assert "needs the module pack.model" in done.stderr


# -- what cannot be reproduced ---------------------------------------------------------------------


def test_bad_input_is_refused_before_anything_is_written(
    train, ln, last_run, capsys, tmp_path, temporary
):
    train("fit")
    fitted = last_run()
    train("validate", "--ckpt_path=lamin:run/latest/last")
    validated = last_run()
    other = ln.Run(transform=fitted.transform).save()
    number = ln.Run.objects.count()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    for words, why in [
        (["nope"], "no run in"),
        ([validated.uid], "is no training but a validate"),
        ([other.uid], "was not recorded by lamin-train"),
        ([fitted.uid, "--keep=full"], "it is not empty"),
        ([fitted.uid, "--json=none/r.json"], "there is no folder none"),
    ]:  # fmt: skip
        assert main(words) == 2, words
        assert why in capsys.readouterr().err
    fitted.input_artifacts.clear()
    assert main([fitted.uid]) == 2
    assert "has published no config" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main([fitted.uid, "--code=mine"])
    assert stop.value.code == 2
    assert ln.Run.objects.count() == number
    assert not list(temporary.glob("lamin-train-reproduce-*"))


def test_run_that_has_not_ended_is_refused(train, ln, last_run, capsys):
    train("fit")
    run = last_run()
    ln.Run.objects.filter(id=run.id).update(_status_code=-1)
    assert main([run.uid]) == 2
    assert "has not ended" in capsys.readouterr().err


def test_command_starts_without_torch():
    import subprocess

    code = "import lamincli.commands.reproduce, sys; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# -- the history of the metrics --------------------------------------------------------------------


def history(run):
    path = References().local_path(f"lamin:run/{run.uid}/history")
    return differences.read_history(Path(path))


class Logging(TinyModel):
    seen: list

    def on_train_start(self):
        self.seen = []

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.seen.append((self.global_step, "train_loss", loss.item()))
        return loss


@pytest.mark.parametrize("logger", ["true", "false"])
def test_history_has_every_logged_value_exactly(train, last_run, logger):
    cli = train("fit", "--trainer.log_every_n_steps=1", f"--trainer.logger={logger}",
                model_class=Logging)  # fmt: skip
    rows = history(last_run())
    assert [row for row in rows if row[1] == "train_loss"] == cli.model.seen
    assert [(step, name) for step, name, _ in rows if name == "val_loss"] == [(3, "val_loss")]
    (artifact,) = last_run().output_artifacts.filter(description="Lightning metrics history")
    assert artifact.key.endswith(f"{last_run().uid}/history.csv")
    assert artifact.kind is None


def test_history_without_checkpoints(train, last_run):
    train("fit", "--trainer.enable_checkpointing=false", "--trainer.log_every_n_steps=1")
    assert len(history(last_run())) == 5


def test_history_of_a_training_that_fails_goes_as_far_as_it_came(train, last_run):
    with pytest.raises(ValueError, match="boom"):
        train("fit", "--model.at=raise", "--trainer.log_every_n_steps=1")
    assert [step for step, *_ in history(last_run())] == [0, 1]


def test_history_of_a_killed_training_is_published_by_sync(shell, record, project):
    done = shell("fit", "--model=tests_models.TinyModel", "--data=tests_models.TinyData", QUIET,
                 "--trainer.accelerator=cpu", "--trainer.max_epochs=1",
                 "--model.at=kill", "--trainer.log_every_n_steps=1",
                 "--checkpoint.every_n_train_steps=1")  # fmt: skip
    assert done.returncode == -9
    (local,) = project.rglob("history.csv")
    assert "lamindb" not in local.parts
    done = shell("sync")
    assert done.returncode == 0, done.stderr
    (run,) = record()
    assert [key for key in run.outputs if key.endswith("history.csv")]
    assert not (project / ".lamin_spool").exists()
    assert [step for step, *_ in differences.read_history(local)] == [0]


def test_run_that_goes_on_goes_on_with_its_history(train, ln, last_run):
    words = ["--trainer.log_every_n_steps=1", "--trainer.max_epochs=2", "--lamin.run_uid_is_version=true"]  # fmt: skip
    cli = train("fit", *words)
    run, rows = last_run(), history(last_run())
    with pytest.raises(ValueError, match="boom"):
        train("fit", *words, "--model.at=raise")
    ln.context._run, ln.context._transform = run, run.transform  # as if the script had begun it
    checkpoint = cli.trainer.checkpoint_callback.best_model_path
    train("fit", *words, "--trainer.max_epochs=3", f"--ckpt_path={checkpoint}")
    assert history(run)[: len(rows)] == rows
    assert [step for step, name, _ in history(run) if name == "train_loss"] == list(range(12))


@pytest.mark.parametrize("option", ["--lamin.track=false", "--trainer.fast_dev_run=true"])
def test_no_history_without_a_record(train, project, option):
    cli = train("fit", option)
    assert not [cb for cb in cli.trainer.callbacks if type(cb).__name__ == "MetricsHistory"]
    assert not list(project.rglob("history.csv"))


def test_values_are_the_same_with_and_without_history(train):
    states = []
    for track in ("true", "false"):
        torch.manual_seed(0)
        cli = train("fit", "--seed_everything=3", f"--lamin.track={track}")
        states.append(cli.model.state_dict())
    assert all(differences.is_same(states[0][k], states[1][k]) for k in states[0])


def test_circumstances_are_recorded(train, last_run, project):
    (project / "a.txt").write_text("a")
    train("fit", "--model.at=a.txt")
    record = last_run().extra_data["lamin_train"]
    assert record["hardware"]["python"].startswith("3.")
    assert record["hardware"]["threads"] == torch.get_num_threads()
    assert list(record["files"]) == ["a.txt"]
    assert "program" in record
