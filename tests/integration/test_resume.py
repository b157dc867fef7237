"""A run goes on: the same run, the same keys, and the very weights of one that never stopped."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests_models import NoisyData, NoisyModel, StatefulData

NOISY = {"model_class": NoisyModel, "datamodule_class": NoisyData}
RANKED = ["--checkpoint.monitor=val_loss", "--checkpoint.save_top_k=2",
          "--checkpoint.filename={epoch}-{step}"]  # fmt: skip


def weights(path):
    return torch.load(path, weights_only=True)["state_dict"]


def same_weights(one, two):
    one, two = weights(one), weights(two)
    return all(torch.equal(one[name], two[name]) for name in one)


def last_path(cli):
    return cli.trainer.checkpoint_callback._last_checkpoint_saved


def models(run):
    artifacts = run.output_artifacts.filter(kind="model")
    return {a.key.rpartition("/")[2]: a for a in artifacts}


def flags(run):
    return {
        name: {k: v for k, v in artifact.features.get_values().items()
               if k in ("is_best_model", "is_last_model", "model_rank", "score")}
        for name, artifact in models(run).items()
    }  # fmt: skip


def interrupted(train, *words, **arguments):
    """Train until the user's code raises, as a preempted job would stop."""
    with pytest.raises(RuntimeError, match="preempted"):
        train("fit", *words, **arguments)


@pytest.mark.parametrize(
    ("words", "data", "stop"),
    [
        (RANKED, NoisyData, 9),
        ([*RANKED, "--checkpoint.save_on_train_epoch_end=true"], NoisyData, 9),
        ([*RANKED, "--trainer.limit_val_batches=0", "--checkpoint.monitor=null",
          "--checkpoint.save_top_k=1"], NoisyData, 9),
        (["--checkpoint.every_n_train_steps=2", "--checkpoint.save_top_k=-1"], StatefulData, 7),
        (["--checkpoint.every_n_train_steps=4", "--checkpoint.save_top_k=-1"], NoisyData, 9),
    ],
    ids=["validation", "epoch-end", "no-validation", "mid-epoch", "steps-at-epoch-end"],
)  # fmt: skip
def test_weights_are_those_of_a_run_that_never_stopped(
    train, last_run, ln, project, monkeypatch, words, data, stop
):
    arguments = {"model_class": NoisyModel, "datamodule_class": data}
    words = ["--seed_everything=3", "--trainer.max_epochs=4", *words]
    (project / "whole").mkdir()
    monkeypatch.chdir(project / "whole")
    whole = last_path(train("fit", *words, **arguments))
    expected = flags(last_run())
    (project / "parts").mkdir()
    monkeypatch.chdir(project / "parts")
    monkeypatch.setenv("STOP_AT", str(stop))
    interrupted(train, *words, **arguments)
    first = last_run()
    assert first.status == "errored"
    monkeypatch.delenv("STOP_AT")
    cli = train("fit", f"--lamin.resume={first.uid}", "--trainer.max_epochs=4", **arguments)
    assert last_run() == first
    first.refresh_from_db()
    assert same_weights(whole, last_path(cli))
    # Top-k, flags and ranks, as if nothing had happened.
    assert flags(first) == expected
    assert first.status == "completed"


def test_attempts_are_listed(train, last_run, monkeypatch):
    monkeypatch.setenv("STOP_AT", "6")
    interrupted(train, *RANKED, "--trainer.max_epochs=3", **NOISY)
    run = last_run()
    interrupted(train, f"--lamin.resume={run.uid}", "--trainer.max_epochs=3", **NOISY)
    monkeypatch.delenv("STOP_AT")
    cli = train("fit", f"--lamin.resume={run.uid[:10]}", "--trainer.max_epochs=3", **NOISY)
    run.refresh_from_db()
    attempts = run.extra_data["lamin_train"]["attempts"]
    assert [attempt["status"] for attempt in attempts] == ["errored", "errored", "completed"]
    assert [a["checkpoint"] and a["checkpoint"]["step"] for a in attempts] == [None, 4, 4]
    assert all(a["started_at"] < a["ended_at"] and a["host"] for a in attempts)
    log = run.report.path.read_text()
    assert log.count(f"run {run.uid} in") == 3, "the log holds every attempt"
    assert "preempted" in log
    configs = run.input_artifacts.filter(kind="config")
    assert len({a.key for a in configs}) == 1
    assert cli.trainer.current_epoch == 3


