import io
import logging
import os
import sys

import pytest
from rich.console import Console
from rich.progress import Progress
from tqdm import tqdm

from lamincli.log import RunLog, Screen


def shown(*pieces: str) -> list[str]:
    lines: list[str] = []
    screen = Screen(lines.append)
    for piece in pieces:
        screen.feed(piece)
    screen.close()
    return lines


@pytest.mark.parametrize(
    ("pieces", "lines"),
    [
        (["a\nb\n"], ["a", "b"]),
        (["a\r\nb\r\n"], ["a", "b"]),
        (["10%\r20%\r100%\n"], ["100%"]),
        (["long text\rshort"], ["shorttext"]),
        (["long text\r\x1b[Kshort"], ["short"]),
        (["one\ntwo\n\x1b[2A\x1b[2KONE\n\x1b[1B"], ["ONE", "two"]),
        (["\x1b[1;32mgreen\x1b[0m"], ["green"]),
        (["cut \x1b[1", ";32mhere\x1b", "[0m"], ["cut here"]),
        (["\x1b]0;title\x07text"], ["text"]),
        (["ab\bc"], ["ac"]),
        (["a\x1b]", "b" * 300, "\nc"], ["a]" + "b" * 300, "c"]),
        (["a\x1b[" + "1" * 5000 + "Cb"], ["a b"]),
        (["x\n\n\ny\n"], ["x", "", "", "y"]),
        (["a\nb\nc\x1b[2A\r\x1b[J"], []),
    ],
)
def test_what_is_on_the_screen_in_the_end_is_kept(pieces, lines):
    assert shown(*pieces) == lines


def test_rich_progress_leaves_one_line():
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=80)
    with Progress(console=console, auto_refresh=False) as progress:
        task = progress.add_task("Epoch 3", total=500)
        for _ in range(500):
            progress.advance(task)
            progress.refresh()
        console.print("a message in between")
    lines = shown(stream.getvalue())
    assert len(stream.getvalue()) > 40_000
    assert lines[0] == "a message in between"
    assert len(lines) == 2
    assert "100%" in lines[1]
    assert "\x1b" not in "".join(lines)


def test_nested_tqdm_bars_leave_their_last_frames():
    stream = io.StringIO()
    outer = tqdm(total=100, file=stream, position=0, ncols=60, mininterval=0, desc="train")
    for _ in range(100):
        inner = tqdm(total=5, file=stream, position=1, leave=False, ncols=60, mininterval=0)
        inner.update(5)
        inner.close()
        outer.update()
    outer.close()
    lines = shown(stream.getvalue())
    assert len(lines) == 1
    assert "100%" in lines[0]


def test_lines_that_scrolled_away_are_final_at_once():
    lines: list[str] = []
    screen = Screen(lines.append, height=3)
    for number in range(10):
        screen.feed(f"{number}\n")
    assert lines == [str(number) for number in range(8)]
    screen.feed("\x1b[99Areached")
    screen.close()
    assert lines[:8] == [str(number) for number in range(8)]


def test_streams_stay_what_they_are(tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        encoding = "utf-8"

        def isatty(self):
            return True

        def fileno(self):
            return 42

    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    log = RunLog(tmp_path / "log.txt")
    log.open()
    assert sys.stdout is not terminal
    assert sys.stdout.isatty()
    assert sys.stdout.fileno() == 42
    print("hello")
    log.close()
    assert sys.stdout is terminal
    assert terminal.getvalue() == "hello\n"
    assert (tmp_path / "log.txt").read_text() == "hello\n"


def test_logging_handlers_made_before_are_copied_and_given_back(tmp_path):
    logger = logging.getLogger("made.before")
    handler = logging.StreamHandler(stream := sys.stderr)
    logger.addHandler(handler)
    log = RunLog(tmp_path / "log.txt")
    log.open("header\n")
    logger.error("from a logger")
    log.close()
    logger.removeHandler(handler)
    assert handler.stream is stream
    assert (tmp_path / "log.txt").read_text() == "header\nfrom a logger\n"


def test_killed_process_leaves_what_was_on_its_screen(tmp_path):
    clock = iter(range(100))
    log = RunLog(tmp_path / "log.txt", now_s=lambda: next(clock))
    log.open()
    try:
        print("a line")
        print("and half of", end="")
        assert (tmp_path / "log.txt").read_text() == "a line\nand half of"
        print(" the next")
    finally:
        log.close()
    assert (tmp_path / "log.txt").read_text() == "a line\nand half of the next\n"


def test_hundred_epochs_stay_below_a_megabyte(tmp_path):
    log = RunLog(tmp_path / "log.txt")
    log.open()
    try:
        for epoch in range(100):
            for step in range(500):
                log.write(f"\rEpoch {epoch}: {step}/500 \x1b[32m{'#' * 50}\x1b[0m loss=0.123")
            log.write("\n")
    finally:
        log.close()
    text = (tmp_path / "log.txt").read_text()
    assert len(text.splitlines()) == 100
    assert len(text) < 20_000


def test_handler_that_prints_while_a_line_is_copied_waits(tmp_path):
    """As a signal handler or a finalizer does, in the same thread."""
    log = RunLog(tmp_path / "log.txt")
    log.open()
    try:
        feed, printed = log._screen.feed, []

        def interrupted(text):
            if not printed:
                printed.append(text)
                print("from a handler")
            feed(text)

        log._screen.feed = interrupted
        print("a line", end="\n")
    finally:
        log.close()
    text = (tmp_path / "log.txt").read_text()
    assert "a line" in text
    assert "from a handler\n" in text


def test_forked_worker_does_not_write_into_the_log(tmp_path):
    log = RunLog(tmp_path / "log.txt")
    log.open()
    try:
        print("before")
        pid = os.fork()
        if pid == 0:
            print("from the worker")
            os._exit(0)
        os.waitpid(pid, 0)
        print("after")
    finally:
        log.close()
    assert (tmp_path / "log.txt").read_text() == "before\nafter\n"


def test_full_disk_ends_the_log_and_nothing_else(tmp_path, capsys):
    log = RunLog(tmp_path / "log.txt")
    log.open()

    class Full:
        def __getattr__(self, name):
            def fail(*_):
                raise OSError(28, "No space left on device")

            return fail

    log._file = Full()
    print("still printed")
    log.close()
    assert "still printed" in capsys.readouterr().out


def test_log_is_harmless_text(tmp_path):
    log = RunLog(tmp_path / "log.txt")
    log.open()
    try:
        print("a \x07\x9b31mred\u202e\x00\udcff b")
    finally:
        log.close()
    assert (tmp_path / "log.txt").read_text() == "a \\x07\\x9b31mred\\u202e\\x00\\udcff b\n"


def test_stream_whose_reader_has_gone_ends_no_training(tmp_path, monkeypatch):
    ours, theirs = os.pipe()
    os.close(ours)
    stream = open(theirs, "w")  # noqa: SIM115
    monkeypatch.setattr(sys, "stdout", stream)
    log = RunLog(tmp_path / "log.txt")
    log.open()
    try:
        for n in range(3):
            print(f"line {n}", flush=True)
    finally:
        log.close()
    stream.close()
    assert (tmp_path / "log.txt").read_text() == "line 0\nline 1\nline 2\n"
