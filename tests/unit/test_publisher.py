"""The drainer and its thread, on a registry in memory."""

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from registries import MemoryRegistry

from lamincli import publisher
from lamincli.publisher import Drainer, Publisher
from lamincli.spool import Job, Spool


@pytest.fixture(autouse=True)
def index(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / ".lamin_spool" / "RUN"


@pytest.fixture
def registry():
    return MemoryRegistry()


def job(key, action="save", **about):
    about = {"uid": f"uid-{key}", "local_path": key, **about}
    return Job(action, "RUN", "me/here", "ab", "2026-01-01", key=key, **about)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.ckpt"
    path.write_bytes(b"weights")
    return path


class Clock:
    now_s = 0.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def drainer(folder, registry):
    spool = Spool(folder)
    assert spool.lock.acquire()
    drainer = Drainer(spool, registry, clock=Clock(), jitter=lambda: 1.0)
    drainer.recover()
    return drainer


def add(drainer, new, file=None):
    drainer.arrive(*drainer.spool.add(new, file))


def away(what, key):
    raise ConnectionResetError("away")


def test_end_of_a_run_is_left_to_sync(folder, registry, sync):
    """Or the end would be lost, and the run be closed as aborted later."""
    Publisher(Spool(folder), registry).leave(job("", "close"))
    assert [job.action for _, job in Spool(folder).jobs()] == ["close"]


@pytest.fixture
def synced(monkeypatch):
    """The files and folders that were written to the disk so far, in order."""
    fsync, paths = os.fsync, []

    def noting(handle):
        paths.append(os.readlink(f"/proc/self/fd/{handle}"))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", noting)
    return paths


def test_end_of_a_run_outlives_a_power_cut(folder, registry, file, synced):
    """Or a completed run would be recorded as aborted: nobody sees to it later."""
    Publisher(Spool(folder), registry).leave(job("log", "close"), file)
    (name,) = Spool(folder).names()
    for path in (
        folder / "ready" / name,
        folder / "ready",
        folder / "pins" / "00000001" / file.name,
    ):
        assert str(path) in synced


def test_job_outlives_a_power_cut_before_it_is_relied_on(folder, registry, file, synced):
    """A save is not, which would wait for the whole checkpoint: the publisher does it at once."""
    publisher = Publisher(Spool(folder), registry, is_held=True)
    publisher.defer(job("history", kind="history", local_path=str(file)))
    publisher.add(job("a"), file)
    publisher.close()
    for name in ("ready/00000001.json", "ready", "pins/00000001", "deferred/history.json"):
        assert str(folder / name) in synced


def test_retries_are_ever_further_apart(drainer, registry, file):
    add(drainer, job("a"), file)
    registry.fail = away
    waits = []
    for _ in range(9):
        assert drainer.step() == "waiting"
        waits.append(drainer.delay_s())
        drainer._clock.now_s += waits[-1]
    assert waits == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    registry.fail = None
    assert drainer.step() == "done"
    assert drainer.failing_since_s is None


def test_warned_once_a_minute_at_most(drainer, registry, file, capsys):
    add(drainer, job("a"), file)
    registry.fail = away
    for _ in range(40):
        drainer.step(retry_now=True)
        drainer._clock.now_s += 5
    warnings = capsys.readouterr().err.count("LaminDB cannot be reached: away; 1 job waits")
    assert warnings == 4, "200 seconds"


def test_a_single_failure_is_not_worth_a_word(drainer, registry, file, capsys):
    add(drainer, job("a"), file)
    registry.fail = away
    drainer.step()
    registry.fail = None
    drainer.step(retry_now=True)
    assert capsys.readouterr().err == ""


def test_parked_job_blocks_no_other(drainer, registry, file, capsys):
    def fail(what, key):
        if key == "b":
            raise PermissionError("no")

    registry.fail = fail
    for key in "abc":
        add(drainer, job(key), file)
    while drainer.step() == "done":
        pass
    assert [key for _, key in registry.calls] == ["a", "c"]
    assert drainer.parked == [("b", "no")]
    assert capsys.readouterr().err.startswith("! b is set aside: no; mend it and run")


def test_our_own_bug_parks_with_a_traceback(drainer, registry, file):
    def fail(what, key):
        raise KeyError("oops")

    registry.fail = fail
    add(drainer, job("a"), file)
    drainer.step()
    ((_, _, reason),) = drainer.spool.parked_jobs()
    assert "Traceback" in reason
    assert "KeyError: 'oops'" in reason


def test_race_is_tried_a_few_times(drainer, registry, file, monkeypatch):
    monkeypatch.setattr(registry, "verdict", lambda error: "race")
    registry.fail = away
    add(drainer, job("a"), file)
    outcomes = [drainer.step(retry_now=True) for _ in range(6)]
    assert outcomes == ["waiting"] * 5 + ["done"]
    assert drainer.parked


def test_removal_voids_the_saves_before_it_only(drainer, registry, file):
    add(drainer, job("a"), file)
    add(drainer, job("b"), file)
    add(drainer, job("a", "remove"))
    add(drainer, job("a", uid="again"), file)
    while drainer.step() == "done":
        pass
    assert registry.calls == [("save", "b"), ("remove", "a"), ("save", "a")]


def test_thread_publishes_and_owners_are_told_of_their_own(folder, registry, file):
    one = Publisher(Spool(folder), registry)
    mine, other = object(), object()
    for key, owner in (("a", mine), ("b", other), ("c", mine)):
        one.add(job(key), file, owner=owner)
    assert one.drain() == 0
    assert [item.job.key for item in one.take(mine)] == ["a", "c"]
    assert [item.job.key for item in one.take(other)] == ["b"]
    assert not one.has_news
    assert registry.threads == {one._thread.ident} != {threading.get_ident()}
    one.close()
    assert not folder.exists()
    one.add(job("d"), file)
    assert one.drain() == 0
    one.close()


def test_inline_publishes_on_the_calling_thread(folder, registry, file):
    one = Publisher(Spool(folder), registry, inline=True)
    one.add(job("a"), file)
    assert registry.calls == [("save", "a")]
    assert registry.threads == {threading.get_ident()}
    one.close()


def test_draining_gives_up_on_a_registry_that_is_away(folder, registry, file, monkeypatch):
    registry.fail = away
    one = Publisher(Spool(folder), registry)
    one.add(job("a"), file)
    assert one.drain(patience_s=0.3) == 1
    assert one.drain(patience_s=60) == 1, "it does not wait a second time"
    one.close()
    assert one.left() == ["a"]
    assert Spool(folder).pending() == ["00000001.json"]


def test_draining_gives_up_on_a_call_that_hangs(folder, registry, file):
    blocked = threading.Event()
    registry.fail = lambda *_: blocked.wait()
    one = Publisher(Spool(folder), registry)
    one.add(job("a"), file)
    assert one.drain(patience_s=0.3) == 1
    blocked.set()
    one.close()


def test_skipping_ends_a_drain(folder, registry, file, monkeypatch):
    registry.fail = away
    one = Publisher.of(folder, lambda: registry)
    one.add(job("a"), file)

    def skip():
        while not publisher.skip_waiting():
            time.sleep(0.01)

    thread = threading.Thread(target=skip)
    thread.start()
    assert one.drain(patience_s=60) == 1
    thread.join()
    assert not publisher.skip_waiting(), "nobody waits"
    one.close()


def test_ctrl_c_ends_a_drain(folder, registry, file, monkeypatch):
    registry.fail = away
    one = Publisher(Spool(folder), registry)
    one.add(job("a"), file)
    sleep = time.sleep

    def interrupted(seconds):
        if threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt
        sleep(seconds)

    monkeypatch.setattr(publisher.time, "sleep", interrupted)
    assert one.drain(patience_s=60) == 1
    monkeypatch.undo()
    one.close()


@pytest.fixture
def sync(folder):
    """`lamin-train sync` in another process, which has the spool; killed, it leaves it."""
    code = (
        "import sys; from pathlib import Path; from lamincli.spool import Spool; "
        "print(Spool(Path(sys.argv[1])).lock.acquire('sync'), flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "True\n"
    yield process
    process.kill()
    process.communicate()


def test_what_is_saved_while_sync_has_the_spool_is_on_the_disk(folder, registry, file, sync):
    """And not in the memory of a training that may be killed."""
    one = Publisher(Spool(folder), registry)
    for key in "abc":
        one.add(job(key), file)
        assert [j.key for _, j in Spool(folder).jobs()][-1] == key
    one.defer(job("history", kind="history"))
    assert len(Spool(folder).entries()) == 4
    assert registry.calls == [], "it publishes them"
    assert one.left() == ["a", "b", "c"]


def test_training_takes_its_spool_back_from_sync(folder, registry, file, sync, capsys):
    one = Publisher(Spool(folder), registry)
    owner = object()
    one.add(job("a"), file, owner=owner)
    threading.Timer(0.3, sync.kill).start()
    assert one.drain() == 0
    told = capsys.readouterr().out
    assert f"run RUN is being published by lamin-train sync, process {sync.pid} on" in told
    assert registry.calls == [("save", "a")]
    assert [item.job.key for item in one.take(owner)] == ["a"], "its owner hears of it"
    one.close()
    assert not folder.exists()


def test_end_of_a_training_waits_no_longer_than_its_patience(folder, registry, file, sync):
    one = Publisher(Spool(folder), registry)
    one.add(job("a"), file)
    assert one.drain(patience_s=0.2) == 1
    assert one.left() == ["a"]
    one.leave(job("", "close", status="completed"))
    assert [j.action for _, j in Spool(folder).jobs()] == ["save", "close"]


def test_what_sync_has_published_or_set_aside_meanwhile_is_known(folder, registry, file, sync):
    one = Publisher(Spool(folder), registry)
    for key in "ab":
        one.add(job(key), file)
    theirs = Spool(folder)
    theirs.claim("00000001.json")
    theirs.finish("00000001.json")
    theirs.claim("00000002.json")
    theirs.park("00000002.json", "no permission")
    assert one.drain(patience_s=0.1) == 1
    assert one.left() == ["b"]


def test_holder_does_what_others_add(folder, registry, file):
    """A process that a strategy spawned, or a training whose spool `sync` has just then."""
    one = Publisher(Spool(folder), registry)
    one.add(job("a"), file)
    Spool(folder).add(job("b"), file)
    assert one.drain() == 0
    assert registry.calls == [("save", "a"), ("save", "b")]
    one.close()
    assert not folder.exists()


def remove_spool(folder):
    shutil.rmtree(folder.parent)


def remove_jobs(folder):
    shutil.rmtree(folder / "ready")


def remove_pins(folder):
    shutil.rmtree(folder / "pins")


def remove_claimed(folder):
    shutil.rmtree(folder / "claimed")


def remove_the_rest(folder):
    for name in ("tmp", "last", "claimed", "parked"):
        shutil.rmtree(folder / name)


@pytest.mark.parametrize(
    "remove", [remove_spool, remove_jobs, remove_pins, remove_claimed, remove_the_rest]
)
@pytest.mark.parametrize("goes_on", [True, False], ids=["goes on", "has ended"])
def test_spool_that_is_removed_is_made_anew(
    folder, registry, file, tmp_path, capsys, remove, goes_on
):
    """With all that is on the disk still, and what follows."""
    registry.fail = away
    one = Publisher(Spool(folder), registry)
    files = [tmp_path / f"{number}.ckpt" for number in range(6)]
    for number, path in enumerate(files):
        path.write_bytes(b"weights" * number)
        one.add(job(str(number), local_path=str(path)), path)
    one.add(job("text", kind="config", local_path=str(file)), file, content="redacted")
    one.defer(job("history", kind="history", local_path=str(file)))
    while one._drainer.failing_since_s is None:
        time.sleep(0.001)
    files[4].unlink()  # by Lightning; its pin was the last of it
    remove(folder)
    if goes_on:
        one.add(job("6"), file)
        registry.fail = None
        one.drain()
    else:
        one.drain(patience_s=0)
        one.close()
        registry.fail = None
        later = Spool(folder)
        assert later.lock.acquire("sync")
        drainer = Drainer(later, registry)
        drainer.recover()
        while drainer.step() == "done":
            pass
        later.lock.release()
    saved = {entry.key: entry.content for entry in registry.entries}
    is_lost = remove in (remove_spool, remove_pins)
    expected = {str(n): b"weights" * n for n in range(6) if not (n == 4 and is_lost)}
    expected |= {"text": b"redacted", **({"6": b"weights"} if goes_on else {})}
    assert saved == expected
    assert len(registry.entries) == len(expected), "each once"
    told = capsys.readouterr().err
    times = told.count("was removed, all or in part, while this process uses it")
    assert times == 1 or (times == 0 and remove is remove_the_rest), told
    assert (f"the files are gone too: {files[4]}" in told) is is_lost
    assert one.left() == ([str(files[4])] if is_lost else [])
    reasons = [reason for _, _, reason in Spool(folder).parked_jobs()]
    assert reasons == [
        f"it was removed from the spool, and {files[4]} is not what it was" for _ in range(is_lost)
    ]
    assert (folder / "deferred" / "history.json").exists()


def test_offline_run_whose_spool_is_removed_is_kept_all_the_same(folder, registry, file, tmp_path):
    one = Publisher(Spool(folder), registry, is_held=True)
    files = [tmp_path / f"{number}.ckpt" for number in range(4)]
    for number, path in enumerate(files):
        path.write_bytes(b"weights" * number)
        one.add(job(str(number), local_path=str(path)), path)
        if number == 2:
            one._thread.join(0.05)
            shutil.rmtree(folder.parent)
    one.drain()
    one.close()
    spool = Spool(folder)
    assert sorted(j.key for _, j in spool.jobs()) == ["0", "1", "2", "3"]
    assert [spool.pin_of(j).read_bytes() for _, j in spool.jobs() if j.key == "2"] == [
        b"weights" * 2
    ]


def test_light_jobs_wait_for_a_pause_of_the_saves(folder, registry, file, monkeypatch):
    one = Publisher(Spool(folder), registry)
    monkeypatch.setattr(publisher, "_QUIET_S", 1000.0)
    with one.saving():
        one.add(job("a"), file)
    big = Path(file).with_name("big.ckpt")
    big.write_bytes(b"0" * (2 << 20))
    assert one._drainer.waits_for_quiet()
    one.add(job("b"), big)
    assert not one._drainer.waits_for_quiet()
    assert one.drain() == 0
    one.close()


def test_jobs_are_added_from_several_threads(folder, registry, file):
    """As by the writer of AsyncCheckpointIO, and by the training that removes."""
    one = Publisher(Spool(folder), registry)

    def add_some(name):
        for number in range(50):
            one.add(job(f"{name}{number}"), file)

    threads = [threading.Thread(target=add_some, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert one.drain() == 0
    assert len(registry.calls) == len(set(registry.calls)) == 200
    one.close()


def test_file_that_is_gone_before_it_is_pinned_blocks_nothing(folder, registry, file):
    one = Publisher(Spool(folder), registry)
    one.add(job("gone"), file.with_name("gone.ckpt"))
    one.add(job("a"), file)
    assert one.drain() == 0
    assert registry.calls == [("save", "a")]
    one.close()


def test_spool_that_somebody_removes_ends_nothing(folder, registry, file):
    registry.fail = away
    one = Publisher(Spool(folder), registry)
    one.add(job("a"), file)
    while one._drainer.failing_since_s is None:
        time.sleep(0.01)
    shutil.rmtree(folder)
    registry.fail = None
    one.drain(patience_s=2)
    one.close()


def test_publisher_goes_on_after_it_has_given_up(folder, registry, file):
    one = Publisher(Spool(folder), registry)
    registry.fail = away
    one.add(job("a"), file)
    assert one.drain(patience_s=0.2) == 1
    one.close()
    assert Spool(folder).lock.acquire(), "sync may have it"
    Spool(folder).lock.release()


def test_second_training_after_an_outage(folder, registry, file):
    registry.fail = away
    one = Publisher(Spool(folder), registry)
    one.add(job("a"), file)
    assert one.drain(patience_s=0.2) == 1
    one.close()
    registry.fail = None
    one.add(job("b"), file)
    assert one.drain() == 0
    assert registry.calls == [("save", "a"), ("save", "b")]
    one.close()


def test_drain_tries_once_more_however_long_the_outage_was(folder, registry, file):
    registry.fail = away
    one = Publisher(Spool(folder), registry)
    one.add(job("a"), file)
    while one._drainer._failures < 2:
        time.sleep(0.01)
    one._drainer.failing_since_s = time.monotonic() - 1000
    one._drainer._retry_at_s = time.monotonic() + 1000
    registry.fail = None
    assert one.drain(patience_s=1) == 0
    one.close()


def test_parked_removal_does_not_take_a_newer_checkpoint(drainer, registry, file):
    add(drainer, job("k"), file)
    drainer.step()

    def fail(what, key):
        if what == "remove":
            raise PermissionError("no")

    registry.fail = fail
    add(drainer, job("k", "remove"))
    drainer.step()
    registry.fail = None
    add(drainer, job("k", uid="newer"), file)
    drainer.step()
    drainer.spool.unpark()
    drainer.recover()
    while drainer.step() == "done":
        pass
    assert [entry.uid for entry in registry.entries] == ["newer"]


def test_job_that_has_begun_is_not_dropped(drainer, registry, file):
    """It may have stored its file: it is published, and replaced by the newer one."""
    registry.fail = away
    add(drainer, job("k"), file)
    drainer.step()
    registry.fail = None
    add(drainer, job("k", uid="newer"), file)
    while drainer.step(retry_now=True) == "done":
        pass
    assert registry.calls == [("save", "k"), ("save", "k")]
    assert [entry.uid for entry in registry.entries] == ["newer"]


def test_what_is_left_is_named_for_the_user(folder, registry, file):
    """A removal that waits is no file that LaminDB lacks."""
    registry.fail = away
    one = Publisher(Spool(folder), registry)
    one.add(job("b"), file)
    one.add(job("a", "remove"))
    one.add(job("", "annotate"))
    one.add(job("", "close", status="completed"))
    one.drain(patience_s=0.1)
    assert one.left() == ["b", "the removal of a", "run features", "the end of the run"]
    one.close()


@pytest.mark.parametrize("action", ["remove", "save"])
def test_job_that_is_parked_after_a_newer_one_arrived_is_forgotten(drainer, registry, file, action):
    """Published by a later sync, it would take, or replace, the newer checkpoint."""

    def fail(what, key):
        if drainer._current[1].uid == "older":
            raise PermissionError("no")

    add(drainer, job("k", action, uid="older"), None if action == "remove" else file)
    registry.fail = away
    drainer.step()  # it has begun, so that the newer one does not drop it
    add(drainer, job("k", uid="newer"), file)
    registry.fail = fail
    while drainer.step(retry_now=True) == "done":
        pass
    assert drainer.parked == []
    registry.fail = None
    drainer.spool.unpark()
    drainer.recover()
    while drainer.step() == "done":
        pass
    assert [entry.uid for entry in registry.entries] == ["newer"]
