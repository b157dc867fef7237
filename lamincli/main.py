"""``lamin-train``: training words go to the CLI class, every other word to its command.

Nothing here imports torch or lamindb until a word needs it.
"""

import gc
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from lamincli import __version__, console
from lamincli.errors import did_you_mean

STAGES = {
    "fit": "train a model",
    "validate": "evaluate a model on the validation data",
    "test": "evaluate a model on the test data",
    "predict": "run a model on the prediction data",
}
COMMANDS = {
    "resume": "go on with a run: lamin-train resume RUN [options of fit]",
    "sync": "publish what earlier trainings left unpublished: lamin-train sync [FOLDER]",
    "reproduce": "train again from the record alone, and compare: lamin-train reproduce RUN",
    "doctor": "check everything, and close runs whose process is gone",
}

USAGE = """\
usage: lamin-train {stages} --config FILE [options]
       lamin-train {commands}
"""

RESUME_USAGE = """\
usage: lamin-train resume RUN [options]

Go on with a run from its last complete checkpoint, with its config. RUN is the uid of a run, the
beginning of one, latest, or auto for the run of this job or folder. Options win over the config;
lamin-train fit --help lists them. In a project script: python SCRIPT fit --lamin.resume=RUN
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        argv: The words after the program's name; `None` takes them from ``sys.argv``.

    Raises:
        SystemExit: Always with a code other than 0 after an error: 2 for a wrong word.
    """
    if argv is not None:
        sys.argv[1:] = argv
    _open_closed_streams()
    try:
        if not _is_in_a_folder():
            console.fail("The current folder is gone. Go to one that is there: cd FOLDER")
            sys.exit(2)
        _run(sys.argv[1:])
    finally:
        _leave_streams()


def _run(words: list[str]) -> None:
    if words in (["--version"], ["-V"]):
        console.tell(f"lamin-train {__version__}\n")
    elif not words:
        console.tell(_usage(), stderr=True)
        sys.exit(2)
    elif words in (["--help"], ["-h"]):
        console.tell(f"{_usage()}{_words()}\n")
    elif words[0] == "resume":
        _resume(words[1:])
    elif words[0] in COMMANDS:
        sys.exit(_command(words[0])(words[1:]))
    elif words[0].startswith("-") or words[0] in STAGES:
        try:
            _train()
        except KeyboardInterrupt:  # while torch is being imported: nothing has begun
            sys.exit(130)
    else:
        known = [*STAGES, *COMMANDS]
        hint = did_you_mean(words[0], known)
        text = f"error: lamin-train has no command {words[0]!r}.{hint}\n{_usage()}"
        console.tell(text, stderr=True)
        sys.exit(2)


def _is_in_a_folder() -> bool:
    try:
        return bool(os.getcwd())
    except FileNotFoundError:
        return False


def _open_closed_streams() -> None:
    """Let standard streams be there that were closed, as by ``>&-`` or a daemon.

    Else the next file that is opened, a database, would get their number, and what libraries print.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


def _leave_streams() -> None:
    """Let the interpreter end in peace where the reader of a stream has gone, as in ``| head``."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            console.silence(stream)


def _resume(words: list[str]) -> None:
    if not words or not words[0] or words[0].startswith("-"):
        wants_help = bool(words) and words[0] in ("--help", "-h")
        console.tell(RESUME_USAGE, stderr=not wants_help)
        sys.exit(0 if wants_help else 2)
    run = words[0].removeprefix("lamin:run/")
    # As words of fit, for the launchers of ranks start this command line again.
    sys.argv[1:] = ["fit", f"--lamin.resume={run}", *words[1:]]
    _run(sys.argv[1:])


def _train() -> None:
    # Nothing has begun: an interrupt in the middle of an import would end in somebody's traceback.
    if (default := signal.getsignal(signal.SIGINT)) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: os._exit(128 + signal.SIGINT))
    # As with `python -m`: the modules beside the config file are importable.
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    from lamincli.cli import LaminLightningCLI

    signal.signal(signal.SIGINT, default)
    try:
        cli = LaminLightningCLI(parser_kwargs={"prog": "lamin-train"})
        if cli.ending is not None and cli.ending.exit_code:
            sys.exit(cli.ending.exit_code)
        if cli.unpublished and not cli.is_offline:
            sys.exit(3)
    except SystemExit as end:
        if not end.code and not getattr(end, "is_published", True):
            sys.exit(3)  # the user's code has ended the training well
        raise
    finally:
        # The process ends here: searching all of torch for reference cycles would take a second.
        gc.freeze()


def _command(word: str) -> Callable[[Sequence[str]], int]:
    from importlib import import_module

    run: Callable[[Sequence[str]], int] = import_module(f"lamincli.commands.{word}").main
    return run


def _usage() -> str:
    return USAGE.format(stages="{" + ",".join(STAGES) + "}", commands=",".join(COMMANDS))


def _words() -> str:
    lines = [f"  {word:<11}{text}" for word, text in {**STAGES, **COMMANDS}.items()]
    return "\n".join(
        ["", *lines, "", "Options of a stage: lamin-train fit --help", "Version: --version"]
    )
