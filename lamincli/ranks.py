"""What rank zero decides, on every rank, before there is a process group.

Lightning makes the group when it launches the training. By then references are looked up, the run
has begun, or it has turned out that it cannot begin. Rank zero does that alone, and the others do
as it did, without a database. What was decided reaches them in one of two ways:

- processes that rank zero starts, as Lightning's own launcher does, find it in a file that the
  environment names;
- processes that torchrun, srun or another launcher starts read it from torch's key-value store, at
  the address at which the group is made later. Where rank zero hosts the store, the group shares
  its server: no further port is opened.

The store also carries what ended a rank to rank zero, which has the log.
"""

from __future__ import annotations

import atexit
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import torch.distributed
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.constants import default_pg_timeout

from lamincli.errors import LaminTrainError, UsageError
from lamincli.folders import Scratch, read_own, write_own
from lamincli.process import DECIDED_VARIABLE, is_global_zero, launched_size, rank

_STORE_APPEARS_WITHIN_S = 600.0
# Between two looks; a wait within the store would hold back signals.
_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 0.01, 0.5
_OTHERS_HEAR_WITHIN_S = 60.0
_STORE_ANSWERS_WITHIN_S = 5.0
_LONGEST_TEXT = 20_000


def _read_inherited() -> dict[str, dict[str, Any]]:
    """Return what the process that started this rank has decided, and no other job around it."""
    by, _, file = os.environ.get(DECIDED_VARIABLE, "").partition(":")
    if by != str(os.getppid()) or is_global_zero():
        return {}
    with suppress(OSError, ValueError):  # the parent has ended, or somebody else has written it
        found = json.loads(read_own(Path(file)))
        if isinstance(found, dict) and all(isinstance(one, dict) for one in found.values()):
            return found
    return {}


_inherited = _read_inherited()
_decided: dict[str, dict[str, Any]] = {}


@dataclass(frozen=True)
class Failure:
    """What ended a rank other than zero.

    Args:
        rank: Its global rank.
        host: Where it ran.
        exit_code: Its exit code: 2 for a mistake of the user.
        text: The message of a mistake, else the traceback.
    """

    rank: int
    host: str
    exit_code: int
    text: str

    @classmethod
    def here(cls, exit_code: int, text: str) -> Failure:
        """Describe what has ended this rank."""
        return cls(rank(), socket.gethostname(), exit_code, text[-_LONGEST_TEXT:])

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host}: {self.text}"


