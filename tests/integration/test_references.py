"""What lies in LaminDB, in the place of a path: found, pinned, downloaded once, recorded."""

import os
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest
import torch
import yaml
from tests_models import FileData, TinyModel

from lamincli import ArtifactPath, LaminLightningCLI
from lamincli.errors import LaminReferenceError
from lamincli.references import Reference, References, walk

KEEP_ALL = ["--trainer.max_epochs=3", "--checkpoint.save_top_k=-1", "--checkpoint.monitor=val_loss"]


@pytest.fixture
def trained(train, last_run):
    """Train three epochs and keep every checkpoint."""
    train("fit", *KEEP_ALL, "--model.learning_rate=0.05")
    return last_run()


def checkpoints(run):
    return {a.key.rpartition("/")[2]: a for a in run.output_artifacts.filter(kind="model")}


def value(artifact, name):
    return artifact.features.get_values().get(name)


# -- grammar --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "instance", "entity", "parts"),
    [
        ("lamin:run/abc/best", None, "run", ("abc", "best")),
        ("lamin:run/latest/rank/2", None, "run", ("latest", "rank", "2")),
        ("lamin://me/here/run/abc/last", "me/here", "run", ("abc", "last")),
        ("lamin:/me/here/run/abc/last", "me/here", "run", ("abc", "last")),  # through a Path
        ("lamin:artifact/" + "a" * 16, None, "artifact", ("a" * 16,)),
        ("lamin:artifact/key/a/b.csv?version=2", None, "artifact", ("key", "a", "b.csv?version=2")),
    ],
)
def test_grammar(text, instance, entity, parts):
    found = Reference.parse(text)
    assert (found.instance, found.entity, found.parts) == (instance, entity, parts)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("lamin:runs/abc/best", "Did you mean run"),
        ("lamin:run/abc", "incomplete"),
        ("lamin:run//best", "incomplete"),
        ("lamin:run/abc/../../etc/passwd", "incomplete"),
        ("lamin:run/abc/rank/first", "a rank is a number"),
        ("lamin:artifact/short", "not a uid"),
        ("lamin:artifact/key/a/../b", "not allowed"),
        ("lamin:artifact/key/a?colour=red", "Unknown query parameter"),
    ],
)
def test_malformed_references_are_refused(text, why):
    with pytest.raises(LaminReferenceError, match=why):
        Reference.parse(text)


# -- checkpoints ----------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
def test_checkpoint_by_reference(train, trained, last_run, stage):
    cli = train(stage, f"--ckpt_path=lamin:run/{trained.uid}/best", "--trainer.max_epochs=4")
    (best,) = [a for a in checkpoints(trained).values() if value(a, "is_best_model")]
    run = last_run()
    assert run.uid != trained.uid
    assert best in run.input_artifacts.all()
    assert cli.trainer.ckpt_path == str(best.path)
    config = yaml.safe_load(Path(cli._config_saver.local_path).read_text())
    assert config["ckpt_path"] == f"lamin:artifact/{best.uid}"
    assert run.extra_data["lamin_train"]["references"] == {
        f"lamin:run/{trained.uid}/best": best.uid
    }


def test_words_for_checkpoints(train, trained):
    found = References()
    by_name = checkpoints(trained)
    ranked = sorted(by_name.values(), key=lambda a: value(a, "score"))

    def uid(what):
        return found.resolve(f"lamin:run/{trained.uid}/{what}").artifact.uid

    assert uid("best") == ranked[0].uid
    assert [uid(f"rank/{k}") for k in range(3)] == [a.uid for a in ranked]
    assert uid("last") == by_name["epoch=2-step=12.ckpt"].uid
    assert uid("epoch=1-step=8.ckpt") == by_name["epoch=1-step=8.ckpt"].uid
    assert found.resolve(f"lamin:run/{trained.uid[:12]}/best").artifact.uid == ranked[0].uid
    assert found.resolve("lamin:run/latest/best").artifact.uid == ranked[0].uid
    assert found.resolve("lamin:run/latest/best").pinned == f"lamin:artifact/{ranked[0].uid}"


