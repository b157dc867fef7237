"""No internet, no login, no instance: a scientist on a laptop."""

import os
import sys
from pathlib import Path

import pytest

FIT = ["fit", "--model=tests_models.TinyModel", "--data=tests_models.TinyData",
       "--trainer.max_epochs=1", "--trainer.enable_progress_bar=false"]  # fmt: skip


@pytest.fixture
def offline(home, monkeypatch):
    """Forbid every connection and name look-up in the processes we start."""
    monkeypatch.setenv("FORBID_NETWORK", "1")


def test_laptop_without_anything(offline, shell, record, project):
    first = shell(*FIT)
    assert first.returncode == 0, first.stderr
    assert first.stdout.count("created a local LaminDB instance in lamindb") == 1
    assert "network" not in first.stderr
    second = shell(*FIT)
    assert "created" not in second.stdout
    runs = record()
    assert [run.status for run in runs] == ["completed", "completed"]
    assert [run.key for run in runs] == ["pypackages/tests_models.py"] * 2 or [
        run.key for run in runs
    ] == ["tests_models.py"] * 2
    assert runs[0].transform == runs[1].transform
    assert all(run.environment and run.log for run in runs)


def test_script_that_tracks_itself_works_offline(offline, shell, record, project):
    """The guide's train.py calls ln.track() first of all."""
    (project / "train.py").write_text(
        "import lamindb as ln\n"
        "from lightning.pytorch.cli import LightningCLI\n"
        "from lamindb.integrations.lightning import SaveConfigCallback\n"
        "from tests_models import TinyModel, TinyData\n"
        "ln.track()\n"
        "LightningCLI(TinyModel, TinyData, save_config_callback=SaveConfigCallback)\n"
        "ln.finish()\n"
    )
    import subprocess
    import sys

    init = "import lamindb_setup as s; s.init(storage='store', name='plain')"
    done = subprocess.run([sys.executable, "-c", init], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    done = shell("fit", *FIT[3:], program=[sys.executable, "train.py"])
    assert done.returncode == 0, done.stderr
    assert [run.status for run in record()] == ["completed"]


def test_named_folder_is_used_and_found_again(offline, shell, project):
    assert shell("doctor", "--instance", "./elsewhere/store").returncode == 1
    assert not (project / "elsewhere").exists(), "looking creates nothing"
    for _ in range(2):
        done = shell(*FIT, "--lamin.instance=./elsewhere/store")
        assert done.returncode == 0, done.stderr
        assert "completed · anonymous/store" in done.stdout
    load = done.stdout.split("load it\n")[1].splitlines()[0]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    loaded = shell("-c", load, program=["bash"], PATH=path)
    assert "TinyModel(" in loaded.stdout, loaded.stderr
    assert (project / "elsewhere/store/.lamindb/lamin.db").exists()
    assert not (project / "lamindb").exists()


def test_projects_of_the_same_name_have_their_own_instances(offline, shell, project, monkeypatch):
    names = []
    for parent in ("one", "two"):
        folder = project / parent / "study"
        folder.mkdir(parents=True)
        done = shell(*FIT, f"--lamin.instance={folder}/lamindb")
        assert done.returncode == 0, done.stderr
        names.append(done.stdout.split("completed · ")[1].split()[0])
    assert names[0] == "anonymous/study"
    assert names[1].startswith("anonymous/study-")


def test_starts_at_once_create_one_instance(offline, project, record):
    import subprocess
    import sys

    command = [sys.executable, "-m", "lamincli", *FIT]
    both = [subprocess.Popen(command, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                             text=True) for _ in range(2)]  # fmt: skip
    outputs = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert "".join(outputs).count("created a local LaminDB instance") == 1
    assert [run.status for run in record()] == ["completed", "completed"]


def test_folder_from_another_home_is_adopted(offline, shell, project, monkeypatch):
    assert shell(*FIT, "--lamin.instance=./store").returncode == 0
    other = project / "other-home"
    other.mkdir()
    monkeypatch.setenv("HOME", str(other))
    done = shell(*FIT, "--lamin.instance=./store")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("how", ["move", "copytree"])
def test_project_that_was_moved_or_copied(offline, shell, record, project, monkeypatch, how):
    import shutil

    old, new = project / "old", project / "new"
    old.mkdir()
    train = ["-c", 'cd "$0" && exec "$@"']
    command = [sys.executable, "-m", "lamincli", *FIT]
    assert shell(*train, str(old), *command, program=["bash"]).returncode == 0
    getattr(shutil, how)(old, new)
    done = shell(*train, str(new), *command, program=["bash"])
    assert done.returncode == 0, done.stderr
    code = "import lamindb as ln; print([run.status for run in ln.Run.filter()])"
    listing = [sys.executable, "-c", code]  # which finds it by itself, by now
    assert (
        "['completed', 'completed']" in shell(*train, str(new), *listing, program=["bash"]).stdout
    )
    if how == "copytree":
        assert "['completed']" in shell(*train, str(old), *listing, program=["bash"]).stdout


def test_instance_that_is_gone_is_said_to_be(offline, shell, project):
    """The folder was deleted or renamed: no empty one in its place, and two ways out."""
    assert shell(*FIT).returncode == 0
    (project / "lamindb").rename(project / "backup")
    for _ in range(2):
        done = shell(*FIT)
        assert done.returncode == 2
        assert "Restore the folder, or start a new instance there with" in done.stderr
        assert "Traceback" not in done.stderr
        assert not (project / "lamindb").exists()
    shell("-c", "import lamindb", program=[sys.executable])  # leaves an empty database there
    done = shell(*FIT, "--lamin.instance=lamindb")
    assert done.returncode == 0, done.stderr
    assert "created a local LaminDB instance" in done.stdout


def test_hub_that_is_away_is_one_warning(ln, monkeypatch, caplog):
    """An instance that may be on the hub asks for it; a laptop on a train has no answer."""
    from urllib.error import URLError

    from lamindb_setup import logger
    from lamindb_setup.core import _hub_client

    instance = ln.setup.settings.instance
    monkeypatch.setattr(type(instance), "is_remote", property(lambda _: True))
    monkeypatch.setattr(instance, "_is_on_hub", None)
    warnings = []
    monkeypatch.setattr(logger, "warning", lambda message: warnings.append(message))

    def away(*_, **__):
        raise URLError("Name or service not known")

    monkeypatch.setattr(_hub_client, "call_with_fallback", away)
    assert instance.is_on_hub is False
    assert instance.is_on_hub is False
    assert [w for w in warnings if "LaminHub cannot be reached" in w] == warnings[:1]
    assert len(warnings) == 1


def test_local_instance_asks_nobody(ln, monkeypatch):
    from lamindb_setup.core import _hub_client

    monkeypatch.setattr(_hub_client, "call_with_fallback", lambda *_, **__: pytest.fail("asked"))
    monkeypatch.setattr(ln.setup.settings.instance, "_is_on_hub", None)
    assert ln.setup.settings.instance.is_on_hub is False
