"""What is published is a copy without secrets; what is trained, now and later, is the original."""

import json
import os
import shutil
import stat
from pathlib import Path

import fsspec
import pytest
import yaml
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.core.saving import load_hparams_from_yaml
from tests_models import Collect, SecretModel, TinyModel

from lamincli import LaminLightningCLI, originals
from lamincli.commands import reproduce
from lamincli.redaction import REDACTED

KEY, PASSWORD, TOKEN = "k3y-of-the-hub", "p4ssw0rd", "t0ken-in-a-dict"
SECRETS = [
    f"--model.api_key={KEY}",
    f"--model.db=postgresql://me:{PASSWORD}@host/db",
    f"--model.hub={{'token': '{TOKEN}', 'size': 3}}",
]
GIVEN = {
    "api_key": KEY,
    "db": f"postgresql://me:{PASSWORD}@host/db",
    "hub": {"token": TOKEN, "size": 3},
}
SECRET = {"model_class": SecretModel}
UNRECORDED = "--trainer.fast_dev_run=1"
NO_LOGGER = ["--trainer.logger=false"]
IN_A_BUCKET = ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=memory://logs",
               "--checkpoint.dirpath=ckpts"]  # fmt: skip


@pytest.fixture(autouse=True)
def made():
    SecretModel.made.clear()
    return SecretModel.made


@pytest.fixture
def stopped(train, last_run, monkeypatch):
    """Train until the third step; returns the run."""

    def run(*words, **arguments):
        monkeypatch.setenv("STOP_AT", "6")
        with pytest.raises(RuntimeError, match="preempted"):
            train("fit", *SECRETS, "--trainer.max_epochs=3", *words, **{**SECRET, **arguments})
        monkeypatch.delenv("STOP_AT")
        return last_run()

    return run


@pytest.fixture
def refused(train, ln, capsys):
    """Train with words that cannot work; returns what the user is told."""

    def run(*words, **arguments):
        before = state(ln)
        count = len(SecretModel.made)
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            train(*words, **{**SECRET, **arguments})
        assert stop.value.code == 2
        assert len(SecretModel.made) == count, "no model was made"
        assert state(ln) == before, "no run was left or changed"
        err = capsys.readouterr().err
        assert "Traceback" not in err
        return err

    return run


def state(ln):
    columns = ("uid", "_status_code", "params", "extra_data", "finished_at")
    return list(ln.Run.objects.order_by("id").values(*columns))


def given_to(model):
    return {name: model.hparams[name] for name in GIVEN}


def published(run):
    return run.input_artifacts.filter(kind="config").order_by("-id").first()


def only_copy(run):
    """Leave the published config of a run alone."""
    for note in published(run).extra_data["lamin_train"]["original"].values():
        Path(note["project"], note["file"]).unlink()


def mode(path):
    return stat.S_IMODE(Path(path).stat().st_mode)


# -- the original -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "attempts"),
    [([], 2), (NO_LOGGER, 1), (IN_A_BUCKET, 1)],
    ids=["logs", "no logger", "bucket"],
)
def test_run_that_goes_on_is_trained_with_what_it_was_given(
    train, stopped, project, words, attempts
):
    run = stopped(*words)
    copy = published(run).path.read_text()
    assert copy.count(REDACTED) >= 3
    assert not any(secret in copy for secret in (KEY, PASSWORD, TOKEN))
    for hparams in run.output_artifacts.filter(description="Lightning run hyperparameters"):
        assert load_hparams_from_yaml(hparams.path)["api_key"] == REDACTED
    (config,) = [path for path in project.rglob("config.yaml") if KEY in path.read_text()]
    assert mode(config) == 0o600
    assert not any(KEY in str(content) for content in fsspec.filesystem("memory").store.values())
    for attempt in range(1, attempts + 1):
        words = [f"--lamin.resume={run.uid}", f"--trainer.max_epochs={attempt + 3}"]
        cli = train("fit", *words, **SECRET)
        assert given_to(cli.model) == GIVEN
        assert cli.lamin_run == run
    modes = [mode(p) for p in project.rglob("config.yaml") if KEY in p.read_text()]
    assert modes == [0o600] * (attempts + 1)
    (artifact,) = run.input_artifacts.filter(kind="config")
    assert f"max_epochs: {attempts + 3}" in artifact.path.read_text()


