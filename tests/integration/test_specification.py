"""The guide of the Lamin + Lightning integration, row by row, through `LaminLightningCLI`.

`docs/specification.md` names for every statement of the guide the test here that proves it.
"""

import re
from pathlib import Path

import pytest
import yaml
from lamindb.integrations import lightning as ll
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import Logger
from tests_models import Collect

import lamincli
from lamincli import Checkpoint

LOGGER = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "logs"}}


@pytest.fixture
def fit(train, project):
    """Train from a YAML file that holds the given sections."""

    def run(stage="fit", cli=lamincli.LaminLightningCLI, words=(), **sections):
        Collect.told.clear()
        Path("config.yaml").write_text(yaml.safe_dump(sections))
        return train(stage, "--config=config.yaml", *words, cli=cli)

    return run


HISTORY = "Lightning metrics history"  # beyond the guide; see the deliberate differences


def checkpoint_of(cli):
    return cli.trainer.checkpoint_callback


def keys(cli, kind=None):
    artifacts = cli.lamin_run.output_artifacts.filter(**({"kind": kind} if kind else {}))
    artifacts = artifacts.exclude(description=HISTORY)
    return sorted(artifact.key for artifact in artifacts)


# -- quickstart ----------------------------------------------------------------------------------


def test_each_saved_checkpoint_is_an_artifact(fit):
    cli = fit(
        trainer={"logger": LOGGER, "max_epochs": 3},
        checkpoint={"monitor": "val_loss", "save_top_k": 3},
    )
    prefix = f"logs/lightning_logs/{cli.lamin_run.uid}/checkpoints"
    callback = checkpoint_of(cli)
    assert isinstance(callback, ll.Checkpoint)
    assert callback.checkpoint_key_prefix == prefix
    names = [f"{prefix}/epoch={e}-step={4 * (e + 1)}.ckpt" for e in range(3)]
    assert keys(cli, "model") == names
    assert callback.last_checkpoint_artifact.key == names[-1]
    local = Path("logs/lightning_logs/version_0/checkpoints")
    for artifact in cli.lamin_run.output_artifacts.filter(kind="model"):
        assert artifact.path.read_bytes() == (local / Path(artifact.key).name).read_bytes()
        assert artifact.description == "model checkpoint"


def test_the_three_kinds_of_artifacts(fit):
    cli = fit(trainer={"logger": LOGGER})
    callback = checkpoint_of(cli)
    base = f"logs/lightning_logs/{cli.lamin_run.uid}"
    assert callback.last_checkpoint_artifact.key == f"{base}/checkpoints/epoch=0-step=4.ckpt"
    assert callback.last_config_artifact.key == f"{base}/config.yaml"
    assert callback.last_hparams_artifact.key == f"{base}/checkpoints/hparams.yaml"
    assert callback.last_artifact_event.kind == "checkpoint"
    assert callback.get_last_artifact("config") == callback.last_config_artifact
    assert [a.kind for a in (callback.last_config_artifact, callback.last_hparams_artifact)] == [
        "config",
        "config",
    ]


def test_lineage_of_each_kind(fit):
    cli = fit(trainer={"logger": LOGGER})
    run, callback = cli.lamin_run, checkpoint_of(cli)
    inputs, outputs = run.input_artifacts.all(), run.output_artifacts.all()
    assert callback.last_checkpoint_artifact in outputs
    assert callback.last_config_artifact in inputs
    assert callback.last_config_artifact not in outputs
    assert callback.last_hparams_artifact not in inputs


# -- keys ----------------------------------------------------------------------------------------

SCENARIOS = [
    # logger, dirpath, run uid in the key, base prefix
    (True, None, True, "logs/lightning_logs/{uid}"),
    (True, None, False, "logs/lightning_logs/version_0"),
    (True, "models/mine", True, "models/mine/{uid}"),
    (True, "models/mine", False, "models/mine"),
    (False, "models/mine/", True, "models/mine/{uid}"),
    (False, "models/mine", False, "models/mine"),
    (False, None, True, "{uid}"),
    (False, None, False, ""),
    (False, "../beside\\it", True, "beside_it/{uid}"),  # what LaminDB refuses has the nearest key
]


