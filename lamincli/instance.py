"""Connect the LaminDB instance of this process: the one asked for, the connected one, or a new one.

This file is the only one that touches the private parts of lamindb_setup that connecting needs.
They are used because `ln.connect()` from one instance to another re-imports lamindb, which leaves
every class made before (checkpoint callbacks among them) bound to the old database.
"""

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from uuid import UUID

from lamincli import console, folders
from lamincli.errors import InstanceError, UnreachableError, did_you_mean
from lamincli.folders import taking_turns
from lamincli.hub import is_unreachable, warn_unreachable
from lamincli.process import gives_back
from lamincli.redaction import redact_text

DEFAULT_FOLDER = Path("lamindb")
ENVIRONMENT_VARIABLE = "LAMIN_CURRENT_INSTANCE"
_MARK = Path(".lamindb/storage_uid.txt")
_DATABASE = Path(".lamindb/lamin.db")
_CONNECTS_WITHIN_S = 5
"""How long PostgreSQL may take to answer; lamindb waits for 20 seconds. PGCONNECT_TIMEOUT wins."""


@dataclass(frozen=True)
class Target:
    """An instance as jobs name it, connected or not.

    Args:
        slug: Owner/name; the folder of a local one that is not there.
        id: Its id, in hexadecimal; empty where it is not known.
    """

    slug: str
    id: str = ""


@contextmanager
def connected(instance: str | None, create: bool = True) -> Iterator[str]:
    """Connect an instance for this process and all that it starts; yields owner/name.

    Args:
        instance: ``owner/name``, a folder for a local SQLite instance, or `None` for the
            connected instance, else a local one in ``./lamindb``.
        create: Create a local instance in a folder that has none.

    Raises:
        InstanceError: The instance does not exist or cannot be created or reached.
    """
    slug = connect(instance, create)
    _leave_connections_to_the_parent()
    with gives_back(ENVIRONMENT_VARIABLE):
        os.environ[ENVIRONMENT_VARIABLE] = slug  # ranks and workers connect to the same one
        yield slug


def connect(instance: str | None, create: bool = True) -> str:
    """Connect an instance, as `connected` does, for the rest of this process."""
    provide_folders()
    os.environ.setdefault("PGCONNECT_TIMEOUT", str(_CONNECTS_WITHIN_S))
    with _readable_settings():
        slug = _connect(instance, create)
        from lamindb_setup import settings

        _ = settings.user  # now, too
    from django.db import connection

    with connection.cursor() as cursor:  # now, and not somewhere in the middle
        cursor.execute("SELECT 1")
    return slug


def named(instance: str | None) -> Target:
    """Return the instance that `connect` would connect, without asking anybody for it.

    Raises:
        InstanceError: None is named, or by something that is neither owner/name nor a folder.
    """
    provide_folders()
    with _readable_settings():
        return _named(instance)


