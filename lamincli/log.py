"""The log of a run: what the user saw, as text that reads well a year later.

`RunLog` copies what passes through ``sys.stdout`` and ``sys.stderr`` into a file. The streams
stay what they were to everybody else: a terminal stays a terminal, so progress bars stay live.
`Screen` applies carriage returns and cursor movements, so that ten thousand frames of a progress
bar leave the one that was last on the screen.
"""

import contextlib
import logging
import os
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from lamincli import console
from lamincli.console import visible

_NAMES = "run_logs_*.txt"
"""How logs are called, in the cache of LaminDB and by it, until they are the reports of runs."""
_HEAD = re.compile(r"run (\w+) in (\S+)\n")
_HEAD_CHARACTERS = 2000
_CONTROL = re.compile(
    r"\x1b\[(?P<args>[0-9;?]*)(?P<command>[@-~])"  # cursor movement, erasing, colours
    r"|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)"  # window titles, links
    r"|\x1b[^\[\]]"
    r"|(?P<char>[\r\n\b])"
)
_LONGEST_SEQUENCE = 256
_UNFINISHED = re.compile(r"\x1b(?:\[[0-9;?]*|\][^\x07\x1b]*)?$")


class Screen:
    """Apply terminal output to lines of text, and hand over each line that can no longer change.

    The last `height` lines can still be reached by cursor movements; a line that scrolls out of
    them is final.

    Args:
        emit: Receives each final line, without its line break.
        height: Number of lines that stay editable.

    Source: the control sequences of ECMA-48 that tqdm and Rich use. The emulator pyte wraps long
        lines at the width of its screen and costs the training thread 9 times as much a frame.
    """

    def __init__(self, emit: Callable[[str], None], height: int = 50) -> None:
        self._emit = emit
        self._height = height
        self._lines = [""]
        self._row = 0
        self._column = 0
        self._rest = ""

    @property
    def pending(self) -> list[str]:
        """The lines that can still change, without the empty ones at the end."""
        lines = [line.rstrip() for line in self._lines]
        while lines and not lines[-1]:
            lines.pop()
        return lines

    def feed(self, text: str) -> None:
        """Apply the next piece of output; control sequences may be cut between two pieces."""
        text = self._rest + text
        self._rest = ""
        unfinished = _UNFINISHED.search(text)
        if unfinished and len(unfinished.group()) <= _LONGEST_SEQUENCE:
            self._rest = unfinished.group()
            text = text[: unfinished.start()]
        position = 0
        for match in _CONTROL.finditer(text):
            self._write(text[position : match.start()])
            position = match.end()
            if char := match["char"]:
                self._move(char)
            elif command := match["command"]:
                self._control(command, match["args"])
        self._write(text[position:])

    def close(self) -> None:
        """Hand over all lines."""
        for line in self.pending:
            self._emit(line)
        self._lines, self._row, self._column = [""], 0, 0

    def _write(self, text: str) -> None:
        if not text:
            return
        text = text.replace("\x1b", "")  # of a sequence that was none
        line = self._lines[self._row].ljust(self._column)
        self._lines[self._row] = line[: self._column] + text + line[self._column + len(text) :]
        self._column += len(text)

    def _move(self, char: str) -> None:
        if char == "\b":
            self._column = max(0, self._column - 1)
            return
        self._column = 0
        if char == "\n":
            self._down(1)

    def _down(self, count: int) -> None:
        self._row += count
        while self._row >= len(self._lines):
            self._lines.append("")
        while len(self._lines) > self._height and self._row > 0:
            self._emit(self._lines.pop(0).rstrip())
            self._row -= 1

    def _control(self, command: str, args: str) -> None:
        first = args.split(";")[0]
        number = int(first) if first.isdecimal() and len(first) < 5 else 0
        if command in "AF":
            self._row = max(0, self._row - max(1, number))
        elif command in "BE":
            self._down(min(max(1, number), self._height))
        elif command == "C":
            self._column += min(max(1, number), 1000)
        elif command == "D":
            self._column = max(0, self._column - max(1, number))
        elif command == "G":
            self._column = min(max(0, number - 1), 1000)
        elif command == "K":
            line = self._lines[self._row]
            kept = {0: line[: self._column], 1: " " * self._column + line[self._column :]}
            self._lines[self._row] = kept.get(number, "")
        elif command == "J" and number == 0:
            self._lines[self._row] = self._lines[self._row][: self._column]
            del self._lines[self._row + 1 :]
        if command in "EF":
            self._column = 0


