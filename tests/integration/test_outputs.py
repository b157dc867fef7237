"""What a stage leaves behind: predictions, metrics on checkpoints, and the stage after a fit."""

import os
import re
import signal
import sys
import weakref
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tests_models import TinyData, TinyModel
from torch.utils.data import DataLoader, Dataset, IterableDataset

from lamincli.callbacks.predictions import Merge, UnsuitableError, _Part, as_rows, restore

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
            "-m", "lamincli"]  # fmt: skip


class Numbers(Dataset):
    """Sample i is the number i."""

    def __init__(self, size: int = 10) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor(float(index))


class Stream(IterableDataset):
    def __iter__(self):
        yield from (torch.tensor(float(i)) for i in range(10))


class NumberData(TinyData):
    dataset: Dataset = Numbers()
    options: dict = {}  # noqa: RUF012

    def predict_dataloader(self):
        return DataLoader(self.dataset, **{"batch_size": 4, **self.options})


class TwoLoaders(NumberData):
    def predict_dataloader(self):
        return [DataLoader(Numbers(5), batch_size=2), DataLoader(Numbers(3), batch_size=2)]


def predicting(make, data=NumberData):
    """Return the arguments for a model that predicts with a function of the batch."""

    class Model(TinyModel):
        def predict_step(self, batch, batch_idx, dataloader_idx=0):
            return make(batch)

    return {"model_class": Model, "datamodule_class": data}


def the_file(cli):
    """Return what is kept, read as a user would, and check that it is what was published."""
    run = cli.lamin_run
    (artifact,) = run.output_artifacts.filter(description="Lightning predictions")
    assert artifact.kind == "dataset"
    assert artifact.key == cli._predictions.key
    path = cli._predictions.local_path
    assert path.parent == Path(cli._config_saver.local_path).absolute().parent
    assert path.read_bytes() == Path(artifact.path).read_bytes()
    assert not [p for p in path.parent.iterdir() if p.name.startswith(".")], "parts are left"
    if path.suffix == ".parquet":
        return pq.read_table(path)
    return torch.load(path, weights_only=False)


# -- values ---------------------------------------------------------------------------------------


def test_tensor_becomes_a_column(train, capsys):
    cli = train("predict", **predicting(lambda batch: batch * 2))
    table = the_file(cli)
    assert table.to_pydict() == {"prediction": [2.0 * i for i in range(10)]}
    assert cli._predictions.key.endswith(f"/{cli.lamin_run.uid}/predictions.parquet")
    config_key = cli._config_saver.key
    assert cli._predictions.key.rpartition("/")[0] == config_key.rpartition("/")[0]
    assert f"predictions key  {cli._predictions.key}" in capsys.readouterr().out


def test_vectors_matrices_and_images_are_lists(train):
    def make(batch):
        n = len(batch)
        grid = torch.arange(24.0).reshape(2, 3, 4).expand(n, 2, 3, 4)
        return {"image": grid + batch.reshape(n, 1, 1, 1), "vector": grid[:, 0, 0]}

    frame = the_file(train("predict", **predicting(make))).to_pydict()
    assert np.array(frame["image"]).shape == (10, 2, 3, 4)
    assert np.array(frame["image"])[7, 1, 2, 3] == 23 + 7
    assert frame["vector"][0] == [0, 1, 2, 3]


def test_nested_values_of_all_kinds(train):
    def make(batch):
        return {
            "head": {"score": batch.bfloat16(), "half": batch.half(), "flag": batch > 3},
            "name": [f"é{int(i)}" for i in batch],
            "array": batch.int().numpy(),
            "words": np.array([f"w{int(i)}" for i in batch]),
            "split": "val",
            "both": (batch, batch + 1),
            "nothing": None,
        }

    table = the_file(train("predict", **predicting(make)))
    types = {field.name: str(field.type) for field in table.schema}
    assert types == {
        "head.score": "float", "head.half": "float", "head.flag": "bool", "name": "string",
        "array": "int32", "words": "string", "split": "string", "both.0": "float",
        "both.1": "float", "nothing": "null",
    }  # fmt: skip
    assert table.slice(4, 1).to_pylist() == [
        {"head.score": 4.0, "head.half": 4.0, "head.flag": True, "name": "é4", "array": 4,
         "words": "w4", "split": "val", "both.0": 4.0, "both.1": 5.0, "nothing": None}
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda b: [torch.zeros(i + 1) for i in range(len(b))], "prediction is a list"),
        (lambda b: {"x": b, "odd": Odd()}, "odd is a Odd"),
        (lambda b: {"x": b, "sparse": b.to_sparse()}, "sparse fits no column"),
        (lambda b: b[:1], "prediction has 1 rows in a batch of 4"),
        (lambda b: b.mean(), "one value for a batch of 4"),
    ],
)
def test_what_fits_no_table_is_kept_as_a_list_of_batches(train, capsys, make, why):
    cli = train("predict", **predicting(make))
    batches = the_file(cli)
    assert cli._predictions.key.endswith("/predictions.pt")
    assert len(batches) == 3
    assert type(batches[0]) is type(make(torch.zeros(4)))
    assert why in capsys.readouterr().out