class Ranks:
    """The ranks of one job, while they begin.

    All ranks make one of these for each stage that they run, and call `agree` in the same order,
    for they run the same command.

    Args:
        number: Counts the stages of this process.

    Runs on: every rank, main thread.
    """

    _count = 0

    def __init__(self) -> None:
        self._scope = f"{scope()}/{Ranks._count}"
        Ranks._count += 1
        self._decisions = 0
        self._is_open = True  # until all is decided
        self._has_ended_others = False
        self._is_told_to_end = False
        self._is_over = threading.Event()
        self._watcher: threading.Thread | None = None
        self.is_zero = is_global_zero()

    def agree(self, decide: Callable[[], Any]) -> Any:
        """Return what rank zero decides, on every rank.

        Args:
            decide: Called on rank zero alone; returns what JSON can hold.

        Raises:
            SystemExit: Rank zero has ended in the place of a decision; with its exit code.
            LaminTrainError: Rank zero cannot be reached.
        """
        if self.is_zero:
            if _others():
                _store()  # the others see by it that rank zero is there, however long it takes
            decision = json.loads(json.dumps(decide()))
            self._tell({"decision": decision})
            return decision
        heard = self._hear(self._key)
        self._decisions += 1
        if "ended" in heard:
            self._is_open, self._is_told_to_end = False, True
            raise SystemExit(heard["ended"])
        return heard["decision"]

    def end(self, exit_code: int) -> None:
        """Let the other ranks end too, where rank zero cannot go on."""
        if self.is_zero and self._is_open:
            self._is_open = False
            with suppress(LaminTrainError):  # there is no way to tell them
                self._tell({"ended": exit_code})
                self._has_ended_others = True

    def linger(self) -> None:
        """Stay until the other ranks know that this one ends, for they may not have begun yet."""
        store = _store() if self._has_ended_others and _others() else None
        if store is None:
            return
        until_s = time.monotonic() + _OTHERS_HEAR_WITHIN_S
        with suppress(RuntimeError):  # of torch.distributed, as below: the store has gone
            while store.add(f"{self._scope}/gone", 0) < _others() and time.monotonic() < until_s:
                time.sleep(0.05)

    def leave(self, failure: Failure | None) -> bool:
        """Tell rank zero that this rank ends, and what has ended it if it was an error.

        Returns:
            Whether rank zero has ended as well, for a reason of its own, and has told so.
        """
        # Rank zero may be a moment behind: it opens the store also in order to end.
        is_heard = failure is not None and launched_size() > 1
        wait_s = _OTHERS_HEAR_WITHIN_S if is_heard else 0.0
        store = None if self._is_told_to_end else _store_in_reach(wait_s)
        if store is None:
            return self._is_told_to_end
        has_zero_ended = self._is_open and not _inherited and self._has_ended(store)
        with suppress(RuntimeError):
            if failure is not None and not has_zero_ended:
                number = store.add(f"{self._scope}/failures", 1)
                store.set(f"{self._scope}/failure/{number}", json.dumps(vars(failure)))
                store.set(f"{self._scope}/all", "failed")
                store.set(f"{self._scope}/lost", "one")
            store.add(f"{self._scope}/gone", 1)
        return has_zero_ended

    def wait_for_all(self, world_size: int) -> None:
        """Wait until every rank is ready to make the process group.

        Raises:
            LaminTrainError: One of them has ended instead; on rank zero.
            SystemExit: Likewise, on the others.
        """
        if launched_size() != world_size or world_size < 2 or _inherited:
            return
        store = _store()
        if store is None:
            return
        self._is_open = True
        key = f"{self._scope}/all"
        if not self.is_zero:
            if store.add(f"{self._scope}/ready", 1) == world_size - 1:
                store.set(key, "ready")
        elif self._wait(store, key, default_pg_timeout.total_seconds()) == b"failed":
            first = self.failures()[0]
            raise RankError(str(first), first.exit_code)
        else:
            _forget_earlier_group(store)
        self.agree(lambda: "go")
        self._is_open = False

    def close(self) -> None:
        """Say that all is decided: from here on, the process group joins the ranks."""
        self._is_open = False

    def failures(self) -> list[Failure]:
        """Return what has ended other ranks, as far as they could tell."""
        store = _store_in_reach()
        if store is None:
            return []
        try:
            number = store.add(f"{self._scope}/failures", 0)
            texts = [store.get(f"{self._scope}/failure/{n}") for n in range(1, number + 1)]
        except RuntimeError:  # of torch.distributed
            return []
        return [Failure(**json.loads(text)) for text in texts]

    def watch(self, then: Callable[[], None]) -> None:
        """Call back, on a thread, once another rank has told what ended it."""
        store = _store_in_reach() if launched_size() > 1 and self.is_zero else None
        if store is None:
            return

        def wait() -> None:
            with suppress(LaminTrainError):  # the store has gone, and the job with it
                if self._wait(store, f"{self._scope}/lost"):
                    then()

        self._watcher = threading.Thread(target=wait, name="lamin-train-ranks", daemon=True)
        self._watcher.start()

    def __getstate__(self) -> dict[str, Any]:
        """Leave the thread to this process, where a strategy spawns ranks."""
        return {**self.__dict__, "_is_over": None, "_watcher": None}

    def stop_watching(self) -> None:
        """End the thread of `watch`: within a call of torch, it would abort an ending process."""
        self._is_over.set()
        if self._watcher is not None and self._watcher is not threading.current_thread():
            self._watcher.join(_STORE_ANSWERS_WITHIN_S)

    # -- the ways ----------------------------------------------------------------------------

    @property
    def _key(self) -> str:
        return f"{self._scope}/{self._decisions}"

    def _tell(self, message: dict[str, Any]) -> None:
        key = self._key
        self._decisions += 1
        _pass_on(key, message)
        if _others() and (store := _store()) is not None:
            store.set(key, json.dumps(message))

    def _hear(self, key: str) -> dict[str, Any]:
        if key in _inherited:
            return _inherited[key]
        store = _store()
        if store is None:
            raise LaminTrainError(
                f"Rank {rank()} does not know what rank zero has decided. Start all ranks with "
                "torchrun, srun or Lightning's own launcher, or set MASTER_ADDR and MASTER_PORT."
            )
        message: dict[str, Any] = json.loads(self._wait(store, key))
        if "ended" in message:
            store.add(f"{self._scope}/gone", 1)
        _pass_on(key, message)  # to the ranks that this one starts on its host
        return message

    def _has_ended(self, store: TCPStore) -> bool:
        """Tell whether rank zero has ended as well, for the mistake that this one has found."""
        until_s = time.monotonic() + _STORE_ANSWERS_WITHIN_S
        try:
            while time.monotonic() < until_s:
                if store.check([self._key]):
                    return "ended" in json.loads(store.get(self._key))
                time.sleep(0.05)
        except RuntimeError:
            pass
        return False

    def _wait(self, store: TCPStore, key: str, limit_s: float = float("inf")) -> bytes:
        """Wait for a key, however long rank zero is downloading, as long as it is there."""
        began_s = time.monotonic()
        try:
            while not store.check([key]):
                if self._is_over.is_set():
                    return b""
                waited_s = time.monotonic() - began_s
                if waited_s > limit_s:
                    came = store.add(f"{self._scope}/ready", 0)
                    raise LaminTrainError(
                        f"Only {came} of {_others()} other ranks are ready to train after "
                        f"{limit_s / 60:.0f} min. The rest was killed, or hangs: see its output."
                    )
                # In proportion, for thousands of ranks may ask.
                self._is_over.wait(min(_LONGEST_PAUSE_S, max(_SHORTEST_PAUSE_S, waited_s / 20)))
            return bytes(store.get(key))
        except RuntimeError as error:
            raise LaminTrainError(
                f"Rank {rank()} has lost rank zero, which ended before the training began. "
                "See its output."
            ) from error


