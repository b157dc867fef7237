"""Kill a training, or what publishes after it, at the Nth call; recover; and look at what is there.

    python runner.py training|sync|twice FOLDER FIRST STRIDE
    python runner.py storm FOLDER SEED KILLS

A process for each N is forked from one that has imported everything. A call is one that changes
the file system, or a statement to the database. FIRST, FIRST + STRIDE, … are the Ns, until one is
larger than the number of calls. A storm kills a training at random, and then what publishes after
it, again and again. The oracle:

- every checkpoint whose save returned, and that was not removed, is one artifact of the run with
  the right bytes, hash and score; none that was not saved is there;
- the storage holds the files of the artifacts and nothing else; no temporary file, no spool;
- the next training works.
"""

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import traceback
from functools import partial
from pathlib import Path

SCENARIO, FOLDER, FIRST, STRIDE = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
os.environ["HOME"] = str(FOLDER / "home")
os.environ["XDG_STATE_HOME"] = str(FOLDER / "state")
(FOLDER / "home").mkdir(parents=True)
sys.path.insert(0, str(Path(__file__).parents[1]))
os.chdir(FOLDER)

import lightning.pytorch as pl  # noqa: E402
import torch  # noqa: E402

from lamincli.instance import connect  # noqa: E402

torch.set_num_threads(1)
connect(str(FOLDER / "instance"))

import lamindb as ln  # noqa: E402
from django.db import connections  # noqa: E402
from django.db.backends.utils import CursorWrapper  # noqa: E402
from tests_models import TinyData, TinyModel  # noqa: E402

from lamincli import Checkpoint, save_lightning_features  # noqa: E402
from lamincli.commands import sync  # noqa: E402
from lamincli.registry import storage  # noqa: E402
from lamincli.spool import pins  # noqa: E402

CALLS = [
    (os, name)
    for name in ("open", "link", "replace", "rename", "unlink", "mkdir", "rmdir", "fsync")
]
CALLS += [(shutil, "rmtree"), (CursorWrapper, "execute"), (CursorWrapper, "executemany")]
CALLS += [(storage, "describe"), (storage, "_copy"), (pins, "measure")]
# pathlib keeps functions of its own in some versions of Python.


class Killer:
    """Counts calls, and kills the process before one of them."""

    def __init__(self, at):
        self.at, self.count = at, 0

    def watch(self):
        for owner, name in CALLS:
            setattr(owner, name, self.counted(getattr(owner, name)))

    def counted(self, function):
        def call(*args, **kwargs):
            self.count += 1
            if self.count == self.at:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call


class Acknowledging(Checkpoint):
    """Notes in a file what was attempted and what has returned."""

    def note(self, *what):
        os.write(self.notes, (json.dumps(what) + "\n").encode())

    def _save_checkpoint(self, trainer, filepath):
        self.note("saving", filepath)
        super()._save_checkpoint(trainer, filepath)
        digest = hashlib.sha256(Path(filepath).read_bytes()).hexdigest()
        score = None if self.current_score is None else float(self.current_score)
        self.note("saved", filepath, digest, score)

    def _remove_checkpoint(self, trainer, filepath):
        self.note("removing", filepath)
        super()._remove_checkpoint(trainer, filepath)
        self.note("removed", filepath)