class Odd:
    pass


def test_batches_before_the_odd_one_are_restored(train):
    def make(batch):
        return {"x": batch.bfloat16(), "name": ["a"] * len(batch)} if batch[0] < 8 else Odd()

    first, second, third = the_file(train("predict", **predicting(make)))
    assert torch.equal(first["x"], torch.arange(4).bfloat16())
    assert first["x"].dtype == torch.bfloat16
    assert second["name"] == ["a"] * 4
    assert isinstance(third, Odd)


def test_sizes_that_differ_between_batches_become_lists_of_any_size(train):
    def make(batch):
        return batch[:, None].repeat(1, 1 + int(batch[0]))

    table = the_file(train("predict", **predicting(make)))
    assert table["prediction"].to_pylist()[4] == [4.0] * 5
    assert [len(row) for row in table["prediction"].to_pylist()] == [1] * 4 + [5] * 4 + [9] * 2


def test_kinds_that_differ_between_batches(train, capsys):
    def make(batch):
        return {"x": batch if batch[0] < 4 else ["text"] * len(batch)}

    batches = the_file(train("predict", **predicting(make)))
    assert batches[1] == {"x": ["text"] * 4}
    assert "batches differ" in capsys.readouterr().out


def test_nothing_predicted(train, capsys):
    cli = train("predict", **predicting(lambda batch: None))
    assert cli._predictions.key is None
    assert "predict_step returned nothing" in capsys.readouterr().err


def test_what_cannot_be_pickled(train, capsys, project):
    with pytest.raises(SystemExit) as ended:
        train("predict", **predicting(lambda batch: lambda: None))
    assert ended.value.code == 1
    assert "Return tensors" in capsys.readouterr().err
    assert not list(project.rglob(".predictions-*"))


@pytest.mark.parametrize(
    "value",
    [
        torch.arange(6).reshape(2, 3), torch.zeros(2, 0), torch.zeros(2, 3, 0), np.zeros((2, 3)),
        (torch.ones(2), {"a": ["x", "y"]}), {"a": torch.tensor(1.5), "b": torch.ones(2)},
        torch.tensor([True, False]), np.array(["a", "b"]), {"n": 3, "x": [1.5, 2.0]},
        np.array(["a", "longer"], dtype=object), {"id": np.array([None, "b"], dtype=object)},
    ],
)  # fmt: skip
def test_restored_as_it_was(value):
    import pyarrow as pa

    structure, columns = as_rows(value, 2)
    back = restore(structure, pa.RecordBatch.from_pydict(columns))

    def same(a, b):
        assert type(a) is type(b)
        if isinstance(a, dict):
            assert a.keys() == b.keys()
            return all(same(a[key], b[key]) for key in a)
        if isinstance(a, tuple):
            return all(map(same, a, b))
        if isinstance(a, (torch.Tensor, np.ndarray)):
            assert (a.dtype, a.shape) == (b.dtype, b.shape)
            return bool((a == b).all())
        return a == b

    assert same(value, back)


@pytest.mark.parametrize(
    "value",
    [
        {},
        {1: torch.ones(2)},
        {"a.b": [1], "a": {"b": [1]}},
        torch.ones(2) * 1j,
        np.array([1, "a"], dtype=object),
        np.array([["a"], ["b"]], dtype=object),
    ],
)
def test_unsuitable(value):
    with pytest.raises(UnsuitableError):
        as_rows(value, None)


# -- order ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"shuffle": True}, {"num_workers": 2}])
def test_order_of_the_dataset(train, options):
    class Data(NumberData):
        pass

    Data.options = options
    table = the_file(train("predict", **predicting(lambda batch: batch, Data)))
    assert table["prediction"].to_pylist() == list(range(10))


