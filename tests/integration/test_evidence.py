"""Two trainings are called identical where that was seen, and nowhere else."""

from types import SimpleNamespace

import pytest
import torch
from tests_models import TinyModel

from lamincli.commands import reproduce

SAME = ["--seed_everything=3", "--trainer.log_every_n_steps=1"]
NO_FILES = "--trainer.enable_checkpointing=false"
TELLS_NOTHING = "nothing that could be compared tells whether the results are identical"


class Constant(TinyModel):
    """Logs what any training would log."""

    def log(self, name, value, **about):
        super().log(name, 1.0, **about)


class Object:
    """Nothing that can be loaded without running code."""


class Adds(TinyModel):
    """Adds something to its checkpoints."""

    what = None

    def on_save_checkpoint(self, checkpoint):
        checkpoint["added"] = type(self).what


@pytest.fixture
def results(train, last_run):
    """Train twice, and compare as `reproduce` does."""

    def compare(*words, model=TinyModel, between=lambda: None):
        runs = []
        for _ in range(2):
            train("fit", *SAME, *words, model_class=model)
            runs.append(last_run())
            between()
        finding, _ = reproduce._results(*runs)
        return finding.state, finding.facts

    return compare


def test_checkpoint_of_the_same_content_is_evidence_also_without_metrics(results):
    state, facts = results("--trainer.logger=false", model=Constant)
    assert state == "identical"
    assert "the last checkpoint is the same bit for bit (2 tensors)" in facts
    assert "left aside, because they vary: folders, which run has saved it" in facts


def test_metrics_that_vary_are_evidence_where_there_is_no_checkpoint(results):
    state, facts = results(NO_FILES)
    assert state == "identical"
    assert "neither of the two has published a checkpoint" in facts


def test_constant_is_no_evidence(results):
    state, facts = results(NO_FILES, model=Constant)
    assert state == "unknown"
    assert TELLS_NOTHING in facts
    assert any(fact.endswith("none of which shows what was trained") for fact in facts)


def test_checkpoints_that_cannot_be_compared_are_no_evidence(results, monkeypatch):
    monkeypatch.setattr(Adds, "what", Object())
    state, facts = results(model=Adds)
    assert state == "unknown", "although the metrics are the same"
    assert any("the checkpoints cannot be compared: " in fact for fact in facts)


def test_what_on_save_checkpoint_adds_is_compared(results, monkeypatch):
    monkeypatch.setattr(Adds, "what", {"table": torch.ones(2)})

    def change():
        monkeypatch.setattr(Adds, "what", {"table": torch.zeros(2)})

    state, facts = results(model=Adds, between=change)
    assert state == "differs"
    assert "added: 1 of 1 values differ, first table, by 1 at most" in facts


def test_run_that_was_stopped_is_compared_with_the_checkpoint_of_its_step(train, last_run):
    words = [*SAME, "--checkpoint.every_n_train_steps=2", "--checkpoint.save_top_k=-1"]
    with pytest.raises(ValueError, match="boom"):
        train("fit", *words, "--model.at=raise")
    stopped = last_run()
    train("fit", *words)
    finding, _ = reproduce._results(stopped, last_run())
    facts = " ".join(finding.facts)
    assert "compared as far as step 1" in facts
    assert finding.state == "differs", "its hyper-parameters do"
    assert "hyper parameters: 1 of 5 values differ, first at (was 'raise', here '')" in facts


VARIED = [(0, "loss", 1.0), (1, "loss", 0.5)]
EVEN = [
    (0, "loss", 1.0),
    (1, "loss", 1.0),
    (0, "epoch", 0.0),
    (1, "epoch", 1.0),
    (1, "lr-SGD", 0.1),
]


@pytest.mark.parametrize(
    ("rows", "here", "checkpoint", "state", "code"),
    [
        (VARIED, VARIED, "identical", "identical", 0),
        (VARIED, VARIED, None, "identical", 0),
        (VARIED, VARIED, "unknown", "unknown", 5),
        (VARIED, VARIED, "differs", "differs", 4),
        (VARIED, EVEN, "identical", "differs", 4),
        (EVEN, EVEN, "identical", "identical", 0),
        (EVEN, EVEN, None, "unknown", 5),
        (EVEN, EVEN, "unknown", "unknown", 5),
        ([], [], None, "unknown", 5),
        ([], [], "identical", "identical", 0),
        (None, None, None, "unknown", 5),
        (None, None, "identical", "identical", 0),
        (VARIED[:1], VARIED[:1], None, "unknown", 5),
    ],
)
def test_verdict_needs_evidence(monkeypatch, rows, here, checkpoint, state, code):
    monkeypatch.setattr(reproduce, "_histories", lambda *_: (rows, here, "logged values"))
    monkeypatch.setattr(reproduce, "_checkpoints", lambda *_, **__: (checkpoint, []))
    run = SimpleNamespace(status="completed", extra_data={}, uid="A")
    finding, _ = reproduce._results(run, run)
    assert finding.state == state
    report = reproduce.Report(run, run, [finding], {}, is_trained=True)
    assert report.exit_code == code
    assert report.to_dict()["identical"] is {0: True, 4: False, 5: None}[code]
    assert report.verdict == {0: "identical", 4: "different", 5: "cannot be told"}[code]


def test_child_is_found_although_the_clock_went_back(ln, project):
    def run(parent=None):
        found = ln.Run(transform=transform, initiated_by_run=parent)
        found.extra_data = {"lamin_train": {"process": {"pid": 42}}}
        return found.save()

    transform = ln.Transform(key="m.py", source_code="a = 1", kind="function").save()
    original = run()
    earlier = run(original)
    last_id = reproduce._last_id()
    child = run(original)
    ln.Run.objects.filter(id=child.id).update(started_at=original.started_at.replace(year=2020))
    assert reproduce._child(original, 42, last_id) == child
    assert earlier.id == last_id, "one before had that pid too"
    assert reproduce._child(original, 42, reproduce._last_id()) is None
