"""Many short runs at once, on a real PostgreSQL server, from an empty instance."""

import os
import subprocess
import sys
import time
from collections import Counter

import psycopg2
from servers import create_instance

PROCESSES, RUNS_EACH = 8, 8
SCRIPT = """
import sys, time
from pathlib import Path
from tests_models import TinyData, TinyModel
from lamincli import LaminLightningCLI

number, count = sys.argv[1:]
for name in ("trainer.logger", "trainer.enable_progress_bar", "trainer.enable_model_summary"):
    sys.argv.append(f"--{name}=false")

def wait_for(name):
    while not Path(name).exists():
        time.sleep(0.01)

Path(f"ready-{number}").touch()
wait_for("go")
for _ in range(int(count)):
    LaminLightningCLI(TinyModel, TinyData, args=[
        "fit", "--trainer.max_epochs=1", "--trainer.accelerator=cpu",
        f"--trainer.default_root_dir=out-{number}", *sys.argv[3:],
    ])
Path(f"done-{number}").touch()
wait_for("leave")
"""


class Connections:
    """The connections to a database, by the name that `PGAPPNAME` gives to each process."""

    def __init__(self, url):
        self._connection = psycopg2.connect(url, application_name="watcher")
        self._connection.autocommit = True
        self.most = Counter()

    def look(self):
        rows = self.query(
            "SELECT application_name, COUNT(*) FROM pg_stat_activity WHERE datname = "
            "current_database() AND application_name LIKE 'job-%' GROUP BY 1"
        )
        self.most |= Counter(dict(rows))
        return dict(rows)

    def query(self, statement):
        with self._connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall()


def test_many_runs_from_eight_processes(server, project):
    """All begin in an empty instance: each makes the features and the transform, or finds them."""
    url = server.create_database("many")
    create_instance("many", "store", url)
    for name in ("one.py", "other.py"):
        (project / name).write_text(f"{SCRIPT}# {name}\n")
    processes = [
        subprocess.Popen(
            [sys.executable, ("one.py", "other.py")[i % 2], str(i), str(RUNS_EACH)],
            env={**os.environ, "PGAPPNAME": f"job-{i}"},
            stdout=(project / f"output-{i}").open("w"), stderr=subprocess.STDOUT,
        )
        for i in range(PROCESSES)
    ]  # fmt: skip
    connections = Connections(url)

    def watch_until(mark):
        while len(list(project.glob(f"{mark}-*"))) < PROCESSES:
            for i, process in enumerate(processes):
                assert process.poll() is None, (project / f"output-{i}").read_text()[-3000:]
            connections.look()
            time.sleep(0.02)

    try:
        watch_until("ready")
        (project / "go").touch()
        watch_until("done")
        left = connections.look()
        (project / "leave").touch()
        assert [process.wait(60) for process in processes] == [0] * PROCESSES
    finally:
        for process in processes:
            process.kill()

    assert set(connections.most.values()) == {1}, "one connection a job"
    assert left == {}, "a job whose run has ended holds none"
    names = [name for (name,) in connections.query("SELECT name FROM lamindb_feature")]
    assert len(names) == len(set(names)) == 15, "14 features and their type"
    transforms = connections.query("SELECT key FROM lamindb_transform ORDER BY key")
    assert transforms == [("one.py",), ("other.py",)]
    for registry in ("storage", "user", "space", "branch", "ulabel"):
        column = {"storage": "root", "user": "handle"}.get(registry, "name")
        rows = connections.query(f"SELECT {column} FROM lamindb_{registry}")
        assert len(rows) == len(set(rows)), registry
    runs = connections.query(
        "SELECT r.uid, r._status_code, r.finished_at IS NOT NULL, r.report_id IS NOT NULL, "
        "COUNT(*) FILTER (WHERE a.kind = 'model'), COUNT(*) FILTER (WHERE a.key LIKE '%history.csv'), "
        "(SELECT COUNT(*) FROM lamindb_artifact_input_of_runs i WHERE i.run_id = r.id) "
        "FROM lamindb_run r LEFT JOIN lamindb_artifact a ON a.run_id = r.id GROUP BY r.id"
    )
    assert len(runs) == PROCESSES * RUNS_EACH
    assert {run[1:] for run in runs} == {(0, True, True, 1, 1, 1)}
