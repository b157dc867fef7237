"""Which local instance lies with a project, wherever that was moved."""

from pathlib import Path
from types import SimpleNamespace
from uuid import UUID

import pytest

from lamincli import instance

ID = "ab" * 16


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Make a folder that looks like a local instance, and one that this user has used."""
    known = []
    monkeypatch.setattr(instance, "_stored", lambda: known)

    def make(folder, instance_id=ID, is_known=False):
        place = tmp_path / folder
        (place / ".lamindb").mkdir(parents=True)
        mark = f"uid\ncreation info:\ninstance_slug=me/x\ninstance_id={UUID(instance_id).hex}\n"
        (place / ".lamindb/storage_uid.txt").write_text(mark)
        (place / ".lamindb/lamin.db").write_text("not empty")
        return place

    make.known = known
    return make


def know(make, root):
    make.known.append(
        SimpleNamespace(storage_root=str(root), id=ID, owner="me", name="x", db="null")
    )


@pytest.mark.parametrize(
    ("root", "logs"),
    [("lamindb", "."), ("store", "."), ("lamindb", "logs/a"), ("my/store", "logs/a"),
     ("../beside", "logs")],
)  # fmt: skip
def test_it_is_where_it_was_as_seen_from_the_project(make, tmp_path, root, logs):
    know(make, tmp_path / "old" / root)
    here = make(f"elsewhere/new/{root}")
    place, before = tmp_path / "elsewhere/new" / logs, tmp_path / "old" / logs
    assert instance.find_near(place, ID, [before]).resolve() == here.resolve()


@pytest.mark.parametrize(("root", "logs"), [("lamindb", "."), ("store", "."), ("lamindb", "a/b")])
def test_it_is_found_without_knowing_where_it_was(make, tmp_path, root, logs):
    here = make(f"new/{root}")
    assert instance.find_near(tmp_path / "new" / logs, ID) == here


def test_only_the_one_with_the_id_is_taken(make, tmp_path):
    make("new/lamindb", "cd" * 16)
    assert instance.find_near(tmp_path / "new", ID) is None
    here = make("new/store")
    assert instance.find_near(tmp_path / "new", ID) == here
    (here / ".lamindb/lamin.db").write_text("")  # made by somebody who looked
    assert instance.find_near(tmp_path / "new", ID) is None


def test_copy_has_its_own_and_what_has_not_moved_too(make, tmp_path):
    old, new = make("old/lamindb"), make("new/lamindb")
    know(make, old)
    places = [tmp_path / "new", tmp_path / "old"]
    assert instance.find_near(tmp_path / "new", ID, places) == new
    assert instance.find_near(tmp_path / "old", ID, places) == old


def test_instance_elsewhere_is_preferred_to_what_lies_around(make, tmp_path):
    elsewhere, _ = make("data/instance"), make("project/planted")
    know(make, elsewhere)
    assert instance.find_near(tmp_path / "project", ID, [tmp_path / "project"]) == elsewhere


def test_looking_makes_nothing(make, tmp_path):
    know(make, tmp_path / "old/lamindb")
    before = sorted(tmp_path.rglob("*"))
    assert instance.find_near(tmp_path / "new", ID, [tmp_path / "old"]) is None
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("root", "db", "remote"),
    [("/x", "null", False), ("s3://x", "null", True), ("/x", "postgresql://h/d", True)],
)
def test_remote_instance_is_not_looked_for(make, root, db, remote):
    make.known.append(SimpleNamespace(storage_root=root, id=ID, owner="me", name="x", db=db))
    assert instance.is_remote("me/x") is remote
    assert not instance.is_remote("me/y")


@pytest.mark.parametrize("root", ["gone", "there", "legacy"])
def test_settings_of_an_instance_are_loaded_without_making_its_folder(tmp_path, root):
    from lamindb_setup.core import _settings_load

    place = tmp_path / root
    if root != "gone":
        place.mkdir()
    if root == "legacy":
        (place / f"{ID}.lndb").write_text("")
    store = SimpleNamespace(
        storage_root=str(place), storage_region="null", id=ID, owner="me", name="x", db="null",
        schema_str="null", git_repo="null", keep_artifacts_local=False, api_url="null",
        schema_id="null", fine_grained_access=False, db_permissions="null", is_clone=False,
    )  # fmt: skip
    settings = _settings_load.setup_instance_from_store(store)
    assert settings.storage.root_as_str == place.as_posix()
    assert Path(place, ".lamindb").exists() == (root == "legacy")
    assert place.exists() == (root != "gone")
