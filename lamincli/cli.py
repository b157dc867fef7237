"""`LaminLightningCLI`: Lightning's command line, recorded in LaminDB.

This is the one place where the parts meet: options, run, callbacks, signals and exit codes.
"""

from __future__ import annotations

import atexit
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from inspect import Parameter, signature
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

import yaml
from jsonargparse import ArgumentError, Namespace
from lightning.fabric.strategies.launchers import subprocess_script
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.cli import (
    ArgsType,
    LightningArgumentParser,
    LightningCLI,
    SaveConfigCallback,
)
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from lightning.pytorch.trainer.connectors.signal_connector import _get_sigkill_signal
from lightning.pytorch.trainer.states import TrainerStatus
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.seed import isolate_rng

from lamincli import checkpoint_file, console, endings, slurm
from lamincli.callbacks.calls import calls_of, metrics_of, watch
from lamincli.callbacks.hparams import WritesReferences
from lamincli.callbacks.stop import StopOnSignal
from lamincli.connection import Connection
from lamincli.early import import_modules, imports, parser_mode, use_mode
from lamincli.endings import EVALUATIONS, Ending, Happened, Status, exit_code
from lamincli.errors import InstanceError, LaminTrainError, UsageError, first_line
from lamincli.features import DESCRIPTIONS, metric_values
from lamincli.folders import Scratch, provide_home, why_unwritable
from lamincli.instance import (
    ENVIRONMENT_VARIABLE,
)
from lamincli.keys import mistakes_in_paths
from lamincli.loaded import keep as keep_sources
from lamincli.loading import resolve_references_when_loaded
from lamincli.options import (
    CheckpointOptions,
    FeatureOptions,
    LaminOptions,
    option_in,
    options_in,
)
from lamincli.parser import (
    HELP_OF_REFERENCES,
    LaminArgumentParser,
    class_path_of,
    import_class,
    why_of_other_package,
)
from lamincli.process import (
    DECIDED_VARIABLE,
    RUN_UID_VARIABLE,
    end_fit,
    gives_back,
    is_restarted,
    launched_size,
)
from lamincli.publisher import is_draining
from lamincli.ranks import Failure, Ranks, leave_group_at_exit, why_not_listening
from lamincli.redaction import REDACTED, redacted_keys
from lamincli.references import (
    LATEST,
    References,
    is_here,
    is_reference,
    known_file,
    references_in,
    started_here,
    walk,
)
from lamincli.remote_file import fetch, is_url
from lamincli.resume import (
    AUTO,
    Resumption,
    begin_what_waits,
    find,
    find_in_spools,
    forget,
    remember,
)
from lamincli.source import find_source
from lamincli.spool import left_behind, spools_in
from lamincli.taken_out import TakenOut, mistakes_in

if TYPE_CHECKING:
    from lamincli.tracking import TrackedRun

_OF_PLAIN_FILES = ("auto", "ddp", "single_device")
"""How the names of Lightning's strategies begin whose checkpoints are single files of torch."""

_GRACE_S = 5.0
"""What publishing may take after SIGTERM; schedulers kill half a minute later, some sooner."""

_HANGS_AFTER_S = 20.0
"""How long a rank may take to notice that another one is gone; torchrun kills after 30."""

_EXITS_WITHIN_S = 10.0
# What ModelCheckpoint has not got.
_PUBLISHING = ("key_is_virtual", "artifact_observers")
_TAKEN_OVER = (*_PUBLISHING, "run_uid_is_version", "features")