def test_repeats_of_the_users_own_are_kept(train):
    class Data(NumberData):
        options = {"sampler": [3, 1, 1, 2]}  # noqa: RUF012

    table = the_file(train("predict", **predicting(lambda batch: batch, Data)))
    assert table["prediction"].to_pylist() == [1, 1, 2, 3]


def test_stream_without_indices_is_in_the_order_of_its_batches(train):
    class Data(NumberData):
        dataset = Stream()

    table = the_file(train("predict", **predicting(lambda batch: batch, Data)))
    assert table["prediction"].to_pylist() == list(range(10))


def test_several_loaders_are_numbered(train):
    table = the_file(train("predict", **predicting(lambda batch: batch, TwoLoaders)))
    assert table.to_pydict() == {
        "dataloader": [0] * 5 + [1] * 3,
        "prediction": [0, 1, 2, 3, 4, 0, 1, 2],
    }
    lists = the_file(train("predict", **predicting(lambda batch: [batch], TwoLoaders)))
    assert [len(batches) for batches in lists] == [3, 2]


class IteratorModel(TinyModel):
    def predict_step(self, dataloader_iter):
        batch, _, _ = next(dataloader_iter)
        return batch


def test_step_that_takes_an_iterator(train):
    cli = train("predict", model_class=IteratorModel, datamodule_class=NumberData)
    assert the_file(cli)["prediction"].to_pylist() == list(range(10))


def test_folder_that_not_every_rank_sees(train, capsys, monkeypatch, project):
    from lightning.pytorch.strategies import SingleDeviceStrategy

    monkeypatch.setattr(SingleDeviceStrategy, "reduce_boolean_decision", lambda *a, **k: False)
    with pytest.raises(SystemExit) as ended:
        train("predict", **predicting(lambda b: b))
    assert ended.value.code == 2
    assert "shared file system" in capsys.readouterr().err
    assert not list(project.rglob("*predictions*"))


def test_many_chunks_and_folds(monkeypatch, tmp_path):
    """What is merged piece by piece is whole."""
    from lamincli.callbacks import predictions

    monkeypatch.setattr(predictions, "_CHUNK_BYTES", 500)
    monkeypatch.setattr(predictions, "_FOLD", 3)
    indices = np.random.default_rng(0).permutation(100)
    for rank in range(2):
        part = _Part(tmp_path, rank, 0, as_rows=True)
        for number, some in enumerate(np.array_split(indices[rank::2], 7)):
            part.write(torch.tensor(some), some.tolist(), 2 * number + rank, may_repeat=True)
        part.close()
    table = pq.read_table(Merge(tmp_path, names_loaders=False).write())
    assert table["prediction"].to_pylist() == list(range(100))
    assert pq.ParquetFile(tmp_path / "merged.parquet").num_row_groups > 5
    part = _Part(tmp_path, 0, 0, as_rows=False)
    part.write("odd", None, 99, may_repeat=False)
    batches = torch.load(Merge(tmp_path, names_loaders=False).write())
    assert len(batches) == 15
    assert batches[-1] == "odd"
    assert torch.equal(batches[2], torch.tensor(np.array_split(indices[::2], 7)[1]))


MODULE = """
import torch
from torch.utils.data import DataLoader, DistributedSampler
from tests_models import TinyData, TinyModel

class Model(TinyModel):
    def predict_step(self, batch, batch_idx):
        return {"x": batch, "rank": torch.full((len(batch),), self.global_rank)}

class Odd(TinyModel):
    def predict_step(self, batch, batch_idx):
        return [(int(batch[0]), self.global_rank)]

class Data(TinyData):
    def predict_dataloader(self):
        return DataLoader(torch.arange(11), batch_size=2)

class Padded(TinyData):
    def predict_dataloader(self):
        data = torch.arange(11)
        return DataLoader(data, batch_size=2, sampler=DistributedSampler(data, shuffle=True))
"""
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
         "--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.logger=false"]  # fmt: skip


def predict_with_two_ranks(shell, project, *words, program=TORCHRUN):
    (project / "mine.py").write_text(MODULE)
    done = shell("predict", *QUIET, *words, program=program, timeout_s=200)
    assert done.returncode == 0, done.stderr
    (path,) = project.glob("lamin_runs/*/predictions.*")
    assert [p.name for p in path.parent.iterdir() if p.name.startswith(".")] == []
    return path


