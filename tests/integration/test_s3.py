"""Uploads to a real S3 server: in parts, verified, with the usual credentials."""

import json
import sys
import time
from pathlib import Path

import pytest
from lightning.pytorch.callbacks import Callback

from lamincli.registry import storage

CREDENTIALS = """
import datetime, json, time
until = int(time.time()) + 2
expires = datetime.datetime.fromtimestamp(until, datetime.timezone.utc).isoformat()
print(json.dumps({"Version": 1, "AccessKeyId": f"UNTIL{until}", "SecretAccessKey": "secret",
                  "SessionToken": "token", "Expiration": expires}))
"""


class Weight(Callback):
    """Give the checkpoints a weight."""

    def __init__(self, size_bytes):
        self.size_bytes = size_bytes

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        import torch

        checkpoint["ballast"] = torch.arange(self.size_bytes // 8)


class At(Callback):
    """Wait at the end of each epoch, as a training that takes its time."""

    def __init__(self, seconds):
        self.seconds = seconds

    def on_train_epoch_end(self, trainer, pl_module):
        time.sleep(self.seconds)


@pytest.fixture
def calls(tmp_path):
    path = tmp_path / "calls.log"
    path.touch()
    return path


def same_bytes(run, folder):
    """Tell whether all checkpoints of a run in the bucket are those on the disk."""
    artifacts = list(run.output_artifacts.filter(kind="model"))
    saved = {path.name: path.read_bytes() for path in Path(folder).rglob("*.ckpt")}
    found = {a.key.rpartition("/")[2]: a.path.read_bytes() for a in artifacts}
    return bool(artifacts) and found == saved


def test_large_checkpoint_is_uploaded_in_parts(train, s3, last_run, project, calls):
    s3(log=str(calls))
    cli = train("fit", trainer_defaults={"callbacks": [Weight(40 << 20)]})
    assert cli.unpublished == []
    assert same_bytes(last_run(), project)
    lines = calls.read_text().splitlines()
    parts = {line for line in lines if line.startswith("PUT?partNumber=")}
    assert len(parts) == 6, "40 MB and the model, in parts of 8 MB"
    assert len([line for line in lines if line.startswith("POST?uploadId=")]) == 1


@pytest.mark.parametrize(
    ("size_bytes", "spoil_every"), [(0, 2), (20 << 20, 7)], ids=["whole", "in parts"]
)
def test_spoilt_or_short_upload_is_made_again(
    train, s3, last_run, project, size_bytes, spoil_every
):
    s3(spoil_every=spoil_every)
    words = ["--trainer.max_epochs=4", "--checkpoint.save_top_k=-1", "--lamin.patience_s=300"]
    cli = train("fit", *words, trainer_defaults={"callbacks": [Weight(size_bytes)]})
    assert cli.unpublished == []
    assert same_bytes(last_run(), project)
    assert len(last_run().output_artifacts.filter(kind="model")) == 4


def test_folder_is_verified_file_by_file(s3, ln, project):
    s3(spoil_every=11)
    folder = project / "sharded.ckpt"
    (folder / "deep").mkdir(parents=True)
    for name, size in (("0.distcp", 20 << 20), ("1.distcp", 100), ("deep/2", 10)):
        (folder / name).write_bytes(bytes(range(10)) * (size // 10))
    target = ln.settings.storage.root / "folder"
    refused = 0
    for _ in range(4):
        try:
            storage.store(folder, target)
        except OSError:
            refused += 1
            continue
        for file in (f for f in folder.rglob("*") if f.is_file()):
            there = target / file.relative_to(folder).as_posix()
            assert there.read_bytes() == file.read_bytes()
    assert 0 < refused < 4


def test_file_encrypted_with_a_key_of_its_own_has_another_tag(s3, ln, project, monkeypatch):
    """Its tag says nothing then; what botocore sends with each part, the server verifies."""
    s3()
    file = project / "a.ckpt"
    file.write_bytes(b"content")
    target = ln.settings.storage.root / "a.ckpt"
    monkeypatch.setattr(storage, "_tag", lambda *_: "0" * 32)
    with pytest.raises(ConnectionError, match="is not what was uploaded"):
        storage.store(file, target)
    head = {"ServerSideEncryption": "aws:kms"}
    monkeypatch.setattr(type(target.fs), "call_s3", lambda *_, **__: head)
    storage.store(file, target)


def test_credentials_that_expire_are_refreshed(train, s3, last_run, project, calls, monkeypatch):
    """The usual chain: a profile whose program gives credentials for seconds."""
    script = project / "credentials.py"
    script.write_text(CREDENTIALS)
    config = project / "aws-config"
    process = json.dumps(f"{sys.executable} {script}").strip('"')
    config.write_text(f"[profile cluster]\ncredential_process = {process}\n")
    s3(log=str(calls), credentials_expire=True, before=lambda: use_profile(monkeypatch, config))
    words = ["--trainer.max_epochs=4", "--checkpoint.save_top_k=-1"]
    cli = train("fit", *words, trainer_defaults={"callbacks": [At(1.5)]})
    assert cli.unpublished == []
    assert same_bytes(last_run(), project)
    assert len(last_run().output_artifacts.filter(kind="model")) == 4
    lines = calls.read_text().splitlines()
    assert lines
    assert not any(line.startswith("EXPIRED") for line in lines)


def use_profile(monkeypatch, config):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_PROFILE", "cluster")
