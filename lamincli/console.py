"""Every sentence that users read while they train.

Names come from anywhere: from files, a registry, a checkpoint. What would move the cursor, set the
title or turn the order of letters is shown as what it is, and never reaches the terminal.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:  # rich is imported when something is said
    from rich.console import Console

_SHOWN_AFTER_S = 0.5
_TOLD_FROM_BYTES = 10_000_000
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 without tab and line feed, DEL, C1
    "\u061c\u200b\u200e\u200f\u202a-\u202e\u2066-\u2069"  # the order of letters
    "\u2028\u2029\u2060-\u2065\ufeff\ufff9-\ufffb\U000e0000-\U000e007f"  # what nobody sees
    "\ud800-\udfff]"  # what no stream can write
)
_PLAIN = str.maketrans({"→": "->", "·": "-", "…": "...", "─": "-", "×": "x", "✓": "v"})
"""What stands for characters of ours on a terminal that has not got them."""


def visible(text: str) -> str:
    """Return text with its control characters as an escape in Python is written.

    Line feeds and tabs stay, as do joiners that letters of some languages need.
    """
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))


def one_line(text: str) -> str:
    """Return a name as `visible` does, in one line."""
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural where it is not one."""
    return f"{number} {noun}{'s' * (number != 1)}"


def say(message: str) -> None:
    """Tell what was done, in one line on standard output."""
    _print(_console(), ("→ ", "bold green"), message)


def warn(message: str) -> None:
    """Tell what is not as it should be, in one line on standard error."""
    _print(_console(stderr=True), ("! ", "bold yellow"), message)


def fail(message: str) -> None:
    """Tell why the program ends, on standard error."""
    _print(_console(stderr=True), ("error: ", "bold red"), message)


def tell(text: str, stderr: bool = False) -> None:
    """Print text as it is, but for its control characters."""
    stream = _Stream(sys.stderr if stderr else sys.stdout)
    stream.write(visible(text))
    stream.flush()


@contextmanager
def last_write_alone() -> Iterator[None]:
    """Let a program that ends well write one text to stdout, its last; the rest goes to stderr.

    So what classes and libraries print as they are imported is no part of a config that is printed.
    """
    stdout = sys.stdout
    written: list[str] = []
    sys.stdout = _Collecting(written)
    try:
        yield
    except SystemExit as end:
        if not end.code and written:
            stdout.write(written.pop())
        raise
    finally:
        sys.stdout = stdout
        sys.stderr.write("".join(written))


class _Collecting(io.TextIOBase):
    def __init__(self, written: list[str]) -> None:
        super().__init__()
        self._written = written

    def write(self, text: str) -> int:
        """Keep a text."""
        self._written.append(text)
        return len(text)


def silence(stream: IO[str]) -> None:
    """Let what is written to a stream from here on go nowhere: its reader has gone."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


class CommandParser(argparse.ArgumentParser):
    """A parser whose messages are as harmless as all others."""

    def _print_message(self, message: str, file: Any = None) -> None:
        tell(message or "", stderr=file is not sys.stdout)


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
    status = (one_line(ending.status), f"bold {styles.get(ending.status, 'red')}")
    console.rule(style="dim")
    about = f" · {one_line(ending.instance)}"
    _print(console, "run ", (one_line(ending.run), "bold"), " ", status, about)
    rows = {one_line(label): one_line(text) for label, text in ending.rows.items()}
    width = max(map(len, rows), default=0)
    for label, text in rows.items():
        _print(console, (f"  {label:<{width}}  ", "dim"), text)
    for purpose, words in ending.commands.items():
        _print(console, ("  " + purpose, "dim"))
        _print(console, ("    " + " ".join(map(_quoted, words)), "cyan"))
    for path in ending.unpublished:
        _print(console, ("  not in LaminDB: ", "bold yellow"), one_line(path))
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
    about = f" · {one_line(instance)}"
    _print(console, (one_line(head), ""), ": ", (one_line(verdict), f"bold {style}"), about)
    width = max((len(subject) for subject, *_ in findings), default=0)
    for subject, state, facts, commands in findings:
        is_short = state == "identical" and len(facts) == 1
        beside = f"  {facts[0]}" if is_short else ""
        colour = styles.get(state, "yellow")
        _print(console, (f"  {subject:<{width}}  ", "dim"), (state, colour), beside)
        for fact in () if is_short else facts:
            _print(console, f"    {fact}")
        for purpose, command in commands.items():
            _print(console, ("    " + purpose, "dim"))
            _print(console, ("      " + command, "cyan"))
    console.rule(style="dim")


@contextmanager
def publishing() -> Iterator[Callable[[int, int], None]]:
    """Show how far publishing is: files, bytes and rate. What is over at once is not shown.

    Yields:
        A function to call with the numbers of files and bytes that are left, again and again.
    """
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TransferSpeedColumn,
    )

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
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TransferSpeedColumn,
        )

        self._label = one_line(label)
        self._console = _console(stderr=True)
        text = TextColumn("getting {task.description}", markup=False)
        columns = (text, BarColumn(bar_width=24), DownloadColumn(), TransferSpeedColumn())
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
    from rich.console import Console

    stream: Any = _Stream(sys.stderr if stderr else sys.stdout)
    return Console(file=stream, highlight=False)


def _print(console: Console, *parts: str | tuple[str, str]) -> None:
    """Print parts, some with a style, in one line of any length, and nothing in them as markup."""
    from rich.text import Text

    seen = (visible(p) if isinstance(p, str) else (visible(p[0]), p[1]) for p in parts)
    console.print(Text.assemble(*seen), soft_wrap=True)


def _quoted(word: str) -> str:
    """Quote a word for the shell, so that it can be pasted and seen."""
    if one_line(word) == word:
        return shlex.quote(word)
    return "$'" + re.sub(rf"{_UNSEEN.pattern}|[\n\t\\']", _for_shell, word) + "'"


def _for_shell(found: re.Match[str]) -> str:
    if found[0] in "\\'":
        return "\\" + found[0]
    number = ord(found[0])
    if 0xDC80 <= number <= 0xDCFF:  # a byte of a file name that is no text
        number -= 0xDC00
    elif number >= 0x80:
        return f"\\U{number:08x}"
    return f"\\x{number:02x}"


class _Stream:
    """A standard stream that shows what it can.

    One that is closed, full, or whose reader has gone is no reason to end a training.
    """

    def __init__(self, stream: IO[str] | None) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            if self._stream is not None:
                self._write(self._stream, text)
        return len(text)

    @staticmethod
    def _write(stream: Any, text: str) -> None:
        try:
            stream.write(text)
        except UnicodeEncodeError:
            encoding = stream.encoding or "ascii"
            plain = text.translate(_PLAIN).encode(encoding, "backslashreplace")
            stream.write(plain.decode(encoding))

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            if self._stream is not None:
                self._stream.flush()

    def isatty(self) -> bool:
        try:
            return self._stream is not None and bool(self._stream.isatty())
        except (OSError, ValueError, AttributeError):  # closed, or somebody's replacement
            return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