@pytest.mark.parametrize(("logger", "dirpath", "run_uid", "base"), SCENARIOS)
def test_keys_in_every_scenario(fit, ln, logger, dirpath, run_uid, base):
    cli = fit(
        trainer={"logger": LOGGER if logger else False},
        checkpoint={"dirpath": dirpath},
        lamin={"run_uid_is_version": run_uid},
    )
    run = cli.lamin_run
    base = base.format(uid=run.uid)
    inside = f"{base}/" if base else ""
    assert checkpoint_of(cli).base_prefix == base
    hparams = [f"{inside}checkpoints/hparams.yaml"] if logger else []
    assert keys(cli) == [f"{inside}checkpoints/epoch=0-step=4.ckpt", *hparams]
    assert run.input_artifacts.get().key == f"{inside}config.yaml"
    # Of equal key and content there is one artifact, which the first run keeps.
    assert ln.Artifact.filter(key=f"{inside}history.csv", description=HISTORY).exists()


@pytest.mark.parametrize("logger", [True, False])
@pytest.mark.parametrize("run_uid", [True, False])
def test_config_key_without_a_checkpoint_callback(fit, logger, run_uid):
    """The table of config keys holds for `enable_checkpointing: false` too."""
    cli = fit(
        trainer={"logger": LOGGER if logger else False, "enable_checkpointing": False},
        lamin={"run_uid_is_version": run_uid},
    )
    base = ["logs/lightning_logs"] if logger else []
    base += [cli.lamin_run.uid] if run_uid else ["version_0"] if logger else []
    assert cli.lamin_run.input_artifacts.get().key == "/".join([*base, "config.yaml"])
    assert keys(cli) == []


class OwnLogger(CSVLogger):
    """A logger of a project, with a name and a version of its own."""

    @property
    def name(self):
        return "assay/7"

    @property
    def version(self):
        return "blue"


class MinimalLogger(Logger):
    """Only what Lightning's interface asks for."""

    name = "minimal"
    version = 3
    save_dir = "remote"

    def log_metrics(self, metrics, step=None): ...

    def log_hyperparams(self, params, *args, **kwargs): ...


