"""Python programs that start fast: forks of a process that has imported the slow libraries.

Four of the six seconds that a short training takes go into importing torch and Lightning, which
is the same each time. `warm_python` yields the path of a program that takes the words of `python`
and does what it does, in a fork of such a process: same streams, environment, exit code. It is
for programs that run to their end. Signals reach only the program in front of it, so a test that
sends one starts a process of its own; words that it doesn't know start one as well.
"""

import contextlib
import importlib.util
import os
import pickle
import select
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, ModuleType

# Imported once. Nothing here reads settings, or is looked for in `sys.modules` by what is tested.
LIBRARIES = ["lightning.pytorch.cli", "pandas", "pyarrow.parquet", "supabase", "psycopg2", "rich"]

# What is read while Python starts or libraries are imported: with another value of one of these
# a program gets a process of its own.
READ_AT_START = ("PYTHON", "LC_", "LANG", "LD_", "RANK", "LOCAL_", "WORLD_", "MASTER_", "GROUP_",
                 "SLURM_", "PL_", "TORCH", "CUDA", "OMP_", "MKL_")  # fmt: skip

# In front, without the `site` module: it hands on what it was given, and waits for the exit code.
CLIENT = """#!{python} -SE
import os, socket, sys
words = sys.argv[1:]
environment = dict(os.environ)
names = {names!r}
at_start = {{k: v for k, v in environment.items() if k.startswith(names) and k != "PYTHONPATH"}}
if at_start != {at_start!r} or not words or (words[0] not in ("-c", "-m") and words[0][0] == "-"):
    os.execv({python!r}, [{python!r}, *words])
import pickle
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
request = pickle.dumps((os.getcwd(), environment, words))
socket.send_fds(server, [len(request).to_bytes(4, "big")], [0, 1, 2])
server.sendall(request)
code = int.from_bytes(server.recv(4), "big", signed=True)
if code < 0:
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


@contextlib.contextmanager
def warm_python() -> Iterator[str]:
    """Import the libraries in a process of its own, and yield the program that starts its forks."""
    with tempfile.TemporaryDirectory(prefix="lamin-train-warm-") as folder:
        address = str(Path(folder, "socket"))
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(address)
            server.listen(16)
            words = [sys.executable, __file__, str(server.fileno())]
            environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
            # Its streams are pipes, as those of most tests are: Python looks once what they can.
            process = subprocess.Popen(
                words, pass_fds=[server.fileno()], env=environment, stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )  # fmt: skip
        client = Path(folder, "python")
        at_start = {k: v for k, v in environment.items() if k.startswith(READ_AT_START)}
        client.write_text(
            CLIENT.format(
                python=sys.executable, names=READ_AT_START, at_start=at_start, address=address
            )
        )
        client.chmod(0o755)
        try:
            yield str(client)
        finally:
            process.kill()
            process.wait()


def serve(server: socket.socket) -> list[str]:
    """Fork for every request; return its words in the process that shall be the program."""
    for name in LIBRARIES:
        importlib.import_module(name)
    while True:
        client, _ = server.accept()
        if os.fork() == 0:
            break
        client.close()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
    server.close()
    size, streams, _, _ = socket.recv_fds(client, 4, 3)
    with client.makefile("rb") as file:
        folder, environment, words = pickle.loads(file.read(int.from_bytes(size, "big")))
    program = os.fork()
    if program:
        wait_for(program, client)
    client.close()
    for i, stream in enumerate(streams):
        os.dup2(stream, i)
        os.close(stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    return words


def wait_for(program: int, client: socket.socket) -> None:
    """Tell the client how the program ended; end the program if the client is gone."""
    for i in range(3):
        os.close(i)
    pidfd = os.pidfd_open(program)
    ready, _, _ = select.select([client, pidfd], [], [])
    if pidfd not in ready:
        os.kill(program, 9)
    code = os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])
    with contextlib.suppress(OSError):
        client.sendall(code.to_bytes(4, "big", signed=True))
    os._exit(0)


def as_main(words: list[str]) -> tuple[CodeType, dict]:
    """Make this process look as if Python had been started with these words."""
    import numpy

    numpy.random.seed()  # every fork has the state of its parent
    tempfile.tempdir = None
    kind, arguments = (words[0], words[1:]) if words[0] in ("-c", "-m") else ("", words)
    main = ModuleType("__main__")
    sys.modules["__main__"] = main
    globals()["__name__"] = "runpy"  # as which this is no part of the program
    sys.orig_argv = [sys.executable, *words]
    sys.argv = ["-c" if kind == "-c" else arguments[0], *arguments[1:]]
    first = (
        {"-c": "", "-m": os.getcwd()}.get(kind) if kind else str(Path(words[0]).resolve().parent)
    )
    own = [str(Path(one).absolute()) for one in os.environ.get("PYTHONPATH", "").split(":") if one]
    sys.path[:] = [first, *own, *sys.path[1:]]
    importlib.invalidate_caches()
    if any(Path(entry, "sitecustomize.py").exists() for entry in own):
        sys.modules.pop("sitecustomize", None)
        importlib.import_module("sitecustomize")
    if kind == "-c":
        return compile(arguments[0], "<string>", "exec"), vars(main)
    if kind == "-m":
        name = arguments[0]
        spec = importlib.util.find_spec(name)
        if spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(f"{name}.__main__")
        vars(main).update(__spec__=spec, __package__=spec.parent, __file__=spec.origin,
                          __loader__=spec.loader)  # fmt: skip
        sys.argv[0] = spec.origin
        return spec.loader.get_code(spec.name), vars(main)
    vars(main).update(__file__=arguments[0], __cached__=None)
    return compile(Path(arguments[0]).read_bytes(), arguments[0], "exec"), vars(main)


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as listening:
        code, names = as_main(serve(listening))
    exec(code, names)
