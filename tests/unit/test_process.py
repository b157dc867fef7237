import json
import os
import subprocess
import sys
from dataclasses import replace

import psutil
import pytest

from lamincli import process
from lamincli.process import ProcessIdentity, _started_s, is_global_zero, launched_size, rank


def test_this_process_is_not_gone():
    assert not ProcessIdentity.current().is_gone()


def test_ended_process_is_gone():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    me = ProcessIdentity.current()
    other = replace(me, pid=child.pid, started_s=_started_s(child.pid))
    assert not other.is_gone()
    child.kill()
    # Not yet waited for: a zombie has ended all the same.
    while psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE:
        pass
    assert other.is_gone()
    child.communicate()
    assert other.is_gone()


@pytest.mark.parametrize(
    ("changes", "gone"),
    [
        ({"started_s": 1.0}, True),  # the pid was given to another process since
        ({"boot_id": "another", "machine_id": "m"}, True),  # the machine was booted since
        ({"boot_id": "another", "machine_id": "other"}, False),  # another of this name
        ({"host": "another", "pid": 1}, False),  # another machine
        ({"pid_namespace": "pid:[1]", "pid": 999_999_999}, False),  # another container
        ({"pid": 999_999_999}, True),
    ],
)
def test_gone_is_said_only_where_it_is_certain(changes, gone, monkeypatch):
    read = process._read
    monkeypatch.setattr(process, "_read", lambda p: "m" if "machine" in p else read(p))
    assert replace(ProcessIdentity.current(), **changes).is_gone() is gone


def test_clock_that_is_set_closes_nothing(monkeypatch):
    """psutil derives start times from the wall clock, which moves when it is set."""
    me = ProcessIdentity.current()
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: 0.0)
    assert not me.is_gone()


def test_identity_survives_json():
    me = ProcessIdentity.current()
    assert ProcessIdentity.from_dict(me.to_dict()) == me
    assert ProcessIdentity.from_dict({"pid": 1}) is None
    assert ProcessIdentity.from_dict(None) is None


@pytest.mark.parametrize(
    ("environment", "zero", "size"),
    [
        ({}, True, 1),
        ({"RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0", "WORLD_SIZE": "4"}, True, 4),
        ({"RANK": "3", "LOCAL_RANK": "0", "GROUP_RANK": "1", "WORLD_SIZE": "4"}, False, 4),
        ({"LOCAL_RANK": "1"}, False, 1),
        ({"NODE_RANK": "1", "MASTER_PORT": "1"}, False, 2),  # two hosts or more
        ({"NODE_RANK": "1", "LOCAL_RANK": "0"}, False, 1),
        ({"NODE_RANK": "0", "LOCAL_RANK": "0"}, True, 1),
        ({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}, False, 2),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2"}, True, 2),
        ({"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, True, 1),  # sbatch
        ({"JSM_NAMESPACE_RANK": "1", "JSM_NAMESPACE_SIZE": "3"}, False, 3),
    ],
)
def test_rank_is_read_from_what_launchers_set(environment, zero, size, monkeypatch):
    for name in _OF_LAUNCHERS:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_global_zero() is zero
    assert launched_size() == size
    number = next((environment[name] for name in _OF_RANKS if name in environment), "0")
    assert rank() == int(number)


_OF_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK", "NODE_RANK")
_OF_LAUNCHERS = (*_OF_RANKS, "GROUP_RANK", "MASTER_PORT", "WORLD_SIZE", "SLURM_STEP_NUM_TASKS",
                 "JSM_NAMESPACE_SIZE")  # fmt: skip


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="unshare needs root")
def test_process_of_another_pid_namespace_is_neither_alive_nor_gone():
    """As in a container: its pid 1 is another process here, and the other way round."""
    code = (
        "import json, sys; from lamincli.process import ProcessIdentity as P;"
        "other = P.from_dict(json.loads(sys.argv[1])); print(json.dumps([P.current().to_dict(), "
        "other.is_alive(), other.is_gone()]))"
    )
    here = json.dumps(ProcessIdentity.current().to_dict())
    unshare = ["unshare", "--pid", "--fork", "--mount-proc"]
    done = subprocess.run(
        [*unshare, sys.executable, "-c", code, here], capture_output=True, text=True, check=True
    )
    record, *seen = json.loads(done.stdout)
    inside = ProcessIdentity.from_dict(record)
    assert inside.pid == 1
    assert seen == [False, False]
    assert (inside.is_alive(), inside.is_gone()) == (False, False)
