"""What every registry keeps: in memory, in SQLite, and in PostgreSQL."""

from contextlib import suppress
from dataclasses import asdict, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import pytest
from django.db import IntegrityError
from registries import MemoryRegistry
from servers import create_instance

from lamincli.errors import ContentChangedError, RecordError
from lamincli.features import EXTRA_DATA_KEY as OURS
from lamincli.registry.base import Registry
from lamincli.spool import Job
from lamincli.spool.content import measure

BEGAN = datetime(2026, 1, 1, tzinfo=timezone.utc)


class Memory:
    """What the tests ask of a registry, answered by the one in memory."""

    def __init__(self):
        self.registry: Registry = MemoryRegistry()
        self.runs = ["RUN-A", "RUN-B"]
        self.features = {}

    def artifacts(self, key):
        entries = [e for e in self.registry.entries if e.key == key]
        return [SimpleNamespace(uid=e.uid, run=e.run, content=e.content) for e in entries]

    def values(self, key):
        return {}


class Lamin:
    """The same, answered by LaminDB."""

    def __init__(self, ln):
        from lamincli import save_lightning_features
        from lamincli.registry.lamin import LaminRegistry

        self.ln = ln
        ln.settings.verbosity = "error"
        save_lightning_features()
        source = uuid4().hex
        transform = ln.Transform(key=source, source_code=source, kind="function").save()
        self.runs = [ln.Run(transform=transform).save().uid for _ in range(2)]
        self.registry: Registry = LaminRegistry()
        found = ln.Feature.filter(type__name="lamindb.lightning")
        self.features = {feature.name: feature.uid for feature in found}

    def artifacts(self, key):
        return [
            SimpleNamespace(
                uid=a.uid,
                run=a.run and a.run.uid,
                content=Path(a.path).read_bytes() if a.n_files is None else None,
                row=a,
            )
            for a in self.ln.Artifact.objects.filter(key=key).order_by("id")
        ]

    def values(self, key):
        (artifact,) = self.ln.Artifact.objects.filter(key=key)
        links = artifact.links_jsonvalue.select_related("jsonvalue__feature")
        return {link.jsonvalue.feature.name: link.jsonvalue.value for link in links}


@pytest.fixture(scope="module")
def distant(server, tmp_path_factory):
    """Create an instance in PostgreSQL, for all tests."""
    name = f"contract-{uuid4().hex[:8]}"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("contract"))
        # A process that imported lamindb before it connected has loaded bionty, whose tables
        # Django then looks for when it deletes.
        create_instance(name, "store", server.create_database(name), modules="bionty")
    return f"anonymous/{name}"


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def lab(request):
    if request.param == "memory":
        yield Memory()
    elif request.param == "sqlite":
        yield Lamin(request.getfixturevalue("ln"))
    else:
        distant = request.getfixturevalue("distant")
        from lamincli.instance import connect

        connect(distant)
        import lamindb as ln
        from django.db import connections

        yield Lamin(ln)
        connections.close_all()


of_lamindb = pytest.mark.parametrize("lab", ["sqlite", "postgres"], indirect=True)


@pytest.fixture
def save(lab, tmp_path):
    """Save a file under a key, as the publisher would."""
    numbers = iter(range(1000))

    def run(key, content=b"weights", run=0, callback="C", note=lambda job: None, again=0, **about):
        number = next(numbers)
        file = tmp_path / "pins" / str(number) / Path(key).name
        file.parent.mkdir(parents=True)
        if isinstance(content, dict):
            file.mkdir()
            for name, data in content.items():
                (file / name).write_bytes(data)
        else:
            file.write_bytes(content)
        size, stamp = measure(file)
        features = {
            lab.features[n]: v for n, v in about.pop("features", {}).items() if lab.features
        }
        job = Job(
            "save", lab.runs[run], "me/here", "ab", (BEGAN + timedelta(seconds=number)).isoformat(timespec="microseconds"),
            uid=f"{uuid4().hex[:16]}0000", key=key, description="model checkpoint",
            artifact_kind="model", local_path=str(file), pin=str(file), size_bytes=size, stamp=stamp,
            callback=callback, features=features,
        )  # fmt: skip
        job = replace(job, **about)
        for _ in range(again + 1):
            artifact = lab.registry.save(job, file, note)
        return job, artifact

    return run


def key():
    return f"{uuid4().hex}/checkpoints/a.ckpt"


