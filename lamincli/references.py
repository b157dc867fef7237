"""References into LaminDB: what a user types in the place of a path, and the file it stands for.

::

    lamin:artifact/<uid>[/<subpath>]
    lamin:artifact/key/<key>[/<subpath>][?version=&space=&branch=]
    lamin:run/<RUN>/best | last | rank/<k> | <file name>      a checkpoint, or any output
    lamin:run/<RUN>/config | hparams | history | metrics | report
    lamin://<owner>/<instance>/...                            the same in another instance

RUN is the uid of a run, an unambiguous prefix of one, or ``latest`` for the latest training. The
artifact forms are the ecosystem's own and are read by its own parser. Parsing touches no database,
and neither parsing nor resolving executes anything that comes from one.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from jsonargparse import Namespace
from jsonargparse.typing import register_type

from lamincli import console, memory, order, originals
from lamincli.endings import EVALUATIONS
from lamincli.errors import LaminReferenceError, did_you_mean, first_line
from lamincli.features import DESCRIPTIONS, EXTRA_DATA_KEY
from lamincli.keys import split_key

SCHEME = "lamin:"
LATEST = "latest"
_started_in: ContextVar[str] = ContextVar("_started_in", default="")
_END_BYTES = 1 << 20
TRASH = -1
_RECORDS = ("config", "hparams", "history", "metrics", "report")
_FORMS = (
    "lamin:artifact/<uid>, lamin:artifact/key/<key>, or lamin:run/<run>/ followed by "
    "best, last, rank/<k>, config, hparams, history, metrics, report or a file name"
)


@contextmanager
def started_here() -> Iterator[None]:
    """Let relative paths mean the present folder, also while a config elsewhere is parsed.

    jsonargparse changes into the folder of the config for that long.
    """
    token = _started_in.set(os.getcwd())
    try:
        yield
    finally:
        _started_in.reset(token)


def is_reference(value: Any) -> bool:
    """Tell whether a value of the config stands for something in LaminDB."""
    return isinstance(value, (str, PurePath)) and str(value).startswith(SCHEME)


@dataclass(frozen=True)
class Reference:
    """A reference that is well formed; whether it names anything, the database knows.

    Args:
        text: As the user wrote it.
        instance: The instance, owner/name; `None` for the connected one.
        entity: ``artifact`` or ``run``.
        parts: What follows the entity, split at slashes.
        uri: The official form of an artifact's reference, with ``{}`` for the instance.
    """

    text: str
    instance: str | None
    entity: str
    parts: tuple[str, ...]
    uri: str = ""

    @classmethod
    def parse(cls, value: Any) -> "Reference":
        """Read a reference without touching a database.

        Raises:
            LaminReferenceError: It is not well formed.
        """
        text = str(value)
        instance = None
        rest = text.removeprefix(SCHEME)
        if rest.startswith("/"):  # one slash of the two is lost where it went through a Path
            owner, _, rest = rest.lstrip("/").partition("/")
            name, _, rest = rest.partition("/")
            instance = f"{owner}/{name}"
        entity, _, path = rest.partition("/")
        if entity == "artifact":
            return cls(text, instance, entity, tuple(path.split("/")), _checked_uri(text, rest))
        if entity != "run":
            hint = did_you_mean(entity, ["artifact", "run"])
            raise LaminReferenceError(f"{text}: {entity!r} is neither artifact nor run.{hint}")
        parts = tuple(path.split("/"))
        if len(parts) < 2 or not all(parts) or {".", ".."} & set(parts):
            raise LaminReferenceError(f"{text} is incomplete. Write {_FORMS}.")
        if parts[1] == "rank" and (len(parts) != 3 or not parts[2].isdecimal()):
            raise LaminReferenceError(f"{text}: a rank is a number, 0 for the best: rank/0.")
        return cls(text, instance, entity, parts)


def _checked_uri(text: str, rest: str) -> str:
    from lamin_cli._uri import InvalidLaminUri, parse_lamin_uri

    try:
        parse_lamin_uri(f"lamin://owner/instance/{rest}")
    except InvalidLaminUri as error:
        raise LaminReferenceError(f"{text}: {first_line(error)}") from error
    return f"lamin://{{}}/{rest}"


@dataclass(frozen=True)
class Resolved:
    """What a reference stands for.

    Args:
        reference: The reference.
        pinned: The same, exact for ever: with the uid of one artifact.
        artifact: The artifact; `None` for the metrics of a run.
        subpath: A path within the artifact.
        run: The run, where the reference names one.
        remembered: `originals` as they were when the reference was last looked up.
    """

    reference: Reference
    pinned: str
    artifact: Any
    subpath: str = ""
    run: Any = None
    remembered: dict[str, Any] = field(default_factory=dict)

    def local_path(self) -> Path:
        """Return the file or folder on this machine; it is downloaded if it is not here."""
        from lamincli.registry import download

        if self.artifact is None:
            return download.write_cached(
                f"metrics-{self.run.uid}.json", json.dumps(_metrics(self.run), indent=1)
            )
        return download.fetch(self.artifact, self.subpath)

    @property
    def originals(self) -> dict[str, Any]:
        """What is noted of the originals of a published config, by their runs."""
        if self.artifact is None:
            return self.remembered
        extra = (self.artifact.extra_data or {}).get(EXTRA_DATA_KEY) or {}
        notes = dict(extra.get(originals.NOTE) or {})
        return {u: n for u, n in notes.items() if self.run is None or u == self.run.uid}


@dataclass
class References:
    """The references of one job. Each is looked up once, and what was used is remembered.

    Args:
        used: What was looked up, by the reference that was typed.
        away: The instance, owner/name, where it cannot be asked, so that what is remembered holds.
    """

    used: dict[str, Resolved] = field(default_factory=dict)
    away: str | None = None
    _known: dict[str, Resolved] = field(default_factory=dict)
    _pins: dict[str, str] = field(default_factory=dict)
    _paths: dict[str, str] = field(default_factory=dict)

    def resolve(self, value: Any) -> Resolved:
        """Look up what a reference stands for.

        Raises:
            LaminReferenceError: It is not well formed, or names nothing or more than one thing.
        """
        text = str(value)
        if text not in self._known:
            reference = Reference.parse(self._pins.get(text, text))
            found = self._look_up(reference) if self.away is None else self._recall(reference)
            self.used[text] = self._known[text] = self._known[found.pinned] = found
        return self._known[text]

    def local_path(self, value: Any) -> str:
        """Return the path on this machine for a reference."""
        pinned = self.pinned(value)
        if pinned not in self._paths:
            self._paths[pinned] = str(self.resolve(value).local_path())
            self._remember(str(value), pinned)
        return self._paths[pinned]

    def config_path(self, value: Any) -> str:
        """Return the path of a config: of what the run was given, if that is on this machine."""
        published = self.local_path(value)
        notes = self.resolve(value).originals
        found = (originals.find(note, uid, Path(published)) for uid, note in notes.items())
        texts = {path.read_bytes(): str(path) for path in found if path is not None}
        # Runs of one key may differ in nothing but their secrets.
        return texts.popitem()[1] if len(texts) == 1 else published

    def config_name(self, value: Any) -> str:
        """Return what a config is called, that nothing but its copy is here."""
        found = self.resolve(value)
        if found.run is not None:
            return f"the published config of run {found.run.uid}"
        return f"the published config {value}"

    def pinned(self, value: Any) -> str:
        """Return the reference with the exact artifact."""
        return self._pins.get(str(value)) or self.resolve(value).pinned

    def told(self, text: str) -> dict[str, Any]:
        """Look a reference up, and return what another rank needs to know of it, as JSON."""
        return {"pinned": self.pinned(text), "file": known_file(self.local_path(text))}

    def take(self, text: str, told: dict[str, Any]) -> bool:
        """Take a reference for what it is on the rank that has told so.

        Returns:
            Whether its file is here too, as on a shared file system.
        """
        pinned = self._pins[text] = self._pins[told["pinned"]] = told["pinned"]
        if not is_here(told["file"]):
            return False
        self._paths[pinned] = told["file"]["path"]
        return True

    @property
    def are_any(self) -> bool:
        """Whether the job has references."""
        return bool(self.used or self._pins)

    @property
    def by_path(self) -> dict[str, str]:
        """The exact references, by their paths on this machine."""
        return {path: pinned for pinned, path in self._paths.items()}

    @property
    def artifacts(self) -> dict[str, Any]:
        """The artifacts that were used, by the reference that was typed."""
        return {text: one.artifact for text, one in self.used.items() if one.artifact is not None}

    @property
    def noted(self) -> dict[str, dict[str, Any]]:
        """Likewise, by what tells the artifacts where there is no database: uid and instance."""
        exact = {text: Reference.parse(one.pinned) for text, one in self.used.items()}
        return {
            text: {"uid": one.parts[0], "instance": one.instance}
            for text, one in exact.items()
            if one.entity == "artifact"
        }

    def _remember(self, text: str, pinned: str) -> None:
        """Let a later job on this machine have the reference without asking LaminDB."""
        import lamindb as ln

        slug, file = str(ln.setup.settings.instance.slug), known_file(self._paths[pinned])
        for one in {text, pinned, *(typed for typed, r in self.used.items() if r.pinned == pinned)}:
            memory.remember(slug, one, pinned, file, self.resolve(text).originals)

    def _recall(self, reference: Reference) -> Resolved:
        """Return what a reference stood for when it was last looked up on this machine."""
        text, slug = reference.text, str(self.away)
        if (found := memory.recall(slug, text)) is None:
            raise LaminReferenceError(
                f"{text}: {slug} is not asked now, and this machine has not used the reference "
                "before. Use it once while LaminDB can be asked, or give a local path."
            )
        if not is_here(found.file):
            raise LaminReferenceError(
                f"{text}: {slug} is not asked now, and {found.file['path']}, which it stood for, "
                "is gone or changed. Give a local path."
            )
        if text != found.pinned:
            console.say(f"{text} is taken for {found.pinned}, as on {found.at}")
        self._paths[found.pinned] = found.file["path"]
        return Resolved(reference, found.pinned, None, remembered=found.originals)

    def _look_up(self, reference: Reference) -> Resolved:
        import lamindb as ln

        here = str(ln.setup.settings.instance.slug)
        slug = reference.instance or here
        prefix = SCHEME if slug == here else f"{SCHEME}//{slug}/"
        query = _queries(reference.text, slug, here)
        run = None
        if reference.entity == "artifact":
            artifact, subpath = _artifact(reference, slug, query)
        else:
            word = reference.parts[0]
            run = find_run(word, query(ln.Run), slug, reference.text)
            what = "/".join(reference.parts[1:])
            if what == "metrics":
                if not _metrics(run):
                    raise LaminReferenceError(
                        f"{reference.text}: run {run.uid} has logged no metrics."
                    )
                return Resolved(reference, f"{prefix}run/{run.uid}/metrics", None, run=run)
            artifact, subpath = _of_run(reference.text, run, what, query(ln.Artifact)), ""
        pinned = f"{prefix}artifact/{artifact.uid}" + (f"/{subpath}" if subpath else "")
        return Resolved(reference, pinned, artifact, subpath, run)


def _queries(text: str, slug: str, here: str) -> Callable[[Any], Any]:
    """Return a function that gives the query set of a registry in an instance, not switching."""
    from django.db import Error
    from lamindb_setup.errors import InstanceNotFoundError

    def query(registry: Any) -> Any:
        if slug == here:
            return registry.filter()
        try:
            return registry.connect(slug).filter()
        except (InstanceNotFoundError, OSError, Error, ValueError) as error:
            from lamincli.instance import known_slugs

            hint = did_you_mean(slug, known_slugs())
            raise LaminReferenceError(
                f"{text}: instance {slug} cannot be read: {first_line(error)}.{hint}"
            ) from error

    return query


def _artifact(reference: Reference, slug: str, query: Callable[[Any], Any]) -> tuple[Any, str]:
    import lamindb as ln
    from lamin_cli._uri import UnresolvableLaminUri, resolve_lamin_uri

    artifacts = query(ln.Artifact)
    try:
        found = resolve_lamin_uri(reference.uri.format(slug))
    except UnresolvableLaminUri as error:
        first = reference.parts[0]
        if first == "key":
            wanted = "/".join(reference.parts[1:]).partition("?")[0]
            name = wanted.rpartition("/")[2]
            keys = artifacts.filter(is_latest=True).exclude(key=None).order_by("-id")
            near = keys.filter(key__icontains=name).values_list("key", flat=True)[:1000]
            others = keys.values_list("key", flat=True)[:1000]
            hint = did_you_mean(wanted, [*near, *others])
        else:
            near = artifacts.filter(uid__startswith=first[:4]).values_list("uid", flat=True)
            hint = did_you_mean(first, near[:1000])
        raise LaminReferenceError(f"{reference.text}: {first_line(error)}{hint}") from error
    return found.artifact, "" if found.subpath is None else str(found.subpath)


def find_run(word: str, runs: Any, slug: str, text: str = "") -> Any:
    """Find the run that a uid, a prefix of one, or ``latest`` names.

    Args:
        word: What the user typed.
        runs: The query set to search.
        slug: The instance, for the message.
        text: What the message begins with; the word itself by default.

    Raises:
        LaminReferenceError: There is none, or more than one.
    """
    from lamincli.features import EXTRA_DATA_KEY

    text = text or word
    if word == LATEST:
        record = f"extra_data__{EXTRA_DATA_KEY}"
        trainings = runs.exclude(branch_id=TRASH).filter(extra_data__has_key=EXTRA_DATA_KEY)
        trainings = trainings.exclude(**{f"{record}__stage__in": [*EVALUATIONS, "array"]})
        for word in ("trains", "reproduces"):  # the first stands only where it is false
            trainings = trainings.exclude(**{f"{record}__has_key": word})
        # As the registry has seen them begin: hosts differ in their clocks.
        if (latest := trainings.order_by("-id").first()) is None:
            raise LaminReferenceError(f"{text}: there is no training in {slug} yet.")
        return latest
    if (whole := runs.filter(uid=word).first()) is not None:
        return whole
    # SQLite does not tell small letters from capitals here, and reads every run.
    near = [run for run in runs.filter(uid__startswith=word)[:50] if run.uid.startswith(word)]
    if len(near) == 1:
        return near[0]
    if near:
        listed = ", ".join(run.uid for run in near[:5])
        raise LaminReferenceError(f"{text}: {word} may be any of {listed}. Write more of the uid.")
    latest_uids = list(runs.order_by("-id").values_list("uid", flat=True)[:1000])
    hint = did_you_mean(word, latest_uids) or (
        f" The latest: {', '.join(latest_uids[:3])}." if latest_uids else ""
    )
    raise LaminReferenceError(f"{text}: no run in {slug} has a uid that begins with {word}.{hint}")


# -- what a run has ---------------------------------------------------------------------------


def _metrics(run: Any) -> dict[str, Any]:
    return dict((run.extra_data or {}).get("metrics") or {})


def _of_run(text: str, run: Any, what: str, artifacts: Any) -> Any:
    """Find the artifact of a run that a word or a file name stands for."""
    if what == "report":
        # The log is an artifact of a kind that queries leave out.
        report = type(run)._meta.get_field("report").related_model.objects
        if found := report.using(run._state.db).filter(id=run.report_id).first():
            return found
        raise LaminReferenceError(f"{text}: run {run.uid} has no report; it is written at its end.")
    if what in _RECORDS:
        used = set(_recorded_references(run).values())
        mine = _linked(artifacts, run, "run", "recreating_runs", "input_of_runs")
        found = list(mine.filter(description=DESCRIPTIONS[what]).order_by("-id"))
        own = [artifact for artifact in found if artifact.uid not in used]
        if found:
            return (own or found)[0]
        raise LaminReferenceError(f"{text}: run {run.uid} has published no {what}.")
    outputs = _linked(artifacts, run, "run", "recreating_runs").select_related("storage")
    if what in ("best", "last") or what.startswith("rank/"):
        checkpoints = list(_checkpoints(outputs.filter(kind="model")))
        if not checkpoints:
            raise LaminReferenceError(
                f"{text}: run {run.uid} has published no checkpoint.{_latest_with_one(text, what)}"
            )
        return _chosen(text, run, what, checkpoints)
    name = what.rpartition("/")[2]
    everything = list(outputs.filter(key__endswith=name))
    same = [a for a in everything if a.key == what or a.key.endswith(f"/{what}")]
    if len(same) == 1:
        return same[0]
    if same:
        listed = " or ".join(f"lamin:artifact/{a.uid} ({a.key})" for a in same[:5])
        raise LaminReferenceError(
            f"{text}: run {run.uid} has several of that name. Write {listed}."
        )
    names = [str(key).rpartition("/")[2] for key in outputs.values_list("key", flat=True)]
    hint = did_you_mean(what, [*names, "best", "last", *_RECORDS])
    hint = hint or (f" It has {', '.join(names[:8])}." if names else "")
    raise LaminReferenceError(f"{text}: run {run.uid} has no output of that name.{hint}")


def _linked(artifacts: Any, run: Any, *relations: str) -> Any:
    """Return the artifacts that have any of some relations to a run.

    Each is looked up by its own index; an OR over joined tables would read every artifact.
    """
    every = type(run)._meta.get_field("report").related_model.objects.using(run._state.db)
    first, *others = (every.filter(**{one: run}).order_by().values("id") for one in relations)
    return artifacts.filter(id__in=first.union(*others))


def _latest_with_one(text: str, what: str) -> str:
    """Say which training may be meant where the latest one has no checkpoint, for it failed."""
    import lamindb as ln

    if f"run/{LATEST}/" not in text or text.startswith(f"{SCHEME}/"):
        return ""
    saved = ln.Artifact.filter(kind="model").exclude(run=None).order_by("-run_id")
    uid = saved.values_list("run__uid", flat=True).first()
    return f" The latest that has: {SCHEME}run/{uid}/{what}" if uid else ""


def _recorded_references(run: Any) -> dict[str, str]:
    from lamincli.features import EXTRA_DATA_KEY

    record = (run.extra_data or {}).get(EXTRA_DATA_KEY) or {}
    return dict(record.get("references") or {})


@dataclass
class _Checkpoint:
    artifact: Any
    name: str
    callback: str
    monitor: str | None
    mode: str | None
    score: float | None
    is_best: bool
    is_last: bool
    rank: int | None
    order: tuple[int, str, int]

    def __str__(self) -> str:
        score = "" if self.score is None else f", {self.monitor}={self.score:.4g}"
        return self.name + score


def _checkpoints(artifacts: Any) -> Iterator[_Checkpoint]:
    """Return checkpoints with what their features say, or where those are absent our own notes."""
    from lamindb.models import ArtifactJsonValue

    from lamincli.features import EXTRA_DATA_KEY

    found = list(artifacts)
    rows = ArtifactJsonValue.objects.using(artifacts.db).filter(
        artifact_id__in=artifacts.order_by().values("id"),
        jsonvalue__feature__type__name="lamindb.lightning",
    )
    values: dict[int, dict[str, Any]] = {}
    for owner, name, value in rows.values_list(
        "artifact_id", "jsonvalue__feature__name", "jsonvalue__value"
    ):
        values.setdefault(owner, {})[name] = value
    for artifact in found:
        features = values.get(artifact.id, {})
        notes = (artifact.extra_data or {}).get(EXTRA_DATA_KEY) or {}
        prefix, name = split_key(str(artifact.key), notes)
        yield _Checkpoint(
            artifact,
            name,
            callback=notes.get("checkpoint") or prefix,
            monitor=notes.get("monitor"),
            mode=notes.get("mode"),
            score=features.get("score", notes.get("score")),
            is_best=features.get("is_best_model") is True,
            is_last=features.get("is_last_model") is True,
            rank=features.get("model_rank"),
            order=(order.of_notes(notes), notes.get("saved_at") or "", artifact.id),
        )


def _chosen(text: str, run: Any, what: str, checkpoints: list[_Checkpoint]) -> Any:
    if what == "last":
        flagged = [one for one in checkpoints if one.is_last]
        return max(flagged or checkpoints, key=lambda one: one.order).artifact
    callbacks: dict[str, list[_Checkpoint]] = {}
    for one in checkpoints:
        callbacks.setdefault(one.callback, []).append(one)
    k = 0 if what == "best" else int(what.removeprefix("rank/"))
    if any(one.monitor for one in checkpoints):  # a callback without a monitor ranks nothing
        callbacks = {c: group for c, group in callbacks.items() if any(o.monitor for o in group)}
    found = [one for group in callbacks.values() for one in _ranked(group, what, k)]
    if len(found) > 1 and len({(one.monitor, one.mode) for one in found}) == 1:
        # Two callbacks that rank by one metric, as of a run that went on with other settings.
        everything = [one for group in callbacks.values() for one in group]
        found = _by_score(everything)[k : k + 1] or found
    if len(found) == 1:
        return found[0].artifact
    names = ", ".join(one.name for one in checkpoints[-8:])
    if found:
        each = " or ".join(f"lamin:artifact/{one.artifact.uid} ({one})" for one in found)
        raise LaminReferenceError(
            f"{text}: run {run.uid} ranks by more than one metric. Write {each}."
        )
    if what == "best":
        raise LaminReferenceError(
            f"{text}: the checkpoints of run {run.uid} have no scores. "
            f"Write last, or one of {names}."
        )
    raise LaminReferenceError(
        f"{text}: run {run.uid} has no checkpoint of rank {k}: it has {names}."
    )


def _ranked(group: list[_Checkpoint], what: str, k: int) -> list[_Checkpoint]:
    """Return the checkpoint of a rank among those of one callback, by features, else by scores."""
    if what == "best" and (flagged := [one for one in group if one.is_best]):
        return [max(flagged, key=lambda one: one.order)]
    if any(one.rank is not None for one in group):
        ranked = [one for one in group if one.rank == k]
        return sorted(ranked, key=lambda one: one.order)[-1:]
    return _by_score(group)[k : k + 1]


def _by_score(checkpoints: list[_Checkpoint]) -> list[_Checkpoint]:
    scored = [one for one in checkpoints if one.score is not None and one.mode is not None]
    sign = -1 if scored and scored[0].mode == "max" else 1
    return sorted(scored, key=lambda one: (sign * float(one.score or 0), one.order))


# -- files on other hosts ---------------------------------------------------------------------


def known_file(path: str) -> dict[str, Any]:
    """Describe a file or folder, so that another host can tell whether it has the same.

    Of a file, what its ends hold: a checkpoint of the same name differs there, in its archive's
    directory of checksums.
    """
    place = Path(path)
    if place.is_dir():
        files = sorted(str(f.relative_to(place)) for f in place.rglob("*") if f.is_file())
        return {"path": path, "mark": [[f, (place / f).stat().st_size] for f in files]}
    with open(place, "rb") as file:
        digest = hashlib.sha256(file.read(_END_BYTES))
        size_bytes = file.seek(0, os.SEEK_END)
        file.seek(max(0, size_bytes - _END_BYTES))
        digest.update(file.read())
    return {"path": path, "mark": [size_bytes, digest.hexdigest()]}


def is_here(known: dict[str, Any]) -> bool:
    """Tell whether this host has the file or folder that `known_file` has described on another."""
    try:
        return bool(known_file(known["path"])["mark"] == known["mark"])
    except OSError:
        return False


# -- values of the config ---------------------------------------------------------------------


def walk(
    value: Any, change: Callable[[Any], Any], which: Callable[[Any], bool] = is_reference
) -> Any:
    """Return a copy of a nested value in which every reference is changed.

    Args:
        value: Of dicts, namespaces, lists and tuples, which keep their types.
        change: Returns what is put in the place of a reference.
        which: Tells what is changed, if that is not the references.
    """
    if which(value):
        return change(value)
    if isinstance(value, ArtifactPath):
        return ArtifactPath(walk(value.reference, change, which))
    if isinstance(value, Namespace):
        changed = {name: walk(item, change, which) for name, item in vars(value).items()}
        return Namespace(changed)  # type: ignore[no-untyped-call]
    if isinstance(value, dict):
        items = {name: walk(item, change, which) for name, item in value.items()}
        return items if type(value) is dict else type(value)(items)
    if isinstance(value, (list, tuple)):
        return type(value)(walk(item, change, which) for item in value)
    return value


def references_in(value: Any) -> list[str]:
    """Return the references in a nested value, each once."""
    found: dict[str, Any] = {}
    walk(value, lambda reference: found.setdefault(str(reference), reference))
    return list(found)


class ArtifactPath(os.PathLike[str]):
    """A path that may be a reference; for annotations, as in ``data: ArtifactPath``.

    Where it is parsed, a malformed reference and a missing local path are refused; a relative path
    is one from the folder in which the command was started, as for any other text. Where it is
    used as a path (``open``, ``Path``, ``str``), it is the file or folder on this machine,
    downloaded on first use. So it works in `load_from_checkpoint` too, without a command line.

    Args:
        reference: A reference or a local path.

    Raises:
        ValueError: The reference is malformed, or the path does not exist.
    """

    def __init__(self, reference: "str | os.PathLike[str]") -> None:
        self.reference = str(getattr(reference, "reference", reference))
        self._local: str | None = None
        if is_reference(self.reference):
            try:
                Reference.parse(self.reference)
            except LaminReferenceError as error:
                raise ValueError(str(error)) from error
        elif not Path(_started_in.get(), self.reference).exists():
            raise ValueError(f"{self.reference}: there is no such file or folder.")

    def __fspath__(self) -> str:
        """Return the path on this machine."""
        if not is_reference(self.reference):
            return self.reference
        if self._local is None:
            self._local = References().local_path(self.reference)
        return self._local

    def __str__(self) -> str:
        return self.__fspath__()

    def __repr__(self) -> str:
        return f"ArtifactPath({self.reference!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ArtifactPath) and other.reference == self.reference

    def __hash__(self) -> int:
        return hash(self.reference)


register_type(ArtifactPath, serializer=lambda path: path.reference)
