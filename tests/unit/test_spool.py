"""The durable queue, without torch, Lightning or LaminDB."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lamincli import process
from lamincli.errors import SpoolCorruptError, SpoolVersionError
from lamincli.process import ProcessIdentity
from lamincli.spool import Job, Spool, adding, disk, known_spools, left_behind, spools_below
from lamincli.spool.index import index_folder


@pytest.fixture(autouse=True)
def index(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def spool(tmp_path):
    return Spool(tmp_path / "project" / ".lamin_spool" / "RUN")


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "project" / "a.ckpt"
    path.parent.mkdir()
    path.write_bytes(b"weights")
    return path


def job(key="k/a.ckpt", action="save", **others):
    return Job(action, "RUN", "me/here", "ab" * 16, "2026-01-01T00:00:00+00:00", key=key, **others)


def test_job_round_trip():
    full = job(uid="u" * 20, features={"F1": 1.5, "F2": [1, 2], "F3": {"a": None}}, is_best=True)
    assert Job.from_json(full.to_json()) == full


def test_older_fields_may_be_missing():
    content = json.loads(job().to_json())
    for name in ("doomed", "status", "mode"):
        del content[name]
    assert Job.from_json(json.dumps(content)) == job()


@pytest.mark.parametrize(
    ("text", "error", "why"),
    [
        ("", SpoolCorruptError, "no job file"),
        (job().to_json()[:100], SpoolCorruptError, "no job file"),
        ("[1, 2]", SpoolCorruptError, "no version"),
        ('{"version": 1}', SpoolCorruptError, "incomplete"),
        (job().to_json().replace('"save"', '"explode"'), SpoolCorruptError, "action"),
        (job().to_json().replace('"k/a.ckpt"', "7"), SpoolCorruptError, "its key is 7"),
        (job().to_json().replace('"uid"', '"colour"'), SpoolCorruptError, "unknown fields: colour"),
        (job().to_json().replace('"version": 3', '"version": 99'), SpoolVersionError, "upgrade"),
    ],
)
def test_what_is_no_job_is_refused(text, error, why):
    with pytest.raises(error, match=why):
        Job.from_json(text)


def test_adding_pins_by_a_hard_link(spool, checkpoint):
    name, added = spool.add(job(), checkpoint)
    assert name == "00000001.json"
    assert spool.pin_of(added).samefile(checkpoint)
    assert (added.size_bytes, spool.names()) == (7, [name])
    assert spool.read(name) == added
    checkpoint.unlink()
    assert spool.pin_of(added).read_bytes() == b"weights"


def test_adding_costs_the_same_however_many_there_are(spool, checkpoint, monkeypatch):
    """No call to the file system grows with the number of jobs."""
    calls = []
    for name in ("open", "link", "mkdir", "replace", "listdir", "scandir", "stat", "fsync"):
        function = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *a, f=function, n=name, **k: (calls.append(n), f(*a, **k))[1]
        )
    costs = []
    for _ in range(60):
        calls.clear()
        spool.add(job(), checkpoint)
        costs.append(sorted(calls))
    assert costs[1] == costs[-1]
    assert not {"listdir", "scandir", "fsync"} & set(costs[-1])


def test_folder_is_pinned_file_by_file(spool, tmp_path):
    folder = tmp_path / "sharded.ckpt"
    (folder / "meta").mkdir(parents=True)
    (folder / "rank0").write_bytes(b"00")
    (folder / "meta" / "plan").write_bytes(b"plan")
    _, added = spool.add(job(), folder)
    pin = spool.pin_of(added)
    assert (pin / "meta" / "plan").samefile(folder / "meta" / "plan")
    assert added.size_bytes == 6


def test_other_file_system_is_pinned_beside_the_checkpoint(spool, checkpoint, monkeypatch):
    link = os.link

    def refuse(source, target):
        if ".lamin_spool/RUN/" in str(target):
            raise OSError(18, "Invalid cross-device link")
        link(source, target)

    monkeypatch.setattr(os, "link", refuse)
    name, added = spool.add(job(), checkpoint)
    assert spool.pin_of(added).samefile(checkpoint)
    assert spool.pin_of(added).is_relative_to(checkpoint.parent / ".lamin_spool")
    spool.claim(name)
    spool.finish(name)
    assert not spool.pin_of(added).exists()
    assert os.listdir(spool.pins) == []


def test_orphan_beside_a_checkpoint_is_found_again(spool, checkpoint, monkeypatch):
    link = os.link
    monkeypatch.setattr(
        os,
        "link",
        lambda s, t: link(s, t) if "RUN-0" in str(t) else (_ for _ in ()).throw(OSError(18, "x")),
    )
    name, added = spool.add(job(), checkpoint)
    (spool.ready / name).unlink()  # killed before the job was there
    spool.recover()
    assert not spool.pin_of(added).exists()


def test_file_system_without_links_is_copied(spool, checkpoint, monkeypatch):
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(95, "no links")))
    _, added = spool.add(job(), checkpoint)
    pin = spool.pin_of(added)
    assert pin.read_bytes() == b"weights"
    assert not pin.samefile(checkpoint)
    assert not list(checkpoint.parent.glob(".lamin_spool/RUN-*"))


def test_full_disk_makes_no_job(spool, checkpoint, monkeypatch):
    spool.add(job(), checkpoint)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        spool.add(job(), checkpoint)
    monkeypatch.undo()
    assert os.listdir(spool.pins) == ["00000001"]
    assert os.listdir(spool.tmp) == []
    assert spool.add(job(), checkpoint)[0] == "00000002.json"


def test_states_are_folders(spool, checkpoint):
    name, added = spool.add(job(), checkpoint)
    spool.claim(name)
    assert (spool.names(), spool.names(spool.claimed)) == ([], [name])
    spool.claim(name)
    assert spool.pending() == [name], "claimed once, it stays claimed"
    spool.park(name, "the storage is read-only")
    assert list(spool.parked_jobs()) == [(name, added, "the storage is read-only")]
    assert spool.unpark() == 1
    assert spool.names() == [name]
    assert list(spool.parked_jobs()) == []


def test_recovery_after_a_crash(spool, checkpoint):
    """A claimed job comes first; a pin without a job, and half a job, are gone."""
    first, _ = spool.add(job(), checkpoint)
    second, _ = spool.add(job("k/b.ckpt"), checkpoint)
    third, _ = spool.add(job("k/c.ckpt"), checkpoint)
    spool.claim(first)
    (spool.ready / third).unlink()
    (spool.tmp / "00000004.json").write_text("{")
    spool.recover()
    assert spool.pending() == [first, second]
    assert sorted(os.listdir(spool.pins)) == ["00000001", "00000002"]
    assert os.listdir(spool.tmp) == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("00000007.json", ""),
        ("00000007.json", "{torn"),
        ("00000007.json", "\udcff"),
        ("notes.txt", "written by somebody"),
        ("00000007.json", job().to_json().replace('"version": 3', '"version": 4')),
    ],
)
def test_what_is_no_job_is_parked_and_blocks_nothing(spool, checkpoint, name, text):
    good, _ = spool.add(job(), checkpoint)
    (spool.ready / name).write_bytes(text.encode(errors="surrogateescape"))
    spool.recover()
    readable = [n for n in spool.names() if spool.read(n) is not None]
    assert readable == [good]
    ((parked, parsed, reason),) = spool.parked_jobs()
    assert (parked, parsed) == (name, None)
    assert "job file" in reason or "newer" in reason or "codec" in reason


def test_checkpoint_that_is_registered_where_it_lies_has_no_pin_to_put_back(spool):
    _, added = spool.add(job(local_path="s3://bucket/a.ckpt"))
    assert spool.put_back(added) == Path("s3://bucket/a.ckpt")


def test_numbers_go_on_after_a_restart(spool, checkpoint):
    spool.add(job(), checkpoint)
    name, _ = spool.add(job(), checkpoint)
    spool.claim(name)
    spool.park(name, "why")
    again = Spool(spool.folder)
    assert again.add(job(), checkpoint)[0] == "00000003.json"


def test_empty_spool_goes_and_can_be_used_again(spool, checkpoint):
    assert spool.lock.acquire()
    name, _ = spool.add(job(), checkpoint)
    assert known_spools() == [spool.folder]
    spool.claim(name)
    spool.finish(name)
    spool.close()
    assert not spool.folder.parent.exists()
    assert known_spools() == []
    assert spool.add(job(), checkpoint)[0] == "00000001.json"


def test_what_is_left_is_found(spool, checkpoint, tmp_path):
    spool.add(job(), checkpoint)
    assert left_behind() == {spool.folder: 1}
    assert list(spools_below(tmp_path)) == [spool.folder]
    assert list(spools_below(spool.folder)) == [spool.folder]
    assert list(spools_below(tmp_path / "state")) == []


def test_project_that_is_gone_is_forgotten(spool, checkpoint):
    spool.add(job(), checkpoint)
    disk.remove(spool.folder.parent)
    assert known_spools() == []
    assert not list(index_folder().iterdir())


def test_lock_ends_with_its_holder(spool, checkpoint, tmp_path):
    """Another process is kept out, a killed one keeps nobody out."""
    spool.add(job(), checkpoint)
    code = (
        "import sys; from pathlib import Path; from lamincli.spool import Spool; "
        "s = Spool(Path(sys.argv[1])); print(s.lock.acquire(), flush=True); input()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(spool.folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert other.stdout.readline() == "True\n"
    assert not spool.lock.acquire()
    assert left_behind() == {}, "its own process serves it"
    other.kill()
    other.wait()
    assert spool.lock.acquire()
    assert spool.lock.held


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_lock_is_not_inherited_by_forked_workers(spool, checkpoint):
    spool.add(job(), checkpoint)
    assert spool.lock.acquire()
    read, write = os.pipe()
    if os.fork() == 0:
        os.write(write, str(spool.lock.held).encode())
        os._exit(0)
    os.wait()
    assert os.read(read, 9) == b"False"
    assert spool.lock.held


def test_spool_imports_the_standard_library_only():
    code = "import sys; before = set(sys.modules); import lamincli.spool; print(*sorted({m.split('.')[0] for m in set(sys.modules) - before}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    foreign = set(done.stdout.split()) - set(sys.stdlib_module_names) - {"lamincli"}
    assert not foreign


def test_looking_at_a_spool_does_not_take_its_lock(spool, checkpoint):
    """Closing any handle of the file would give up the lock of this process."""
    assert spool.lock.acquire()
    spool.add(job(), checkpoint)
    assert left_behind() == {}
    assert not Spool(spool.folder).lock.acquire()
    code = (
        "import sys; from pathlib import Path; from lamincli.spool import Spool; "
        "print(Spool(Path(sys.argv[1])).lock.acquire())"
    )
    other = [sys.executable, "-c", code, str(spool.folder)]
    assert subprocess.run(other, capture_output=True, text=True, check=True).stdout == "False\n"


def test_file_system_without_locks_is_used_all_the_same(spool, checkpoint, monkeypatch):
    from lamincli.spool import lock

    monkeypatch.setattr(lock, "_lock", lambda handle: (_ for _ in ()).throw(OSError(38, "ENOSYS")))
    assert spool.lock.acquire()


def test_spool_that_cannot_be_opened_hinders_nobody(spool, checkpoint, monkeypatch):
    spool.add(job(), checkpoint)
    monkeypatch.setattr(os, "open", lambda *_: (_ for _ in ()).throw(OSError(30, "read-only")))
    assert left_behind() == {}


def test_spool_that_sync_has_emptied_meanwhile_is_made_anew(spool, checkpoint):
    assert spool.lock.acquire()
    spool.add(job(), checkpoint)
    spool.close()
    disk.remove(spool.folder)
    assert spool.lock.acquire()
    assert spool.add(job(), checkpoint)[0] == "00000001.json"


def test_folder_with_the_name_of_a_job_is_parked(spool, checkpoint):
    good, _ = spool.add(job(), checkpoint)
    (spool.ready / "00000009.json").mkdir()
    assert [n for n in spool.pending() if spool.read(n) is not None] == [good]


def test_a_job_can_be_noted_while_it_is_claimed(spool, checkpoint):
    name, added = spool.add(job(), checkpoint)
    spool.claim(name)
    spool.note(name, replace(added, uid="later"))
    spool.recover()
    assert spool.read(name).uid == "later"


ADDER = """
import sys
from pathlib import Path
from lamincli.spool import Job, Spool
spool, file, name = Spool(Path(sys.argv[1])), Path(sys.argv[2]), sys.argv[3]
for number in range(60):
    at = f"{number:04d}"
    spool.add(Job("save", "RUN", "me/here", "ab", at, key=f"{name}-{number}"), file)
