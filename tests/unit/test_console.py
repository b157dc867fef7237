"""What names do to a terminal: nothing."""

import io
import shlex
import subprocess
import sys

import pytest

from lamincli import console
from lamincli.main import main

EVIL = "a\x1b[31m\x1b]0;title\x07\x9b2J\x7f\r\u202egnp.exe\udcff[red]x[/red][/]"
SHOWN = r"a\x1b[31m\x1b]0;title\x07\x9b2J\x7f\r\u202egnp.exe\udcff[red]x[/red][/]"


def shown_by(capsys, function, *arguments):
    function(*arguments)
    out, err = capsys.readouterr()
    return out + err


@pytest.mark.parametrize("function", [console.say, console.warn, console.fail, console.tell])
def test_every_message_shows_what_a_name_holds(capsys, function):
    assert SHOWN in shown_by(capsys, function, f"run {EVIL} is gone")


def test_panel_shows_what_names_hold_in_one_line_each(capsys):
    name = f"{EVIL}\nerror: all is lost"
    ending = console.Ending(name, name, name, {name: name}, {"test it": ["a", name]}, [name])
    text = shown_by(capsys, console.show_ending, ending)
    assert text.count(SHOWN) == 6
    assert "\x1b" not in text
    assert not [line for line in text.splitlines() if line.startswith("error")]


def test_report_shows_what_names_hold(capsys):
    findings = [("code", "differs", [EVIL, "-old\n+new"], {"see it": f"diff {EVIL}"})]
    text = shown_by(capsys, console.show_findings, EVIL, "different", EVIL, findings)
    assert text.count(SHOWN) == 4
    assert "-old\n+new" in text


def test_download_of_any_name_has_a_bar(monkeypatch):
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    with console.downloading(EVIL) as bar:
        bar.start(10)
        bar.advance(10)
    assert "getting a\\x1b[31m" in screen.getvalue()
    assert "\x9b" not in screen.getvalue()


@pytest.mark.parametrize(
    "word", ["plain", "two words", "it's", EVIL.replace("\x9b", ""), "\n\t\\'\x1b", "ж\u202e", ""]
)
def test_command_of_any_name_can_be_pasted(capsys, word):
    console.show_ending(console.Ending("RUN", "completed", "me/here", {}, {"it": ["x", word]}))
    (line,) = (one for one in capsys.readouterr().out.splitlines() if one.startswith("    x"))
    assert line == console.visible(line)
    command = ["bash", "-c", f"printf %s {line.split(None, 1)[1]}"]
    done = subprocess.run(command, capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"})
    assert done.stdout.decode("utf-8", "surrogateescape") == word


def test_what_people_write_stays_as_it_is():
    text = "Zürich · 東京 · नमस्ते · می‌خواهم · 👩‍💻 · a\tb\nc — “q”"
    assert console.visible(text) == text
    assert shlex.quote("東京") in shlex.join(["東京"])


def test_terminal_without_the_characters_shows_others(monkeypatch):
    screen = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", screen)
    console.say("run 東京 · done")
    console.show_ending(console.Ending("RUN", "completed", "me/here", {"key": "Zürich"}))
    screen.flush()
    text = screen.buffer.getvalue().decode("ascii")
    assert "-> run \\u6771\\u4eac - done" in text
    assert "Z\\xfcrich" in text


class Gone(io.StringIO):
    def write(self, text=""):
        raise BrokenPipeError(32, "Broken pipe")

    flush = write


@pytest.mark.parametrize("stream", [None, Gone(), io.StringIO()])
def test_terminal_that_is_gone_is_no_reason_to_end(monkeypatch, stream):
    if type(stream) is io.StringIO:
        stream.close()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    console.say("said")
    console.fail("failed")
    console.tell("told")
    console.show_ending(console.Ending("RUN", "completed", "me/here", {"key": "a"}))
    with console.publishing() as show, console.downloading("a") as bar:
        show(1, 1)
        bar.start(1)


@pytest.mark.parametrize("words", [["folder", f"--{EVIL}"], ["--instance"], []])
def test_words_of_commands_are_shown_likewise(capsys, words):
    parser = console.CommandParser(prog="lamin-train x")
    parser.add_argument("--instance")
    parser.add_argument("folder")
    with pytest.raises(SystemExit):
        parser.parse_args(words)
    out, err = capsys.readouterr()
    assert (out, "\x1b" in err, err.startswith("usage: lamin-train x")) == ("", False, True)
    assert SHOWN in err or "folder" not in words


def test_wrong_word_is_shown_likewise(capsys):
    with pytest.raises(SystemExit):
        main([EVIL])
    err = capsys.readouterr().err
    assert "has no command 'a\\x1b[31m" in err
    assert "\x1b" not in err
