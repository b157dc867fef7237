"""No secret reaches the registry, or waits for it in the spool, by whatever way it was given."""

import json
import runpy
import sqlite3
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from conftest import TINY
from lamindb.core import _track_environment
from tests_models import TinyModel
from unit.secrets_of_test import FORMS, private_key, some

from lamincli.redaction import REDACTED
from lamincli.registry.runs import log_path
from lamincli.spool import known_spools

LETTERS = "abcdefghkmnpqrstuvwxyz23456789"
KEY, PASSWORD, TOKEN, HEADER, REMOTE, ARGUMENT = (some(LETTERS, 14) + "7x" for _ in range(6))
GITHUB, PEM = FORMS["github"](), private_key("RSA PRIVATE KEY")
SECRETS = [KEY, PASSWORD, TOKEN, HEADER, REMOTE, ARGUMENT, GITHUB, *PEM.split("\n")[1:-1]]


class Login(NamedTuple):
    user: str
    password: str


class LeakyModel(TinyModel):
    """Has secrets in all of its hyper-parameters, and tells them to everybody."""

    def __init__(
        self,
        api_key: str,
        note: str = "",
        hub: dict | None = None,
        learning_rate: float = 0.1,
    ):
        super().__init__()
        self.save_hyperparameters()
        more = {"ordered": OrderedDict(token=TOKEN), "login": Login("me", PASSWORD)}
        self.save_hyperparameters({**more, "of": {GITHUB: 1}, "raw": GITHUB.encode(), "pem": PEM})

    def on_train_start(self):
        print(f"connecting with {self.hparams.api_key} as {PASSWORD}")
        print(f"Authorization: Token {HEADER}\n{PEM}")

    def training_step(self, batch, batch_idx):
        loss = self.layer(batch[0]).pow(2).mean()
        self.log(f"loss_of_{GITHUB}", loss)
        return loss


@pytest.fixture
def leaky(train, monkeypatch):
    """Train the leaky model; returns the words."""

    def track_environment(run):
        folder = _track_environment.ln_setup.settings.cache_dir / f"environments/run_{run.uid}"
        folder.mkdir(parents=True)
        lines = f"-e git+https://bot:{REMOTE}@github.com/o/r.git@abc#egg=r\nnumpy==2.0\n"
        (folder / "run_env_pip.txt").write_text(lines)

    monkeypatch.setattr(_track_environment, "track_python_environment", track_environment)

    def run(*words):
        hub = {"url": f"https://me:{TOKEN}@host/x", "headers": [["X-Api-Key", HEADER]]}
        return train(
            "fit", f"--model.api_key={KEY}", f"--model.note=tool --token {ARGUMENT} of {KEY}",
            f"--model.hub={json.dumps(hub)}", "--trainer.logger=CSVLogger",
            "--trainer.logger.save_dir=logs", "--checkpoint.every_n_train_steps=1", *words,
            model_class=LeakyModel,
        )  # fmt: skip

    return run


def found_in(text):
    return [secret for secret in SECRETS if secret in text]


def database(ln):
    with sqlite3.connect(ln.setup.settings.instance.db.removeprefix("sqlite:///")) as connection:
        return "\n".join(connection.iterdump())


def test_nothing_published_holds_a_secret(leaky, last_run, ln):
    leaky()
    run = last_run()
    assert run.status == "completed"
    assert not found_in(database(ln))
    artifacts = [*run.output_artifacts.all(), *run.input_artifacts.all(), run.report]
    texts = {a.description: a.path.read_text() for a in artifacts if a.kind != "model"}
    texts["environment"] = environment = run.environment.path.read_text()
    assert not {name: found for name, text in texts.items() if (found := found_in(text))}
    assert environment == f"-e git+https://{REDACTED}@github.com/o/r.git@abc#egg=r\nnumpy==2.0\n"
    assert run.params["model"]["api_key"] == REDACTED
    assert run.params["model"]["note"] == f"tool --token {REDACTED} of {REDACTED}"
    assert f"connecting with {REDACTED} as {REDACTED}" in run.report.path.read_text()
    config, hparams = texts["Lightning CLI config"], texts["Lightning run hyperparameters"]
    assert config.startswith("# Taken out of this copy: model.api_key, model.note, model.hub.url")
    assert yaml.safe_load(config)["model"]["api_key"] == REDACTED
    assert hparams.startswith("# Taken out of this copy: ")
    assert "LeakyModel" not in hparams or "Login" in hparams