"""


def test_processes_add_at_once_while_another_takes_and_removes_the_folder(spool, checkpoint):
    """Each number once, in the order in which each adds, and nothing lost where it is emptied."""
    command = [sys.executable, "-c", ADDER, str(spool.folder), str(checkpoint)]
    adders = [subprocess.Popen([*command, name]) for name in "abc"]
    done: list[str] = []
    while any(adder.poll() is None for adder in adders) or spool.pending():
        if not spool.folder.exists() or not spool.lock.acquire("sync"):
            continue
        spool.recover()
        for name in spool.pending():
            job = spool.read(name)
            assert spool.pin_of(job).read_bytes() == b"weights"
            spool.claim(name)
            spool.finish(name)
            done.append(job.key)
        spool.close()
    assert [adder.returncode for adder in adders] == [0, 0, 0]
    for name in "abc":
        assert [key for key in done if key[0] == name] == [f"{name}-{n}" for n in range(60)]
    if spool.folder.exists():
        assert spool.lock.acquire()
        spool.close()
    assert not spool.folder.exists()
    assert known_spools() == []


def test_file_that_still_grows_is_left_to_the_process_that_writes_it(spool, checkpoint):
    spool.defer(job("k/history.csv", kind="history", local_path=str(checkpoint)))
    other = Spool(spool.folder)
    other.recover()
    assert other.names() == [], "its training lives"
    (note,) = spool.tmp.glob("deferred history.*")
    note.rename(note.with_name(note.name.replace(f".{os.getpid()}-", ".999999999-")))
    other.recover()
    assert [j.key for _, j in other.jobs()] == ["k/history.csv"]
    assert not list(spool.deferred.iterdir())


@pytest.mark.parametrize(
    ("changes", "is_left"),
    [
        ({}, True),
        ({"pid": os.getppid(), "started_s": None}, True),
        ({"pid": 999_999_999}, False),
        ({"started_s": 1.0}, False),  # the pid is another's by now
        ({"boot_id": "another", "machine_id": "m"}, False),
        ({"pid_namespace": "pid:[1]", "pid": 999_999_999}, True),
        ({"host": "node7", "boot_id": "another", "pid": 999_999_999}, True),
    ],
)
def test_half_made_job_is_left_to_its_process(
    spool, checkpoint, monkeypatch, request, changes, is_left
):
    """Of one that cannot be asked after, for an hour."""
    request.addfinalizer(adding._me.cache_clear)
    read = process._read
    monkeypatch.setattr(process, "_read", lambda p: "m" if "machine" in p else read(p))
    if changes.get("started_s", 0) is None:
        changes["started_s"] = process._started_s(changes["pid"])
    maker = replace(ProcessIdentity.current(), **changes)
    spool.add(job(), checkpoint)
    pin = spool.pins / "00000009"
    pin.mkdir()
    adding._me.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(ProcessIdentity, "current", classmethod(lambda cls: maker))
        note = adding.note(spool.tmp, "00000009") if maker.pid == os.getpid() else None
        who = "-".join([str(maker.pid), str(round(maker.started_s * 100)), *adding._places(maker)])
    adding._me.cache_clear()
    note = note or spool.tmp / f"00000009.{who}.part"
    note.touch()
    spool.recover()
    assert (pin.exists(), note.exists()) == (is_left, is_left)
    os.utime(note, (0, 0)) if is_left else None
    spool.recover()
    assert pin.exists() == (is_left and maker.host != "node7" and "[1]" not in maker.pid_namespace)


def test_numbers_are_never_given_twice(spool, checkpoint):
    """Also if those before are done, so that a later job has the larger number in any process."""
    first, other = spool, Spool(spool.folder)
    for number in range(1, 7):
        name, _ = (first, other)[number % 2].add(job(), checkpoint)
        assert name == f"{number:08d}.json"
        first.claim(name)
        first.finish(name)
