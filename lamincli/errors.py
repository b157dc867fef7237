"""Every error that this package raises on purpose.

::

    LaminTrainError
    ├── UsageError              what the user typed cannot work; found before training, exit code 2
    │   ├── InstanceError       the LaminDB instance cannot be found, created or used
    │   │   └── UnreachableError    it cannot be reached for now; a training goes on without it
    │   ├── RecordError         a feature, project, space or branch does not exist or does not fit
    │   └── LaminReferenceError a reference into LaminDB is malformed, or names nothing, or too much
    ├── MonitorNotLoggedError   the monitored metric was never logged; found by the first save
    ├── ContentChangedError     a file is not any more what was saved; its job is parked
    ├── UntrustedError          a job, or its file, is not this user's own, or leads elsewhere
    ├── SpoolCorruptError       a job file does not parse; it is parked
    └── SpoolVersionError       a job file was written by a newer lamin-train; it is parked

A message reads ``<fact with value>. <cause>. <what helps>.`` and is shown without a traceback.
Several mistakes are collected and reported in one `UsageError`.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class LaminTrainError(Exception):
    """Report a situation that the user can change, in words that say how."""

    exit_code = 1


class UsageError(LaminTrainError):
    """Report what the user typed and cannot work, before anything was trained or written."""

    exit_code = 2

    @classmethod
    def of(cls, mistakes: list[str]) -> "UsageError":
        """Join all mistakes into one error, so that the user mends them in one go."""
        return cls("\n".join(mistakes))


class InstanceError(UsageError):
    """Report a LaminDB instance that cannot be found, created or used."""


class UnreachableError(InstanceError):
    """Report a LaminDB instance that cannot be reached for now; a training goes on without it."""


class RecordError(UsageError):
    """Report a feature, project, space or branch that does not exist or does not fit."""


class LaminReferenceError(UsageError):
    """Report a reference into LaminDB that names nothing, or more than one thing."""


class MonitorNotLoggedError(LaminTrainError):
    """Report a monitored metric that the model never logged."""


class ContentChangedError(LaminTrainError):
    """Report a checkpoint that was written over, or torn, between its save and its upload."""


class UntrustedError(LaminTrainError):
    """Report what lies in a folder and is not acted on, because this user has not written it."""


class SpoolCorruptError(LaminTrainError):
    """Report a job file that is torn, empty or none of ours."""


class SpoolVersionError(LaminTrainError):
    """Report a job file of a newer lamin-train."""


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return `` Did you mean …?`` for the closest choices, or an empty string."""
    close = get_close_matches(name, list(dict.fromkeys(choices)), n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(close)}?" if close else ""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its kind where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
