"""Real servers of our own on the loopback: PostgreSQL, S3 (moto), and the faults between."""

import argparse
import json
import os
import random
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from importlib.metadata import version
from pathlib import Path

S3_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


def free_port() -> int:
    """Return a port below those that the system gives to clients, which nobody else was given."""
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def wait_for(port: int, process: subprocess.Popen | None = None, timeout_s: float = 60) -> None:
    until_s = time.monotonic() + timeout_s
    while time.monotonic() < until_s:
        if process is not None and process.poll() is not None:
            raise RuntimeError(f"the server ended with code {process.returncode}")
        with closing(socket.socket()) as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise TimeoutError(f"nothing listens on port {port}")


# -- PostgreSQL -----------------------------------------------------------------------------------


def postgres_binary(name: str) -> str | None:
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(found[-1]) if found else shutil.which(name)


def _run_client(name: str, *words: str) -> str:
    done = subprocess.run(
        [str(postgres_binary(name)), *words], check=True, capture_output=True, text=True
    )
    return done.stdout


class Postgres:
    """A server that can be stopped and started again."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="lamin-train-postgres-"))
        self._as_user: list[str] = []
        if os.getuid() == 0:  # the server refuses to run as root
            self._as_user = ["runuser", "-u", "postgres", "--"]
            shutil.chown(self.folder, "postgres")
        self.port = free_port()
        self.url = f"postgresql://lamin:pw@127.0.0.1:{self.port}"
        self._data = str(self.folder / "data")
        self._run("initdb", "-D", self._data, "-U", "lamin", "--auth=trust")
        self.start()

    def _run(self, program: str, *words: str) -> None:
        command = [*self._as_user, str(postgres_binary(program)), *words]
        subprocess.run(command, check=True, capture_output=True, cwd="/")

    def _words(self, what: str) -> list[str]:
        if what == "stop":
            return ["-D", self._data, "-m", "immediate", "stop"]
        options = (
            f"-p {self.port} -c listen_addresses=127.0.0.1 -k {self.folder} -c fsync=off "
            "-c shared_preload_libraries=pg_stat_statements"
        )
        return ["-D", self._data, "-o", options, "-l", str(self.folder / "log"), "-w", "start"]

    def command(self, what: str) -> str:
        """Return the command of a shell that starts or stops the server."""
        words = [*self._as_user, str(postgres_binary("pg_ctl")), *self._words(what)]
        return f"{shlex.join(words)} > /dev/null 2>&1"

    def start(self) -> None:
        self._run("pg_ctl", *self._words("start"))

    def stop(self) -> None:
        self._run("pg_ctl", *self._words("stop"))

    def close(self) -> None:
        with suppress(subprocess.CalledProcessError):  # it is stopped
            self.stop()
        shutil.rmtree(self.folder)

    def create_database(self, name: str) -> str:
        self.query(f'CREATE DATABASE "{name}"')
        self.query("CREATE EXTENSION pg_stat_statements", name)
        return f"{self.url}/{name}"

    def query(self, statement: str, database: str = "postgres") -> list[list[str]]:
        """Return the rows that a statement gives, as text."""
        words = [f"{self.url}/{database}", "-At", "-F", "\t", "-c", statement]
        return [line.split("\t") for line in _run_client("psql", *words).splitlines()]

    @contextmanager
    def counted(self, database: str) -> Iterator[dict[str, int]]:
        """Count what clients do in a database: their statements, and the sessions they open."""
        counts: dict[str, int] = {}

        def look() -> tuple[int, int]:
            of_database = f"d.datname = '{database}'"
            statements, sessions = self.query(
                "SELECT COALESCE(SUM(s.calls), 0), MAX(d.sessions) FROM pg_stat_database d "
                f"LEFT JOIN pg_stat_statements s ON s.dbid = d.datid WHERE {of_database}",
                "stats",
            )[0]
            return int(statements), int(sessions)

        if not self.query("SELECT 1 FROM pg_database WHERE datname = 'stats'"):
            self.create_database("stats")
        before = look()
        yield counts
        after = look()
        counts |= {"statements": after[0] - before[0], "sessions": after[1] - before[1]}


@contextmanager
def postgres_server() -> Iterator[Postgres]:
    """Start a server for a test; skip the test where none is installed."""
    if postgres_binary("initdb") is None:
        import pytest

        pytest.skip("PostgreSQL's server is not installed (Debian: apt-get install postgresql)")
    server = Postgres()
    try:
        yield server
    finally:
        server.close()


# -- S3 -------------------------------------------------------------------------------------------


@contextmanager
def s3_server(
    fail_every: int = 0,
    stall_every: int = 0,
    stall_s: float = 0,
    cut_every: int = 0,
    cut_downloads_every: int = 0,
    spoil_every: int = 0,
    credentials_expire: bool = False,
    log: str = "",
) -> Iterator[str]:
    """Start an S3 server with a bucket; yields its URL.

    Args:
        fail_every: Answer every so many calls with 503 SlowDown.
        stall_every: Answer every so many calls late.
        stall_s: How late.
        cut_every: Close the connection of every so many uploads half-way.
        cut_downloads_every: Close the connection of every so many downloads half-way.
        spoil_every: Store one other byte, in turn one byte less, in every so many uploads.
        credentials_expire: Refuse access keys that do not name a time in the future, as in
            ``UNTIL1700000000``, and note them in the log.
        log: A file to which to write a line for every call.
    """
    port = free_port()
    faults = {name: value for name, value in locals().items() if name != "log"}
    process = subprocess.Popen(
        [sys.executable, __file__, "s3", json.dumps(faults), log],
        env={**os.environ, **S3_ENVIRONMENT},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline(), "the server has not come up"  # its bucket is there
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def serve_s3(
    log: str,
    *,
    port: int,
    fail_every: int,
    stall_every: int,
    stall_s: float,
    cut_every: int,
    cut_downloads_every: int,
    spoil_every: int,
    credentials_expire: bool,
) -> None:
    import io
    import logging
    import re

    import boto3
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    app = DomainDispatcherApplication(create_backend_app)
    calls, uploads, downloads, is_faulty = [0], [0], [0], [False]

    def half(body: bytes, connection: socket.socket) -> Iterator[bytes]:
        yield body[: len(body) // 2]
        connection.shutdown(socket.SHUT_RDWR)
        raise ConnectionResetError("cut")

    def faulty(environ, start_response):  # type: ignore[no-untyped-def]
        if not is_faulty[0]:
            return app(environ, start_response)
        calls[0] += 1
        key = re.search(r"Credential=([^/]*)", environ.get("HTTP_AUTHORIZATION", ""))
        is_expired = credentials_expire and not (
            key and key[1].startswith("UNTIL") and float(key[1][5:]) > time.time()
        )
        if log:
            what = f"{environ['REQUEST_METHOD']}?{environ['QUERY_STRING']}".rstrip("?")
            answer = "EXPIRED " if is_expired else ""
            with open(log, "a") as file:
                file.write(f"{answer}{what} {environ['PATH_INFO']}\n")
        if is_expired:
            body = b"<Error><Code>ExpiredToken</Code><Message>expired</Message></Error>"
            start_response("400 Bad Request", [("Content-Type", "application/xml")])
            return [body]
        if environ["REQUEST_METHOD"] in ("PUT", "POST"):
            uploads[0] += 1
            if cut_every and uploads[0] % cut_every == 0:
                # half of the body, for the raw stream waits for what lies beyond its end
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0) // 2)
                environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
                raise ConnectionResetError("cut")
            if spoil_every and uploads[0] % spoil_every == 0:
                body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                is_shorter = uploads[0] // spoil_every % 2 == 0
                body = body[:-1] if is_shorter else bytes([body[0] ^ 1]) + body[1:]
                environ["wsgi.input"] = io.BytesIO(body)
                environ["CONTENT_LENGTH"] = str(len(body))
        if environ["REQUEST_METHOD"] == "GET" and environ["PATH_INFO"].count("/") > 1:
            downloads[0] += 1
            if cut_downloads_every and downloads[0] % cut_downloads_every == 0:
                body = b"".join(app(environ, start_response))
                return half(body, environ["werkzeug.socket"])
        if fail_every and calls[0] % fail_every == 0:
            body = b"<Error><Code>SlowDown</Code><Message>Reduce your rate</Message></Error>"
            start_response("503 Slow Down", [("Content-Type", "application/xml")])
            return [body]
        if stall_every and calls[0] % stall_every == 0:
            time.sleep(stall_s)
        return app(environ, start_response)

    server = make_server("127.0.0.1", port, faulty, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}").create_bucket(Bucket="bucket")
    is_faulty[0] = True
    print("ready", flush=True)
    thread.join()


# -- distance -------------------------------------------------------------------------------------


def proxy_command(
    own: int, port: int, latency_s: float = 0, drop_after_s: float = 0, seed: int = 0
) -> list[str]:
    """Return the command that serves a proxy at a port of its own; see `proxy`."""
    words = (sys.executable, __file__, "proxy", own, port, latency_s, drop_after_s, seed)
    return list(map(str, words))


@contextmanager
def proxy(port: int, latency_s: float, drop_after_s: float = 0, seed: int = 0) -> Iterator[int]:
    """Put a server further away.

    Args:
        port: Where the server listens, on this host.
        latency_s: How long every packet takes, in either direction.
        drop_after_s: Cut every connection after a random time, this long on average; 0 cuts none.
        seed: Of the random times.
    """
    own = free_port()
    process = subprocess.Popen(proxy_command(own, port, latency_s, drop_after_s, seed))
    try:
        wait_for(own, process)
        yield own
    finally:
        process.kill()
        process.wait()


def serve_proxy(port: int, target: int, latency_s: float, drop_after_s: float, seed: int) -> None:
    import asyncio

    chance = random.Random(seed)

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        packets: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=256)
        loop = asyncio.get_running_loop()

        async def send() -> None:
            while True:
                due, data = await packets.get()
                if (wait := due - loop.time()) > 0:
                    await asyncio.sleep(wait)
                if not data:
                    writer.close()
                    return
                writer.write(data)
                await writer.drain()

        sending = asyncio.create_task(send())
        data = b"-"
        while data:
            try:
                data = await reader.read(1 << 18)
            except ConnectionError:
                data = b""
            await packets.put((loop.time() + latency_s, data))
        with suppress(ConnectionError):
            await sending

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", target)
        if drop_after_s:
            after_s = chance.expovariate(1 / drop_after_s)
            for side in (writer, back):
                asyncio.get_running_loop().call_later(after_s, side.transport.abort)
        await asyncio.gather(pump(reader, back), pump(there, writer))

    async def serve() -> None:
        async with await asyncio.start_server(connect, "127.0.0.1", port) as server:
            await server.serve_forever()

    asyncio.run(serve())


# -- instances ------------------------------------------------------------------------------------


def create_instance(
    name: str, storage: str, database: str | None = None, modules: str = ""
) -> None:
    """Create an instance in a process of its own, and connect the current folder to it.

    One of its name that an earlier test has made is forgotten: lamindb would take it for this one.
    Its tables are those of the first instance, for making them takes a quarter of a minute.
    """
    versions = "-".join(version(name) for name in ("lamindb", *modules.split()))
    tables = Path(__file__).parents[1] / ".pytest_cache" / f"tables-{versions}.sql"
    if database and tables.exists():
        _run_client("psql", database, f"--file={tables}")
    code = (
        "import sys, lamindb_setup as s; _, storage, name, db, modules = sys.argv; "
        "from lamindb_setup.core._settings_store import instance_settings_file; "
        "instance_settings_file(name, s.settings.user.handle).unlink(missing_ok=True); "
        "s.init(storage=storage, name=name, db=db or None, modules=modules or None)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, storage, name, database or "", modules],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **S3_ENVIRONMENT},
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    if database and not tables.exists():
        tables.parent.mkdir(exist_ok=True)
        part = tables.with_suffix(f".{os.getpid()}")
        without = [f"--exclude-table-data=lamindb_storage{end}" for end in ("", "_id_seq")]
        _run_client("pg_dump", database, f"--file={part}", *without)
        part.replace(tables)


@contextmanager
def distant_instance(
    latency_s: float, drop_after_s: float = 0
) -> Iterator[tuple[dict[str, str], Postgres]]:
    """Make an instance whose database and bucket are far away.

    Args:
        latency_s: As for `proxy`.
        drop_after_s: Likewise.

    Yields:
        The environment of its clients, and the server of its database.
    """
    postgres = Postgres()
    home = tempfile.mkdtemp(prefix="lamin-train-distant-")
    before = {name: os.environ.get(name) for name in ("HOME", *S3_ENVIRONMENT)}
    os.environ |= {"HOME": home, **S3_ENVIRONMENT}
    try:
        with ExitStack() as stack:
            s3 = stack.enter_context(s3_server())
            distance = (latency_s, drop_after_s)
            far_database = stack.enter_context(proxy(postgres.port, *distance))
            far_s3 = stack.enter_context(proxy(int(s3.rsplit(":", 1)[1]), *distance))
            project = Path(home) / "project"  # lamindb refuses the home directory itself
            project.mkdir()
            os.chdir(project)
            create_instance("distant", "store", postgres.create_database("distant"))
            # The tables are made near by: it takes a thousand statements.
            (settings,) = Path(home, ".lamin").glob("instance--*--distant.env")
            text = settings.read_text().replace(f":{postgres.port}/", f":{far_database}/")
            settings.write_text(text)
            environment = {
                **S3_ENVIRONMENT,
                "LAMIN_SETTINGS_DIR": home,
                "BENCHMARK_INSTANCE": "anonymous/distant",
                "BENCHMARK_STORAGE": f"s3://bucket/far?endpoint_url=http://127.0.0.1:{far_s3}",
            }
            yield environment, postgres
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        postgres.close()
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["s3", "proxy"])
    parser.add_argument("words", nargs="*")
    given = parser.parse_args()
    os.nice(19)  # it stands for another machine, and shall not take the processor of this one
    if given.what == "s3":
        serve_s3(given.words[1], **json.loads(given.words[0]))
    else:
        own, target, latency_s, drop_after_s, seed = given.words
        serve_proxy(int(own), int(target), float(latency_s), float(drop_after_s), int(seed))
