"""Keep lamindb from asking the hub what is known without it.

lamindb asks LaminHub whether an instance is registered there before it saves a file that lies
outside its storage. On a machine without internet that question ends the program, even for a
local SQLite instance, which cannot be on the hub. This module is an entry point of the group
``lamindb_setup.on_import``, so that a plain ``ln.track()`` in a user's script works offline too.
It imports nothing but the standard library until it is called, and then only what lamindb has
imported already.
"""

import sys
from typing import Any


def skip_questions_with_a_known_answer() -> None:
    """Answer `InstanceSettings.is_on_hub` locally where the answer is certain.

    An instance with local storage and a local database that no hub manages is not on the hub.
    Any other instance is asked for; a hub that cannot be reached is one warning, and its answer
    counts as no for this process.
    """
    from lamindb_setup.core._settings_instance import InstanceSettings

    ask = InstanceSettings.is_on_hub.fget
    if getattr(ask, "answers_locally", False):
        return

    def is_on_hub(self: Any) -> bool:
        if self._is_on_hub is None:
            if not self.is_remote and not self.is_managed_by_hub:
                self._is_on_hub = False
            else:
                try:
                    self._is_on_hub = bool(ask(self))
                except Exception as error:
                    if not is_unreachable(error):
                        raise
                    self._is_on_hub = False
                    warn_unreachable(error)
        return bool(self._is_on_hub)

    is_on_hub.answers_locally = True  # type: ignore[attr-defined]
    InstanceSettings.is_on_hub = property(is_on_hub, doc=InstanceSettings.is_on_hub.__doc__)


def is_unreachable(error: BaseException) -> bool:
    """Tell whether an error says that a server cannot be reached (and not that it said no)."""
    if isinstance(error, OSError):
        return error.filename is None  # else it is about a file
    httpx = sys.modules.get("httpx")
    return httpx is not None and isinstance(error, httpx.TransportError)


def warn_unreachable(error: BaseException) -> None:
    """Say once that the hub is away."""
    from lamindb_setup import logger

    logger.warning(f"LaminHub cannot be reached ({error}); going on without it")
