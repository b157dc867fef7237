"""``lamin-train doctor``: is everything in place, and are all runs closed that have ended?"""

import argparse
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from lamincli import __version__, console
from lamincli.errors import InstanceError
from lamincli.instance import DEFAULT_FOLDER, connected

_PACKAGES = ("lightning", "jsonargparse", "lamindb", "torch")


def main(words: Sequence[str]) -> int:
    """Check, mend what can be mended, and report.

    Args:
        words: The words after ``doctor``.

    Returns:
        0 if all is well, else 1.
    """
    parser = argparse.ArgumentParser(
        prog="lamin-train doctor",
        description="Check versions, instance and storage, and close the runs of this machine "
        "whose process is gone.",
    )
    parser.add_argument("--instance", help="owner/name, or a folder for a local instance")
    options = parser.parse_args(words)
    versions = ", ".join(f"{name} {_version(name)}" for name in _PACKAGES)
    console.say(f"lamin-train {__version__} on Python {platform.python_version()}: {versions}")
    try:
        return _check_instance(options.instance)
    except InstanceError as error:
        console.fail(str(error))
    except Exception as error:
        console.fail(f"the instance cannot be used: {type(error).__name__}: {error}")
    return 1


def _check_instance(instance: str | None) -> int:
    from lamindb_setup import settings

    if instance is None and not settings.is_configured and not DEFAULT_FOLDER.exists():
        console.say(f"no instance connected; a training creates a local one in {DEFAULT_FOLDER}")
        return 0
    with connected(instance, create=False) as slug:
        import lamindb as ln

        from lamincli.tracking import close_gone_runs

        console.say(f"instance {slug}: {ln.Run.filter().count()} runs, {_where(ln)}")
        storage = ln.settings.storage
        if unwritable := _why_unwritable(storage.root):
            console.fail(f"storage {storage.root_as_str} cannot be written: {unwritable}")
        if not close_gone_runs():
            console.say("no run to close")
    return 1 if unwritable else 0


def _where(ln: Any) -> str:
    return f"{ln.setup.settings.instance.dialect}, storage {ln.settings.storage.root_as_str}"


def _why_unwritable(root: Any) -> str | None:
    probe = root / ".lamindb" / f"lamin-train-doctor-{platform.node()}"
    try:
        probe.write_text("written by lamin-train doctor")
        probe.unlink()
    except Exception as error:  # every storage has its own kinds of errors
        return f"{type(error).__name__}: {error}"
    return None


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"
