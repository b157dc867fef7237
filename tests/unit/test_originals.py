"""A note of an original is a hint: only what truly is the original is taken."""

import os
import stat

import pytest

from lamincli import originals
from lamincli.redaction import redact_config

SECRET, PLAIN = "model:\n  api_key: s3cr3t\n", "model:\n  size: 3\n"
RUN = "runUid0000000001"


@pytest.fixture
def open_to_all():
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def published(tmp_path):
    copy = tmp_path / "published.yaml"
    copy.write_text(redact_config(SECRET))
    return copy


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_only_what_holds_a_secret_is_private(tmp_path, open_to_all):
    originals.write(tmp_path / "secret.yaml", SECRET)
    originals.write(tmp_path / "plain.yaml", PLAIN)
    assert mode(tmp_path / "secret.yaml") == 0o600
    assert mode(tmp_path / "plain.yaml") == 0o666


def test_nothing_is_written_over_or_through_a_link(tmp_path):
    (tmp_path / "mine.yaml").write_text("mine")
    (tmp_path / "config.yaml").symlink_to("nowhere.yaml")
    for name in ("mine.yaml", "config.yaml"):
        with pytest.raises(FileExistsError):
            originals.write(tmp_path / name, SECRET)
    assert (tmp_path / "mine.yaml").read_text() == "mine"
    assert not (tmp_path / "nowhere.yaml").exists()


def test_original_is_found_by_its_note(tmp_path, monkeypatch, published):
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "logs/config.yaml"
    config.parent.mkdir()
    originals.write(config, SECRET)
    note = originals.note_of(config, SECRET, RUN)
    assert "s3cr3t" not in str(note)
    assert originals.find(note, RUN, published) == config
    (tmp_path / "moved").mkdir()
    config.parent.rename(tmp_path / "moved/logs")
    assert originals.find(note, RUN, published) is None
    monkeypatch.chdir("moved")
    assert originals.find(note, RUN, published) == tmp_path / "moved/logs/config.yaml"


def test_original_outside_of_the_project_is_found(tmp_path, monkeypatch, published):
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    config = tmp_path / "config.yaml"
    originals.write(config, SECRET)
    note = originals.note_of(config, SECRET, RUN)
    assert originals.find(note, RUN, published) == config


def test_seal_or_redaction_tells_the_original(tmp_path, published):
    config = tmp_path / "config.yaml"
    originals.write(config, SECRET)
    note = originals.note_of(config, SECRET, RUN)
    unsealed = {**note, "seal": "0" * 64}
    assert originals.find(unsealed, RUN, published) == config
    published.write_text("as another version has published it")
    assert originals.find(note, RUN, published) == config
    assert originals.find(unsealed, RUN, published) is None
    assert originals.find(note, "another0000000001", published) is None, "of another run"
    config.write_text(SECRET + "more: 1\n")
    assert originals.find(note, RUN, published) is None


@pytest.mark.parametrize("note", [None, {}, "text", {"file": 3}, {"file": "a\0b"}, {"file": "/"}])
def test_note_that_makes_no_sense_names_nothing(note, published):
    assert originals.find(note, RUN, published) is None