def test_saving_twice_makes_one_artifact(lab, save):
    name = key()
    job, _ = save(name, again=1)
    (artifact,) = lab.artifacts(name)
    assert (artifact.uid, artifact.run, artifact.content) == (job.uid, lab.runs[0], b"weights")


def test_the_own_key_is_replaced(lab, save):
    name = key()
    save(name, b"old")
    job, _ = save(name, b"new")
    (artifact,) = lab.artifacts(name)
    assert (artifact.uid, artifact.content) == (job.uid, b"new")


def test_key_of_another_run_is_left_alone(lab, save):
    name = key()
    save(name, b"theirs", run=1)
    save(name, b"ours", again=1)
    assert [(a.run, a.content) for a in lab.artifacts(name)] == [
        (lab.runs[1], b"theirs"),
        (lab.runs[0], b"ours"),
    ]
    save(name, b"ours, newer")
    assert [a.content for a in lab.artifacts(name)] == [b"theirs", b"ours, newer"]


def test_removing_takes_the_artifact_of_this_run_only(lab, save):
    name = key()
    save(name, b"theirs", run=1)
    job, _ = save(name, b"ours")
    removal = replace(job, action="remove", uid="")
    assert lab.registry.remove(removal, lambda job: None) is not None
    assert lab.registry.remove(removal, lambda job: None) is None
    assert [a.content for a in lab.artifacts(name)] == [b"theirs"]


@of_lamindb
def test_folder_is_one_artifact(lab, save):
    name = key()
    save(name, {"rank0": b"00", "rank1": b"11"}, again=1)
    (artifact,) = lab.artifacts(name)
    row = artifact.row
    assert (row.n_files, row.size, row._hash_type) == (2, 4, "md5-d")
    assert (Path(row.path) / "rank1").read_bytes() == b"11"
    save(name, {"rank0": b"22"}, run=1)
    first, second = lab.artifacts(name)
    assert (Path(first.row.path) / "rank0").read_bytes() == b"00", "versions do not share a place"
    assert (Path(second.row.path) / "rank0").read_bytes() == b"22"


def test_hashes_are_those_of_lamindb(tmp_path):
    from lamindb_setup.core.hashing import hash_dir, hash_file

    from lamincli.registry.storage import describe

    big = tmp_path / "big"
    big.write_bytes(bytes(range(256)) * (256 * 1024))  # 64 MiB: parts of it are hashed
    assert tuple(describe(big).values()) == hash_file(big)
    (tmp_path / "d" / "e").mkdir(parents=True)
    (tmp_path / "d" / "e" / "f").write_bytes(b"1")
    (tmp_path / "d" / "g").write_bytes(b"22")
    size, digest, kind, number = hash_dir(tmp_path / "d")
    assert describe(tmp_path / "d") == {
        "size": size, "hash": digest, "hash_type": kind, "n_files": number
    }  # fmt: skip


@of_lamindb
def test_only_name_of_a_file_is_linked_into_the_storage(lab, save):
    """Lightning has removed its own: the pin alone is left, and nobody can write over it."""
    name = key()
    job, _ = save(name)
    (artifact,) = lab.artifacts(name)
    assert Path(artifact.row.path).samefile(job.pin)


@of_lamindb
def test_file_that_lightning_keeps_is_not_shared(lab, save, tmp_path, monkeypatch):
    from lamincli.registry import storage

    kept = tmp_path / "kept.ckpt"
    describe = storage.describe

    def describe_and_link(path):
        if not kept.exists():
            kept.hardlink_to(path)
        return describe(path)

    monkeypatch.setattr(storage, "describe", describe_and_link)
    name = key()
    save(name, b"as saved")
    kept.write_bytes(b"written over")
    (artifact,) = lab.artifacts(name)
    assert artifact.content == b"as saved"


@of_lamindb
def test_file_that_was_written_over_is_refused(lab, save, monkeypatch):
    from lamincli.registry import storage

    store = storage.store

    def store_while_somebody_writes(source, target):
        store(source, target)
        source.write_bytes(b"other weights")

    monkeypatch.setattr(storage, "store", store_while_somebody_writes)
    name = key()
    with pytest.raises(ContentChangedError, match="is not what was saved: it had 7 bytes then"):
        save(name)
    assert lab.artifacts(name) == []


def ranks_and_flags(lab, names):
    found = [lab.values(name) for name in names]
    return [(v.get("model_rank"), v["is_best_model"], v["is_last_model"]) for v in found]


