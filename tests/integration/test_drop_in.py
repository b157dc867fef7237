"""`LaminLightningCLI` in place of `LightningCLI`: the same behaviours, tracked.

The cases follow Lightning's own tests of its command line (tests/tests_pytorch/test_cli.py).
"""

import inspect
import os
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel
from tests_models import TinyData, TinyModel

from lamincli import Checkpoint, LaminLightningCLI

QUIET = {"max_epochs": 1, "limit_train_batches": 1, "limit_val_batches": 1, "limit_test_batches": 1,
         "enable_progress_bar": False, "enable_model_summary": False, "logger": False}  # fmt: skip


@pytest.fixture
def cli(ln):
    def make(*arguments, kind=LaminLightningCLI, **options):
        options.setdefault("trainer_defaults", QUIET)
        return kind(*arguments, **options)

    return make


def completed(cli):
    return cli.lamin_run.status == "completed"


def test_constructor_takes_what_lightnings_takes():
    stock = inspect.signature(LightningCLI).parameters
    ours = inspect.signature(LaminLightningCLI).parameters
    assert list(stock) == list(ours)
    differ = {name for name in stock if stock[name].default != ours[name].default}
    assert differ == {"parser_class"}


@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
def test_every_stage(cli, stage):
    made = cli(BoringModel, BoringDataModule, args=[stage])
    assert made.subcommand == stage
    assert made.trainer.state.finished
    assert completed(made)


def test_args_as_dict_and_namespace(cli):
    config = {"fit": {"trainer": {"max_epochs": 2}}}
    made = cli(BoringModel, BoringDataModule, args=config)
    assert made.trainer.max_epochs == 2
    assert completed(made)
    from jsonargparse import Namespace

    again = cli(BoringModel, BoringDataModule, run=False, args=Namespace({"trainer.max_epochs": 3}))
    assert again.trainer.max_epochs == 3
    again.finish()


def test_run_false_makes_the_objects_only(cli):
    made = cli(BoringModel, BoringDataModule, run=False, args=[])
    assert isinstance(made.trainer, Trainer)
    assert isinstance(made.model, BoringModel)
    assert made.trainer.state.fn is None
    assert made.subcommand is None
    made.trainer.fit(made.model, made.datamodule)
    made.finish()
    assert completed(made)


def test_classes_from_the_config(cli, monkeypatch):
    args = [
        "fit",
        "--model=tests_models.TinyModel",
        "--model.width=4",
        "--data=tests_models.TinyData",
    ]
    made = cli(args=args)
    assert isinstance(made.model, TinyModel)
    assert isinstance(made.datamodule, TinyData)
    assert completed(made)


def test_model_without_data(cli):
    made = cli(BoringModel, args=["fit"])
    assert made.datamodule is None
    assert completed(made)


def test_functions_in_place_of_classes(cli):
    def make_model(scale: float = 1.0) -> TinyModel:
        return TinyModel(learning_rate=scale)

    def make_trainer(max_epochs: int = 1, callbacks: list | None = None) -> Trainer:
        return Trainer(**{**QUIET, "max_epochs": max_epochs}, callbacks=callbacks)

    made = cli(make_model, TinyData, trainer_class=make_trainer, trainer_defaults={},
               args=["fit", "--model.scale=0.5"])  # fmt: skip
    assert made.model.hparams.learning_rate == 0.5
    assert completed(made)


@pytest.mark.parametrize("mode", ["model", "data", "both"])
def test_subclass_modes(cli, mode):
    modes = {f"subclass_mode_{kind}": mode in (kind, "both") for kind in ("model", "data")}
    args = ["fit"]
    args += ["--model=tests_models.TinyModel"] if modes["subclass_mode_model"] else []
    args += ["--data=tests_models.TinyData"] if modes["subclass_mode_data"] else []
    model = LightningModule if modes["subclass_mode_model"] else TinyModel
    data = LightningDataModule if modes["subclass_mode_data"] else TinyData
    made = cli(model, data, args=args, **modes)
    assert (type(made.model), type(made.datamodule)) == (TinyModel, TinyData)
    assert completed(made)


def test_environment_variables(cli, monkeypatch):
    monkeypatch.setenv("PL_FIT__TRAINER__MAX_EPOCHS", "2")
    monkeypatch.setenv("PL_FIT__LAMIN__RUN_UID_IS_VERSION", "false")
    monkeypatch.setenv("PL_FIT__CHECKPOINT__SAVE_TOP_K", "-1")
    kwargs = {"default_env": True, "fit": {"default_env": True}}
    made = cli(BoringModel, BoringDataModule, args=["fit"], parser_kwargs=kwargs)
    assert made.trainer.max_epochs == 2
    assert made.trainer.checkpoint_callback.save_top_k == -1
    assert made.lamin_run.params["lamin"]["run_uid_is_version"] is False