def train(killer, leave=False):
    """Three saves, a last.ckpt that is written over, and a removal."""
    ln.context._run = ln.Run.get(uid=RUN)
    pl.seed_everything(1, verbose=False)
    callback = Acknowledging(
        dirpath="work/checkpoints", monitor="val_loss", save_top_k=2, save_last=True,
        enable_version_counter=False, mode="max",
    )  # fmt: skip
    callback.notes = os.open("notes", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    if leave:
        callback.drain = lambda *args: None
        from lamincli.publisher import Publisher

        Publisher._start = lambda self: None
    if killer is not None:
        killer.watch()
    trainer = pl.Trainer(
        default_root_dir="work", max_epochs=4, limit_train_batches=1, limit_val_batches=1,
        callbacks=[callback], logger=False, enable_progress_bar=False, num_sanity_val_steps=0,
        enable_model_summary=False, accelerator="cpu",
    )  # fmt: skip
    trainer.fit(TinyModel(), datamodule=TinyData())


def forked(work):
    """Run in a forked process; returns how it ended, and whether by SIGKILL."""
    connections.close_all()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            code = work() or 0
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
            os._exit(code)
    status = os.waitpid(pid, 0)[1]
    return os.WIFSIGNALED(status), os.waitstatus_to_exitcode(status)


def synced(killer=None):
    def work():
        if killer is not None:
            killer.watch()
        return sync.main(["work"])

    return forked(work)


def look():
    """Hold the notes against the record."""
    notes = [json.loads(line) for line in Path("notes").read_text().splitlines()]
    wanted, allowed = {}, {}
    for what, path, *rest in notes:
        name = Path(path).name
        if what == "saving":
            allowed.setdefault(name, set())
        elif what == "saved":
            wanted[name] = rest
            allowed[name].add(rest[0])
        elif what == "removed":
            wanted.pop(name, None)
            allowed.pop(name, None)
        elif what == "removing":
            wanted.pop(name, None)
    run = ln.Run.get(uid=RUN)
    artifacts = list(ln.Artifact.objects.filter(kind="model"))
    found = {}
    for artifact in artifacts:
        name = artifact.key.rpartition("/")[2]
        assert artifact.run_id == run.id, f"{name} belongs to another run"
        assert name not in found, f"{name} is there twice"
        found[name] = artifact
    for name, (digest, score) in wanted.items():
        assert name in found, f"{name} was acknowledged, and is lost"
        content = Path(found[name].path).read_bytes()
        stored = hashlib.sha256(content).hexdigest()
        in_flight = notes[-1][0] == "saving" and Path(notes[-1][1]).name == name
        assert stored == digest or in_flight, f"{name} has other bytes"
        values = dict(
            found[name].links_jsonvalue.values_list("jsonvalue__feature__name", "jsonvalue__value")
        )
        assert values["score"] == score or in_flight, f"{name} has score {values['score']}"
    for name, artifact in found.items():
        assert name in allowed, f"{name} was never saved, or was removed"
        size, digest, _ = storage._hash_file(Path(artifact.path))
        assert (size, digest) == (artifact.size, artifact.hash), f"{name}: hash or size"
        assert not artifact._aux, f"{name} is not complete"
    ranks = sorted(
        link.jsonvalue.value
        for artifact in artifacts
        for link in artifact.links_jsonvalue.filter(jsonvalue__feature__name="model_rank")
    )
    assert ranks == list(range(len(artifacts))), f"ranks {ranks}"
    for flag in ("is_last_model",):
        on = ln.models.ArtifactJsonValue.objects.filter(
            jsonvalue__feature__name=flag, jsonvalue__value=True
        ).count()
        assert on == (1 if found else 0) or "removing" in {n[0] for n in notes[-1:]}, (
            f"{flag}: {on}"
        )
    stored = {
        p.name for p in (FOLDER / "instance/.lamindb").iterdir() if p.suffix in (".ckpt", ".part")
    }
    assert stored == {Path(a.path).name for a in artifacts}, f"in the storage: {stored}"
    left = [p for p in Path("work").rglob("*") if ".lamin_spool" in p.parts]
    assert not left, f"left: {left}"
    return 0


def again():
    """The next training of the same project works, and is recorded."""
    global RUN
    RUN = ln.Run(transform=ln.Transform.get(key="crash")).save().uid
    os.unlink("notes")
    train(None)
    assert ln.Artifact.objects.filter(run__uid=RUN, kind="model").count() == 3
    return 0


def check(ended, what):
    signaled, code = ended
    if signaled or code:
        print(f"{what}: {'signal' if signaled else 'code'} {code}", Path("log").read_text()[-4000:])
        sys.exit(1)


def restore():
    connections.close_all()
    shutil.rmtree("instance")
    shutil.copytree("template", "instance")
    shutil.rmtree("work", ignore_errors=True)
    Path("work").mkdir()
    for name in ("notes", "log"):
        Path(name).unlink(missing_ok=True)


save_lightning_features()
transform = ln.Transform(key="crash", source_code="crash", kind="function").save()
RUN = ln.Run(transform=transform).save().uid
connections.close_all()
shutil.copytree("instance", "template")
n = FIRST
if SCENARIO == "storm":
    chance, kills = random.Random(FIRST), 0
    while kills < STRIDE:
        restore()
        Path("notes").touch()
        about = [chance.randint(1, 230)]
        killed, _ = forked(partial(train, Killer(about[0])))
        while killed and chance.random() < 0.7:
            kills += 1
            about.append(chance.randint(1, 220))
            killed, _ = synced(Killer(about[-1]))
        kills += killed
        check(synced(), f"seed {FIRST}: sync after {about}")
        check(forked(look), f"seed {FIRST}: oracle after {about}")
    print(f"storm: {kills} kills, seed {FIRST}")
    sys.exit()
while True:
    restore()
    if SCENARIO == "training":
        killed, code = forked(partial(train, Killer(n)))
        Path("notes").touch()
    else:
        check(forked(lambda: train(None, leave=True)), "leaving jobs")
        killed, code = synced(Killer(n))
        if SCENARIO == "twice" and killed:
            synced(Killer(max(1, n // 2)))
    if not killed and code not in (0, 3):
        check((killed, code), f"N = {n}")
    check(synced(), f"sync after N = {n}")
    check(forked(look), f"oracle after N = {n}")
    if n % 10 == FIRST % 10:
        check(forked(again), f"next training after N = {n}")
    if not killed:
        break
    n += STRIDE
print(f"{SCENARIO}: killed at {FIRST}, {FIRST + STRIDE}, … {n - STRIDE}")
