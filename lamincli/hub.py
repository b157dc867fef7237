"""Keep lamindb from asking the hub what is known without it, and from making what it looks for.

lamindb asks LaminHub whether an instance is registered there before it saves a file that lies
outside its storage. On a machine without internet that question ends the program, even for a
local SQLite instance, which cannot be on the hub. And it makes the folder of a local instance that
it is asked for, into which SQLite then puts an empty database, where a project was moved, or its
disk is not mounted. This module is an entry point of the group ``lamindb_setup.on_import``, so that
a plain ``ln.track()`` in a user's script works offline, and makes nothing by looking. It imports
nothing but the standard library until it is called, and then only what lamindb has imported
already.
"""

import os
import sys
from pathlib import Path
from typing import Any


def skip_questions_with_a_known_answer() -> None:
    """Answer `InstanceSettings.is_on_hub` locally where the answer is certain.

    An instance with local storage and a local database that no hub manages is not on the hub.
    Any other instance is asked for; a hub that cannot be reached is one warning, and its answer
    counts as no for this process.
    """
    from lamindb_setup.core._settings_instance import InstanceSettings

    make_nothing_by_looking()
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


def make_nothing_by_looking() -> None:
    """Let the settings of a local instance be loaded without making its folder, if that is gone."""
    from lamindb_setup.core import _settings_load, _settings_storage
    from lamindb_setup.core.upath import UPath

    load: Any = _settings_load.setup_instance_from_store
    if getattr(load, "makes_nothing", False):
        return

    def setup_instance_from_store(store: Any) -> Any:
        if not _is_gone(store):
            return load(store)
        make = _settings_storage.sanitize_root_user_input
        _settings_storage.sanitize_root_user_input = lambda root: UPath(
            os.path.abspath(os.path.expanduser(str(root)))
        )
        try:
            return load(store)
        finally:
            _settings_storage.sanitize_root_user_input = make

    setup_instance_from_store.makes_nothing = True  # type: ignore[attr-defined]
    _settings_load.setup_instance_from_store = setup_instance_from_store


def _is_gone(store: Any) -> bool:
    """Tell whether stored settings are those of a local SQLite instance without its database."""
    is_local = "://" not in store.storage_root
    if not is_local or not (store.db in (None, "", "null") or str(store.db).startswith("sqlite")):
        return False
    folder = Path(store.storage_root).expanduser()
    legacy = folder / f"{store.id}.lndb"  # which lamindb renames
    return not (folder / ".lamindb" / "lamin.db").exists() and not legacy.exists()


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
