"""Publish jobs to LaminDB: artifacts, their features and their lineage.

What is written is what `lamindb.integrations.lightning.Checkpoint` writes. The private parts of
lamindb that this needs are named in ``docs/design.md``.
"""

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any

import lamindb as ln
from django.db import IntegrityError, transaction
from django.db.models import BigIntegerField, Q
from django.db.models.fields.json import KeyTextTransform, KeyTransform
from django.db.models.functions import Cast
from lamindb.models._is_versioned import create_uid
from lamindb.models._lineage import track_run_inputs
from lamindb.models.artifact import _delete_skip_storage
from lamindb.models.sqlrecord import get_current_branch
from lamindb_setup.core.canonical_suffix import CanonicalSuffix

from lamincli import console, order, originals
from lamincli.errors import ContentChangedError, RecordError, UntrustedError
from lamincli.features import EXTRA_DATA_KEY, dtype_of
from lamincli.keys import split_key
from lamincli.redaction import redact
from lamincli.registry import outages, runs, storage, values
from lamincli.registry.base import Verdict
from lamincli.spool import Job
from lamincli.spool.content import measure, why_changed

_FLAGS = ("is_last_model", "is_best_model")


class LaminRegistry:
    """The connected LaminDB instance as a registry.

    An artifact is stored first and its row is committed together with its features, the cleared
    flags of its predecessors and the new ranks: readers see all or nothing. Its uid is decided
    when the job is made, so the second attempt of an interrupted job finds what the first has done.

    Args:
        is_contained: Let jobs add, and not take away or ask elsewhere: they are somebody else's.
    """

    def __init__(self, is_contained: bool = False) -> None:
        self._is_contained = is_contained
        self._runs: dict[str, Any] = {}
        self._features: dict[str, Any] = {}
        self._storages: dict[str, Any] = {}

    def save(self, job: Job, file: Path | None, note: Callable[[Job], None]) -> Any:
        """Make a file the artifact of the job's key; see `Registry.save`."""
        artifact = self._save(job, file, note)
        self._check_wanted(job)
        return artifact

    def _save(self, job: Job, file: Path | None, note: Callable[[Job], None]) -> Any:
        run = self._run(job.run)
        if file is not None:
            job = _checked(job, file)
        found = ln.Artifact.objects.filter(Q(uid=job.uid) | Q(key=job.key))
        others = list(found.exclude(branch_id=-1).select_related("storage"))
        artifact = next((other for other in others if other.uid == job.uid), None)
        own = [other for other in others if _run_id(other, job) == (run and run.id)]
        if self._is_contained:
            own = [other for other in own if other.uid == job.uid]
        if artifact is not None and artifact in own:  # an earlier attempt has come so far
            self._retire([old for old in own if old != artifact], job, note)
            if wanted := job.named.get("wanted"):  # some may have been missing then
                rest = replace(job, features={}, named={"wanted": wanted})
                self._link(artifact, self._fitting(rest), run)
            return self._with_place(artifact)
        # A key that another run has gets a new version; one of our own is replaced.
        foreign = [other for other in others if other not in own]
        revised = max(others, key=lambda a: (a.is_latest, a.id)) if foreign else None
        artifact = self._new(job, file, run, revised)
        twin = next((a for a in others if _is_twin(a, artifact)), None)
        if twin is not None:
            twin.extra_data = _of_both(twin.extra_data, artifact.extra_data)
            return self._with_place(self._adopt_twin(twin, job, run))
        # Two runs may be making the next version, and a real key has one place: there, who has the
        # row has the place, and the file is put into it last.
        places = [_address(old) for old in own]
        is_stored_last = revised is not None or _address(artifact) in places
        if not is_stored_last:
            self._store(artifact, job, file)
        for name in ("_local_filepath", "_cloud_filepath"):
            setattr(artifact, name, None)  # it is stored: saving shall only write the row
        with transaction.atomic():
            artifact.save()
            if artifact.run_id != (None if job.is_input else run and run.id):
                raise IntegrityError(f"another process has made {artifact.uid}")
            self._annotate_artifact(artifact, job, run)
            if job.is_input and run is not None:
                track_run_inputs(artifact, is_run_input=True, run=run)
            if is_stored_last:
                self._store(artifact, job, file)
        self._retire(own, job, note)
        return self._with_place(artifact)

    def remove(self, job: Job, note: Callable[[Job], None]) -> Any | None:
        """Delete the artifact that the run has under the job's key; see `Registry.remove`."""
        if self._is_contained:
            console.warn(f"{job.key} stays in {job.instance}: only its owner's jobs remove it")
            return None
        run = self._run(job.run)
        own = ln.Artifact.objects.filter(key=job.key, run_id=run and run.id).order_by("-id")
        artifacts = [self._with_place(artifact) for artifact in own]
        self._retire(artifacts, job, note)
        return artifacts[0] if artifacts else None

    def begin_run(self, job: Job) -> None:
        """Make the run of the job, or let it go on; it is the current one of the process then."""
        current = ln.context.run
        runs.leave_context()
        ln.context._run = current  # other threads ask for it
        beginning = runs.Beginning(**job.notes)
        if beginning.has_lightning_features:
            runs.ensure_lightning_features()
        runs.use_noted(runs.begin(beginning), beginning)
        self._runs.pop(job.run, None)

    def annotate(self, job: Job) -> None:
        """Give the run the feature values of the job."""
        run = self._run(job.run)
        if run is not None:
            self._link(run, self._fitting(job), run)
            self._check_wanted(job)

    def close_run(self, job: Job, log: Path | None) -> None:
        """Record how the run ended, and when; see `Registry.close_run`."""
        run = ln.Run.objects.get(uid=job.run)  # anew: an attempt may have been noted since
        metrics = job.notes.get("metrics") or {}
        runs.add_metrics(run, metrics, job.notes.get("best") or {})
        ended, reason = datetime.fromisoformat(job.at), str(job.notes.get("reason") or "")
        attempt = str(job.notes.get("attempt") or "")
        runs.set_ending(run, job.status, ended, reason, attempt, job.notes.get("record"))
        runs.add_metric_features(run, metrics)
        if (evaluated := job.notes.get("evaluated")) and (artifact := runs.find(evaluated)):
            runs.annotate_evaluated(artifact, metrics, run)
        if log is not None:
            runs.save_report(run, log)

    def verdict(self, error: Exception) -> Verdict:
        """Say what an error calls for."""
        return outages.verdict(error)

    def disconnect(self) -> None:
        """Let go of the connections of this thread."""
        outages.give_back_connections()

    # -- artifacts ---------------------------------------------------------------------------

    def _run(self, uid: str) -> Any:
        if uid and uid not in self._runs:
            self._runs[uid] = ln.Run.objects.select_related("branch", "space").get(uid=uid)
        return self._runs.get(uid)

    def _storage(self, uid: str) -> Any:
        if uid not in self._storages:
            default = ln.setup.settings.instance.storage
            place = ln.Storage.objects.get(uid=uid) if uid else default.record
            self._check_storage(place)
            self._storages[uid] = place
            if self._storages[uid].type == "s3":
                storage.draw_pauses_apart()
        return self._storages[uid]

    def _check_storage(self, place: Any) -> None:
        """Refuse a storage that the instance may not write to, or does not own."""
        instance = ln.setup.settings.instance.uid
        if place.instance_uid not in ({instance} if self._is_contained else {instance, None}):
            raise UntrustedError(
                f"storage {place.root} is none that {ln.setup.settings.instance.slug} manages. "
                f"Its jobs may be published into {ln.settings.storage.root_as_str} only."
            )

    def _new(self, job: Job, file: Path | None, run: Any, revised: Any) -> Any:
        """Make the artifact object as lamindb does, without storing or saving it."""
        if file is None:
            url = _registered(job.local_path)
            if self._is_contained and url == job.local_path:
                raise UntrustedError(f"{url} is in no storage of {job.instance}")
            artifact = ln.Artifact(
                url,
                key=job.key,
                description=job.description,
                kind=job.artifact_kind or None,
                run=False if job.is_input else run or False,
                skip_hash_lookup=True,
            )
            if not revised:
                artifact._revises, artifact.uid = None, job.uid
        else:
            artifact = self._new_row(job, file, run, revised)
        if job.callback:
            about = {**redact(job.notes), "checkpoint": job.callback, "saved_at": job.at}
            artifact.extra_data = {EXTRA_DATA_KEY: about}
        elif note := job.notes.get(originals.NOTE):
            artifact.extra_data = {EXTRA_DATA_KEY: {originals.NOTE: {job.run: note}}}
        return artifact

    def _new_row(self, job: Job, file: Path, run: Any, revised: Any) -> Any:
        """Make the object that `ln.Artifact(file)` makes, without what a checkpoint never needs.

        The constructor imports pandas, for half a second and 90 MB, to see that a file is none of
        its data frames; it reads the file at once; and a spool that lies within the storage it
        takes for the place of the artifact.
        """
        place = self._storage(job.storage)
        branch = run.branch if run is not None else get_current_branch()
        space = run.space if run is not None else place.space
        if space.id != place.space_id:
            instance = ln.setup.settings.instance.uid
            stores = ln.Storage.objects.filter(space=space, instance_uid=instance)
            place = stores.order_by("id").first() or place
        stats = storage.describe(file)
        artifact = ln.Artifact.__new__(ln.Artifact)
        initialise: Any = super(ln.Artifact, artifact).__init__
        initialise(
            uid=create_uid(revises=revised) if revised is not None else job.uid,
            key=job.key,
            description=job.description,
            kind=job.artifact_kind or None,
            otype=None,
            suffix=CanonicalSuffix.extract_from_path(file)[0],
            size=stats["size"],
            hash=stats["hash"],
            _hash_type=stats["hash_type"],
            n_files=stats.get("n_files"),
            n_observations=None,
            storage=place,
            run=None if job.is_input else run,
            branch=branch,
            space=space,
            schema=None,
            version_tag=None,
            revises=revised,
            _refresh_revises_if_stale=True,
            # A real key would write over the file of another run, or of anybody else, and versions
            # of a folder would share one place.
            _key_is_virtual=job.key_is_virtual or revised is not None or self._is_contained,
            _overwrite_versions="n_files" in stats and revised is None,
            _real_key=None,
        )
        return artifact

    def _store(self, artifact: Any, job: Job, file: Path | None) -> None:
        if file is None:
            return
        root = artifact.storage.root
        if artifact.storage.type == "local" and not (Path(root) / ".lamindb").exists():
            raise ConnectionError(f"the storage {root} is not there; is its disk mounted?")
        storage.store(file, _place(artifact))
        _checked(job, file)

    def _adopt_twin(self, twin: Any, job: Job, run: Any) -> Any:
        """Go on with an artifact of equal key and content, of which lamindb allows one."""
        if job.is_input:
            if run is not None:
                twin.run = None
                track_run_inputs(twin, is_run_input=True, run=run)
        elif run is not None and twin.run_id != run.id:
            twin.recreating_runs.add(run)
            return twin  # of another run, which keeps its values
        with transaction.atomic():
            twin.save()
            values.unlink(twin, self._fitting(job))
            self._annotate_artifact(twin, job, run)
        return twin

    def _retire(self, artifacts: list[Any], job: Job, note: Callable[[Job], None]) -> None:
        """Delete artifacts with their files, so that a repeated call finishes what was begun.

        A file stays where another artifact, the successor or that of another run, lies in the same
        place, as happens with real keys, or where it was registered in place.
        """
        for uid, place in job.doomed.items():
            if not ln.Artifact.objects.filter(uid=uid).exists():
                storage.discard(_at(place))
        doomed = {}
        artifacts = [artifact for artifact in artifacts if not self._has_heir(artifact)]
        for artifact in artifacts:
            address = _address(artifact)
            same_key = ln.Artifact.objects.filter(key=job.key).exclude(id=artifact.id)
            if not job.is_in_place and all(_address(other) != address for other in same_key):
                doomed[artifact.uid] = address
        if doomed:
            note(replace(job, doomed={**job.doomed, **doomed}))
        for artifact in artifacts:
            uid = artifact.uid
            if _delete_skip_storage(artifact) and uid in doomed:
                storage.discard(_at(doomed[uid]))

    def _has_heir(self, artifact: Any) -> bool:
        """Hand an artifact over to another run that has made the same, if there is one."""
        heir = artifact.recreating_runs.exclude(id=artifact.run_id).order_by("id").first()
        if heir is None:
            return False
        with transaction.atomic():
            artifact.recreating_runs.remove(heir)
            artifact.run = heir
            artifact.save()
        return True

    def _with_place(self, artifact: Any) -> Any:
        artifact._storage_uri = str(artifact.path)  # observers ask for it on the training thread
        return artifact

    # -- features ----------------------------------------------------------------------------

    def _annotate_artifact(self, artifact: Any, job: Job, run: Any) -> None:
        features = self._fitting(job)
        by_name = {f.name: f for f in features if f.type_id and f.type.name == "lamindb.lightning"}
        model_rank, score = by_name.get("model_rank"), by_name.get("score")
        if model_rank is not None and score is None:
            del features[model_rank]
        saves = ln.Artifact.objects.filter(
            **{f"extra_data__{EXTRA_DATA_KEY}__checkpoint": job.callback},
            run_id=run and run.id,
            key__startswith=split_key(job.key, job.notes)[0],
        )
        members = saves.values("id")
        flags = [by_name[name] for name in _FLAGS if features.get(by_name.get(name)) is True]
        if flags:
            # A job that was set aside for a while comes after younger ones, whose flags hold.
            later = members.filter(_is_later(job))
            for flag in flags if later.exists() else ():
                features[flag] = not values.is_flagged(flag, later)
        self._link(artifact, features, run)
        for flag in flags:
            if features[flag]:
                values.clear_flag(flag, members, artifact.id, run)
        if model_rank is not None and score is not None:
            numbered = saves.values("id", number=_NUMBER)
            values.rank(score, model_rank, numbered, job.mode, run)

    def _link(self, host: Any, features: dict[Any, Any], run: Any) -> None:
        plain = {f: value for f, value in features.items() if values.is_plain(f)}
        values.link_values(host, plain, run)
        labels = {f: value for f, value in features.items() if f not in plain}
        if labels:
            host.features.add_values(labels)

    def _fitting(self, job: Job) -> dict[Any, Any]:
        """Return features and values of a job, without what does not fit, which is reported."""
        if unknown := set(job.features) - set(self._features):
            self._features |= values.features_by_uid(unknown)
        given = [(self._features.get(uid), value) for uid, value in job.features.items()]
        for group in ("hparams", "lightning", "wanted"):
            named = job.named.get(group) or {}
            found = values.features_by_name(named, group == "lightning") if named else {}
            given += [(found.get(name), value) for name, value in named.items()]
        fitting = {}
        for feature, value in given:
            if feature is None or value is None:
                continue
            value = redact(value, feature.name)
            try:
                fitting[feature] = (
                    values.as_stored(feature, value) if values.is_plain(feature) else value
                )
            except TypeError as error:
                console.warn(f"{job.key or job.run}: {error}; it is left out")
        return fitting

    def _check_wanted(self, job: Job) -> None:
        """Refuse to be done with a job while features that the user asked for are missing."""
        wanted = job.named.get("wanted") or {}
        known = values.features_by_name(wanted) if wanted else {}
        if missing := {name: value for name, value in wanted.items() if name not in known}:
            raise RecordError(
                f"{', '.join(missing)} not in {job.instance}: all but the values of such features "
                f"is published. Create with: {how_to_create(missing)}"
            )