@pytest.mark.parametrize("data", ["Data", "Padded"])
def test_two_ranks_in_order_without_the_padding(shell, project, record, data):
    path = predict_with_two_ranks(
        shell, project, "--model=mine.Model", f"--data=mine.{data}", "--trainer.strategy=ddp"
    )
    table = pq.read_table(path)
    assert table["x"].to_pylist() == list(range(11))
    assert set(table["rank"].to_pylist()) == {0, 1}
    (run,) = record()
    assert [key.rpartition("/")[2] for key in run.outputs] == ["predictions.parquet"]


def test_two_spawned_ranks(shell, project, record):
    path = predict_with_two_ranks(
        shell, project, "--model=mine.Model", "--data=mine.Data", "--trainer.strategy=ddp_spawn",
        program=[sys.executable, "-m", "lamincli"],
    )  # fmt: skip
    assert pq.read_table(path)["x"].to_pylist() == list(range(11))
    assert [key.rpartition("/")[2] for key in record()[0].outputs] == ["predictions.parquet"]


def test_two_ranks_batch_by_batch(shell, project):
    path = predict_with_two_ranks(
        shell, project, "--model=mine.Odd", "--data=mine.Data", "--trainer.strategy=ddp"
    )
    assert torch.load(path) == [[(0, 0)], [(1, 1)], [(4, 0)], [(5, 1)], [(8, 0)], [(9, 1)]]


# -- memory and traces ----------------------------------------------------------------------------


@pytest.mark.parametrize("odd", [False, True])
def test_memory_does_not_grow(train, odd):
    alive, most = [], []

    def make(batch):
        most.append(sum(ref() is not None for ref in alive))
        out = batch.clone()
        alive.append(weakref.ref(out))
        return [out] if odd else out

    returned = []

    class Data(NumberData):
        dataset = Numbers(80)

    from lamincli import LaminLightningCLI

    class Spy(LaminLightningCLI):
        def predict(self, **arguments):
            returned.append(self.trainer.predict(**arguments))

    train("predict", cli=Spy, **predicting(make, Data))
    assert returned == [None]
    assert len(most) == 20
    assert max(most) <= 1


def test_predictions_are_returned_to_who_asks(train):
    from lamincli import LaminLightningCLI

    returned = []

    class Spy(LaminLightningCLI):
        def predict(self, **arguments):
            returned.append(self.trainer.predict(**arguments))

    cli = train("predict", "--return_predictions=true", cli=Spy, **predicting(lambda b: b))
    assert len(returned[0]) == 3
    assert len(the_file(cli)) == 10


@pytest.mark.parametrize(
    ("typed", "key"),
    [("cells/labels.parquet", "cells/labels.parquet"), ("labels.pt", "labels.pt")],
)
def test_key_of_the_users_own(train, project, typed, key):
    typed, key = f"{project.name}/{typed}", f"{project.name}/{key}"
    cli = train("predict", f"--lamin.predictions={typed}", **predicting(lambda b: b))
    assert cli._predictions.key == key
    assert len(the_file(cli)) == (3 if key.endswith(".pt") else 10)
    again = train("predict", f"--lamin.predictions={typed}", **predicting(lambda b: b + 1))
    (artifact,) = again.lamin_run.output_artifacts.filter(key=key)
    assert artifact.versions.count() == 2


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("labels.csv", "Write labels.parquet"),
        ("/abs/labels.parquet", "no key"),
        ("a/../b.parquet", "no key"),
        ("s3://bucket/b.parquet", "no key"),
        (".parquet", "no name"),
        ("a\\b.parquet", "a backslash"),
        ("n" * 300 + ".parquet", "has 308 bytes"),
        ("/".join(["n" * 100] * 11) + ".parquet", "has 1118 characters"),
    ],
)
def test_wrong_key_is_refused_before_anything(train, ln, capsys, key, why):
    before = ln.Run.objects.count()
    with pytest.raises(SystemExit) as ended:
        train("predict", f"--lamin.predictions={key}", **predicting(lambda b: b))
    assert ended.value.code == 2
    assert why in capsys.readouterr().err
    assert ln.Run.objects.count() == before


