"""A file behind a URL, brought onto this machine."""

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fsspec.callbacks import Callback

from lamincli import console
from lamincli.errors import UsageError, first_line

_MOST_CHARACTERS_OF_NAME = 200


def is_url(path: Any) -> bool:
    """Tell whether fsspec, and not the operating system, knows a path."""
    return isinstance(path, str) and "://" in path


def fetch(url: str, folder: Path) -> Path:
    """Bring a file into a folder; one that is on this machine is used where it lies.

    Args:
        url: What fsspec understands: ``https://…``, ``s3://…``, ``file:///…``.
        folder: A folder that holds nothing else.

    Raises:
        UsageError: It cannot be read, or is no file.
    """
    from fsspec.core import url_to_fs
    from fsspec.implementations.local import LocalFileSystem

    try:
        files, path = url_to_fs(url)
        if isinstance(files, LocalFileSystem):
            return Path(path)
        target = folder / _name(url)
        with console.downloading(target.name) as bar:
            about = files.info(path)
            if about.get("type") == "directory":
                raise UsageError("it is a folder. Name the file in it.")
            bar.start(about.get("size") or 0)
            files.get_file(path, str(target), callback=Advance(bar))
    except UsageError:
        raise
    except Exception as error:  # of many libraries
        raise UsageError(_why_not(error)) from error
    return target


def _why_not(error: BaseException) -> str:
    if isinstance(error, FileNotFoundError):
        # fsspec says so of every HTTP error, and of a server that does not answer.
        if error.__cause__ is None or getattr(error.__cause__, "status", None) == 404:
            return "there is no such file."
        error = error.__cause__
    return f"it cannot be read: {first_line(error)}. Try again, or download it and name the file."


def _name(url: str) -> str:
    name = urlsplit(url).path.rpartition("/")[2]
    is_usable = name not in ("", ".", "..") and len(name) <= _MOST_CHARACTERS_OF_NAME
    return name if is_usable and "\0" not in name else "checkpoint.ckpt"


class Advance(Callback):
    """Hand the progress of fsspec to our bar."""

    def __init__(self, bar: Any) -> None:
        super().__init__()
        self._bar = bar

    def relative_update(self, inc: int = 1) -> None:
        """Show that so many bytes more have arrived."""
        self._bar.advance(inc)