class LaminLightningCLI(LightningCLI):
    """Train from a config file and leave a complete record of it in LaminDB.

    A drop-in for `LightningCLI`: every argument means what it means there. Beyond it, one
    `lamindb.Run` is begun after parsing and before any class is instantiated, checkpoints and the
    resolved config become artifacts, and the run is closed however the job ends. ``--help``, a
    config error and ``fast_dev_run`` leave no trace. If the script has called `ln.track()`, that
    run is used and its end is left to the script.

    Args:
        model_class: Model to train, or a function that returns one. `None`: any by class path.
        datamodule_class: Data module, likewise.
        save_config_callback: A subclass keeps its overrides; ours is always behind it.
        save_config_kwargs: Arguments for that callback.
        trainer_class: The trainer class, or a function that returns a trainer.
        trainer_defaults: Defaults for the trainer, and callbacks that are always there.
        seed_everything_default: Default of ``--seed_everything``.
        parser_kwargs: Arguments for the parsers.
        parser_class: The parser class; the default adds "did you mean" to errors.
        subclass_mode_model: Let the model be any subclass of `model_class`.
        subclass_mode_data: Let the data module be any subclass of `datamodule_class`.
        args: Arguments in place of ``sys.argv``: a list, a dict or a namespace.
        run: Run the subcommand. `False` only makes the objects; call `finish` in the end, or
            leave it to the exit of the program.
        auto_configure_optimizers: Add the groups ``optimizer`` and ``lr_scheduler``.
        load_from_checkpoint_support: Save hyper-parameters as they were parsed.

    Raises:
        SystemExit: Code 2 for what the user typed, 1 for a training that cannot go on as
            configured, 128+N after signal N. Errors of the user's own code pass through.

    Attributes:
        unpublished: After the end, the local paths of what is still in the spool. `lamin-train`
            exits with code 3 then; a script may do the same.
        ending: After the end, the status of the run, the reason for it, and the code with which
            `lamin-train` exits.
        then: What ran the stage of ``--lamin.then``, after this one.
    """

    then: LaminLightningCLI | None = None
    ending: Ending | None = None
    _open: LaminLightningCLI | None = None  # made with run=False, its run not yet finished
    _follows: LaminLightningCLI | None = None  # the fit after which this stage runs

    def __init__(
        self,
        model_class: type[LightningModule] | Callable[..., LightningModule] | None = None,
        datamodule_class: type[LightningDataModule]
        | Callable[..., LightningDataModule]
        | None = None,
        save_config_callback: type[SaveConfigCallback] | None = SaveConfigCallback,
        save_config_kwargs: dict[str, Any] | None = None,
        trainer_class: type[Trainer] | Callable[..., Trainer] = Trainer,
        trainer_defaults: dict[str, Any] | None = None,
        seed_everything_default: bool | int = True,
        parser_kwargs: dict[str, Any] | dict[str, dict[str, Any]] | None = None,
        parser_class: type[LightningArgumentParser] = LaminArgumentParser,
        subclass_mode_model: bool = False,
        subclass_mode_data: bool = False,
        args: ArgsType = None,
        run: bool = True,
        auto_configure_optimizers: bool = True,
        load_from_checkpoint_support: bool = True,
    ) -> None:
        keep_sources()
        resolve_references_when_loaded()
        arguments = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        attributes = dict(vars(self))
        self._args = args
        self._tracked: TrackedRun | None = None
        self._publishes = False
        self._config_saver: Any = None
        self._beginning: Any = None
        self._predictions: Any = None
        self._evaluated: Any = None
        self._ranks = Ranks()
        self._references = References()
        self._resume: str | None = None
        self._resumption: Resumption | None = None
        self._taken_out = TakenOut()
        self._asked_later = ""
        self._fetched: str | None = None  # the checkpoint of a URL, on this machine
        self.unpublished: list[str] = []
        self._stop = StopOnSignal()
        self._signal: int | None = None  # which has ended the job
        self._closed = threading.Event()
        self._resources = ExitStack()
        self._lamindb = Connection(self._references, self._resources, self._close_what_is_open)
        self._lamindb.is_offline = self._follows is not None and self._follows.is_offline
        self._resources.enter_context(self._stop.installed())
        self._resources.enter_context(gives_back(DECIDED_VARIABLE))
        self._resources.enter_context(slurm.known_tasks_per_node())
        try:
            if self._ranks.is_zero:
                provide_home()
            for kind in (model_class, datamodule_class):
                if why := why_of_other_package(kind):
                    raise UsageError(why)
            super().__init__(
                model_class=model_class,
                datamodule_class=datamodule_class,
                save_config_callback=save_config_callback,
                save_config_kwargs=save_config_kwargs,
                trainer_class=trainer_class,
                trainer_defaults=trainer_defaults,
                seed_everything_default=seed_everything_default,
                parser_kwargs=parser_kwargs,
                parser_class=parser_class,
                subclass_mode_model=subclass_mode_model,
                subclass_mode_data=subclass_mode_data,
                args=args,
                run=run,
                auto_configure_optimizers=auto_configure_optimizers,
                load_from_checkpoint_support=load_from_checkpoint_support,
            )
        except BaseException as error:
            try:
                self._end_by(error)
            finally:
                self._ranks.linger()
        if run:
            self.finish()
            self._run_next(attributes, arguments)
            leave_group_at_exit()
        elif self._tracked is not None:
            self._finish_at_exit()

    def __getstate__(self) -> dict[str, Any]:
        """Leave behind what belongs to this process, for strategies that spawn the ranks."""
        ours = {
            "_tracked": None,
            "_config_saver": None,
            "_beginning": None,
            "_closed": None,
            "_resources": None,
            "_lamindb": None,
            "_stop": None,
            "_predictions": None,
        }
        return self.__dict__ | ours

    # -- the record ------------------------------------------------------------------------

    @property
    def lamin_run(self) -> Any:
        """The `lamindb.Run` of this job; `None` where nothing is tracked, and on other ranks."""
        return self._tracked.record if self._tracked else None

    @property
    def is_offline(self) -> bool:
        """Whether LaminDB is not asked for anything, by ``--lamin.offline``."""
        return self._lamindb.is_offline

    def finish(self, status: Status | None = None, error: BaseException | None = None) -> None:
        """Close the run and give back signals, streams and environment. Further calls do nothing.

        Args:
            status: ``completed``, ``errored`` or ``aborted``; by default what the trainer and
                `error` tell. A fit that raised is not completed, although the script has caught
                what it raised, nor is one that was never called.
            error: What ended the job.
        """
        if self._tracked is not None and not self._closed.is_set():
            ending = self._ending(error, self._signal)
            if status is not None:
                ending = replace(ending, status=status)
            status = ending.status
            self.ending = ending
            if self._made_trainer is None:
                self._tracked.take_back()  # a run that was to go on, and did not
            elif status == "completed" and ending.is_idle:
                self._tell_of_idleness(ending.reason)
                if self._resumption is not None:  # an attempt before has trained it
                    why = ending.reason.partition(": ")[2]
                    ending = self.ending = replace(
                        ending, reason=f"nothing was left to train: {why}"
                    )
            self._stop.closing_since_s = time.monotonic()
            self._tracked.ended = self._known_in_the_end()
            if LaminLightningCLI._open is self:
                LaminLightningCLI._open = None
            if status in ("aborted", "scheduled") and self._stop.signum is not None:
                self._tracked.note(f"stopped by {signal.Signals(self._stop.signum).name}")
            self._publish_rest()
            self._tracked.arrive()
            self._record_metrics()
            self._annotate_checkpoint(status)
            shown = None if status == "completed" else error  # by its traceback, in the log
            self._tracked.finish(
                status, shown, lambda: self._show_ending(ending), reason=ending.reason
            )
            self._note_what_is_left()  # a log that cannot be stored comes after the last words
            if status == "completed":
                forget(self._tracked.uid)
            self._publish_no_more()
        if self._is_recorded_fit and not self._closed.is_set():
            end_fit()
        self._closed.set()
        self._resources.close()

    def _ending(self, error: BaseException | None, signum: int | None = None) -> Ending:
        """Derive how the run ends from the calls of the trainer, and from what ended the job."""
        trainer = self._made_trainer
        calls = () if trainer is None else calls_of(trainer)
        happened = Happened(self.subcommand, calls, error, signum, self._why_no_work())
        return endings.ending(happened)

    def _known_in_the_end(self) -> dict[str, Any]:
        """Return what the record is to hold that is known only now.

        ``trains`` if this was no training after all, else how far one has come.
        """
        trainer = self._made_trainer
        calls = None if trainer is None else calls_of(trainer)
        if trainer is None or calls is None or self._are_ranks_spawned():
            return {}
        if "fit" in [call.stage for call in calls]:
            reached = {"epochs": trainer.current_epoch, "steps": trainer.global_step}
            return {"reached": reached}
        return {"trains": False} if self._trains is None else {}

    def _begin(self) -> None:
        """Begin the run on rank zero, unless nothing is to be recorded."""
        options = self._lamin_options()
        # That of this run, and of none made from its config.
        self._get_config()["lamin"]["parent"] = None
        self._check_next(options.then)
        self._publishes = options.track and not self._trainer_option("fast_dev_run")
        if not self._publishes:
            return
        options = self._merge_options(options)
        self._check_values()
        begun = self._ranks.agree(lambda: self._begin_run(options))
        if not self._ranks.is_zero:
            if begun["instance"] is not None:
                self._follow(begun["instance"])
            self._resources.enter_context(gives_back(RUN_UID_VARIABLE))
            os.environ[RUN_UID_VARIABLE] = begun["run"]

    def _follow(self, instance: str) -> None:
        """Let this rank, and what its data opens, use the instance of rank zero."""
        self._resources.enter_context(gives_back(ENVIRONMENT_VARIABLE))
        os.environ[ENVIRONMENT_VARIABLE] = instance

    def _begin_run(self, options: LaminOptions) -> dict[str, str | None]:
        """Begin the run; returns what the other ranks need to know of it."""
        left = left_behind(spools_in(Path.cwd()))
        if self._resumption is not None:  # it publishes what it has left itself
            left = {f: n for f, n in left.items() if f.name != self._resumption.run.uid}
        if left:
            jobs, runs = sum(left.values()), len(left)
            console.say(
                f"{console.counted(jobs, 'job')} of {console.counted(runs, 'earlier run')} "
                "not in LaminDB yet; publish with: lamin-train sync"
            )
        slug = self._lamindb.connect(options.instance)
        if self._follows is not None and not self._lamindb.why_away:
            from django.db import InterfaceError, OperationalError

            with suppress(OperationalError, InterfaceError):  # the next question finds it away
                begin_what_waits()
        from lamincli import tracking

        ckpt_path = self._get(self.config, "ckpt_path")
        self._tracked = tracking.begin(
            options,
            place=self._place(options),
            source=find_source(self._chosen_model()),
            params=self._config_as_dict(),
            argv=self._words(),
            stage=self.subcommand,
            trains=self._trains,
            model=class_path_of(self._chosen_model()),
            **self._resumed(),
            parent=self._follows.lamin_run.uid if self._follows else None,
            references=self._references.noted,
            artifacts=self._references.artifacts,
            used=self._described(ckpt_path),
        )
        if self._resumption is not None and (file := self._resumption.checkpoint) is not None:
            console.say(f"run {self._tracked.uid} goes on from {_short(file)}")
        if self._resume == AUTO:
            remember(self._tracked.uid, slug)
        if ckpt_path:
            self._evaluated = self._used_checkpoint(ckpt_path)
        elif self.subcommand in EVALUATIONS:
            console.warn(f"{self.subcommand} without --ckpt_path: the model has its first weights")
        return {"run": self._tracked.uid, "instance": slug if self._lamindb.is_known else None}

    def _place(self, options: LaminOptions) -> Any:
        """Return where the run is recorded."""
        from lamincli.callbacks.checkpoint import spool_root
        from lamincli.tracking import Place

        here = os.getcwd()
        root = spool_root(str(self._trainer_option("default_root_dir") or here), here)
        target, is_held = self._lamindb.target(options.instance)
        return Place(target, root, self._lamindb.why_away, is_held)

    def _resumed(self) -> dict[str, Any]:
        """Return what goes on, for the record."""
        found = self._resumption
        if found is None or found.checkpoint is None:
            return {"resumes": found.run} if found else {}
        checkpoint = {"path": str(found.checkpoint), "step": found.step}
        return {"resumes": found.run, "checkpoint": checkpoint}

    def _used_checkpoint(self, path: str) -> Any:
        """Return the artifact of the checkpoint, an input of the run; `None` if it has none here.

        That of another instance is not ours to annotate, nor a folder that holds the checkpoint.
        """
        assert self._tracked is not None
        if self._tracked.spooled is not None:
            return self._references.noted.get(path) or self._described(path)
        if not is_reference(path):
            if self._tracked.used is None and self._follows is not None:
                console.warn(f"{_short(path)} is no input of the run, for LaminDB has it not yet")
            return self._tracked.used
        found = self._references.resolve(path)
        is_here = found.artifact is not None and found.artifact._state.db == "default"
        return found.artifact if is_here and not found.subpath else None

    def _described(self, path: str | None) -> dict[str, Any]:
        """Describe a local checkpoint that is used, for when LaminDB can be asked for it."""
        from lamincli.registry.runs import describe_file

        if not path or is_reference(path):
            return {}
        path = self._fetched or path
        return describe_file(path, self._follows.lamin_run.uid if self._follows else None)

    def _close_what_is_open(self) -> None:
        """Close a run that an object made with ``run=False`` has left open."""
        left = LaminLightningCLI._open
        if left is not None and left is not self and not left._is_training():
            left.finish()

    def _end_by(self, error: BaseException) -> NoReturn:
        """Close the run by what ended the job, and end the program as its user expects."""
        is_refused = self._made_trainer is None and (
            isinstance(error, MisconfigurationException)
            or (hasattr(self, "model") and _is_of_lightning(error))
        )
        if is_refused:
            error = UsageError(str(error))  # the trainer refused its arguments
        self._ranks.end(exit_code(error))
        if not self._ranks.is_zero and self._ranks.leave(self._failure(error)):
            self._resources.close()
            raise SystemExit(exit_code(error)) from None  # rank zero says why
        lost = self._ranks.failures() if self._tracked is not None else []
        # An error of the user's code in the batch after the signal is an error all the same.
        if self._stop.is_stop(error):
            self._note_of_ranks(lost)
            self._stop_by_signal(bool(lost))
            raise SystemExit(self._stop.exit_code) from None
        if isinstance(error, KeyboardInterrupt):
            self.finish("aborted", error)
            raise error
        if isinstance(error, SystemExit) and isinstance(error.__context__, KeyboardInterrupt):
            self.finish("aborted", error.__context__)  # Lightning makes it an exit with code 1
            raise SystemExit(130) from None
        if isinstance(error, SystemExit):
            self.finish(error=error)
            vars(error)["is_published"] = not self.unpublished or self.is_offline
            raise error
        if is_refused:
            self._take_back()
        if (why := checkpoint_file.why_misfit(error)) and self._tracked is not None:
            self._tracked.take_back()
        self._note_of_ranks(lost)
        self.finish("errored", error)
        if why:
            error = UsageError(
                f"The checkpoint does not fit {type(self.model).__name__}: {why}. Make the model "
                "as it was when the checkpoint was saved, or name another checkpoint."
            )
        exits = getattr(getattr(self, "parser", None), "exit_on_error", True)
        if self._ranks.is_zero and (why := why_not_listening(error)):
            error = UsageError(why)
        self._end_launched()
        if isinstance(error, LaminTrainError) and exits:
            console.fail(str(error))
            raise SystemExit(error.exit_code) from None
        raise error

    def _take_back(self) -> None:
        """Leave no run of a mistake that was found after it had begun."""
        if self._tracked is not None:
            self._tracked.take_back(with_new=True)
            if self._resumption is None:
                forget(self._tracked.uid)

    def _end_launched(self) -> None:
        """Leave no process behind that waits for this one, where Lightning has started others."""
        launcher = getattr(getattr(self._made_trainer, "strategy", None), "launcher", None)
        if self._ranks.is_zero and launcher is not None:
            launcher.kill(_get_sigkill_signal())

    def _stop_by_signal(self, has_failed: bool) -> None:
        """Close the run by a signal, and let SLURM start the job again if it is to go on."""
        goes_on = self._ranks.is_zero and self._is_recorded_fit and not has_failed
        state = slurm.state() if goes_on else None
        self._signal = self._stop.signum
        if state is None:
            self.finish("errored" if has_failed else "aborted")
            return
        is_asked = self._stop.signum == self._stop.requeue_signal or state.is_preempted
        is_ours = is_asked and self._stop.requeue_signal is not None and not state.is_requeued
        if is_ours and not state.can_requeue:
            console.warn("SLURM cannot requeue this job: it is interactive, or has --no-requeue")
        is_ours = is_ours and state.can_requeue
        self.finish("scheduled" if is_ours or state.is_requeued else "aborted")
        if is_ours and (why := slurm.requeue()):
            console.warn(reason := f"SLURM has not requeued the job: {why}")
            if self._tracked is not None:
                self._tracked.goes_on_no_more(endings.shown(reason))

    def _failure(self, error: BaseException) -> Failure | None:
        """Describe what has ended this rank, unless it was asked to end."""
        code = exit_code(error)
        if isinstance(error, SystemExit):
            is_asked = isinstance(error, SIGTERMException) or self._stop.signum is not None
            return None if is_asked or code == 0 else Failure.here(code, f"exit code {code}")
        if isinstance(error, LaminTrainError):
            return Failure.here(code, str(error))
        return Failure.here(code, "".join(traceback.format_exception(error)))

    def _note_of_ranks(self, lost: list[Failure]) -> None:
        """Write into the log of the run what has ended other ranks."""
        for failure in lost:
            if self._tracked is not None:
                self._tracked.note(str(failure))

    def _outlive_ranks(self) -> None:
        """See to it that the run is closed although another rank is gone for good.

        Rank zero may hang in a collective then, where no exception and no signal handler of Python
        reaches its main thread. Lightning's own launcher kills it within five seconds.
        """
        if self._tracked is None:
            return
        self._ranks.watch(self._end_for_main_thread)
        self._resources.callback(self._ranks.stop_watching)
        observer = subprocess_script._ChildProcessObserver
        kill_all = observer._terminate_all

        def terminate_all(this: Any) -> None:
            if not self._close_for_main_thread():
                time.sleep(_EXITS_WITHIN_S)
            kill_all(this)

        observer._terminate_all = terminate_all  # type: ignore[assignment,method-assign]
        self._resources.callback(setattr, observer, "_terminate_all", kill_all)

    def _end_for_main_thread(self) -> None:
        if self._close_for_main_thread():
            os._exit(1)

    def _close_for_main_thread(self) -> bool:
        """Close the run if the main thread does not; returns whether it was necessary."""
        until_s = time.monotonic() + _HANGS_AFTER_S
        while time.monotonic() < until_s or is_draining():
            if self._stop.closing_since_s is not None:
                self._closed.wait()
                return False
            time.sleep(0.1)
        if self._tracked is not None:
            self._note_of_ranks(self._ranks.failures())
            self._tracked.note("another rank has ended, and this one hangs in a collective")
            self._tracked.finish(
                "errored" if self._stop.signum is None else "aborted",
                reason="another rank has ended, and this one hung in a collective",
            )
        return True

    def _finish_at_exit(self) -> None:
        """Close the run when the program ends, by the error that ended it if there was one."""
        uncaught: list[tuple[BaseException, int]] = []
        show, leave = sys.excepthook, sys.exit

        def note(error: BaseException) -> None:
            uncaught[:] = [(error, self._number_of_calls())]

        def remember(
            kind: type[BaseException], error: BaseException, trace: TracebackType | None
        ) -> None:
            note(error)
            show(kind, error, trace)

        def remember_exit(code: Any = None) -> NoReturn:
            end = SystemExit(code)
            end.__context__ = sys.exc_info()[1]
            note(end)
            leave(code)

        def finish() -> None:
            # An exit after which the trainer was called again was caught.
            is_last = bool(uncaught) and uncaught[0][1] == self._number_of_calls()
            error = uncaught[0][0] if is_last else None
            self._signal = self._stop.signum
            self.finish(error=error)

        LaminLightningCLI._open = self
        sys.excepthook, sys.exit = remember, remember_exit
        atexit.register(finish)
        self._resources.callback(atexit.unregister, finish)
        self._resources.callback(setattr, sys, "excepthook", show)
        self._resources.callback(setattr, sys, "exit", leave)

    def _number_of_calls(self) -> int:
        trainer = self._made_trainer
        return len((trainer and calls_of(trainer)) or ())

    @property
    def _made_trainer(self) -> Trainer | None:
        """The trainer; `None` before it is made."""
        return getattr(self, "trainer", None)

    @property
    def _is_recorded_fit(self) -> bool:
        """Whether this goes on with its run where its job is started again; nothing else does."""
        return self._publishes and not self._why_not_resumable()

    @property
    def _trains(self) -> bool | None:
        """Whether the subcommand trains; `None` where a script calls the trainer itself.

        One of the project's own does if its method calls `fit`.
        """
        if self.subcommand in (None, "fit", *EVALUATIONS):
            return None if self.subcommand is None else self.subcommand == "fit"
        own = [getattr(kind, self.subcommand, None) for kind in (self, self.trainer_class)]
        codes = [getattr(method, "__code__", None) for method in own]
        return any(code is not None and "fit" in code.co_names for code in codes)

    def _why_not_resumable(self) -> str:
        """Say why this can't go on with a run; nothing if it can."""
        stage = self.subcommand
        if not self._trains:
            return f"only fit can go on with a run{f', and this is {stage}' if stage else ''}"
        if stage != "fit" and "ckpt_path" not in self._subcommand_method_arguments[str(stage)]:
            return f"{stage} takes no ckpt_path. Give the method that argument, to pass on to fit"
        return ""

    def _is_training(self) -> bool:
        trainer = self._made_trainer
        return trainer is not None and trainer.state.status == TrainerStatus.RUNNING

    def _why_no_work(self) -> str:
        """Say why a fit has trained nothing, as far as this process knows."""
        trainer = self._made_trainer
        # A process that has only started the ranks does not know how far they have come.
        if trainer is None or trainer.state.fn != "fit" or self._are_ranks_spawned():
            return ""
        done = {"max_epochs": trainer.current_epoch, "max_steps": trainer.global_step}
        reached = [
            f"trainer.{name} {limit}"
            for name, number in done.items()
            if (limit := getattr(trainer, name)) not in (None, -1) and number >= limit
        ]
        if reached:
            what = "the checkpoint" if trainer.ckpt_path else "it"
            return f"{what} has reached {' and '.join(reached)}"
        is_empty = 0 in (trainer.limit_train_batches, trainer.num_training_batches)
        return "there were no training batches" if is_empty else ""

    def _are_ranks_spawned(self) -> bool:
        launcher = getattr(getattr(self._made_trainer, "strategy", None), "launcher", None)
        return isinstance(launcher, _MultiProcessingLauncher)

    def _tell_of_idleness(self, reason: str) -> None:
        assert self._tracked is not None
        is_limit = " has reached " in reason
        console.warn(f"{reason}.{' Give more to train longer.' if is_limit else ''}")
        if self._resumption is not None and self._tracked.was_complete:
            self._tracked.take_back()

    def _publish_no_more(self) -> None:
        """Let a trainer that is used after the run has ended save files, and no artifacts."""
        trainer = self._made_trainer
        callbacks: list[Any] = trainer.checkpoint_callbacks if trainer else []
        for callback in filter(_publishes, callbacks):
            from lamincli.callbacks.checkpoint import make_plain

            make_plain(callback)

    def _publish_rest(self) -> None:
        """Wait for what is not published yet; not for long where the job is about to be killed."""
        trainer = self._made_trainer
        if self._tracked is None or trainer is None:
            return
        limit_s = None if self._stop.signum in (None, signal.SIGINT) else _GRACE_S
        for publisher in self._publishing():
            try:
                publisher.drain(trainer, limit_s)
            except Exception as failure:  # the run must be closed all the same
                console.warn(f"what is left in the spool: {failure}")
            self._tracked.spool = publisher.spool_folder(trainer)
            self.unpublished = publisher.unpublished

    def _note_what_is_left(self) -> None:
        if self._tracked is not None:
            self.unpublished = list(dict.fromkeys([*self.unpublished, *self._tracked.left()]))

    def _publishing(self) -> list[Any]:
        """Return the callbacks that publish, one of which is enough to publish everything."""
        trainer = self._made_trainer
        checkpoints = trainer.checkpoint_callbacks if trainer else []
        saver = getattr(self._config_saver, "publisher", None)
        callbacks = [*filter(_publishes, checkpoints), *([saver] if saver else [])]
        return [callback for callback in callbacks if hasattr(callback, "drain")]

    def _record_metrics(self) -> None:
        trainer = self._made_trainer
        if self._tracked is None or trainer is None:
            return
        try:
            self._tracked.record_metrics(metrics_of(trainer), self._best())
        except Exception as failure:  # the run must be closed all the same
            console.warn(f"the metrics could not be recorded: {failure}")

    def _best(self) -> dict[str, Any]:
        """Return the best value of each metric that ranks checkpoints, and where it was reached."""
        trainer = self._made_trainer
        callbacks: list[Any] = trainer.checkpoint_callbacks if trainer else []
        return {
            str(one.monitor): {
                "value": float(one.best_model_score),
                "mode": one.mode,
                "checkpoint": Path(one.best_model_path).name,
            }
            for one in reversed(callbacks)
            if isinstance(one, ModelCheckpoint)
            and one.monitor is not None
            and one.best_model_score is not None
        }

    def _annotate_checkpoint(self, status: Status) -> None:
        """Give the checkpoint that was evaluated its metrics."""
        trainer, artifact = self._made_trainer, self._evaluated
        evaluates = self.subcommand in ("validate", "test") and status == "completed"
        if self._tracked is None or trainer is None or artifact is None or not evaluates:
            return
        try:
            self._tracked.annotate_evaluated(artifact, trainer.callback_metrics)
        except Exception as failure:  # the run must be closed all the same
            console.warn(f"the metrics could not be added to {artifact.key}: {failure}")

    # -- the stage after a fit -------------------------------------------------------------

    def _check_next(self, stage: str | None) -> None:
        """Refuse a stage after the fit that cannot run, before anything is trained.

        Raises:
            UsageError: It was typed for another stage than fit, or something that it needs is not
                there.
        """
        if stage is None or (self.subcommand != "fit" and not self._is_typed("then")):
            return
        option = f"--lamin.then {stage}"
        if self.subcommand != "fit":
            here = f"this is {self.subcommand}" if self.subcommand else "there is no subcommand"
            raise UsageError(
                f"{option}: a stage follows fit, and {here}. Leave the option out, or run fit."
            )
        model, data = self._chosen_model(), self._chosen_data()
        what = {"validate": "validation", "predict": "predict"}.get(stage, stage)
        loader = f"{'val' if stage == 'validate' else stage}_dataloader"
        mistakes = []
        if stage != "predict" and _lacks(model, f"{what}_step"):
            mistakes.append(f"{option}: {model.__name__} has no {what}_step. Define it.")
        if _lacks(model, loader) and (data is None or _lacks(data, loader)):
            name = (data or model).__name__
            mistakes.append(f"{option}: {name} has no {loader}. Define it.")
        checkpoint = self._get(self.config, "checkpoint")
        saves_none = checkpoint["save_top_k"] == 0 and not checkpoint["save_last"]
        if self._trainer_option("enable_checkpointing") is False:
            mistakes.append(f"{option}: trainer.enable_checkpointing is false, and it needs one.")
        elif saves_none and not self._trainer_option("callbacks"):
            mistakes.append(
                f"{option}: checkpoint.save_top_k is 0, so that there is no checkpoint to go on "
                "with. Set it to 1, or checkpoint.save_last to true."
            )
        if mistakes:
            raise UsageError.of(mistakes)

    def _typed(self) -> list[str]:
        """Return the words that are parsed, with local configs; none where an object is."""
        words = sys.argv[1:] if self._args is None else self._args
        return words if isinstance(words, list) else []

    def _is_typed(self, name: str) -> bool:
        """Tell whether an option of ours is among the words, and not in a config file only."""
        if isinstance(self._args, (list, type(None))):
            options = (f"--lamin.{name}", f"--{self.subcommand}.lamin.{name}")
            return any(str(word).partition("=")[0] in options for word in self._typed())
        return (self._given().get("lamin") or {}).get(name) is not None

    def _run_next(self, attributes: dict[str, Any], arguments: dict[str, Any]) -> None:
        """Run the stage that shall follow a completed fit, as an object of the same class.

        It has a run, a trainer and a config of its own. The `__init__` of a subclass is not called
        again: what it passed on, and had set on the object by then, is known.
        """
        stage = self._lamin_options().then
        if stage is None or self.subcommand != "fit" or self._stop.signum is not None:
            return
        if self.ending is not None and self.ending.status != "completed":
            console.warn(f"--lamin.then {stage} is left out: the fit is {self.ending.status}")
            return
        config = self._config_as_dict()
        config["lamin"]["then"] = None
        try:
            config["ckpt_path"] = self._checkpoint_to_go_on_with()
        except LaminTrainError as error:
            console.fail(str(error))
            raise SystemExit(error.exit_code) from None
        self.then = then = object.__new__(type(self))
        vars(then).update(attributes, _follows=self)
        args = {"subcommand": stage, stage: config}
        LaminLightningCLI.__init__(then, **{**arguments, "args": args})
        self.unpublished += then.unpublished

    def _checkpoint_to_go_on_with(self) -> str | None:
        """Return the best checkpoint; the last one where none is ranked."""
        if self._trainer_option("fast_dev_run"):
            return None  # nothing is saved; the stage is tried out all the same
        every = self.trainer.checkpoint_callbacks
        callbacks: list[Any] = [one for one in every if isinstance(one, ModelCheckpoint)]
        callbacks = sorted(callbacks, key=_ranks_nothing)
        best = [one.best_model_path for one in callbacks if one.best_model_path]
        last = [one.last_model_path for one in callbacks if one.last_model_path]
        if not (paths := best + last):
            raise LaminTrainError(
                f"The fit has saved no checkpoint, so that there is none to go on with. "
                f"Let it save one, or leave out --lamin.then {self._lamin_options().then}."
            )
        return str(paths[0])

    def _words(self) -> list[str]:
        """Return the words that run this stage, alone."""
        saver = self._follows._config_saver if self._follows else None
        if saver is None or saver.local_path is None:
            return sys.argv[1:]
        words = [str(self.subcommand), "--config", _short(saver.local_path)]
        path = self._get(self.config, "ckpt_path")
        return [*words, "--ckpt_path", _short(path) if Path(path).exists() else path]

    # -- references ------------------------------------------------------------------------

    def _prepare_subcommand_parser(
        self, klass: type, subcommand: str, **kwargs: Any
    ) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        for option, text in HELP_OF_REFERENCES.items():
            if (action := parser._option_string_actions.get(option)) is not None:
                action.help = f"{text} {action.help or ''}".strip()
        return parser

    def _note_offline(self, words: Any) -> None:
        """Know before parsing whether configs may be looked up in LaminDB."""
        typed = option_in(words, "--lamin.offline") if isinstance(words, list) else None
        if typed is not None:
            is_bare = typed == "" or typed.startswith("-")
            self._lamindb.is_offline |= is_bare or typed.lower() in ("true", "yes", "on")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse, with configs that lie in LaminDB in the place of their references."""
        self._note_offline(sys.argv[1:] if args is None else args)
        if self._follows is not None:  # made from its config; the words are those of the fit
            self.config = parser.parse_object(args)
            return
        words = sys.argv[1:] if args is None else args
        with started_here(), _refusing_what_is_no_config(words):
            if not isinstance(words, list):
                super().parse_arguments(parser, args)
                return
            local = self._with_configs(words)
            import_modules(imports(local))
            use_mode([parser, *self._subcommand_parsers_made()], parser_mode(local))
            if any(word.startswith("--print_config") for word in local):
                with console.last_write_alone():
                    self.config = parser.parse_args(local)  # and nothing is made of it
                return
            if is_rewritten := (local := self._taken_out.take_from(local)) != words:
                self._args = local
            with self._taken_out.noted(), _with_variables():
                if self._taken_out.are_any(local):
                    self._ask_for_what_was_taken_out()
                asked = set(self._taken_out.keys)
                if is_rewritten:
                    self.config = parser.parse_args(local)
                else:
                    super().parse_arguments(parser, args)
            if asked != set(self._taken_out.keys):  # by a config that could not be seen before
                self._ask_for_what_was_taken_out()

    def _ask_for_what_was_taken_out(self) -> None:
        """Ask for what was taken out of a published config, and is given nowhere else.

        Raises:
            UsageError: There is such a value; all of them are named.
        """
        given = self._given_of_all()  # which notes what was taken out
        if not given:
            return  # another mistake, which is told when it is parsed
        stage = given.get("subcommand")
        missing = self._taken_out.missing(given, stage)
        if option_in(self._typed(), "--lamin.resume") is not None:
            self._asked_later = missing.pop("ckpt_path", "")  # a run goes on from its own
        section = given.get(stage, given) if stage else given
        if mistakes := [*missing.values(), *mistakes_in(section.as_dict())]:
            raise UsageError.of(mistakes)

    def _refuse_placeholders(self) -> None:
        """Refuse a config that holds a placeholder, from wherever it came."""
        if REDACTED in str(self._get_config()):
            raise UsageError.of(mistakes_in(self._config_as_dict()))

    def _with_configs(self, words: list[str]) -> list[str]:
        """Return the words with files for configs that this rank cannot read from the words."""
        values = [value for option in ("-c", "--config") for value in options_in(words, option)]
        is_resumed = option_in(words, "--lamin.resume") is not None
        if not is_resumed and not any(is_reference(v) or _is_pipe(v) for v in values):
            return words
        told = self._ranks.agree(lambda: self._told_of_configs(words))
        if self._ranks.is_zero:
            return list(told["words"])
        copies = {path: self._copy(text.encode()) for path, text in told["texts"].items()}
        parts = [word.partition("=") for word in told["words"]]
        return [
            copies.get(option + equals + value, option + equals + copies.get(value, value))
            for option, equals, value in parts
        ]

    def _told_of_configs(self, words: list[str]) -> dict[str, Any]:
        """Return the words with local files, and the texts of those that the words did not name."""
        local = self._with_local_configs(words)
        new = set(options_in(local, "--config", "-c")) - set(options_in(words, "--config", "-c"))
        return {
            "words": local,
            "texts": {path: Path(path).read_text(encoding="utf-8") for path in new},
        }

    def _copy(self, content: bytes) -> str:
        """Write a config into a folder that goes with this object."""
        copy = self._resources.enter_context(Scratch("config")) / "config.yaml"
        copy.write_bytes(content)
        return str(copy)

    def _with_local_configs(self, words: list[str]) -> list[str]:
        if (resumed := option_in(words, "--lamin.resume")) is not None:
            words = self._with_config_of_run(words, resumed)
        local = []
        for before, word in zip(["", *words], words, strict=False):
            option, equals, value = word.partition("=")
            if before in ("-c", "--config"):
                word = self._local_config(word, words)
            elif equals and option in ("-c", "--config"):
                word = f"{option}={self._local_config(value, words)}"
            local.append(word)
        return local

    def _local_config(self, value: str, words: list[str]) -> str:
        """Return a file that can be read more than once, for what was typed as a config."""
        if is_reference(value):
            instance = option_in(words, "--lamin.instance")
            path = self._lamindb.ask(instance, lambda: self._references.config_path(value))
            self._taken_out.of[os.path.abspath(path)] = self._references.config_name(value)
            return path
        if _is_pipe(value):  # as in --config <(command)
            return self._copy(Path(value).read_bytes())
        return value

    def _with_config_of_run(self, words: list[str], resumed: str) -> list[str]:
        """Give a run that goes on its config back, unless another one is given."""
        stage = next(iter(words), "")
        goes_on = "ckpt_path" in self._subcommand_method_arguments.get(stage, ())
        if not goes_on or stage in EVALUATIONS or option_in(words, "--config", "-c") is not None:
            return words
        instance = option_in(words, "--lamin.instance")
        if (found := self._look_for_run(resumed, instance)) is None:
            return words
        if self.subclass_mode_model and (program := found.program_with_classes()):
            raise UsageError(
                f"Run {found.run.uid} was started by {program}, which names the classes that it "
                f"trains. Go on with it there: python {program} {words[0]} "
                f"--lamin.resume={found.run.uid}"
            )
        config = self._lamindb.ask(instance, lambda: found.config(self._references.away))
        if config is not None:
            name = f"the published config of run {found.run.uid}"
            self._taken_out.of[os.path.abspath(config)] = name
        return [words[0], "--config", config, *words[1:]] if config else words

    def _look_for_run(self, word: str, instance: str | None) -> Resumption | None:
        """Find the run to go on with, once."""
        try:
            self._lamindb.connect(instance, create=False)
        except InstanceError:
            if word == AUTO:
                return None  # there is no instance yet, and so no run
            raise

        def look() -> Resumption | None:
            search = find_in_spools if self._lamindb.why_away else find
            return search(word, self._lamindb.slug, of_folder=self._resume == AUTO)

        if self._resumption is None:
            self._resumption = self._lamindb.ask(instance, look)
        return self._resumption

    def _find_resumption(self) -> None:
        """Find the run to go on with, if that is asked, and keep that out of the config."""
        word = self._lamin_options().resume
        words = self._typed()
        if word is None and option_in(words, "--lamin.resume") not in (None, "", "null"):
            word = option_in(words, "--lamin.resume")  # each config that was saved says null
        self._resume = word
        if word is None and self._goes_on_by_itself():
            word = AUTO
        if word is None:
            return
        self._get_config()["lamin"]["resume"] = None
        if why := self._why_not_resumable():
            raise UsageError(f"--lamin.resume {word}: {why}.")
        told = self._ranks.agree(lambda: self._told_of_run(word))
        if self._asked_later and (told is None or told["file"] is None):
            raise UsageError(self._asked_later)
        if told is None:
            return
        if told["enough"]:
            if self._ranks.is_zero:
                console.say(told["enough"])
            raise SystemExit(0)
        if not self._ranks.is_zero:
            self._resumption = Resumption.heard(told, partial(self._fetch, told["instance"]))
        found = self._resumption
        assert found is not None
        if word != AUTO and option_in(words, "--ckpt_path") is not None:
            found.checkpoint = None
        elif found.checkpoint is not None:
            self._get_config()["ckpt_path"] = None  # from which the run began, once

    def _goes_on_by_itself(self) -> bool:
        """Tell whether SLURM or torchrun has started this fit again, to go on with its run."""
        if self._why_not_resumable() or not is_restarted() or self._is_typed("resume"):
            return False
        return self._lamin_options().track and not self._trainer_option("fast_dev_run")

    def _told_of_run(self, word: str) -> dict[str, Any] | None:
        """Find the run to go on with; returns what the other ranks need to know of it."""
        found = self._look_for_run(word, self._lamin_options().instance)
        if found is None:
            return None
        if word in (AUTO, LATEST):  # which the user has not named
            found.check_model(class_path_of(self._chosen_model()), word)
        limits = {name: self._trainer_option(f"max_{name}") for name in ("epochs", "steps")}
        enough = found.why_enough(limits)
        if word == AUTO:  # a job that is started again may have been stopped in what follows
            enough = ""
        return {"instance": self._lamindb.slug, "enough": enough, **found.told()}

    def _fetch(self, instance: str, reference: str) -> str:
        """Return the local path for a reference, which this rank asks for itself."""
        self._follow(instance)
        return self._lamindb.ask(instance, lambda: self._references.local_path(reference))

    def _parse_ckpt_path(self) -> None:
        """Look up references, and take the hyper-parameters of the checkpoint, before the run.

        What the user gives wins over the hyper-parameters, and is told where it differs.
        """
        self.subcommand = self.config.get("subcommand")
        keep_sources()  # of the classes that the config names; what follows may take long
        find_source(self._chosen_model())
        if self._lamin_options().offline:
            self._lamindb.is_offline = True
            self._get_config()["lamin"]["offline"] = False  # no part of what is trained
        self._find_resumption()
        self._look_up("ckpt_path", "model", "data")
        if self.subcommand:
            self._fetch_checkpoint()
            typed = self._get(self.config, "ckpt_path")
            path = self._fetched or typed
            if is_reference(path):
                path = self._references.local_path(path)
            if self._resumption is not None:
                path = self._resumption.checkpoint or path
            # After a fit, the config is that of the checkpoint.
            if path and Path(path).exists() and self._follows is None:
                self._take_hparams(str(path), str(typed) if self._fetched else "")
                self._look_up("model", "data")

        self._refuse_placeholders()

    def _fetch_checkpoint(self) -> None:
        """Bring the checkpoint of a URL here, so that it is read as any file is.

        Lightning loads what ``http`` gives it with all the objects in it, whose code then runs.
        """
        url = self._get(self.config, "ckpt_path")
        if not is_url(url) or not self._loads_plain_files():
            return
        told = self._ranks.agree(lambda: known_file(self._fetch_url(url)))
        is_shared = self._ranks.is_zero or is_here(told)
        self._fetched = told["path"] if is_shared else self._fetch_url(url)

    def _fetch_url(self, url: str) -> str:
        folder = self._resources.enter_context(Scratch("download"))
        try:
            return str(fetch(url, folder))
        except UsageError as error:
            raise UsageError(f"--ckpt_path {url}: {error}") from error

    def _look_up(self, *sections: str) -> None:
        """Pin the references in parts of the config, and see to it that their files are here."""
        config = self._get_config()
        sections = tuple(section for section in sections if section in config)
        found = {text: section for section in sections for text in references_in(config[section])}
        if not found:
            return
        told = self._ranks.agree(lambda: self._told_of_references(found))
        if not self._ranks.is_zero:
            for text, one in told["references"].items():
                if not self._references.take(text, one):
                    self._fetch(told["instance"], text)
        for section in sections:
            config[section] = walk(config[section], self._references.pinned)

    def _told_of_references(self, found: dict[str, str]) -> dict[str, Any]:
        """Look up all references; returns what the other ranks need to know of them."""
        told, mistakes = {}, []
        for text, section in found.items():
            try:
                told[text] = self._lamindb.ask(
                    self._lamin_options().instance, partial(self._references.told, text)
                )
            except UsageError as error:
                mistakes.append(f"{section}: {error}")
        if mistakes:
            raise UsageError.of(mistakes)
        return {"instance": self._lamindb.slug, "references": told}

    def _take_hparams(self, path: str, typed: str = "") -> None:
        weights_only = self._get(self.config, "weights_only") is not False
        hparams = checkpoint_file.hyper_parameters(
            path, weights_only, self._loads_plain_files(), typed
        )
        if not hparams:
            return
        given = self._given().get("model")
        hparams = self._without_placeholders(hparams, given, typed or path)
        model = self._model_with(hparams, given, typed or path)
        try:
            self.config = self.parser.parse_object({self.subcommand: {"model": model}}, self.config)
        except SystemExit:
            console.fail(
                f"the model takes other arguments than the hyper-parameters of {typed or path}"
            )
            raise
        if given is None:
            return
        given = given.as_dict() if isinstance(given, Namespace) else {"class_path": given}
        self.config = self.parser.parse_object({self.subcommand: {"model": given}}, self.config)
        for name, value in (given.get("init_args", given) or {}).items():
            if name in hparams and hparams[name] != value and self._ranks.is_zero:
                console.say(f"{name} is {value!r}, as given; the checkpoint has {hparams[name]!r}")

    def _without_placeholders(self, hparams: dict[str, Any], given: Any, of: str) -> dict[str, Any]:
        """Return hyper-parameters without placeholders, with which earlier versions have trained.

        Raises:
            UsageError: The model takes them, and they are not given.
        """
        names = {key.partition(".")[0] for key in redacted_keys(hparams)}
        arguments = given.as_dict() if isinstance(given, Namespace) else {}
        arguments = arguments.get("init_args", arguments) or {}
        place = "model.init_args" if self.subclass_mode_model else "model"
        missing = [
            f"{place}.{name} was taken out of the hyper-parameters in {of}. "
            f"Give it: --{place}.{name} VALUE"
            for name in hparams
            if name in names - set(arguments) and _takes(self._chosen_model(), name)
        ]
        if missing:
            raise UsageError.of(missing)
        return {name: value for name, value in hparams.items() if name not in names}

    def _model_with(self, hparams: dict[str, Any], given: Any, of: str) -> dict[str, Any]:
        """Return the config of the model with hyper-parameters of a checkpoint.

        A script that names its class keeps none in its checkpoints, and takes none. A class that
        the user names wins over that of the checkpoint, which may have moved.

        Raises:
            UsageError: The class of the checkpoint is not here, and none is given.
        """
        class_path = hparams.pop("_class_path", None)
        if not self.subclass_mode_model:
            return dict(hparams)
        kind = self._chosen_model()
        chosen = given.get("class_path") if isinstance(given, Namespace) else given
        if class_path is not None:
            saved = _imported(class_path)
            if chosen is None and saved is None:
                raise UsageError(
                    f"--ckpt_path {of}: it was saved by {class_path}, which is not here. If that "
                    "has moved, name the class that it has become: --model CLASS_PATH"
                )
            if chosen is None or saved is kind:
                return {"class_path": class_path, "dict_kwargs": dict(hparams)}
            if self._ranks.is_zero:
                name = class_path_of(kind)
                console.say(f"the model is {name}, as given; the checkpoint has {class_path}")
        taken = {name: value for name, value in hparams.items() if _takes(kind, name)}
        if rest := sorted(set(hparams) - set(taken)):
            console.say(f"{', '.join(rest)}: in the checkpoint, and no argument of the model")
        return {"class_path": class_path_of(kind), "dict_kwargs": taken}

    def _with_local_paths(self, config: Any) -> Any:
        config = config.clone() if isinstance(config, Namespace) else dict(config)
        section = config.get(str(self.subcommand), config)
        for name in ("model", "data", "ckpt_path"):
            if name in section:
                section[name] = walk(section[name], self._references.local_path)
        return config

    # -- options ---------------------------------------------------------------------------

    def _add_arguments(self, parser: LightningArgumentParser) -> None:
        # Not in add_arguments_to_parser, which projects override without calling super().
        parser.add_class_arguments(LaminOptions, "lamin")
        parser.add_class_arguments(CheckpointOptions, "checkpoint")
        offline = parser._option_string_actions["--lamin.offline"]
        offline.nargs, offline.const = "?", True  # also without a value
        try:
            super()._add_arguments(parser)
        except ValueError as error:
            if not (taken := re.search(r"'--(lamin|checkpoint)\b.*already exists", str(error))):
                raise
            raise UsageError(
                f"The project adds an option group named {taken[1]!r}, which LaminLightningCLI has "
                "already. Remove it, and set defaults with parser.set_defaults, as in "
                '{"checkpoint.monitor": "val_loss"}; or give it another name.'
            ) from error

    def _lamin_options(self) -> LaminOptions:
        values = dict(self._get(self.config, "lamin").items(branches=False))
        features = FeatureOptions(
            run=values.pop("features.run"), artifact=values.pop("features.artifact")
        )
        return LaminOptions(features=features, **values)

    def _trainer_option(self, name: str) -> Any:
        return (self._get(self.config, "trainer") or {}).get(name)

    def _listed_checkpoints(self) -> dict[int, tuple[str, Any]]:
        """Return class path and arguments of the checkpoint callbacks in trainer.callbacks."""
        callbacks = self._trainer_option("callbacks")
        listed = callbacks if isinstance(callbacks, list) else [callbacks]
        return {
            i: (callback["class_path"], callback.get("init_args", {}))
            for i, callback in enumerate(listed)
            if _is_checkpoint(callback)
        }

    def _merge_options(self, options: LaminOptions) -> LaminOptions:
        """Let the groups `lamin` and `checkpoint` reach checkpoint callbacks that are listed.

        A default says nothing, for a config that was saved or printed holds all of them.

        Raises:
            UsageError: A value was given in both places, and differs; or the class does not take
                the option.
        """
        listed = self._listed_checkpoints()
        if not listed:
            return options
        given = self._given()
        wanted = {f"checkpoint.{k}": v for k, v in (given.get("checkpoint") or {}).items()}
        lamin = given.get("lamin") or {}
        if "run_uid_is_version" in lamin:
            wanted["lamin.run_uid_is_version"] = options.run_uid_is_version
        features = {k: v for k, v in vars(options.features).items() if v}
        if features:
            wanted["lamin.features"] = features
        defaults = self._parser(self.subcommand).get_defaults()
        wanted = {place: value for place, value in wanted.items() if value != defaults.get(place)}
        given_callbacks = (given.get("trainer") or {}).get("callbacks") or []
        if not isinstance(given_callbacks, list):
            given_callbacks = [given_callbacks]
        mistakes = []
        for i, (class_path, init_args) in listed.items():
            stated = given_callbacks[i].get("init_args") if i < len(given_callbacks) else None
            kind = import_class(class_path)
            taken_over = () if _is_of_lamin(kind) else _TAKEN_OVER
            stated = {k: v for k, v in (stated or {}).items() if v != _default(kind, k)}
            for place, value in wanted.items():
                name = place.split(".", 1)[1]
                there = f"trainer.callbacks[{i}].init_args.{name}"
                if name in taken_over and name not in init_args:
                    continue
                if name not in init_args:
                    mistakes.append(
                        f"{place} was given, but {kind.__name__} takes no argument {name}."
                    )
                elif name in stated and stated[name] != value:
                    mistakes.append(
                        f"{place} is {value!r}, but {there} is {stated[name]!r}. Give one of them."
                    )
                else:
                    init_args[name] = value
            if not features and init_args.get("features"):
                options.features = FeatureOptions(**init_args["features"])
        if mistakes:
            raise UsageError.of(mistakes)
        return options

    def _check_values(self) -> None:
        """Find now what would be refused, or silently left out, after the run has begun."""
        names = signature(ModelCheckpoint.__init__).parameters
        options = dict(self._get(self.config, "checkpoint").items())
        mistakes = []
        listed = {
            f"trainer.callbacks[{i}].init_args": init_args
            for i, (_, init_args) in self._listed_checkpoints().items()
        }
        checkpoints = listed or {"checkpoint": options}
        mistakes += mistakes_in_paths(checkpoints, self._get(self.config, "trainer") or {})
        for place, values in () if mistakes else checkpoints.items():
            given = {name: value for name, value in values.items() if name in names}
            try:
                ModelCheckpoint(**given)
            except MisconfigurationException as error:
                mistakes.append(f"{place}: {error}")
        for observer in options["artifact_observers"] or []:
            if why := _why_no_observer(observer):
                mistakes.append(f"checkpoint.artifact_observers: {why}")
        predictions = self._lamin_options().predictions
        if self.subcommand == "predict" and isinstance(predictions, str):
            from lamincli.callbacks.predictions import why_no_key

            if why := why_no_key(predictions):
                mistakes.append(f"--lamin.predictions {predictions}: {why}")
        mistakes += filter(None, [self._why_nowhere_to_write()])
        is_alone = all(str(self._trainer_option(name)) == "1" for name in ("devices", "num_nodes"))
        if not is_alone and not self._trainer_option("plugins"):
            mistakes += filter(None, [slurm.why_not_without_srun()])
        path = str(self._get(self.config, "ckpt_path") or "")
        is_word = path in ("", "best", "last", "hpc") or path.startswith("registry")
        if path == "best" and self.subcommand in EVALUATIONS:
            mistakes.append(
                "--ckpt_path best: that is of a fit in the same process, and this is "
                f"{self.subcommand}. For the latest training: --ckpt_path lamin:run/latest/best"
            )
        if not is_word and (why := self._why_no_checkpoint(path)):
            mistakes.append(f"--ckpt_path {path}: {why}")
        if mistakes:
            raise UsageError.of(mistakes)

    def _why_nowhere_to_write(self) -> str | None:
        """Say why `default_root_dir` cannot be written, where Lightning puts its files there."""
        root = str(self._trainer_option("default_root_dir") or os.getcwd())
        logger = self._trainer_option("logger")
        has_checkpoints = self._trainer_option("enable_checkpointing") is not False
        has_a_place = self._get(self.config, "checkpoint")["dirpath"] is not None
        needs_it = (has_checkpoints and not has_a_place) if not logger else logger is True
        if "://" in root or not (needs_it or logger is None) or not self._ranks.is_zero:
            return None
        why = why_unwritable(Path(root))
        return why and (
            f"trainer.default_root_dir {root}: {why}. Name a folder that you can write: "
            "--trainer.default_root_dir FOLDER."
        )

    def _why_no_checkpoint(self, path: str) -> str | None:
        if is_reference(path):
            path = self._references.local_path(path)
        elif is_url(path):
            if self._fetched is None:
                return None
            path = self._fetched
        if not Path(path).exists():
            return "there is no such file."
        if Path(path).is_dir() and self._loads_plain_files():
            strategy = self._trainer_option("strategy")
            return f"it is a folder, and strategy {strategy} loads a file. Name the file in it."
        return None

    def _loads_plain_files(self) -> bool:
        """Tell whether checkpoints are files of torch: no strategy or plugin reads others."""
        strategy = self._trainer_option("strategy")
        is_plain = isinstance(strategy, str) and strategy.startswith(_OF_PLAIN_FILES)
        is_plain = is_plain and self.trainer_class is Trainer
        return is_plain and not self._trainer_option("plugins")

    def _given(self) -> Any:
        """Return what was typed or stands in a config file, without defaults."""
        given = self._given_of_all()
        return given.get(str(self.subcommand), given) if self.subcommand else given

    def _given_of_all(self) -> Any:
        """Return the same for all stages; nothing if it cannot be parsed."""
        parsers = [self.parser, *self._subcommand_parsers_made()]
        exits = [parser.exit_on_error for parser in parsers]
        for parser in parsers:
            parser.exit_on_error = False
        # A value that is required may come from a default or a link.
        only_given: dict[str, Any] = {"defaults": False, "_skip_validation": True}
        try:
            with started_here(), self._taken_out.noted():
                if isinstance(self._args, (list, type(None))):
                    return self.parser.parse_args(self._args, **only_given)
                return self.parser.parse_object(self._args, **only_given)
        except ArgumentError:
            return {}
        finally:
            for parser, exit_on_error in zip(parsers, exits, strict=True):
                parser.exit_on_error = exit_on_error

    def _subcommand_parsers_made(self) -> list[Any]:
        return list(getattr(self, "_subcommand_parsers", {}).values())

    def _config_as_dict(self) -> dict[str, Any]:
        config = self._get_config()
        try:
            text = self._parser(self.subcommand).dump(config, skip_unset=False, format="yaml")
        except (TypeError, ValueError):  # objects in the place of their config
            return dict(config.as_dict())
        return dict(yaml.safe_load(text))

    def _get_config(self) -> Any:
        return self.config.get(str(self.subcommand), self.config)

    def _chosen_model(self) -> Any:
        """Return the model class or function, before it is instantiated."""
        config = self._get(self.config, "model")
        if self.subclass_mode_model and config is not None and "class_path" in config:
            return import_class(config["class_path"])
        return self._model_class

    def _chosen_data(self) -> Any:
        """Return the data module class or function, before it is instantiated."""
        config = self._get(self.config, "data")
        if self.subclass_mode_data and config is not None and "class_path" in config:
            return import_class(config["class_path"])
        return self.datamodule_class

    # -- classes ---------------------------------------------------------------------------

    def instantiate_classes(self) -> None:
        """Begin the run, then instantiate the classes, with local paths for references.

        The config that is published keeps the references. Beginning draws no random numbers: the
        clients of hub and storage do when they retry, and the model is seeded by now.
        """
        self._refuse_placeholders()  # once more, for the project may have changed the config
        with isolate_rng(include_cuda=False):
            self._begin()
        self._instantiate()
        self._check_ranks()
        self._ranks.close()
        if self._tracked is not None and self._are_ranks_spawned():
            self._tracked.leave_spool()
        self._stop.take_over_requeue(self._made_trainer if self._is_recorded_fit else None)
        if self._tracked is not None:
            from lamincli.registry.outages import give_back_connections

            give_back_connections()
        self._ranks.wait_for_all(getattr(self._made_trainer, "world_size", 1))
        self._outlive_ranks()

    def _check_ranks(self) -> None:
        """Refuse processes of torchrun that would each train alone, and over each other's files."""
        size, started = getattr(self._made_trainer, "world_size", 1), launched_size()
        is_torchrun = "TORCHELASTIC_RUN_ID" in os.environ and self._trains is not False
        if not (self._publishes and is_torchrun and size == 1 < started):
            return
        if not self._ranks.is_zero:
            raise SystemExit(UsageError.exit_code)  # rank zero says why
        self._take_back()
        raise UsageError(
            f"torchrun has started {started} processes, and each would train alone, with the same "
            f"files. Let them train together: --trainer.devices {started} --trainer.strategy ddp "
            "(the processes of a host, and --trainer.num_nodes the hosts)."
        )

    def _instantiate(self) -> None:
        self._make()
        watch(self._made_trainer)

    def _make(self) -> None:
        if not self._references.are_any:
            super().instantiate_classes()
            return
        parser, instantiate = self.parser, self.parser.instantiate_classes
        parser.instantiate_classes = lambda config, *args, **kwargs: instantiate(
            self._with_local_paths(config), *args, **kwargs
        )
        self._dump_config()
        given = self.config_dump
        # From which `save_hyperparameters` takes what `self.hparams` holds.
        self.config_dump = self._with_local_paths(given)
        try:
            super().instantiate_classes()
        finally:
            self.config_dump = given
            del parser.instantiate_classes

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        if "callbacks" not in config:  # a function without that argument; Lightning warns
            return super()._instantiate_trainer(config, callbacks)
        listed = config["callbacks"] or []
        config["callbacks"] = listed = list(listed) if isinstance(listed, list) else [listed]
        persistent = self.trainer_defaults.get("callbacks") or []
        persistent = persistent if isinstance(persistent, list) else [persistent]
        callbacks = [*callbacks, self._stop, *self._of_references(), *self._of_a_fit()]
        present = [*listed, *callbacks, *persistent]
        checkpoints = [cb for cb in present if isinstance(cb, ModelCheckpoint)]
        if not self._publishes:
            for callback in filter(_publishes, checkpoints):
                from lamincli.callbacks.checkpoint import make_plain

                make_plain(callback)
            if not checkpoints and config.get("enable_checkpointing") is not False:
                callbacks.append(ModelCheckpoint(**self._checkpoint_arguments(plain=True)))
            return super()._instantiate_trainer(config, callbacks)

        if predictions := self._make_predictions():
            callbacks.append(predictions)
        if not self._ranks.is_zero and not any(map(_publishes, checkpoints)):
            return self._instantiate_follower(config, callbacks, checkpoints)
        from lamincli.callbacks.checkpoint import Checkpoint, adopt
        from lamincli.callbacks.follow import TakesOver
        from lamincli.callbacks.save_config import combined_with_ours

        found = self._resumption
        care = partial(
            adopt,
            arguments=self._publishing_arguments(),
            options=self._lamin_options(),
            resumes=None if found is None else (found.prefixes, found.attempts),
        )
        forced = None
        if config.get("enable_checkpointing") is False:
            publishing = [cb for cb in checkpoints if _publishes(cb)]
            config["callbacks"] = [cb for cb in listed if cb not in publishing]
            callbacks = [cb for cb in callbacks if cb not in publishing]
            checkpoints = []
        elif not checkpoints:
            forced = Checkpoint(**self._checkpoint_arguments())
            callbacks.append(forced)
            checkpoints = [forced]
        for callback in checkpoints:
            care(callback)
        callbacks.append(TakesOver(care, forced))
        if not any(map(_publishes, checkpoints)) and self._tracked is not None:
            self._tracked.add_features(self._lamin_options().features.run)

        def make_saver(*args: Any, **kwargs: Any) -> Any:
            saver = combined_with_ours(chosen)(*args, **kwargs)
            saver.key_defaults = self._checkpoint_arguments()
            saver.is_of_resumption = self._resumption is not None
            saver.variables = self._taken_out.variables
            self._config_saver = saver
            return saver

        chosen = self.save_config_callback
        return self._instantiate_with(make_saver, config, callbacks)

    def _instantiate_follower(
        self, config: dict[str, Any], callbacks: list[Callback], checkpoints: list[ModelCheckpoint]
    ) -> Trainer:
        """Make the trainer of a rank other than zero, with callbacks that need no LaminDB.

        A callback of lamindb's that the user lists is there on every rank, as anywhere.
        """
        from lamincli.callbacks import follow

        care = partial(follow.take_over, goes_on=self._resumption is not None)
        forced = None
        if config.get("enable_checkpointing") is not False:
            if not checkpoints:
                forced = follow.Checkpoint(**self._checkpoint_arguments(plain=True))
                callbacks.append(forced)
            for callback in (*checkpoints, *([forced] if forced else ())):
                care(callback)
        callbacks.append(follow.TakesOver(care, forced))
        saver = follow.following(self.save_config_callback)
        return self._instantiate_with(saver, config, callbacks)

    def _instantiate_with(
        self, saver: Callable[..., Any], config: dict[str, Any], callbacks: list[Callback]
    ) -> Trainer:
        """Let Lightning make the trainer, with this in the place of the config callback's class."""
        chosen = self.save_config_callback
        self.save_config_callback = saver  # type: ignore[assignment]
        try:
            return super()._instantiate_trainer(config, callbacks)
        finally:
            self.save_config_callback = chosen

    def _make_predictions(self) -> Any:
        """Make the callback that keeps predictions, where there are any to keep."""
        wanted = self._lamin_options().predictions
        if self.subcommand != "predict" or wanted is False:
            return None
        from lamincli.callbacks.predictions import Predictions

        self._predictions = Predictions(None if wanted is True else str(wanted))
        return self._predictions

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        arguments = super()._prepare_subcommand_kwargs(subcommand)
        if self._resumption is not None and self._resumption.checkpoint is not None:
            arguments["ckpt_path"] = str(self._resumption.checkpoint)
        elif self._fetched is not None:
            arguments["ckpt_path"] = self._fetched
        takes_it = "weights_only" in self._subcommand_method_arguments[subcommand]
        if takes_it and is_url(arguments.get("ckpt_path")) and arguments["weights_only"] is None:
            arguments["weights_only"] = True  # Lightning's default is another for http
        if self._predictions is not None and arguments.get("return_predictions") is None:
            arguments["return_predictions"] = False  # or they would all be kept in memory
        return arguments

    def _of_references(self) -> list[Callback]:
        known = self._references.by_path
        return [WritesReferences(known)] if known else []

    def _of_a_fit(self) -> list[Callback]:
        may_train = self._trains is not False
        if not (self._publishes and may_train and self._ranks.is_zero):
            return []
        from lamincli.callbacks.history import MetricsHistory
        from lamincli.callbacks.save_config import Beginning

        assert self._tracked is not None
        self._beginning = Beginning(self._tracked.known)
        return [MetricsHistory(), self._beginning]

    def _checkpoint_arguments(self, plain: bool = False) -> dict[str, Any]:
        """Return the arguments for the forced checkpoint, from `checkpoint` and `lamin`."""
        arguments = dict(vars(self._get(self.config_init, "checkpoint")))
        if plain:
            return {name: value for name, value in arguments.items() if name not in _PUBLISHING}
        return arguments | self._publishing_arguments()

    def _publishing_arguments(self) -> dict[str, Any]:
        """Return those arguments that Lightning's `ModelCheckpoint` has not got."""
        options = self._lamin_options()
        given = vars(self._get(self.config_init, "checkpoint"))
        arguments = {name: given[name] for name in _PUBLISHING}
        arguments["features"] = {k: v for k, v in vars(options.features).items() if v}
        for name in ("run_uid_is_version", "publish", "spool_limit_gb", "patience_s"):
            arguments[name] = getattr(options, name)
        return arguments

    # -- last words ------------------------------------------------------------------------

    def _show_ending(self, of_run: Ending) -> None:
        assert self._tracked is not None
        self._note_what_is_left()
        status = of_run.status
        ending = console.Ending(self._tracked.uid, status, self._tracked.slug)
        if of_run.reason:
            ending.rows["reason"] = of_run.reason
        trainer = self._made_trainer
        callbacks = trainer.checkpoint_callbacks if trainer else []
        publishing: list[Any] = sorted(filter(_publishes, callbacks), key=_ranks_nothing)
        callback = next(iter(publishing), None)
        stages = [call.stage for call in (trainer and calls_of(trainer)) or ()]
        has_trained = trainer is not None and (trainer.state.fn == "fit" or "fit" in stages)
        is_idle = of_run.is_idle and self._resumption is None
        if has_trained and callback is not None and not is_idle:
            self._tell_of_checkpoint(ending, callback, status)
        if trainer is not None and trainer.state.fn != "fit":
            metrics = metric_values(trainer.callback_metrics)
            ending.rows |= {name: f"{value:.4g}" for name, value in metrics.items()}
        if config_key := getattr(self._config_saver, "key", None):
            ending.rows["config key"] = config_key
        if self._predictions is not None:
            # A rank zero that a strategy spawned had a callback of its own.
            key = self._predictions.key or self._tracked.key_of(DESCRIPTIONS["predictions"])
            ending.rows |= {"predictions key": key} if key else {}
            if self._predictions.local_path is not None:
                ending.rows["predictions"] = _short(self._predictions.local_path)
        if status == "scheduled":
            ending.rows["next"] = "SLURM starts this job again, and the run goes on"
        ending.unpublished = self.unpublished
        if self.unpublished:
            ending.commands["publish the rest"] = ["lamin-train", "sync"]
        console.show_ending(ending)

    def _tell_of_checkpoint(self, ending: console.Ending, callback: Any, status: Status) -> None:
        """Name the checkpoint to go on with, and the commands that do."""
        completed = status == "completed"
        path = callback.best_model_path if completed else callback._last_checkpoint_saved
        if not path:
            return
        assert self._tracked is not None
        key = callback.resolve_artifact_key(self.trainer, path, "checkpoint")
        score = callback.best_model_score if completed else None
        text = key if score is None else f"{key}  {callback.monitor}={float(score):.4g}"
        label = "checkpoint" if callback.monitor is None else "best checkpoint"
        ending.rows[(label if completed else "last checkpoint") + " key"] = text
        if self.subcommand is None or self._tracked.is_reproduction:
            return  # the script takes no stage and no checkpoint; or the files are about to go
        config = self._config_saver and self._config_saver.local_path
        arguments = ["--config", _short(config), "--ckpt_path", _short(path)] if config else None
        elsewhere = self._get(self.config, "lamin").get("instance") is not None
        if status == "scheduled":
            return
        if not completed:
            program, run = _program(), self._tracked.uid
            is_ours = program in (["lamin-train"], ["python", "-m", "lamincli"])
            stage = str(self.subcommand)  # a program of the project's has no `resume`
            words = ["resume", run] if is_ours else [stage, f"--lamin.resume={run}"]
            there = [f"--lamin.instance={self._tracked.slug}"] if elsewhere else []
            there += ["--lamin.offline"] if self.is_offline else []
            ending.commands["continue it"] = [*program, *words, *there]
            return
        is_tested = "test" in [call.stage for call in calls_of(self.trainer) or ()]
        is_tested = is_tested or bool(self._lamin_options().then)
        if arguments and not is_tested and not _lacks(type(self.model), "test_step"):
            ending.commands["test it"] = [*_program(), "test", *arguments]
        kind = type(self.model)
        uid = self._tracked.artifact_uid(key)
        # Lightning can make the model again if it keeps its arguments, or takes none.
        loadable = self.model.hparams or not signature(kind).parameters
        loadable = loadable and not Path(path).is_dir()  # that takes the strategy that saved it
        if kind.__module__ != "__main__" and uid and loadable:
            name = kind.__qualname__
            code = (
                f"import lamindb as ln; from {kind.__module__} import {name}; "
                f'print({name}.load_from_checkpoint(ln.Artifact.get("{uid}").cache()))'
            )
            connect = [f"{ENVIRONMENT_VARIABLE}={self._tracked.slug}"] if elsewhere else []
            ending.commands["load it"] = [*connect, "python", "-c", code]


