"""What came before what: counted, never read from a clock, which may go back or differ by host.

Checkpoints of a run are ordered by a number that grows with every save, over all attempts. Runs
are ordered as LaminDB has seen them begin, by the id of their rows; those that wait in spools, by
a number that each takes beyond those that it finds waiting. Records of earlier versions have no
numbers: they come before those that have, and among each other by the times that they noted.
"""

from collections.abc import Mapping
from typing import Any

KEY = "order"
"""Under which name the notes of a checkpoint hold its number."""
UNNUMBERED = -1

_CALLS = 10_000
_SAVES = 10_000_000  # so that 90,000 attempts have numbers that JSON keeps exactly


def number_of_save(attempt: int, call: int, save: int) -> int:
    """Number a save, so that a later one of the run has a larger number.

    Args:
        attempt: How many attempts of the run were before this one.
        call: Which call of the trainer this is in its process.
        save: Which save this is in the process that saves; a strategy may start one for every call.
    """
    return (attempt * _CALLS + call) * _SAVES + save


def attempt_of(number: int) -> int:
    """Return how many attempts of the run were before the one that made a save."""
    return max(0, number) // (_CALLS * _SAVES)


def of_notes(notes: Mapping[str, Any]) -> int:
    """Return the number that the notes of a checkpoint hold."""
    number = notes.get(KEY)
    return number if type(number) is int else UNNUMBERED


def of_beginning(notes: Mapping[str, Any]) -> tuple[int, str]:
    """Return what orders the beginnings of runs that wait in spools.

    Args:
        notes: What a job holds that begins a run.
    """
    number = notes.get("number")
    return (number if type(number) is int else UNNUMBERED, str(notes.get("started_at") or ""))