def test_latest_is_the_latest_training(train, trained):
    train("validate")
    reproduction = train("fit").lamin_run
    reproduction.extra_data["lamin_train"]["reproduces"] = {"run": trained.uid}
    reproduction.save()
    assert References().resolve("lamin:run/latest/last").run.uid == trained.uid


@pytest.mark.parametrize("mode", ["min", "max"])
def test_scores_rank_where_there_are_no_features(train, last_run, mode):
    train("fit", *KEEP_ALL, "--lamin.auto_features=false", f"--checkpoint.mode={mode}")
    run = last_run()
    notes = {a.uid: a.extra_data["lamin_train"] for a in checkpoints(run).values()}
    ranked = sorted(notes, key=lambda uid: notes[uid]["score"], reverse=mode == "max")
    found = References()
    assert [found.resolve(f"lamin:run/{run.uid}/rank/{k}").artifact.uid for k in range(3)] == ranked
    assert found.resolve(f"lamin:run/{run.uid}/best").artifact.uid == ranked[0]
    assert {note["monitor"] for note in notes.values()} == {"val_loss"}


def test_two_monitors_ask_which(train, last_run):
    from lamincli import Checkpoint

    callbacks = [Checkpoint(monitor="train_loss", filename="a-{epoch}"),
                 Checkpoint(monitor="val_loss", filename="b-{epoch}")]  # fmt: skip
    train("fit", trainer_defaults={"callbacks": callbacks})
    with pytest.raises(LaminReferenceError, match=r"more than one metric.*train_loss.*val_loss"):
        References().resolve(f"lamin:run/{last_run().uid}/best")
    assert References().resolve(f"lamin:run/{last_run().uid}/last").artifact is not None
    name = f"lamin:run/{last_run().uid}/a-epoch=0.ckpt"
    assert References().resolve(name).artifact.key.endswith("a-epoch=0.ckpt")


def test_two_callbacks_of_one_metric_have_one_best(train, last_run):
    from lamincli import Checkpoint

    callbacks = [Checkpoint(monitor="val_loss", filename="a-{epoch}", every_n_epochs=2),
                 Checkpoint(monitor="val_loss", filename="b-{epoch}")]  # fmt: skip
    train("fit", "--trainer.max_epochs=3", trainer_defaults={"callbacks": callbacks})
    best = References().resolve(f"lamin:run/{last_run().uid}/best").artifact
    scores = {a.uid: value(a, "score") for a in checkpoints(last_run()).values()}
    assert len(scores) == 2
    assert scores[best.uid] == min(scores.values())


def test_latest_that_has_no_checkpoint_names_one_that_has(train, trained):
    train("fit", "--checkpoint.save_top_k=0")
    with pytest.raises(LaminReferenceError, match=f"latest that has: lamin:run/{trained.uid}/best"):
        References().resolve("lamin:run/latest/best")


def test_no_scores_no_best(train, last_run):
    train("fit")
    with pytest.raises(LaminReferenceError, match="no checkpoint of rank 0"):
        References().resolve(f"lamin:run/{last_run().uid}/rank/0")


def test_argument_that_a_default_gives_is_not_missed(train, trained):
    """It is required, and neither typed nor in a config."""

    class Needs(TinyModel):
        def __init__(self, width: int, learning_rate: float = 0.1, at: str = "", api_key: str = ""):
            super().__init__(width, learning_rate, at, api_key)

    class CLI(LaminLightningCLI):
        def add_arguments_to_parser(self, parser):
            parser.set_defaults({"model.width": 4})

    path = checkpoints(trained)["epoch=2-step=12.ckpt"].path
    cli = train("validate", f"--ckpt_path={path}", model_class=Needs, cli=CLI)
    assert cli.model.hparams["width"] == 4