@pytest.mark.parametrize(
    ("logger", "init_args", "base"),
    [
        (
            "lightning.pytorch.loggers.TensorBoardLogger",
            {"save_dir": "runs", "name": "tb"},
            "runs/tb",
        ),
        ("lightning.pytorch.loggers.CSVLogger", {"save_dir": "a/b", "name": "csv"}, "b/csv"),
        ("test_specification.OwnLogger", {"save_dir": "own"}, "own/assay/7"),
        ("test_specification.MinimalLogger", {}, "remote/minimal"),
    ],
)
@pytest.mark.parametrize("run_uid", [True, False])
def test_any_logger_gives_the_prefix(fit, logger, init_args, base, run_uid, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    cli = fit(
        trainer={"logger": {"class_path": logger, "init_args": init_args}},
        lamin={"run_uid_is_version": run_uid},
    )
    version = {"OwnLogger": "blue", "MinimalLogger": "version_3"}.get(
        logger.rpartition(".")[2], "version_0"
    )
    version = cli.lamin_run.uid if run_uid else version
    assert checkpoint_of(cli).base_prefix == f"{base}/{version}"


# -- features ------------------------------------------------------------------------------------

ARTIFACT_FEATURES = {
    "is_best_model", "is_last_model", "score", "model_rank", "save_weights_only", "monitor", "mode",
}  # fmt: skip
RUN_FEATURES = {
    "logger_name", "logger_version", "max_epochs", "max_steps", "precision",
    "accumulate_grad_batches", "gradient_clip_val", "monitor", "mode",
}  # fmt: skip


def test_auto_features_are_created_once_and_filled(fit, ln):
    cli = fit(
        trainer={"logger": LOGGER, "max_epochs": 3, "gradient_clip_val": 0.5},
        checkpoint={"monitor": "val_loss", "save_top_k": -1},
    )
    assert ln.Feature.filter(type__name="lamindb.lightning").count() == 14
    run = cli.lamin_run.features.get_values()
    # Other tests of this instance make a feature of that name, which the hyper-parameter then fills.
    assert set(run) - {"learning_rate"} == RUN_FEATURES
    assert run["max_epochs"] == 3
    assert run["logger_name"] == "lightning_logs"
    assert run["gradient_clip_val"] == 0.5
    values = [
        a.features.get_values()
        for a in cli.lamin_run.output_artifacts.filter(kind="model").order_by("id")
    ]
    assert all(set(v) == ARTIFACT_FEATURES for v in values)
    scores = [v["score"] for v in values]
    assert [v["model_rank"] for v in values] == [sorted(scores).index(s) for s in scores]
    assert [v["is_last_model"] for v in values] == [False, False, True]
    assert [v["is_best_model"] for v in values] == [s == min(scores) for s in scores]


def test_auto_features_can_be_left_out_of_a_new_instance(shell, project):
    words = ["fit", "--model=tests_models.TinyModel", "--data=tests_models.TinyData",
             "--trainer.max_epochs=1", "--lamin.auto_features=false"]  # fmt: skip
    assert shell(*words).returncode == 0
    code = "import lamindb as ln; print('COUNT', ln.Feature.filter().count())"
    import sys

    assert "COUNT 0" in shell("-c", code, program=[sys.executable]).stdout


def test_database_that_refuses_auto_features_is_a_warning(fit, ln, monkeypatch, capsys):
    from django.db import ProgrammingError
    from lamindb.integrations import lightning

    def refuse():
        raise ProgrammingError("permission denied for table lamindb_feature")

    names = lightning._SUPPORTED_AUTO_FEATURES
    monkeypatch.setattr(lightning, "_SUPPORTED_AUTO_FEATURES", names | {"one_more"})
    monkeypatch.setattr(lightning, "save_lightning_features", refuse)
    cli = fit(trainer={"logger": LOGGER})
    assert cli.lamin_run.status == "completed"
    assert "permission denied" in capsys.readouterr().err


def test_features_for_run_and_artifact(fit, ln):
    ln.Feature(name="training_framework", dtype=str).save()
    ln.Feature(name="dataset_version", dtype=str).save()
    ln.Feature(name="train_loss", dtype=float).save()
    ln.Feature(name="current_epoch", dtype=int).save()
    features = {
        "run": {"training_framework": "lightning"},
        "artifact": {"dataset_version": "2026-03", "train_loss": None, "current_epoch": None},
    }
    cli = fit(lamin={"features": features}, trainer={"max_epochs": 2})
    assert cli.lamin_run.features.get_values()["training_framework"] == "lightning"
    values = checkpoint_of(cli).last_checkpoint_artifact.features.get_values()
    assert values["dataset_version"] == "2026-03"
    assert values["current_epoch"] == 1, "an attribute of the trainer"
    assert isinstance(values["train_loss"], float), "a logged metric"
    without = fit(
        lamin={"features": {"run": features["run"]}}, trainer={"enable_checkpointing": False}
    )
    assert without.lamin_run.features.get_values()["training_framework"] == "lightning"


@pytest.mark.parametrize(
    "words",
    [
        ["--lamin.features.run.organism", "human", "--lamin.features.run.plates", "3"],
        ["--lamin.features", '{"run": {"organism": "human", "plates": 3}}'],
        ["--lamin.features.run", '{"organism": "human", "plates": 3}'],
    ],
)
def test_features_on_the_command_line(fit, ln, words):
    ln.Feature(name="organism", dtype=str).save()
    ln.Feature(name="plates", dtype=int).save()
    values = fit(words=words).lamin_run.features.get_values()
    assert (values["organism"], values["plates"]) == ("human", 3)


def test_hyper_parameters_become_features_where_one_has_their_name(fit, ln):
    ln.Feature(name="learning_rate", dtype=float).save()
    cli = fit(model={"learning_rate": 0.25})
    assert cli.lamin_run.features.get_values()["learning_rate"] == 0.25


# -- the guide's config.yaml and train.py --------------------------------------------------------

GUIDE = Path(__file__).parent / "guide"


@pytest.mark.parametrize("cli", ["LightningCLI", "LaminLightningCLI"])
def test_the_guides_files_run_unchanged(shell, record, project, cli):
    import sys

    for file in GUIDE.iterdir():
        if file.is_file():
            (project / file.name).write_text(file.read_text())
    if cli == "LaminLightningCLI":
        text = (project / "train.py").read_text()
        text = text.replace("from lightning.pytorch.cli import LightningCLI",
                            "from lamincli import LaminLightningCLI as LightningCLI")  # fmt: skip
        (project / "train.py").write_text(text)
    init = f"import lamindb_setup as s; s.init(storage='store', name='guide-{cli.lower()}')"
    assert shell("-c", init, program=[sys.executable]).returncode == 0
    done = shell("fit", "--config", "config.yaml", program=[sys.executable, "train.py"])
    assert done.returncode == 0, done.stderr
    (run,) = record()
    prefix = f"logs/lightning_logs/{run.uid}"
    assert f"{prefix}/config.yaml" in run.inputs
    assert len([key for key in run.outputs if key.startswith(f"{prefix}/checkpoints/epoch=")]) == 3
    assert run.key == "train.py"


def test_lightnings_own_callback_in_the_list_is_lamins(fit):
    """The guide's config.yaml lists lamindb's Checkpoint: that one is used, and no second."""
    listed = {
        "class_path": "lamindb.integrations.lightning.Checkpoint",
        "init_args": {"monitor": "val_loss", "mode": "min", "save_top_k": 3},
    }
    cli = fit(trainer={"logger": LOGGER, "callbacks": [listed], "max_epochs": 2})
    (callback,) = cli.trainer.checkpoint_callbacks
    assert isinstance(callback, Checkpoint), "with the care of ours"
    assert callback.save_top_k == 3
    assert len(keys(cli, "model")) == 2


# -- extending -----------------------------------------------------------------------------------


class ModelRegistryCheckpoint(ll.Checkpoint):
    """The guide's example of a subclass."""

    def __init__(self, *args, registry_project: str, **kwargs):
        super().__init__(*args, **kwargs)
        self.registry_project = registry_project
        self.registered = []

    def on_artifact_saved(self, event: ll.ArtifactSavedEvent) -> None:
        if event.kind == "checkpoint":
            self.registered.append((self.registry_project, event.storage_uri, event.key))


def test_subclass_with_on_artifact_saved(fit, monkeypatch, ln):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    ln.Feature(name="dataset_version", dtype=str).save()
    listed = {
        "class_path": "test_specification.ModelRegistryCheckpoint",
        "init_args": {"registry_project": "my-project", "monitor": "val_loss", "save_top_k": 3},
    }
    cli = fit(
        trainer={"logger": LOGGER, "callbacks": [listed], "max_epochs": 2},
        lamin={"features": {"artifact": {"dataset_version": "x"}}, "run_uid_is_version": False},
    )
    (callback,) = cli.trainer.checkpoint_callbacks
    assert type(callback).__name__ == "ModelRegistryCheckpoint"
    assert [(p, k) for p, _, k in callback.registered] == [
        ("my-project", key) for key in keys(cli, "model")
    ]
    assert all(Path(uri).exists() for _, uri, _ in callback.registered)
    assert keys(cli, "model")[0].startswith("logs/lightning_logs/version_0/")
    values = callback.last_checkpoint_artifact.features.get_values()
    assert values["dataset_version"] == "x", "the options under lamin reach it"


def test_observers_from_yaml(fit):
    observers = [
        {"class_path": "tests_models.Collect", "init_args": {"name": "first"}},
        {"class_path": "tests_models.Collect", "init_args": {"name": "second"}},
    ]
    cli = fit(
        trainer={"logger": LOGGER, "max_epochs": 3},
        checkpoint={"artifact_observers": observers, "monitor": "val_loss", "save_top_k": 1},
    )
    told = [event for name, event in Collect.told if name == "first"]
    assert told == [event for name, event in Collect.told if name == "second"]
    kinds = [(type(event).__name__, event.kind) for event in told]
    assert kinds[:3] == [
        ("ArtifactSavedEvent", "config"),
        ("ArtifactSavedEvent", "hparams"),
        ("ArtifactSavedEvent", "checkpoint"),
    ]
    saved = [e for e in told if isinstance(e, ll.ArtifactSavedEvent) and e.kind == "checkpoint"]
    removed = [e for e in told if isinstance(e, ll.ArtifactRemovedEvent)]
    assert len(saved) - len(removed) == 1 == len(keys(cli, "model"))


def test_both_events_have_all_their_fields(fit, ln):
    observer = {"class_path": "tests_models.Collect"}
    cli = fit(
        trainer={"logger": LOGGER, "max_epochs": 2, "callbacks": []},
        checkpoint={"artifact_observers": [observer], "save_top_k": 1},
        lamin={"publish": "inline"},  # in the background, the first would never be uploaded
    )
    events = [event for _, event in Collect.told if event.kind == "checkpoint"]
    first, second, removed = events
    assert [type(e).__name__ for e in events] == [
        "ArtifactSavedEvent",
        "ArtifactSavedEvent",
        "ArtifactRemovedEvent",
    ]
    for event in events:
        assert event.trainer is cli.trainer
        assert event.local_path.suffix == ".ckpt"
        assert event.key.startswith(checkpoint_of(cli).checkpoint_key_prefix)
        assert event.storage_uri == str(event.artifact.path)
    assert second.local_path.exists()
    assert Path(second.storage_uri).exists()
    assert removed.key == first.key
    assert not removed.local_path.exists()
    assert not Path(removed.storage_uri).exists()
    assert not ln.Artifact.filter(key=first.key).exists()


def test_observers_can_be_added_and_removed(fit):
    observer = Collect("added")

    class CLI(lamincli.LaminLightningCLI):
        def before_fit(self):
            checkpoint_of(self).add_artifact_observer(observer)

        def after_fit(self):
            checkpoint_of(self).remove_artifact_observer(observer)

    fit(cli=CLI)
    assert {name for name, _ in Collect.told} == {"added"}


def test_observer_that_fails_ends_nothing(fit, capsys):
    observers = [{"class_path": "tests_models.Raise"}, {"class_path": "tests_models.Collect"}]
    cli = fit(checkpoint={"artifact_observers": observers})
    assert cli.lamin_run.status == "completed"
    assert [event.kind for _, event in Collect.told][-1] == "checkpoint", "others are told"
    assert re.search(r"Raise.on_artifact_saved failed .* the model registry is down",
                     capsys.readouterr().err)  # fmt: skip


def test_events_are_lamindbs_own():
    for name in ("ArtifactEvent", "ArtifactSavedEvent", "ArtifactRemovedEvent", "ArtifactObserver"):
        assert getattr(lamincli, name) is getattr(ll, name)
    assert lamincli.save_lightning_features is ll.save_lightning_features
    assert issubclass(Checkpoint, ll.Checkpoint)
    assert issubclass(lamincli.SaveConfigCallback, ll.SaveConfigCallback)


def test_config_that_is_published_again_stays_an_input(fit):
    """lamindb returns the artifact of equal key and content, and would make it an output."""
    sections = {"trainer": {"logger": False}, "lamin": {"run_uid_is_version": False}}
    for run in (fit(**sections).lamin_run, fit(**sections).lamin_run):
        assert run.input_artifacts.get().key == "config.yaml"
        assert not run.output_artifacts.filter(key="config.yaml").exists()


# -- with more care than the guide ---------------------------------------------------------------


def test_key_of_another_run_gets_a_new_version(fit, ln):
    """lamindb's callback deletes the artifact of the other run, for good."""
    sections = {
        "trainer": {"logger": False},
        "checkpoint": {"dirpath": "shared"},
        "lamin": {"run_uid_is_version": False},
    }
    first = fit(**sections)
    Path("shared/epoch=0-step=4.ckpt").unlink()
    second = fit(**sections, model={"learning_rate": 0.3})
    ours, theirs = (
        c.lamin_run.output_artifacts.filter(kind="model").first() for c in (second, first)
    )
    assert ours.key == theirs.key == "shared/checkpoints/epoch=0-step=4.ckpt"
    assert ours.uid[:-4] == theirs.uid[:-4]
    assert ours.is_latest
    assert not theirs.is_latest
    assert theirs.path.exists()


def test_real_key_of_another_run_keeps_its_file(fit, ln):
    """With `key_is_virtual: false`, the file of the key is overwritten by lamindb's callback."""

    def run(**more):
        return fit(
            trainer={"logger": False, "max_epochs": 2}, lamin={"run_uid_is_version": False},
            checkpoint={"dirpath": "shared", "key_is_virtual": False, "save_top_k": 1,
                        "enable_version_counter": False}, **more,
        ).lamin_run  # fmt: skip

    runs = [run(), run(model={"learning_rate": 0.3}), run(model={"learning_rate": 0.7})]
    from lamindb_setup.core.hashing import hash_file

    for artifact in ln.Artifact.objects.filter(run__in=runs, kind="model"):
        assert hash_file(artifact.path)[1] == artifact.hash, artifact
    assert [run.output_artifacts.filter(kind="model").count() for run in runs] == [1, 1, 1]


@pytest.mark.parametrize("virtual", [True, False])
def test_key_that_is_written_again_has_one_artifact(fit, virtual):
    cli = fit(
        trainer={"max_epochs": 3, "logger": False},
        checkpoint={"save_last": True, "save_top_k": 0, "filename": "{epoch}",
                    "key_is_virtual": virtual},
    )  # fmt: skip
    (artifact,) = cli.lamin_run.output_artifacts.filter(key__endswith="last.ckpt")
    assert artifact.path.read_bytes() == Path("checkpoints/last.ckpt").read_bytes()


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"filename": "{epoch}-{val_loss:.0f}-x"}, r"epoch=1-val_loss=\d-x.ckpt"),
        ({"save_last": True}, r"(epoch=1-step=8|last).ckpt"),
        ({"save_last": "link"}, r"epoch=1-step=8.ckpt"),
        ({"every_n_train_steps": 3, "save_top_k": -1}, r"epoch=\d-step=[36].ckpt"),
        ({"save_weights_only": True}, r"epoch=1-step=8.ckpt"),
        ({"save_top_k": 0}, None),
        ({"train_time_interval": "00:00:00", "save_top_k": -1}, r"epoch=\d-step=\d.ckpt"),
    ],
)
def test_every_argument_of_modelcheckpoint_is_taken(fit, options, names):
    cli = fit(trainer={"max_epochs": 2}, checkpoint=options)
    found = [Path(key).name for key in keys(cli, "model")]
    assert (found == []) is (names is None)
    assert all(re.fullmatch(names, name) for name in found), found