def _of_both(old: Any, new: Any) -> Any:
    """Return what is known of an artifact by two runs: each has an original of its own."""
    notes: dict[str, Any] = {}
    for one in (old, new):
        notes |= ((one or {}).get(EXTRA_DATA_KEY) or {}).get(originals.NOTE) or {}
    return {**(new or {}), EXTRA_DATA_KEY: {originals.NOTE: notes}} if notes else new


_NUMBER = Cast(
    KeyTextTransform(order.KEY, KeyTransform(EXTRA_DATA_KEY, "extra_data")), BigIntegerField()
)
"""The number of a save, of a query of artifacts; none for those of earlier versions."""


def _is_later(job: Job) -> Q:
    """Return what artifacts fulfil that were saved after the one of a job; see `order`."""
    notes = f"extra_data__{EXTRA_DATA_KEY}"
    number = order.of_notes(job.notes)
    if number != order.UNNUMBERED:
        return Q(**{f"{notes}__{order.KEY}__gt": number})
    is_numbered = Q(**{f"{notes}__has_key": order.KEY})
    return is_numbered | Q(**{f"{notes}__saved_at__gt": job.at})


def how_to_create(features: Mapping[str, Any]) -> str:
    """Return the command that creates features for some values."""
    made = (
        f"ln.Feature(name={json.dumps(name)}, dtype={dtype_of(value)}).save()"
        for name, value in features.items()
    )
    return f"python -c {shlex.quote('import lamindb as ln; ' + '; '.join(made))}"