def test_folder_is_a_checkpoint_to_another_strategy(train, ln, stored):
    from lightning.pytorch.strategies import SingleDeviceStrategy, StrategyRegistry

    class Folder(SingleDeviceStrategy):
        def __init__(self):
            super().__init__(device="cpu")

        def load_checkpoint(self, path, weights_only=None):
            raise RuntimeError(f"reads {path}")

    StrategyRegistry.register("folder", Folder)
    with pytest.raises(RuntimeError, match="reads"):
        train("validate", "--ckpt_path=folder", "--trainer.strategy=folder")
    StrategyRegistry.remove("folder")


def test_hyper_parameters_that_the_model_does_not_take(train, trained, capsys):
    """The checkpoint is of a script that names its class, and so does not say which one it was."""
    path = checkpoints(trained)["epoch=2-step=12.ckpt"].path
    words = [f"--ckpt_path={path}", "--model=tests_models.NoisyModel"]
    cli = train("validate", *words, model_class=None)
    assert cli.model.hparams["learning_rate"] == 0.05
    said = "api_key, at, width: in the checkpoint, and no argument of the model"
    assert said in capsys.readouterr().out


def test_config_may_be_text(train):
    filler = ", ".join(f"'{n}': 1" for n in range(100))
    config = f"{{seed_everything: 3, data: {{files: {{{filler}}}}}}}"
    assert (
        len(train("fit", f"--config={config}", datamodule_class=FileData).datamodule.files) == 100
    )


def test_user_wins_from_a_pipe_too(trained, shell, project, monkeypatch):
    """As ``--config <(command)``, which can be read once only."""
    path = checkpoints(trained)["epoch=2-step=12.ckpt"].path
    config = "model: {class_path: tests_models.TinyModel, init_args: {learning_rate: 0.7}}"
    words = f"--data=tests_models.TinyData --ckpt_path={path} --trainer.accelerator=cpu"
    command = f"{sys.executable} -m lamincli validate --config <(echo '{config}') {words}"
    done = shell("-c", command, program=["bash"])
    assert done.returncode == 0, done.stderr
    assert "learning_rate is 0.7, as given; the checkpoint has 0.05" in done.stdout


@pytest.mark.parametrize("is_reference", [False, True])
def test_folder_that_is_no_checkpoint_is_refused(train, ln, capsys, stored, is_reference):
    before = ln.Run.objects.count()
    path = f"lamin:artifact/{stored[1].uid}" if is_reference else "folder"
    with pytest.raises(SystemExit) as ended:
        train("validate", f"--ckpt_path={path}")
    assert ended.value.code == 2
    assert "it is a folder, and strategy auto loads a file" in capsys.readouterr().err
    assert ln.Run.objects.count() == before


@pytest.mark.parametrize(
    "content", [b"", b"epoch: 1", b"cell,type\n1,2\n", b"PK not a zip file", b"\x80\x02}q\x00."]
)
def test_file_that_is_no_checkpoint_is_refused(train, ln, capsys, content):
    before = ln.Run.objects.count()
    Path("notes.ckpt").write_bytes(content)
    with pytest.raises(SystemExit) as ended:
        train("validate", "--ckpt_path=notes.ckpt")
    assert ended.value.code == 2
    assert "--ckpt_path notes.ckpt: it is no checkpoint" in capsys.readouterr().err
    assert ln.Run.objects.count() == before


def test_user_wins_over_the_checkpoint(train, trained, capsys):
    reference = f"--ckpt_path=lamin:run/{trained.uid}/last"
    cli = train("validate", reference)
    assert cli.model.hparams["learning_rate"] == 0.05
    assert "as given" not in capsys.readouterr().out
    cli = train("validate", reference, "--model.learning_rate=0.2")
    assert cli.model.hparams["learning_rate"] == 0.2
    out = capsys.readouterr().out
    assert "learning_rate is 0.2, as given; the checkpoint has 0.05" in out


