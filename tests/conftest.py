"""One private home for all tests: nothing of the user's settings is read or written."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

# Before lamindb is imported, which reads its settings from the home directory once.
HOME = Path(tempfile.mkdtemp(prefix="lamin-train-tests-"))
for name in [name for name in os.environ if name.startswith(("LAMIN", "PL_", "SLURM_"))]:
    del os.environ[name]
os.environ["HOME"] = str(HOME)
os.environ["PYTHONPATH"] = str(Path(__file__).parent)  # the models, for processes we start
os.environ["COLUMNS"] = "200"
os.environ["PYTHONFAULTHANDLER"] = "1"  # where a process that aborts was
sys.path.insert(0, str(Path(__file__).parent))
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in the background; processes inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

from servers import (  # noqa: E402
    S3_ENVIRONMENT,
    Postgres,
    create_instance,
    postgres_server,
    s3_server,
)
from warm import warm_python  # noqa: E402

QUIET = [
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.accelerator=cpu",
]
TINY = ["--trainer.max_epochs=1", *QUIET]


@pytest.fixture(scope="session")
def _instance(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Connect one local instance for all tests that run in this process."""
    from lamincli.instance import connect

    return connect(str(tmp_path_factory.mktemp("instances") / "tests"))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Work in an empty folder, with no words on the command line, and leave no spool to others."""
    from lamincli.process import DECIDED_VARIABLE
    from lamincli.redaction import forget
    from lamincli.spool.index import index_folder

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(DECIDED_VARIABLE, raising=False)  # ranks would take it for their parent's
    monkeypatch.setattr(sys, "argv", ["lamin-train"])
    yield tmp_path
    shutil.rmtree(index_folder(), ignore_errors=True)
    forget()


@pytest.fixture
def ln(_instance: str, project: Path) -> Iterator[Any]:
    """Give lamindb, connected, in an empty project; no run is left open."""
    import lamindb

    from lamincli.instance import connect
    from lamincli.registry.runs import leave_context

    connect(_instance)  # whatever the test before this one connected
    lamindb.setup.logger.set_handler()  # to the streams that pytest captures for this test
    yield lamindb
    if lamindb.context.run is not None:
        leave_context()


@pytest.fixture
def train(ln: Any) -> Callable[..., Any]:
    """Run `LaminLightningCLI` in this process, with the tiny model unless told otherwise."""
    from tests_models import TinyData, TinyModel

    from lamincli import LaminLightningCLI

    def run(*words: str, cli: Any = LaminLightningCLI, **arguments: Any) -> Any:
        arguments = {"model_class": TinyModel, "datamodule_class": TinyData, **arguments}
        stage, *options = words or ["fit"]
        sys.argv = ["lamin-train", stage, *options]
        return cli(args=[stage, *TINY, *options], **arguments)

    return run


@pytest.fixture
def last_run(ln: Any) -> Callable[[], Any]:
    """Return the newest run of the instance."""
    return lambda: ln.Run.objects.order_by("-id").first()


@pytest.fixture(scope="session")
def python() -> Iterator[str]:
    """Give a Python that starts fast, for programs that run to their end."""
    with warm_python() as program:
        yield program


@pytest.fixture
def shell(project: Path, python: str) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run ``lamin-train`` as a process of its own, in a fresh project with its own instance."""

    def run(
        *words: str, program: list[str] | None = None, timeout_s: float = 120, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        first, *others = program or [sys.executable, "-m", "lamincli"]
        return subprocess.run(
            [python if first == sys.executable else first, *others, *words],
            cwd=project,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    return run


# Counts connections to databases, of the main thread and in all, forbids the network if asked, and
# runs a command before one of the statements of the main thread.
GUARD = """
import os, socket, sys, threading
if os.environ.get("FORBID_NETWORK"):
    def refuse(*a, **k): raise OSError("the test forbids the network: %r" % (a,))
    socket.getaddrinfo = refuse
    socket.socket.connect = refuse
if os.environ.get("COUNT_CONNECTIONS"):
    from django.db.backends.base.base import BaseDatabaseWrapper as Wrapper
    connect = Wrapper.connect
    def counted(self):
        is_main = threading.current_thread() is threading.main_thread()
        with open(os.environ["COUNT_CONNECTIONS"], "a") as file:
            file.write("main\\n" if is_main else "other\\n")
        return connect(self)
    Wrapper.connect = counted
if at := int(os.environ.get("LOSE_AT", "0")):
    import subprocess
    from django.db.backends.utils import CursorWrapper
    execute, count = CursorWrapper._execute, [0]
    def counting(self, *args):
        if threading.current_thread() is threading.main_thread():
            count[0] += 1
            if count[0] == at: subprocess.run(["bash", "-c", os.environ["LOSE"]], check=True)
        return execute(self, *args)
    CursorWrapper._execute = counting
"""


@pytest.fixture
def home(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the processes that the test starts a home of their own, and the guard."""
    home = project / "home"
    home.mkdir()
    (home / "sitecustomize.py").write_text(GUARD)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("PYTHONPATH", f"{home}:{os.environ['PYTHONPATH']}")
    return home


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """Start a PostgreSQL for the tests of a module."""
    with postgres_server() as server:
        yield server


@pytest.fixture
def instance(server: Postgres, project: Path, request: pytest.FixtureRequest) -> Postgres:
    """Connect the project to a fresh database on that server."""
    name = re.sub(r"\W+", "-", request.node.name.lower())[:40].strip("-")
    create_instance(name, "store", server.create_database(name))
    return server


@pytest.fixture
def record(project: Path, python: str) -> Callable[[], list[SimpleNamespace]]:
    """Read the runs of the project's own instance, in a process of its own, oldest first."""
    code = """
import json, lamindb as ln
runs = []
for run in ln.Run.objects.order_by("id"):
    runs.append(dict(
        uid=run.uid, status=run.status, finished=run.finished_at is not None,
        after_start=run.finished_at is not None and run.finished_at >= run.started_at,
        key=run.transform.key, source=run.transform.source_code, transform=run.transform.uid,
        description=run.transform.description, cli_args=run.cli_args, params=run.params,
        extra=run.extra_data, environment=run.environment is not None,
        log=open(run.report.path).read() if run.report else None,
        inputs=sorted(a.key for a in run.input_artifacts.all()),
        outputs=sorted(a.key for a in run.output_artifacts.all()),
        parent=run.initiated_by_run and run.initiated_by_run.uid,
    ))
print("RECORD" + json.dumps(runs))
"""

    def read() -> list[SimpleNamespace]:
        import json

        done = subprocess.run(
            [python, "-c", code], cwd=project, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        text = done.stdout.split("RECORD", 1)[1]
        return [SimpleNamespace(**run) for run in json.loads(text)]

    return read


@pytest.fixture
def s3(ln: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """Give a function that makes a bucket the default storage of the instance."""
    for name, value in S3_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    before = ln.setup.settings.instance._storage
    stack: list[Any] = []

    def start(before: Callable[[], None] = lambda: None, **faults: Any) -> str:
        server = s3_server(**faults)
        url = server.__enter__()
        stack.append(server)
        before()
        root = f"s3://bucket/{len(stack)}?endpoint_url={url}"
        ln.Storage(root=root).save()
        ln.settings.storage = root
        return url

    yield start
    ln.setup.settings.instance._storage = before
    for server in stack:
        server.__exit__(None, None, None)