def scope() -> str:
    """Return how the keys of this attempt begin: torchrun keeps the store over its restarts.

    Of elastic hosts, the number may change without a restart.
    """
    names = ("TORCHELASTIC_RESTART_COUNT", "GROUP_WORLD_SIZE")
    return "/".join(["lamin-train", *(os.environ.get(name, "0") for name in names)])


def why_not_listening(error: BaseException) -> str | None:
    """Say that rank zero cannot listen where the others look for it, if an error says so."""
    if not (isinstance(error, torch.distributed.DistNetworkError) and "listen" in str(error)):
        return None
    place = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
    return (
        f"Rank zero cannot listen at {place}, where the other ranks look for it. Another program "
        "has the port, or the address is not of this host. Choose another MASTER_PORT."
    )


@cache
def leave_group_at_exit() -> None:
    """Let the threads of gloo end before the interpreter does, where all has gone well.

    They hold Python objects. One that lets go of such an object while the interpreter ends aborts
    the process, and with it the job under torchrun. Lightning leaves only NCCL's group.
    """
    atexit.register(_leave_group)


def _leave_group() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class RankError(LaminTrainError):
    """Report, on rank zero, what ended another rank before the training began."""

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text)
        self.exit_code = exit_code


def _forget_earlier_group(store: TCPStore) -> None:
    """Remove what the group of an earlier attempt has left in the store of torchrun.

    torchrun keeps the store over its restarts, and a rank that is early would take the address of
    a dead one from it, and hang.
    """
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if restarts == 0 or torch.distributed.is_initialized():
        return
    for key in store.list_keys():
        if key.startswith("default_pg/"):
            store.delete_key(key)


