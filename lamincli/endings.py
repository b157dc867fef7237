"""How a run ends: its status, the reason, and the exit code. A pure function of what happened.

A process may end well although its training did not: a script catches what `fit` raised, never
calls it, or exits with 0 in the middle. So the status follows from the calls of the trainer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from signal import Signals
from typing import Literal

from lamincli.errors import LaminTrainError, first_line
from lamincli.redaction import redact_text

Status = Literal["completed", "errored", "aborted", "scheduled"]  # the last: it will go on

_LONGEST_REASON = 300
EVALUATIONS = ("validate", "test", "predict")
"""The stages of Lightning that train nothing."""

_STAGES = ("fit", *EVALUATIONS)
_WORK = {"fit": "trained", "predict": "predicted"}


@dataclass
class Call:
    """A call of the trainer.

    Args:
        stage: ``fit``, ``validate``, ``test`` or ``predict``.
        batches: How many batches came to their end; `None` where nobody has counted.
        is_over: Whether it has returned, or raised.
        status: ``completed`` unless something has ended it early; then what that stands for.
        why: What has ended it early, in short.
        metrics: What it has logged last.
    """

    stage: str
    batches: int | None = None
    is_over: bool = False
    status: Status = "completed"
    why: str = ""
    metrics: dict[str, float] = field(default_factory=dict)

    def interrupt(self, error: BaseException | None) -> None:
        """Note that an error has ended the call."""
        self.is_over = True
        self.status = "errored" if error is None else status_of(error)
        self.why = "an error" if error is None else in_short(error)


@dataclass(frozen=True)
class Happened:
    """What is known when a run ends.

    Args:
        stage: The subcommand; `None` where a script calls the trainer itself.
        calls: The calls of the trainer, in their order; `None` where there is no account of them.
        error: What has ended the program, which it did not catch.
        signum: The signal that has stopped it.
        no_work: Why there was nothing to train, if that is known.
    """

    stage: str | None = None
    calls: Sequence[Call] | None = None
    error: BaseException | None = None
    signum: int | None = None
    no_work: str = ""


@dataclass(frozen=True)
class Ending:
    """How a run has ended.

    Args:
        status: The status of the run.
        reason: Why it is that; empty where there is nothing to add.
        exit_code: The code with which its program should end.
        is_idle: Whether nothing was trained or evaluated, although nothing went wrong.
    """

    status: Status
    reason: str = ""
    exit_code: int = 0
    is_idle: bool = False


def ending(happened: Happened) -> Ending:
    """Derive how a run has ended.

    What ended the program decides first: a signal, then an error. Where it ended well, or by
    ``sys.exit(0)``, the calls of the trainer decide. The reason is that of `shown`.
    """
    found = _ending(happened)
    return replace(found, reason=shown(found.reason))


def _ending(happened: Happened) -> Ending:
    error = happened.error
    if happened.signum is not None:
        reason = f"stopped by {Signals(happened.signum).name}"
        return Ending("aborted", reason, 128 + happened.signum)
    if error is not None and (code := exit_code(error)) != 0:
        return Ending(status_of(error), in_short(error), code)
    return _of_calls(happened)


def _of_calls(happened: Happened) -> Ending:
    """Derive it from the calls of the trainer, for the program itself has ended well."""
    if happened.calls is None:
        return Ending("completed")
    calls, stage = list(happened.calls), happened.stage
    if stage not in _STAGES and calls:  # a subcommand of the project's own, or none
        stages = [call.stage for call in calls]
        stage = "fit" if "fit" in stages else stages[-1]
    own = [call for call in calls if call.stage == stage]
    if not own:
        return Ending("aborted", _nothing(stage, "its trainer was not called"))
    last = own[-1]
    exits = happened.error is not None
    if not last.is_over:
        return Ending("aborted", f"{stage} was still going on when the run was closed")
    if last.status != "completed":
        caught = "" if exits else ", which the program caught"
        code = 0 if exits or last.status == "aborted" else 1
        return Ending(last.status, f"{stage} was ended by {last.why}{caught}", code)
    if all(call.batches == 0 for call in own if call.status == "completed"):
        reason = _nothing(stage, happened.no_work or "no batch was run")
        return Ending("completed", reason, is_idle=True)
    later = [call for call in calls[calls.index(last) :] if call.status != "completed"]
    return Ending("completed", "; ".join(f"{c.stage} was ended by {c.why}" for c in later[-1:]))


def _nothing(stage: str | None, why: str) -> str:
    work = _WORK.get(stage, "evaluated") if stage in _STAGES else "trained or evaluated"
    return f"nothing was {work}: {why}"


def status_of(error: BaseException) -> Status:
    """Return what an error that ends a training stands for: a failure, or the wish to stop."""
    if isinstance(error, KeyboardInterrupt) or _is_interrupt_in_disguise(error):
        return "aborted"
    return "aborted" if isinstance(error, SystemExit) and not exit_code(error) else "errored"


def in_short(error: BaseException) -> str:
    """Describe an error in a line."""
    if isinstance(error, KeyboardInterrupt) or _is_interrupt_in_disguise(error):
        return "KeyboardInterrupt"
    name = type(error).__name__
    if isinstance(error, SystemExit):
        text = "a signal" if name == "SIGTERMException" else f"sys.exit({error.code!r})"
    elif name == "ProcessRaisedException":  # of a rank that a strategy spawned; its traceback
        text = str(error).strip().splitlines()[-1]
    else:
        text = first_line(error)
        text = name if text == name else f"{name}: {text}"
    return text


def shown(reason: str) -> str:
    """Return a reason as the record holds it: without secrets, and not too long."""
    text = redact_text(reason)
    return text if len(text) <= _LONGEST_REASON else f"{text[: _LONGEST_REASON - 2]} …"


def exit_code(error: BaseException) -> int:
    """Return the code with which a process ends by an error."""
    if isinstance(error, LaminTrainError):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt) or _is_interrupt_in_disguise(error):
        return 130
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    return 1


def _is_interrupt_in_disguise(error: BaseException) -> bool:
    """Tell whether an exit stands for Ctrl-C: Lightning makes one with code 1 of it."""
    return isinstance(error, SystemExit) and isinstance(error.__context__, KeyboardInterrupt)