def test_save_on_exception(fit, last_run):
    with pytest.raises(ValueError, match="boom"):
        fit(checkpoint={"save_on_exception": True}, model={"at": "raise"})
    run = last_run()
    assert run.status == "errored"
    assert [Path(a.key).name for a in run.output_artifacts.filter(kind="model")] == [
        "epoch=0-step=2.ckpt"
    ]


@pytest.mark.parametrize("listed", [False, True])
def test_checkpointing_can_be_switched_off(fit, listed):
    callback = {"class_path": "lamincli.Checkpoint", "init_args": {"save_top_k": -1}}
    callbacks = [callback] if listed else None
    cli = fit(trainer={"enable_checkpointing": False, "callbacks": callbacks})
    assert cli.trainer.checkpoint_callbacks == []
    assert cli.lamin_run.status == "completed"


@pytest.mark.parametrize("words", [["--trainer.fast_dev_run=true"], ["--lamin.track=false"]])
def test_listed_lamin_checkpoint_is_plain_where_nothing_is_tracked(fit, ln, words):
    callback = {"class_path": "lamindb.integrations.lightning.Checkpoint"}
    before = ln.Artifact.filter().count()
    cli = fit(trainer={"callbacks": [callback]}, words=words)
    assert cli.trainer.state.finished
    assert ln.Artifact.filter().count() == before
    assert Path("lightning_logs/version_0/checkpoints").exists() is ("track" in words[0])


