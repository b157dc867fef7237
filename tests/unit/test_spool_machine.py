"""The spool and its drainer against a model of what should happen, with crashes and outages."""

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from registries import MemoryRegistry

from lamincli.publisher import Drainer
from lamincli.spool import Job, Spool, adding

KEYS = st.sampled_from(["a", "b", "last"])


class Kill(BaseException):
    """The process is gone."""


class SpoolMachine(RuleBasedStateMachine):
    """Save, remove, publish, fail and be killed in any order: nothing is lost, nothing twice."""

    @initialize()
    def begin(self):
        self.folder = Path(tempfile.mkdtemp())
        os.environ["XDG_STATE_HOME"] = str(self.folder / "state")
        self.registry = MemoryRegistry()
        self.wanted: dict[str, bytes] = {}  # what the last acknowledged save of a key wrote
        self.parked: set[str] = set()
        self.number = 0
        self.now_s = 0.0
        self.restart()

    def restart(self):
        self.spool = Spool(self.folder / ".lamin_spool" / "RUN")
        assert self.spool.lock.acquire()
        self.drainer = Drainer(
            self.spool, self.registry, clock=lambda: self.now_s, jitter=lambda: 1.0
        )
        self.drainer.recover()

    def add(self, action, key, file=None):
        self.number += 1
        job = Job(action, "RUN", "me/here", "ab", str(self.number), uid=f"uid{self.number}", key=key,
                  local_path=key)  # fmt: skip
        self.drainer.arrive(*self.spool.add(job, file))

    @rule(key=KEYS)
    def save(self, key):
        file = self.folder / f"file-{self.number}"
        file.write_bytes(f"{key} {self.number}".encode())
        self.add("save", key, file)
        self.wanted[key] = file.read_bytes()
        self.parked.discard(key)
        file.unlink()  # Lightning may remove it at once

    @rule(key=KEYS, moment=st.sampled_from(["pinned", "added", "never"]))
    def another_process_saves(self, key, moment):
        """While this one has the lock, and takes the spool over anew in the middle of it."""
        self.number += 1
        job = Job("save", "RUN", "me/here", "ab", str(self.number), uid=f"uid{self.number}",
                  key=key, local_path=key)  # fmt: skip
        file = self.folder / f"file-{self.number}"
        file.write_bytes(f"{key} {self.number}".encode())
        other = Spool(self.spool.folder)
        text_of = other._text_of

        def interrupted(name, job):
            if moment == "pinned":
                self.drainer.recover()
            return text_of(name, job)

        other._text_of = interrupted
        other.add(job, file)
        if moment == "added":
            self.drainer.recover()
        self.wanted[key] = file.read_bytes()
        self.parked.discard(key)
        file.unlink()

    @rule(key=KEYS)
    def another_process_is_killed_while_it_saves(self, key):
        file = self.folder / "unacknowledged"
        file.write_bytes(b"torn")
        other = Spool(self.spool.folder)
        gone = adding._me(os.getpid()).replace(f"{os.getpid()}-", "999999999-")

        def die(*_, **__):
            raise Kill

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(adding, "_me", lambda pid: gone)
            patch.setattr(other, "_text_of", die)
            patch.setattr(Path, "unlink", die)  # nothing is cleaned up
            with suppress(Kill):
                other.add(Job("save", "RUN", "me/here", "ab", "", key=key), file)
        self.drainer.recover()

    @rule(key=KEYS)
    def remove(self, key):
        self.add("remove", key)
        self.wanted.pop(key, None)
        self.parked.discard(key)

    @rule()
    def publish_one(self):
        self.now_s += 60
        self.registry.fail = None
        self.drainer.step()

    @rule(error=st.sampled_from([ConnectionResetError(), OSError(28, "full"), TimeoutError()]))
    def registry_is_away(self, error):
        def fail(what, key):
            raise error

        self.now_s += 60
        self.registry.fail = fail
        before = list(self.registry.entries)
        assert self.drainer.step() in ("waiting", "idle")
        assert self.registry.entries == before
        assert self.drainer.step() in ("waiting", "idle"), "no second attempt at once"

    @rule()
    def job_is_parked(self):
        def fail(what, key):
            raise PermissionError(key)

        self.now_s += 60
        self.registry.fail = fail
        self.drainer.step()

    @rule(when=st.sampled_from(["claimed", "committed", "idle"]))
    def killed(self, when):
        """The process is gone, between two calls or within one."""

        def die(*_):
            raise Kill

        self.now_s += 60
        self.registry.fail = die if when == "claimed" else None
        if when == "committed":
            self.drainer.spool.finish = die
        try:
            if when != "idle":
                self.drainer.step()
        except Kill:
            pass
        self.spool.lock.release()
        self.restart()

    @rule()
    def sync(self):
        self.registry.fail = None
        self.spool.unpark()
        self.drainer.recover()
        while self.drainer.step(retry_now=True) == "done":
            pass
        found = {entry.key: entry.content for entry in self.registry.entries}
        assert found == self.wanted

    @invariant()
    def no_key_is_there_twice(self):
        if hasattr(self, "registry"):
            keys = [entry.key for entry in self.registry.entries]
            assert len(keys) == len(set(keys))

    @invariant()
    def every_pin_has_a_job(self):
        if hasattr(self, "spool") and self.spool.pins.exists():
            states = (self.spool.ready, self.spool.claimed, self.spool.parked)
            jobs = {name.split(".")[0] for state in states for name in self.spool.names(state)}
            assert set(os.listdir(self.spool.pins)) <= jobs

    def teardown(self):
        if hasattr(self, "spool"):
            self.sync()
            self.spool.close()
            assert not self.spool.folder.exists(), "nothing is left over"
            shutil.rmtree(self.folder)


SpoolMachine.TestCase.settings = settings(
    max_examples=100,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestSpoolMachine = SpoolMachine.TestCase