@contextmanager
def _readable_settings() -> Iterator[None]:
    """Say which file of lamindb's settings is damaged, as by a disk that was full."""
    from lamindb_setup.errors import SettingsEnvFileOutdated

    try:
        yield
    except (SettingsEnvFileOutdated, UnicodeDecodeError, IsADirectoryError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise InstanceError(
            f"LaminDB's settings cannot be read: {' '.join(lines).removesuffix('.')}. They are in "
            f"{folders.settings_folder()} and in {Path('.lamin').absolute()}."
        ) from error


def _named(instance: str | None) -> Target:
    from lamindb_setup import settings
    from lamindb_setup.core._settings_load import load_instance_settings
    from lamindb_setup.core._settings_store import instance_settings_file

    if instance is None and settings.is_configured and not _is_moved_or_copied():
        return Target(str(settings.instance.slug), settings.instance._id.hex)
    if instance is None:
        instance = os.environ.get(ENVIRONMENT_VARIABLE) or None
    if instance is None and not (DEFAULT_FOLDER / _MARK).is_file():
        raise InstanceError(
            "No LaminDB instance is connected here, so that it is not known for which one this run "
            "is to be kept. Name it: --lamin.instance owner/name, or a folder of a local one."
        )
    if instance is None or _names_a_folder(instance):
        folder = Path(os.path.abspath(os.path.expanduser(instance or DEFAULT_FOLDER)))
        found = _settings_of_folder(folder) if (folder / _MARK).is_file() else None
        return Target(found.slug, found._id.hex) if found else Target(str(folder))
    owner, name = _owner_and_name(instance)
    file = instance_settings_file(name, owner)
    slug = f"{owner}/{name}"
    return Target(slug, load_instance_settings(file)._id.hex if file.exists() else "")


def is_connected(target: Target) -> bool:
    """Tell whether the instance is the one that lamindb uses in this process."""
    from lamindb_setup import settings

    return bool(settings.instance._id.hex == target.id)


def import_unconnected() -> None:
    """Import lamindb without letting it ask a database or the hub for anything."""
    import lamindb_setup

    settings = lamindb_setup.settings

    with gives_back(ENVIRONMENT_VARIABLE):
        if not settings.is_configured:  # or the import would look the instance up
            os.environ.pop(ENVIRONMENT_VARIABLE, None)
        instance = settings.instance
        keeps_local = instance._keep_artifacts_local
        instance._keep_artifacts_local = False  # or it would look for its local storage
        logger = lamindb_setup.logger
        was_disabled, logger.disabled = logger.disabled, True  # it would say that it is connected
        try:
            import lamindb  # noqa: F401
        finally:
            logger.disabled = was_disabled
            instance._keep_artifacts_local = keeps_local


def _connect(instance: str | None, create: bool) -> str:
    from lamindb_setup import settings

    if instance is None:
        if settings.is_configured and not _is_moved_or_copied():
            _check_is_there(settings.instance)
            import lamindb  # noqa: F401  connects on import

            return str(settings.instance.slug)
        if not create:
            _check_is_known(DEFAULT_FOLDER.absolute())
        return _connect_folder(DEFAULT_FOLDER, create)
    if _names_a_folder(instance):
        return _connect_folder(Path(os.path.expanduser(instance)), create)
    return _connect_slug(instance)


@cache
def provide_folders() -> None:
    """See to it that LaminDB and this package can write what they keep for this user."""
    folders.provide_home()
    folders.provide_cache_and_state()
    folders.remove_left()
    if (text := folders.news()) is not None:
        console.warn(text)


@cache
def _leave_connections_to_the_parent() -> None:
    """Let processes that are forked from this one open database connections of their own.

    Closing an inherited one would end it for the parent too, so it is only forgotten.
    """
    from django.db import connections

    def forget() -> None:
        for connection in connections.all(initialized_only=True):
            connection.connection = None

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=forget)


def _is_complete(folder: Path) -> bool:
    # Whoever connects to an instance that is gone leaves an empty database in its place.
    database = folder / _DATABASE
    return (folder / _MARK).exists() and database.is_file() and database.stat().st_size > 0


def _check_is_there(instance: Any) -> None:
    """Make sure that a local instance has its database, before SQLite makes an empty one.

    Raises:
        InstanceError: It has none.
    """
    from lamindb_setup import settings

    if instance.dialect != "sqlite" or instance.storage.type_is_cloud:
        return
    folder = Path(instance.storage.root_as_str)
    if "lamindb" in sys.modules and instance is settings.instance:
        # Then the default storage may have been switched to another one.
        from django.db import connection

        folder = Path(connection.settings_dict["NAME"]).parents[1]
    with _creating(folder):  # another training may be at it
        is_there = _is_complete(folder)
    if not is_there:
        raise InstanceError(
            f"LaminDB instance {instance.slug} is gone: there is no database in {folder}. Restore "
            f"the folder, or start a new instance there with --lamin.instance {_as_option(folder)}"
        )


def find_near(place: Path, instance_id: str, before: Iterable[Path] = ()) -> Path | None:
    """Return the folder of a local instance that has moved with a project, or was copied with it.

    It lies where it lay as seen from the place before, in the folder of the project, or in one
    around it; or it has not moved. Nothing is made, and no database is opened.

    Args:
        place: A folder of the project.
        instance_id: The id of the instance, in hexadecimal, which its mark has too.
        before: Where `place` was, or is, as far as that is known.
    """
    roots = list(map(Path, _roots_of(instance_id)))
    moved = [
        Path(os.path.normpath(place / os.path.relpath(root, old)))
        for root in roots for old in before
    ]  # fmt: skip
    found = [*(folder for folder in moved if folder not in roots), place / DEFAULT_FOLDER, *roots]
    found += [*(around / DEFAULT_FOLDER for around in place.parents), *_children(place)]
    return next((folder for folder in found if _has_id(folder, instance_id)), None)


