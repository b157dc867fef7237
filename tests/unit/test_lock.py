"""Who holds a spool: with record locks, without them, and with those of one host only."""

import contextlib
import json
import os
import subprocess
import sys
import threading
from dataclasses import asdict, replace
from datetime import datetime, timezone

import pytest

from lamincli.process import ProcessIdentity
from lamincli.spool import lock
from lamincli.spool.lock import FORGOTTEN_S, SILENT_S, Holder, ProcessLock

ABSENT = [38, 37, 95]  # ENOSYS, ENOLCK, EOPNOTSUPP

OTHER = """
import errno, sys
from pathlib import Path
from lamincli.spool import lock
number = int(sys.argv[2])
def refuse(handle):
    raise OSError(number, "no locks here")
if number:
    lock._lock = refuse
print(lock.ProcessLock(Path(sys.argv[1])).acquire("sync"), flush=True)
sys.stdin.read()
"""


class Clock:
    now_s = 1000.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def path(tmp_path):
    return tmp_path / "spool" / "lock"


@pytest.fixture
def other(path):
    """Another process that takes the lock; returns it, and whether it has it."""
    processes = []

    def start(errno=0):
        process = subprocess.Popen(
            [sys.executable, "-c", OTHER, str(path), str(errno)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        processes.append(process)
        return process, process.stdout.readline() == "True\n"

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def without_locks(monkeypatch, errno=38):
    def refuse(handle):
        raise OSError(errno, "no locks here")

    monkeypatch.setattr(lock, "_lock", refuse)


def leave_mark(path, age_s=0.0, device=None, text=None, **changes):
    """Leave the mark of a process that is somewhere else."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    process = replace(ProcessIdentity.current(), **changes)
    device = os.stat(path.parent).st_dev if device is None else device
    now = datetime.now(timezone.utc).isoformat()
    mark = path.with_name("lock.0123456789abcdef")
    mark.write_text(
        json.dumps(asdict(Holder("training", process, now, device))) if text is None else text
    )
    seen_s = datetime.now(timezone.utc).timestamp() - age_s
    os.utime(mark, (seen_s, seen_s))
    return mark


ELSEWHERE = {"host": "node7", "boot_id": "another", "pid": 4242}


def test_others_see_who_holds_it_and_take_nothing_by_looking(path, other):
    mine = ProcessLock(path)
    assert mine.holder() is None
    assert mine.acquire("sync")
    seen = ProcessLock(path).holder()
    assert (seen.what, seen.process) == ("sync", ProcessIdentity.current())
    assert not other()[1], "looking in the process that holds it has not given it up"
    mine.release()
    assert mine.holder() is None
    process, has_it = other()
    assert has_it
    for _ in range(2):
        assert mine.holder().process.pid == process.pid
        assert not mine.acquire()
    assert str(mine.holder()).startswith(f"lamin-train sync, process {process.pid} on ")


@pytest.mark.parametrize("errno", [0, *ABSENT])
def test_process_that_is_killed_keeps_nobody_out(path, other, monkeypatch, errno):
    process, has_it = other(errno)
    if errno:
        without_locks(monkeypatch, errno)
    mine = ProcessLock(path)
    assert has_it
    assert not mine.acquire(), "also where there are no record locks"
    assert mine.holder().process.pid == process.pid
    process.kill()
    process.wait()
    assert mine.holder() is None
    assert mine.acquire()
    assert len(list(path.parent.glob("lock.*"))) == 1, "what the killed one has left is gone"
    mine.release()
    assert not list(path.parent.glob("lock.*"))


def test_lock_of_one_host_keeps_another_out(path, monkeypatch):
    """The record lock is free, for it is not shared with that host; the mark is."""
    clock = Clock()
    mine = ProcessLock(path, clock)
    mark = leave_mark(path, **ELSEWHERE)
    for _ in range(10):
        clock.now_s += SILENT_S / 2
        os.utime(mark, (clock.now_s, datetime.now().timestamp() + clock.now_s / 1e6))  # it beats
        assert not mine.acquire()
    assert str(mine.holder()).startswith("its own training, process 4242 on node7, since ")
    clock.now_s += SILENT_S - 1
    assert not mine.acquire()
    clock.now_s += 1
    assert mine.acquire(), "silent while it was watched"
    assert not mark.exists()


def test_silence_before_anybody_watched(path):
    leave_mark(path, age_s=FORGOTTEN_S + 60, **ELSEWHERE)
    assert ProcessLock(path).holder() is None
    assert ProcessLock(path).acquire()


def test_clock_of_this_machine_decides_nothing_while_somebody_watches(path):
    mine = ProcessLock(path, Clock())
    leave_mark(path, age_s=FORGOTTEN_S - 60, **ELSEWHERE)  # or the clocks differ so much
    assert not mine.acquire()


@pytest.mark.parametrize(
    ("changes", "has_locks", "is_taken"),
    [
        ({"pid_namespace": "pid:[1]", "pid": 4242}, True, True),  # the kernel knows
        ({"pid_namespace": "pid:[1]", "pid": 4242, "device": 7}, True, False),  # not of this mount
        ({"pid_namespace": "pid:[1]", "pid": 4242}, False, False),  # nobody knows
        ({"pid": 999_999_999}, False, True),  # gone
        ({"pid": os.getppid(), "started_s": -1.0}, False, True),  # the pid is another's by now
    ],
)
def test_what_is_certain_on_this_machine_needs_no_waiting(
    path, monkeypatch, changes, has_locks, is_taken
):
    if not has_locks:
        without_locks(monkeypatch)
    leave_mark(path, **changes)
    assert (ProcessLock(path).holder() is None) is is_taken
    assert ProcessLock(path).acquire() is is_taken


def test_living_process_of_this_machine_is_never_taken_for_silent(path, other, monkeypatch):
    """It may have been suspended, with the machine or alone."""
    process, _ = other(38)
    (mark,) = path.parent.glob("lock.*")
    os.utime(mark, (0, 0))
    without_locks(monkeypatch)
    clock = Clock()
    mine = ProcessLock(path, clock)
    for _ in range(3):
        clock.now_s += FORGOTTEN_S
        assert not mine.acquire()
    assert mine.holder().process.pid == process.pid


@pytest.mark.parametrize("text", ["", "{torn", "\0\0\0\0", "[]", '{"what": 1, "process": {}}'])
def test_torn_mark_is_watched(path, text):
    """The power was cut while it was new, or somebody has filled the folder."""
    clock = Clock()
    mine = ProcessLock(path, clock)
    leave_mark(path, text=text)
    assert not mine.acquire()
    assert str(mine.holder()) == "lamin-train"
    clock.now_s += SILENT_S
    assert mine.acquire()


def test_half_made_marks_are_removed(path):
    path.parent.mkdir()
    path.with_name("lock.0123456789abcdef.part").write_text("{")
    mine = ProcessLock(path)
    assert mine.holder() is None
    assert mine.acquire()
    assert len(list(path.parent.glob("lock.*"))) == 1


def test_older_version_that_leaves_no_mark_is_a_holder(path):
    code = (
        "import fcntl, os, sys; h = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT);"
        "fcntl.lockf(h, fcntl.LOCK_EX); print('held', flush=True); sys.stdin.read()"
    )
    path.parent.mkdir()
    older = subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    older.stdout.readline()
    assert ProcessLock(path).holder() == Holder("unknown", is_alive=True)
    assert not ProcessLock(path).acquire()
    older.communicate()
    assert ProcessLock(path).acquire()


def test_holder_that_was_taken_for_dead_knows(path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_S", 0.001)
    mine = ProcessLock(path)
    assert mine.acquire()
    (mark,) = path.parent.glob("lock.*")
    mark.unlink()
    assert mine._lost.wait(10)
    assert not mine.held
    assert mine.acquire(), "and may take it anew"


def test_folder_that_was_removed_is_made_anew(path):
    import shutil

    mine = ProcessLock(path)
    assert mine.acquire()
    shutil.rmtree(path.parent)
    assert mine.acquire()
    assert mine.holder() == ProcessLock(path).holder()
    assert path.exists()
    assert len(list(path.parent.glob("lock.*"))) == 1


def test_holder_shows_that_it_lives(path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_S", 0.001)
    mine = ProcessLock(path)
    assert mine.acquire()
    (mark,) = path.parent.glob("lock.*")
    os.utime(mark, (0, 0))
    while mark.stat().st_mtime == 0:
        pass
    mine.release()


def test_name_of_a_host_is_no_command_to_the_terminal():
    process = replace(ProcessIdentity.current(), host="a\x1b[2Jb\n", pid=1)
    assert str(Holder("training", process)) == "its own training, process 1 on a[2Jb"


RACER = """
import os, sys
from pathlib import Path
from lamincli.spool import lock
def refuse(handle):
    raise OSError(38, "no locks here")
lock._lock = refuse
path, inside = Path(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
sys.stdin.readline()
times = 0
while times < 60:
    mine = lock.ProcessLock(path)
    if mine.acquire():
        os.close(os.open(inside, os.O_CREAT | os.O_EXCL))  # fails if somebody is in
        os.unlink(inside)
        mine.release()
        times += 1
print("done", flush=True)
"""


def test_without_record_locks_one_at_a_time_has_it(path, tmp_path):
    command = [sys.executable, "-c", RACER, str(path), str(tmp_path / "inside")]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    racers = [subprocess.Popen(command, **pipes, text=True) for _ in range(3)]
    for racer in racers:
        racer.stdout.readline()
    for racer in racers:
        racer.stdin.write("\n")
        racer.stdin.flush()
    ended = [racer.communicate(timeout=120) for racer in racers]
    assert [out for out, _ in ended] == ["done\n"] * 3, ended


def test_any_two_that_come_at_once_are_told_apart(path, monkeypatch):
    """Stopped at each call to the file system in turn, while another takes all of its turns."""
    before = threading.active_count()
    without_locks(monkeypatch)
    listdir, replaced = os.listdir, os.replace
    for at in range(1, 8):
        first, second = ProcessLock(path), ProcessLock(path)
        calls = [0]
        got = []

        def elsewhere(second=second, got=got):
            # As from another host: the holder of this process is not known to it.
            held = dict(lock._HELD)
            lock._HELD.clear()
            identity = replace(ProcessIdentity.current(), **ELSEWHERE)
            with monkeypatch.context() as patch:
                patch.setattr(ProcessIdentity, "current", classmethod(lambda cls: identity))
                got.append(second.acquire())
            lock._HELD.clear()
            lock._HELD.update(held)

        def stopped(function, calls=calls, at=at, elsewhere=elsewhere):
            def call(*args):
                calls[0] += 1
                if calls[0] == at:
                    calls[0] = 100
                    elsewhere()
                return function(*args)

            return call

        with monkeypatch.context() as patch:
            patch.setattr(os, "listdir", stopped(listdir))
            patch.setattr(os, "replace", stopped(replaced))
            mine = first.acquire()
        assert not (mine and got == [True]), f"both have it, stopped at call {at}"
        first.release()
        second.release()
        if not got:
            break
    assert threading.active_count() < before + 30


@pytest.mark.parametrize("name", ["lock", "lock.0123456789abcdef"])
def test_what_somebody_else_has_put_there_is_not_followed(path, tmp_path, name):
    path.parent.mkdir()
    (path.parent / name).symlink_to(tmp_path / "elsewhere")
    with contextlib.suppress(OSError):
        assert ProcessLock(path).acquire()
    ProcessLock(path).holder()
    assert not (tmp_path / "elsewhere").exists()


def test_pipe_in_the_place_of_a_mark_hangs_nobody(path):
    path.parent.mkdir()
    os.mkfifo(path.with_name("lock.0123456789abcdef"))
    ProcessLock(path).holder()
    ProcessLock(path).acquire()
