"""On a real PostgreSQL server: what SQLite forgives, it does not."""

import subprocess
import sys

FIT = ["fit", "--model=tests_models.TinyModel", "--data=tests_models.TinyData",
       "--trainer.max_epochs=1", "--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]  # fmt: skip


def test_run_with_a_long_command_line(instance, shell, record):
    """cli_args is a varchar(1024) there: lamindb's own run ends with a DataError."""
    done = shell(*FIT, "--model.at", "x" * 3000)
    assert done.returncode == 0, done.stderr
    (run,) = record()
    assert run.status == "completed"
    assert len(run.cli_args) == 1024
    assert "x" * 3000 in run.extra["lamin_train"]["command"]
    assert run.params["model"]["init_args"]["at"] == "x" * 3000
    assert len(run.outputs) == 3
    assert run.log


def test_values_that_json_of_postgres_refuses(instance, shell, record):
    done = shell(*FIT, "--model.learning_rate=.inf", "--lamin.features.run", "{}")
    (run,) = record()
    assert run.params["model"]["init_args"]["learning_rate"] == "inf"
    assert run.status == "completed", done.stderr
    assert run.extra["metrics"]["train_loss"] in ("nan", "inf"), "training diverged, as it should"


def test_starts_at_once_create_everything_once(instance, project, record):
    processes = [
        subprocess.Popen([sys.executable, "-m", "lamincli", *FIT], cwd=project, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for _ in range(3)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=200)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    runs = record()
    assert [run.status for run in runs] == ["completed"] * 3
    assert len({run.transform for run in runs}) == 1
    code = "import lamindb as ln; print('COUNT', ln.Feature.filter().count(), ln.Transform.filter().count())"
    done = subprocess.run([sys.executable, "-c", code], cwd=project, capture_output=True, text=True,
                          check=False)  # fmt: skip
    assert "COUNT 15 1" in done.stdout, "14 features and their type, one transform"


def test_ranks_that_are_forked_leave_the_connection_to_the_parent(instance, shell, record):
    words = ["--trainer.devices=2", "--trainer.strategy=ddp_fork"]
    done = shell(*FIT, *words)
    assert done.returncode == 0, done.stderr
    (run,) = record()
    assert run.status == "completed"
    assert any(key.endswith(".ckpt") for key in run.outputs)


def test_connection_that_is_lost_while_training(instance, shell, record, project):
    """A server that restarts, a firewall that drops idle connections."""
    (project / "cut.py").write_text(
        "from django.db import connection\n"
        "from lightning.pytorch.callbacks import Callback\n"
        "def cut():\n"
        "    connection.close()\n"
        "    with connection.cursor() as cursor:\n"
        "        cursor.execute('SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE '\n"
        "            'datname = current_database() AND pid <> pg_backend_pid()')\n"
        "    connection.connection.close()\n"
        "class Cut(Callback):\n"
        "    def on_train_epoch_start(self, trainer, pl_module):\n"
        "        if trainer.current_epoch == 1: cut()\n"
        "    def on_fit_end(self, trainer, pl_module):\n"
        "        cut()\n"
    )
    done = shell(*FIT, "--trainer.callbacks=cut.Cut", "--trainer.max_epochs=4",
                 "--checkpoint.save_top_k=-1")  # fmt: skip
    assert done.returncode == 0, done.stderr
    (run,) = record()
    assert run.status == "completed"
    names = [key.rsplit("/", 1)[1] for key in run.outputs if key.endswith(".ckpt")]
    assert names == [f"epoch={epoch}-step={4 * (epoch + 1)}.ckpt" for epoch in range(4)]
    assert "not in LaminDB:" not in done.stdout