def is_remote(slug: str) -> bool:
    """Tell whether an instance is known here as one whose database is no local file."""
    return any(
        f"{store.owner}/{store.name}" == slug
        and ("://" in store.storage_root or str(store.db).startswith("postgres"))
        for store in _stored()
    )


def is_same(slug: str) -> bool:
    """Tell whether an instance is the connected one, whose name may be another since it moved."""
    from lamindb_setup import settings

    if slug == settings.instance.slug:
        return True
    instance_id = settings.instance._id.hex
    known = {f"{store.owner}/{store.name}": store.id for store in _stored()}
    if slug in known:
        return bool(known[slug] == instance_id)
    folder = Path(settings.instance.storage.root_as_str)
    return _has_id(folder, instance_id) and _mark_of(folder).get("instance_slug") == slug


def _children(place: Path) -> list[Path]:
    with suppress(OSError):
        return sorted(mark.parents[1] for mark in place.glob(f"*/{_MARK}"))
    return []


def _has_id(folder: Path, instance_id: str) -> bool:
    with suppress(OSError, ValueError, KeyError):
        return _is_complete(folder) and UUID(_mark_of(folder)["instance_id"]).hex == instance_id
    return False


def _roots_of(instance_id: str) -> list[str]:
    roots = [store.storage_root for store in _stored() if store.id == instance_id]
    return [root for root in roots if "://" not in root]


def _check_is_known(folder: Path) -> None:
    """Refuse to act on what an instance holds that came with a clone or an archive.

    Raises:
        InstanceError: This user has not used it before.
    """
    if not _is_complete(folder):
        return
    mark = _mark_of(folder)
    if UUID(mark["instance_id"]).hex not in _known_ids():
        raise InstanceError(
            f"{_relative(folder)} holds LaminDB instance {mark['instance_slug']}, which you have "
            "not used before: it may have come with a clone or an archive. If you trust it, name "
            f"it: --lamin.instance ./{_relative(folder)}"
        )


def _known_ids() -> set[str]:
    """Return the ids of the instances that this user has used on this machine."""
    return {store.id for store in _stored()}


def _stored() -> list[Any]:
    """Return what is kept of the instances that this user has used on this machine."""
    from lamindb_setup.core._settings_store import InstanceSettingsStore, settings_dir

    known = []
    for file in settings_dir.glob("instance--*--*.env"):
        with suppress(ValueError, KeyError, TypeError, OSError):  # of another version, or torn
            known.append(InstanceSettingsStore.from_env_file(file, "lamindb_instance_"))
    return known


def _mark_of(folder: Path) -> dict[str, str]:
    """Return what the file by which lamindb marks a storage says of its instance."""
    try:
        lines = (folder / _MARK).read_text(encoding="utf-8").splitlines()
        mark = dict(line.split("=", 1) for line in lines if "=" in line)
        UUID(mark["instance_id"])
        _owner, _name = mark["instance_slug"].split("/")
    except (KeyError, ValueError, OSError) as error:
        raise InstanceError(
            f"{folder / _MARK} does not say which LaminDB instance is in {folder}. Restore the "
            "file, or name another instance with --lamin.instance."
        ) from error
    return mark


def _creating(folder: Path) -> AbstractContextManager[None]:
    """Let one of the trainings that start at once in a new folder create its instance."""
    return taking_turns(f"create {folder}")


def _names_a_folder(instance: str) -> bool:
    if instance.startswith((".", "/", "~", os.sep)) or Path(instance).is_dir():
        return True
    # As its folder is called by default, and where that is gone.
    return instance == str(DEFAULT_FOLDER) and not any(s.name == instance for s in _stored())


