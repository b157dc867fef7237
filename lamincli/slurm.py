"""SLURM as a job in it sees it: what is known of the job, whether it goes on, and its requeue.

SLURM itself is asked, for the signal alone does not say why it has come: SIGTERM means a
preemption, a requeue, the time limit or ``scancel``.
"""

import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from lamincli.process import gives_back

_FACTS = {
    "job_id": "SLURM_JOB_ID",
    "array_job_id": "SLURM_ARRAY_JOB_ID",
    "array_task_id": "SLURM_ARRAY_TASK_ID",
    "partition": "SLURM_JOB_PARTITION",
    "node_list": "SLURM_JOB_NODELIST",
    "num_nodes": "SLURM_JOB_NUM_NODES",
    "num_tasks": "SLURM_NTASKS",
    "restart_count": "SLURM_RESTART_COUNT",
}
_TASKS_PER_NODE = "SLURM_NTASKS_PER_NODE"
_OVER = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
    "TIMEOUT",
}  # fmt: skip
_ANSWERS_WITHIN_S = 10.0
_KILLED_WITHIN_S = 60.0


@dataclass(frozen=True)
class JobState:
    """What SLURM knows of this job.

    Args:
        is_requeued: It is being ended in order to be started again.
        is_preempted: It has to make room for another job.
        can_requeue: It is a batch job that may be started again.
    """

    is_requeued: bool
    is_preempted: bool
    can_requeue: bool


def facts() -> dict[str, Any] | None:
    """Return what the environment says of this job; `None` outside of SLURM."""
    if "SLURM_JOB_ID" not in os.environ:
        return None
    found = {name: os.environ[key] for name, key in _FACTS.items() if key in os.environ}
    found.setdefault("restart_count", "0")
    return {name: int(text) if text.isdigit() else text for name, text in found.items()}


@contextmanager
def known_tasks_per_node() -> Iterator[None]:
    """Let Lightning know how many tasks a node has, where ``srun`` knows and was not told."""
    counts = re.fullmatch(r"(\d+)(\(x\d+\))?", os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    with gives_back(_TASKS_PER_NODE):
        if counts is not None:
            os.environ.setdefault(_TASKS_PER_NODE, counts[1])
        yield


def why_not_without_srun() -> str | None:
    """Say why this process cannot train alone, where its job has more tasks than it has started.

    Lightning would wait for the other ranks for ever.
    """
    tasks = int(os.environ.get("SLURM_NTASKS", "1"))
    is_interactive = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")  # as Lightning
    is_step = "SLURM_STEP_NUM_TASKS" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ
    if tasks == 1 or is_interactive or is_step:
        return None
    return (
        f"The SLURM job has {tasks} tasks, and this is one process, which would wait for the "
        "others. Start all of them: srun lamin-train fit ... in the job script."
    )


def state() -> JobState | None:
    """Ask SLURM for the state of this job; `None` outside of SLURM, or if it does not answer."""
    if "SLURM_JOB_ID" not in os.environ:
        return None
    text = _scontrol("--oneliner", "show", "job", _name()).stdout
    # Neighbours, for the names and commands of users are in the same line.
    if not (counts := re.search(r" Requeue=(\d+) Restarts=(\d+) BatchFlag=(\d+) ", text)):
        return None
    preempted = re.search(r" PreemptEligibleTime=\S+ PreemptTime=(\S+) ", text)
    requeue, restarts, batch = map(int, counts.groups())
    return JobState(
        is_requeued=restarts > int(os.environ.get("SLURM_RESTART_COUNT", "0")),
        is_preempted=preempted is not None and preempted[1] != "None",
        can_requeue=requeue == 1 and batch > 0,
    )


def requeue() -> str | None:
    """Let SLURM start this job again, and wait until it ends this process for that.

    If it were left to end, the job's script would go on with its next command.

    Returns:
        Why SLURM has refused; `None` if it has not.

    Runs on: main thread, for it takes over SIGTERM.
    """
    is_ended = threading.Event()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: is_ended.set())
    done = _scontrol("requeue", _name())
    if done.returncode:
        return done.stderr.strip() or f"scontrol ended with code {done.returncode}"
    is_ended.wait(_KILLED_WITHIN_S)
    return None


def is_over(job: str) -> bool:
    """Tell whether SLURM certainly runs a job no more; `False` wherever that cannot be known.

    Args:
        job: As `process.job_id` names it; of an array, any of its tasks that is not over counts.
    """
    states = _states(job)
    return states is not None and _OVER.issuperset(states)


def is_going_on(job: str) -> bool:
    """Tell whether SLURM certainly runs a job, or will; `False` likewise."""
    states = _states(job)
    return states is not None and not _OVER.issuperset(states)


def _states(job: str) -> list[str] | None:
    """Return the states of the tasks of a job that SLURM knows; `None` if it cannot be asked."""
    scheduler, cluster, number = [*job.split(":"), "", ""][:3]
    if scheduler != "slurm" or cluster != _cluster():
        return None
    done = _scontrol("--oneliner", "show", "job", number)
    if done.returncode:
        return [] if "Invalid job id" in done.stderr else None
    return re.findall(r" JobState=(\w+) ", done.stdout) or None


@cache
def _cluster() -> str | None:
    named = re.search(r"^ClusterName\s*= (\S+)$", _scontrol("show", "config").stdout, re.MULTILINE)
    return named and named[1]


def _name() -> str:
    if (array := os.environ.get("SLURM_ARRAY_JOB_ID")) is not None:
        return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ["SLURM_JOB_ID"]


def _scontrol(*words: str) -> subprocess.CompletedProcess[str]:
    command = ["scontrol", *words]
    try:
        return subprocess.run(  # noqa: S603
            command,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
            timeout=_ANSWERS_WITHIN_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))
