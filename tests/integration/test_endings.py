"""However a job ends, its run says so. Real processes."""

import os
import signal
import subprocess
import sys

import pytest

FIT = ["fit", "--model=tests_models.TinyModel", "--data=tests_models.TinyData",
       "--data.size=400", "--trainer.max_epochs=1", "--trainer.enable_progress_bar=false",
       "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu"]  # fmt: skip


def train_and_signal(
    project, signum, *words, shell_prefix=(), at="wait", again_after="never", to_group=False
):
    """Start a training, send it a signal within its third batch, and return exit code, output."""
    process = subprocess.Popen(
        [*shell_prefix, sys.executable, "-u", "-m", "lamincli", *FIT, f"--model.at={at}", *words],
        cwd=project,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # Under nohup the signal is ignored by whoever inherits that, and rightly so.
        preexec_fn=lambda: shell_prefix or signal.signal(signum, signal.SIG_DFL),
    )
    assert process.stdout is not None
    output = ""
    for line in process.stdout:
        output += line
        if "THIRD BATCH" in line or again_after in line:
            (os.killpg if to_group else os.kill)(process.pid, signum)
    return process.wait(timeout=60), output


def test_success(shell, record):
    done = shell(*FIT)
    assert done.returncode == 0, done.stderr
    (run,) = record()
    assert (run.status, run.after_start) == ("completed", True)
    assert "`Trainer.fit` stopped" in run.log, "messages of loggers too"


def test_exception(shell, record):
    done = shell(*FIT, "--model.at=raise")
    assert done.returncode == 1
    assert "ValueError: boom in user code" in done.stderr
    (run,) = record()
    assert (run.status, run.after_start) == ("errored", True)
    assert "ValueError: boom in user code" in run.log
    assert "tests_models.py" in run.log