def _checked(job: Job, file: Path) -> Job:
    """Return a job whose file is what was saved, with its stamp as it is now.

    Raises:
        ContentChangedError: It was torn by a power cut, or written over in place.
    """
    if why := why_changed(file, job.size_bytes, job.stamp, job.digest):
        raise ContentChangedError(
            f"{job.local_path} is not what was saved: {why}. Something wrote over the file, or the "
            "machine lost power."
        )
    return replace(job, stamp=measure(file)[1])


def _run_id(artifact: Any, job: Job) -> int | None:
    """Return the run to which an artifact belongs, for a job of its kind."""
    run_id: int | None = artifact.run_id
    if not job.is_input:
        return run_id
    first = artifact.input_of_runs.order_by("id").first()
    return run_id if first is None else first.id


def _is_twin(old: Any, new: Any) -> bool:
    same: bool = old.hash is not None and old.hash == new.hash and old.storage_id == new.storage_id
    return same


def _place(artifact: Any) -> Any:
    """Return the path in the storage at which an artifact lies, or will lie."""
    from lamindb.core.storage import paths

    key = paths.auto_storage_key_from_artifact(artifact)
    if ".." in PurePosixPath(key).parts or PurePosixPath(key).is_absolute():
        raise UntrustedError(f"{key} leads out of the storage {artifact.storage.root}")
    return paths.attempt_accessing_path(artifact, key)[0]


def _registered(url: str) -> Any:
    """Return a remote path within the storage that is registered for it, else the URL.

    The root of a storage may name an endpoint, which the URL that Lightning wrote to does not;
    lamindb would take it for the path of an unknown storage, and ask the hub.
    """
    from lamindb_setup.core import StorageSettings

    roots = {
        root.partition("?")[0].rstrip("/") + "/": root
        for root in (ln.Storage.objects.values_list("root", flat=True))
    }
    for prefix in sorted(roots, key=len, reverse=True):
        if url.startswith(prefix):
            return StorageSettings(roots[prefix]).key_to_filepath(url.removeprefix(prefix))
    return url


def _address(artifact: Any) -> str:
    """Return where an artifact lies, as text that `_at` understands later."""
    from lamindb.core.storage import paths

    return f"{artifact.storage.uid}:{paths.auto_storage_key_from_artifact(artifact)}"


def _at(address: str) -> Any:
    from lamindb_setup.core import StorageSettings

    uid, _, key = address.partition(":")
    root = ln.Storage.objects.get(uid=uid).root
    return StorageSettings(root).key_to_filepath(key)
