"""Folders of this user alone: nobody else's is used, and nothing is left in them."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from lamincli import folders
from lamincli.folders import Scratch, private_folder, taking_turns

KILLED = """
import os, signal
from lamincli.folders import Scratch, taking_turns
(Scratch("config").path / "config.yaml").write_text("secret")
with taking_turns("create"):
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    place = tmp_path / "tmp"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(folders, "_standing_in", [])
    monkeypatch.setattr(folders, "_told", set())
    for variable in ("HOME", folders.SETTINGS_VARIABLE, folders.CACHE_VARIABLE):
        monkeypatch.setenv(variable, os.environ.get(variable, ""))  # to be as before in the end
    for name in ("_settings_store", "_settings"):
        if (module := sys.modules.get(f"lamindb_setup.core.{name}")) is not None:
            monkeypatch.setattr(module, "settings_dir", module.settings_dir)  # likewise
    return place


def everything(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_nobody_else_can_enter(temporary):
    before = os.umask(0)
    try:
        folder = private_folder()
        with Scratch("config") as scratch, taking_turns("create"):
            assert scratch.stat().st_mode & 0o077 == 0
            (lock,) = folder.glob("*.lock")
            assert lock.stat().st_mode & 0o077 == 0
    finally:
        os.umask(before)
    assert folder.parent == temporary
    private_folder().chmod(0o777)
    assert private_folder().stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("planted", ["link", "file", "of another user"])
def test_what_somebody_else_has_put_there_is_not_used(temporary, tmp_path, monkeypatch, planted):
    place, victim = private_folder(), tmp_path / "victim"
    victim.mkdir(mode=0o755)
    place.rmdir()
    if planted == "link":
        place.symlink_to(victim)
    elif planted == "file":
        place.write_text("")
    else:
        place.mkdir()
        mine = folders._is_own
        monkeypatch.setattr(
            folders, "_is_own", lambda s: mine(s) and s.st_ino != place.stat().st_ino
        )
    with Scratch("config") as scratch, taking_turns("create"):
        assert scratch.is_relative_to(tmp_path / "state" / "lamin-train" / "tmp")
        assert private_folder() == scratch.parent  # the same for all: they take turns there
    assert (everything(victim), victim.stat().st_mode & 0o777) == ([], 0o755)


def test_no_folder_at_all_says_what_helps(temporary, tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setattr(tempfile, "tempdir", str(file))
    monkeypatch.setenv("XDG_STATE_HOME", str(file))
    with pytest.raises(folders.UsageError, match=f"{file}.*Set TMPDIR"):
        private_folder()


def test_link_in_the_place_of_a_lock_is_not_followed(temporary, tmp_path):
    target = tmp_path / "target"
    with taking_turns("create"):
        (lock,) = private_folder().glob("*.lock")
    private_folder()
    lock.symlink_to(target)
    with pytest.raises(OSError, match="symbolic links"), taking_turns("create"):
        pass
    assert not target.exists()


def test_one_at_a_time_and_nothing_is_left(temporary):
    inside, most, done = 0, 0, []

    def work():
        nonlocal inside, most
        for _ in range(25):
            with taking_turns("create"):
                inside += 1
                most = max(most, inside)
                done.append(None)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, len(done)) == (1, 200)
    assert everything(temporary) == []


def test_another_turn_is_not_waited_for(temporary):
    with taking_turns("create a"), taking_turns("create b"):
        assert len(list(private_folder().iterdir())) == 2


def test_what_a_killed_process_left_goes_with_the_next_start(temporary):
    environment = {**os.environ, "TMPDIR": str(temporary)}
    done = subprocess.run([sys.executable, "-c", KILLED], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(private_folder().iterdir())) == 2
    with Scratch("config") as mine, taking_turns("record"):
        folders.remove_left()
        left = {path.name for path in private_folder().iterdir()}
        assert mine.name in left
        assert len(left) == 2, "what a living process has is not left"
    assert everything(temporary) == []


def test_what_waits_to_be_published_is_never_removed(temporary):
    kept = Path(tempfile.mkdtemp(prefix="reproduce-", dir=private_folder()))
    (kept / "logs" / ".lamin_spool" / "RUN").mkdir(parents=True)
    folders.remove_left()
    assert kept.is_dir()


def test_forked_process_removes_nothing(temporary):
    scratch = Scratch("config")
    pid = os.fork()
    if pid == 0:
        scratch.remove()
        os._exit(0)
    os.waitpid(pid, 0)
    assert scratch.path.is_dir()
    scratch.remove()
    scratch.remove()
    assert everything(temporary) == []


def test_text_that_others_can_write_is_not_read(tmp_path):
    file, link = tmp_path / "file", tmp_path / "link"
    folders.write_own(file, "text")
    link.symlink_to(file)
    assert (folders.read_own(file), file.stat().st_mode & 0o777) == ("text", 0o600)
    with pytest.raises(OSError, match="symbolic links"):
        folders.read_own(link)
    file.chmod(0o622)
    with pytest.raises(PermissionError):
        folders.read_own(file)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(PermissionError):
        folders.read_own(tmp_path / "pipe")


def test_write_that_fails_leaves_the_old_text_alone(tmp_path, monkeypatch):
    file = tmp_path / "file"
    folders.write_own(file, "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        folders.write_own(file, "new")
    assert everything(tmp_path / "tmp") == []
    assert (file.read_text(), list(tmp_path.glob(".file*"))) == ("old", [])


def test_looking_whether_a_folder_can_be_written_leaves_nothing(tmp_path):
    assert folders.why_unwritable(tmp_path / "a" / "b") is None
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").write_text("")
    assert folders.why_unwritable(tmp_path / "file" / "a") == "Not a directory"
    assert folders.why_unwritable(Path("/proc/nothing/here")) == "No such file or directory"


def test_settings_that_cannot_be_written_are_read_all_the_same(tmp_path, monkeypatch):
    home = tmp_path / "home"
    (home / ".lamin").mkdir(parents=True)
    (home / ".lamin" / "current_user.env").write_text("handle=me")
    (home / ".lamin" / "current_instance.env").write_text("owner=me")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv(folders.SETTINGS_VARIABLE)
    monkeypatch.setattr(folders, "why_unwritable", lambda _: "Read-only file system")
    folders.provide_home()
    there = Path(os.environ[folders.SETTINGS_VARIABLE]) / ".lamin"
    assert there.is_relative_to(private_folder())
    assert (there / "current_user.env").read_text() == "handle=me"
    (there / "current_instance.env").write_text("owner=other")
    (there / "instance--me--new.env").write_text("new")
    monkeypatch.delenv(folders.SETTINGS_VARIABLE)
    folders._standing_in.clear()
    folders.provide_home()  # of the next process: what was written meanwhile is there
    assert everything(home / ".lamin") == ["current_instance.env", "current_user.env"]
    assert (there / "current_instance.env").read_text() == "owner=other"
    text = folders.news()
    assert text == (
        f"{home}/.lamin cannot be written: Read-only file system. {private_folder()} is used "
        "instead. Set LAMIN_SETTINGS_DIR to a folder that you can write."
    )
    assert folders.news() is None, "it is said once"


def test_user_without_a_home_gets_one(monkeypatch):
    def nobody(*_):
        raise KeyError("getpwuid(): uid not found: 4321")

    import pwd

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.delenv(folders.SETTINGS_VARIABLE)
    assert not os.path.exists(folders.state_folder())
    folders.provide_home()
    assert Path.home().is_relative_to(private_folder())
    assert folders.why_unwritable(folders.state_folder()) is None
    assert "this user has no home folder" in folders.news()


def test_settings_are_elsewhere_for_a_script_that_has_imported_lamindb(tmp_path, monkeypatch):
    from lamindb_setup.core import _settings, _settings_store

    for module in (_settings, _settings_store):
        monkeypatch.setattr(module, "settings_dir", module.settings_dir)
    monkeypatch.delenv(folders.SETTINGS_VARIABLE)
    monkeypatch.setattr(folders, "why_unwritable", lambda _: "Read-only file system")
    folders.provide_home()
    there = private_folder() / "settings" / ".lamin"
    assert _settings_store.current_user_settings_file() == there / "current_user.env"
    assert _settings.settings.settings_dir == there
