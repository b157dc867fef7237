"""Keys tell checkpoints apart that Lightning keeps in folders below that of their callback."""

from pathlib import Path

import pytest
import yaml
from tests_models import TinyModel

from lamincli.references import References


class Slashed(TinyModel):
    """Logs a metric whose name has a slash, as many do."""

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        self.log("val/loss", 1.0 / (1 + self.current_epoch))


def files(cli):
    """Every checkpoint on the disk, by its path below the folder of the callback."""
    found = {}
    for callback in cli.trainer.checkpoint_callbacks:
        folder = Path(callback.dirpath)
        found |= {file.relative_to(folder).as_posix(): file for file in folder.rglob("*.ckpt")}
    return found


def published(run):
    """Every checkpoint of the run: its key below the prefix, and its bytes."""
    models = run.output_artifacts.filter(kind="model")
    return {a.key.partition("/checkpoints/")[2]: Path(a.path).read_bytes() for a in models}


@pytest.mark.parametrize(
    "filename",
    ["{epoch}-{val/loss:.3f}", "{epoch}/weights", "a/b/{step}", "{epoch}-{val/loss:.0f}"],
)
@pytest.mark.parametrize("how", ["background", "inline"])
def test_folders_in_file_names(train, last_run, filename, how):
    words = [f"--checkpoint.filename={filename}", "--checkpoint.monitor=val/loss",
             "--checkpoint.save_top_k=2", "--checkpoint.save_last=true", "--trainer.max_epochs=4",
             f"--lamin.publish={how}"]  # fmt: skip
    cli = train("fit", *words, model_class=Slashed)
    on_disk, run = files(cli), last_run()
    assert len(on_disk) == 3
    assert published(run) == {name: file.read_bytes() for name, file in on_disk.items()}
    best = Path(cli.trainer.checkpoint_callback.best_model_path)
    assert Path(References().local_path("lamin:run/latest/best")).read_bytes() == best.read_bytes()
    for name, file in on_disk.items():
        found = References().local_path(f"lamin:run/{run.uid}/{name}")
        assert Path(found).read_bytes() == file.read_bytes()
    assert (
        train("test", "--ckpt_path=lamin:run/latest/best", model_class=Slashed).ending.status
        == "completed"
    )


def test_run_goes_on_and_removes_what_it_has_outgrown(train, last_run):
    words = [
        "--checkpoint.filename={epoch}/weights",
        "--checkpoint.monitor=val/loss",
        "--checkpoint.save_top_k=1",
    ]
    train("fit", *words, model_class=Slashed)
    uid = last_run().uid
    cli = train(
        "fit", *words, f"--lamin.resume={uid}", "--trainer.max_epochs=3", model_class=Slashed
    )
    assert last_run().uid == uid
    assert published(last_run()) == {n: f.read_bytes() for n, f in files(cli).items()}
    assert len(files(cli)) == 1


def test_two_callbacks_with_equal_names(train, last_run, project, ln):
    callbacks = [
        {"class_path": "lamincli.Checkpoint",
         "init_args": {"monitor": "val/loss", "filename": "best/{epoch}", "save_top_k": 1}},
        {"class_path": "lamincli.Checkpoint",
         "init_args": {"every_n_epochs": 1, "filename": "all/{epoch}", "save_top_k": -1}},
    ]  # fmt: skip
    (project / "c.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": callbacks}}))
    cli = train("fit", "--config=c.yaml", "--trainer.max_epochs=3", model_class=Slashed)
    on_disk = files(cli)
    assert sorted(on_disk) == [f"all/epoch={n}.ckpt" for n in range(3)] + ["best/epoch=2.ckpt"]
    assert published(last_run()) == {n: f.read_bytes() for n, f in on_disk.items()}
    flags = ln.models.ArtifactJsonValue.objects.filter(
        artifact__run=last_run(), jsonvalue__feature__name="is_best_model", jsonvalue__value=True
    )
    assert flags.count() == 1, "a callback without a monitor ranks nothing"
    best = References().local_path("lamin:run/latest/best")
    assert Path(best).read_bytes() == on_disk["best/epoch=2.ckpt"].read_bytes()