class _Tee:
    """Stand in for a stream, and copy all text that passes through it.

    Every question (`isatty`, `fileno`, `encoding`, …) is answered by the stream itself. One whose
    reader has gone, as with ``| head``, is silent from then on: the training is worth more.
    """

    def __init__(self, stream: TextIO, copy: Callable[[str], None]) -> None:
        self._stream = stream
        self._copy = copy

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except BrokenPipeError:
            console.silence(self._stream)
        finally:
            self._copy(text)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            console.silence(self._stream)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __iter__(self) -> Any:
        return iter(self._stream)

    def __enter__(self) -> "_Tee":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stream.flush()


def name_of(uid: str) -> str:
    """Return what the file of a run's log is called."""
    return _NAMES.replace("*", uid)


def left_in(folder: Path) -> dict[str, Path]:
    """Return the logs in a folder that are no reports yet, by the uids of their runs."""
    before, after = _NAMES.split("*")
    return {path.name[len(before) : -len(after)]: path for path in folder.glob(_NAMES)}


def instances_of(logs: Iterable[Path]) -> set[str]:
    """Return the instances, owner/name each, in which the runs of logs are."""
    instances = set()
    for path in logs:
        with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as log:
            instances |= {instance for _, instance in _HEAD.findall(log.read(_HEAD_CHARACTERS))}
    return instances


class RunLog:
    """Copy the standard streams of this process into a file, from `open` to `close`.

    A full disk ends the log, never the training. Lines that can still change are written behind
    the final ones at most once a second, so that the file of a killed process is complete to the
    last second.

    Args:
        path: The file to write, UTF-8.
        now_s: A clock, seconds.

    Runs on: any thread, also several at a time.
    """

    def __init__(self, path: Path, now_s: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        self._now_s = now_s
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._waiting: deque[str] = deque()
        self._is_copying = False
        self._screen = Screen(self._append)
        self._file: Any = None
        self._end_bytes = 0
        self._written_s = float("-inf")
        self._streams: tuple[Any, Any] | None = None
        self._handlers: list[tuple[logging.StreamHandler[Any], Any]] = []

    def open(self, header: str = "") -> None:
        """Begin to copy; `header` is written first."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("wb")
        self._copy(header)
        self._streams = (sys.stdout, sys.stderr)
        # A stream may be None, where the process was started with it closed.
        sys.stdout = sys.stdout and _Tee(sys.stdout, self._copy)
        sys.stderr = sys.stderr and _Tee(sys.stderr, self._copy)
        # Loggers hold on to the stream that they found when they were made.
        replaced = dict(zip(map(id, self._streams), (sys.stdout, sys.stderr), strict=True))
        for handler in _stream_handlers():
            if id(handler.stream) in replaced:
                self._handlers.append((handler, handler.stream))
                handler.setStream(replaced[id(handler.stream)])

    def write(self, text: str) -> None:
        """Write into the log alone."""
        self._copy(text)

    def close(self) -> None:
        """Give the streams back and complete the file. Further calls do nothing."""
        if self._streams is not None:
            # Somebody may have wrapped our stream in theirs; then it is theirs to undo.
            if isinstance(sys.stdout, _Tee):
                sys.stdout = self._streams[0]
            if isinstance(sys.stderr, _Tee):
                sys.stderr = self._streams[1]
            self._streams = None
        for handler, stream in self._handlers:
            if isinstance(handler.stream, _Tee):
                handler.setStream(stream)
        self._handlers.clear()
        with self._lock:
            if self._file is not None:
                with contextlib.suppress(OSError, ValueError):
                    self._file.seek(self._end_bytes)
                    self._file.truncate()
                    self._screen.close()
                    self._file.close()
                self._file = None

    def _copy(self, text: str) -> None:
        if os.getpid() != self._pid:  # a forked worker has its own output, and a copy of us
            return
        with self._lock:
            self._waiting.append(text)
            if self._is_copying:
                return  # a signal handler or a finalizer prints while we copy
            self._is_copying = True
            try:
                while self._waiting:
                    self._copy_now(self._waiting.popleft())
            finally:
                self._is_copying = False

    def _copy_now(self, text: str) -> None:
        if self._file is None:
            return
        try:
            self._screen.feed(text)
            if self._now_s() - self._written_s >= 1:
                self._write_pending()
        except (OSError, ValueError):  # disk full, file closed under us
            self._file = None

    def _append(self, line: str) -> None:
        self._file.seek(self._end_bytes)
        self._end_bytes += self._file.write(visible(line).encode("utf-8") + b"\n")

    def _write_pending(self) -> None:
        self._written_s = self._now_s()
        self._file.seek(self._end_bytes)
        pending = "\n".join(map(visible, self._screen.pending))
        self._file.write(pending.encode("utf-8"))
        self._file.truncate()
        self._file.flush()


def _stream_handlers() -> list["logging.StreamHandler[Any]"]:
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    return [
        handler
        for logger in loggers
        if isinstance(logger, logging.Logger)
        for handler in logger.handlers
        if type(handler) is logging.StreamHandler
    ]
