"""Files of artifacts on this machine: in place where the storage is mounted, else downloaded once.

A download lies in the cache of lamindb in a folder named by the artifact's uid, so that what is
there is never another version. It gets its name when it is complete and is what was registered.
"""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lamindb_setup.core.upath import LocalPathClasses

from lamincli import console
from lamincli.errors import LaminReferenceError, first_line
from lamincli.folders import Scratch, remove_left, taking_turns
from lamincli.registry.outages import verdict
from lamincli.registry.storage import describe
from lamincli.remote_file import Advance

_ATTEMPTS = 5
_VERIFIED = {"md5", "sha1-fl", "md5-d"}


def fetch(artifact: Any, subpath: str = "") -> Path:
    """Return an artifact as a local file or folder.

    Args:
        artifact: The artifact, of any instance.
        subpath: A path within it, if it is a folder.

    Raises:
        LaminReferenceError: It is not in its storage, cannot be downloaded, or is not any more what
            was registered.
    """
    place = artifact.path / subpath if subpath else artifact.path
    if isinstance(place, LocalPathClasses):
        if not place.exists():
            raise LaminReferenceError(
                f"artifact {artifact.uid}: {place} is not there. Is it mounted?"
            )
        return Path(place)
    whole = _cached(artifact.uid) / _name(artifact)
    target = whole / subpath if subpath else whole
    if not target.resolve().is_relative_to(whole.resolve()):
        raise LaminReferenceError(f"artifact {artifact.uid}: {subpath} leads out of it.")
    if not _is_here(target, subpath):
        with taking_turns(f"get {artifact.uid}"):  # others of this machine wait, and find it
            if not _is_here(target, subpath):
                _download(artifact, place, target, is_whole=not subpath)
    return target


def write_cached(name: str, text: str) -> Path:
    """Write a small file into the cache and return its path."""
    path = _cached("records") / name
    with _part_of(path) as part:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    return path


def _cached(folder: str) -> Path:
    import lamindb as ln

    return Path(ln.setup.settings.cache_dir) / "lamin-train" / folder


def _name(artifact: Any) -> str:
    """Return a file name for an artifact; a key from a database never leads anywhere else."""
    name = str(artifact.key or "").rstrip("/").rpartition("/")[2]
    return f"{artifact.uid}{artifact.suffix}" if name in ("", ".", "..") or "\\" in name else name


def _is_here(target: Path, subpath: str) -> bool:
    """Tell whether the cache has it. A file that has its name is complete; a folder has a mark."""
    whole = target.parents[len(Path(subpath).parts) - 1] if subpath else target
    return target.is_file() or (target.exists() and any(_mark(p).exists() for p in (target, whole)))


def _mark(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.complete")


def _download(artifact: Any, place: Any, target: Path, is_whole: bool) -> None:
    label = str(artifact.key or artifact.uid).rpartition("/")[2]
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            with console.downloading(label) as bar:
                _download_once(place, target, bar)
            break
        except FileNotFoundError as error:
            raise LaminReferenceError(f"artifact {artifact.uid}: {place} is not there.") from error
        except Exception as error:
            if attempt == _ATTEMPTS or verdict(error) == "park":
                raise LaminReferenceError(
                    f"artifact {artifact.uid} cannot be downloaded: {first_line(error)}"
                ) from error
            console.warn(f"{label}: {first_line(error)}; trying again")
            time.sleep(min(2.0**attempt / 4, 10))
    if not is_whole or artifact._hash_type not in _VERIFIED:
        return
    if (found := describe(target)["hash"]) != artifact.hash:
        shutil.rmtree(target) if target.is_dir() else target.unlink()
        _mark(target).unlink(missing_ok=True)
        raise LaminReferenceError(
            f"artifact {artifact.uid}: what lies at {place} has the hash {found} and was "
            f"registered with {artifact.hash}. Something wrote over it."
        )


def _download_once(place: Any, target: Path, bar: Any) -> None:
    """Get a file, or the files of a folder that are not here yet."""
    files = place.fs
    files.invalidate_cache()
    root = place.path.rstrip("/")
    found = files.find(root, detail=True)
    if not found:
        raise FileNotFoundError(place)
    is_file = list(found) == [root]
    wanted = {}
    for remote, about in found.items():
        local = target if is_file else target / remote[len(root) :].lstrip("/")
        if not local.resolve().is_relative_to(target.resolve()):
            raise LaminReferenceError(f"{remote} leads out of {place}.")
        if not (local.is_file() and local.stat().st_size == about["size"]):
            wanted[remote] = (local, about["size"])
    bar.start(sum(size for _, size in wanted.values()))
    for remote, (local, size) in wanted.items():
        with _part_of(local) as part:
            files.get_file(remote, str(part), callback=Advance(bar))
            if (arrived := part.stat().st_size) != size:
                raise ConnectionError(f"{arrived} of {size} bytes of {remote} arrived")
            part.replace(local)
    if not is_file:
        _mark(target).touch()


@contextmanager
def _part_of(path: Path) -> Iterator[Path]:
    """Yield where a file of the cache is written before it gets its name, in a folder of its own.

    What a killed process has left there, the next one removes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = _cached("parts")
    remove_left(parts)
    with Scratch("part", within=parts) as folder:
        yield folder / path.name