def test_config_of_a_run_is_what_it_was_given(train, stopped, ln):
    run = stopped()
    uid = published(run).uid
    for reference in (f"lamin:run/{run.uid}/config", f"lamin:artifact/{uid}"):
        cli = train("fit", f"--config={reference}", UNRECORDED, **SECRET)
        assert given_to(cli.model) == GIVEN
    cli = train("test", f"--config=lamin:run/{run.uid}/config", **SECRET)
    assert given_to(cli.model) == GIVEN
    assert published(run) in cli.lamin_run.input_artifacts.all(), "the record names the copy"
    assert KEY not in json.dumps(state(ln), default=str)


def test_original_is_found_where_the_project_has_moved_to(train, stopped, project, monkeypatch):
    run = stopped()
    moved = project / "moved"
    moved.mkdir()
    shutil.move(project / "lightning_logs", moved)
    monkeypatch.chdir(moved)
    cli = train("fit", f"--lamin.resume={run.uid}", "--trainer.max_epochs=4", **SECRET)
    assert given_to(cli.model) == GIVEN


def test_original_is_used_offline(train, stopped, project):
    stopped("--lamin.offline")
    (folder,) = (project / ".lamin_spool").iterdir()
    (copy,) = folder.rglob("config.yaml")
    assert not any(secret in copy.read_text() for secret in (KEY, PASSWORD, TOKEN))
    cli = train("fit", f"--lamin.resume={folder.name}", "--lamin.offline",
                "--trainer.max_epochs=4", **SECRET)  # fmt: skip
    assert given_to(cli.model) == GIVEN


def test_original_is_remembered_with_its_reference(train, stopped):
    """As any reference that was used before, while LaminDB cannot be asked."""
    run = stopped()
    words = [f"--config=lamin:run/{run.uid}/config", UNRECORDED]
    train("fit", *words, **SECRET)
    cli = train("fit", *words, "--lamin.offline", **SECRET)
    assert given_to(cli.model) == GIVEN


def test_two_runs_of_one_key_have_an_original_each(train, last_run, refused):
    """Their configs differ in nothing but a secret, and LaminDB has one artifact of both."""
    words = [
        "--lamin.run_uid_is_version=false",
        "--checkpoint.dirpath=ckpts",
        "--seed_everything=1",
    ]
    runs = []
    for key in ("one", "two"):
        runs.append(train("fit", f"--model.api_key={key}", *words, **SECRET).lamin_run)
    assert published(runs[0]) == published(runs[1])
    for run, key in zip(runs, ("one", "two"), strict=True):
        cli = train("fit", f"--config=lamin:run/{run.uid}/config", UNRECORDED, **SECRET)
        assert cli.model.hparams["api_key"] == key
    err = refused("fit", f"--config=lamin:artifact/{published(runs[0]).uid}")
    assert "model.api_key was taken out of the published config lamin:artifact/" in err


def test_config_without_secrets_is_an_ordinary_file(train, project):
    cli = train("fit")
    (config,) = project.glob("lightning_logs/*/config.yaml")
    (project / "plain").touch()
    assert mode(config) == mode(project / "plain")
    assert published(cli.lamin_run).path.read_text() == config.read_text()
    assert not published(cli.lamin_run).extra_data


def test_files_of_a_config_of_several_files_are_private_where_they_must_be(train, project):
    (project / "model.yaml").write_text(f"api_key: {KEY}\n")
    (project / "data.yaml").write_text("size: 8\n")
    train("fit", "--model=model.yaml", "--data=data.yaml",
          save_config_kwargs={"multifile": True}, **SECRET)  # fmt: skip
    (folder,) = project.glob("lightning_logs/version_*")
    assert mode(folder / "model.yaml") == 0o600
    assert mode(folder / "data.yaml") != 0o600
    assert "model.yaml" in (folder / "config.yaml").read_text()


def test_overwritten_config_is_private(train, project):
    logger = ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=logs",
              "--trainer.logger.version=same"]  # fmt: skip
    open_file = project / "logs/lightning_logs/same/config.yaml"
    open_file.parent.mkdir(parents=True)
    open_file.write_text("seed_everything: 1\n")
    with open(open_file) as before:
        train("fit", *SECRETS, *logger, save_config_kwargs={"overwrite": True}, **SECRET)
        assert before.read() == "seed_everything: 1\n", "who had it open reads nothing new"
    assert mode(open_file) == 0o600


