"""What a checkpoint holds, read without its weights, and why one cannot be used."""

import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from traceback import walk_tb
from typing import Any

from lamincli import order
from lamincli.errors import UsageError, first_line


def hyper_parameters(
    path: str, weights_only: bool, is_plain: bool, typed: str = ""
) -> dict[str, Any]:
    """Return the hyper-parameters of the model in a checkpoint, of which only these are read.

    Args:
        path: The file, or the folder of a sharded checkpoint.
        weights_only: Refuse what would run code when it is loaded.
        is_plain: Checkpoints are files of torch. Otherwise a file that torch cannot read is that of
            a plugin or strategy, and has none that are known.
        typed: What the user calls it; the path by default.

    Raises:
        UsageError: It would run code, or is no checkpoint.
    """
    import torch

    typed = typed or path
    try:
        file_path = _with_hyper_parameters(Path(path))
        if Path(path).is_dir() and not file_path.exists():
            return {}
        with open(file_path, "rb") as file:
            start = file.read(2)
        maps = start == b"PK"  # older checkpoints are read whole
        if not maps and start[:1] != pickle.PROTO:
            raise ValueError("neither an archive nor a pickle")
        content = torch.load(file_path, weights_only=weights_only, map_location="cpu", mmap=maps)
        hparams = dict(content["hyper_parameters"] or {}) if "hyper_parameters" in content else {}
    except Exception as error:  # of many kinds, where it is none
        if isinstance(error, pickle.UnpicklingError):
            found = re.search(r"GLOBAL ([\w.]+)", str(error))
            what = found[1] if found else "more than weights"
            raise UsageError(
                f"--ckpt_path {typed}: it holds {what}, and loading it would run code that it "
                "names. If you trust who made it: --weights_only false."
            ) from error
        if not is_plain:
            return {}
        if isinstance(error, (ImportError, AttributeError)):
            raise UsageError(
                f"--ckpt_path {typed}: it holds an object whose code is not here: {error}."
            ) from error
        why = first_line(error) if isinstance(error, OSError) else "torch cannot read it"
        raise UsageError(f"--ckpt_path {typed}: it is no checkpoint: {why}.") from error
    hparams.pop("_instantiator", None)
    return hparams


def is_marked(folder: Path) -> bool:
    """Tell whether a folder has the file that is written last, when all ranks have written.

    Source: `torch.distributed.checkpoint` writes ``.metadata`` last, and DeepSpeed ``latest``.
    """
    return any((folder / name).exists() for name in (".metadata", "latest"))


def is_whole(folder: Path) -> bool:
    """Tell whether all ranks have written a folder; one of an unknown kind is taken for whole."""
    names = os.listdir(folder)
    is_sharded = any(name.endswith((".distcp", ".tmp")) or name == "checkpoint" for name in names)
    return is_marked(folder) or (bool(names) and not is_sharded)


def _with_hyper_parameters(path: Path) -> Path:
    """Return the file that holds what is no tensor: of a sharded checkpoint, one in the folder."""
    return path / "meta.pt" if path.is_dir() else path


def read(path: Path) -> dict[str, Any] | None:
    """Read a checkpoint without its weights; `None` if it is torn, empty if it cannot be known."""
    import torch

    if path.is_dir():
        if not is_whole(path):
            return None
        if not _with_hyper_parameters(path).exists():
            return {}
    path = _with_hyper_parameters(path)
    try:
        if not zipfile.is_zipfile(path):
            return None
        content = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    except pickle.UnpicklingError:
        return {}
    except (OSError, RuntimeError, EOFError):
        return None
    return dict(content)


def epochs(content: Mapping[str, Any]) -> int:
    """Return how many epochs Lightning takes a checkpoint to have behind it."""
    loop = (content.get("loops") or {}).get("fit_loop") or {}
    progress = (loop.get("epoch_progress") or {}).get("current") or {}
    return int(progress.get("processed", content.get("epoch", 0)))


def saved_by(content: Mapping[str, Any]) -> tuple[str | None, int]:
    """Return the run that has saved a checkpoint, and the number of the save; see `order`.

    Every callback of ours has left them there, as of its own last save.

    Returns:
        `None` for the run, where the checkpoint does not say it.
    """
    run, number = None, order.UNNUMBERED
    states = content.get("callbacks")
    for state in states.values() if isinstance(states, Mapping) else ():
        saved = state.get("saved") if isinstance(state, Mapping) else None
        if isinstance(saved, Mapping) and isinstance(saved.get("run"), str):
            run, number = saved["run"], max(number, order.of_notes(saved))
    return run, number


def why_misfit(error: BaseException) -> str | None:
    """Say why a checkpoint could not be loaded into the model; `None` for another error."""
    if not str(error).startswith("Error(s) in loading state_dict"):
        return None
    frames = [(f.f_code.co_filename, f.f_code.co_name) for f, _ in walk_tb(error.__traceback__)]
    names = [name for _, name in frames]
    if "load_model_state_dict" not in names:  # then the user's code loads something by itself
        return None
    below = frames[names.index("load_model_state_dict") :]
    if not all({"lightning", "torch"} & {*Path(file).parts} for file, _ in below):
        return None
    reasons = [line.strip().rstrip(". ") for line in str(error).splitlines()[1:]]
    more = f", and {len(reasons) - 1} more such" if len(reasons) > 1 else ""
    return "".join(reasons[:1]) + more
