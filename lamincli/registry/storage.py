"""Put a file into a storage, whole or not at all, and say what it is."""

import hashlib
import os
import random
import re
import shutil
import sys
from functools import cache
from io import BufferedWriter
from pathlib import Path
from typing import Any

from lamindb_setup.core.hashing import HASH_LENGTH, hash_from_hashes_list, to_b64_str
from lamindb_setup.core.upath import LocalPathClasses

from lamincli.spool.disk import fsync

_BLOCK_BYTES = 1 << 20
_STEP_BYTES = 16 << 20
_PART_BYTES = 8 << 20
_WHOLE_HASH_BYTES = 50 << 20
_FICLONE = 0x40049409  # linux/fs.h
_PART = ".part"
_MD5_TAG = re.compile(r"[0-9a-f]{32}(-[0-9]+)?")


def describe(path: Path) -> dict[str, Any]:
    """Return size, hash and kind of hash of a file or folder, as lamindb computes them.

    lamindb reads up to 100 MB into memory for it; this reads block by block.

    Source: lamindb_setup.core.hashing.hash_file and hash_dir.
    """
    if not path.is_dir():
        size, digest, kind = _hash_file(path)
        return {"size": size, "hash": digest, "hash_type": kind}
    parts = [_hash_file(file) for file in path.rglob("*") if file.is_file()]
    return {
        "size": sum(size for size, _, _ in parts),
        "hash": hash_from_hashes_list(digest for _, digest, _ in parts),
        "hash_type": "md5-d",
        "n_files": len(parts),
    }


def store(source: Path, target: Any) -> None:
    """Put a file or folder where its artifact is to lie.

    On the same file system a local file is cloned where the file system can (Btrfs, XFS), else
    linked if the pin is its only name, else copied. A link to a file that Lightning keeps would be
    free too, and unsafe: whoever writes over the checkpoint in place, as `torch.save` does, would
    write over the artifact. Repeated after an interruption, it leaves the one complete file.

    Args:
        source: The local file or folder.
        target: A local path, or a `UPath` of a remote storage.

    Durability: a local file is on the disk on return.
    """
    if not isinstance(target, LocalPathClasses):
        _upload(source, target)
        return
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + _PART)
    _remove(part)
    if target.exists() and os.path.samefile(source, target):
        return
    if source.is_dir():
        shutil.copytree(source, part, copy_function=_copy)
        _remove(target)
    elif source.stat().st_nlink == 1 and _is_same_device(source, part):
        os.link(source, part)
        fsync(part)
    else:
        _copy(source, part)
    os.replace(part, target)
    fsync(target.parent)


def discard(target: Any) -> None:
    """Remove what an interrupted `store` may have left."""
    if isinstance(target, LocalPathClasses):
        _remove(target.with_name(target.name + _PART))
        _remove(target)
    elif target.exists():
        target.rmdir() if target.is_dir() else target.unlink()


@cache
def draw_pauses_apart() -> None:
    """Let the S3 client draw how long it waits before it tries again from a generator of its own.

    Its draws would part two trainings of the same seed that use Python's generator.
    """
    from botocore import retryhandler

    retryhandler.random = random.Random()  # noqa: S311  a pause is no secret