def test_only_what_truly_is_the_original_is_taken(stopped, refused, project, monkeypatch):
    run = stopped()
    (note,) = published(run).extra_data["lamin_train"]["original"].values()
    path, there = Path(note["project"], note["file"]), project / "there.yaml"
    text = path.read_text()

    def is_asked_for():
        err = refused("fit", f"--lamin.resume={run.uid}", "--trainer.max_epochs=4")
        return all(
            f"model.{key} was taken out of the published config of run {run.uid}. "
            f"Give it: --model.{key} VALUE" in err
            for key in ("api_key", "db", "hub.token")
        )

    path.write_text(text.replace("gain: 40.0", "gain: 41.0"))
    assert is_asked_for(), "it was changed"
    path.write_text(text)
    path.rename(there)
    assert is_asked_for(), "it is gone"
    path.symlink_to(there)
    assert is_asked_for(), "it is a link"
    path.unlink()
    os.mkfifo(path)
    assert is_asked_for(), "it is a pipe"
    path.unlink()
    there.rename(path)
    path.chmod(0o666)
    assert is_asked_for(), "others may have written it"


def test_original_is_known_after_the_rules_have_changed(stopped, train, monkeypatch):
    """A later version may take out more, or less, and the published copy stays as it is."""
    run = stopped()
    monkeypatch.setattr(originals, "redact_config", lambda text: "another")
    cli = train("fit", f"--lamin.resume={run.uid}", "--trainer.max_epochs=4", **SECRET)
    assert given_to(cli.model) == GIVEN


# -- the copy alone -----------------------------------------------------------------------------


def test_what_was_taken_out_can_be_given(train, stopped, project, refused):
    run = stopped()
    only_copy(run)
    (project / "more.yaml").write_text(f"model: {{db: '{GIVEN['db']}'}}")
    resume = [f"--lamin.resume={run.uid}", "--trainer.max_epochs=4"]
    err = refused("fit", *resume, f"--model.api_key={KEY}", f"--model.db={GIVEN['db']}")
    assert "model.hub.token was taken out" in err
    assert "model.api_key" not in err
    cli = train("fit", *resume, f"--config=lamin:run/{run.uid}/config", "--config=more.yaml",
                f"--model.api_key={KEY}", f"--model.hub.token={TOKEN}", **SECRET)  # fmt: skip
    assert given_to(cli.model) == GIVEN
    assert cli.lamin_run == run
    assert KEY not in cli.lamin_run.cli_args


def test_environment_gives_what_was_taken_out(train, stopped, refused, monkeypatch):
    run = stopped()
    only_copy(run)
    words = ["fit", f"--config=lamin:run/{run.uid}/config", f"--model.db={GIVEN['db']}",
             f"--model.hub.token={TOKEN}"]  # fmt: skip
    monkeypatch.setenv("PL_FIT__MODEL__API_KEY", KEY)
    assert "model.api_key was taken out" in refused(*words), "nobody said so"
    cli = train(
        *words,
        UNRECORDED,
        parser_kwargs={"fit": {"default_env": True}, "default_env": True},
        **SECRET,
    )
    assert given_to(cli.model) == GIVEN


@pytest.mark.parametrize("mode", ["omegaconf", "omegaconf+"])
def test_published_config_says_which_variable_it_was(train, refused, project, monkeypatch, mode):
    """The parser of the project resolves variables, and knows nothing of them in the end."""
    (project / "c.yaml").write_text("model: {api_key: '${oc.env:HUB_KEY}', db: '${oc.env:HUB_DB}'}")
    resolving = {"parser_kwargs": {"fit": {"parser_mode": mode}, "parser_mode": mode}}
    monkeypatch.setenv("HUB_KEY", KEY)
    assert "Environment variable 'HUB_DB' not found" in refused(
        "fit", "--config=c.yaml", **resolving
    )
    monkeypatch.setenv("HUB_DB", "no secret")
    words = ["--config=c.yaml", "--model.hub.token=t"]
    run = train("fit", *words, **resolving, **SECRET).lamin_run
    copy = yaml.safe_load(published(run).path.read_text())["model"]
    assert copy["api_key"] == "${oc.env:HUB_KEY}"
    assert copy["db"] == "no secret", "what is no secret is what it was"
    assert copy["hub"] == {"token": REDACTED}
    words = ["fit", f"--config=lamin:run/{run.uid}/config", "--model.hub.token=t", UNRECORDED]
    monkeypatch.setenv("HUB_KEY", "another")
    assert train(*words, **resolving, **SECRET).model.hparams["api_key"] == KEY, "as it was given"
    only_copy(run)
    assert train(*words, **resolving, **SECRET).model.hparams["api_key"] == "another"