CONTRADICTIONS = [
    ({"features": {"run": {"organism": "mouse"}}}, {"features": {"run": {"organism": "human"}}},
     r"lamin\.features .* trainer\.callbacks\[1\]\.init_args\.features"),
    ({}, {"monitor": "val_loss"},
     r"checkpoint\.monitor is 'train_loss', .*init_args\.monitor is 'val_loss'"),
]  # fmt: skip


@pytest.mark.parametrize(("lamin", "init_args", "message"), CONTRADICTIONS)
def test_contradictions_name_both_places(fit, ln, capsys, lamin, init_args, message):
    callbacks = [
        {"class_path": "lightning.pytorch.callbacks.TQDMProgressBar"},
        {"class_path": "lamincli.Checkpoint", "init_args": init_args},
    ]
    before = ln.Run.filter().count()
    checkpoint = {} if lamin else {"monitor": "train_loss"}
    with pytest.raises(SystemExit) as stop:
        fit(trainer={"callbacks": callbacks, "enable_progress_bar": True}, lamin=lamin,
            checkpoint=checkpoint)  # fmt: skip
    assert stop.value.code == 2
    assert re.search(message, capsys.readouterr().err)
    assert ln.Run.filter().count() == before


def test_the_same_value_in_both_places_is_no_contradiction(fit):
    callbacks = [{"class_path": "lamincli.Checkpoint", "init_args": {"run_uid_is_version": False}}]
    cli = fit(trainer={"callbacks": callbacks}, lamin={"run_uid_is_version": False})
    assert cli.lamin_run.status == "completed"