def test_latest_is_none_of_a_colleague(train, last_run, ln):
    """Who resumes it would change the record of somebody else."""
    mine = train("fit", "--trainer.max_epochs=1", **NOISY).lamin_run
    theirs = train("fit", "--trainer.max_epochs=1", **NOISY).lamin_run
    theirs.created_by = ln.User(uid="colleag1", handle="colleague").save()
    theirs.save()
    train("fit", "--lamin.resume=latest", "--trainer.max_epochs=2", **NOISY)
    mine.refresh_from_db()
    assert len(mine.extra_data["lamin_train"]["attempts"]) == 2
    theirs.refresh_from_db()
    assert len(theirs.extra_data["lamin_train"]["attempts"]) == 1
    train("fit", f"--lamin.resume={theirs.uid}", "--trainer.max_epochs=2", **NOISY)
    theirs.refresh_from_db()
    assert len(theirs.extra_data["lamin_train"]["attempts"]) == 2, "by its uid, knowingly"


def test_overrides_win_over_the_config(train, last_run):
    train("fit", "--trainer.max_epochs=1", "--model.learning_rate=0.05")
    run = last_run()
    cli = train("fit", f"--lamin.resume={run.uid}", "--trainer.max_epochs=2")
    assert last_run() == run
    assert cli.model.hparams["learning_rate"] == 0.05
    assert cli.trainer.current_epoch == 2
    assert set(models(run)) == {"epoch=1-step=8.ckpt"}


def test_keys_stay_the_same_without_the_uid_in_them(train, last_run, monkeypatch):
    monkeypatch.setenv("STOP_AT", "6")
    words = [*RANKED, "--lamin.run_uid_is_version=false", "--trainer.max_epochs=3"]
    interrupted(train, *words, **NOISY)
    run = last_run()
    before = {a.key.rpartition("/")[0] for a in models(run).values()}
    monkeypatch.delenv("STOP_AT")
    train("fit", f"--lamin.resume={run.uid}", "--trainer.max_epochs=3", **NOISY)
    assert {a.key.rpartition("/")[0] for a in models(run).values()} == before


def test_checkpoint_that_is_only_in_lamindb(train, last_run, monkeypatch, project, capsys):
    monkeypatch.setenv("STOP_AT", "9")
    interrupted(train, *RANKED, "--trainer.max_epochs=4", "--seed_everything=3", **NOISY)
    run = last_run()
    shutil.rmtree("lightning_logs")
    monkeypatch.delenv("STOP_AT")
    cli = train("fit", f"--lamin.resume={run.uid}", "--trainer.max_epochs=4", **NOISY)
    assert cli.trainer.current_epoch == 4
    assert "goes on from" in capsys.readouterr().out
    assert len(models(run)) == 2


def test_torn_checkpoint_is_passed_over(train, last_run, monkeypatch, capsys):
    monkeypatch.setenv("STOP_AT", "9")
    words = ["--checkpoint.save_top_k=-1", "--trainer.max_epochs=4", "--seed_everything=3"]
    interrupted(train, *words, **NOISY)
    run = last_run()
    newest = models(run)["epoch=1-step=8.ckpt"]
    path = Path(newest.extra_data["lamin_train"]["path"])
    content = path.read_bytes()
    path.write_bytes(content[:1000])
    Path(newest.path).write_bytes(content[:1000])  # in the storage too
    monkeypatch.delenv("STOP_AT")
    train("fit", f"--lamin.resume={run.uid}", "--trainer.max_epochs=4", **NOISY)
    out = capsys.readouterr()
    assert "is incomplete; looking for an earlier checkpoint" in out.err
    run.refresh_from_db()
    assert run.extra_data["lamin_train"]["attempts"][-1]["checkpoint"]["step"] == 4