@pytest.mark.parametrize("stage", ["fit", "test"])
def test_copy_of_a_published_config_is_asked_for(train, stopped, project, refused, stage):
    run = stopped()
    shutil.copy(published(run).path, project / "copied.yaml")
    err = refused(stage, "--config=copied.yaml", "--lamin.track=false")
    for key in ("api_key", "db", "hub.token"):
        assert f"model.{key} was taken out of copied.yaml" in err
    err = refused(stage, "--config=copied.yaml", "--trainer.fast_dev_run=1", *SECRETS[:2])
    assert "model.hub.token" in err
    assert "model.db" not in err


def test_other_places_of_a_placeholder(train, project, refused, capsys):
    """In lists, in keys, on the command line, in the args of a script."""
    callback = {"class_path": "lamincli.Checkpoint", "init_args": {
        "artifact_observers": [{"class_path": "tests_models.Collect", "init_args": {"name": REDACTED}}],
    }}  # fmt: skip
    config = {"trainer": {"callbacks": [callback]},
              "model": {"hub": {REDACTED: 1}, "db": REDACTED}}  # fmt: skip
    (project / "c.yaml").write_text(yaml.safe_dump(config))
    place = "trainer.callbacks.0.init_args.artifact_observers.0.init_args.name"
    err = refused("fit", "--config=c.yaml", f"--model.api_key={REDACTED}")
    assert "model.db was taken out of c.yaml. Give it: --model.db VALUE" in err, "all at once"
    for key in (place, "model.hub", "model.api_key"):
        assert f"{key} holds {REDACTED}" in err
        assert f"Give it: --{key} VALUE" in err
    words = ["--config=c.yaml", f"--{place}=told", "--model.api_key=k", "--model.hub={'a': 1}",
             "--model.db=null"]  # fmt: skip
    train("fit", *words, **SECRET)
    assert Collect.told.pop()[0] == "told"
    err = refused("fit", f"--model.api_key={REDACTED}", parser_class=LightningArgumentParser)
    assert "model.api_key holds" in err, "with another parser"
    with pytest.raises(SystemExit) as stop:
        LaminLightningCLI(SecretModel, args={"subcommand": "fit", "fit": {
            "model": {"api_key": "k", "hub": {"nested": [{"token": REDACTED}]}}}})  # fmt: skip
    assert stop.value.code == 2
    assert "model.hub.nested.0.token holds" in capsys.readouterr().err


def test_print_config_shows_what_is_there(train, stopped, project, capsys, refused):
    run = stopped()
    only_copy(run)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        train("fit", f"--config=lamin:run/{run.uid}/config", "--print_config", **SECRET)
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["model"]["api_key"] == REDACTED
    (project / "printed.yaml").write_text(printed)
    assert "model.api_key was taken out of printed.yaml" in refused("fit", "--config=printed.yaml")


def test_placeholder_that_no_type_takes_is_asked_for_and_given(train, project, refused):
    """Published by an earlier version, which took out numbers too."""
    config = {"model": {"gain": REDACTED, "api_key": REDACTED}, "data": {"size": REDACTED}}
    (project / "c.yaml").write_text(yaml.safe_dump(config))
    err = refused("fit", "--config=c.yaml")
    assert all(
        f"{key} was taken out of c.yaml" in err
        for key in ("model.gain", "model.api_key", "data.size")
    )
    cli = train("fit", "--config=c.yaml", "--model.gain=30", "--model.api_key=k",
                "--data.size=8", UNRECORDED, **SECRET)  # fmt: skip
    assert cli.model.hparams["gain"] == 30.0