def _others() -> int:
    """Return how many other ranks were started, by a launcher outside or in an earlier stage."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size() - 1
    return launched_size() - 1


def _pass_on(key: str, message: dict[str, Any]) -> None:
    """Let processes that this one starts know what was decided."""
    _decided[key] = message
    file = _own_folder(os.getpid()) / "decided.json"
    write_own(file, json.dumps(_decided))
    os.environ[DECIDED_VARIABLE] = f"{os.getpid()}:{file}"


@cache
def _own_folder(pid: int) -> Path:
    """Make a folder that no other user reads, which goes with this process."""
    scratch = Scratch("ranks")
    atexit.register(scratch.remove)
    return scratch.path


def _address() -> tuple[str, int] | None:
    """Return where the process group will be made, by the same rules as Lightning's."""
    if "MASTER_ADDR" not in os.environ or "MASTER_PORT" not in os.environ:
        from lightning.fabric.plugins.environments.lsf import LSFEnvironment
        from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

        if "SLURM_PROCID" in os.environ:
            # Without its constructor, which checks how many tasks a node has.
            slurm = SLURMEnvironment.__new__(SLURMEnvironment)
            return slurm.main_address, slurm.main_port
        if not LSFEnvironment.detect():
            return None
        LSFEnvironment()  # sets the variables
    port = os.environ["MASTER_PORT"]
    if not (port.isdigit() and 0 < int(port) < 65_536):
        raise UsageError(f"MASTER_PORT is {port!r}, and no port. Set it to a number, as in 29500.")
    return os.environ["MASTER_ADDR"], int(port)


def _store() -> TCPStore | None:
    """Return the store of the job, waiting for it; `None` where its address is not known."""
    address = _address()
    return None if address is None else _store_at(address)


@cache
def _store_at(address: tuple[str, int]) -> TCPStore:
    is_hosted_here = is_global_zero() and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    if is_hosted_here:
        try:
            return TCPStore(*address, is_master=True, wait_for_workers=False, multi_tenant=True)
        except RuntimeError as error:
            raise UsageError(why_not_listening(error) or str(error)) from error
    until_s = time.monotonic() + _STORE_APPEARS_WITHIN_S
    while not _is_reachable(address):
        if time.monotonic() > until_s:
            raise LaminTrainError(
                f"Rank {rank()} cannot reach rank zero at {address[0]}:{address[1]}. It has ended, "
                "or a firewall is between the hosts."
            )
        time.sleep(0.1)
    return TCPStore(*address, is_master=False, wait_for_workers=False)


def _store_in_reach(wait_s: float = 0.0) -> TCPStore | None:
    """Return the store if it is there, or is there soon: also that of the process group."""
    until_s = time.monotonic() + wait_s
    try:
        if (address := _address()) is None:
            return None
        while not _is_reachable(address):
            if time.monotonic() >= until_s:
                return None
            time.sleep(0.1)
        return _connected(address)
    except UsageError:  # a variable that is no address
        return None


def _connected(address: tuple[str, int]) -> TCPStore | None:
    """Connect a store; `None` where something else listens there, which may never answer."""
    found: list[TCPStore] = []
    limit = timedelta(seconds=_STORE_ANSWERS_WITHIN_S)

    def connect() -> None:
        with suppress(RuntimeError):  # of torch.distributed
            found.append(TCPStore(*address, wait_for_workers=False, timeout=limit))

    thread = threading.Thread(target=connect, name="lamin-train-store", daemon=True)
    thread.start()
    thread.join(_STORE_ANSWERS_WITHIN_S)
    return found[0] if found else None


@cache
def store() -> TCPStore:
    """Return the store of the process group, which is there."""
    found = _store_in_reach()
    if found is None:
        raise RuntimeError("the process group has no store in reach")
    return found


def _is_reachable(address: tuple[str, int]) -> bool:
    try:
        with socket.create_connection(address, timeout=1):
            return True
    except OSError:
        return False
