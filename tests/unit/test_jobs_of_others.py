"""Only this user's own word is acted on: what somebody else has put into a spool is data."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
from registries import MemoryRegistry

from lamincli.errors import UntrustedError
from lamincli.publisher import Drainer
from lamincli.spool import NOT_OURS, Job, Spool
from lamincli.spool.content import measure, why_changed
from lamincli.spool.seal import is_ours, sealed


@pytest.fixture(autouse=True)
def me(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "me"))


@pytest.fixture
def somebody_else(tmp_path, monkeypatch):
    """Write a spool as another user, or on another machine."""

    def write(*jobs, files=()):
        with monkeypatch.context() as other:
            other.setenv("XDG_STATE_HOME", str(tmp_path / "somebody-else"))
            spool = Spool(tmp_path / "clone" / ".lamin_spool" / "RUN")
            for job, file in zip(jobs, [*files, *[None] * len(jobs)], strict=False):
                spool.add(job, file)
        return spool.folder

    return write


@pytest.fixture
def secret(tmp_path):
    file = tmp_path / "home" / ".ssh" / "id_rsa"
    file.parent.mkdir(parents=True)
    file.write_text("my private key")
    return file


def job(action="save", key="k/a.ckpt", **others):
    return Job(action, "RUN", "me/here", "ab" * 16, "2026-01-01T00:00:00+00:00", key=key, **others)


def drained(folder, **options):
    """Publish all that may be published; returns the registry and what was not."""
    spool, registry = Spool(folder, **options), MemoryRegistry()
    assert spool.lock.acquire()
    drainer = Drainer(spool, registry)
    drainer.recover()
    while drainer.step() == "done":
        pass
    spool.close()
    return registry, drainer.parked


def killed(work):
    """Do something in a process that is gone then."""
    if (pid := os.fork()) == 0:
        work()
        os._exit(0)
    os.waitpid(pid, 0)


def forged(folder, name, content, state="ready"):
    place = folder / state / name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps(content))


def test_job_of_somebody_else_is_left_as_it_is(somebody_else, tmp_path):
    file = tmp_path / "a.ckpt"
    file.write_text("weights")
    folder = somebody_else(job(), job("remove"), files=[file])
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != "lock"}
    registry, parked = drained(folder)
    assert registry.calls == []
    assert [reason for _, reason in parked] == [NOT_OURS, NOT_OURS]
    assert {p: p.read_bytes() for p in before} == before
    assert Spool(folder).holds("save") is False
    assert Spool(folder).look(folder / "ready", "00000001.json") is None


def test_job_of_somebody_else_is_done_where_the_user_trusts_it(somebody_else, tmp_path):
    file = tmp_path / "a.ckpt"
    file.write_text("weights")
    registry, parked = drained(somebody_else(job(), files=[file]), is_trusted=True)
    assert [entry.content for entry in registry.entries] == [b"weights"]
    assert parked == []


@pytest.mark.parametrize("change", [{"key": "other"}, {"run": "OTHER"}, {"pin": "pins/00000002/a"},
                                    {"doomed": {"uid": "store:key"}}, {"local_path": "/etc/passwd"}])  # fmt: skip
def test_job_that_was_changed_is_not_ours(tmp_path, change):
    spool = Spool(tmp_path / ".lamin_spool" / "RUN")
    file = tmp_path / "a.ckpt"
    file.write_text("weights")
    name, _ = spool.add(job(), file)
    place = spool.ready / name
    place.write_text(json.dumps(json.loads(place.read_text()) | change))
    registry, parked = drained(spool.folder)
    assert (registry.calls, len(parked)) == ([], 1)


@pytest.mark.parametrize("where", ["another number", "another run"])
def test_job_that_was_copied_is_not_ours(tmp_path, where):
    spool = Spool(tmp_path / ".lamin_spool" / "RUN")
    name, _ = spool.add(job("remove"))
    target = spool.ready / "00000002.json"
    if where == "another run":
        target = tmp_path / ".lamin_spool" / "OTHER" / "ready" / name
        target.parent.mkdir(parents=True)
    shutil.copy(spool.ready / name, target)
    registry, _ = drained(target.parents[1])
    assert len(registry.calls) == (1 if where == "another number" else 0)


def test_own_jobs_are_done_beside_those_of_somebody_else(somebody_else, tmp_path):
    file = tmp_path / "a.ckpt"
    file.write_text("weights")
    folder = somebody_else(job(key="theirs"), files=[file])
    Spool(folder).add(job(key="mine"), file)
    registry, parked = drained(folder)
    assert [entry.key for entry in registry.entries] == ["mine"]
    assert [reason for _, reason in parked] == [NOT_OURS]
    assert (folder / "ready" / "00000001.json").exists()


# -- contained, also where the user trusts it, and where it is the user's own --------------------


@pytest.mark.parametrize("pin", ["../../../home/.ssh/id_rsa", "/{secret}", "pins/00000002/id_rsa",
                                 "pins/00000001/../00000002/a", "deferred/x", "pins/00000001"])  # fmt: skip
def test_only_files_of_the_spool_are_published(somebody_else, secret, pin):
    pin = pin.format(secret=str(secret)[1:])
    content = job(pin=pin, size_bytes=secret.stat().st_size, stamp="1-2-3-4").to_dict()
    folder = somebody_else()
    forged(folder, "00000001.json", content)
    registry, parked = drained(folder, is_trusted=True)
    assert (registry.entries, len(parked)) == ([], 1)


@pytest.mark.parametrize("is_trusted", [True, False])
@pytest.mark.parametrize("what", ["the file", "its folder", "the pins", "a file in a folder"])
def test_no_link_is_followed_out_of_the_spool(tmp_path, secret, what, is_trusted):
    spool = Spool(tmp_path / "project" / ".lamin_spool" / "RUN")
    file = tmp_path / "project" / "id_rsa"
    file.parent.mkdir(exist_ok=True)
    if what == "a file in a folder":
        file = file.with_suffix(".ckpt")
        file.mkdir()
        (file / "id_rsa").write_text("my private key")
    else:
        file.write_text("my private key")
    _, added = spool.add(job(), file)
    pin = spool.folder / added.pin
    place = {"the file": pin, "its folder": pin.parent, "the pins": spool.pins,
             "a file in a folder": pin / "id_rsa"}[what]  # fmt: skip
    os.rename(place, tmp_path / "aside")
    target = secret if place.name == "id_rsa" else secret.parent
    place.symlink_to(target)
    spool = Spool(spool.folder, is_trusted=is_trusted)
    try:
        registry, parked = drained(spool.folder, is_trusted=is_trusted)
    except UntrustedError:
        return  # a state folder is none
    finally:
        spool.lock.release()
    assert (registry.entries, len(parked)) == ([], 1)
    assert secret.read_text() == "my private key"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
@pytest.mark.parametrize("is_within", [False, True])
def test_pipe_in_the_place_of_a_file_hangs_nobody(somebody_else, tmp_path, is_within):
    file = tmp_path / "a.ckpt"
    file.write_bytes(b"weights")
    folder = somebody_else(job(), job(key="k/b.ckpt"), files=[file, file])
    pin, _ = sorted((folder / "pins").rglob("a.ckpt"))
    pin.unlink()
    if is_within:
        pin.mkdir()
    os.mkfifo(pin / "part" if is_within else pin)
    registry, ((_, reason),) = drained(folder, is_trusted=True)
    assert len(registry.entries) == 1
    assert "is a link, a pipe or a device" in reason


@pytest.mark.parametrize("state", ["tmp", "ready", "claimed", "parked", "pins", "deferred"])
def test_a_state_that_is_a_link_is_refused(somebody_else, secret, state):
    folder = somebody_else(job("remove"))
    shutil.rmtree(folder / state, ignore_errors=True)
    (folder / state).symlink_to(secret.parent)
    spool = Spool(folder, is_trusted=True)
    for what in (spool.recover, spool.unpark):
        with pytest.raises(UntrustedError, match="no folder, but a link"):
            what()
    spool.discard()
    assert secret.exists()
    assert not folder.exists()


def test_deferred_job_of_somebody_else_pins_no_file_of_the_user(somebody_else, secret):
    """As a clone did with a private key: `sync` pinned it and uploaded it."""
    for options in ({}, {"is_trusted": True}):
        folder = somebody_else(job("annotate"))
        forged(folder, "history.json", job(local_path=str(secret)).to_dict(), "deferred")
        registry, _ = drained(folder, **options)
        assert registry.entries == []


def test_own_deferred_job_pins_no_link(tmp_path, secret):
    spool = Spool(tmp_path / "project" / ".lamin_spool" / "RUN")
    file = tmp_path / "project" / "history.csv"
    file.parent.mkdir(exist_ok=True)
    file.write_text("step,name,value\n")
    killed(lambda: spool.defer(job(kind="history", local_path=str(file))))
    file.unlink()
    file.symlink_to(secret)
    assert drained(spool.folder)[0].entries == []


def test_deferred_file_is_found_after_the_project_has_moved(tmp_path):
    spool = Spool(tmp_path / "old" / ".lamin_spool" / "RUN")
    file = tmp_path / "old" / "logs" / "history.csv"
    file.parent.mkdir(parents=True)
    file.write_text("step,name,value\n")
    killed(lambda: spool.defer(job(kind="history", local_path=str(file))))
    os.rename(tmp_path / "old", tmp_path / "new")
    registry, _ = drained(tmp_path / "new" / ".lamin_spool" / "RUN")
    assert [entry.content for entry in registry.entries] == [b"step,name,value\n"]


def test_nothing_is_removed_but_what_the_spool_has_made(somebody_else, tmp_path):
    precious = tmp_path / "precious"
    (precious / "data").mkdir(parents=True)
    folder = somebody_else(job("remove"))
    (folder / "pins" / "00000001").mkdir()
    (folder / "pins" / "00000001" / "beside").symlink_to(precious)
    drained(folder, is_trusted=True)
    Spool(folder).discard()
    assert (precious / "data").is_dir()


@pytest.mark.parametrize("field", ["run", "uid", "storage", "kind"])
def test_names_are_names(somebody_else, field):
    folder = somebody_else()
    forged(folder, "00000001.json", {**job().to_dict(), field: "../../x"})
    registry, parked = drained(folder, is_trusted=True)
    assert (registry.calls, len(parked)) == ([], 1)


def test_what_a_run_begins_with_asks_no_other_instance(somebody_else):
    notes = {"references": {"a": {"uid": "1", "instance": "evil/one"}, "b": {"uid": "2"}},
             "used": {"uid": "3", "instance": "evil/one"}}  # fmt: skip
    spool = Spool(somebody_else(job("begin", notes=notes)), is_trusted=True)
    begin = spool.read("00000001.json")
    assert begin.notes == {"references": {"b": {"uid": "2"}}, "used": {}}


def test_spool_is_for_its_user_alone(tmp_path):
    spool = Spool(tmp_path / ".lamin_spool" / "RUN")
    name, _ = spool.add(job("remove"))
    assert oct(spool.folder.stat().st_mode & 0o777) == "0o700"
    assert oct((spool.ready / name).stat().st_mode & 0o777) == "0o600"


# -- the seal ------------------------------------------------------------------------------------


def test_seal_is_that_of_all_processes_of_a_user(tmp_path):
    code = (
        "import json, sys; from lamincli.spool.seal import sealed;"
        "print(json.dumps(sealed({'a': [1, 0.5, None, 'é']}, 'about')))"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    contents = [json.loads(process.communicate()[0]) for process in processes]
    assert all(is_ours(content, "about") for content in contents)
    assert not is_ours(contents[0], "something else")
    assert not is_ours({**contents[0], "b": 1}, "about")
    assert [p.name for p in (tmp_path / "me" / "lamin-train").iterdir()] == ["key"]


def test_key_is_for_its_user_alone(tmp_path, monkeypatch):
    key = tmp_path / "me" / "lamin-train" / "key"
    content = sealed({"a": 1}, "about")
    assert oct(key.stat().st_mode & 0o777) == "0o600"
    monkeypatch.setattr("lamincli.spool.seal._keys", {})
    assert is_ours(content, "about")
    key.chmod(0o644)  # somebody may have read it
    monkeypatch.setattr("lamincli.spool.seal._keys", {})
    assert not is_ours(content, "about")
    assert oct(key.stat().st_mode & 0o777) == "0o600"


def test_key_that_is_a_link_is_not_taken(tmp_path, monkeypatch):
    place = tmp_path / "me" / "lamin-train" / "key"
    place.parent.mkdir(parents=True)
    theirs = tmp_path / "theirs"
    theirs.write_bytes(b"x" * 32)
    place.symlink_to(theirs)
    assert is_ours(sealed({"a": 1}, "about"), "about")
    monkeypatch.delenv("LAMIN_TRAIN_SEAL_KEY", raising=False)


def test_home_that_keeps_no_key_is_done_without(tmp_path, monkeypatch):
    """The job and the processes that it starts know their own jobs; a later sync asks for trust."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    monkeypatch.setenv("LAMIN_TRAIN_SEAL_KEY", "")
    content = sealed({"a": 1}, "about")
    assert is_ours(content, "about")
    code = f"from lamincli.spool.seal import is_ours; print(is_ours({content!r}, 'about'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


