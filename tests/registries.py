"""A registry in memory: the contract in its simplest form, and a place to let things fail."""

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lamincli.registry.outages import verdict


@dataclass(eq=False)
class Entry:
    """An artifact in memory."""

    uid: str
    key: str
    run: str
    content: bytes
    features: dict[str, Any]
    path: str = "memory"


@dataclass
class MemoryRegistry:
    """Keep artifacts in a list; every call is noted, and may fail by `fail`."""

    entries: list[Entry] = field(default_factory=list)
    calls: list[tuple[str, str]] = field(default_factory=list)
    fail: Any = None
    threads: set[int] = field(default_factory=set)

    def save(self, job, file, note):
        self._call("save", job.key)
        own = [e for e in self.entries if (e.key, e.run) == (job.key, job.run)]
        done = next((e for e in own if e.uid == job.uid), None)
        if done is None:
            done = Entry(job.uid, job.key, job.run, Path(file).read_bytes(), job.features)
            self.entries.append(done)
        self.entries = [e for e in self.entries if e not in own or e is done]
        return done

    def remove(self, job, note):
        self._call("remove", job.key)
        own = [e for e in self.entries if (e.key, e.run) == (job.key, job.run)]
        self.entries = [e for e in self.entries if e not in own]
        return own[0] if own else None

    def annotate(self, job):
        self._call("annotate", job.run)

    def begin_run(self, job):
        self._call("begin", job.run)

    def close_run(self, job, log):
        self._call("close", job.status)

    def verdict(self, error):
        return verdict(error)

    def disconnect(self):
        pass

    def _call(self, what, key):
        self.threads.add(threading.get_ident())
        if self.fail is not None:
            self.fail(what, key)
        self.calls.append((what, key))
