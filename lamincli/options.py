"""The options that `lamin-train` adds to Lightning's, as typed dataclasses.

The docstrings are the text of ``--help``. Nothing here imports torch, Lightning or lamindb.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import zip_longest
from typing import Any, Literal


@dataclass
class FeatureOptions:
    """Values for features that exist in LaminDB

    Args:
        run: Values for the run, as in `--lamin.features.run.organism human`.
        artifact: Values for every checkpoint. A null takes the trainer attribute or the logged
            metric of that name at the time of the save.
    """

    run: dict[str, Any] = field(default_factory=dict)
    artifact: dict[str, Any] = field(default_factory=dict)


@dataclass
class LaminOptions:
    """What is recorded in LaminDB, and where

    Args:
        features: Feature values for the run and its checkpoints, also as JSON or from YAML.
        run_uid_is_version: Put the uid of the run into artifact keys, in the place of the
            logger's version_0. Two runs then never share a key.
        auto_features: Record the Lightning features (score, is_best_model, max_epochs, ...).
            They are created on first use.
        track: Record this run. False trains with plain Lightning and leaves the database alone.
        offline: Do not ask LaminDB or the network for anything: keep the run in the spool, for
            `lamin-train sync`. A training goes on like this by itself where LaminDB is away.
        instance: LaminDB instance as owner/name, or a folder for a local one. Default is the
            connected instance, else a local one in ./lamindb.
        project: Name or uid of the project for the run and its artifacts.
        space: Name or uid of the space in which to create the records.
        branch: Name or uid of the branch on which to create the records.
        resume: Go on with a run: its uid, the beginning of one, or `latest`. `auto` goes on with
            the run of this job (SLURM, torchrun) or of this folder, else it starts a run.
        parent: Run that this one is a child of: its uid, the beginning of one, or `latest`. `array`
            makes all tasks of a SLURM job array children of one run.
        publish: How checkpoints reach LaminDB: `background` while the training goes on, or
            `inline`, which waits for LaminDB at every save.
        spool_limit_gb: Disk space that checkpoints may take while they wait for LaminDB. Past it
            the oldest superseded ones are not published; never the best or the last.
        patience_s: How long the end of a training waits for a LaminDB that is away, in seconds.
            What is left then is published by `lamin-train sync`.
        predictions: Keep what `predict` predicts, under the run's prefix or the key given here. One
            row a sample in Parquet, where the values are tensors, arrays, numbers, strings or dicts
            of them; else a list of batches, in .pt.
        then: Stage to run after a completed fit, on the best checkpoint, in the same job and as a
            run of its own. Other stages take no notice of it in a config file.
        imports: Modules to import first, so that their classes can be named without the module:
            `--lamin.imports my_project.models`, or a list.
        parser_mode: How configs are read: `omegaconf` fills in `${...}`. Needs that package.
    """

    features: FeatureOptions = field(default_factory=FeatureOptions)
    run_uid_is_version: bool = True
    auto_features: bool = True
    track: bool = True
    offline: bool = False
    instance: str | None = None
    project: str | None = None
    space: str | None = None
    branch: str | None = None
    resume: str | None = None
    parent: str | None = None
    publish: Literal["background", "inline"] = "background"
    spool_limit_gb: float | None = None
    patience_s: float = 60.0
    predictions: bool | str = True
    then: Literal["validate", "test", "predict"] | None = None
    imports: str | list[str] | None = None
    parser_mode: Literal["yaml", "omegaconf"] | None = None


@dataclass
class CheckpointOptions:
    """Which checkpoints are saved and published

    Args:
        dirpath: Folder for the checkpoints, also the prefix of their artifact keys. Default is
            checkpoints/ in the folder of the logger.
        filename: Name of the files, as in `{epoch}-{val_loss:.2f}`. Default is `{epoch}-{step}`.
        monitor: Logged metric that ranks the checkpoints. None keeps the latest ones.
        verbose: Print a line for every save.
        save_last: Also save last.ckpt at every save; `link` makes it a symbolic link.
        save_top_k: Number of best checkpoints to keep: -1 keeps all, 0 saves none.
        save_on_exception: Save a checkpoint when training fails.
        save_weights_only: Save the weights without the state of optimizer and trainer.
        mode: Whether the best score is the smallest or the largest.
        auto_insert_metric_name: Write `epoch=1` rather than `1` into file names.
        every_n_train_steps: Save every so many training steps.
        train_time_interval: Save whenever so much time has passed, as in `00:30:00`.
        every_n_epochs: Save every so many epochs.
        save_on_train_epoch_end: Save at the end of the training epoch, not after validation.
        enable_version_counter: Add -v1, -v2, ... to the name of a file that exists.
        key_is_virtual: Let LaminDB choose the file names in its storage. False stores under the
            artifact key.
        artifact_observers: Objects with the methods on_artifact_saved and on_artifact_removed,
            each given by class_path and init_args.
    """

    dirpath: str | None = None
    filename: str | None = None
    monitor: str | None = None
    verbose: bool = False
    save_last: bool | Literal["link"] | None = None
    save_top_k: int = 1
    save_on_exception: bool = False
    save_weights_only: bool = False
    mode: Literal["min", "max"] = "min"
    auto_insert_metric_name: bool = True
    every_n_train_steps: int | None = None
    train_time_interval: timedelta | None = None
    every_n_epochs: int | None = None
    save_on_train_epoch_end: bool | None = None
    enable_version_counter: bool = True
    key_is_virtual: bool = True
    artifact_observers: list[Any] | None = None


def option_in(words: Sequence[str], *names: str) -> str | None:
    """Find the last value of an option among words that are not parsed yet."""
    return next(reversed(options_in(words, *names)), None)


def options_in(words: Sequence[str], *names: str) -> list[str]:
    """Find all values of an option among words that are not parsed yet."""
    found = []
    for word, following in zip_longest(words, words[1:], fillvalue=""):
        option, equals, value = word.partition("=")
        if option in names:
            found.append(value if equals else following)
    return found