# -- a file is known by its content ----------------------------------------------------------------


def weights(size, value=1):
    import io
    import zipfile

    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("data", bytes([value]) * size)
    return archive.getvalue()


@pytest.mark.parametrize("size", [100, 200_000])
@pytest.mark.parametrize("is_identified", [True, False])
@pytest.mark.parametrize("carrier", ["cp", "tar", "mtime"])
def test_carried_spool_is_published(tmp_path, size, is_identified, carrier):
    """Also where the process was killed before the content of a large file could be hashed."""
    spool = Spool(tmp_path / "old" / ".lamin_spool" / "RUN")
    file = tmp_path / "old" / "a.ckpt"
    file.parent.mkdir()
    file.write_bytes(weights(size))
    name, added = spool.add(job(), file)
    if is_identified:
        added = spool.identify(name, added)
    new = tmp_path / "new"
    if carrier == "cp":
        subprocess.run(["cp", "-r", tmp_path / "old", new], check=True)
    elif carrier == "tar":
        new.mkdir()
        subprocess.run(["bash", "-c", f"tar -C {tmp_path}/old -c . | tar -C {new} -x"], check=True)
    else:
        shutil.copytree(tmp_path / "old", new, copy_function=shutil.copyfile)
    spool = Spool(new / ".lamin_spool" / "RUN")
    assert why_changed(spool.pin_of(added), added.size_bytes, added.stamp, added.digest) is None


