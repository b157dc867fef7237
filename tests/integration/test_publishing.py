"""Publishing beside the training: what the training thread does, and what it is told."""

import os
import sys
import threading
import time
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from tests_models import Collect, TinyData, TinyModel

ALL = ["--trainer.max_epochs=4", "--checkpoint.save_top_k=-1"]
NAMES = [f"epoch={epoch}-step={4 * (epoch + 1)}.ckpt" for epoch in range(4)]


@pytest.fixture(autouse=True)
def forget():
    Collect.told = []


def names_of(run):
    return sorted(a.key.rpartition("/")[2] for a in run.output_artifacts.filter(kind="model"))


def trainer(callbacks, **options):
    return pl.Trainer(
        **{"max_epochs": 4, "logger": False, "accelerator": "cpu", **options},
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


@pytest.fixture
def run(ln):
    transform = ln.Transform(key=os.getcwd(), source_code=os.getcwd(), kind="function").save()
    ln.context._run = ln.Run(transform=transform).save()
    return ln.context._run


# -- the training thread --------------------------------------------------------------------------


class Watch(pl.Callback):
    """Notes what the training thread asks of the database, hashes or copies while it trains."""

    def __init__(self, monkeypatch):
        from django.db.backends.utils import CursorWrapper

        from lamincli.registry import storage

        self.calls, self.others = [], []
        self.training = False
        for owner, name in [
            (CursorWrapper, "execute"),
            (CursorWrapper, "executemany"),
            (storage, "describe"),
            (storage, "store"),
            (os, "fsync"),
        ]:
            monkeypatch.setattr(owner, name, self.noted(name, getattr(owner, name)))

    def noted(self, name, function):
        def call(*args, **kwargs):
            if self.training:
                mine = threading.current_thread() is threading.main_thread()
                (self.calls if mine else self.others).append((name, str(args[1:2])[:80]))
            return function(*args, **kwargs)

        return call

    def on_train_start(self, trainer, pl_module):
        self.training = True

    def on_train_end(self, trainer, pl_module):
        self.training = False


def test_training_thread_asks_hashes_and_copies_nothing(train, monkeypatch, last_run):
    watch = Watch(monkeypatch)
    observer = {"class_path": "tests_models.Collect"}
    train("fit", "--trainer.max_epochs=4", "--checkpoint.save_top_k=2", "--checkpoint.monitor=val_loss",
          "--checkpoint.save_last=true", f"--checkpoint.artifact_observers=[{observer}]",
          trainer_defaults={"callbacks": [watch, Slow()]})  # fmt: skip
    assert watch.calls == []
    assert watch.others, "the publisher did"
    assert Collect.told


class Slow(pl.Callback):
    """Gives the publisher time between the epochs."""

    def on_train_epoch_end(self, trainer, pl_module):
        time.sleep(0.4)


def test_inline_publishes_on_the_training_thread_before_the_save_returns(train, ln):
    seen = []

    class Look(pl.Callback):
        def on_train_end(self, trainer, pl_module):
            seen.append(names_of(ln.context.run))

    cli = train("fit", *ALL, "--lamin.publish=inline", trainer_defaults={"callbacks": [Look()]})
    assert seen[0][:3] == NAMES[:3]
    assert names_of(cli.lamin_run) == NAMES
    assert not any(thread.name == "lamin-train" for thread in threading.enumerate())


# -- events ---------------------------------------------------------------------------------------


def test_events_come_on_the_main_thread_in_order_while_training_goes_on(train):
    threads, epochs = set(), []

    class Note(Collect):
        def on_artifact_saved(self, event):
            super().on_artifact_saved(event)
            threads.add(threading.current_thread())
            epochs.append(event.trainer.current_epoch)

    cli = train("fit", *ALL, trainer_defaults={"callbacks": [Slow()]}, cli=with_observer(Note()))
    saved = [e for _, e in Collect.told if e.kind == "checkpoint"]
    assert [event.local_path.name for event in saved] == NAMES
    assert threads == {threading.main_thread()}
    assert min(epochs) < 3, "not only at the end"
    assert checkpoint_of(cli).last_checkpoint_artifact.key.endswith(NAMES[-1])
    assert all(Path(event.storage_uri).exists() for event in saved)


def checkpoint_of(cli):
    return cli.trainer.checkpoint_callback


def with_observer(observer):
    from lamincli import LaminLightningCLI

    class CLI(LaminLightningCLI):
        def before_fit(self):
            checkpoint_of(self).add_artifact_observer(observer)

    return CLI


def test_checkpoint_removed_before_its_upload_gives_no_event(train, monkeypatch, last_run):
    """All four are saved, and three removed, before the publisher begins."""
    from lamincli.publisher import Publisher

    rest = Publisher._rest
    monkeypatch.setattr(
        Publisher, "_rest", lambda self: rest(self) if self._is_draining else hold(self)
    )

    def hold(publisher):
        while not (publisher._is_draining or publisher._stopping.is_set()):
            time.sleep(0.005)

    train(
        "fit", "--trainer.max_epochs=4", "--checkpoint.save_top_k=1", cli=with_observer(Collect())
    )
    events = [event for _, event in Collect.told if event.kind == "checkpoint"]
    assert [(type(e).__name__, e.local_path.name) for e in events] == [
        ("ArtifactSavedEvent", NAMES[-1])
    ]
    assert names_of(last_run()) == NAMES[-1:]


def test_hook_of_a_subclass_that_fails_ends_nothing(run, capsys):
    from lamincli import Checkpoint

    class Mine(Checkpoint):
        def on_artifact_saved(self, event):
            raise RuntimeError("registry of models is down")

    callback = Mine(save_top_k=-1, artifact_observers=[Collect()])
    trainer([callback]).fit(TinyModel(), datamodule=TinyData())
    assert names_of(run) == NAMES
    assert "registry of models is down" in capsys.readouterr().err
    assert len(Collect.told) == 4, "others are told"


def test_observer_that_takes_long_is_reported(run, capsys, monkeypatch):
    from lamincli import Checkpoint
    from lamincli.callbacks import checkpoint

    monkeypatch.setattr(checkpoint, "_SLOW_OBSERVER_S", 0.05)

    class Sleepy(Collect):
        def on_artifact_saved(self, event):
            time.sleep(0.1)

    trainer([Checkpoint(artifact_observers=[Sleepy()])]).fit(TinyModel(), datamodule=TinyData())
    assert "Sleepy.on_artifact_saved took 0 s for" in capsys.readouterr().err


# -- subclasses -----------------------------------------------------------------------------------


def test_subclass_that_persists_by_itself_is_called_and_gets_its_artifact(run):
    """The override point of the guide: save_checkpoint_artifact, whose result it may use."""
    from lamindb.integrations import lightning as ll

    from lamincli.callbacks.checkpoint import adopt
    from lamincli.options import LaminOptions

    artifacts = []

    class Mine(ll.Checkpoint):
        def save_checkpoint_artifact(self, trainer, filepath, *, feature_values=None):
            artifact = super().save_checkpoint_artifact(
                trainer, filepath, feature_values=feature_values
            )
            artifact.description = "mine"
            artifacts.append(artifact.save())
            return artifact

    callback = Mine(save_top_k=-1)
    adopt(callback, {}, LaminOptions())
    trainer([callback]).fit(TinyModel(), datamodule=TinyData())
    assert [a.key.rpartition("/")[2] for a in artifacts] == NAMES
    assert {a.description for a in run.output_artifacts.filter(kind="model")} == {"mine"}


def test_two_callbacks_of_one_trainer_keep_their_own_flags(run, ln):
    from lamincli import Checkpoint, save_lightning_features

    save_lightning_features()
    callbacks = [
        Checkpoint(monitor="val_loss", save_top_k=-1, filename="a-{epoch}"),
        Checkpoint(monitor="train_loss", save_top_k=-1, mode="max", filename="b-{epoch}"),
    ]
    trainer(callbacks).fit(TinyModel(), datamodule=TinyData())
    flags = {"is_best_model": [], "is_last_model": [], "model_rank": []}
    for artifact in run.output_artifacts.filter(kind="model"):
        values = {v.feature.name: v.value for v in artifact.json_values.select_related("feature")}
        group = artifact.key.rpartition("/")[2][0]
        for name, found in flags.items():
            found.append((group, values[name]))
    assert sorted(flags["model_rank"]) == [(g, rank) for g in "ab" for rank in range(4)]
    for name in ("is_best_model", "is_last_model"):
        assert sorted(g for g, value in flags[name] if value) == ["a", "b"], name


def test_callback_that_is_used_twice_publishes_twice(run):
    from lamincli import Checkpoint

    callback = Checkpoint(save_top_k=-1)
    first = trainer([callback], max_epochs=1)
    first.fit(TinyModel(), datamodule=TinyData())
    assert names_of(run) == NAMES[:1]
    trainer([callback], max_epochs=2).fit(TinyModel(), datamodule=TinyData(size=20))
    assert len(names_of(run)) == 3
    assert not Path(".lamin_spool").exists()


# -- other ways to write checkpoints --------------------------------------------------------------


class SlowIO(TorchCheckpointIO):
    def save_checkpoint(self, checkpoint, path, storage_options=None):
        time.sleep(0.2)
        super().save_checkpoint(checkpoint, path, storage_options)


class OwnThreads(TorchCheckpointIO):
    """An asynchronous plugin of its own kind: its files are complete after teardown."""

    def __init__(self):
        self.threads = []

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        def write():
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_bytes(b"half")
            time.sleep(0.3)
            TorchCheckpointIO.save_checkpoint(self, checkpoint, path)

        self.threads.append(threading.Thread(target=write))
        self.threads[-1].start()

    def teardown(self):
        for thread in self.threads:
            thread.join()


class Folders(TorchCheckpointIO):
    """Writes a folder, as sharded strategies do."""

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        Path(path, "meta").mkdir(parents=True, exist_ok=True)
        torch.save(checkpoint, Path(path, "rank0.pt"))
        Path(path, "meta", "plan").write_text("plan")

    def remove_checkpoint(self, path):
        import shutil

        shutil.rmtree(path)


@pytest.mark.parametrize("plugin", [lambda: AsyncCheckpointIO(SlowIO()), OwnThreads])
def test_asynchronous_checkpoints_are_published_when_they_are_complete(run, plugin):
    """F17: lamindb's class ends the training, since the file is not there yet."""
    from lamincli import Checkpoint

    callback = Checkpoint(save_top_k=-1, dirpath="checkpoints")
    trainer([callback], plugins=[plugin()]).fit(TinyModel(), datamodule=TinyData())
    assert names_of(run) == NAMES
    for artifact in run.output_artifacts.filter(kind="model"):
        name = artifact.key.rpartition("/")[2]
        assert Path(artifact.path).read_bytes() == Path("checkpoints", name).read_bytes()
        assert torch.load(artifact.path, weights_only=False)["global_step"]


def test_asynchronous_saves_of_one_path_are_published_in_turn(run):
    from lamincli import Checkpoint

    callback = Checkpoint(
        save_last=True, save_top_k=1, dirpath="checkpoints", enable_version_counter=False
    )
    trainer([callback], plugins=[AsyncCheckpointIO(SlowIO())]).fit(
        TinyModel(), datamodule=TinyData()
    )
    last = run.output_artifacts.get(key__endswith="/last.ckpt")
    assert torch.load(last.path, weights_only=False)["epoch"] == 3
    assert Path(last.path).read_bytes() == Path("checkpoints/last.ckpt").read_bytes()


def test_asynchronous_save_that_fails_is_not_published(run):
    from lamincli import Checkpoint

    class Failing(TorchCheckpointIO):
        def save_checkpoint(self, checkpoint, path, storage_options=None):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_bytes(b"torn")
            raise OSError(28, "No space left on device")

    callback = Checkpoint(dirpath="checkpoints")
    with pytest.raises(OSError, match="No space left"):
        trainer([callback], plugins=[AsyncCheckpointIO(Failing())], max_epochs=1).fit(
            TinyModel(), datamodule=TinyData()
        )
    callback.drain(callback._trainer)
    assert names_of(run) == []


def test_spool_of_another_user_is_left_alone(project, monkeypatch, capsys):
    """In a project folder of a group: neither sync nor a training writes there."""
    from lamincli.callbacks.checkpoint import spool_root
    from lamincli.commands import sync
    from lamincli.offline import spools_of_runs
    from lamincli.spool import Job, Spool

    theirs = project / ".lamin_spool" / "THEIRS"
    Spool(theirs).add(Job("close", "THEIRS", "me/here", "ab", "2026-01-01"))
    may = os.access
    monkeypatch.setattr(
        os, "access", lambda path, how: ".lamin_spool" not in str(path) and may(path, how)
    )
    assert sync.main(["."]) == 3
    assert f"{theirs} is left as it is" in capsys.readouterr().err
    assert [job.run for _, job in Spool(theirs).jobs()] == ["THEIRS"]
    assert "THEIRS" not in spools_of_runs()
    spool_root.cache_clear()
    assert spool_root(str(project), str(project)) != project
    spool_root.cache_clear()


def test_many_asynchronous_saves_and_removals(run):
    from lamincli import Checkpoint

    callback = Checkpoint(save_top_k=1, dirpath="checkpoints", save_on_train_epoch_end=True)
    trainer([callback], plugins=[AsyncCheckpointIO()], max_epochs=20).fit(
        TinyModel(), datamodule=TinyData()
    )
    assert names_of(run) == ["epoch=19-step=80.ckpt"]
    assert callback.unpublished == []


def test_checkpoint_that_is_removed_before_it_has_its_mode(run):
    """As fsspec gives it, in the thread that writes: plain Lightning ends the training."""
    from lamincli import Checkpoint

    class Slow(TorchCheckpointIO):
        def save_checkpoint(self, checkpoint, path, storage_options=None):
            super().save_checkpoint(checkpoint, path, storage_options)
            until_s = time.monotonic() + 1
            while os.path.exists(path) and time.monotonic() < until_s:
                time.sleep(0.001)
            os.chmod(path, 0o600)

    callback = Checkpoint(save_top_k=1, dirpath="checkpoints", save_on_train_epoch_end=True)
    trainer([callback], plugins=[AsyncCheckpointIO(Slow())]).fit(TinyModel(), datamodule=TinyData())
    assert names_of(run) == ["epoch=3-step=16.ckpt"]


def test_asynchronous_checkpoint_that_is_removed_at_once(run):
    from lamincli import Checkpoint

    callback = Checkpoint(save_top_k=1, monitor="val_loss", dirpath="checkpoints")
    trainer([callback], plugins=[AsyncCheckpointIO()]).fit(TinyModel(), datamodule=TinyData())
    assert len(names_of(run)) == 1


def test_folder_is_published_as_one_artifact_with_its_files(run):
    from lamincli import Checkpoint

    callback = Checkpoint(save_top_k=2, monitor="val_loss", dirpath="checkpoints")
    trainer([callback], plugins=[Folders()]).fit(TinyModel(), datamodule=TinyData())
    artifacts = list(run.output_artifacts.filter(kind="model"))
    assert len(artifacts) == 2 == len(list(Path("checkpoints").iterdir()))
    for artifact in artifacts:
        assert artifact.n_files == 2
        assert (Path(artifact.path) / "meta" / "plan").read_text() == "plan"
        local = Path("checkpoints", artifact.key.rpartition("/")[2], "rank0.pt")
        assert (Path(artifact.path) / "rank0.pt").read_bytes() == local.read_bytes()


def test_file_that_is_saved_over_in_place_does_not_change_what_waits(run, monkeypatch):
    """Lightning copies into the old file where /tmp is another device, as here pretended."""
    from lamincli import Checkpoint
    from lamincli.publisher import Publisher

    class InPlace(TorchCheckpointIO):
        def save_checkpoint(self, checkpoint, path, storage_options=None):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            torch.save(checkpoint, path)

    pins = []
    add = Publisher.add

    def note(self, job, *args, **kwargs):
        add(self, job, *args, **kwargs)
        if job.kind == "checkpoint" and job.action == "save":
            pin = self.spool.pins / f"{self.spool._numbers.last:08d}" / "last.ckpt"
            if pin.exists():
                pins.append(pin.stat().st_ino)

    def hold(publisher):
        while not (publisher._is_draining or publisher._stopping.is_set()):
            time.sleep(0.005)

    monkeypatch.setattr(Publisher, "add", note)
    monkeypatch.setattr(Publisher, "_rest", hold)
    callback = Checkpoint(save_top_k=1, save_last=True, dirpath="checkpoints")
    trainer([callback], plugins=[InPlace()]).fit(TinyModel(), datamodule=TinyData())
    assert len(pins) == len(set(pins)) == 4, "each pin keeps the content of its own save"
    assert callback.unpublished == []
    artifact = run.output_artifacts.get(key__endswith="/last.ckpt")
    assert Path(artifact.path).read_bytes() == Path("checkpoints/last.ckpt").read_bytes()


# -- the spool ------------------------------------------------------------------------------------


def test_spool_that_is_limited_keeps_the_best_and_the_last(run, monkeypatch, capsys):
    from lamincli import Checkpoint
    from lamincli.registry import storage

    away = [True]
    store = storage.store

    def store_later(source, target):
        if away[0]:
            raise ConnectionError("the bucket is away")
        store(source, target)

    monkeypatch.setattr(storage, "store", store_later)

    class Back(pl.Callback):
        def on_train_end(self, trainer, pl_module):
            away[0] = False

    class Scores(TinyModel):
        def validation_step(self, batch, batch_idx):
            self.log("v", torch.tensor([3.0, 0.0, 2.0, 1.0][self.current_epoch]))

    callback = Checkpoint(monitor="v", save_top_k=-1, spool_limit_gb=5e-6)
    trainer([Back(), callback]).fit(Scores(), datamodule=TinyData())
    assert names_of(run) == [NAMES[1], NAMES[3]], "the best and the last"
    assert "the spool is full" in capsys.readouterr().err
    assert len(list(Path("checkpoints").glob("*.ckpt"))) == 4, "Lightning's own are kept"


def test_full_disk_under_the_spool_ends_nothing(run, monkeypatch, capsys):
    from lamincli import Checkpoint
    from lamincli.spool import Spool

    text_of, failures = Spool._text_of, [2]

    def full(self, name, job):
        if job.action == "save" and failures[0]:
            failures[0] -= 1
            raise OSError(28, "No space left on device")
        return text_of(self, name, job)

    monkeypatch.setattr(Spool, "_text_of", full)
    trainer([Checkpoint(save_top_k=-1)]).fit(TinyModel(), datamodule=TinyData())
    assert names_of(run) == NAMES
    assert capsys.readouterr().err.count("cannot be spooled yet") == 1


def test_what_was_left_is_mentioned_at_the_next_start(train, project, capsys, monkeypatch):
    from lamincli.commands import doctor, sync
    from lamincli.registry import storage

    store = storage.store
    monkeypatch.setattr(storage, "store", lambda *_: (_ for _ in ()).throw(PermissionError("no")))
    cli = train("fit", *ALL)
    assert len(cli.unpublished) >= 4
    assert "set aside: no; mend it and run lamin-train sync" in capsys.readouterr().err
    train("validate")
    assert "not in LaminDB yet; publish with: lamin-train sync" in capsys.readouterr().out
    doctor.main([])
    assert "set aside:" in capsys.readouterr().err
    monkeypatch.setattr(storage, "store", store)
    assert sync.main(["--dry-run", "."]) == 0
    listed = capsys.readouterr()
    assert "PermissionError: no" in listed.err
    assert names_of(cli.lamin_run) == []
    assert sync.main(["."]) == 0
    assert names_of(cli.lamin_run) == NAMES
    assert sync.main(["."]) == 0
    assert "nothing to publish" in capsys.readouterr().out


def test_sync_leaves_a_training_alone_that_is_running(train, project, shell, capsys):
    seen = []

    class Sync(pl.Callback):
        def on_train_end(self, trainer, pl_module):
            seen.append(shell("sync", str(project)))

    cli = train("fit", *ALL, trainer_defaults={"callbacks": [Sync()]})
    (done,) = seen
    told = done.stdout + done.stderr
    is_left = "jobs left" in told or "job left" in told
    assert done.returncode == (3 if is_left else 0), told
    who = f"is being published by its own training, process {os.getpid()} on"
    assert who in told or "nothing to publish" in told
    assert names_of(cli.lamin_run) == NAMES


def test_jobs_of_an_instance_that_is_gone_can_be_discarded(train, project, capsys, monkeypatch, ln):
    from lamincli.commands import sync
    from lamincli.registry import storage

    monkeypatch.setattr(storage, "store", lambda *_: (_ for _ in ()).throw(PermissionError("no")))
    cli = train("fit", *ALL)
    ln.Run.objects.filter(id=cli.lamin_run.id).update(uid="gone")
    monkeypatch.setattr(ln.context, "_run", None)
    assert sync.main(["."]) == 3
    told = capsys.readouterr()
    assert "It has no run" in told.err
    assert "if it is gone for ever: lamin-train sync --discard .lamin_spool/" in told.out
    assert sync.main(["--discard"]) == 2
    assert sync.main(["--discard", "."]) == 0
    assert not (project / ".lamin_spool").exists()
    assert sync.main(["."]) == 0
    assert len(list(project.rglob("*.ckpt"))) == 4, "the checkpoints themselves stay"


def test_sync_of_a_folder_that_is_not_there(shell):
    done = shell("sync", "nowhere")
    assert (done.returncode, done.stderr) == (2, "error: There is no folder nowhere.\n")


def test_sync_needs_no_torch(shell):
    code = "import sys; from lamincli.main import main\ntry: main(['sync'])\nfinally: print('torch' in sys.modules)"
    done = shell(program=["env", sys.executable, "-c", code])
    assert "False" in done.stdout
