"""Best, last and latest are what the training counts, also where the clock goes back."""

import json
import os
from datetime import datetime, timedelta, timezone
from itertools import count
from pathlib import Path

import pytest
from tests_models import NoisyData, NoisyModel

from lamincli.references import References, find_run

NOISY = {"model_class": NoisyModel, "datamodule_class": NoisyData}
ALL = ["--checkpoint.save_top_k=-1", "--checkpoint.monitor=val_loss", "--checkpoint.save_last=true",
       "--checkpoint.filename={step}"]  # fmt: skip


@pytest.fixture
def backwards(monkeypatch):
    """Let the clock go back an hour before every save."""
    hours, start = count(), datetime(2026, 6, 1, tzinfo=timezone.utc)
    monkeypatch.setattr(
        "lamincli.callbacks.checkpoint._now",
        lambda: (start - timedelta(hours=next(hours))).isoformat(timespec="microseconds"),
    )


def name(what, run="latest"):
    artifact = References().resolve(f"lamin:run/{run}/{what}").artifact
    return artifact.key.rpartition("/")[2]


def flagged(run, flag):
    values = {a.key.rpartition("/")[2]: a.features.get_values()
              for a in run.output_artifacts.filter(kind="model")}  # fmt: skip
    return [key for key, value in values.items() if value.get(flag) is True]


def scores(run):
    notes = [a.extra_data["lamin_train"] for a in run.output_artifacts.filter(kind="model")]
    return {Path(one["path"]).name: one["score"] for one in notes}


def test_clock_that_goes_back_changes_nothing(train, last_run, backwards):
    train("fit", "--trainer.max_epochs=3", *ALL, **NOISY)
    run = last_run()
    best = min((score, key) for key, score in scores(run).items() if key != "last.ckpt")[1]
    assert flagged(run, "is_last_model") == ["last.ckpt"], "of two at one step, the later"
    assert set(flagged(run, "is_best_model")) <= {best, "last.ckpt"}
    assert name("last") == "last.ckpt"
    assert scores(run)[name("best")] == scores(run)[best]
    ranks = {name(f"rank/{k}"): k for k in range(4)}
    assert sorted(ranks, key=lambda key: (scores(run)[key], key == "last.ckpt")) == list(ranks)


def test_run_goes_on_from_what_was_saved_last_and_not_from_the_largest_step(
    train, last_run, monkeypatch
):
    words = ["--checkpoint.every_n_train_steps=2", "--checkpoint.save_top_k=-1",
             "--checkpoint.filename={step}", "--trainer.max_epochs=3"]  # fmt: skip
    monkeypatch.setenv("STOP_AT", "9")
    with pytest.raises(RuntimeError, match="preempted"):
        train("fit", *words, **NOISY)
    run = last_run()
    early = References().resolve(f"lamin:run/{run.uid}/step=2.ckpt").local_path()
    monkeypatch.setenv("STOP_AT", "5")
    with pytest.raises(RuntimeError, match="preempted"):
        train("fit", f"--lamin.resume={run.uid}", f"--ckpt_path={early}", *words, **NOISY)
    monkeypatch.delenv("STOP_AT")
    assert name("last", run.uid).startswith("step=4"), "of the second attempt"
    train("fit", f"--lamin.resume={run.uid}", *words, **NOISY)
    run.refresh_from_db()
    from_steps = [a["checkpoint"] and a["checkpoint"]["step"] for a in run.extra_data["lamin_train"]["attempts"]]  # fmt: skip
    assert from_steps == [None, None, 4]


def test_checkpoint_that_did_not_become_a_job_is_found_by_what_it_says(train, last_run):
    from lamincli.resume import _unknown

    cli = train("fit", "--checkpoint.filename={step}")
    (file,) = Path(cli.trainer.checkpoint_callback.dirpath).glob("*.ckpt")
    os.utime(file, (1, 1))  # the clock had gone back by years
    uid, newest = last_run().uid, "2030-01-01T00:00:00+00:00"
    (found,) = _unknown(uid, {(file.parent, "*.ckpt")}, newest, set())
    assert (found.local, found.step) == (file, 4)
    assert found.order == last_run().output_artifacts.get(kind="model").extra_data["lamin_train"]["order"]  # fmt: skip
    assert not list(_unknown("of another run", {(file.parent, "*.ckpt")}, "", set()))
    assert not list(_unknown(uid, {(file.parent, "*.ckpt")}, newest, {file}))


def test_latest_is_what_began_last_in_lamindb(ln, project):
    transform = ln.Transform(key="m.py", source_code="b = 1", kind="function").save()
    runs = []
    for _ in range(2):
        run = ln.Run(transform=transform)
        run.extra_data = {"lamin_train": {"stage": "fit"}}
        runs.append(run.save())
    early = runs[0].started_at - timedelta(days=1)  # begun on a host whose clock is late
    ln.Run.objects.filter(id=runs[1].id).update(started_at=early)
    assert find_run("latest", ln.Run.filter(), "me/here") == runs[1]


def test_orders_of_two_callbacks_of_a_run_are_one(train, last_run):
    both = [
        {"class_path": "lamincli.Checkpoint", "init_args": {"monitor": "val_loss", "mode": mode}}
        for mode in ("min", "max")
    ]
    train("fit", "--trainer.max_epochs=2", f"--trainer.callbacks={json.dumps(both)}")
    notes = [a.extra_data["lamin_train"] for a in last_run().output_artifacts.filter(kind="model")]
    assert len({one["order"] for one in notes}) == len(notes) > 1
