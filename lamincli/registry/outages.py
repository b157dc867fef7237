"""Tell outages, which pass, from errors that need somebody to act. By type, never by text."""

import errno
import sqlite3
import sys

from django.db import IntegrityError, InterfaceError, OperationalError, connections

from lamincli.registry.base import Verdict

_NEEDS_SOMEBODY = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.EINVAL}
_SQLITE_NEEDS_SOMEBODY = (
    {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_PERM}
    if (
        hasattr(sqlite3, "SQLITE_READONLY")  # Python 3.11
    )
    else set()
)
_POSTGRES_NEEDS_SOMEBODY = ("28", "3D", "42")  # credentials, no such database, no such table
_STORE_NEEDS_SOMEBODY = {
    "AccessDenied",
    "AllAccessDisabled",
    "InvalidAccessKeyId",
    "InvalidBucketName",
    "NoSuchBucket",
    "SignatureDoesNotMatch",
}
# s3fs makes errors of the file system of these, which would say that somebody must act.
_STORE_PASSES = {
    "BadDigest",
    "ExpiredToken",
    "IncompleteBody",
    "InvalidPart",
    "NoSuchUpload",
    "RequestTimeTooSkewed",
}
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
        if code is not None and code & 0xFF in _SQLITE_NEEDS_SOMEBODY:
            return "park"
        state = getattr(cause, "pgcode", None) or getattr(cause, "sqlstate", None) or ""
        return "park" if state.startswith(_POSTGRES_NEEDS_SOMEBODY) else "retry"
    if _store_code(error) in _STORE_PASSES:
        return "retry"
    if isinstance(error, OSError):
        needs_somebody = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
        if isinstance(error, needs_somebody) or error.errno in _NEEDS_SOMEBODY:
            return "park"
        return "retry"
    if type(error).__module__.split(".")[0] in _NETWORK_LIBRARIES:
        missing = type(error).__name__ in {"NoCredentialsError", "PartialCredentialsError"}
        return "park" if missing or _store_code(error) in _STORE_NEEDS_SOMEBODY else "retry"
    return "park"


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
    for connection in connections.all(initialized_only=True):
        if not connection.in_atomic_block:
            connection.close()