def _connect_folder(folder: Path, create: bool) -> str:
    folder = Path(os.path.abspath(folder))
    with _creating(folder):
        if not _is_complete(folder):
            if not create:
                raise InstanceError(
                    f"There is no LaminDB instance in {folder}. Go to the folder of the project, "
                    "or name the instance."
                )
            _create(folder)
            console.say(f"created a local LaminDB instance in {_relative(folder)}")
        settings = _settings_of_folder(folder)
    _activate(settings)
    _follow_the_folder(folder)
    return str(settings.slug)


def _create(folder: Path) -> None:
    """Create a SQLite instance in its own process, for lamindb would reset Django in ours.

    The working directory of that process becomes the one in which ``import lamindb`` finds the
    instance: the project's folder for the default instance, else the instance's folder.
    """
    if folder.exists() and not folder.is_dir():
        raise InstanceError(f"{folder} is a file. A local LaminDB instance needs a folder.")
    if (folder / _MARK).exists():
        raise InstanceError(
            f"{folder} is marked as a LaminDB instance, and {folder / _DATABASE} is no database. "
            "Restore that file; or, if the instance never was in use, remove the folder; or name "
            "another one with --lamin.instance."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InstanceError(
            f"Cannot create a local LaminDB instance in {folder}: {error.strerror}. "
            "Name a folder you can write to with --lamin.instance."
        ) from error
    # lamindb refuses the home directory as the place of a project.
    in_project = folder == DEFAULT_FOLDER.absolute() and folder.parent != Path.home().resolve()
    environment = {k: v for k, v in os.environ.items() if k != ENVIRONMENT_VARIABLE}
    code = "import sys, lamindb_setup as s; s.init(storage=sys.argv[1], name=sys.argv[2])"
    done = subprocess.run(  # noqa: S603  our own interpreter and code
        [sys.executable, "-c", code, str(folder), _free_name(folder)],
        cwd=folder.parent if in_project else folder,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        reason = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise InstanceError(
            f"Cannot create a local LaminDB instance in {folder}: {''.join(reason)}. "
            "Name another folder with --lamin.instance."
        )


def _free_name(folder: Path) -> str:
    """Name an instance after its project, distinct from the others on this machine."""
    project = folder.parent.name if folder.name == DEFAULT_FOLDER.name else folder.name
    name = re.sub(r"[^a-z0-9._-]+", "-", project.lower()).strip("-.") or "lamindb"
    if name in {slug.split("/")[1] for slug in known_slugs()}:
        name += "-" + hashlib.sha256(str(folder).encode()).hexdigest()[:6]
    return name


def _settings_of_folder(folder: Path) -> Any:
    """Return the settings of a local instance; they are made anew for a folder from elsewhere."""
    from lamindb_setup import settings as setup_settings
    from lamindb_setup.core._settings_instance import InstanceSettings
    from lamindb_setup.core._settings_load import load_instance_settings
    from lamindb_setup.core._settings_storage import StorageSettings
    from lamindb_setup.core._settings_store import instance_settings_file

    mark = _mark_of(folder)
    owner, name = mark["instance_slug"].split("/")
    file = instance_settings_file(name, owner)
    if file.exists():
        settings = load_instance_settings(file)
        if settings.storage.root_as_str == folder.as_posix():
            return settings
        name = f"{name}-{hashlib.sha256(str(folder).encode()).hexdigest()[:6]}"
    settings = InstanceSettings(
        id=UUID(mark["instance_id"]),
        owner=owner,
        name=name,
        storage=StorageSettings(folder.as_posix()),
    )
    current = setup_settings._instance_settings
    settings._persist(write_to_disk=True, write_current_instance_file=False)
    setup_settings._instance_settings = current  # it is only known from here on, not connected
    return settings


def _follow_the_folder(folder: Path) -> None:
    """Let the database know where its storage lies, after the folder was moved or copied."""
    import lamindb as ln
    from lamindb_setup.core._settings_store import (
        local_current_instance_file,
        write_local_current_instance,
    )

    uid = (folder / _MARK).read_text(encoding="utf-8").splitlines()[0]
    elsewhere = ln.Storage.objects.filter(uid=uid).exclude(root=folder.as_posix())
    elsewhere.update(root=folder.as_posix())
    # `import lamindb` in the project shall find this instance, and not that of the old place.
    marker = local_current_instance_file(Path.cwd())
    slug = str(ln.setup.settings.instance.slug)
    if (
        folder == DEFAULT_FOLDER.absolute()
        and marker.exists()
        and marker.read_text(encoding="utf-8") != slug
    ):
        with suppress(OSError):
            write_local_current_instance(Path.cwd(), slug)


def _is_moved_or_copied() -> bool:
    """Tell whether the project was, so that its marker names the instance of the old place."""
    from lamindb_setup import settings

    here = DEFAULT_FOLDER.absolute()
    is_its_place = settings.instance.storage.root_as_str == here.as_posix()
    return not is_its_place and _has_id(here, settings.instance._id.hex)


def _connect_slug(identifier: str) -> str:
    from lamindb_setup import settings
    from lamindb_setup._connect_instance import _connect_instance
    from lamindb_setup.core._settings_load import load_instance_settings
    from lamindb_setup.core._settings_store import instance_settings_file
    from lamindb_setup.errors import InstanceNotFoundError

    owner, name = _owner_and_name(identifier)
    slug = f"{owner}/{name}"
    if settings.is_configured and settings.instance.slug == slug:
        _check_is_there(settings.instance)
        import lamindb  # noqa: F401  connects on import

        return slug
    cached = instance_settings_file(name, owner)
    try:
        instance = _connect_instance(owner, name)
    except InstanceNotFoundError as error:
        if not cached.exists():
            raise InstanceError(_not_found(slug)) from error
        instance = load_instance_settings(cached)
    except Exception as error:
        if not is_unreachable(error):
            raise
        if not cached.exists():
            raise UnreachableError(
                f"LaminDB instance {slug} is not known here, and LaminHub cannot be asked for it: "
                f"{error}.{did_you_mean(slug, known_slugs())}"
            ) from error
        warn_unreachable(error)
        instance = load_instance_settings(cached)
    _check_is_there(instance)
    _activate(instance)
    return slug


def _owner_and_name(identifier: str) -> tuple[str, str]:
    from lamindb_setup._connect_instance import get_owner_name_from_identifier

    try:
        owner, name = get_owner_name_from_identifier(identifier)
    except ValueError as error:
        raise InstanceError(
            f"--lamin.instance {redact_text(identifier)} is neither owner/name nor a folder."
        ) from error
    return owner, name


def _not_found(slug: str) -> str:
    known = known_slugs()
    hint = did_you_mean(slug, known) or (f" Known here: {', '.join(known)}." if known else "")
    return (
        f"LaminDB instance {slug} not found.{hint} "
        "Connect one with `lamin connect owner/name`, or name a folder for a local one."
    )


def known_slugs() -> list[str]:
    """Return the instances that were connected on this machine, owner/name each."""
    from lamindb_setup.core._settings_store import settings_dir

    files = settings_dir.glob("instance--*--*.env")
    return sorted("/".join(file.stem.split("--", 2)[1:]) for file in files)


def _activate(instance: Any) -> None:
    """Make an instance the current one of this process, leaving the user's default as it is."""
    from lamindb_setup import settings
    from lamindb_setup._init_instance import register_user

    if "lamindb" not in sys.modules:
        instance._persist(write_to_disk=False)  # then the import connects to this one at once
    import lamindb as ln

    current = settings.instance
    if settings.is_configured and (current._id, current.storage.root_as_str) == (
        instance._id,
        instance.storage.root_as_str,
    ):
        register_user(settings.user, update_user=False)
        return
    if ln.context.run is not None:
        raise InstanceError(
            f"Cannot switch to {instance.slug}: the script tracks a run in "
            f"{settings.instance.slug}. Leave out --lamin.instance or ln.track()."
        )
    instance._persist(write_to_disk=False)
    loaded, reason = instance._load_db()
    if not loaded:
        raise InstanceError(f"LaminDB instance {instance.slug} cannot be loaded: {reason}.")
    settings._branch = settings._space = None
    register_user(settings.user, update_user=False)


def _as_option(folder: Path) -> str:
    text = _relative(folder)
    return text if os.path.isabs(text) or text == str(DEFAULT_FOLDER) else os.path.join(".", text)


def _relative(folder: Path) -> str:
    return os.path.relpath(folder) if folder.is_relative_to(Path.cwd()) else str(folder)
