"""The checkpoint callback: what Lightning saves becomes jobs for the publisher."""

from __future__ import annotations

import math
import os
import time
import traceback
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from functools import cache, partial
from itertools import count
from pathlib import Path
from types import MethodType
from typing import Any, Literal
from uuid import uuid4

import lamindb as ln
import lightning.pytorch as pl
from lamindb.base.uids import base62
from lamindb.integrations import lightning as ll
from lightning.pytorch.callbacks import ModelCheckpoint

from lamincli import console, order, originals
from lamincli.callbacks.calls import calls_of
from lamincli.callbacks.follow import GoesOn, as_typed, is_stock
from lamincli.errors import UnreachableError, first_line
from lamincli.events import ArtifactRemovedEvent, ArtifactSavedEvent
from lamincli.features import DESCRIPTIONS, as_json
from lamincli.keys import NAME, as_key, name_below
from lamincli.offline import SpooledRun
from lamincli.options import LaminOptions
from lamincli.publisher import Published, Publisher
from lamincli.redaction import learn, redact, redact_config
from lamincli.registry.lamin import LaminRegistry
from lamincli.registry.outages import asking, give_back_connections
from lamincli.spool import Job
from lamincli.spool.index import FOLDER_NAME, index_folder
from lamincli.taken_out import with_variables
from lamincli.tracking import adopt_from_parent

_KINDS = {
    "checkpoint": ("model checkpoint", "model"),
    "config": (DESCRIPTIONS["config"], "config"),
    "hparams": (DESCRIPTIONS["hparams"], "config"),
    "predictions": (DESCRIPTIONS["predictions"], "dataset"),
    "history": (DESCRIPTIONS["history"], ""),
}
_SLOW_OBSERVER_S = 5.0
_UNTRACKED = f"untracked-{uuid4().hex[:8]}"
_SAVES: defaultdict[str, Iterator[int]] = defaultdict(count)  # of this process, by their run


