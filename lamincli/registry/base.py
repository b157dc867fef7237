"""What the publisher asks of a registry. One suite of tests runs on every implementation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol

from lamincli.spool import Job

Verdict = Literal["retry", "race", "park"]
"""What an error calls for: an outage passes, a race is tried a few times, the rest is parked."""


class Registry(Protocol):
    """Fulfil jobs, each any number of times with the effect of one.

    A call that returns has committed. One that raises, or whose process is killed, may be repeated:
    nothing is then there twice, and nothing is left over. An artifact of another run is never
    changed, and nothing is retired before its successor is committed.

    Runs on: global rank zero, any thread, one call at a time.
    """

    def save(self, job: Job, file: Path | None, note: Callable[[Job], None]) -> Any:
        """Make a file the artifact of the job's key, with its features, flags and ranks.

        Args:
            job: The job.
            file: The file or folder; `None` registers `job.local_path` where it lies.
            note: Keeps a changed job durably, for when this call is repeated.

        Returns:
            The artifact.
        """

    def remove(self, job: Job, note: Callable[[Job], None]) -> Any | None:
        """Delete the artifact that the run has under the job's key, with its file.

        Args:
            job: The job.
            note: As in `save`.

        Returns:
            The deleted artifact; `None` if there was none.
        """

    def begin_run(self, job: Job) -> None:
        """Make the run with the uid and the times of the job, or let it go on."""

    def annotate(self, job: Job) -> None:
        """Give the run the feature values of the job."""

    def close_run(self, job: Job, log: Path | None) -> None:
        """Record how the run ended, and when.

        Args:
            job: The job.
            log: The log of the run; `None` where it was not kept in the spool.
        """

    def verdict(self, error: Exception) -> Verdict:
        """Say what an error of the calls above calls for, by its type."""

    def disconnect(self) -> None:
        """Let go of the connections of this thread; the next call opens new ones."""
