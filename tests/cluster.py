"""A cluster on one machine: hosts with networks of their own, and a real SLURM on them."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROGRAMS = {"ip": "iproute2", "nsenter": "util-linux", "unshare": "util-linux"}
SLURM_PROGRAMS = {"munged": "munge", "slurmctld": "slurm-wlm", "slurmd": "slurm-wlm"}


@dataclass
class Host:
    """A name and an address of its own; files, users and processes are those of the machine."""

    name: str
    address: str
    keeper: subprocess.Popen

    def words(self, *words: object) -> list[str]:
        """Return the command that runs a command on this host."""
        spaces = ["--net", "--uts", "--mount"]
        return [
            "nsenter",
            f"--target={self.keeper.pid}",
            *spaces,
            f"--wdns={os.getcwd()}",
            "--",
            *map(str, words),
        ]

    def start(self, *words: object, **arguments: Any) -> subprocess.Popen:
        return subprocess.Popen(self.words(*words), text=True, **arguments)

    def run(self, *words: object, timeout_s: float = 120, **environment: str) -> Any:
        return subprocess.run(
            self.words(*words),
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )


def skip_without(programs: dict[str, str]) -> None:
    """Skip a test where programs are not installed, or may not be used."""
    import pytest

    # Daemons lie in folders that are not on every user's path.
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    missing = [name for name in programs if shutil.which(name, path=path) is None]
    if missing:
        packages = " ".join(dict.fromkeys(programs[name] for name in missing))
        pytest.skip(f"no {', '.join(missing)} (Debian: apt-get install {packages})")
    if os.getuid() != 0:
        pytest.skip("only root makes network namespaces")


@contextmanager
def hosts(number: int) -> Iterator[list[Host]]:
    """Make hosts h1, h2, … at 10.0.0.1, …, which reach each other and nothing else.

    All of it goes with the processes in it, and is seen by none outside: tests may run at once.
    """
    skip_without(PROGRAMS)
    made: list[Host] = []
    with tempfile.NamedTemporaryFile("w", prefix="lamin-train-hosts-") as names:
        names.write("127.0.0.1 localhost\n")
        names.writelines(f"10.0.0.{i} h{i}\n" for i in range(1, number + 1))
        names.flush()
        os.chmod(names.name, 0o644)
        try:
            for i in range(1, number + 1):
                made.append(_host(i, names.name))
                if i > 1:
                    _join(made[0], made[-1], i)
            yield made
        finally:
            for host in made:
                host.keeper.kill()
                host.keeper.wait()


def _host(i: int, names: str) -> Host:
    ready = (
        f"hostname h{i} && mount --bind {names} /etc/hosts && ip link set lo up && echo ready"
        + (" && ip link add br0 type bridge && ip addr add 10.0.0.1/24 dev br0"
           " && ip link set br0 up" if i == 1 else "")
    )  # fmt: skip
    keeper = subprocess.Popen(
        ["setpriv", "--pdeathsig=KILL", "unshare", "--net", "--uts", "--mount",
         "sh", "-ec", f"{ready}; exec sleep infinity"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert keeper.stdout is not None
    if keeper.stdout.readline() != "ready\n":
        raise RuntimeError("a host could not be made")
    return Host(f"h{i}", f"10.0.0.{i}", keeper)


def _join(switch: Host, host: Host, i: int) -> None:
    steps = [
        (switch, f"ip link add p{i} type veth peer name eth0 netns {host.keeper.pid}"),
        (switch, f"ip link set p{i} master br0 up"),
        (host, f"ip addr add {host.address}/24 dev eth0"),
        (host, "ip link set eth0 up"),
    ]
    for where, step in steps:
        done = where.run(*step.split())
        if done.returncode:
            raise RuntimeError(done.stderr)


# -- SLURM ----------------------------------------------------------------------------------------

_CONFIG = """
ClusterName={name}
SlurmctldHost=h1
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
SlurmctldDebug=verbose
SlurmdDebug=verbose
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=30
MinJobAge=600
SchedulerParameters=sched_min_interval=1,sched_interval=1
NodeName=h[2-{last}] CPUs=8 State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime=20 State=UP
PartitionName=high Nodes=ALL PriorityTier=2 PreemptMode=OFF State=UP
"""


class Slurm:
    """A controller on the login node h1, and a daemon on each of the other hosts."""

    def __init__(self, machines: list[Host]) -> None:
        self.login, *self.nodes = machines
        self.folder = Path(tempfile.mkdtemp(prefix="lamin-train-slurm-"))
        self.folder.chmod(0o755)  # munge refuses a folder that others might write to
        self.environment = {"SLURM_CONF": str(self.folder / "slurm.conf")}
        self._daemons: list[subprocess.Popen] = []
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        (self.folder / "state").mkdir()
        config = _CONFIG.format(name=self.folder.name, folder=self.folder, last=len(machines))
        (self.folder / "slurm.conf").write_text(config)

    def start(self) -> None:
        key = self.folder / "munge.key"
        files = ["socket", "pid-file", "log-file", "seed-file"]
        paths = [f"--{name}={self.folder}/munge.{name.removesuffix('-file')}" for name in files]
        self._start(self.login, "munged", "--foreground", "--force", f"--key-file={key}", *paths)
        self._wait(lambda: (self.folder / "munge.socket").exists(), "munged")
        self._start(self.login, "slurmctld", "-D", "-f", self.environment["SLURM_CONF"])
        for node in self.nodes:
            (self.folder / node.name).mkdir()
            self._start(node, "slurmd", "-D", "-f", self.environment["SLURM_CONF"])
        idle = [node.name for node in self.nodes]
        state = ("sinfo", "--noheader", "--Node", "--states=idle", "--partition=low", "--format=%n")
        self._wait(lambda: self.run(*state).stdout.split() == idle, "SLURM")

    def _start(self, host: Host, *words: object) -> None:
        path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
        with open(self.folder / "daemons.log", "a") as log:
            self._daemons.append(host.start(*words, env={**os.environ, "PATH": path},
                                            stdout=log, stderr=log))  # fmt: skip

    def _wait(self, condition: Any, what: str, timeout_s: float = 60) -> None:
        until_s = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > until_s:
                logs = [file.read_text()[-2000:] for file in self.folder.glob("*.log")]
                raise TimeoutError("\n".join([f"timeout: {what}", *logs]))
            time.sleep(0.1)

    def run(self, *words: object, timeout_s: float = 120, **environment: str) -> Any:
        """Run a command on the login node."""
        return self.login.run(*words, timeout_s=timeout_s, **self.environment, **environment)

    def submit(self, script: str, *options: str, **environment: str) -> str:
        """Submit a script of bash from the current folder; returns the id of the job."""
        Path("job.sh").write_text(f"#!/bin/bash\n{script}\n")
        done = self.run("sbatch", "--parsable", "--output=job-%A_%a.out", "--open-mode=append",
                        *options, "job.sh", **environment)  # fmt: skip
        assert done.returncode == 0, done.stderr
        return str(done.stdout.strip())

    def state(self, job: str) -> str:
        """Return the state of a job, or of all tasks of an array that are known apart."""
        done = self.run("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T")
        return " ".join(dict.fromkeys(done.stdout.split()))

    def wait_for(self, job: str, *states: str, timeout_s: float = 200) -> str:
        """Wait until a job is in one of some states; returns it."""
        ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "PREEMPTED", "NODE_FAIL")
        until_s = time.monotonic() + timeout_s
        while (state := self.state(job)) not in (states or ended):
            if time.monotonic() > until_s:
                raise TimeoutError(f"job {job} is {state}")
            time.sleep(0.2)
        return state

    def wait_for_all(self, array: str, timeout_s: float = 200) -> None:
        """Wait until every task of an array has ended."""
        until_s = time.monotonic() + timeout_s
        while set(self.state(array).split()) & {"PENDING", "RUNNING", "COMPLETING"}:
            if time.monotonic() > until_s:
                raise TimeoutError(f"array {array} is {self.state(array)}")
            time.sleep(0.2)

    def wait_for_output(self, job: str, text: str, timeout_s: float = 100) -> None:
        """Wait until a job has written something."""
        until_s = time.monotonic() + timeout_s
        while text not in (written := "".join(f.read_text() for f in Path().glob(f"job-{job}_*"))):
            if time.monotonic() > until_s:
                raise TimeoutError(
                    f"job {job} ({self.state(job)}) has not written {text}: {written}"
                )
            time.sleep(0.05)

    def wait_until_gone(self) -> None:
        """Wait until no process of a job is left."""
        self._wait(
            lambda: "COMPLETING" not in self.run("squeue", "--format=%T").stdout, "no end of a job"
        )

    def start_now(self, job: str) -> None:
        """Start a job that was requeued; SLURM would wait two minutes."""
        self.run("scontrol", "update", f"jobid={job}", "starttime=now")

    def close(self) -> None:
        with suppress(subprocess.TimeoutExpired):
            self.run("scancel", "--signal=KILL", "--full", "--state=RUNNING", timeout_s=10)
            self.run("scancel", "--user=root", timeout_s=10)
            until_s = time.monotonic() + 40
            while self.run("squeue", "--noheader", timeout_s=10).stdout.strip():
                if time.monotonic() > until_s:
                    break
                time.sleep(0.2)
        for daemon in reversed(self._daemons):
            daemon.terminate()
            try:
                daemon.wait(timeout=20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def slurm_cluster(nodes: int = 2) -> Iterator[Slurm]:
    """Start a cluster with SLURM; skip the test where it is not installed."""
    skip_without(SLURM_PROGRAMS)
    with hosts(nodes + 1) as machines:
        slurm = Slurm(machines)
        try:
            slurm.start()
            yield slurm
        finally:
            slurm.close()
