"""Two checkpoints are the same if all that they hold is, but for what is known to vary."""

import argparse
import math
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch

from lamincli import comparing
from lamincli.comparing import checkpoints, is_same

OURS = "Checkpoint{'monitor': 'val_loss'}"


def content(uid="A", place="/runs/a/checkpoints", name="", **more):
    """What Lightning and our callback put into a checkpoint."""
    best = f"{place}/epoch=1-step=6{name}.ckpt"
    ours = {
        "monitor": "val_loss", "best_model_score": torch.tensor(0.5), "best_model_path": best,
        "dirpath": place, "best_k_models": {best: torch.tensor(0.5)}, "kth_best_model_path": best,
        "random": {"torch": torch.arange(4), "python": [3, [1, 2], None]},
        "saved": {"run": uid, "order": len(place)},
    }  # fmt: skip
    return {
        "epoch": 1, "global_step": 6, "pytorch-lightning_version": "2.6.6",
        "state_dict": {"layer.weight": torch.ones(3)},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}],
        "lr_schedulers": [], "loops": {"fit_loop": {"epoch_progress": {"total": {"ready": 2}}}},
        "callbacks": {OURS: ours, "Timer": {"time_elapsed": {"train": 1.5 * len(place)}}},
        "hyper_parameters": {"width": 4}, "MyData": {"position": 7}, **more,
    }  # fmt: skip


@pytest.fixture
def compared(tmp_path):
    def compare(one, other):
        for name, what in (("one", one), ("other", other)):
            torch.save(what, tmp_path / name)
        return checkpoints(tmp_path / "one", tmp_path / "other")

    return compare


def test_what_varies_is_left_aside_and_named(compared):
    here = content("B", "/tmp/scratch/checkpoints", **{"pytorch-lightning_version": "2.6.7"})
    assert compared(content(), here) == (
        "identical",
        [
            "the last checkpoint is the same bit for bit (2 tensors)",
            "left aside, because they vary: folders, the version of Lightning, times, which run has "
            "saved it",
        ],
    )
    relative = content("B", "logs/digits/version_0/checkpoints", name="-v1")
    assert compared(content(), relative)[0] == "identical"
    assert compared(content(), content())[1] == [
        "the last checkpoint is the same bit for bit (2 tensors)"
    ]


def changed(*path, to):
    """The content with one value changed."""
    what = content()
    place = what
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = to
    return what


@pytest.mark.parametrize(
    ("path", "to", "told"),
    [
        (["state_dict", "layer.weight"], torch.full((3,), 1.25), "state dict: 1 of 1 values differ, first layer.weight, by 0.25 at most"),
        (["optimizer_states", 0, "param_groups", 0, "lr"], 0.2, "optimizer states: 1 of 2 values differ, first [0].param_groups[0].lr (was 0.1, here 0.2)"),
        (["loops", "fit_loop", "epoch_progress", "total", "ready"], 3, "loops: 1 of 1 values differ, first fit_loop.epoch_progress.total.ready (was 2, here 3)"),
        (["hyper_parameters", "width"], 5, "hyper parameters: 1 of 1 values differ, first width (was 4, here 5)"),
        (["MyData", "position"], 8, "MyData: 1 of 1 values differ, first position (was 7, here 8)"),
        (["epoch"], 2, "epoch: was 1, here 2"),
        (["added"], "by on_save_checkpoint", "added: was 'not there', here 'by on_save_checkpoint'"),
        (["added"], {"table": torch.ones(2)}, "added: 1 of 1 values differ, first table"),
        (["callbacks", OURS, "best_model_score"], torch.tensor(0.25), "callbacks: 1 of "),
        (["callbacks", OURS, "best_model_path"], "/runs/a/checkpoints/epoch=0-step=3.ckpt", "callbacks: 1 of "),
        (["callbacks", OURS, "random", "torch"], torch.arange(1, 5), "callbacks: 1 of "),
        (["callbacks", "EarlyStopping"], {"wait_count": 1}, "callbacks: 1 of "),
        (["callbacks", OURS, "monitor"], "val/loss", "callbacks: 1 of "),
    ],
)  # fmt: skip
def test_everything_else_is_compared(compared, path, to, told):
    state, (fact, *rest) = compared(content(), changed(*path, to=to))
    assert state == "differs"
    assert fact.startswith(told)
    assert not rest


def test_generators_of_gpus_that_only_one_of_the_machines_has_are_left_aside(compared):
    here = content()
    here["callbacks"][OURS]["random"]["cuda"] = [torch.arange(8)]
    state, facts = compared(content(), here)
    assert state == "identical"
    assert "the random numbers of GPUs that one of them had" in facts[1]


def test_what_is_harmless_can_be_compared(compared):
    def what(number):
        return content(
            table=np.arange(3), number=np.float32(0.5), text=np.str_("a"), where=Path("a/b"),
            took=timedelta(seconds=2), options=argparse.Namespace(a=number), kinds={"x", "y"},
        )  # fmt: skip

    assert compared(what(1), what(1))[0] == "identical"
    assert compared(what(1), what(2)) == (
        "differs", ["options: was Namespace(a=1), here Namespace(a=2)"]
    )  # fmt: skip


def test_older_file_that_cannot_be_mapped_is_read(compared, tmp_path):
    for name in "ab":
        torch.save(content(), tmp_path / name, _use_new_zipfile_serialization=False)
    assert checkpoints(tmp_path / "a", tmp_path / "b")[0] == "identical"


def test_what_cannot_be_read_is_not_the_same(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "torn").write_bytes(b"PK\3\4 torn")
    torch.save([1], tmp_path / "list")
    torch.save(content(), tmp_path / "whole")
    for name in ("folder", "torn", "list", "nowhere"):
        state, (fact,) = checkpoints(tmp_path / "whole", tmp_path / name)
        assert state == "unknown"
        assert fact.startswith("the checkpoints cannot be compared: ")


def test_value_that_cannot_be_compared_is_not_the_same(compared, monkeypatch):
    def refuse(*_):
        raise NotImplementedError("no kernel")

    monkeypatch.setattr(comparing, "_is_same_chunk", refuse)
    state, facts = compared(content(), content())
    assert state == "unknown"
    assert "state_dict.layer.weight cannot be compared: no kernel" in facts
    assert compared(content(), changed("epoch", to=2))[0] == "differs"


def test_large_tensors_are_compared_in_parts(monkeypatch):
    monkeypatch.setattr(comparing, "_CHUNK", 10)
    one = torch.arange(45.0).reshape(5, 9)
    other = one.clone()
    assert is_same(one, other)
    assert is_same(one.t(), other.t())
    one[4, 8] = other[4, 8] = math.nan
    assert is_same(one, other)
    other[4, 7] += 0.5
    assert not is_same(one, other)
    assert comparing._distance({"w": one}, {"w": other}, ["w"]) == ", by 0.5 at most"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (np.arange(3), np.arange(3), True),
        (np.arange(3), np.arange(3.0), False),
        (np.array([math.nan]), np.array([math.nan]), True),
        (np.array(["a", None], dtype=object), np.array(["a", None], dtype=object), True),
        (np.float32(1), np.float64(1), False),
        (np.float64(1), 1.0, False),
        (np.arange(3), torch.arange(3), False),
        (torch.tensor([1 + 2j]), torch.tensor([1 + 2j]), True),
        (torch.tensor([1 + 2j]), torch.tensor([1 + 3j]), False),
        (torch.eye(2).to_sparse(), torch.eye(2).to_sparse(), True),
    ],
)
def test_values_of_many_kinds(one, other, same):
    assert is_same(one, other) is same