@pytest.mark.parametrize("is_identified", [True, False])
def test_zeros_of_the_right_size_are_told(tmp_path, is_identified):
    """As after a power cut: the size and the times are on the disk, the content is not."""
    spool = Spool(tmp_path / ".lamin_spool" / "RUN")
    file = tmp_path / "a.ckpt"
    file.write_bytes(weights(200_000))
    name, added = spool.add(job(), file)
    if is_identified:
        added = spool.identify(name, added)
    pin = spool.pin_of(added)
    for start in (0, 100_000):
        with open(pin, "r+b") as content:
            content.seek(start)
            content.write(bytes(200_000 - start))
        stamp = added.stamp.rpartition("-")[0] + "-earlier"  # boot of the machine
        assert why_changed(pin, pin.stat().st_size, stamp, added.digest)


def test_file_that_was_written_over_is_told(tmp_path):
    file = tmp_path / "a.ckpt"
    file.write_bytes(weights(200_000))
    size, stamp = measure(file)
    assert why_changed(file, size, stamp, "") is None
    os.utime(file, ns=(1, 1))
    assert why_changed(file, size, stamp, "") == "it was written to since"


def test_job_that_waits_gets_the_hash_of_its_content(tmp_path):
    spool = Spool(tmp_path / ".lamin_spool" / "RUN")
    file = tmp_path / "a.ckpt"
    file.write_bytes(weights(200_000))
    assert spool.lock.acquire()
    drainer = Drainer(spool, MemoryRegistry(), is_held=True)
    drainer.recover()
    name, added = spool.add(job(), file)
    assert added.digest == ""
    drainer.arrive(name, added)
    while drainer.step() == "done":
        pass
    assert len(spool.read(name).digest) == 64
    assert replace(spool.read(name), digest="") == added