def test_checkpoint_of_a_placeholder_is_asked_for(train, stopped, project, refused, monkeypatch):
    """Saved by an earlier version, which has trained with it."""
    import torch

    path = train("fit", *SECRETS, **SECRET).trainer.checkpoint_callback.best_model_path
    content = torch.load(path, weights_only=True)
    content["hyper_parameters"] |= {"api_key": REDACTED, "gain": REDACTED}
    torch.save(content, path)
    err = refused("test", f"--ckpt_path={path}", "--model.api_key=k")
    assert f"model.gain was taken out of the hyper-parameters in {path}" in err
    assert "model.api_key" not in err
    words = [f"--ckpt_path={path}", "--model.api_key=k", "--model.gain=30", UNRECORDED]
    cli = train("test", *words, **SECRET)
    assert cli.model.hparams["gain"] == 30.0
    assert cli.model.hparams["db"] == GIVEN["db"], "what is known comes from the checkpoint"


def test_model_by_class_path(train, project, refused):
    config = {"model": {"class_path": "tests_models.SecretModel", "init_args": {
        "api_key": REDACTED, "hub": {"token": REDACTED}}}}  # fmt: skip
    (project / "c.yaml").write_text(yaml.safe_dump(config))
    by_path = {"model_class": None}
    err = refused("fit", "--config=c.yaml", "--model.api_key=k", **by_path)
    assert "model.init_args.hub.token was taken out of c.yaml" in err
    assert "api_key" not in err
    words = ["--model.init_args.api_key=k", "--model.init_args.hub.token=t", UNRECORDED]
    cli = train("fit", "--config=c.yaml", *words, **by_path)
    assert cli.model.hparams["hub"] == {"token": "t"}
    cli = train("fit", "--config=c.yaml", "--model=tests_models.TinyModel", UNRECORDED, **by_path)
    assert type(cli.model) is TinyModel, "which takes other arguments"


# -- reproduce ----------------------------------------------------------------------------------


@pytest.fixture
def trained_apart(train, monkeypatch):
    """Let the reproduction train in this process, and keep the config that it is given."""
    seen = []

    def run(plan):
        path = Path(plan.command[-1])
        seen.append((mode(path), yaml.safe_load(path.read_text())))
        for name, value in plan.environment.items():
            monkeypatch.setenv(name, value)
        train("fit", f"--config={path}", **SECRET)
        return os.getpid(), 0

    monkeypatch.setattr(reproduce, "_train", run)
    return seen


def test_reproduction_is_trained_with_what_the_run_was_given(
    train, trained_apart, capsys, made, ln, project
):
    run = train("fit", *SECRETS, "--seed_everything=1", **SECRET).lamin_run
    assert reproduce.main([run.uid, "--json=report.json"]) == 0
    assert [{name: one[name] for name in GIVEN} for one in made] == [GIVEN, GIVEN]
    assert [of for of, _ in trained_apart] == [0o600]
    report = json.loads((project / "report.json").read_text())
    states = {finding["subject"]: finding["state"] for finding in report["findings"]}
    assert states["config"] == "identical"
    told = capsys.readouterr()
    assert not any(s in told.out + told.err + str(report) for s in (KEY, PASSWORD, TOKEN))


def test_reproduction_says_what_is_missing_and_takes_it(
    train, trained_apart, capsys, made, ln, project
):
    run = train("fit", *SECRETS, "--seed_everything=1", **SECRET).lamin_run
    only_copy(run)
    before = state(ln)
    capsys.readouterr()
    assert reproduce.main([run.uid, "--json=report.json", f"--model.api_key={KEY}"]) == 2
    err = capsys.readouterr().err
    assert f"model.db was taken out of the published config of run {run.uid}" in err
    assert "Give it: --model.hub.token VALUE" in err
    assert json.loads((project / "report.json").read_text()) == {
        "run": run.uid, "missing": ["model.db", "model.hub.token"]
    }  # fmt: skip
    assert state(ln) == before
    assert trained_apart == []
    words = ["--model.api_key", KEY, f"--model.db={GIVEN['db']}", f"--model.hub.token={TOKEN}"]
    assert reproduce.main([run.uid, *words]) == 0
    assert [{name: one[name] for name in GIVEN} for one in made] == [GIVEN, GIVEN]


def test_reproduction_takes_nothing_else(train, trained_apart, capsys):
    run = train("fit", "--model.api_key=k", **SECRET).lamin_run
    assert reproduce.main([run.uid, "--model.gain=3"]) == 2
    assert "--model.gain: reproduce trains with the config of the run" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        reproduce.main([run.uid, "--jsn=x"])
    assert stop.value.code == 2
    assert "unrecognized arguments: jsn" in capsys.readouterr().err
