"""Whether a file is still what was saved: cheap while nothing has happened, by its content else."""

import hashlib
import os
import zipfile
from functools import cache
from pathlib import Path

_BLOCK_BYTES = 1 << 20
_PAGE_BYTES = 4096


def measure(path: Path) -> tuple[int, str]:
    """Return the size of a file, or of all files of a folder, and a stamp that tells changes.

    Two equal stamps are proof: nothing has written to the file, nor has the machine lost power.
    Another stamp proves nothing, for a copy has another one.
    """
    files = _files(path)
    stats = [file.lstat() for file in files]
    newest_ns = max((stat.st_mtime_ns for stat in stats), default=0)
    size_bytes = sum(stat.st_size for stat in stats)
    return size_bytes, f"{len(files)}-{newest_ns}-{path.lstat().st_ino}-{_boot()}"


def digest(path: Path) -> str:
    """Return a hash of the content of a file, or of a folder with the names in it."""
    if not path.is_dir():
        return _digest_of_file(path)
    whole = hashlib.sha256()
    for file in _files(path):
        whole.update(f"{file.relative_to(path).as_posix()}\0{_digest_of_file(file)}\n".encode())
    return whole.hexdigest()


def why_changed(path: Path, size_bytes: int, stamp: str, known_digest: str) -> str | None:
    """Say why a file is not what was saved; `None` if it is.

    Args:
        path: The file or folder.
        size_bytes: Its size when it was saved.
        stamp: Its stamp then.
        known_digest: The hash of its content then; empty if the process was killed before it
            could be computed. Then a copy, or what a power cut has left, has to be whole by itself.
    """
    size_now, stamp_now = measure(path)
    if size_now != size_bytes:
        return f"it had {size_bytes} bytes then and has {size_now} now"
    if _is_same(stamp, stamp_now):
        return None
    if known_digest:
        return None if digest(path) == known_digest else "its content is another one"
    if _is_written_over(stamp, stamp_now):
        return "it was written to since"
    torn = next((file for file in _files(path) if not _is_whole(file)), None)
    return None if torn is None else f"{torn.name} is torn"


def is_certainly_same(path: Path, size_bytes: int, stamp: str, known_digest: str) -> bool:
    """Tell whether a file is what was pinned, for sure: where its pin is gone.

    A hard link has the stamp of its pin; of a folder, whose pin is another folder of links, all but
    the number of the folder itself.
    """
    try:
        size_now, stamp_now = measure(path)
        if size_now != size_bytes:
            return False
        if stamp == stamp_now or (path.is_dir() and _without_inode(stamp, stamp_now)):
            return True
        return bool(known_digest) and digest(path) == known_digest
    except OSError:
        return False


def _without_inode(stamp: str, now: str) -> bool:
    parts = [text.split("-") for text in (stamp, now)]
    return all(len(part) == 4 for part in parts) and all(
        parts[0][i] == parts[1][i] for i in (0, 1, 3)
    )


def _is_same(stamp: str, now: str) -> bool:
    # Up to version 2 of the jobs, a stamp had its first two parts.
    return stamp == now or (stamp.count("-") == 1 and now.startswith(f"{stamp}-"))


def _is_written_over(stamp: str, now: str) -> bool:
    """Tell whether it is the same file in the same boot of the machine, and written to."""
    return stamp.count("-") > 1 and stamp.split("-", 2)[2] == now.split("-", 2)[2]


def _is_whole(file: Path) -> bool:
    """Tell whether a file is whole, as far as it says: archives have checksums, and are no zeros.

    Checkpoints of torch are zip archives; the shards of `torch.distributed.checkpoint` are several
    in a row.
    """
    with open(file, "rb") as content:
        start = content.read(_PAGE_BYTES)
    if start and not any(start):
        return False
    if not start.startswith(b"PK\x03\x04") or file.suffix == ".distcp":
        return True
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, EOFError, NotImplementedError):
        return False


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    return sorted(Path(place, name) for place, _, names in os.walk(path) for name in names)


def _digest_of_file(file: Path) -> str:
    whole = hashlib.sha256()
    with open(file, "rb", buffering=0) as content:
        while block := content.read(_BLOCK_BYTES):
            whole.update(block)
    return whole.hexdigest()


@cache
def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()[:8]
    except OSError:
        return ""
