"""Tell outages, which pass, from errors that need somebody to act. By type, never by text."""

import errno
import socket
import sqlite3
import ssl
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

from django.db import (
    DatabaseError,
    DataError,
    IntegrityError,
    InterfaceError,
    OperationalError,
    connection,
    connections,
)

from lamincli.errors import InstanceError, UnreachableError, first_line
from lamincli.hub import is_unreachable
from lamincli.registry.base import Verdict

_NEEDS_SOMEBODY = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.EINVAL}
_SQLITE_NEEDS_SOMEBODY = (
    {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_PERM}
    if (
        hasattr(sqlite3, "SQLITE_READONLY")  # Python 3.11
    )
    else set()
)
_SQLITE_ERROR = 1  # of the statement: no such table, no such column
_POSTGRES_OTHER_TABLES = ("42P01", "42703")  # no such table, no such column
_SQLITE_MOVED = 1032  # SQLITE_READONLY_DBMOVED: the file is away, as with the disk that it is on
_POSTGRES_NEEDS_SOMEBODY = ("28", "3D", "42")  # credentials, no such database, no such table
_STORE_NEEDS_SOMEBODY = {
    "AccessDenied",
    "AllAccessDisabled",
    "InvalidAccessKeyId",
    "InvalidBucketName",
    "NoSuchBucket",
    "SignatureDoesNotMatch",
}
_ANSWERS_WITHIN_S = 3.0
_SSL_REQUEST, _PROTOCOL_3 = 80877103, 196608
# s3fs makes errors of the file system of these, which would say that somebody must act.
_STORE_PASSES = {
    "BadDigest",
    "ExpiredToken",
    "IncompleteBody",
    "InvalidPart",
    "NoSuchUpload",
    "RequestTimeTooSkewed",
}
_MEANWHILE = (
    "To train meanwhile: --lamin.offline keeps the run for later, --lamin.track false leaves it "
    "out."
)
_NETWORK_LIBRARIES = {"aiohttp", "aiobotocore", "botocore", "gcsfs", "httpcore", "httpx", "urllib3"}


def verdict(error: BaseException) -> Verdict:
    """Say what an error of a database or a storage calls for.

    Locked, unreachable, reset, throttled and full are outages. Permission denied, read-only and
    what we do not know need somebody to act. Two processes that create the same are a race.
    """
    lamindb = sys.modules.get("lamindb.errors")  # whoever raised it has imported it
    if isinstance(error, IntegrityError) or (lamindb and isinstance(error, lamindb.IntegrityError)):
        return "race"
    if isinstance(error, InterfaceError):
        return "retry"
    if isinstance(error, OperationalError):
        cause = error.__cause__
        code = getattr(cause, "sqlite_errorcode", None)
        if code is not None and code != _SQLITE_MOVED and code & 0xFF in _SQLITE_NEEDS_SOMEBODY:
            return "park"
        return "park" if _state(error).startswith(_POSTGRES_NEEDS_SOMEBODY) else "retry"
    if _store_code(error) in _STORE_PASSES:
        return "retry"
    if isinstance(error, OSError):
        needs_somebody = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
        if isinstance(error, needs_somebody) or error.errno in _NEEDS_SOMEBODY:
            return "park"
        return "retry"
    if _is_of_network(error):
        missing = type(error).__name__ in {"NoCredentialsError", "PartialCredentialsError"}
        return "park" if missing or _store_code(error) in _STORE_NEEDS_SOMEBODY else "retry"
    return "park"


def _is_of_network(error: BaseException) -> bool:
    return type(error).__module__.split(".")[0] in _NETWORK_LIBRARIES


def _state(error: BaseException) -> str:
    """Return the SQLSTATE of an error of PostgreSQL."""
    cause = error.__cause__
    return str(getattr(cause, "pgcode", None) or getattr(cause, "sqlstate", None) or "")


def _store_code(error: BaseException) -> str | None:
    """Return the code of an answer of S3 that is an error, or its cause."""
    for one in (error, error.__cause__):
        answer = getattr(one, "response", None)
        if isinstance(answer, dict):
            code: str | None = answer.get("Error", {}).get("Code")
            return code
    return None


def give_back_connections() -> None:
    """Close the connections of this thread, outside a transaction; the next query opens new ones.

    So a job holds one connection at most, and none while nothing is published. One that was lost
    meanwhile is forgotten likewise, with which Django would go on.
    """
    for opened in connections.all(initialized_only=True):
        if not opened.in_atomic_block:
            opened.close()


def with_new_connection(act: Callable[[], object]) -> None:
    """Do what asks the database; once more if the connection was lost since it was used."""
    try:
        act()
    except (OperationalError, InterfaceError):
        if connection.connection is None or connection.is_usable():
            raise
        give_back_connections()
        act()


