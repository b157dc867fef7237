"""A file behind a URL comes here under a name, or it is said why not."""

from pathlib import Path

import fsspec
import pytest

from lamincli.errors import UsageError
from lamincli.remote_file import fetch, is_url


def test_urls_are_told_from_paths():
    assert is_url("s3://bucket/a.ckpt")
    assert not any(map(is_url, ("a.ckpt", "/a/b.ckpt", "lamin:run/latest/best", None, Path("a"))))


def test_file_of_this_machine_is_used_where_it_lies(tmp_path):
    (tmp_path / "a.ckpt").write_bytes(b"weights")
    assert fetch(f"file://{tmp_path}/a.ckpt", tmp_path / "nowhere") == tmp_path / "a.ckpt"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/folder/a.ckpt", "a.ckpt"),
        ("/folder/..", "checkpoint.ckpt"),
        ("/" + "n" * 300, "checkpoint.ckpt"),
    ],
)
def test_name_stays_within_the_folder(tmp_path, monkeypatch, path, name):
    class Files(type(fsspec.filesystem("memory"))):
        def info(self, path, **kwargs):
            return {"type": "file", "size": 7}

        def get_file(self, rpath, lpath, **kwargs):
            Path(lpath).write_bytes(b"weights")

    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda url: (Files(), url))
    target = fetch(f"memory:/{path}", tmp_path)
    assert target == tmp_path / name
    assert target.read_bytes() == b"weights"


def test_missing_file_is_told(tmp_path):
    with pytest.raises(UsageError, match="there is no such file"):
        fetch("memory://nowhere.ckpt", tmp_path)