@pytest.mark.parametrize(
    "words", [["--lamin.predictions=false"], ["--lamin.track=false"], ["--trainer.fast_dev_run=1"]]
)
def test_off(train, project, words):
    cli = train("predict", *words, **predicting(lambda b: b))
    assert cli._predictions is None
    assert not [p for p in project.rglob("*") if "predictions" in p.name]


@pytest.mark.parametrize("checkpoint", [[], ["--trainer.enable_checkpointing=false"]])
def test_failure_leaves_no_parts(train, project, last_run, checkpoint):
    def make(batch):
        if batch[0] == 8:
            raise ValueError("boom")
        return batch

    with pytest.raises(ValueError, match="boom"):
        train("predict", *checkpoint, **predicting(make))
    assert not list(project.rglob("*predictions*"))
    assert last_run().status == "errored"
    cli = train("predict", *checkpoint, **predicting(lambda b: b))
    assert len(the_file(cli)) == 10


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_signal_leaves_no_parts(train, project, last_run, signum):
    def make(batch):
        if batch[0] == 4:
            os.kill(os.getpid(), signum)
        return batch

    with pytest.raises(SystemExit) as ended:
        train("predict", **predicting(make))
    assert ended.value.code == 128 + signum
    assert last_run().status == "aborted"
    assert not list(project.rglob("*predictions*"))


def test_failure_of_one_rank_leaves_no_parts(shell, project, record):
    (project / "mine.py").write_text(
        MODULE
        + """
class Failing(Model):
    def predict_step(self, batch, batch_idx):
        if self.global_rank == 1 and batch_idx == 1:
            raise ValueError("boom")
        return super().predict_step(batch, batch_idx)
"""
    )
    done = shell("predict", *QUIET, "--model=mine.Failing", "--data=mine.Data",
                 "--trainer.strategy=ddp", program=TORCHRUN, timeout_s=200)  # fmt: skip
    assert done.returncode != 0
    assert not list(project.rglob("*predictions*"))


def test_outage_leaves_the_predictions_to_sync(train, project, monkeypatch, ln):
    from django.db import OperationalError

    from lamincli.commands import sync
    from lamincli.registry.lamin import LaminRegistry

    save = LaminRegistry.save

    def away(self, job, *args):
        if job.kind == "predictions":
            raise OperationalError("away")
        return save(self, job, *args)

    with monkeypatch.context() as patch:
        patch.setattr(LaminRegistry, "save", away)
        cli = train("predict", "--lamin.patience_s=0.1", **predicting(lambda b: b))
    assert cli.unpublished == [str(cli._predictions.local_path)]
    assert sync.main([str(project)]) == 0
    assert len(the_file(cli)) == 10


def test_observers_are_told(train):
    from tests_models import Collect

    Collect.told.clear()
    cli = train("predict", '--checkpoint.artifact_observers=[{"class_path": "tests_models.Collect"}]',
                **predicting(lambda b: b))  # fmt: skip
    told = {event.kind: event for _, event in Collect.told}
    assert told["predictions"].key == cli._predictions.key


# -- metrics on the checkpoint that was evaluated -------------------------------------------------


class Evaluated(TinyModel):
    """Logs a metric that has a feature, and one whose name is that of a Lightning feature."""

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        self.log("eval_loss", self.layer(batch[0]).pow(2).mean())

    def test_step(self, batch, batch_idx):
        self.log_dict({"eval_loss": self.layer(batch[0]).pow(2).mean(), "score": 100.0})
        self.log("eval_nan", torch.tensor(float("nan")))


@pytest.fixture
def features(ln):
    """Create features that only the model of these tests logs."""
    for name in ("eval_loss", "eval_nan"):
        ln.Feature(name=name, dtype=float).save()


@pytest.fixture
def trained(train, last_run):
    train("fit", "--checkpoint.monitor=val_loss")
    return last_run()


def best_of(run):
    return run.output_artifacts.get(kind="model")


def values_of(artifact):
    return type(artifact).get(artifact.uid).features.get_values()


@pytest.mark.parametrize("by", ["reference", "file"])
def test_evaluation_annotates_the_checkpoint(train, trained, features, by):
    best = best_of(trained)
    path = f"lamin:run/{trained.uid}/best" if by == "reference" else str(best.path)
    before = values_of(best)
    cli = train("test", f"--ckpt_path={path}", model_class=Evaluated)
    loss = float(cli.trainer.callback_metrics["eval_loss"])
    assert values_of(best) == before | {"eval_loss": loss}
    again = train("test", f"--ckpt_path={path}", "--data.size=8", model_class=Evaluated)
    assert values_of(best)["eval_loss"] == float(again.trainer.callback_metrics["eval_loss"])
    assert values_of(best)["eval_loss"] != loss
    assert best in again.lamin_run.input_artifacts.all()


