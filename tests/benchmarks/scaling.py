"""What a big job and a big registry cost each part, at the sizes that fit one machine.

    python tests/benchmarks/scaling.py registry [--runs N ...] [--postgres]
    python tests/benchmarks/scaling.py spool [--files 10000] [--jobs 1000]
    python tests/benchmarks/scaling.py store [--ranks 16 64 256 1024]

`registry` fills an instance with runs that look like ours, and two checkpoints each, then times the
statements of a start and of look-ups and prints the plans that read a whole table; on SQLite
without and with statistics. `store` has all ranks wait, as `Ranks._wait` does, while rank zero
decides for five seconds. Prints a line a figure; the guide on scaling holds a table of them.
"""

import argparse
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))


def median_ms(call, repeats=7):
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


# -- the registry ---------------------------------------------------------------------------------


def fill(count):
    """Add runs until there are so many, in bulk."""
    import lamindb as ln
    from django.db import transaction
    from django.db.models import Model

    transform = ln.Transform.objects.filter(key="train.py").first()
    transform = transform or ln.Transform(key="train.py", kind="pipeline").save()
    storage = ln.Storage.objects.first()
    epoch = datetime(2026, 1, 1, tzinfo=timezone.utc)
    common = {"branch_id": 1, "space_id": 1}
    first = ln.Run.objects.count()
    with transaction.atomic():
        for start in range(first, count, 2000):
            numbers = range(start, min(count, start + 2000))
            runs = []
            for n in numbers:
                run = ln.Run.__new__(ln.Run)
                Model.__init__(run, transform_id=transform.id, created_by_id=1, **common)
                run.uid, run.started_at = f"r{n:010d}abcde", epoch + timedelta(seconds=n)
                run._status_code = -1 if n % 1000 == 0 else 0
                run.reference, run.reference_type = f"slurm:c:{n}", "slurm"
                run.params = {"model": {"init_args": {"lr": n / 1e6, "layers": list(range(20))}}}
                host = {"host": f"node{n % 5000}", "pid": n, "started_s": n}
                run.extra_data = {"lamin_train": {
                    "stage": "fit", "job": f"slurm:c:{n}", "command": "fit --config config.yaml",
                    "process": host, "attempts": [{"started_at": run.started_at.isoformat()}],
                }, "metrics": {"val_loss": 0.1}}  # fmt: skip
                runs.append(run)
            ln.Run.objects.bulk_create(runs)
            ids = dict(
                ln.Run.objects.filter(uid__in=[r.uid for r in runs]).values_list("uid", "id")
            )
            ln.Artifact.objects.bulk_create(
                make_artifact(ln, n, k, ids[f"r{n:010d}abcde"], storage, common)
                for n in numbers
                for k in range(2)
            )


def make_artifact(ln, n, k, run_id, storage, common):
    artifact = ln.Artifact.__new__(ln.Artifact)
    from django.db.models import Model

    uid = f"a{n:011d}{k:04d}0000"
    Model.__init__(
        artifact, uid=uid, key=f"train/{n:015d}/checkpoints/epoch={k}.ckpt", suffix=".ckpt",
        kind="model", size=1000, hash=uid, storage_id=storage.id, run_id=run_id, is_latest=True,
        created_by_id=1, _hash_type="md5", _key_is_virtual=True, _overwrite_versions=False,
        extra_data={"lamin_train": {"checkpoint": "c", "monitor": "val_loss", "mode": "min",
                                    "score": k, "step": k, "saved_at": str(k)}}, **common,
    )  # fmt: skip
    return artifact