def test_words_of_lightning_go_on_working(train, project):
    def fit_and_test(cli):
        cli.trainer.test(cli.model, cli.datamodule, ckpt_path="best", verbose=False)

    class Twice(LaminLightningCLI):
        after_fit = fit_and_test

    train("fit", "--checkpoint.monitor=val_loss", cli=Twice)
    train("fit", "--ckpt_path=last", "--trainer.max_epochs=2")


def test_checkpoint_is_read_once(train, trained, monkeypatch):
    loads = []
    load = torch.load

    def counted(file, *args, **kwargs):
        loads.append(bool(kwargs.get("mmap")))
        return load(file, *args, **kwargs)

    monkeypatch.setattr(torch, "load", counted)
    train("validate", f"--ckpt_path=lamin:run/{trained.uid}/last")
    assert loads == [True, False]  # the first maps the file and reads the hyper-parameters alone


def test_code_in_a_checkpoint_is_not_run(train, project, ln, capsys):
    torch.save({"hyper_parameters": {"at": Evil()}}, project / "evil.ckpt")
    artifact = ln.Artifact(project / "evil.ckpt", key="evil.ckpt", kind="model").save()
    before = ln.Run.objects.count()
    with pytest.raises(SystemExit) as ended:
        train("validate", f"--ckpt_path=lamin:artifact/{artifact.uid}")
    assert ended.value.code == 2
    assert "would run code" in capsys.readouterr().err
    assert not Path("evil").exists()
    assert ln.Run.objects.count() == before


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil",)


# -- checkpoints behind a URL ---------------------------------------------------------------------


