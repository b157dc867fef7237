"""The LaminDB of one job until its run has begun: connected, or done without."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TypeVar

from lamincli.errors import UnreachableError
from lamincli.instance import (
    ENVIRONMENT_VARIABLE,
    Target,
    connected,
    import_unconnected,
    is_connected,
    named,
)
from lamincli.process import gives_back
from lamincli.references import References

_T = TypeVar("_T")


@contextmanager
def reached(instance: str | None) -> Iterator[str]:
    """Connect an instance that is there, for a command; yields owner/name.

    Args:
        instance: As in ``--lamin.instance``.

    Raises:
        InstanceError: There is none, or it cannot be used or reached.
    """
    from lamincli.registry.outages import asking, reaching

    with ExitStack() as stack:
        with reaching(instance or "of this folder"):
            slug = stack.enter_context(connected(instance, create=False))
        stack.enter_context(asking(slug))
        yield slug


class Connection:
    """The instance of a job, connected once. One that is away is named, and not asked again.

    Args:
        references: Those of the job, which are taken from memory where the instance is away.
        resources: Gives back in the end what connecting changes in this process.
        before: Called before connecting.

    Attributes:
        is_offline: Whether it is away by choice: neither the network nor a database is asked.
        why_away: Why it is not asked; empty where it is.

    Runs on: rank zero; another rank only where it has to fetch a file by itself.
    """

    def __init__(
        self, references: References, resources: ExitStack, before: Callable[[], None]
    ) -> None:
        self._references = references
        self._resources = resources
        self._before = before
        self._slug: str | None = None
        self._target: Target | None = None  # where it is away
        self.is_offline = False
        self.why_away = ""

    @property
    def slug(self) -> str:
        """The instance, owner/name; it is connected, or away."""
        return str(self._slug)

    @property
    def is_known(self) -> bool:
        """Whether other processes can connect it by its name."""
        return self._target is None or bool(self._target.id)

    def connect(self, instance: str | None, create: bool = True) -> str:
        """Connect the instance, unless it is connected or away; returns its slug.

        Args:
            instance: As in ``--lamin.instance``.
            create: Create a local one where there is none.

        Raises:
            InstanceError: There is no such instance, or it refuses.
        """
        self._before()
        if self.why_away or (self._slug is not None and instance is None):
            return self.slug
        try:
            if self.is_offline:
                raise UnreachableError(f"LaminDB instance {named(instance).slug} is not asked")
            from lamincli.registry.outages import reaching

            with reaching(instance or "of this folder"):
                self._slug = self._resources.enter_context(connected(instance, create))
        except UnreachableError as error:
            import_unconnected()
            self._do_without(named(instance), error)
        return self.slug

    def ask(self, instance: str | None, question: Callable[[], _T]) -> _T:
        """Connect the instance and ask it something.

        Where it is away, or goes away meanwhile, the question is asked with that known.

        Args:
            instance: As in ``--lamin.instance``.
            question: Returns the answer.
        """
        slug = self.connect(instance, create=False)
        if not self.why_away:
            from lamincli.registry.outages import asking, give_back_connections

            try:
                with asking(slug):
                    return question()
            except UnreachableError as error:
                give_back_connections()
                self._do_without(named(slug), error)
        return question()

    def target(self, instance: str | None) -> tuple[Target, bool]:
        """Return what is recorded into, and whether that is left to ``lamin-train sync``."""
        target = self._target or named(instance)
        return target, self.is_offline or not is_connected(target)

    def _do_without(self, target: Target, why: UnreachableError) -> None:
        self.why_away, self._target = str(why), target
        self._slug = self._references.away = target.slug
        if target.id:  # processes that this one starts are to use the same one
            self._resources.enter_context(gives_back(ENVIRONMENT_VARIABLE))
            os.environ[ENVIRONMENT_VARIABLE] = target.slug