@pytest.mark.parametrize("mode", ["min", "max"])
@of_lamindb
def test_flags_and_ranks(lab, save, mode):
    prefix = uuid4().hex
    scores = [3.0, 1.0, 1.0, 2.0, 1e-7, 12345.678]
    best = None
    names = []
    for number, score in enumerate(scores):
        is_best = best is None or (score < best if mode == "min" else score > best)
        best = score if is_best else best
        names.append(f"{prefix}/checkpoints/{number}.ckpt")
        values = {"score": score, "model_rank": 0, "is_best_model": is_best, "is_last_model": True}
        save(names[-1], str(number).encode(), is_best=is_best, mode=mode, features=values)
    order = sorted(range(6), key=lambda i: (scores[i] if mode == "min" else -scores[i], i))
    wanted = [(order.index(i), i == order[0], i == 5) for i in range(6)]
    assert ranks_and_flags(lab, names) == wanted


@of_lamindb
def test_callbacks_do_not_disturb_each_other(lab, save):
    """F21: lamindb's class ranks and flags all checkpoints of a prefix together."""
    prefix = uuid4().hex
    names = []
    for number, callback in enumerate("ABAB"):
        names.append(f"{prefix}/checkpoints/{number}.ckpt")
        values = {
            "score": float(number),
            "model_rank": 0,
            "is_best_model": number < 2,
            "is_last_model": True,
        }
        save(names[-1], str(number).encode(), callback=callback, is_best=number < 2, features=values)  # fmt: skip
    assert ranks_and_flags(lab, names) == [
        (0, True, False), (0, True, False), (1, False, True), (1, False, True)
    ]  # fmt: skip


@of_lamindb
def test_flags_reach_no_other_run(lab, save):
    prefix = uuid4().hex
    values = {"score": 1.0, "model_rank": 0, "is_best_model": True, "is_last_model": True}
    names = [f"{prefix}/checkpoints/{n}.ckpt" for n in "ab"]
    save(names[0], b"a", run=1, is_best=True, features=values)
    save(names[1], b"b", run=0, is_best=True, features=values)
    assert ranks_and_flags(lab, names) == [(0, True, True)] * 2


@of_lamindb
def test_checkpoint_that_was_set_aside_for_a_while_takes_no_flags(lab, save):
    prefix = uuid4().hex
    values = {"score": 1.0, "model_rank": 0, "is_best_model": True, "is_last_model": True}
    names = [f"{prefix}/checkpoints/{n}.ckpt" for n in "ab"]
    save(names[0], b"a", is_best=True, features=values)
    early = (BEGAN - timedelta(seconds=9)).isoformat(timespec="microseconds")
    save(names[1], b"b", is_best=True, features=values | {"score": 2.0}, at=early)
    assert ranks_and_flags(lab, names) == [(0, True, True), (1, False, False)]


@of_lamindb
def test_order_is_that_of_the_saves_whatever_the_clock_says(lab, save):
    """The clock goes back before each save; the third is published late, after the fourth."""
    prefix = uuid4().hex
    names = [f"{prefix}/checkpoints/{n}.ckpt" for n in "abcd"]
    for number in (0, 1, 3, 2):
        at = (BEGAN - timedelta(hours=number)).isoformat(timespec="microseconds")
        values = {"score": 1.0, "model_rank": 0, "is_best_model": number < 2, "is_last_model": True}
        save(names[number], names[number].encode(), is_best=number < 2, features=values,
             at=at, notes={"order": number})  # fmt: skip
    assert ranks_and_flags(lab, names) == [
        (0, False, False), (1, True, False), (2, False, False), (3, False, True)
    ]  # fmt: skip


@of_lamindb
def test_save_of_an_earlier_version_comes_before_those_that_are_numbered(lab, save):
    prefix = uuid4().hex
    values = {"score": 1.0, "model_rank": 0, "is_best_model": True, "is_last_model": True}
    names = [f"{prefix}/checkpoints/{n}.ckpt" for n in "abc"]
    save(names[1], b"b", is_best=True, features=values, notes={"order": 0})
    late = (BEGAN + timedelta(hours=9)).isoformat(timespec="microseconds")
    save(names[0], b"a", is_best=True, features=values, at=late)
    assert ranks_and_flags(lab, names[:2]) == [(0, False, False), (1, True, True)]
    save(names[2], b"c", is_best=True, features=values, notes={"order": 1})
    assert ranks_and_flags(lab, names) == [(0, False, False), (1, False, False), (2, True, True)]