def test_nothing_in_the_spool_holds_a_secret(leaky, capsys):
    leaky("--lamin.offline")
    (spool,) = known_spools()
    files = [path for path in spool.rglob("*") if path.is_file() and path.suffix != ".ckpt"]
    names = {path.name for path in files}
    assert {"config.yaml", "hparams.yaml", "history.csv"} <= names
    assert any(name.startswith("run_logs_") for name in names)
    texts = {path.name: path.read_text() for path in files}
    assert not {name: found for name, text in texts.items() if (found := found_in(text))}


def test_log_of_a_killed_run_is_cleaned_when_it_is_saved(ln, train, last_run):
    from lamincli.registry.runs import save_report

    train("fit")
    run = last_run()
    log_path(run.uid).write_text(f"password: {PASSWORD}\n{PEM}\n")
    save_report(run)
    text = run.report.path.read_text()
    assert not found_in(text)
    assert text.endswith(f"password: {REDACTED}\n{REDACTED}\n")


def test_features_have_no_secrets(train, last_run, ln):
    ln.Feature(name="note_of_run", dtype=str).save()
    train("fit", f"--lamin.features.run.note_of_run=see https://me:{PASSWORD}@host/x")
    assert last_run().features["note_of_run"] == f"see https://{REDACTED}@host/x"


def test_reason_of_the_end_has_no_secrets(train, last_run, monkeypatch):
    def fail(*_):
        raise RuntimeError(f"cannot connect to postgresql://me:{PASSWORD}@host/db")

    monkeypatch.setattr(TinyModel, "training_step", fail)
    with pytest.raises(RuntimeError):
        train("fit")
    run = last_run()
    assert not found_in(json.dumps(run.extra_data))
    assert not found_in(run.report.path.read_text())
    assert f"cannot connect to postgresql://{REDACTED}@host/db" in run.report.path.read_text()


def test_hard_coded_secrets_are_told_before_they_are_published(ln, last_run, project, capsys):
    script = project / "train.py"
    script.write_text(
        "from tests_models import TinyData, TinyModel\n"
        "from lamincli import LaminLightningCLI\n"
        f'API_KEY = "{KEY}"\n'
        f'def connect(user="me", password="{PASSWORD}"): ...\n'
        'PAD_TOKEN, TOKEN, SECRET = "[PAD]", "token", "client_secret"\n'
        'pad_token = "[PAD]"\nsecret = "client_secret"\n'
        f"LaminLightningCLI(TinyModel, TinyData, args=['fit', *{TINY}])\n"
    )
    runpy.run_path(str(script), run_name="__main__")
    err = capsys.readouterr().err
    told = f"{script} seems to hold secrets: API_KEY in line 3, password in line 4. It is published"
    assert told in " ".join(err.split())
    assert not found_in(err)
    code = script.read_text()
    recorded = last_run().transform.source_code
    # lamindb takes out what it knows, and takes more for a secret than there is.
    assert not found_in(recorded)
    assert recorded == code.replace(KEY, REDACTED).replace(PASSWORD, REDACTED)


def test_remote_of_git_is_recorded_without_its_credentials(train, last_run, monkeypatch, ln):
    """The remote is read from an environment variable, and from there into the transform."""
    from lamindb.core import _context

    url = f"https://bot:{REMOTE}@github.com/o/r"
    monkeypatch.setattr(ln.settings, "_sync_git_repo", url)
    reference = f"{url}/blob/abc/tests_models.py"
    monkeypatch.setattr(_context, "get_transform_reference_from_git_repo", lambda path: reference)
    train("fit")
    transform = last_run().transform
    assert Path(transform.key).name
    assert REMOTE not in str(transform.reference)