# -- what cannot go on ----------------------------------------------------------------------------


def refused(train, capsys, *words, **arguments):
    with pytest.raises(SystemExit) as ended:
        train(*words, **arguments)
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_what_cannot_go_on_is_refused(train, last_run, capsys, ln):
    assert "no run in anonymous/tests" in refused(train, capsys, "fit", "--lamin.resume=zzzz")
    train("fit", "--checkpoint.save_weights_only=true")
    weights_only = last_run()
    err = refused(train, capsys, "fit", f"--lamin.resume={weights_only.uid}")
    assert "has saved weights only" in err
    train("validate")
    err = refused(train, capsys, "fit", f"--lamin.resume={last_run().uid}")
    assert "is a validate; only a training can go on" in err
    err = refused(train, capsys, "validate", f"--lamin.resume={weights_only.uid}")
    assert "only fit can go on" in err
    train("fit", "--checkpoint.save_top_k=0")
    err = refused(train, capsys, "fit", f"--lamin.resume={last_run().uid}")
    assert "has no checkpoint in LaminDB, on this disk or in a spool" in err
    assert last_run().status == "completed"


def test_run_of_the_script_is_not_taken_over(train, last_run, ln, capsys):
    train("fit")
    run = last_run()
    ln.context._run = ln.Run(transform=run.transform).save()
    assert "the script tracks run" in refused(train, capsys, "fit", f"--lamin.resume={run.uid}")
    run.refresh_from_db()
    assert run.status == "completed"


# -- processes ------------------------------------------------------------------------------------

FIT = ["fit", "--model=tests_models.NoisyModel", "--data=tests_models.NoisyData",
       "--trainer.max_epochs=4", "--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu",
       "--seed_everything=3", *RANKED]  # fmt: skip


def test_killed_training_goes_on_from_its_spool(shell, record, project):
    """Killed right after a save, and its folder is gone: the checkpoint is in the spool alone."""
    done = shell(*FIT, KILL_AT="8")
    assert done.returncode == -signal.SIGKILL
    assert (project / ".lamin_spool").exists()
    shutil.rmtree(project / "lightning_logs")
    done = shell("resume", "latest")
    assert done.returncode == 0, done.stderr
    (run,) = record()
    assert run.status == "completed"
    assert [a["status"] for a in run.extra["lamin_train"]["attempts"]] == ["aborted", "completed"]
    assert run.extra["lamin_train"]["attempts"][1]["checkpoint"]["step"] == 8
    assert "goes on from" in run.log
    assert not (project / ".lamin_spool").exists()


def test_auto_starts_goes_on_and_starts_anew(shell, record, project):
    auto = [*FIT, "--lamin.resume=auto"]
    assert shell(*auto, STOP_AT="9").returncode == 1
    note = json.loads((project / ".lamin_run.json").read_text())
    assert shell(*auto, "--trainer.devices=two").returncode == 2, "a mistake in between"
    assert shell(*auto).returncode == 0
    (run,) = record()
    assert (run.uid, run.status) == (note["run"], "completed")
    assert len(run.extra["lamin_train"]["attempts"]) == 2
    assert not (project / ".lamin_run.json").exists()
    assert shell(*auto).returncode == 0
    assert len(record()) == 2


def test_auto_knows_a_job_of_slurm(shell, record, project):
    auto = [*FIT, "--lamin.resume=auto"]
    # As SLURM_* of one task; Lightning would take more of them for its own launcher.
    assert shell(*auto, STOP_AT="9", SLURM_JOB_ID="7", SLURM_JOB_NAME="bash").returncode == 1
    (project / ".lamin_run.json").unlink()
    assert shell(*auto, SLURM_JOB_ID="8", SLURM_JOB_NAME="bash").returncode == 0
    done = shell(*auto, SLURM_JOB_ID="7", SLURM_JOB_NAME="bash")
    assert done.returncode == 0, done.stderr
    one, two = record()
    assert [one.status, two.status] == ["completed", "completed"]
    assert len(one.extra["lamin_train"]["attempts"]) == 2