def test_trainer_defaults_and_persistent_callbacks(cli):
    mine = EarlyStopping(monitor="train_loss")
    made = cli(TinyModel, TinyData, args=["fit"], trainer_defaults={**QUIET, "callbacks": mine})
    assert mine in made.trainer.callbacks


def test_persistent_lamin_checkpoint_is_the_one(cli):
    mine = Checkpoint(save_top_k=-1)
    made = cli(TinyModel, TinyData, args=["fit"], trainer_defaults={**QUIET, "callbacks": [mine]})
    assert made.trainer.checkpoint_callbacks == [mine]
    assert completed(made)


def test_linked_arguments(cli):
    class CLI(LaminLightningCLI):
        def add_arguments_to_parser(self, parser):
            parser.link_arguments("data.batch_size", "model.width", compute_fn=lambda size: size)

    made = cli(TinyModel, TinyData, kind=CLI, args=["fit", "--data.batch_size=4"])
    assert made.model.hparams.width == 4
    assert completed(made)


def test_links_on_instantiation(cli):
    class Sized(TinyData):
        def __init__(self):
            super().__init__()
            self.width = 4

    class CLI(LaminLightningCLI):
        def add_arguments_to_parser(self, parser):
            parser.link_arguments("data.width", "model.width", apply_on="instantiate")

    made = cli(TinyModel, Sized, kind=CLI, args=["fit"])
    assert made.model.hparams.width == 4


def test_callback_groups_of_the_project(cli):
    class CLI(LaminLightningCLI):
        def add_arguments_to_parser(self, parser):
            parser.add_lightning_class_args(EarlyStopping, "early")
            parser.set_defaults({"early.monitor": "train_loss", "early.patience": 5})

    made = cli(TinyModel, TinyData, kind=CLI, args=["fit", "--early.patience=7"])
    (early,) = made.trainer.early_stopping_callbacks
    assert early.patience == 7


def test_defaults_for_our_groups_from_the_project(cli):
    class CLI(LaminLightningCLI):
        def add_arguments_to_parser(self, parser):
            parser.set_defaults({"checkpoint.monitor": "val_loss", "checkpoint.save_top_k": 2})

    made = cli(TinyModel, TinyData, kind=CLI, args=["fit"])
    assert made.trainer.checkpoint_callback.monitor == "val_loss"
    assert made.trainer.checkpoint_callback.save_top_k == 2


class Careless(LaminLightningCLI):
    """As projects write it: every hook overridden, none calls super()."""

    def add_arguments_to_parser(self, parser):
        parser.add_argument("--note", default="none")
        self.called = []

    def before_instantiate_classes(self):
        self.called.append("before_instantiate_classes")

    def after_instantiate_classes(self):
        self.called.append("after_instantiate_classes")

    def before_fit(self):
        self.called.append(f"before_fit in {self.lamin_run.status}")

    def after_fit(self):
        self.called.append(f"after_fit in {self.lamin_run.status}")


def test_project_subclass_without_super_is_tracked(cli):
    args = ["fit", "--note=hello", "--lamin.run_uid_is_version=false", "--checkpoint.save_top_k=-1"]
    made = cli(TinyModel, TinyData, kind=Careless, args=args)
    assert made.called == [
        "before_instantiate_classes",
        "after_instantiate_classes",
        "before_fit in started",
        "after_fit in started",
    ]
    assert completed(made)
    assert made.lamin_run.params["note"] == "hello"
    assert made.trainer.checkpoint_callback.save_top_k == -1


def test_project_with_a_checkpoint_group_of_its_own_is_told(cli, capsys):
    class CLI(LaminLightningCLI):
        def add_arguments_to_parser(self, parser):
            parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")

    with pytest.raises(SystemExit) as stop:
        cli(TinyModel, TinyData, kind=CLI, args=["fit"])
    assert stop.value.code == 2
    assert "option group named 'checkpoint', which LaminLightningCLI has" in capsys.readouterr().err


def test_trainer_function_without_callbacks(cli):
    def make(max_epochs: int = 1) -> Trainer:
        return Trainer(**{**QUIET, "max_epochs": max_epochs})

    with pytest.warns(UserWarning, match="does not expose the `callbacks` argument"):
        made = cli(TinyModel, TinyData, trainer_class=make, trainer_defaults={}, args=["fit"])
    assert completed(made)


def test_own_subcommand_method(cli):
    class CLI(LaminLightningCLI):
        def fit(self, model, **kwargs):
            self.fitted = True
            self.trainer.fit(model, **kwargs)

    assert cli(TinyModel, TinyData, kind=CLI, args=["fit"]).fitted