def test_the_score_of_the_training_stays(train, trained, features):
    best = best_of(trained)
    before = values_of(best)
    train("test", f"--ckpt_path={best.path}", model_class=Evaluated)
    after = values_of(best)
    assert "eval_loss" in after
    assert "eval_nan" not in after
    assert after["score"] == before["score"]


def test_no_database_for_the_features_is_a_warning(train, trained, features, capsys, monkeypatch):
    from django.db import OperationalError

    from lamincli.registry import values

    def away(*args):
        raise OperationalError("away")

    monkeypatch.setattr(values, "unlink", away)
    cli = train("test", f"--ckpt_path={best_of(trained).path}", model_class=Evaluated)
    assert cli.lamin_run.status == "completed"
    assert "the metrics could not be added" in capsys.readouterr().err


# -- the stage after a fit ------------------------------------------------------------------------


@pytest.mark.parametrize("monitor", ["val_loss", None])
@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_stage_after_fit_is_a_child_run(train, ln, capsys, stage, monitor, features):
    words = [f"--checkpoint.monitor={monitor}"] if monitor else []
    cli = train("fit", f"--lamin.then={stage}", *words, "--trainer.max_epochs=2",
                model_class=Evaluated)  # fmt: skip
    fit, then = cli.lamin_run, cli.then.lamin_run
    assert [run.status for run in (fit, then)] == ["completed"] * 2
    assert then.initiated_by_run == fit
    best = best_of(fit)
    assert best in then.input_artifacts.all()
    assert cli.then.trainer.ckpt_path == cli.trainer.checkpoint_callback.best_model_path
    assert cli.then.model is not cli.model
    out = capsys.readouterr().out
    assert out.index(f"run {fit.uid} completed") < out.index(f"run {then.uid} completed")
    assert then.extra_data["lamin_train"]["stage"] == stage
    command = then.extra_data["lamin_train"]["command"]
    assert command.startswith(f"{stage} --config ")
    if stage == "predict":
        assert len(the_file(cli.then)) == 16
    else:
        assert then.extra_data["metrics"]["eval_loss"] == values_of(best)["eval_loss"]
    assert {a.description for a in then.input_artifacts.all()} >= {"Lightning CLI config"}
    # The words that are recorded do the same.
    again = train(*command.split(), model_class=Evaluated)
    assert again.then is None
    assert best in again.lamin_run.input_artifacts.all()


def test_stage_after_fit_in_a_subclass_with_arguments_of_its_own(train):
    from lightning.pytorch.callbacks import LearningRateMonitor

    from lamincli import Checkpoint, LaminLightningCLI

    callbacks = [Checkpoint(monitor="val_loss"), LearningRateMonitor()]

    class Mine(LaminLightningCLI):
        def __init__(self, flavour, **arguments):
            self.flavour = flavour
            super().__init__(trainer_defaults={"callbacks": callbacks}, **arguments)

        def add_arguments_to_parser(self, parser):
            parser.add_argument("--flavour", default=self.flavour)

    cli = train("fit", "--lamin.then=test", cli=Mine, flavour="sweet")
    assert type(cli.then) is Mine
    assert cli.then.config["test"]["flavour"] == "sweet"
    fit, then = cli.lamin_run, cli.then.lamin_run
    assert then.uid in then.input_artifacts.get(description="Lightning CLI config").key
    assert best_of(fit) in then.input_artifacts.all()


class SizedModel(TinyModel):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size


def test_stage_after_fit_with_links_and_an_optimizer(train):
    from lamincli import LaminLightningCLI

    class Linked(LaminLightningCLI):
        def add_arguments_to_parser(self, parser):
            parser.link_arguments("data.size", "model.size")
            parser.add_optimizer_args(torch.optim.SGD)

    cli = train("fit", "--lamin.then=test", "--data.size=8", "--optimizer.lr=0.2", cli=Linked,
                model_class=SizedModel)  # fmt: skip
    assert cli.then.model.size == 8
    assert cli.then.lamin_run.initiated_by_run == cli.lamin_run