def _upload(source: Path, target: Any) -> None:
    files = [file for file in source.rglob("*") if file.is_file()] if source.is_dir() else [source]
    options: dict[str, Any] = {}
    if target.protocol == "s3":
        # s3fs would hold ten parts of 50 MB in memory; S3 takes 10,000 parts.
        part = max(_PART_BYTES, *(file.stat().st_size // 9_999 for file in files))
        options = {"chunksize": part, "max_concurrency": 4}
    # Not shown: the progress of the publisher is.
    target.upload_from(source, create_folder=False, print_progress=False, **options)
    target.fs.invalidate_cache()
    root = target.path.rstrip("/")
    arrived = target.fs.find(root, detail=True)
    for file in files:
        inside = "" if file == source else f"/{file.relative_to(source).as_posix()}"
        about = arrived.get(root + inside) or {"size": 0}
        size = file.stat().st_size
        if about["size"] != size:
            raise ConnectionError(f"{target}{inside} has {about['size']} of {size} bytes")
        tag = str(about.get("ETag", "")).strip('"')
        is_other = _MD5_TAG.fullmatch(tag) and tag != _tag(file, options["chunksize"])
        if is_other and not _is_encrypted(target, root + inside):
            raise ConnectionError(f"{target}{inside} is not what was uploaded")


def _tag(file: Path, part_bytes: int) -> str:
    """Return the tag that S3 gives to a file: its MD5, or that of the MD5s of its parts.

    Source: s3fs.core.S3FileSystem._put_file, for which files are uploaded in parts.
    """
    size = file.stat().st_size
    with open(file, "rb") as content:
        if size < 2 * part_bytes:
            return _digest(content, size, "md5").hex()
        digests = [_digest(content, part_bytes, "md5") for _ in range(-(-size // part_bytes))]
    return f"{hashlib.md5(b''.join(digests), usedforsecurity=False).hexdigest()}-{len(digests)}"


def _is_encrypted(target: Any, path: str) -> bool:
    """Tell whether S3 has encrypted a file with a key by which its tag is no MD5 of the content."""
    bucket, _, key = path.partition("/")
    head = target.fs.call_s3("head_object", Bucket=bucket, Key=key)
    is_by_key = str(head.get("ServerSideEncryption", "")).startswith("aws:kms")
    return is_by_key or "SSECustomerAlgorithm" in head


def _hash_file(path: Path) -> tuple[int, str, str]:
    size = path.stat().st_size
    with open(path, "rb") as file:
        if size <= _WHOLE_HASH_BYTES:
            return size, _short(_digest(file, size, "md5")), "md5"
        first = _digest(file, _WHOLE_HASH_BYTES, "sha1")
        file.seek(-_WHOLE_HASH_BYTES, os.SEEK_END)
        last = _digest(file, _WHOLE_HASH_BYTES, "sha1")
    return size, _short(hashlib.sha1(first + last).digest()), "sha1-fl"  # noqa: S324  no secret


def _digest(file: Any, size: int, algorithm: str) -> bytes:
    digest = hashlib.new(algorithm)
    while size > 0 and (block := file.read(min(size, _BLOCK_BYTES))):
        digest.update(block)
        size -= len(block)
    return digest.digest()


def _short(digest: bytes) -> str:
    return str(to_b64_str(digest))[:HASH_LENGTH]


def _copy(source: str | Path, target: str | Path) -> None:
    """Clone or copy a file to the disk, in steps that leave the page cache to the training."""
    if _clone(Path(source), Path(target)):
        return
    block = memoryview(bytearray(_BLOCK_BYTES))
    # Buffered, for an unbuffered write may write a part and say so when the disk is nearly full.
    with open(source, "rb", buffering=0) as read, open(target, "wb") as written:
        done = 0
        while size := read.readinto(block):
            written.write(block[:size])
            done += size
            if done % _STEP_BYTES < size:
                _write_out(written)
        _write_out(written)


def _write_out(file: BufferedWriter) -> None:
    file.flush()
    handle = file.fileno()
    os.fsync(handle)
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)


def _clone(source: Path, target: Path) -> bool:
    """Clone a file, sharing its blocks until one of the two is written; or do nothing."""
    if sys.platform != "linux":
        return False
    import fcntl

    try:
        with open(source, "rb") as original, open(target, "wb") as clone:
            fcntl.ioctl(clone.fileno(), _FICLONE, original.fileno())
        return True
    except OSError:
        return False


def _is_same_device(source: Path, target: Path) -> bool:
    return source.stat().st_dev == target.parent.stat().st_dev


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
