"""Are two values, two tensors, two checkpoints the same? Imports torch where it meets some.

A NaN equals a NaN here: two trainings that diverge alike are alike.
"""

import math
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any, Literal

from lamincli.errors import first_line

State = Literal["identical", "differs", "unknown"]

_CHUNK = 1 << 22
"""How many numbers are compared at once: tensors may be larger than the memory."""
_WEIGHTS = ("state_dict", "optimizer_states", "lr_schedulers")
_LONGEST_VALUE = 60
_LISTED = 5
_VERSION = re.compile(r"-v\d+(?=\.\w+$)")


# -- values ----------------------------------------------------------------------------------------


def leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of a nested value, with their dotted keys."""
    if isinstance(value, Mapping) and value:
        for name, item in value.items():
            yield from leaves(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, (list, tuple)) and value:
        for index, item in enumerate(value):
            yield from leaves(item, f"{key}[{index}]")
    elif key or not isinstance(value, (Mapping, list, tuple)):
        yield key, value


def is_same(a: Any, b: Any) -> bool:
    """Tell whether two values are the same; tensors bit for bit, and NaN equals NaN."""
    if type(a) is type(b) and type(a).__module__ == "numpy":
        return _is_same_array(a, b)
    if hasattr(a, "dtype") and hasattr(b, "dtype"):
        return type(a) is type(b) and _is_same_tensor(a, b)
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b):
        return True
    if {type(a), type(b)} == {int, float}:  # 1 in a config, and 1.0 where it was parsed
        return bool(a == b)
    return type(a) is type(b) and bool(a == b)


def _is_same_array(a: Any, b: Any) -> bool:
    if not hasattr(a, "dtype"):  # a type of NumPy, or of its numbers
        return bool(a == b)
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return bool(a.tolist() == b.tolist() if a.dtype.hasobject else a.tobytes() == b.tobytes())


def _is_same_tensor(a: Any, b: Any) -> bool:
    import torch

    if a.dtype != b.dtype or a.shape != b.shape or a.layout != b.layout:
        return False
    if a.layout != torch.strided:
        one, other = (tensor.to_sparse().coalesce() for tensor in (a, b))
        parts = ((one.indices(), other.indices()), (one.values(), other.values()))
        return all(_is_same_tensor(x, y) for x, y in parts)
    if a.numel() == 0 or a.is_quantized:
        return bool(torch.equal(a, b))
    return all(_is_same_chunk(x, y) for x, y in _chunks(a, b))


def _is_same_chunk(a: Any, b: Any) -> bool:
    import torch

    def bits(tensor: Any) -> Any:
        return tensor.contiguous().view(torch.uint8)

    if torch.equal(bits(a), bits(b)):
        return True
    if not (a.is_floating_point() or a.is_complex()):
        return False
    is_nan = a.isnan()
    if not bool(is_nan.any()) or not torch.equal(is_nan, b.isnan()):
        return False
    return bool(torch.equal(bits(a[~is_nan]), bits(b[~is_nan])))


def _chunks(a: Any, b: Any) -> Iterator[tuple[Any, Any]]:
    """Yield two tensors of one shape in parts, flat."""
    a, b = (tensor.detach().reshape(-1) for tensor in (a, b))
    for start in range(0, a.numel(), _CHUNK):
        yield a[start : start + _CHUNK], b[start : start + _CHUNK]


# -- checkpoints -----------------------------------------------------------------------------------


def checkpoints(original: Path, here: Path) -> tuple[State, list[str]]:
    """Compare all that two checkpoints hold, tensors bit for bit.

    They are read with weights_only, so that nothing in them runs, and mapped rather than copied.
    What is known to vary between two trainings that are the same is left aside, and named.

    Args:
        original: The file of the run.
        here: That of its reproduction.

    Returns:
        ``unknown`` where one cannot be read; and lines for people.
    """
    try:
        before, after = _read(original), _read(here)
    except Exception as error:  # an old format, a folder, or more than weights in it
        return "unknown", [f"the checkpoints cannot be compared: {first_line(error)}"]
    steps = [content.get("global_step") for content in (before, after)]
    if steps[0] != steps[1]:
        facts = [f"the last checkpoints are of different steps: was {steps[0]}, here {steps[1]}"]
        return "differs", facts
    facts, aside, unclear = [], set(), []
    for section in {**before, **after}:
        a, b = (_values_of(section, content) for content in (before, after))
        differing = []
        for key in {**a, **b}:
            try:
                if key in a and key in b and is_same(a[key], b[key]):
                    continue
            except Exception as error:  # of a kind that nobody has thought of
                unclear.append(f"{section}.{key} cannot be compared: {first_line(error)}")
                continue
            if why := _why_it_varies(section, key, a.get(key), b.get(key)):
                aside.add(why)
            else:
                differing.append(key)
        if differing:
            facts.append(_described(section, a, b, differing))
    if facts or unclear:
        return "differs" if facts else "unknown", [*facts, *unclear[:_LISTED]]
    told = [f"left aside, because they vary: {', '.join(sorted(aside))}"] if aside else []
    weights = (value for name in _WEIGHTS for _, value in leaves(before.get(name)))
    tensors = sum(hasattr(value, "dtype") for value in weights)
    return "identical", [f"the last checkpoint is the same bit for bit ({tensors} tensors)", *told]


def _read(path: Path) -> dict[str, Any]:
    import torch

    if path.is_dir():
        raise ValueError("they are folders, as sharded strategies write them")
    with torch.serialization.safe_globals(_harmless()):
        content = torch.load(
            path, weights_only=True, map_location="cpu", mmap=zipfile.is_zipfile(path)
        )
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} is no checkpoint of Lightning")
    return content


def _harmless() -> list[Any]:
    """Return what a checkpoint may hold beyond weights: making one of these does nothing else."""
    import argparse
    import datetime

    import numpy as np

    core: Any = getattr(np, "_core", None) or np.core
    numbers = {type(np.dtype(code)) for code in "?bhilqBHILQefdgFDGSUVMmO"}
    makers = (core.multiarray._reconstruct, core.multiarray.scalar)
    named = [(m, f"numpy.{c}.multiarray.{m.__name__}") for m in makers for c in ("core", "_core")]
    dates = [datetime.date, datetime.datetime, datetime.time, datetime.timedelta, datetime.timezone]
    paths = [type(Path()), PurePosixPath, PureWindowsPath]
    return [
        *named,
        np.ndarray,
        np.dtype,
        *numbers,
        *dates,
        *paths,
        argparse.Namespace,
        set,
        complex,
    ]


def _values_of(section: str, content: Mapping[str, Any]) -> dict[str, Any]:
    if section not in content:
        return {}
    value = content[section]
    return dict(leaves(_by_names(value) if section == "callbacks" else value))


def _by_names(value: Any, are_paths: bool = False) -> Any:
    """Return the states of callbacks, with the names of files in the place of their paths as keys.

    A reproduction writes to other folders.
    """
    if not isinstance(value, Mapping):
        return value
    named: dict[Any, Any] = {}
    for key, item in value.items():
        is_path = isinstance(key, str) and (are_paths or PurePath(key).is_absolute())
        name = _file_name(key) if is_path else key
        item = _by_names(item, are_paths=key == "best_k_models")
        named[key if name in named else name] = item
    return named


def _why_it_varies(section: str, key: str, a: Any, b: Any) -> str:
    """Say what a value is that varies between two trainings that are the same; else nothing."""
    if section == "pytorch-lightning_version":
        return "the version of Lightning"
    if section != "callbacks":
        return ""
    if key.endswith((".saved.run", ".saved.order")):
        return "which run has saved it"
    if ".time_elapsed." in f"{key}.":
        return "times"
    if ".random.cuda" in key and (a is None or b is None):
        return "the random numbers of GPUs that one of them had"
    return "folders" if _is_another_place(key, a, b) else ""


def _is_another_place(key: str, a: Any, b: Any) -> bool:
    """Tell whether two values are folders, one of which may be missing, or files of one name."""
    places = [value for value in (a, b) if value is not None]
    is_called_so = key.endswith(("path", "dir", "folder", "file"))
    if not all(isinstance(p, str) and (is_called_so or PurePath(p).is_absolute()) for p in places):
        return False
    names = {_file_name(place) for place in places}
    return not any(PurePath(place).suffix for place in places) or (len(places), len(names)) == (
        2,
        1,
    )


def _file_name(path: str) -> str:
    """Return the name of a file, without the number that it has where the name was taken."""
    return _VERSION.sub("", PurePath(path).name)


def _described(section: str, a: Mapping[str, Any], b: Mapping[str, Any], keys: list[str]) -> str:
    """Say in a line how a section differs: how many of its values, and the first of them."""
    label = section.replace("_", " ")
    was, now = (_short(one.get(keys[0], "not there")) for one in (a, b))
    if keys == [""]:  # it is a value itself
        return f"{label}: was {was}, here {now}"
    is_plain = was and now and len(keys[0]) < _LONGEST_VALUE
    values = f" (was {was}, here {now})" if is_plain else ""
    number = f"{len(keys)} of {len({**a, **b})} values differ"
    return f"{label}: {number}, first {keys[0]}{values}{_distance(a, b, keys)}"


def _short(value: Any) -> str:
    text = "" if hasattr(value, "dtype") else repr(value)
    return text if len(text) <= _LONGEST_VALUE else ""


def _distance(a: Mapping[str, Any], b: Mapping[str, Any], keys: list[str]) -> str:
    """Say how far apart the tensors are at most."""
    import torch

    largest = 0.0
    for key in keys:
        x, y = a.get(key), b.get(key)
        if not (isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor)) or x.shape != y.shape:
            continue
        if x.layout != torch.strided or x.is_complex() or y.is_complex():
            continue
        for one, other in _chunks(x, y):
            difference = (one.double() - other.double()).abs()
            largest = max(largest, difference.nan_to_num(nan=0.0).max().item())
    return f", by {largest:.3g} at most" if largest else ""
