"""``lamin-train``: training words go to the CLI class, every other word to its command.

Nothing here imports torch or lamindb until a word needs it.
"""

import gc
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from lamincli import __version__
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
    words = sys.argv[1:]
    if words in (["--version"], ["-V"]):
        print(f"lamin-train {__version__}")
    elif not words:
        sys.stderr.write(_usage())
        sys.exit(2)
    elif words in (["--help"], ["-h"]):
        print(_usage() + _words())
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
        sys.stderr.write(f"error: lamin-train has no command {words[0]!r}.{hint}\n{_usage()}")
        sys.exit(2)


def _resume(words: list[str]) -> None:
    if not words or not words[0] or words[0].startswith("-"):
        wants_help = bool(words) and words[0] in ("--help", "-h")
        stream = sys.stdout if wants_help else sys.stderr
        stream.write(RESUME_USAGE)
        sys.exit(0 if wants_help else 2)
    run = words[0].removeprefix("lamin:run/")
    # As words of fit, for the launchers of ranks start this command line again.
    sys.argv[1:] = ["fit", f"--lamin.resume={run}", *words[1:]]
    main()


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
