"""What differs between a run and its reproduction is found, and named with both values."""

import math

import pytest
import torch

from lamincli import differences as d

NAN = math.nan


def test_code_shows_the_difference():
    assert d.code("a = 1\n", "a = 1\n", "m.py", {}, {}).state == "identical"
    found = d.code("lr = 1\n", "lr = 2\n", "m.py", {}, {})
    assert found.state == "differs"
    assert {"-lr = 1", "+lr = 2", "--- m.py as recorded", "+++ m.py here"} <= set(found.facts)
    assert d.code(None, "a", "m.py", {}, {}).state == "unknown"


def test_code_names_other_modules_that_have_changed():
    was = {"m.py": "1", "data.py": "2", "gone.py": "3"}
    found = d.code("a", "a", "m.py", was, {"m.py": "9", "data.py": "8", "new.py": "7"})
    assert found.state == "differs"
    assert found.facts == [
        "m.py is the same",
        "data.py is another than it was; only its hash is recorded",
    ]
    was_named_alike = {"m.py": "1", "my_m.py": "1"}
    found = d.code("a", "a", "my_m.py", was_named_alike, {"m.py": "2", "my_m.py": "1"})
    assert found.state == "differs"
    assert d.code("a", "a", "m.py", was, was).facts == ["m.py and 2 modules beside it"]


@pytest.mark.parametrize("doubt", ["changed", "unknown"])
def test_module_of_which_nobody_knows_what_ran_is_not_the_same(doubt):
    was, here = {"m.py": "1", "data.py": doubt}, {"m.py": "1", "data.py": doubt}
    found = d.code("a", "a", "m.py", was, here)
    assert found.state == "unknown"
    assert found.facts == ["data.py was touched after it was loaded; what ran is not known"]
    found = d.code("a", "a", "m.py", {**was, "x.py": "1"}, {**here, "x.py": "2"})
    assert (found.state, len(found.facts)) == ("differs", 3)


def test_code_shows_forty_lines_at_most():
    found = d.code("".join(f"{n}\n" for n in range(99)), "", "m.py", {}, {})
    assert len(found.facts) == 1 + 40 + 1
    assert found.facts[-1].startswith("… ")


def test_values_are_named_with_both():
    was = {"seed_everything": 1, "model": {"lr": 0.1, "layers": [1, 2]}, "gone": True}
    here = {"seed_everything": 2, "model": {"lr": 0.1, "layers": [1, 3]}, "new": {"a": None}}
    assert d.values("config", was, here).facts == [
        "seed_everything: was 1, here 2",
        "model.layers[1]: was 2, here 3",
        "gone: was True, here not there",
        "new.a: not there, here None",
    ]
    assert d.values("config", was, was).state == "identical"
    assert d.values("hardware", None, {}).state == "unknown"
    assert d.values("config", {}, None).facts == ["the config of the reproduction is not recorded"]
    assert d.values("data", {"file a": 1}, {}).facts == ["file a: was 1, here not there"]


def test_one_is_not_true():
    assert d.values("config", {"a": 1}, {"a": True}).state == "differs"


def test_packages_added_removed_and_changed():
    was = "torch==2.13.0\nNumPy==2.0\nold==1\n-e git+https://h/p@abc#egg=mine\n"
    here = "torch==2.13.1\nnumpy==2.0\nnew @ file:///w/new.whl\n-e git+https://h/p@def#egg=mine\n"
    assert d.packages(was, here).facts == [
        "mine: was git+https://h/p@abc, here git+https://h/p@def",
        "new: was not there, here file:///w/new.whl",
        "old: was 1, here not there",
        "torch: was 2.13.0, here 2.13.1",
    ]
    assert d.packages(was, was).state == "identical"


def test_first_step_at_which_each_metric_parts():
    was = [(0, "loss", 1.0), (1, "loss", 0.5), (2, "loss", 0.4), (2, "acc", 0.9)]
    here = [(0, "loss", 1.0), (1, "loss", 0.6), (2, "loss", 0.3), (2, "acc", 0.8)]
    assert d.parting(was, here) == {"loss": (1, 0.5, 0.6), "acc": (2, 0.9, 0.8)}
    assert list(d.parting(was, here)) == ["loss", "acc"]
    assert d.parting(was, was) == {}


def test_nan_equals_nan_and_the_last_bit_counts():
    assert d.parting([(0, "a", NAN)], [(0, "a", NAN)]) == {}
    assert d.parting([(0, "a", 0.1)], [(0, "a", math.nextafter(0.1, 1))])
    assert d.parting([(0, "a", 1.0)], []) == {"a": (0, 1.0, None)}
    assert d.parting([(0, "a", 1.0)] * 2, [(0, "a", 1.0)]), "logged twice in a step"


def test_history_is_read_as_it_was_written(tmp_path):
    file = tmp_path / "history.csv"
    file.write_text('step,name,value\n4,"a,b",0.1\n4,c,nan\n')
    (one, two) = d.read_history(file)
    assert one == (4, "a,b", 0.1)
    assert math.isnan(two[2])


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        (torch.tensor([1.0, NAN]), torch.tensor([1.0, NAN]), True),
        (torch.tensor([1.0, NAN]), torch.tensor([2.0, NAN]), False),
        (torch.tensor([1.0]), torch.tensor([1.0], dtype=torch.float64), False),
        (torch.tensor([1.0]), torch.tensor(1.0), False),
        (torch.tensor([0.0]), torch.tensor([-0.0]), False),
        (torch.tensor(3), torch.tensor(3), True),
        (torch.tensor([]), torch.tensor([]), True),
        (torch.tensor([1.0], dtype=torch.bfloat16), torch.tensor([1.0], dtype=torch.bfloat16), True),
        (torch.tensor([True]), torch.tensor([False]), False),
        (torch.ones(2, 3).t(), torch.ones(3, 2), True),
        (torch.tensor(1.0), 1.0, False),
    ],
)  # fmt: skip
def test_tensors_bit_for_bit(a, b, same):
    assert d.is_same(a, b) is same


def save(path, weight, moment=0.0, **more):
    optimizer = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.tensor([moment])}}}
    torch.save(
        {
            "state_dict": {"layer.weight": torch.tensor([weight])},
            "optimizer_states": [optimizer],
            "epoch": 1,
            **more,
        },
        path,
    )
    return path


def test_checkpoints_are_compared_in_all_that_matters(tmp_path):
    one = save(tmp_path / "1.ckpt", 1.0, callbacks={"path": "/here"})
    same = save(tmp_path / "2.ckpt", 1.0, callbacks={"path": "/there"})
    assert d.checkpoints(one, same)[0] == "identical"
    state, facts = d.checkpoints(one, save(tmp_path / "3.ckpt", 1.5))
    assert state == "differs"
    assert facts == ["state dict: 1 of 1 values differ, first layer.weight, by 0.5 at most"]
    state, facts = d.checkpoints(one, save(tmp_path / "4.ckpt", 1.0, moment=0.25))
    assert state == "differs"
    assert "optimizer states: 1 of 2 values differ" in facts[0]
    facts = d.checkpoints(one, save(tmp_path / "5.ckpt", 2.0, global_step=7))[1]
    assert facts == ["the last checkpoints are of different steps: was None, here 7"]


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    bad = tmp_path / "bad.ckpt"
    torch.save({"state_dict": {}, "hyper_parameters": Evil()}, bad)
    state, facts = d.checkpoints(bad, bad)
    assert state == "unknown"
    assert "cannot be compared" in facts[0]
    assert not (tmp_path / "ran").exists()