def test_own_parser_class(cli):
    class Parser(LightningArgumentParser):
        pass

    made = cli(TinyModel, TinyData, args=["fit"], parser_class=Parser)
    assert isinstance(made.parser, Parser)
    assert completed(made)


def test_optimizers_and_schedulers(cli):
    args = ["fit", "--optimizer=Adam", "--optimizer.lr=0.01", "--lr_scheduler=ExponentialLR",
            "--lr_scheduler.gamma=0.5"]  # fmt: skip
    made = cli(BoringModel, BoringDataModule, args=args)
    assert isinstance(made.trainer.optimizers[0], torch.optim.Adam)
    assert made.lamin_run.params["optimizer"]["init_args"]["lr"] == 0.01


def test_checkpoint_path_and_its_hyper_parameters(cli, project):
    first = cli(TinyModel, TinyData, args=["fit", "--model.learning_rate=0.5"])
    path = first.trainer.checkpoint_callback.best_model_path
    again = cli(TinyModel, TinyData, args=["test", f"--ckpt_path={path}"])
    assert again.model.hparams.learning_rate == 0.5
    assert torch.equal(first.model.layer.weight, again.model.layer.weight)
    more = cli(TinyModel, TinyData, args=["fit", f"--ckpt_path={path}", "--trainer.max_epochs=2"])
    assert more.trainer.current_epoch == 2
    model = TinyModel.load_from_checkpoint(path)
    assert model.hparams.learning_rate == 0.5


def test_best_checkpoint_after_fit_in_a_script(cli):
    made = cli(TinyModel, TinyData, run=False, args=[])
    made.trainer.fit(made.model, made.datamodule)
    assert made.trainer.test(made.model, made.datamodule, ckpt_path="best")
    made.finish()
    assert {"test_loss"} <= set(made.lamin_run.extra_data["metrics"])


def test_several_config_files(cli, project):
    Path("a.yaml").write_text(yaml.safe_dump({"trainer": {"max_epochs": 1}, "model": {"width": 4}}))
    Path("b.yaml").write_text(yaml.safe_dump({"trainer": {"max_epochs": 2}}))
    made = cli(TinyModel, TinyData, args=["fit", "--config=a.yaml", "--config=b.yaml"])
    assert made.trainer.max_epochs == 2


def test_printed_config_can_be_used(cli, capsys, project):
    with pytest.raises(SystemExit):
        cli(TinyModel, TinyData, args=["fit", "--model.width=4", "--print_config"])
    Path("c.yaml").write_text(capsys.readouterr().out)
    assert completed(cli(TinyModel, TinyData, args=["fit", "--config=c.yaml"]))


def test_only_stock_checkpoint_where_wanted(cli):
    mine = ModelCheckpoint(dirpath="plain")
    args = ["fit", "--lamin.track=false"]
    made = cli(TinyModel, TinyData, args=args, trainer_defaults={**QUIET, "callbacks": [mine]})
    assert made.trainer.checkpoint_callbacks == [mine]


def test_error_in_the_users_class_passes_through(cli, last_run):
    class Broken(TinyModel):
        def __init__(self):
            raise RuntimeError("cannot be made")

    with pytest.raises(RuntimeError, match="cannot be made"):
        cli(Broken, TinyData, args=["fit"])
    assert last_run().status == "errored"


def test_works_in_a_thread(cli):
    """Signals belong to the main thread; a notebook or a server may train elsewhere."""
    from threading import Thread

    from django.db import connections

    made = []

    def work():
        made.append(cli(TinyModel, TinyData, args=["fit"]))
        connections.close_all()

    thread = Thread(target=work)
    thread.start()
    thread.join()
    assert completed(made[0])


def test_environment_is_given_back(cli):
    before = dict(os.environ)
    cli(TinyModel, TinyData, args=["fit"])
    changed = {k for k in {*before, *os.environ} if before.get(k) != os.environ.get(k)}
    assert changed <= {"PL_GLOBAL_SEED", "PL_SEED_WORKERS", "PYTEST_CURRENT_TEST"}


def test_beginning_a_run_draws_no_numbers(train, monkeypatch):
    """As the client of the hub does when it cannot reach it."""
    import random

    from lamincli import tracking

    begin, states = tracking.begin, []

    def begin_and_draw(*args, **kwargs):
        states.append(random.getstate())
        random.random()
        return begin(*args, **kwargs)

    class Data(TinyData):
        def __init__(self):
            super().__init__()
            states.append(random.getstate())

    monkeypatch.setattr(tracking, "begin", begin_and_draw)
    train("fit", datamodule_class=Data)
    assert states[0] == states[1]