@pytest.fixture
def served(project):
    """Serve the project over HTTP; gives the address."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(project))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_checkpoint_of_a_url_is_loaded_as_a_file_is(train, trained, served, project):
    best = checkpoints(trained)["epoch=2-step=12.ckpt"]
    weights = torch.load(best.path, weights_only=True)["state_dict"]
    (project / "served.ckpt").write_bytes(Path(best.path).read_bytes())
    fsspec.filesystem("memory").pipe("/served.ckpt", Path(best.path).read_bytes())
    for place in (f"file://{project}", "memory:/", served):
        words = [] if place == served else ["--trainer.fast_dev_run=1"]
        cli = train("test", f"--ckpt_path={place}/served.ckpt", *words)
        assert all(torch.equal(cli.model.state_dict()[name], weights[name]) for name in weights)
        assert cli.model.hparams["learning_rate"] == 0.05, "as of a local file"
    assert best in cli.lamin_run.input_artifacts.all()
    assert cli.lamin_run.params["ckpt_path"] == f"{served}/served.ckpt"


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("hyper_parameters", []),
        ("callbacks", ["--lamin.track=false"]),
        ("state_dict", ["--trainer.fast_dev_run=1"]),
    ],
)
def test_code_in_a_checkpoint_of_a_url_is_not_run(train, project, ln, capsys, served, where, words):
    torch.save({"state_dict": {}, where: {"at": Evil()}}, project / "evil.ckpt")
    before = ln.Run.objects.count()
    with pytest.raises(SystemExit) as ended:
        train("fit", f"--ckpt_path={served}/evil.ckpt", *words)
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert f"--ckpt_path {served}/evil.ckpt: it holds posix.system" in err
    assert "--weights_only false" in err
    assert not Path("evil").exists()
    assert ln.Run.objects.count() == before


def test_objects_behind_a_url_are_loaded_if_that_is_asked(train, project, served):
    path = train("fit").trainer.checkpoint_callback.best_model_path
    content = torch.load(path, weights_only=True)
    torch.save({**content, "rate": Rate(0.3)}, project / "object.ckpt")
    words = ["--weights_only=false", "--trainer.fast_dev_run=1"]
    cli = train("test", f"--ckpt_path={served}/object.ckpt", *words)
    assert cli.trainer.state.finished


class Rate(float):
    """A number that is no plain one."""


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("{}/nowhere.ckpt", "there is no such file"),
        ("{}/text.ckpt", "it is no checkpoint"),
        ("memory://folder", "it is a folder"),
        ("http://127.0.0.1:9/x.ckpt", "it cannot be read: Cannot connect"),
        ("nothing://x.ckpt", "it cannot be read: Protocol not known"),
    ],
)
def test_url_without_a_checkpoint_is_refused(train, project, ln, capsys, served, url, why):
    (project / "text.ckpt").write_text("no checkpoint")
    fsspec.filesystem("memory").pipe("/folder/x.ckpt", b"")
    before = ln.Run.objects.count()
    with pytest.raises(SystemExit) as ended:
        train("test", f"--ckpt_path={url.format(served)}")
    assert ended.value.code == 2
    assert f"--ckpt_path {url.format(served)}: {why}" in capsys.readouterr().err
    assert ln.Run.objects.count() == before


# -- config ---------------------------------------------------------------------------------------


def test_config_by_reference_is_overridden_by_later_ones(train, trained, last_run, project):
    Path("more.yaml").write_text("model: {width: 4, learning_rate: 0.3}\n")
    cli = train("fit", f"--config=lamin:run/{trained.uid}/config", "--config", "more.yaml",
                "--trainer.max_epochs=1")  # fmt: skip
    assert cli.model.hparams["learning_rate"] == 0.3
    assert cli.trainer.checkpoint_callback.monitor == "val_loss"
    config = References().resolve(f"lamin:run/{trained.uid}/config").artifact
    assert config in last_run().input_artifacts.all()
    # Its own config is another than the one it began with.
    own = References().resolve(f"lamin:run/{last_run().uid}/config").artifact
    assert own.uid != config.uid


def test_config_by_reference_after_a_space(train, trained):
    cli = train("fit", "--config", f"lamin:run/{trained.uid}/config")
    assert cli.model.hparams["learning_rate"] == 0.05


@pytest.mark.parametrize("what", ["hparams", "metrics", "report"])
def test_records_of_a_run(train, trained, what):
    path = Path(References().local_path(f"lamin:run/{trained.uid}/{what}"))
    text = path.read_text()
    assert {"hparams": "learning_rate", "metrics": "val_loss", "report": trained.uid}[what] in text


# -- values ---------------------------------------------------------------------------------------


@pytest.fixture
def stored(ln, project):
    (project / "cells.csv").write_text("a,b\n1,2\n")
    (project / "folder" / "deep").mkdir(parents=True)
    (project / "folder" / "deep" / "one.txt").write_text("one")
    (project / "folder" / "two.txt").write_text("two")
    file = ln.Artifact("cells.csv", key=f"{project.name}/cells.csv").save()
    folder = ln.Artifact("folder", key=f"{project.name}/folder").save()
    return file, folder


def test_values_become_paths_and_stay_references(train, stored, last_run, project):
    file, folder = stored
    by_key = f"lamin:artifact/key/{file.key}"
    cli = train(
        "fit", f"--data.file={by_key}", f"--data.path=lamin:artifact/{folder.uid}/two.txt",
        f"--data.artifact={by_key}", f'--data.files={{"list": [1, "{by_key}"]}}',
        datamodule_class=FileData,
    )  # fmt: skip
    assert Path(cli.datamodule.file).read_text() == "a,b\n1,2\n"
    assert isinstance(cli.datamodule.path, Path)
    assert cli.datamodule.path.read_text() == "two"
    assert Path(cli.datamodule.artifact).read_text() == "a,b\n1,2\n"
    assert cli.datamodule.files == {"list": [1, cli.datamodule.file]}
    assert {file, folder} <= set(last_run().input_artifacts.all())
    config = yaml.safe_load(Path(cli._config_saver.local_path).read_text())["data"]
    pinned = f"lamin:artifact/{file.uid}"
    assert config["file"] == config["artifact"] == config["files"]["list"][1] == pinned
    assert config["path"] == f"lamin:artifact/{folder.uid}/two.txt"
    # What a checkpoint keeps holds on another machine too.
    path = cli.trainer.checkpoint_callback.best_model_path
    hparams = torch.load(path, weights_only=False)["datamodule_hyper_parameters"]
    assert hparams["file"] == pinned
    assert Path(FileData.load_from_checkpoint(path).artifact).read_text() == "a,b\n1,2\n"


def test_wrong_references_are_reported_together_and_leave_no_run(train, stored, ln, capsys):
    before = ln.Run.objects.count()
    with pytest.raises(SystemExit) as ended:
        train("fit", "--data.file=lamin:artifact/key/cels.csv", "--ckpt_path=lamin:run/zzzz/best",
              '--data.files={"a": "lamin:artifact/AAAAAAAAAAAAAAAA"}',
              datamodule_class=FileData)  # fmt: skip
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert "ckpt_path: lamin:run/zzzz/best: no run in anonymous/tests has a uid" in err
    assert "data: lamin:artifact/key/cels.csv" in err
    assert "data: lamin:artifact/AAAAAAAAAAAAAAAA" in err
    assert ln.Run.objects.count() == before


def test_close_matches_are_named(train, trained, stored):
    file, _ = stored
    other = "0" if file.uid[15] != "0" else "1"
    for text, near in {
        f"lamin:artifact/key/{file.key[:-5]}x.csv": file.key,
        f"lamin:artifact/{file.uid[:15]}{other}": file.uid,
        f"lamin:run/{trained.uid}/epoch=1-step=9.ckpt": "epoch=1-step=8.ckpt",
        f"lamin:run/{trained.uid}/confg": "config",
        f"lamin:run/{trained.uid[:-1]}-/best": trained.uid,
    }.items():
        with pytest.raises(LaminReferenceError) as error:
            References().resolve(text)
        assert near in str(error.value), text


def test_artifact_path_validates_where_it_is_parsed(project):
    with pytest.raises(ValueError, match="not a uid"):
        ArtifactPath("lamin:artifact/short")
    with pytest.raises(ValueError, match="no such file"):
        ArtifactPath("nowhere.csv")
    Path("here.csv").touch()
    assert os.fspath(ArtifactPath("here.csv")) == "here.csv"


def test_relative_artifact_path_is_from_the_folder_of_the_command(train, project):
    """Whatever the folder of the config that says it; so the published one can be read again."""
    Path("cells.csv").write_text("a,b\n")
    Path("configs").mkdir()
    Path("configs/own.yaml").write_text("data:\n  artifact: cells.csv\n")
    cli = train("fit", "--config=configs/own.yaml", datamodule_class=FileData)
    again = train("fit", f"--config={cli._config_saver.local_path}", datamodule_class=FileData)
    for one in (cli, again):
        assert Path(one.datamodule.artifact).read_text() == "a,b\n"


def test_artifact_path_is_refused_by_the_parser(train, capsys, ln):
    before = ln.Run.objects.count()
    with pytest.raises(SystemExit) as ended:
        train("fit", "--data.artifact=lamin:artifact/short", datamodule_class=FileData)
    assert ended.value.code == 2
    assert "not a uid" in capsys.readouterr().err
    assert ln.Run.objects.count() == before


def test_walk_leaves_what_is_no_reference():
    value = {"a": [1, "x", ("lamin:y",)], "b": None}
    assert walk(value, str.upper) == {"a": [1, "x", ("LAMIN:Y",)], "b": None}


def test_looking_up_is_cheap(train, trained, ln):
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    for what in ("best", "last", "rank/1", "config"):
        with CaptureQueriesContext(connection) as queries:
            References().local_path(f"lamin:run/{trained.uid}/{what}")
        assert len(queries) <= 5, [q["sql"] for q in queries]


def test_references_without_a_trace(train, trained, ln):
    before = ln.Run.objects.count()
    cli = train("validate", f"--ckpt_path=lamin:run/{trained.uid}/last", "--lamin.track=false")
    assert cli.trainer.ckpt_path.endswith(".ckpt")
    assert ln.Run.objects.count() == before
