import subprocess
import sys

import pytest

import lamincli
from lamincli.main import main


def test_version(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"lamin-train {lamincli.__version__}\n"


def test_no_word_shows_the_usage(capsys):
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 2
    assert "usage: lamin-train {fit,validate,test,predict}" in capsys.readouterr().err


def test_wrong_word_gets_the_right_one(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["ftt"])
    assert stop.value.code == 2
    assert "no command 'ftt'. Did you mean fit?" in capsys.readouterr().err


def test_help_names_every_word(capsys):
    main(["--help"])
    out = capsys.readouterr().out
    assert all(word in out for word in ("fit", "validate", "test", "predict", "doctor"))


def test_console_script_is_the_module():
    script = [sys.executable.replace("python", "lamin-train", 1)]
    for program in ([sys.executable, "-m", "lamincli"], ["lamin-train"], script):
        try:
            done = subprocess.run(
                [*program, "--version"], capture_output=True, text=True, check=False
            )
        except FileNotFoundError:
            continue
        assert done.stdout == f"lamin-train {lamincli.__version__}\n"