def test_job_of_a_script_that_trains_twice_goes_on_with_the_second(shell, record, project):
    (project / "folds.py").write_text(
        "from tests_models import NoisyData, NoisyModel\n"
        "from lamincli import LaminLightningCLI\n"
        "for epochs in (1, 3):\n"
        "    words = ['fit', f'--trainer.max_epochs={epochs}', '--trainer.accelerator=cpu']\n"
        "    LaminLightningCLI(NoisyModel, NoisyData, args=words)\n"
    )
    program = [sys.executable, "folds.py"]
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "bash"}
    assert shell(program=program, **job, STOP_AT="9").returncode == 1
    done = shell(program=program, **job, SLURM_RESTART_COUNT="1")
    assert done.returncode == 0, done.stderr
    runs = record()
    attempts = [[one["status"] for one in run.extra["lamin_train"]["attempts"]] for run in runs]
    assert attempts == [["completed"], ["errored", "completed"]]
    assert [run.status for run in runs] == ["completed", "completed"]
    steps = [key.rpartition("step=")[2] for run in runs for key in run.outputs if "step=" in key]
    assert steps == ["4.ckpt", "12.ckpt"]


def test_auto_with_a_note_of_a_run_that_is_gone(shell, project):
    shell(*FIT, "--trainer.max_epochs=1")
    (project / ".lamin_run.json").write_text('{"run": "gone", "instance": "me/here"}')
    done = shell(*FIT, "--lamin.resume=auto")
    assert done.returncode == 2
    assert "Remove the file to start a new run" in done.stderr
    assert "Traceback" not in done.stderr


def test_running_run_is_refused(shell, project, record):
    process = subprocess.Popen(
        [sys.executable, "-m", "lamincli", *FIT], cwd=project,
        env={**os.environ, "WAIT_AT": "6"}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        for line in process.stdout:
            if "WAITING" in line:
                break
        done = shell("resume", "latest")
        assert done.returncode == 2
        assert "is still running: process" in done.stderr
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert record()[0].status == "aborted"


def test_resume_without_a_run(shell):
    done = shell("resume")
    assert done.returncode == 2
    assert "usage: lamin-train resume RUN" in done.stderr
    assert "resume" in shell("--help").stdout
    assert "Go on with a run" in shell("resume", "--help").stdout


def test_two_ranks_go_on(shell, record):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone",
                "--nproc_per_node=2", "-m", "lamincli"]  # fmt: skip
    words = ["--trainer.devices=2", "--trainer.strategy=ddp"]
    first = shell(*FIT, *words, program=launcher, timeout_s=240, STOP_AT="5")
    assert first.returncode != 0
    done = shell("fit", "--lamin.resume=latest", program=launcher, timeout_s=240)
    assert done.returncode == 0, done.stderr
    (run,) = record()
    assert run.status == "completed"
    assert len(run.extra["lamin_train"]["attempts"]) == 2


# -- mistakes and gaps ---------------------------------------------------------------------------


def test_mistake_in_a_resume_leaves_the_run_as_it_was(train, last_run, capsys):
    train("fit")
    run = last_run()
    before = (run.status, run.finished_at, run.extra_data, run.report_id)
    err = refused(train, capsys, "fit", f"--lamin.resume={run.uid}", "--trainer.accelerator=gpu")
    assert "No supported gpu backend" in err
    run.refresh_from_db()
    assert (run.status, run.finished_at, run.extra_data, run.report_id) == before
    cli = train("fit", f"--lamin.resume={run.uid}", "--trainer.max_epochs=2")
    assert cli.trainer.current_epoch == 2


