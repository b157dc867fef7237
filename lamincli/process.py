"""Who runs this job: enough about a process to tell later, on the same machine, that it is gone."""

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

RUN_UID_VARIABLE = "LAMIN_TRAIN_RUN_UID"
"""Environment variable by which the uid reaches the processes that a job starts."""

SPOOLED_VARIABLE = "LAMIN_TRAIN_SPOOLED"
"""Environment variable by which they learn of a run that is not in LaminDB yet."""

PARENT_VARIABLE = "LAMIN_INITIATED_BY_RUN_UID"
"""Environment variable by which `lamin run` names the run that starts a job."""

DECIDED_VARIABLE = "LAMIN_TRAIN_DECIDED"
"""Environment variable by which processes that rank zero starts learn what it has decided."""

REPRODUCES_VARIABLE = "LAMIN_TRAIN_REPRODUCES"
"""Environment variable by which a training learns the uid of the run that it reproduces."""


@dataclass(frozen=True)
class ProcessIdentity:
    """Identify one process on one machine, beyond its recycled pid.

    Args:
        host: Host name.
        pid: Process id.
        started_s: Start of the process: seconds since the boot where the system says so, for the
            wall clock can be set; else since the epoch.
        machine_id: Identifies the machine beyond its name; empty where the system has none.
        boot_id: Identifies the boot of the machine; empty likewise.
        pid_namespace: Identifies the container in which the pid holds; empty likewise.
    """

    host: str
    pid: int
    started_s: float
    machine_id: str = ""
    boot_id: str = ""
    pid_namespace: str = ""

    @classmethod
    def current(cls) -> "ProcessIdentity":
        """Identify this process."""
        return cls(
            host=socket.gethostname(),
            pid=os.getpid(),
            started_s=_started_s(os.getpid()),
            machine_id=_read("/etc/machine-id"),
            boot_id=_boot_id(),
            pid_namespace=_pid_namespace(),
        )

    @classmethod
    def from_dict(cls, record: Any) -> "ProcessIdentity | None":
        """Read what `to_dict` wrote; `None` if it is something else."""
        try:
            process = cls(**record)
        except TypeError:
            return None
        numbers = (process.pid, process.started_s)
        words = (process.host, process.machine_id, process.boot_id, process.pid_namespace)
        is_sound = all(isinstance(number, (int, float)) for number in numbers)
        return process if is_sound and all(isinstance(word, str) for word in words) else None

    def to_dict(self) -> dict[str, Any]:
        """Return the identity as JSON."""
        return asdict(self)

    def is_alive(self) -> bool:
        """Tell whether the process certainly runs; `False` wherever that cannot be known."""
        here = ProcessIdentity.current()
        places = [(p.host, p.machine_id, p.boot_id, p.pid_namespace) for p in (self, here)]
        return self != here and places[0] == places[1] and not self.is_gone()

    def is_gone(self) -> bool:
        """Tell whether the process has certainly ended; `False` wherever that cannot be known.

        The pid of another container, or of another machine that shares the host name, says
        nothing here. A machine that was booted since has none of its old processes.
        """
        here = ProcessIdentity.current()
        if (self.host, self.machine_id) != (here.host, here.machine_id):
            return False
        if self.boot_id != here.boot_id:
            return bool(self.boot_id and self.machine_id)
        if self.pid_namespace != here.pid_namespace:
            return False
        import psutil  # here, so that looking at a spool needs the standard library only

        try:
            # A zombie has ended: only its parent has not noticed yet.
            return (
                abs(_started_s(self.pid) - self.started_s) > 1
                or psutil.Process(self.pid).status() == psutil.STATUS_ZOMBIE
            )
        except psutil.NoSuchProcess:
            return True
        except psutil.Error:
            return False


@contextmanager
def gives_back(variable: str) -> Iterator[None]:
    """Let an environment variable be in the end what it was before."""
    before = os.environ.get(variable)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(variable, None)
        else:
            os.environ[variable] = before


def job_id() -> str | None:
    """Return what names this job over all its restarts, where a scheduler or torchrun does."""
    if job := os.environ.get("SLURM_ARRAY_JOB_ID"):
        job = f"{job}_{os.environ.get('SLURM_ARRAY_TASK_ID', '')}"
    if job := job or os.environ.get("SLURM_JOB_ID"):
        return f"slurm:{os.environ.get('SLURM_CLUSTER_NAME', '')}:{job}"
    if (run := os.environ.get("TORCHELASTIC_RUN_ID")) == "none":  # torchrun's default
        agent = os.getppid()
        run = f"{socket.gethostname()}:{agent}:{_started_s(agent):.2f}"
    return None if run is None else f"torchrun:{run}"


_fits_ended = 0


def fit_number() -> int:
    """Return which fit of this process this is, from 0: a script may train several in turn."""
    return _fits_ended


def end_fit() -> None:
    """Let the next fit of this process be another one."""
    global _fits_ended
    _fits_ended += 1


def is_restarted() -> bool:
    """Tell whether SLURM or torchrun has started this job before."""
    counts = ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT")
    return any(int(os.environ.get(name, "0")) > 0 for name in counts)


def started_program() -> dict[str, str]:
    """Return how this program was started: a module after ``-m``, or the path of a script."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    program = {"script": os.path.abspath(sys.argv[0])} if sys.argv[0] else {}
    return {"module": spec.name.removesuffix(".__main__"), **program} if spec else program


def rank() -> int:
    """Return the global rank of this process, as far as its environment tells before a trainer."""
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK"):
        if name in os.environ:
            return int(os.environ[name])
    return int(os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0")))


def launched_size() -> int:
    """Return how many ranks a launcher outside has started; 1 where Lightning starts them.

    In a batch script of SLURM there is one process, whatever the number of tasks. Where the user
    starts one process a host, for Lightning to start the others there, the number of hosts is not
    known: it is 2 or more.
    """
    for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "JSM_NAMESPACE_SIZE"):
        if name in os.environ:
            return int(os.environ[name])
    is_one_of_hosts = "NODE_RANK" in os.environ and "LOCAL_RANK" not in os.environ
    return 2 if is_one_of_hosts and "MASTER_PORT" in os.environ else 1


def is_global_zero() -> bool:
    """Tell whether this process is, or will launch, rank zero of its job.

    Read from the environment, for it is asked before there is a trainer: torchrun, Lightning's
    launchers, SLURM and LSF say there which rank a process is.
    """
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK"):
        if name in os.environ:
            if int(os.environ[name]) != 0:
                return False
            if name == "RANK":
                return True
            break
    return int(os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0"))) == 0


def _started_s(pid: int) -> float:
    try:
        # Field 22, counted after the name, which may hold blanks and brackets.
        ticks = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
        return int(ticks) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        import psutil

        return psutil.Process(pid).create_time()


def _boot_id() -> str:
    return _read("/proc/sys/kernel/random/boot_id")


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
