import json
import math
from pathlib import Path

import pytest
import torch

from lamincli.features import as_json, dtype_of, metric_values


def test_metrics_become_numbers():
    metrics = {"loss": torch.tensor(0.5), "n": 3, "bad": torch.ones(2), "text": "x"}
    assert metric_values(metrics) == {"loss": 0.5, "n": 3.0}
    assert math.isnan(metric_values({"x": torch.tensor(float("nan"))})["x"])


@pytest.mark.parametrize(
    ("value", "left"),
    [
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        ("a\x00b", "ab"),
        ({1: (1, 2)}, {"1": [1, 2]}),
        (Path("a/b"), "a/b"),
        (True, True),
        (None, None),
    ],
)
def test_json_is_such_that_every_database_takes_it(value, left):
    assert as_json(value) == left
    json.dumps(as_json(value), allow_nan=False)


def test_type_of_a_new_feature_follows_its_value():
    values = [True, 1, 1.5, "a", None, {"a": 1}]
    assert [dtype_of(v) for v in values] == ["bool", "int", "float", "str", "float", "dict"]