@pytest.mark.parametrize(("code", "status"), [(0, "aborted"), (3, "errored")])
def test_exit_in_user_code(shell, record, code, status):
    assert shell(*FIT, f"--model.at=exit{code}").returncode == code
    (run,) = record()
    assert (run.status, run.after_start) == (status, True)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_signal_saves_a_checkpoint_and_aborts(project, record, name):
    signum = getattr(signal, name)
    code, output = train_and_signal(project, signum)
    assert code == 128 + signum, output
    (run,) = record()
    assert (run.status, run.after_start) == ("aborted", True)
    assert any(key.endswith("epoch=0-step=3.ckpt") for key in run.outputs)
    assert f"stopped by {name}" in run.log
    assert "Traceback" not in run.log
    assert "Traceback" not in output
    command = output.split("continue it\n")[1].splitlines()[0].strip()
    done = subprocess.run(
        [sys.executable, "-m", "lamincli", *command.split()[3:], "--model.at="],
        cwd=project, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert command == f"python -m lamincli resume {run.uid}"
    assert done.returncode == 0, done.stderr
    (run,) = record()
    assert run.status == "completed"
    assert any(key.endswith("step=100.ckpt") for key in run.outputs), "it went on"


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_signal_to_the_workers_of_the_loader_too(project, record, name):
    """SLURM and a terminal signal every process; torch ends the batch by a RuntimeError then."""
    signum = getattr(signal, name)
    words = ["--data=tests_models.WorkerData"]
    code, output = train_and_signal(project, signum, *words, to_group=True)
    assert code == 128 + signum, output
    assert output.count("stopping after this batch") == 1
    (run,) = record()
    assert run.status == "aborted"
    assert any(key.endswith("epoch=0-step=3.ckpt") for key in run.outputs)


def test_signal_without_checkpoints_still_ends_at_a_batch(project, record):
    code, _ = train_and_signal(project, signal.SIGINT, "--trainer.enable_checkpointing=false")
    assert code == 130
    assert record()[0].status == "aborted"


def test_second_signal_ends_at_once(project, record):
    code, _ = train_and_signal(
        project, signal.SIGINT, at="hang", again_after="stopping after this batch"
    )
    assert code == 130
    (run,) = record()
    assert run.status == "aborted"
    assert not [key for key in run.outputs if key.endswith(".ckpt")]


def test_interrupt_raised_by_user_code_is_an_abort(shell, project, record):
    (project / "m.py").write_text(
        "from tests_models import TinyModel\n"
        "class M(TinyModel):\n"
        "    def training_step(self, batch, batch_idx): raise KeyboardInterrupt\n"
    )
    assert shell(*FIT, "--model=m.M").returncode == 130
    assert record()[0].status == "aborted"


def test_error_after_a_signal_is_an_error(shell, project, record):
    (project / "m.py").write_text(
        "import os, signal\n"
        "from tests_models import TinyModel\n"
        "class M(TinyModel):\n"
        "    def training_step(self, batch, batch_idx):\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        raise ValueError('a real bug')\n"
    )
    done = shell(*FIT, "--model=m.M")
    assert done.returncode == 1
    assert "a real bug" in done.stderr
    assert record()[0].status == "errored"


def test_signal_too_late_for_one_loop_stops_the_next(shell, project, record):
    (project / "train.py").write_text(
        "import os, signal\n"
        "from lamincli import LaminLightningCLI\n"
        "from tests_models import TinyModel, TinyData\n"
        "class M(TinyModel):\n"
        "    def on_train_end(self): os.kill(os.getpid(), signal.SIGTERM)\n"
        "cli = LaminLightningCLI(M, TinyData, run=False)\n"
        "for fold in range(1, 3):\n"
        "    cli.trainer.fit_loop.max_epochs = fold\n"
        "    cli.trainer.fit(cli.model, datamodule=cli.datamodule)\n"
        "    print('FOLD', fold)\n"
    )
    done = shell(*FIT[3:], program=[sys.executable, "train.py"])
    assert done.returncode == 143, done.stderr
    assert "FOLD 2" not in done.stdout
    assert record()[0].status == "aborted"


def test_signal_ignored_by_the_parent_stays_ignored(project, record):
    """As under nohup, or in the background of a script."""
    code, output = train_and_signal(
        project, signal.SIGINT, shell_prefix=["sh", "-c", 'trap "" INT; exec "$@"', "sh"]
    )
    assert code == 0, output
    assert record()[0].status == "completed"


@pytest.mark.parametrize("closer", ["start", "doctor"])
def test_killed_outright_is_found_later(shell, record, closer):
    assert shell(*FIT, "--model.at=kill").returncode == -signal.SIGKILL
    (killed,) = record()
    assert (killed.status, killed.finished) == ("started", False)
    done = shell(*FIT) if closer == "start" else shell("doctor")
    assert done.returncode == 0, done.stderr
    assert f"closed as aborted, for their process is gone: {killed.uid}" in done.stdout
    run = record()[0]
    assert (run.status, run.after_start) == ("aborted", True)
    assert run.extra["lamin_train"]["reason"] == "its process is gone"
    assert f"run {killed.uid}" in run.log, "what it had said until then"


def test_running_job_is_not_closed(project, record, shell):
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "lamincli", *FIT, "--trainer.max_epochs=100000"],
        cwd=project, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if "pytree" in line or "Trainer" in line or "TPU" in line:
            break
    assert "no run to close" in shell("doctor").stdout
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143


def test_script_that_only_makes_the_objects(shell, record, project):
    (project / "train.py").write_text(
        "import sys\n"
        "from lamincli import LaminLightningCLI\n"
        "from tests_models import TinyModel, TinyData\n"
        "cli = LaminLightningCLI(TinyModel, TinyData, run=False)\n"
        "cli.trainer.fit(cli.model, datamodule=cli.datamodule)\n"
    )
    options = FIT[3:]
    program = [sys.executable, "train.py"]
    assert shell(*options, program=program).returncode == 0
    failed = shell(*options, "--model.at=raise", program=program)
    assert failed.returncode == 1
    assert "boom in user code" in failed.stderr
    with (project / "train.py").open("a") as script:
        script.write("sys.exit('not good enough')\n")
    assert shell(*options, program=program).returncode == 1
    runs = record()
    assert [run.status for run in runs] == ["completed", "errored", "errored"]
    assert {run.key for run in runs} == {"train.py"}
    assert "not good enough" in runs[2].log
    assert "boom in user code" in runs[1].log
    assert "LaminLightningCLI(TinyModel" in runs[0].source