def test_earlier_checkpoint_is_taken_where_the_newest_is_gone(train, last_run, ln, capsys):
    train("fit", "--checkpoint.save_top_k=-1", "--trainer.max_epochs=3")
    run = last_run()
    newest = models(run)["epoch=2-step=12.ckpt"]
    newest.delete(permanent=False)  # into the trash
    second = models(run)["epoch=1-step=8.ckpt"]
    Path(second.path).unlink()
    shutil.rmtree("lightning_logs")
    train("fit", f"--lamin.resume={run.uid}", "--trainer.max_epochs=4")
    assert "Looking for an earlier checkpoint" in capsys.readouterr().err
    run.refresh_from_db()
    assert run.extra_data["lamin_train"]["attempts"][-1]["checkpoint"]["step"] == 4


def test_run_that_began_from_a_file_goes_on_without_it(train, last_run):
    train("fit")
    Path("lightning_logs/version_0/checkpoints/epoch=0-step=4.ckpt").rename("start.ckpt")
    train("fit", "--ckpt_path=start.ckpt", "--trainer.max_epochs=2")
    Path("start.ckpt").unlink()
    cli = train("fit", f"--lamin.resume={last_run().uid}", "--trainer.max_epochs=3")
    assert cli.trainer.current_epoch == 3


def test_note_that_is_none_of_ours_ends_no_training(train, project):
    Path(".lamin_run.json").write_text("[]")
    train("fit")
    assert Path(".lamin_run.json").exists()


class WideModel(NoisyModel):
    """A model of another shape than the one that was saved, where it is told so."""

    def __init__(self, learning_rate: float = 0.01, width: int = 4) -> None:
        super().__init__(learning_rate)
        self.save_hyperparameters()
        self.more = torch.nn.Linear(width, width)


def test_config_that_could_not_be_loaded_is_not_taken_up(train, last_run, capsys):
    wide = {"model_class": WideModel, "datamodule_class": NoisyData}
    train("fit", **wide)
    run = last_run()
    before = (run.status, run.finished_at, run.extra_data, run.report_id)
    words = ["fit", f"--lamin.resume={run.uid}", "--trainer.max_epochs=2"]
    err = refused(train, capsys, *words, "--model.width=5", **wide)
    assert "The checkpoint does not fit WideModel: size mismatch for more.weight" in err
    run.refresh_from_db()
    assert (run.status, run.finished_at, run.extra_data, run.report_id) == before
    cli = train("fit", f"--lamin.resume={run.uid}", "--trainer.max_epochs=2", **wide)
    assert cli.model.hparams["width"] == 4
    assert cli.trainer.current_epoch == 2
    config = run.input_artifacts.get(kind="config")
    assert "max_epochs: 2" in Path(config.path).read_text()


def test_run_that_has_nothing_left_to_train(train, last_run, capsys):
    train("fit", "--trainer.max_epochs=2")
    run = last_run()
    before = (run.status, run.finished_at, run.extra_data, run.params)
    train("fit", f"--lamin.resume={run.uid}", "--trainer.max_epochs=2")
    assert "nothing was trained: the checkpoint has reached trainer.max_epochs 2" in (
        capsys.readouterr().err
    )
    run.refresh_from_db()
    assert (run.status, run.finished_at, run.extra_data, run.params) == before
    fork = train("fit", f"--ckpt_path=lamin:run/{run.uid}/last", "--trainer.max_epochs=2")
    streams = capsys.readouterr()
    assert "nothing was trained" in streams.err
    assert "checkpoint key" not in streams.out, "it has saved none"
    assert fork.lamin_run.status == "completed"
    assert fork.lamin_run.output_artifacts.filter(kind="model").count() == 0


def test_callback_of_the_user_hides_no_beginning(train, last_run):
    """Its hooks need not call ours: what was trained is recorded, with its config."""
    from lightning.pytorch.cli import SaveConfigCallback

    class Mine(SaveConfigCallback):
        def on_train_start(self, trainer, pl_module):
            pass

    train("fit", save_config_callback=Mine)
    run = last_run()
    train("fit", f"--lamin.resume={run.uid}", "--trainer.max_epochs=3", save_config_callback=Mine)
    run.refresh_from_db()
    assert len(run.extra_data["lamin_train"]["attempts"]) == 2
    assert "max_epochs: 3" in Path(run.input_artifacts.get(kind="config").path).read_text()