@contextmanager
def _with_variables() -> Iterator[None]:
    """Report an environment variable that a config names, and that is not set, as a mistake."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.partition(".")[0] != "omegaconf":
            raise
        key = getattr(error, "full_key", None) or "a config"
        raise UsageError(f"{key}: {first_line(error)}. Set it, or give a value.") from error


def _is_of_lightning(error: BaseException) -> bool:
    """Tell whether Lightning itself has refused a value."""
    last = list(traceback.walk_tb(error.__traceback__))[-1:]
    names = [str(frame.f_globals.get("__name__")) for frame, _ in last]
    return isinstance(error, (TypeError, ValueError)) and names[0].startswith("lightning.")


def _imported(class_path: str) -> Any:
    """Return what a class path names; `None` if it is not here."""
    try:
        return import_class(class_path)
    except (ImportError, AttributeError, ValueError):
        return None


def _takes(kind: Any, argument: str) -> bool:
    """Tell whether a class or function takes an argument."""
    parameters = signature(kind).parameters
    is_open = any(one.kind == Parameter.VAR_KEYWORD for one in parameters.values())
    return is_open or argument in parameters


def _default(kind: Any, argument: str) -> Any:
    """Return the default of an argument of a class; of one that is not known, something else."""
    parameter = signature(kind).parameters.get(argument)
    return Parameter.empty if parameter is None else parameter.default


def _lacks(kind: Any, hook: str) -> bool:
    """Tell whether a class is known not to define a hook."""
    if not isinstance(kind, type):
        return False
    return getattr(kind, hook, None) in (None, getattr(LightningModule, hook))


def _ranks_nothing(callback: Any) -> bool:
    return callback.monitor is None


def _publishes(callback: Any) -> bool:
    """Tell whether a callback publishes to LaminDB, without importing lamindb to find out."""
    ll = sys.modules.get("lamindb.integrations.lightning")
    return ll is not None and isinstance(callback, ll.ArtifactPublishingModelCheckpoint)


def _is_of_lamin(kind: Any) -> bool:
    ll = sys.modules.get("lamindb.integrations.lightning")  # whoever has such a class imported it
    return ll is not None and issubclass(kind, ll.ArtifactPublishingModelCheckpoint)


def _is_checkpoint(config: Any) -> bool:
    """Tell whether a callback of the config is a `ModelCheckpoint`, as ours is."""
    if not isinstance(config, (Namespace, dict)) or "class_path" not in config:
        return False
    kind = import_class(config["class_path"])
    return isinstance(kind, type) and issubclass(kind, ModelCheckpoint)


@contextmanager
def _refusing_what_is_no_config(words: Any) -> Iterator[None]:
    """Say which config cannot be read, where the parser would end in the error of a library.

    Raises:
        UsageError: It is no text, its values lie in each other without end, or it cannot be read.
    """
    try:
        yield
    except (UnicodeDecodeError, RecursionError, OSError) as error:
        files = options_in(words, "--config", "-c") if isinstance(words, list) else []
        for file in files:
            if why := _why_no_config(file):
                raise UsageError(f"--config {file}: {why}") from error
        if not isinstance(error, RecursionError) or not files:
            raise
        raise UsageError(
            f"--config {', '.join(files)}: the values lie too deeply in each other, or in "
            "themselves, as an alias of YAML can. Write them out."
        ) from error


def _why_no_config(file: str) -> str | None:
    try:
        Path(file).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return "it is no text. A config is a YAML file in UTF-8."
    except (OSError, ValueError) as error:
        return f"it cannot be read: {getattr(error, 'strerror', None) or error}."
    return None


def _is_pipe(value: str) -> bool:
    """Tell whether a config can be read once only, and by the process that was given it."""
    try:
        return value.startswith("/dev/fd/") or Path(value).is_fifo()
    except (OSError, ValueError):  # the text of a config, too long for a path
        return False


def _why_no_observer(observer: Any) -> str | None:
    if not isinstance(observer, (Namespace, dict)) or "class_path" not in observer:
        return f"{observer!r} is no class_path with init_args."
    try:
        kind = import_class(observer["class_path"])
    except (ImportError, AttributeError, ValueError) as error:
        return f"{observer['class_path']} cannot be imported: {error}."
    if not any(hasattr(kind, f"on_artifact_{what}") for what in ("saved", "removed")):
        return f"{observer['class_path']} has no method on_artifact_saved or on_artifact_removed."
    return None


def _program() -> list[str]:
    """Return the words by which this program was started."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return ["python", "-m", spec.name.removesuffix(".__main__")]
    path = Path(sys.argv[0])
    return ["python", _short(path)] if path.suffix == ".py" else [path.name]


def _short(path: str | Path) -> str:
    absolute = Path(os.path.abspath(path))
    return os.path.relpath(absolute) if absolute.is_relative_to(Path.cwd()) else str(absolute)