def test_callbacks_of_the_user_are_kept(fit):
    class Mine(Callback):
        pass

    cli = fit(
        cli=lambda *a, **k: lamincli.LaminLightningCLI(
            *a, trainer_defaults={"callbacks": [Mine()]}, **k
        )
    )
    assert any(isinstance(cb, Mine) for cb in cli.trainer.callbacks)


def test_storage_that_is_away_ends_nothing(fit, monkeypatch, capsys, last_run):
    """The jobs stay in the spool, and the end names them and the command."""
    from lamincli.commands import sync
    from lamincli.registry import storage

    store = storage.store

    def fail(source, target):
        if str(target).endswith(".ckpt"):
            raise OSError(28, "No space left on device")
        store(source, target)

    monkeypatch.setattr(storage, "store", fail)
    cli = fit(trainer={"logger": False}, lamin={"patience_s": 1})
    assert last_run().status == "completed"
    left = [path for path in cli.unpublished if not path.endswith("history.csv")]
    assert left == [checkpoint_of(cli).best_model_path]
    out = capsys.readouterr()
    assert "No space left on device" in out.err
    assert out.out.count("not in LaminDB") == len(cli.unpublished)
    assert "lamin-train sync" in out.out
    monkeypatch.setattr(storage, "store", store)
    assert sync.main(["."]) == 0
    assert [a.key for a in last_run().output_artifacts.all() if a.suffix == ".ckpt"]
    assert not Path(".lamin_spool").exists()


class ElsewhereCheckpoint(ll.ArtifactPublishingModelCheckpoint):
    """The guide's generic layer: artifacts that go to another registry."""

    def resolve_artifact_key(self, trainer, filepath, kind):
        return f"elsewhere/{Path(filepath).name}"

    def resolve_artifact_storage_uri(self, artifact):
        return f"elsewhere://{artifact}"

    def save_config_artifact(self, trainer, config_path):
        key = self.resolve_artifact_key(trainer, config_path, "config")
        self._notify_artifact_saved(
            trainer, kind="config", key=key, artifact=key, local_path=config_path
        )


def test_generic_publishing_callback_is_used_as_it_is(fit, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    listed = {"class_path": "test_specification.ElsewhereCheckpoint"}
    cli = fit(trainer={"callbacks": [listed]})
    (callback,) = cli.trainer.checkpoint_callbacks
    assert type(callback).__name__ == "ElsewhereCheckpoint"
    assert callback.last_artifact_event.storage_uri == "elsewhere://elsewhere/config.yaml"
    assert cli.lamin_run.status == "completed"