@of_lamindb
def test_statements_do_not_grow_with_the_checkpoints(lab, save):
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    prefix = uuid4().hex
    costs = []
    for number in range(60):
        values = {"score": 1.0 / (number + 1), "model_rank": 0, "is_best_model": True,
                  "is_last_model": True, "monitor": "loss", "mode": "min"}  # fmt: skip
        with CaptureQueriesContext(connection) as queries:
            save(f"{prefix}/checkpoints/{number}.ckpt", str(number).encode(), is_best=True, features=values)  # fmt: skip
        costs.append(len(queries))
    assert max(costs[5:]) <= 20, costs
    assert costs[-1] <= costs[10]


@of_lamindb
def test_value_that_does_not_fit_is_left_out(lab, save, capsys):
    name = key()
    save(name, features={"score": "high", "is_last_model": True, "save_weights_only": True})
    assert lab.values(name) == {"is_last_model": True, "save_weights_only": True}
    assert "'high' does not fit the type float of the feature score" in capsys.readouterr().err


@of_lamindb
def test_versions_of_two_runs_at_once_do_not_share_a_place(lab, save, monkeypatch):
    """The other run publishes between the moment we choose a uid and the moment we store."""
    from lamindb.errors import IntegrityError as LaminIntegrityError

    from lamincli.registry import storage

    name = key()
    save(name, b"first", run=1)
    describe, met = storage.describe, []

    def describe_and_meet(path):
        about = describe(path)
        if not met:
            met.append(True)
            save(name, b"of the other", run=0)
        return about

    monkeypatch.setattr(storage, "describe", describe_and_meet)
    with suppress(IntegrityError, LaminIntegrityError):
        save(name, b"of the first, again", run=1)
    found = lab.artifacts(name)
    assert len({a.uid for a in found}) == len({str(a.row.path) for a in found}) == len(found)
    assert all(len(a.content) == a.row.size for a in found)


@of_lamindb
def test_artifact_that_another_run_has_made_too_is_handed_over(lab, save):
    name = key()
    job, _ = save(name, b"same", run=1)
    save(name, b"same", run=0)
    lab.registry.remove(replace(job, action="remove"), lambda job: None)
    (artifact,) = lab.artifacts(name)
    assert (artifact.run, artifact.content) == (lab.runs[0], b"same")


@pytest.mark.parametrize("lab", ["postgres"], indirect=True)
def test_storage_that_is_not_mounted_is_an_outage(lab, save):
    root = Path(lab.ln.settings.storage.root)
    (root / ".lamindb").rename(root / "away")
    try:
        with pytest.raises(ConnectionError, match="is its disk mounted"):
            save(key())
    finally:
        (root / "away").rename(root / ".lamindb")


@of_lamindb
def test_foreign_rank_values_do_no_harm(lab, save):
    feature = lab.ln.Feature.get(uid=lab.features["model_rank"])
    lab.ln.models.JsonValue.get_or_create(feature, 1007)
    prefix = uuid4().hex
    names = [f"{prefix}/checkpoints/{n}.ckpt" for n in "abc"]
    for number, name in enumerate(names):
        values = {
            "score": float(number),
            "model_rank": 0,
            "is_best_model": False,
            "is_last_model": True,
        }
        save(name, name.encode(), features=values)
    assert [lab.values(name)["model_rank"] for name in names] == [0, 1, 2]


@of_lamindb
@pytest.mark.parametrize("key_is_virtual", [True, False])
@pytest.mark.parametrize("step", ["storage.store", "values.link_values"])
def test_predecessor_stays_until_its_successor_is_committed(
    lab, save, monkeypatch, step, key_is_virtual
):
    """The storage, or the database, goes away while the successor is published."""
    from lamincli import registry

    module, name = step.split(".")
    module = getattr(registry, module)
    old = key()
    about = {"features": {"is_last_model": True}, "key_is_virtual": key_is_virtual}
    save(old, b"old", **about)
    monkeypatch.setattr(module, name, lambda *_: (_ for _ in ()).throw(ConnectionError("away")))
    with pytest.raises(ConnectionError):
        save(old, b"new", **about)
    (artifact,) = lab.artifacts(old)
    assert artifact.content == b"old"
    assert lab.values(old)["is_last_model"] is True