def questions(count):
    """Return what is timed, by name."""
    import lamindb as ln

    from lamincli import resume
    from lamincli.references import _of_run, find_run
    from lamincli.tracking import close_gone_runs

    uid = f"r{count // 2:010d}abcde"
    run = ln.Run.objects.get(uid=uid)
    os.environ["SLURM_CLUSTER_NAME"], os.environ["SLURM_JOB_ID"] = "c", str(count // 2)
    sys.argv = ["lamin-train", "fit", "--config", "config.yaml"]
    return {
        "run by uid": lambda: find_run(uid, ln.Run.filter(), ""),
        "run by prefix of a uid": lambda: find_run(uid[:-3], ln.Run.filter(), ""),
        "latest run": lambda: find_run("latest", ln.Run.filter(), ""),
        "resume auto: run of this job": lambda: resume._of_this_job(ln.Run.objects, "", False),
        "best checkpoint of a run": lambda: _of_run("", run, "best", ln.Artifact.filter()),
        "checkpoints of a run, to resume": lambda: list(resume._published(run)),
        "artifact by key": lambda: ln.Artifact.get(
            key=f"train/{count // 2:015d}/checkpoints/epoch=1.ckpt"
        ),
        "close_gone_runs, each start and doctor": close_gone_runs,
        "count of runs, doctor": lambda: ln.Run.filter().count(),
    }


def ask(count, label):
    from django.db import connection

    for name, question in questions(count).items():
        asked = []

        def note(execute, sql, params, many, context, asked=asked):
            asked.append((sql, params))
            return execute(sql, params, many, context)

        with connection.execute_wrapper(note):
            try:
                question()
            except Exception as error:
                print(f"  {name}: {type(error).__name__}: {str(error)[:150]}")
                continue
        print(f"{label} | {count:,} | {name} | {median_ms(question):.1f} ms | {len(asked)} queries")
        how = "EXPLAIN" if connection.vendor == "postgresql" else "EXPLAIN QUERY PLAN"
        with connection.cursor() as cursor:
            for sql, params in asked:
                cursor.execute(f"{how} {sql}", params)
                for row in cursor.fetchall():
                    step = str(row[-1])
                    if "Seq Scan on lamindb_run" in step or "Seq Scan on lamindb_art" in step:
                        print(f"      {step.strip()}")
                    if step.endswith(("lamindb_run", "(branch_id=?)")):
                        print(f"      {step}")


def registry(options):
    if options.postgres:
        from servers import create_instance, postgres_server

        with postgres_server() as server:
            create_instance("scaling", "store", server.create_database("scaling"))
            from lamincli.instance import connect

            connect(None)
            measure(options.runs, "PostgreSQL")
    else:
        from lamincli.instance import connect

        connect("./lamindb")
        measure(options.runs, "SQLite")


def measure(sizes, label):
    from django.db import connection

    for count in sizes:
        start = time.perf_counter()
        fill(count)
        print(f"{label} | {count:,} | filled in {time.perf_counter() - start:.0f} s", flush=True)
        if label == "SQLite":
            ask(count, f"{label} without statistics")
        with connection.cursor() as cursor:
            cursor.execute("ANALYZE")
        ask(count, f"{label} with statistics")


# -- the spool ------------------------------------------------------------------------------------


def spool(options):
    from lamincli.spool import Job, Spool, left_behind

    folder = Path("checkpoint")
    for n in range(options.files):
        place = folder / f"{n // 1000:03d}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{n}.distcp").write_bytes(b"x")
    queue = Spool(Path(".lamin_spool/run").absolute())
    job = Job("save", "run", "me/here", "", datetime.now(timezone.utc).isoformat(), key="k")
    queue.add(job)
    start = time.perf_counter()
    queue.add(job, folder)
    took = time.perf_counter() - start
    print(
        f"pin of a folder | {options.files:,} files | {took:.3f} s | {options.files / took:,.0f} a second"
    )
    start = time.perf_counter()
    for _ in range(options.jobs):
        queue.add(job)
    took = time.perf_counter() - start
    print(f"jobs added | {options.jobs:,} | {1000 * took / options.jobs:.2f} ms each")
    print(f"names of the waiting jobs | {options.jobs:,} | {median_ms(queue.pending):.1f} ms")
    print(f"jobs read | {options.jobs:,} | {median_ms(lambda: list(queue.jobs())):.1f} ms")
    print(f"spools listed, jobs counted | 1 spool | {median_ms(left_behind):.1f} ms")
    start = time.perf_counter()
    queue.recover()
    print(f"recover | {options.jobs:,} jobs | {1000 * (time.perf_counter() - start):.1f} ms")


# -- the store ------------------------------------------------------------------------------------


def store(options):
    from servers import free_port
    from torch.distributed import TCPStore

    from lamincli.ranks import Ranks

    for count in options.ranks:
        port = free_port()
        server = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
        heard, checks, ready = [], [0] * count, threading.Barrier(count + 1)

        def rank(number, port=port, heard=heard, checks=checks, ready=ready):
            client = TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False)
            ready.wait()

            class Counted:
                def check(self, keys):
                    checks[number] += 1
                    return client.check(keys)

                get = client.get

            Ranks._wait(Ranks.__new__(Ranks), Counted(), "decision")
            heard.append(time.perf_counter())

        threading.stack_size(256 * 1024)
        threads = [threading.Thread(target=rank, args=(n,)) for n in range(count)]
        connecting = time.perf_counter()
        for thread in threads:
            thread.start()
        ready.wait()
        connected_s = time.perf_counter() - connecting
        time.sleep(options.decides_s)
        before, told = sum(checks), time.perf_counter()
        server.set("decision", "x" * 5000)
        for thread in threads:
            thread.join()
        print(
            f"store | {count} ranks | connected in {connected_s:.2f} s | {before / options.decides_s:,.0f}"
            f" requests a second | all have heard after {max(heard) - told:.2f} s",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["registry", "spool", "store"])
    parser.add_argument("--runs", type=int, nargs="+", default=[1000, 20_000, 100_000])
    parser.add_argument("--postgres", action="store_true")
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--ranks", type=int, nargs="+", default=[16, 64, 256, 1024])
    parser.add_argument("--decides-s", type=float, default=5)
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the server is stopped too
    with tempfile.TemporaryDirectory() as home:
        os.environ["HOME"] = home
        Path(home, "work").mkdir()
        os.chdir(Path(home, "work"))
        {"registry": registry, "spool": spool, "store": store}[chosen.part](chosen)
        os.chdir("/")
