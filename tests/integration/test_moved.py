"""A project that was moved, renamed or copied, with its local instance and what waits in its spool."""

import os
import shutil
import sys
from pathlib import Path

import pytest

from lamincli.commands import doctor, sync
from lamincli.spool import Job, Spool, left_behind, missing_spools

SCRIPT = """
import os, sys
from pathlib import Path
os.chdir(sys.argv[1])
sys.argv = ["lamin-train"]
"""


@pytest.fixture(autouse=True)
def own_home(home):
    """What this user knows is what the test lets them know."""


@pytest.fixture
def python(shell):
    """Run code in a folder, in a process of its own."""

    def run(folder, code):
        done = shell("-c", SCRIPT + code, str(folder), program=[sys.executable])
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    return run


CONNECT = """
from lamincli.instance import connect
connect(None)
import lamindb as ln
"""
SPOOL = """
from lamindb.base.uids import base62_16
from lamincli.spool import Job, Spool
run = ln.Run.objects.first() or ln.Run(
    transform=ln.Transform(key="t", source_code="t", kind="function").save()
).save()
instance = ln.setup.settings.instance
uid = base62_16()
Path(uid).write_text(uid)
job = Job("save", run.uid, instance.slug, instance._id.hex, "2026-01-01", uid=uid + "0000",
          key=f"k/{uid}.ckpt", artifact_kind="model", local_path=os.path.abspath(uid))
Spool(Path(".lamin_spool", run.uid)).add(job, Path(uid))
"""
MAKE = CONNECT + SPOOL
COUNT = """
import lamindb as ln
print("FOUND", ln.Artifact.filter(kind="model").count(), ln.setup.settings.storage.root_as_str)
"""
SYNC = """
from lamincli.commands import sync
assert sync.main({words}) == 0
"""
DOCTOR = """
from lamincli.commands import doctor
assert doctor.main([]) == 0
"""


def test_moved_project_is_synced_into_the_instance_that_has_moved_with_it(python, project):
    """Also if it has moved before, and has another name since."""
    one, two, three = (project / name for name in ("one", "two", "three"))
    one.mkdir()
    python(one, MAKE)
    one.rename(two)
    done = python(two, DOCTOR + CONNECT + SPOOL)
    assert "1 job not published" in done.stderr
    two.rename(three)
    done = python(three, DOCTOR + SYNC.format(words=[]) + COUNT)
    assert f"2 jobs not published: {three}/.lamin_spool/" in done.stderr
    assert "2 of 2 jobs done" in done.stdout
    assert f"FOUND 2 {three}/lamindb" in done.stdout
    assert not one.exists(), "nothing is made by looking"
    assert not two.exists()
    assert not list(three.rglob("*.lamin_spool*"))


def test_copied_project_has_its_own(python, project):
    """Also where the first attempt fails, and the copy is known from then on."""
    old, new = project / "old", project / "new"
    old.mkdir()
    python(old, MAKE)
    shutil.copytree(old, new)
    fails = "from lamincli.registry import storage\ndef no(*a): raise PermissionError()\nstorage.store = no\n"
    done = python(new, fails + SYNC.format(words=["."]).replace("== 0", "== 3") + COUNT)
    assert f"FOUND 0 {new}/lamindb" in done.stdout
    assert f"FOUND 1 {new}/lamindb" in python(new, SYNC.format(words=["."]) + COUNT).stdout
    done = python(old, CONNECT + COUNT + SYNC.format(words=["."]) + COUNT)
    assert f"FOUND 0 {old}/lamindb" in done.stdout
    assert f"FOUND 1 {old}/lamindb" in done.stdout


LOOK = """
import traceback
from lamincli.commands import doctor, sync
from lamincli.instance import named
from lamincli.main import main
def called(function, *words):
    try:
        return function(*words)
    except SystemExit as error:
        return error.code
looks = [
    (lambda: sync.main([]), 3), (lambda: sync.main(["."]), 3), (lambda: doctor.main([]), 1),
    (lambda: named(None) and 0, 0), (lambda: named("anonymous/one") and 0, 0),
    (lambda: doctor.main(["--instance", "anonymous/one"]), 1),
    (lambda: main(["reproduce", "latest"]), 2), (lambda: main(["resume", "latest"]), 2),
]
for number, (look, status) in enumerate(looks[:{number}]):
    assert called(look) == status, number
    assert sorted(map(str, Path("lamindb").rglob("*"))) == {there}, number
    assert Path("lamindb").exists() == bool({there}), number
"""


def test_instance_that_is_gone_is_not_made_by_looking(python, project):
    place, aside = project / "one", project / "aside"
    place.mkdir()
    python(place, MAKE)
    (place / "lamindb").rename(aside)
    python(
        place,
        LOOK.format(there=[], number=9) + "import lamindb\nassert not Path('lamindb').exists()",
    )
    (place / "lamindb/.lamindb").mkdir(parents=True)  # as where the rest of it is there still
    python(place, LOOK.format(there=["lamindb/.lamindb"], number=5))
    shutil.rmtree(place / "lamindb")
    aside.rename(place / "lamindb")
    assert "1 of 1 jobs done" in python(place, SYNC.format(words=[])).stdout


def test_spool_that_is_not_where_it_was_is_told_and_can_be_forgotten(project, capsys, monkeypatch):
    monkeypatch.setattr(doctor, "_check_instance", lambda instance: 0)
    folder = project / "old" / ".lamin_spool" / "RUN"
    Spool(folder).add(Job("close", "RUN", "me/here", "ab", "2026-01-01"))
    (project / "old").rename(project / "new")
    assert missing_spools() == [folder]
    monkeypatch.chdir(project / "new")
    assert doctor.main([]) == 0
    told = capsys.readouterr()
    assert f"1 job not published: {project}/new/.lamin_spool/RUN" in told.err
    assert "nothing waits" not in told.out
    shutil.rmtree(project / "new")
    monkeypatch.chdir(project)
    doctor.main([])
    told = capsys.readouterr()
    assert f"lamin-train sync --discard {folder}" in told.err
    assert "nothing waits" not in told.out
    assert sync.main(["--discard", str(folder)]) == 0
    assert missing_spools() == []
    doctor.main([])
    assert "nothing waits" in capsys.readouterr().out


def test_start_hints_at_what_a_moved_project_has_left(project):
    from lamincli.spool import spools_in

    folder = project / "old" / ".lamin_spool" / "RUN"
    Spool(folder).add(Job("close", "RUN", "me/here", "ab", "2026-01-01"))
    (project / "old").rename(project / "new")
    assert left_behind() == {}
    assert left_behind(spools_in(project / "new")) == {Path(project, "new", ".lamin_spool/RUN"): 1}
    assert os.listdir(project / "new" / ".lamin_spool") == ["RUN"]