@of_lamindb
def test_run_is_annotated_and_closed(lab, save):
    job, _ = save(key())
    features = {lab.features["max_epochs"]: 3, lab.features["precision"]: "32-true"}
    for _ in range(2):
        lab.registry.annotate(replace(job, action="annotate", features=features))
        lab.registry.close_run(replace(job, action="close", status="errored"), None)
    run = lab.ln.Run.get(uid=lab.runs[0])
    assert (run.status, run.finished_at.isoformat(timespec="microseconds")) == ("errored", job.at)
    values = [v.value for v in run.json_values.order_by("id")]
    assert sorted(map(str, values)) == ["3", "32-true"]


@pytest.fixture
def begin(lab):
    """Begin a run, or an attempt to go on with one, as the publisher does; twice, each."""
    from lamincli.registry.runs import Beginning, leave_context

    code = uuid4().hex

    def run(uid, started=BEGAN, **about):
        at = started.isoformat()
        attempt = {"started_at": at, "host": "here", "command": "fit"}
        beginning = Beginning(
            uid, at, key=f"{code}.py", code=code, program="train.py", command="fit",
            record={"stage": "fit", "job": None, **about.pop("record", {})}, attempt=attempt,
            params={"max_epochs": 1}, has_lightning_features=False, **about,
        )  # fmt: skip
        for _ in range(2):
            lab.registry.begin_run(Job("begin", uid, "me/here", "ab", at, notes=asdict(beginning)))
        return lab.ln.Run.get(uid=uid)

    yield run
    leave_context()


def close(lab, run, status, at, reason=""):
    job = Job("close", run.uid, "me/here", "ab", at.isoformat(), status=status)
    job = replace(job, notes={"reason": reason} if reason else {})
    for _ in range(2):
        lab.registry.close_run(job, None)
    run.refresh_from_db()
    return run


def attempts(run):
    return [(one["started_at"], one.get("status")) for one in run.extra_data[OURS]["attempts"]]


@of_lamindb
def test_run_begins_and_ends_once_with_its_own_times(lab, begin):
    run = begin(uuid4().hex[:16])
    assert (run.status, run.started_at, run.params) == ("started", BEGAN, {"max_epochs": 1})
    assert run.transform.key == f"{run.transform.source_code}.py"
    close(lab, run, "completed", BEGAN + timedelta(hours=1))
    assert (run.status, run.finished_at) == ("completed", BEGAN + timedelta(hours=1))
    assert attempts(run) == [(BEGAN.isoformat(), "completed")]


@of_lamindb
def test_run_goes_on_once_an_attempt(lab, begin):
    later = BEGAN + timedelta(hours=2)
    run = begin(uuid4().hex[:16])
    close(lab, run, "aborted", BEGAN + timedelta(hours=1), "it was stopped")
    assert run.extra_data[OURS]["reason"] == "it was stopped"
    run = begin(run.uid, later, goes_on=True)
    assert (run.status, run.finished_at, run.started_at) == ("restarted", None, BEGAN)
    assert "reason" not in run.extra_data[OURS], "that was of the attempt before"
    assert run.extra_data[OURS]["attempts"][0]["reason"] == "it was stopped"
    close(lab, run, "scheduled", later + timedelta(hours=1))
    assert (run.status, run.finished_at) == ("scheduled", None)
    assert attempts(run) == [(BEGAN.isoformat(), "aborted"), (later.isoformat(), "requeued")]
    with pytest.raises(RecordError, match="no run"):
        begin(uuid4().hex[:16], goes_on=True)


@of_lamindb
def test_parent_of_a_run_that_is_there_or_is_not(lab, begin, capsys):
    parent = begin(uuid4().hex[:16])
    child = begin(uuid4().hex[:16], parent=parent.uid)
    assert child.initiated_by_run == parent
    assert begin(uuid4().hex[:16], parent="no-such-run").initiated_by_run is None
    assert "no parent is recorded" in capsys.readouterr().err


@of_lamindb
def test_tasks_of_an_array_share_a_parent_that_ends_with_them(lab, begin):
    array = {"cluster": uuid4().hex, "array_job_id": 7, "tasks": 2}
    one, two = (
        begin(uuid4().hex[:16], array=array, record={"slurm": {"array_task_id": task}})
        for task in (1, 2)
    )
    parent = one.initiated_by_run
    assert two.initiated_by_run == parent
    statuses = []
    for run, status in ((one, "completed"), (two, "errored"), (two, "completed")):
        close(lab, run, status, BEGAN)
        parent.refresh_from_db()
        statuses.append((parent.status, parent.finished_at is not None))
    assert statuses == [("started", False), ("errored", True), ("completed", True)]