@contextmanager
def reaching(slug: str) -> Iterator[None]:
    """Say what is wrong where an instance cannot be connected, and whether that passes.

    Raises:
        UnreachableError: It cannot be reached for now: its server, its disk, or its hub.
        InstanceError: Its server can be reached, and refuses.
    """
    try:
        with asking(slug):
            yield
    except Exception as error:
        if isinstance(error, InstanceError) or not is_unreachable(error):
            raise
        raise UnreachableError(
            f"LaminHub cannot be asked for LaminDB instance {slug}: {first_line(error)}."
        ) from error


@contextmanager
def asking(slug: str) -> Iterator[None]:
    """Say likewise what is wrong with the database of an instance.

    Raises:
        UnreachableError: As `reaching`.
        InstanceError: Likewise.
    """
    try:
        yield
    except (DatabaseError, InterfaceError) as error:
        if isinstance(error, (IntegrityError, DataError)):
            raise
        is_server = connection.vendor == "postgresql"
        about = f"LaminDB instance {slug} cannot be"
        if verdict(error) == "park" or (is_server and _refuses()):
            raise InstanceError(
                f"{about} used: {first_line(error)}. {_mend(error)} {_MEANWHILE}"
            ) from error
        reached = ("reached", "Start its database")
        verb, mend = reached if is_server else ("written", "See to its disk")
        raise UnreachableError(
            f"{about} {verb}: {first_line(error)}. {mend}, or train without a record: "
            "--lamin.track false."
        ) from error


@contextmanager
def storing(slug: str) -> Iterator[None]:
    """Say likewise what is wrong with the storage of an instance.

    Raises:
        UnreachableError: It cannot be written for now: it is away, or full.
        InstanceError: It refuses.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, OSError) and not _is_of_network(error):
            raise
        about = f"The storage of LaminDB instance {slug} cannot be written: {first_line(error)}."
        if verdict(error) == "retry":
            mend = "See to it, or train without a record: --lamin.track false."
            raise UnreachableError(f"{about} {mend}") from error
        mend = f"See to its address and its permissions. {_MEANWHILE}"
        raise InstanceError(f"{about} {mend}") from error


def _mend(error: BaseException) -> str:
    """Say what helps against a database that refuses."""
    is_sqlite = connection.vendor == "sqlite"
    place = f" {connection.settings_dict['NAME']}" if is_sqlite else ""
    if is_sqlite and type(error) is DatabaseError:
        return (
            f"The file{place} is damaged. Restore it from a backup, or name another instance with "
            "--lamin.instance."
        )
    code = getattr(error.__cause__, "sqlite_errorcode", 0) & 0xFF
    if code == _SQLITE_ERROR or _state(error) in _POSTGRES_OTHER_TABLES:
        return (
            f"The database{place} does not have the tables of lamindb {version('lamindb')}. If it "
            "is of an earlier version, migrate it: lamin migrate deploy."
        )
    return f"See to the address, the credentials and the permissions of its database{place}."


def _refuses() -> bool:
    """Tell whether PostgreSQL can be reached and does not let us in, as with a wrong password.

    libpq gives no code where connecting fails, so the server is asked itself. One that is starting,
    or has no connection left, is away.
    """
    if connection.connection is not None and connection.is_usable():
        return False
    code = _answer_of_postgres(connection.settings_dict)
    if code != "R":
        return code.startswith(_POSTGRES_NEEDS_SOMEBODY)
    try:
        connection.close()
        connection.ensure_connection()  # it would have let us in, but for the password
    except OperationalError:
        return True
    return False


def _answer_of_postgres(settings: Any) -> str:
    """Return the SQLSTATE of a refusal, ``R`` for a request to log in, else an empty string.

    Source: Frontend/Backend Protocol 3.0, Start-up; documentation of PostgreSQL.
    """
    words = ("user", settings["USER"], "database", settings["NAME"])
    start = b"".join(f"{word}\0".encode() for word in words) + b"\0"
    host, port = settings["HOST"] or "localhost", int(settings["PORT"] or 5432)
    try:
        with socket.create_connection((host, port), timeout=_ANSWERS_WITHIN_S) as plain:
            plain.sendall(struct.pack("!ii", 8, _SSL_REQUEST))
            server = plain
            if plain.recv(1) == b"S":
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
                server = context.wrap_socket(plain)  # no secret is sent
            server.sendall(struct.pack("!ii", 8 + len(start), _PROTOCOL_3) + start)
            answer = server.recv(4096)
    except (OSError, ValueError):
        return ""
    if answer[:1] != b"E":
        return answer[:1].decode("ascii", "replace")
    fields = answer[5:].split(b"\0")
    return next((field[1:].decode() for field in fields if field[:1] == b"C"), "")