def test_error_of_the_users_own_loading_is_shown(train, last_run):
    class Loads(NoisyModel):
        def restore_model(self):
            torch.nn.Linear(3, 3).load_state_dict({})

        def on_train_end(self):
            self.restore_model()

    with pytest.raises(RuntimeError, match="Missing key"):
        train("fit", model_class=Loads, datamodule_class=NoisyData)
    assert last_run().status == "errored"


def test_nothing_trained_for_there_are_no_batches(train, capsys):
    train("fit")
    words = ["--ckpt_path=lamin:run/latest/last", "--trainer.max_epochs=5"]
    train("fit", *words, "--trainer.limit_train_batches=0")
    assert "nothing was trained: there were no training batches" in capsys.readouterr().err


def test_auto_refuses_another_model(train, last_run, capsys, monkeypatch):
    monkeypatch.setenv("STOP_AT", "5")
    interrupted(train, "--lamin.resume=auto", "--trainer.max_epochs=2", **NOISY)
    wide = {"model_class": WideModel, "datamodule_class": NoisyData}
    err = refused(train, capsys, "fit", "--lamin.resume=auto", **wide)
    assert "trains tests_models.NoisyModel, and this command" in err
    assert ".lamin_run.json to start a new run" in err
    assert last_run().status == "errored"


def test_auto_tells_the_commands_of_a_slurm_job_apart(shell, record, project):
    """A job that trains two models in turn, and is started again: each goes on with its own."""
    slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "bash"}
    auto = [*FIT, "--lamin.resume=auto"]
    other = [*auto, "--trainer.max_epochs=3"]
    for words in (auto, other):
        assert shell(*words, STOP_AT="9", **slurm).returncode == 1
    for words in (auto, other):
        assert shell(*words, **slurm).returncode == 0
    runs = record()
    assert [run.status for run in runs] == ["completed", "completed"]
    assert [run.params["trainer"]["max_epochs"] for run in runs] == [4, 3]


def test_end_that_waits_is_kept_by_a_mistake(train, last_run, capsys, ln):
    """The database was away when the run ended, so that its end waits in the spool."""
    from lamincli.spool import Job, Spool
    from lamincli.tracking import _leave

    train("fit")
    run = last_run()
    folder = Path(".lamin_spool", run.uid).absolute()
    instance = ln.setup.settings.instance
    ended = "2026-01-01T00:00:00+00:00"
    _leave(folder, Job("close", run.uid, instance.slug, instance._id.hex, ended, status="errored"))
    refused(train, capsys, "fit", f"--lamin.resume={run.uid}", "--trainer.accelerator=gpu")
    assert Spool(folder).holds("close")
    train("fit", f"--lamin.resume={run.uid}", "--trainer.max_epochs=2")
    assert not folder.exists()
    run.refresh_from_db()
    assert run.status == "completed"


def test_run_of_a_script_that_names_its_classes_is_sent_there(shell, project, record):
    (project / "train.py").write_text(
        "from tests_models import TinyData, TinyModel\n"
        "from lamincli import LaminLightningCLI\n"
        "LaminLightningCLI(TinyModel, TinyData)\n"
    )
    words = ["--trainer.max_epochs=1", "--trainer.accelerator=cpu"]
    assert shell("fit", *words, program=[sys.executable, "train.py"]).returncode == 0
    (run,) = record()
    done = shell("resume", "latest")
    assert done.returncode == 2, done.stderr
    command = f"train.py fit --lamin.resume={run.uid}"
    assert f"python {command}" in done.stderr
    assert "Traceback" not in done.stderr
    words = [*command.split()[1:], "--trainer.max_epochs=2"]
    assert shell(*words, program=[sys.executable, "train.py"]).returncode == 0
