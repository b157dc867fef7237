"""Train on two hosts with two ranks each while things die; then look at what is recorded.

    python chaos.py FOLDER SEED [ATTEMPTS]

Every attempt goes on with the run of the one before (`--lamin.resume auto`). In it, at random: a
rank or the whole job is killed, the database crashes for a while, the store is out of reach. The
second host has a route to neither. Then the training ends undisturbed, and `lamin-train sync`
publishes what is left. The oracle:

- there is one Run, which is completed, and no attempt hangs;
- every checkpoint whose save returned, and that was not removed, is one artifact of the run with
  the bytes that were saved; none that was not saved is there;
- nothing is left in the spool.
"""

import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import lightning.pytorch as pl

sys.path.insert(0, str(Path(__file__).parents[1]))
from servers import (
    S3_ENVIRONMENT,
    Postgres,
    create_instance,
    free_port,
    proxy_command,
    s3_server,
    wait_for,
)

from lamincli.resume import RUN_FILE

ENDS_WITHIN_S = 150
FIT = [
    "fit", "--model=tests_models.TinyModel", "--data=tests_models.TinyData", "--data.size=320",
    "--trainer.max_epochs=3", "--trainer.accelerator=cpu", "--trainer.devices=2",
    "--trainer.num_nodes=2", "--trainer.strategy=ddp", "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false", "--trainer.callbacks=chaos.Notes",
    "--trainer.limit_val_batches=0", "--trainer.logger=false", "--trainer.default_root_dir=work",
    "--checkpoint.dirpath=work/checkpoints", "--checkpoint.monitor=train_loss",
    "--checkpoint.save_top_k=3", "--checkpoint.save_last=true", "--checkpoint.mode=max",
    "--checkpoint.every_n_train_steps=2", "--checkpoint.enable_version_counter=false",
    "--lamin.resume=auto", "--lamin.patience_s=20",
]  # fmt: skip
TRAIN = """
import os
if os.environ["RANK"] == "0":  # the others have no route
    import lamindb as ln
    ln.settings.storage = os.environ["STORAGE"]
from lamincli import LaminLightningCLI
LaminLightningCLI()
"""
LOOK = """
import json, lamindb as ln
print("RECORD" + json.dumps(dict(
    runs=[(r.uid, r.status) for r in ln.Run.objects.order_by("id")],
    artifacts=[(a.key.rpartition("/")[2], a.run.uid, str(a.cache()))
               for a in ln.Artifact.filter(kind="model")],
)))
"""


