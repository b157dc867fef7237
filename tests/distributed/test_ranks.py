"""Two ranks, real processes: one run, whatever starts them."""

import contextlib
import os
import signal
import subprocess
import sys

import psutil
import pytest

FIT = ["fit", "--model=tests_models.TinyModel", "--data=tests_models.TinyData",
       "--data.size=4000", "--trainer.max_epochs=1", "--trainer.enable_progress_bar=false",
       "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu",
       "--trainer.devices=2"]  # fmt: skip
SHORT = ["--data.size=32"]
LAUNCHERS = {
    "ddp": ([sys.executable, "-m", "lamincli"], ["--trainer.strategy=ddp"]),
    "ddp_spawn": ([sys.executable, "-m", "lamincli"], ["--trainer.strategy=ddp_spawn"]),
    "ddp_fork": ([sys.executable, "-m", "lamincli"], ["--trainer.strategy=ddp_fork"]),
    "ddp_notebook": ([sys.executable, "-i", "-m", "lamincli"], ["--trainer.strategy=ddp_notebook"]),
    "torchrun": (
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
         "-m", "lamincli"],
        ["--trainer.strategy=ddp"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_one_job_is_one_run(shell, record, launcher):
    program, words = LAUNCHERS[launcher]
    done = shell(*FIT, *SHORT, *words, program=program, timeout_s=200)
    assert done.returncode == 0, done.stderr
    (run,) = record()
    assert (run.status, run.after_start) == ("completed", True)
    names = [key.rpartition("/")[2] for key in run.outputs]
    assert names == ["epoch=0-step=4.ckpt", "hparams.yaml", "history.csv"]
    assert run.outputs[0].split("/")[-3] == run.uid
    assert [key.split("/")[-1] for key in run.inputs] == ["config.yaml"]
    assert set(run.extra["metrics"]) == {"train_loss", "val_loss"}


def test_every_rank_knows_the_run(shell, project, record):
    (project / "spy.py").write_text(
        "from lightning.pytorch.callbacks import Callback\n"
        "class Spy(Callback):\n"
        "    def on_train_start(self, trainer, pl_module):\n"
        "        prefix = trainer.checkpoint_callback.checkpoint_key_prefix\n"
        "        open(f'rank{trainer.global_rank}', 'w').write(prefix)\n"
    )
    program, words = LAUNCHERS["torchrun"]
    done = shell(*FIT, *SHORT, *words, "--trainer.callbacks=spy.Spy", program=program)
    assert done.returncode == 0, done.stderr
    (run,) = record()
    for rank in (0, 1):
        assert (project / f"rank{rank}").read_text().split("/")[-2] == run.uid


@pytest.mark.parametrize(("devices", "rank"), [(1, 0), (2, 0), (2, 1)])
def test_signal_in_the_batch_before_a_validation(shell, project, record, devices, rank):
    """Lightning validates before it looks whether it shall stop."""
    (project / "early.py").write_text(
        "import os, signal\n"
        "from lightning.pytorch.callbacks import Callback\n"
        "class Early(Callback):\n"
        "    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):\n"
        f"        if trainer.global_rank == {rank} and batch_idx == 1:\n"
        "            os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    strategy = ["--trainer.strategy=ddp"] if devices == 2 else []
    done = shell(*FIT, *strategy, f"--trainer.devices={devices}", "--trainer.val_check_interval=2",
                 "--trainer.callbacks=early.Early")  # fmt: skip
    assert done.returncode == 143, done.stderr
    (run,) = record()
    assert run.status == "aborted"
    assert any(key.endswith(".ckpt") for key in run.outputs)


def test_ranks_with_different_numbers_of_validation_batches(shell, project, record):
    """Nothing may be agreed on within such a validation: it would hang."""
    (project / "uneven.py").write_text(
        "import os\n"
        "from tests_models import TinyData\n"
        "class Uneven(TinyData):\n"
        "    def val_dataloader(self):\n"
        "        number = 1 + 3 * int(os.environ.get('LOCAL_RANK', 0))\n"
        "        return TinyData(size=4 * number).val_dataloader()\n"
    )
    (project / "train.py").write_text(
        "from lamincli import LaminLightningCLI\n"
        "from lamincli.callbacks import stop\n"
        "stop._CHECK_EVERY_S = 0  # after every batch\n"
        "LaminLightningCLI()\n"
    )
    words = [word for word in FIT if not word.startswith("--data")]
    words += ["--data=uneven.Uneven", "--trainer.use_distributed_sampler=false"]
    done = shell(*words, "--trainer.strategy=ddp", program=[sys.executable, "train.py"])
    assert done.returncode == 0, done.stderr
    assert [run.status for run in record()] == ["completed"]


@pytest.mark.parametrize(
    ("name", "to"),
    [("SIGINT", "group"), ("SIGTERM", "zero"), ("SIGTERM", "one"), ("SIGTERM", "group")],
)
def test_signal_stops_all_ranks_with_a_checkpoint(project, record, name, to):
    """Lightning's own handler broadcasts from within the signal handler, and hangs."""
    signum = getattr(signal, name)
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "lamincli", *FIT, "--model.at=wait", "--trainer.strategy=ddp"],
        cwd=project, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    output, sent = "", False
    for line in process.stdout:
        output += line
        if "THIRD BATCH" in line and not sent:
            sent = True
            pid = psutil.Process(process.pid).children()[0].pid if to == "one" else process.pid
            (os.killpg if to == "group" else os.kill)(pid, signum)
    assert process.wait(timeout=120) == 128 + signum, output
    (run,) = record()
    assert run.status == "aborted"
    assert any(key.endswith(".ckpt") for key in run.outputs)
    ranks = [rank for rank in psutil.process_iter() if in_group(rank, process.pid)]
    assert psutil.wait_procs(ranks, timeout=60)[1] == [], "no rank is left behind"


def in_group(process, group):
    with contextlib.suppress(psutil.Error, ProcessLookupError):
        return os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE
    return False
