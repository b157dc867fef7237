"""Every sentence that users read while they train."""

import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TransferSpeedColumn,
)
from rich.text import Text

_SHOWN_AFTER_S = 0.5
_TOLD_FROM_BYTES = 10_000_000


def say(message: str) -> None:
    """Tell what was done, in one line on standard output."""
    _console().print(Text.assemble(("→ ", "bold green"), message), soft_wrap=True)


def warn(message: str) -> None:
    """Tell what is not as it should be, in one line on standard error."""
    _console(stderr=True).print(Text.assemble(("! ", "bold yellow"), message), soft_wrap=True)


def fail(message: str) -> None:
    """Tell why the program ends, on standard error."""
    _console(stderr=True).print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)


@dataclass
class Ending:
    """What the closing panel tells about a run.

    Args:
        run: Uid of the run.
        status: How it ended.
        instance: The LaminDB instance, owner/name.
        rows: Label and text, in order; what does not exist is left out.
        commands: A purpose and the words of a command that fulfils it when pasted.
        unpublished: Files that did not reach LaminDB.
    """

    run: str
    status: str
    instance: str
    rows: dict[str, str] = field(default_factory=dict)
    commands: dict[str, list[str]] = field(default_factory=dict)
    unpublished: list[str] = field(default_factory=list)


def show_ending(ending: Ending) -> None:
    """Print the closing panel. Nothing in it is boxed or wrapped: commands stay pasteable."""
    console = _console()
    styles = {"completed": "green", "aborted": "yellow", "scheduled": "yellow"}
    style = styles.get(ending.status, "red")
    head = Text.assemble(
        "run ", (ending.run, "bold"), " ", (ending.status, f"bold {style}"), f" · {ending.instance}"
    )
    console.rule(style="dim")
    console.print(head, soft_wrap=True)
    width = max((len(label) for label in ending.rows), default=0)
    for label, text in ending.rows.items():
        console.print(Text.assemble((f"  {label:<{width}}  ", "dim"), text), soft_wrap=True)
    for purpose, words in ending.commands.items():
        console.print(Text.assemble(("  " + purpose, "dim")), soft_wrap=True)
        console.print(Text.assemble(("    " + shlex.join(words), "cyan")), soft_wrap=True)
    for path in ending.unpublished:
        console.print(Text.assemble(("  not in LaminDB: ", "bold yellow"), path), soft_wrap=True)
    console.rule(style="dim")


def show_findings(
    head: str,
    verdict: str,
    instance: str,
    findings: Sequence[tuple[str, str, Sequence[str], Mapping[str, str]]],
) -> None:
    """Print what a comparison has found, unboxed and unwrapped as the closing panel.

    Args:
        head: What was compared.
        verdict: ``identical``, or what else came out.
        instance: The LaminDB instance, owner/name.
        findings: Subject, state, facts, and commands by their purpose.
    """
    console = _console()
    styles = {"identical": "green", "different": "red", "differs": "red"}
    style = styles.get(verdict, "yellow")
    console.rule(style="dim")
    console.print(
        Text.assemble(head, ": ", (verdict, f"bold {style}"), f" · {instance}"), soft_wrap=True
    )
    width = max((len(subject) for subject, *_ in findings), default=0)
    for subject, state, facts, commands in findings:
        is_short = state == "identical" and len(facts) == 1
        beside = f"  {facts[0]}" if is_short else ""
        console.print(
            Text.assemble(
                (f"  {subject:<{width}}  ", "dim"), (state, styles.get(state, "yellow")), beside
            ),
            soft_wrap=True,
        )
        for fact in () if is_short else facts:
            console.print(Text(f"    {fact}"), soft_wrap=True)
        for purpose, command in commands.items():
            console.print(Text.assemble(("    " + purpose, "dim")), soft_wrap=True)
            console.print(Text.assemble(("      " + command, "cyan")), soft_wrap=True)
    console.rule(style="dim")


@contextmanager
def publishing() -> Iterator[Callable[[int, int], None]]:
    """Show how far publishing is: files, bytes and rate. What is over at once is not shown.

    Yields:
        A function to call with the numbers of files and bytes that are left, again and again.
    """
    console = _console(stderr=True)
    bar = Progress(
        TextColumn("publishing to LaminDB"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[files]}"),
        DownloadColumn(),
        TransferSpeedColumn(),
        TextColumn("Ctrl-C leaves the rest for later", style="dim"),
        console=console,
        transient=True,
    )
    began_s = time.monotonic()
    task: Any = None
    most = (0, 0)

    def show(files: int, bytes_: int) -> None:
        nonlocal most, task
        most = (max(most[0], files), max(most[1], bytes_))
        if time.monotonic() - began_s < _SHOWN_AFTER_S or most[0] == 0:
            return
        if task is None:
            task = bar.add_task("", total=most[1], files="")
            if console.is_terminal:
                bar.start()
            else:
                count = f"{files} file{'s' if files > 1 else ''}"
                say(f"publishing {count}, {bytes_ / 1e6:,.0f} MB, to LaminDB")
        done = f"{most[0] - files}/{most[0]} files"
        bar.update(task, total=most[1], completed=most[1] - bytes_, files=done)

    try:
        yield show
    finally:
        bar.stop()


class _Download:
    def __init__(self, label: str) -> None:
        self._label = label
        self._console = _console(stderr=True)
        columns = (TextColumn("getting {task.description}"), BarColumn(bar_width=24),
                   DownloadColumn(), TransferSpeedColumn())  # fmt: skip
        self._bar = Progress(*columns, console=self._console, transient=True)
        self._task: Any = None

    def start(self, size_bytes: int) -> None:
        if self._console.is_terminal:
            self._task = self._bar.add_task(self._label, total=size_bytes)
            self._bar.start()
        elif size_bytes > _TOLD_FROM_BYTES:
            say(f"getting {self._label}, {size_bytes / 1e6:,.0f} MB, from LaminDB")

    def advance(self, size_bytes: int) -> None:
        if self._task is not None:
            self._bar.advance(self._task, size_bytes)

    def stop(self) -> None:
        self._bar.stop()


@contextmanager
def downloading(label: str) -> Iterator[_Download]:
    """Show how far a download is: bytes and rate.

    Yields:
        An object to `start` with the number of bytes in all, and to `advance`.
    """
    download = _Download(label)
    try:
        yield download
    finally:
        download.stop()


def _console(stderr: bool = False) -> Console:
    # The stream is looked up at every use: the log of the run replaces it for a while.
    return Console(file=sys.stderr if stderr else sys.stdout, highlight=False)