class Checkpoint(GoesOn, ll.Checkpoint):
    """Save checkpoints with Lightning's `ModelCheckpoint` and publish each as an artifact.

    What is persisted is what `lamindb.integrations.lightning.Checkpoint` persists: keys, kinds,
    features, lineage and events. The training thread only pins each file and writes a small job;
    a thread beside it publishes. So a database or a storage that is away ends nothing, and what was
    saved is not lost if the process is killed: ``lamin-train sync`` publishes it. When a stage
    ends, it waits for what is left. Events reach observers on the training thread, in order, at the
    next batch. Every argument of `ModelCheckpoint` is taken.

    Args:
        dirpath: Folder for the checkpoints, also the prefix of their artifact keys.
        filename: Template of the file names, as in ``{epoch}-{val_loss:.2f}``.
        features: Feature values, ``{"run": {...}, "artifact": {...}}``. A value of `None` for an
            artifact is taken from the trainer attribute or the logged metric of that name.
        monitor: Logged metric that ranks the checkpoints.
        verbose: Print a line for every save.
        save_last: Also save ``last.ckpt``; ``"link"`` makes it a symbolic link.
        save_top_k: Number of best checkpoints to keep: -1 keeps all, 0 saves none.
        save_on_exception: Save a checkpoint when training fails.
        save_weights_only: Save the weights without the state of optimizer and trainer.
        mode: Whether the best score is the smallest or the largest.
        auto_insert_metric_name: Write ``epoch=1`` rather than ``1`` into file names.
        every_n_train_steps: Save every so many training steps.
        train_time_interval: Save whenever so much time has passed.
        every_n_epochs: Save every so many epochs.
        save_on_train_epoch_end: Save at the end of the training epoch, not after validation.
        enable_version_counter: Add ``-v1``, ``-v2``, … to the name of a file that exists.
        run_uid_is_version: Put the uid of the run into the keys.
        key_is_virtual: Let LaminDB choose the file names in its storage.
        artifact_observers: Objects that are told of saved and removed artifacts.
        publish: ``background``, or ``inline`` to wait for LaminDB at every save.
        spool_limit_gb: Disk space that waiting checkpoints may take, in gigabytes; past it the
            oldest superseded ones are not published.
        patience_s: How long the end of a stage waits for a LaminDB that is away, in seconds.

    Raises:
        MonitorNotLoggedError: By the first save, if `monitor` was never logged.

    Runs on: every rank; the database is used on global rank zero only.
    """

    # Class attributes, since `adopt` turns instances of lamindb's class into instances of this.
    _run_uid: str | None = None
    _features_of_run: str | None = None
    _key_is_virtual: bool
    _hparams_yaml_saved: bool
    _publish_how: str = "background"
    _spool_limit_gb: float | None = None
    _patience_s: float = 60.0
    _publisher: Publisher | None = None
    _feature_uids: dict[str, str] | None = None
    _storage_uid: str = ""
    _are_run_features_spooled: bool = False
    _variables: Mapping[str, str] = {}  # of the config, as in `TakenOut`
    _knows_names_only: bool = False  # of the features, for LaminDB could not be asked
    _attempt: int = 0  # how many attempts of the run were before
    _order: int = order.UNNUMBERED  # of the last save

    def __init__(
        self,
        dirpath: str | Path | None = None,
        filename: str | None = None,
        *,
        features: dict[Literal["run", "artifact"], dict[str, Any]] | None = None,
        monitor: str | None = None,
        verbose: bool = False,
        save_last: bool | Literal["link"] | None = None,
        save_top_k: int = 1,
        save_on_exception: bool = False,
        save_weights_only: bool = False,
        mode: Literal["min", "max"] = "min",
        auto_insert_metric_name: bool = True,
        every_n_train_steps: int | None = None,
        train_time_interval: timedelta | None = None,
        every_n_epochs: int | None = None,
        save_on_train_epoch_end: bool | None = None,
        enable_version_counter: bool = True,
        run_uid_is_version: bool = True,
        key_is_virtual: bool = True,
        artifact_observers: list[Any] | None = None,
        publish: Literal["background", "inline"] = "background",
        spool_limit_gb: float | None = None,
        patience_s: float = 60.0,
    ) -> None:
        super().__init__(  # type: ignore[call-arg]
            dirpath=dirpath,
            features=features,
            monitor=monitor,
            verbose=verbose,
            save_last=save_last,
            save_top_k=save_top_k,
            save_weights_only=save_weights_only,
            mode=mode,
            auto_insert_metric_name=auto_insert_metric_name,
            every_n_train_steps=every_n_train_steps,
            train_time_interval=train_time_interval,
            every_n_epochs=every_n_epochs,
            save_on_train_epoch_end=save_on_train_epoch_end,
            enable_version_counter=enable_version_counter,
            run_uid_is_version=run_uid_is_version,
            key_is_virtual=key_is_virtual,
            artifact_observers=artifact_observers,
        )
        # lamindb's class has no arguments for these two attributes of ModelCheckpoint.
        self.filename = filename
        self.save_on_exception = save_on_exception
        self._publish_how = publish
        self._spool_limit_gb = spool_limit_gb
        self._patience_s = patience_s

    # -- the run ---------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Learn the run on every rank, and check the features once a run."""
        if trainer.is_global_zero:
            adopt_from_parent()
            for owner in (pl_module, trainer.datamodule):  # type: ignore[attr-defined]
                learn(dict(getattr(owner, "hparams", None) or {}))  # as hparams.yaml will hold them
            self.learn_features(trainer, pl_module)
        ModelCheckpoint.setup(self, trainer, pl_module, stage)
        self._trainer = trainer
        told = (self._run_uid, self._base_prefix(trainer)) if trainer.is_global_zero else (None, "")
        self._run_uid, _ = trainer.strategy.broadcast(told)

    def learn_features(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Learn what the jobs will name, once a run, so that a save asks nothing.

        The connection is given back: a thread publishes by the side of the training from here on.

        Runs on: global rank zero, before the training.
        """
        self._run_uid = ln.context.run.uid if ln.context.run else None
        if self._run_uid and self._features_of_run == self._run_uid:
            return
        self._features_of_run = self._run_uid
        self._are_run_features_spooled = False
        annotator = self._feature_annotator
        annotator._run_features = redact(annotator._run_features)
        self._knows_names_only = self._spooled is not None
        if self._spooled is None:
            try:
                with asking(self._instance[0]):
                    annotator.setup(trainer, pl_module)
                    self._feature_uids = self._look_up_features()
                    self._storage_uid = _default_storage()
            except UnreachableError as error:  # it was there when the run began
                console.warn(f"{first_line(error)} The training goes on, and is published later.")
                self._knows_names_only = True
        give_back_connections()
        if self._knows_names_only:
            _know_names(annotator, trainer, pl_module)
            self._feature_uids, self._storage_uid = {}, ""
            if self._run_uid and annotator._run_features:
                named = {"wanted": annotator._run_features}
                slug, uid = self._instance
                self._add(trainer, Job("annotate", self._run_uid, slug, uid, _now(), named=named))

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a checkpoint holds, with the run and the number of this save.

        So a checkpoint that has not become a job tells whose it is, and which is the later one.
        """
        saved = {"run": self._uid_of_run(), order.KEY: self._order}
        return {**super().state_dict(), "saved": saved}

    def set_attempt(self, number: int) -> None:
        """Let the saves of a run that goes on come after those that it has, in its order.

        Args:
            number: How many attempts of the run were before.
        """
        self._attempt = number

    def set_publishing(self, options: LaminOptions) -> None:
        """Let the options of the command line hold for this callback too, where they are given."""
        default = LaminOptions()
        if options.publish != default.publish:
            self._publish_how = options.publish
        if options.spool_limit_gb != default.spool_limit_gb:
            self._spool_limit_gb = options.spool_limit_gb
        if options.patience_s != default.patience_s:
            self._patience_s = options.patience_s

    def _logger_prefix(self, trainer: pl.Trainer, run_uid: str | None) -> str:
        # The logger has a new version, where no uid is in its place.
        return (None if run_uid else self._prefix) or super()._logger_prefix(trainer, run_uid)

    def _base_prefix(self, trainer: pl.Trainer) -> str:
        return as_key(super()._base_prefix(trainer), self._key_is_virtual)

    def resolve_artifact_key(self, trainer: pl.Trainer, filepath: Path | str, kind: Any) -> str:
        """Return the key of a file's artifact: that of lamindb, or the nearest it would take.

        Folders below that of the callback, as Lightning makes of ``{epoch}-{val/loss:.2f}``, are
        part of it, so that two files never share a key.
        """
        key = super().resolve_artifact_key(trainer, filepath, kind)
        if kind == "checkpoint" and "/" in (name := self._name_of(filepath)):
            key = key.removesuffix(name.rpartition("/")[2]) + name
        return as_key(key, self._key_is_virtual)

    def _name_of(self, filepath: Path | str) -> str:
        return name_below(str(filepath), str(self.dirpath or "")) if filepath else ""

    # -- the spool -------------------------------------------------------------------------

    def spool_folder(self, trainer: pl.Trainer) -> Path:
        """Return the folder in which the jobs of the run wait."""
        if (spooled := self._spooled) is not None:
            return Path(spooled.folder)
        root = spool_root(str(trainer.default_root_dir), os.getcwd())
        return root / FOLDER_NAME / (self._uid_of_run() or _UNTRACKED)

    @property
    def _spooled(self) -> SpooledRun | None:
        return SpooledRun.current()

    @property
    def _instance(self) -> tuple[str, str]:
        """The instance for which the jobs wait: owner/name and id."""
        if (spooled := self._spooled) is not None:
            return spooled.instance, spooled.instance_id
        instance = ln.setup.settings.instance
        return str(instance.slug), str(instance._id.hex)

    def _active_run_uid(self) -> str | None:
        if not self._run_uid_is_version:
            return None
        return self._run_uid or super()._active_run_uid()

    def _uid_of_run(self) -> str:
        return self._run_uid or (str(ln.context.run.uid) if ln.context.run else "")

    def _look_up_features(self) -> dict[str, str]:
        """Return the uids of the features that jobs will name."""
        annotator = self._feature_annotator
        names = {*annotator._artifact_features, *annotator._hparam_features_available}
        found = ln.Feature.objects.filter(name__in=names, is_type=False).order_by("-type_id")
        return {feature.name: feature.uid for feature in found} if names else {}

    # -- Lightning saves and removes -------------------------------------------------------

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        if not trainer.is_global_zero:
            super()._save_checkpoint(trainer, filepath)
            return
        with self._publisher_for(trainer).saving():
            self._spool_run(trainer)
            self._save_then(trainer, filepath, self._prepare(trainer, filepath))
        self._tell(trainer)

    def _remove_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        if self._completion is not None and trainer.is_global_zero:
            self._completion.forget(str(filepath))
        ModelCheckpoint._remove_checkpoint(self, trainer, filepath)
        if trainer.is_global_zero:
            self._add(trainer, self._job("remove", trainer, filepath, "checkpoint"))

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Save what was trained, if asked to; its score is not that of an earlier checkpoint."""
        self.current_score = None
        super().on_exception(trainer, pl_module, exception)

    # -- jobs ------------------------------------------------------------------------------

    def _prepare(self, trainer: pl.Trainer, filepath: str) -> Callable[[], None]:
        """Return what is to be done when the file is complete, with the values of this moment."""
        calls = calls_of(trainer) or ()
        nth = next(_SAVES[self._uid_of_run()])
        self._order = order.number_of_save(self._attempt, len(calls), nth)
        is_best = self._is_best(trainer, filepath)
        values = self._feature_annotator.collect_checkpoint_features(
            trainer,
            is_best=is_best,
            current_score=self.current_score,
            save_weights_only=self.save_weights_only,
            monitor=self.monitor,
            mode=self.mode,
        )
        if self._persists_by_itself("save_checkpoint_artifact"):
            save = partial(self.save_checkpoint_artifact, trainer, filepath, feature_values=values)
            return lambda: self._due.append(save)
        job = self._job("save", trainer, filepath, "checkpoint", values, is_best)
        return lambda: self._add(trainer, job, filepath)

    def _is_best(self, trainer: pl.Trainer, filepath: Path | str) -> bool:
        """Tell whether a checkpoint is the best; to one without a monitor, the latest is."""
        others: list[Any] = trainer.checkpoint_callbacks
        ranks = self.monitor is not None or not any(getattr(one, "monitor", 0) for one in others)
        return ranks and self.best_model_path == str(filepath)

    def _job(
        self,
        action: Literal["save", "remove", "annotate"],
        trainer: pl.Trainer,
        filepath: Path | str,
        kind: ll.ArtifactKind | Literal["predictions", "history"],
        values: dict[Any, Any] | None = None,
        is_best: bool = False,
    ) -> Job:
        description, artifact_kind = _KINDS[kind]
        slug, instance_id = self._instance
        is_checkpoint = kind == "checkpoint"
        by_name = self._knows_names_only
        return Job(
            action=action,
            run=self._uid_of_run(),
            instance=slug,
            instance_id=instance_id,
            at=_now(),
            storage=self._storage_uid,
            uid=f"{base62(16)}0000",
            kind=kind,
            key=self.resolve_artifact_key(
                trainer=trainer, filepath=filepath, kind="config" if kind == "history" else kind
            ),
            description=description,
            artifact_kind=artifact_kind,
            key_is_virtual=self._key_is_virtual,
            is_input=kind == "config",
            local_path=_as_text(filepath),
            callback=self.state_key if is_checkpoint else "",
            is_best=is_best,
            mode=self.mode,
            features={} if by_name else self._by_uid(values or {}),
            named=self._by_name(values or {}) if by_name else {},
            notes=self._notes(trainer, filepath) if is_checkpoint else {},
        )

    def _notes(self, trainer: pl.Trainer, filepath: str | Path) -> dict[str, Any]:
        """Return what a checkpoint is known by where there are no features."""
        score = None if self.current_score is None else float(self.current_score)
        name = self._name_of(filepath)
        return {
            **({NAME: name} if "/" in name else {}),
            "monitor": self.monitor,
            "mode": self.mode,
            "score": score if score is not None and math.isfinite(score) else None,
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            order.KEY: self._order,
            "path": _as_text(filepath),
        }

    def _by_uid(self, values: dict[Any, Any]) -> dict[str, Any]:
        """Return values by the uids of their features; what no database stores is left out."""
        known = self._feature_uids or {}
        by_uid = {}
        for feature, value in _storable(self._without_secrets(values)):
            uid = known.get(feature) if isinstance(feature, str) else feature.uid
            if uid is not None:
                by_uid[uid] = value
        rank, score = (self._feature_annotator.get(name) for name in ("model_rank", "score"))
        if rank is not None and score is not None and score.uid in by_uid:
            by_uid[rank.uid] = 0  # until all are ranked
        return by_uid

    def _by_name(self, values: dict[Any, Any]) -> dict[str, dict[str, Any]]:
        """Return values as `Job.named` holds them, while no feature can be looked up."""
        named: dict[str, dict[str, Any]] = {}
        for feature, value in _storable(self._without_secrets(values)):
            is_wanted = feature in self._feature_annotator._artifact_features
            group = "lightning" if not isinstance(feature, str) else "hparams"
            name = feature if isinstance(feature, str) else feature.name
            named.setdefault("wanted" if is_wanted else group, {})[name] = value
        if "score" in named.get("lightning", {}):
            named["lightning"]["model_rank"] = 0  # until all are ranked
        return named

    def _without_secrets(self, values: dict[Any, Any]) -> dict[Any, Any]:
        """Return values of features without secrets, which hyper-parameters may be."""
        clean = {}
        for feature, value in values.items():
            if value is not None and not isinstance(value, (bool, int, float)):
                # They are the same objects at every save, which shall wait for nothing.
                known = self._clean_values.get(feature)
                if known is None or known[0] is not value:
                    name = feature if isinstance(feature, str) else feature.name
                    known = self._clean_values[feature] = (value, redact(value, name))
                value = known[1]
            clean[feature] = value
        return clean

    @property
    def _clean_values(self) -> dict[Any, tuple[Any, Any]]:
        values: dict[Any, tuple[Any, Any]] = self.__dict__.setdefault("_cleaned", {})
        return values

    def _spool_run(self, trainer: pl.Trainer) -> None:
        """Spool the features of the run, and hparams.yaml as soon as there is one; both once."""
        if not self._hparams_yaml_saved:
            path = ll.LoggerInfo(trainer).trainer_log_dir_without_broadcast / "hparams.yaml"
            if path.exists():
                self._hparams_yaml_saved = True
                if self._persists_by_itself("save_hparams_artifact"):
                    self._due.append(partial(self.save_hparams_artifact, trainer, path))
                else:
                    self._add(trainer, self._job("save", trainer, path, "hparams"), path)
        if self._are_run_features_spooled:
            return
        self._are_run_features_spooled = True
        annotator = self._feature_annotator
        values = annotator._collect_run_features(trainer, self.monitor, self.mode)
        if values and self._uid_of_run():
            job = self._job("annotate", trainer, "", "checkpoint", values)
            self._add(trainer, job)

    def _add(self, trainer: pl.Trainer, job: Job, filepath: Path | str = "") -> None:
        self._publisher_for(trainer).add(*self._pinned(job, filepath), owner=self)

    def _publisher_for(self, trainer: pl.Trainer) -> Publisher:
        limit = self._spool_limit_gb
        publisher = Publisher.of(
            self.spool_folder(trainer),
            LaminRegistry,
            inline=self._publish_how == "inline",
            limit_bytes=None if limit is None else limit * 1e9,
            is_held=(spooled := self._spooled) is not None and spooled.is_held,
        )
        if publisher is not self._publisher:
            self._tell(trainer)  # what the one before has done
            self._publisher = publisher
        return publisher

    # -- publishing on this thread, for those who override it or call it ---------------------

    def save_checkpoint_artifact(
        self,
        trainer: pl.Trainer,
        filepath: Path | str,
        *,
        feature_values: dict[Any, Any] | None = None,
    ) -> Any:
        """Publish a checkpoint now, and wait for it.

        A subclass that overrides this is called for every checkpoint, on the training thread.

        Returns:
            The artifact; `None` if LaminDB is away, and a job waits in the spool.
        """
        if self._has_own_publisher():
            return super().save_checkpoint_artifact(
                trainer, filepath, feature_values=feature_values
            )
        is_best = self._is_best(trainer, filepath)
        job = self._job("save", trainer, filepath, "checkpoint", feature_values, is_best)
        return self._publish_now(trainer, job, filepath)

    def save_config_artifact(self, trainer: pl.Trainer, config_path: Path | str) -> Any:
        """Publish the config as an input of the run; waits only in a subclass that overrides it."""
        if self._has_own_publisher():
            return super().save_config_artifact(trainer, config_path)
        return self._publish_text(trainer, Path(config_path), "config")

    def save_hparams_artifact(self, trainer: pl.Trainer, hparams_path: Path | str) -> Any:
        """Publish hparams.yaml; waits only in a subclass that overrides it."""
        if self._has_own_publisher():
            return super().save_hparams_artifact(trainer, hparams_path)
        if not Path(hparams_path).exists():
            return None
        return self._publish_text(trainer, Path(hparams_path), "hparams")

    def save_predictions_artifact(self, trainer: pl.Trainer, path: Path, key: str) -> None:
        """Publish predictions under a key, as an output of the run, without waiting."""
        if self._has_own_publisher():
            description, kind = _KINDS["predictions"]
            self._create_lamin_artifact(path, key=key, description=description, kind=kind)
            return
        job = self._job("save", trainer, path, "predictions")
        self._add(trainer, replace(job, key=key), path)

    def publish_history(self, trainer: pl.Trainer, path: Path, is_complete: bool) -> None:
        """Publish what was logged step by step, as an output of the run; gives no event.

        While it is not complete, it is left to `sync`, should this process be killed.
        """
        publisher = self._publisher_for(trainer)
        job = self._job("save", trainer, path, "history")
        if not is_complete:
            publisher.defer(job)
            return
        publisher.add(job, path)
        with suppress(OSError):  # else `sync` publishes it once more, under its key
            publisher.spool.undefer(job.kind)

    def _publish_text(
        self, trainer: pl.Trainer, path: Path, kind: Literal["config", "hparams"]
    ) -> Any:
        job = self._job("save", trainer, path, kind)
        if not self._persists_by_itself(f"save_{kind}_artifact"):
            self._add(trainer, job, path)
            return None
        return self._publish_now(trainer, job, path)

    def _pinned(self, job: Job, filepath: Path | str) -> tuple[Job, Path | None, str | None]:
        """Return a job, its file and, where a copy without secrets is published, the text of that.

        The job of a config notes where the original is.
        """
        if not filepath or job.is_in_place:
            return job, None, None
        path = Path(filepath)
        if job.kind not in ("config", "hparams"):
            return job, path, None
        text = path.read_text(encoding="utf-8")
        copy = redact_config(with_variables(text, self._variables))
        if job.kind == "config" and copy != text:
            job = replace(job, notes={originals.NOTE: originals.note_of(path, text, job.run)})
        return job, path, copy

    def _publish_now(self, trainer: pl.Trainer, job: Job, filepath: Path | str) -> Any:
        publisher = self._publisher_for(trainer)
        artifact = publisher.publish(*self._pinned(job, filepath), owner=self)
        self._tell(trainer)
        return artifact

    def _persists_by_itself(self, method: str) -> bool:
        is_overridden = getattr(type(self), method) is not getattr(Checkpoint, method)
        return is_overridden or self._has_own_publisher()

    def _has_own_publisher(self) -> bool:
        create = type(self)._create_lamin_artifact
        return (
            create is not ll.Checkpoint._create_lamin_artifact
            or type(self._artifact_publisher) is not ll.LaminArtifactPublisher
        )

    # -- what was published, told on the training thread -------------------------------------

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """Save if it is time, and tell of what was published."""
        super().on_train_batch_end(trainer, *args, **kwargs)
        self._tell(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """Likewise."""
        super().on_train_epoch_end(trainer, *args, **kwargs)
        self._tell(trainer)

    def on_validation_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """Likewise."""
        super().on_validation_end(trainer, *args, **kwargs)
        self._tell(trainer)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Wait for what is not published yet."""
        super().teardown(trainer, pl_module, stage)
        if trainer.is_global_zero:
            self.drain(trainer)

    def drain(self, trainer: pl.Trainer, limit_s: float | None = None) -> None:
        """Wait until everything is published or the waiting is given up; then tell of it.

        Args:
            trainer: The trainer, for the events.
            limit_s: Wait no longer than this.
        """
        if self._completion is not None:
            self._completion.torn_down(trainer)
        self._tell(trainer)
        publisher = self._publisher_for(trainer)
        publisher.drain(limit_s, self._patience_s)
        publisher.close()
        self._tell(trainer)

    @property
    def unpublished(self) -> list[str]:
        """Local paths of what is still in the spool."""
        return self._publisher.left() if self._publisher is not None else []

    @property
    def _due(self) -> deque[Callable[[], Any]]:
        due: deque[Callable[[], Any]] = self.__dict__.setdefault("_due_calls", deque())
        return due

    def _tell(self, trainer: pl.Trainer) -> None:
        if self._completion is not None:
            self._completion.look()
        while self._due:
            self._survive(self._due.popleft(), "publishing")
        if self._publisher is None or not self._publisher.has_news:
            return
        for item in self._publisher.take(self):
            self._tell_of(trainer, item)

    def _tell_of(self, trainer: pl.Trainer, item: Published) -> None:
        job: Any = item.job
        tell = (
            self._notify_artifact_saved if job.action == "save" else self._notify_artifact_removed
        )
        tell(
            trainer,
            kind=job.kind,
            key=job.key,
            artifact=item.artifact,
            local_path=job.local_path,
        )

    def resolve_artifact_storage_uri(self, artifact: Any) -> str:
        """Return where an artifact lies, without asking the database for what is known."""
        known: str | None = getattr(artifact, "_storage_uri", None)
        return known or super().resolve_artifact_storage_uri(artifact)

    def _notify_artifact_saved(self, trainer: pl.Trainer, **about: Any) -> ArtifactSavedEvent:
        event = ArtifactSavedEvent(
            trainer=trainer,
            storage_uri=self.resolve_artifact_storage_uri(about["artifact"]),
            **{**about, "local_path": Path(about["local_path"])},
        )
        self._latest_artifacts[event.kind] = event.artifact
        self._tell_everybody("on_artifact_saved", event)
        return event

    def _notify_artifact_removed(self, trainer: pl.Trainer, **about: Any) -> ArtifactRemovedEvent:
        artifact = about["artifact"]
        event = ArtifactRemovedEvent(
            trainer=trainer,
            storage_uri=artifact and self.resolve_artifact_storage_uri(artifact),
            **{**about, "local_path": Path(about["local_path"])},
        )
        self._tell_everybody("on_artifact_removed", event)
        return event

    def _tell_everybody(self, name: str, event: Any) -> None:
        self._last_artifact_event = event
        for listener in (self, *self._artifact_observers):
            method = getattr(listener, name, None)
            if callable(method):
                label = getattr(method, "__qualname__", repr(method))
                self._survive(partial(method, event), label, f" for {event.key}")

    def _survive(self, call: Callable[[], Any], what: str, of: str = "") -> None:
        """Call what is the user's, and report it if it fails or takes long; training goes on."""
        began_s = time.monotonic()
        try:
            call()
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            console.warn(
                f"{what} failed{of}: {type(error).__name__}: {error} "
                f"({last.filename}:{last.lineno}); training goes on"
            )
        if (took_s := time.monotonic() - began_s) > _SLOW_OBSERVER_S:
            console.warn(f"{what} took {took_s:.0f} s{of}, and the training waited")

    def __getstate__(self) -> dict[str, Any]:
        """Leave behind what belongs to this process, for strategies that spawn the ranks."""
        ours: dict[str, Any] = {
            "_publisher": None, "_completion": None, "_due_calls": deque(), "_cleaned": {}
        }  # fmt: skip
        return self.__dict__ | ours


@dataclass(frozen=True)
class _NamedFeature:
    """A Lightning feature that cannot be looked up now."""

    name: str


def _know_names(annotator: Any, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
    """Let lamindb's annotator collect every value by its name, where no feature can be looked up.

    Which of them exist is found out when they are published.
    """
    names = ll._SUPPORTED_AUTO_FEATURES
    annotator._auto_features = {name: _NamedFeature(name) for name in names}
    annotator._hparam_features_available = annotator._collect_hparam_names(
        pl_module,
        trainer.datamodule,  # type: ignore[attr-defined]
    )


def _storable(values: dict[Any, Any]) -> Iterator[tuple[Any, Any]]:
    """Yield features and values, without what no database stores."""
    for feature, value in values.items():
        with suppress(ValueError, RuntimeError):  # a tensor of several numbers fits nothing
            value = value.item() if hasattr(value, "item") else value
        if not isinstance(value, float) or math.isfinite(value):
            yield feature, as_json(value) if isinstance(value, (dict, list, tuple)) else value


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="microseconds")


def _default_storage() -> str:
    instance = ln.setup.settings.instance
    is_local = instance.keep_artifacts_local and instance._local_storage is not None
    return str((instance.local_storage if is_local else instance.storage).uid)


@cache
def spool_root(root: str, here: str) -> Path:
    """Return the folder for the spool: that of the trainer, or the next one we can write."""
    places = [Path(here) if "://" in root else Path(root), Path(here)]
    fitting = (place for place in places if _is_writable(_existing(place / FOLDER_NAME)))
    return Path(os.path.abspath(next(fitting, index_folder().parent)))


def _is_writable(folder: Path) -> bool:
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def _existing(place: Path) -> Path:
    return next(p for p in (place, *place.absolute().parents) if os.path.lexists(p))


def _as_text(filepath: Path | str) -> str:
    text = str(filepath)
    return text if "://" in text or not text else os.path.abspath(text)


def adopt(
    callback: ModelCheckpoint,
    arguments: Mapping[str, Any],
    options: LaminOptions,
    resumes: tuple[Mapping[str, str], int] | None = None,
) -> None:
    """Give Lightning's `ModelCheckpoint`, lamindb's, or a subclass of either the care of ours.

    It ranks, saves and removes what it did, under the name that its state has in checkpoints. The
    user's overrides stay in front: in the combined class they come first. A callback that persists
    to a place of its own, on lamindb's generic base class, is left as it is.

    Args:
        callback: The callback, before its `setup`.
        arguments: Those of `Checkpoint` that Lightning's has not got.
        options: The options of the command line.
        resumes: Of a run that goes on: its prefixes, as in `GoesOn.go_on`, and how many attempts it
            had before.
    """
    for name in (*_PLAIN, "_run_uid"):  # left from a run that it served before, in this process
        vars(callback).pop(name, None)
    kind: Any = type(callback)
    if is_stock(callback):
        for name, value in vars(Checkpoint(**arguments)).items():
            vars(callback).setdefault(name, value)
        vars(callback)["_original_dirpath"] = as_typed(callback.dirpath)
        callback.__class__ = _combined(kind)
    elif isinstance(callback, ll.Checkpoint) and not isinstance(callback, Checkpoint):
        callback.__class__ = Checkpoint if kind is ll.Checkpoint else _combined(kind)
    if isinstance(callback, Checkpoint):
        callback.set_publishing(options)
        if resumes is not None:
            callback.go_on(dict(resumes[0]))
            callback.set_attempt(resumes[1])


@cache
def _combined(kind: Any) -> type[Checkpoint]:
    bases: Any = (Checkpoint,) if issubclass(Checkpoint, kind) else (kind, Checkpoint)
    names = {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
    # Spawned ranks unpickle the callback: they find the user's class by name and adopt it again.
    names["__reduce_ex__"] = lambda self, protocol: (_restore, (kind, self.__getstate__()))
    if kind is ModelCheckpoint:  # so that jsonargparse takes both for one, under the short name
        names["__module__"] = "lightning.pytorch.callbacks"
    return type(kind.__name__, bases, names)


def _restore(kind: Any, state: dict[str, Any]) -> Checkpoint:
    callback = _combined(kind).__new__(_combined(kind))
    callback.__dict__.update(state)
    return callback


_PLAIN = ("setup", "_save_checkpoint", "_remove_checkpoint", "_save_topk_checkpoint")


def make_plain(callback: ModelCheckpoint) -> None:
    """Let a publishing checkpoint callback do what `ModelCheckpoint` does, and no more."""
    for name in _PLAIN:
        setattr(callback, name, MethodType(getattr(ModelCheckpoint, name), callback))