def test_fit_that_saves_no_checkpoint_is_not_followed(train, capsys, last_run):
    with pytest.raises(SystemExit) as ended:
        train("fit", "--lamin.then=test", "--checkpoint.every_n_epochs=5")
    assert ended.value.code == 1
    assert last_run().status == "completed"
    assert "saved no checkpoint" in capsys.readouterr().err


def test_stage_after_fit_within_the_run_of_a_script(train, ln):
    ln.track(transform=ln.Transform(key="script.py", kind="pipeline").save())
    run = ln.context.run
    cli = train("fit", "--lamin.then=test")
    assert cli.lamin_run == run
    assert cli.then.lamin_run.initiated_by_run == run
    assert ln.context.run == run
    assert cli.then.lamin_run.status == "completed"
    ln.finish()


def test_stage_after_fit_without_a_record(train, ln):
    before = ln.Run.objects.count()
    cli = train("fit", "--lamin.then=test", "--lamin.track=false")
    assert cli.then.trainer.ckpt_path == cli.trainer.checkpoint_callback.best_model_path
    cli = train("fit", "--lamin.then=test", "--trainer.fast_dev_run=1")
    assert "test_loss" in cli.then.trainer.callback_metrics
    assert ln.Run.objects.count() == before


class NoTest(TinyModel):
    test_step = TinyModel.__mro__[1].test_step


class NoTestData(TinyData):
    test_dataloader = None


@pytest.mark.parametrize(
    ("words", "arguments", "why"),
    [
        (["test", "--lamin.then=test"], {}, "follows fit, and this is test"),
        (["validate", "--lamin.then", "test"], {}, "follows fit, and this is validate"),
        (["fit", "--lamin.then=test"], {"model_class": NoTest}, "NoTest has no test_step"),
        (["fit", "--lamin.then=test"], {"datamodule_class": NoTestData}, "no test_dataloader"),
        (["fit", "--lamin.then=test", "--trainer.enable_checkpointing=false"], {}, "is false"),
        (["fit", "--lamin.then=test", "--checkpoint.save_top_k=0"], {}, "save_top_k is 0"),
        (["fit", "--lamin.then=sing"], {}, "then"),
    ],
)
def test_wrong_stage_after_fit_is_refused(train, ln, capsys, words, arguments, why):
    before = ln.Run.objects.count()
    with pytest.raises(SystemExit) as ended:
        train(*words, **arguments)
    assert ended.value.code == 2
    assert why in capsys.readouterr().err
    assert ln.Run.objects.count() == before


def test_failed_fit_is_not_followed(train, last_run, ln):
    before = ln.Run.objects.count()
    with pytest.raises(ValueError, match="boom"):
        train("fit", "--lamin.then=test", "--model.at=raise")
    assert ln.Run.objects.count() == before + 1


@pytest.mark.parametrize(
    ("program", "strategy"),
    [(TORCHRUN, "ddp"), (None, "ddp"), (None, "ddp_spawn")],
    ids=["torchrun", "ddp", "ddp_spawn"],
)
def test_two_ranks_test_after_fit(shell, record, program, strategy):
    done = shell(
        "fit", "--lamin.then=test", "--model=tests_models.TinyModel", "--data=tests_models.TinyData",
        "--trainer.max_epochs=1", *QUIET, f"--trainer.strategy={strategy}",
        program=program, timeout_s=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    fit, then = record()
    assert (fit.status, then.status, then.parent) == ("completed", "completed", fit.uid)
    assert any(key.endswith(".ckpt") for key in then.inputs)
    assert set(then.extra["metrics"]) == {"test_loss"}


# -- the guide ------------------------------------------------------------------------------------

ROOT = Path(__file__).parents[2]


def test_the_guide_is_true(shell, record):
    text = (ROOT / "docs/guides/predictions.md").read_text()
    blocks = re.findall(r"```(bash|python)\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 6
    for language, code in blocks:
        lines = code.splitlines() if language == "bash" else [code]
        for line in lines:
            if language == "python":
                done = shell("-c", line, program=[sys.executable])
            else:
                words = line.replace("configs/", f"{ROOT}/configs/").split()[1:]
                short = ["--trainer.max_epochs=1", "--trainer.enable_progress_bar=false"]
                done = shell(*words, *short)
            assert done.returncode == 0, done.stdout + done.stderr
    assert [run.extra["lamin_train"]["stage"] for run in record()] == [
        "fit", "predict", "test", "fit", "test"
    ]  # fmt: skip
