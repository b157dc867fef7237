"""What a rank hears from the process that started it."""

import json
import os
from pathlib import Path

import pytest

from lamincli import ranks
from lamincli.process import DECIDED_VARIABLE

DECIDED = {"lamin-train/0/0/0/0": {"decision": "go"}}


@pytest.fixture
def file(tmp_path, monkeypatch):
    file = tmp_path / "decided.json"
    file.write_text(json.dumps(DECIDED))
    file.chmod(0o600)
    monkeypatch.setenv(DECIDED_VARIABLE, f"{os.getppid()}:{file}")
    monkeypatch.setenv("LOCAL_RANK", "1")
    return file


def test_rank_knows_what_was_decided(file):
    assert ranks._read_inherited() == DECIDED


def test_rank_reads_nothing_that_others_can_write(file):
    file.chmod(0o620)
    assert ranks._read_inherited() == {}


def test_rank_follows_no_link(file, tmp_path):
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    assert ranks._read_inherited() == {}


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '{"a": 1}', "\\xff"])
def test_rank_hears_nothing_in_what_is_no_decision(file, text):
    file.write_bytes(text.encode("latin-1"))
    assert ranks._read_inherited() == {}


def test_decisions_lie_where_nobody_else_can_enter(monkeypatch):
    monkeypatch.setenv(DECIDED_VARIABLE, "")
    monkeypatch.setattr(ranks, "_decided", {})
    ranks._pass_on("key", {"decision": 1})
    pid, _, name = os.environ[DECIDED_VARIABLE].partition(":")
    assert (int(pid), json.loads(Path(name).read_text())) == (os.getpid(), ranks._decided)
    modes = [path.stat().st_mode & 0o077 for path in (Path(name), *Path(name).parents[:2])]
    assert modes == [0, 0, 0]
