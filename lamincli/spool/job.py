"""The intent to publish, as one JSON file that needs no trainer to be understood."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from lamincli.errors import SpoolCorruptError, SpoolVersionError

SCHEMA_VERSION = 3
"""Version of the job files. One that is newer is parked; every older one stays readable."""

Action = Literal["begin", "save", "remove", "annotate", "close"]
_ACTIONS: tuple[Action, ...] = get_args(Action)
_NAMES = ("run", "uid", "storage", "kind")  # files and folders are named after them
_NAME = re.compile(r"[A-Za-z0-9_-]*")


@dataclass(frozen=True)
class Job:
    """What is to be done in LaminDB, for one file or one run.

    Args:
        action: ``begin`` the run, ``save`` a file as an artifact, ``remove`` the artifact of a key,
            ``annotate`` the run with feature values, ``close`` the run.
        run: Uid of the run; empty where none is tracked.
        instance: The LaminDB instance, owner/name; the folder of a local one that was not there.
        instance_id: Its id, in hexadecimal; empty where it was not known.
        at: When the job was made, ISO 8601 in UTC.
        storage: Uid of the storage in which artifacts are put; empty for the default one.
        uid: Uid of the artifact to be, so that publishing twice makes one artifact.
        kind: ``checkpoint``, ``config``, ``hparams`` or ``predictions``.
        key: Key of the artifact.
        description: Description of the artifact.
        artifact_kind: Kind of the artifact in LaminDB: ``model``, ``config`` or ``dataset``.
        key_is_virtual: Whether LaminDB chooses the file name in its storage.
        is_input: Whether the artifact is an input of the run; else it is an output.
        local_path: The path to which the file was saved; a URL where it is registered in place.
        pin: The file to publish; relative to the spool, absolute where it lies beside the
            checkpoint, empty for a file that is registered in place.
        size_bytes: Size of the file, of all files of a folder.
        stamp: Changes when the pinned content is written over, copied, or may have been lost.
        digest: Hash of the content, by which a copy is known; empty until it is computed.
        project: The folder of the project when the job was made; it may have moved since.
        callback: Which callback's checkpoint this is; flags and ranks are shared within it.
        is_best: Whether it was the best checkpoint when it was saved.
        mode: ``min`` or ``max``, which of the scores is the best.
        features: Uids of features and their values, for the artifact or the run.
        named: Likewise by name, where the uids were not known: those that the user ``wanted``, of
            which none may be missing, those of ``lightning``, and ``hparams``.
        notes: What else the artifact's `extra_data` shall hold: monitor, score and step. What a
            run is begun and closed with.
        status: How the run ended, for ``close``.
        doomed: Uids of artifacts that are being deleted, and the places of their files.
    """

    action: Action
    run: str
    instance: str
    instance_id: str
    at: str
    storage: str = ""
    uid: str = ""
    kind: str = "checkpoint"
    key: str = ""
    description: str = ""
    artifact_kind: str = ""
    key_is_virtual: bool = True
    is_input: bool = False
    local_path: str = ""
    pin: str = ""
    size_bytes: int = 0
    stamp: str = ""
    digest: str = ""
    project: str = ""
    callback: str = ""
    is_best: bool = False
    mode: str = "min"
    features: dict[str, Any] = field(default_factory=dict)
    named: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    status: str = ""
    doomed: dict[str, str] = field(default_factory=dict)

    @property
    def is_in_place(self) -> bool:
        """Whether the file is registered where it lies, and not stored a second time."""
        return "://" in self.local_path

    def to_dict(self) -> dict[str, Any]:
        """Return the job as the content of its file."""
        return {"version": SCHEMA_VERSION, **asdict(self)}

    def to_json(self) -> str:
        """Return the job as text."""
        # What JSON does not know, as a date, becomes its text.
        return json.dumps(self.to_dict(), indent=1, default=str)

    @classmethod
    def from_json(cls, text: str) -> "Job":
        """Read the text of a job file; raises as `content_of` and `from_dict` do."""
        return cls.from_dict(content_of(text))

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Job":
        """Read the content of a job file.

        Raises:
            SpoolCorruptError: It is no job.
            SpoolVersionError: It was written by a newer lamin-train.
        """
        content = dict(content)
        if not isinstance(content.get("version"), int):
            raise SpoolCorruptError("it is no job file: it has no version")
        if content.pop("version") > SCHEMA_VERSION:
            raise SpoolVersionError("it was written by a newer lamin-train; upgrade and sync again")
        known = {f.name for f in fields(cls)}
        if unknown := set(content) - known:
            raise SpoolCorruptError(f"it has unknown fields: {', '.join(sorted(unknown))}")
        try:
            job = cls(**content)
        except TypeError as error:
            raise SpoolCorruptError(f"it is incomplete: {error}") from error
        blank = cls("save", "", "", "", "")
        for name in known:
            if type(getattr(job, name)) is not type(getattr(blank, name)):
                raise SpoolCorruptError(f"its {name} is {getattr(job, name)!r}")
        if job.action not in _ACTIONS:
            raise SpoolCorruptError(f"its action is {job.action!r}")
        for name in _NAMES:
            if not _NAME.fullmatch(value := getattr(job, name)):
                raise SpoolCorruptError(f"its {name} is {value!r}")
        return job


def content_of(text: str) -> dict[str, Any]:
    """Return the content of a job file, with its seal.

    Raises:
        SpoolCorruptError: It is torn or empty.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SpoolCorruptError(f"it is no job file: {error}") from error
    if not isinstance(content, dict):
        raise SpoolCorruptError("it is no job file: it has no version")
    return content