class Notes(pl.Callback):
    """Notes in a file what rank zero attempts to save and what has returned; and who is who."""

    def setup(self, trainer, pl_module, stage):
        Path(f"pids/{trainer.global_rank}").write_text(str(os.getpid()))
        if not trainer.is_global_zero:
            return
        file = os.open("notes", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

        def noting(before, after, method, digest):
            def call(trainer, path):
                os.write(file, (json.dumps([before, path]) + "\n").encode())
                method(trainer, path)
                found = hashlib.sha256(Path(path).read_bytes()).hexdigest() if digest else ""
                os.write(file, (json.dumps([after, path, found]) + "\n").encode())

            return call

        of = trainer.checkpoint_callback
        of._save_checkpoint = noting("saving", "saved", of._save_checkpoint, True)
        of._remove_checkpoint = noting("removing", "removed", of._remove_checkpoint, False)

    def on_train_batch_end(self, *args):
        time.sleep(0.15)


class Chaos:
    def __init__(self, seed, keeper):
        self.random = random.Random(seed)
        self.keeper = keeper  # of the second host
        self.database, self.store_port, self.port = Postgres(), 0, free_port()
        self.route = None

    def open_route(self):
        self.route = subprocess.Popen(proxy_command(self.port, self.store_port))
        wait_for(self.port, self.route)

    def close_route(self):
        self.route.kill()
        self.route.wait()

    def attempt(self, number, disturbances):
        """Run the job on both hosts; returns the exit code of the first."""
        for file in Path("pids").iterdir():
            file.unlink()
        address = ["--master_addr=10.0.0.1", f"--master_port={free_port()}"]
        there = [
            "nsenter",
            f"--target={self.keeper}",
            "--net",
            "--uts",
            "--mount",
            f"--wdns={os.getcwd()}",
        ]
        jobs = []
        with open(f"log{number}", "w") as log:
            for rank, prefix in enumerate([[], there]):
                words = [*prefix, sys.executable, "-m", "torch.distributed.run", "--nnodes=2",
                         "--nproc_per_node=2", f"--node_rank={rank}", *address, "train.py",
                         *FIT]  # fmt: skip
                jobs.append(subprocess.Popen(words, stdout=log, stderr=log, start_new_session=True))
            for what in disturbances:
                self.wait(jobs, lambda: len(os.listdir("pids")) == 4 or jobs[0].poll() is not None)
                time.sleep(self.random.uniform(0, 2))
                print(f"attempt {number}: {what}", flush=True)
                getattr(self, what)(jobs)
            codes = [self.ended(job, jobs) for job in jobs]
        print(f"attempt {number}: exit codes {codes}", flush=True)
        return codes[0]

    def ended(self, job, jobs):
        try:
            return job.wait(ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            self.kill_job(jobs)
            raise AssertionError("the job hangs") from None

    def wait(self, jobs, condition):
        until_s = time.monotonic() + ENDS_WITHIN_S
        while not condition():
            if time.monotonic() > until_s:
                self.kill_job(jobs)
                raise AssertionError("the job does not begin")
            time.sleep(0.15)

    # -- what happens ------------------------------------------------------------------------

    def kill_rank(self, jobs):
        with contextlib.suppress(OSError, ValueError):
            os.kill(int(Path(f"pids/{self.random.randrange(4)}").read_text()), signal.SIGKILL)

    def kill_job(self, jobs):
        ranks = [int(file.read_text() or 0) for file in Path("pids").iterdir()]
        for pid in [*(job.pid for job in jobs if job.poll() is None), *filter(None, ranks)]:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)

    def crash_database(self, jobs):
        self.database.stop()
        time.sleep(self.random.uniform(0, 3))
        self.database.start()

    def lose_store(self, jobs):
        self.close_route()
        time.sleep(self.random.uniform(0, 3))
        self.open_route()

    def kill_job_in_an_outage(self, jobs):
        self.database.stop()
        self.close_route()
        time.sleep(self.random.uniform(0, 2))
        self.kill_job(jobs)
        self.database.start()
        self.open_route()


def look():
    """Hold the notes against the record."""
    done = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, check=True)
    record = json.loads(done.stdout.split("RECORD", 1)[1])
    (run,) = record["runs"]
    assert run[1] == "completed", f"the run is {run[1]}"
    wanted, unsure, possible = {}, set(), set()
    for what, path, *digest in map(json.loads, Path("notes").read_text().splitlines()):
        name = Path(path).name
        if what in ("saving", "removing"):
            unsure.add(name)  # until it returns
            possible.add(name)
        elif what == "saved":
            unsure.discard(name)
            wanted[name] = digest[0]
        else:
            unsure.discard(name)
            wanted.pop(name, None)
            possible.discard(name)
    found = {}
    for name, uid, path in record["artifacts"]:
        assert uid == run[0], f"{name} belongs to another run"
        assert name not in found, f"{name} is there twice"
        found[name] = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    for name in wanted.keys() - unsure:
        assert name in found, f"{name} was acknowledged, and is lost"
        assert found[name] == wanted[name], f"{name} has other bytes"
    assert found.keys() <= possible, f"never saved, or removed: {found.keys() - possible}"
    left = [path for path in Path().rglob("*") if ".lamin_spool" in path.parts]
    assert not left, f"left: {left}"
    print(f"{len(found)} checkpoints, as they should be", flush=True)


def main(folder, seed, attempts, keeper):
    project = folder / "project"
    (project / "pids").mkdir(parents=True)
    (folder / "home").mkdir()
    os.chdir(project)
    os.environ |= {**S3_ENVIRONMENT, "HOME": str(folder / "home"), "OMP_NUM_THREADS": "1",
                   "PYTHONPATH": f"{Path(__file__).parents[1]}:{Path(__file__).parent}"}  # fmt: skip
    chaos = Chaos(seed, keeper)
    try:
        with s3_server() as url:
            chaos.store_port = int(url.rsplit(":", 1)[1])
            chaos.open_route()
            root = f"s3://bucket/root?endpoint_url=http://127.0.0.1:{chaos.port}"
            os.environ["STORAGE"] = root
            Path("train.py").write_text(TRAIN)
            create_instance("chaos", "store", chaos.database.create_database("chaos"))
            words = f"import lamindb as ln; ln.Storage(root={root!r}).save()"
            subprocess.run([sys.executable, "-c", words], check=True, capture_output=True)
            fatal = ["kill_rank", "kill_job", "kill_job_in_an_outage"]
            passing = ["crash_database", "lose_store"]
            for number in range(attempts):
                some = chaos.random.sample(passing, chaos.random.randrange(3))
                code = chaos.attempt(number, [*some, chaos.random.choice(fatal)])
                if code in (0, 3) or (Path("notes").exists() and not RUN_FILE.exists()):
                    break  # it has outrun us
            else:
                assert chaos.attempt(attempts, []) in (0, 3), Path(f"log{attempts}").read_text()
            for _ in range(3):
                sync = subprocess.run([sys.executable, "-m", "lamincli", "sync"], check=False)
                if sync.returncode == 0:
                    break
            assert sync.returncode == 0
            look()
    finally:
        chaos.close_route()
        chaos.database.close()


if __name__ == "__main__":
    given = [Path(sys.argv[1]).absolute(), int(sys.argv[2]), int((sys.argv[3:] or ["2"])[0])]
    if len(sys.argv) > 4:  # on the first host
        main(*given, int(sys.argv[4]))
    else:
        from cluster import hosts

        print(f"seed {given[1]}", flush=True)
        with hosts(2) as (first, second):
            words = [sys.executable, __file__, *given, second.keeper.pid]
            sys.exit(first.start(*words).wait())
