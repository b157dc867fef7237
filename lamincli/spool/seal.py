"""The seal that only this user's own lamin-train can make, which tells its files from others'.

A clone, an archive or a shared project may hold files that look like ours. Only what bears the seal
is acted on. The key lies in ``~/.local/state/lamin-train/key``, for the user alone; the nodes of a
cluster share it with the home folder.

Source: HMAC, RFC 2104.
"""

import hashlib
import hmac
import json
import os
import secrets
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lamincli.folders import state_folder

FIELD = "seal"
KEY_VARIABLE = "LAMIN_TRAIN_SEAL_KEY"
"""Environment variable by which the processes of a job share a key that no home folder can keep."""
_KEY_BYTES = 32

_keys: dict[Path, bytes] = {}  # of this process, by their files


def sealed(content: Mapping[str, Any], about: str) -> dict[str, Any]:
    """Return content with its seal.

    Args:
        content: What JSON can hold; what it cannot becomes its text.
        about: What the content is about, as the name of its file: under another one it is not ours.
    """
    plain = json.loads(json.dumps(content, default=str))
    return {**plain, FIELD: _seal(plain, about)}


def is_ours(content: Mapping[str, Any], about: str) -> bool:
    """Tell whether this user's own lamin-train has sealed a content."""
    plain = {name: value for name, value in content.items() if name != FIELD}
    return hmac.compare_digest(str(content.get(FIELD)).encode(), _seal(plain, about).encode())


def _seal(plain: Mapping[str, Any], about: str) -> str:
    text = f"{about}\n{json.dumps(plain, sort_keys=True)}"
    return hmac.new(_key(), text.encode(), hashlib.sha256).hexdigest()


def _key() -> bytes:
    place = state_folder() / "key"
    if place not in _keys:
        _keys[place] = _kept(place) or _passing()
    return _keys[place]


def _kept(place: Path) -> bytes | None:
    """Return the key of this user, made if there is none; `None` where no home can keep one."""
    with suppress(OSError):
        key = _read(place)
        if key is None:
            _make(place)
            key = _read(place)
        return key
    return None


def _passing() -> bytes:
    """Return a key for this process, and those that it starts."""
    with suppress(KeyError, ValueError):
        return bytes.fromhex(os.environ[KEY_VARIABLE])
    key = secrets.token_bytes(_KEY_BYTES)
    os.environ[KEY_VARIABLE] = key.hex()
    return key


def _read(place: Path) -> bytes | None:
    """Read the key; one that others could read, or that is no file of its own, goes."""
    try:
        handle = os.open(place, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    except FileNotFoundError:
        return None
    with open(handle, "rb") as file:
        key = file.read(_KEY_BYTES + 1)
    if len(key) == _KEY_BYTES and not _was_exposed(place):
        return key
    place.unlink()
    return None


def _was_exposed(place: Path) -> bool:
    def is_open() -> bool:
        return os.name != "nt" and bool(stat.S_IMODE(place.stat().st_mode) & 0o077)

    if not is_open():
        return False
    place.chmod(0o600)
    return not is_open()  # else a file system without modes, whose folder is what protects it


def _make(place: Path) -> None:
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = place.with_name(f".key-{os.getpid()}-{secrets.token_hex(4)}")
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(handle, "wb") as file:
            file.write(secrets.token_bytes(_KEY_BYTES))
            file.flush()
            os.fsync(handle)
        try:
            os.link(part, place)  # the first of several processes wins
        except FileExistsError:
            return
        except OSError:  # no links here
            os.replace(part, place)
    finally:
        part.unlink(missing_ok=True)
