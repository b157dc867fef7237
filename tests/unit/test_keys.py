"""Which key a path has, and what cannot be one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lamindb.models.sqlrecord import check_key

from lamincli.keys import MOST_CHARACTERS, as_key, mistakes_in_paths, why_no_key


@pytest.mark.parametrize(
    "path", ["ckpts/mine", "/scratch/me/run", "a//b", "epoch=0-step=4.ckpt", "s3://bucket/x", "..a", ""]
)  # fmt: skip
def test_plain_names_are_left_as_they_are(path):
    assert as_key(path) == path


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("../x", "x"),
        ("../../x/y", "x/y"),
        ("./y", "y"),
        ("a/../b", "b"),
        ("/a/./b", "/a/b"),
        ("..//UID", "UID"),
        (".", ""),
        ("..", ""),
        ("a\\b", "a_b"),
        ("a\nb\x1b[31m", "a_b_[31m"),
        ("a\udcff", "a_"),
        ("x/.lamindb/y", "x/_lamindb/y"),
    ],
)
def test_other_paths_have_the_nearest_key(path, key):
    assert as_key(path) == key


def test_key_that_is_a_place_in_the_storage_stays_in_it():
    assert as_key("/scratch/me", is_virtual=False) == "scratch/me"


@given(st.text(max_size=40) | st.lists(st.sampled_from(["..", ".", "", "a", "\\"])).map("/".join))
def test_every_path_has_a_key_that_lamindb_takes(path):
    key = as_key(path)
    check_key(key)
    assert as_key(key) == key
    assert not why_no_key(key) or not key.strip("/") or "//" in key or key.startswith("/") \
        or key.endswith("/") or "lamin:" in key  # fmt: skip


def test_column_of_keys_is_as_long_as_we_think():
    import lamindb as ln

    assert ln.Artifact._meta.get_field("key").max_length == MOST_CHARACTERS


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("a\\b.parquet", "a backslash"),
        ("a\0b.parquet", r"the character '\x00'"),
        ("a\nb.parquet", r"the character '\n'"),
        ("n" * 300 + ".parquet", "has 308 bytes"),
        ("é" * 130 + ".parquet", "has 268 bytes"),
        ("/".join(["n" * 100] * 11) + ".parquet", "has 1118 characters"),
        ("/abs.parquet", "no key"),
        ("a//b.parquet", "no key"),
        ("a/../b.parquet", "no key"),
        ("s3://bucket/b.parquet", "no key"),
        (".lamindb/b.parquet", "no key"),
    ],
)
def test_what_is_no_key_is_told(key, why):
    assert why in str(why_no_key(key))


def test_key_of_300_characters_is_one():
    assert why_no_key("/".join(["n" * 99] * 3) + ".parquet") is None


def test_all_paths_that_cannot_be_written_are_told_at_once():
    checkpoints = {
        "checkpoint": {"dirpath": "a\0b", "filename": "n" * 300},
        "trainer.callbacks[1].init_args": {"dirpath": "/".join(["n" * 200] * 5)},
    }
    logger = {"class_path": "CSVLogger", "init_args": {"save_dir": "\0", "name": "n" * 300}}
    mistakes = mistakes_in_paths(checkpoints, {"logger": [logger], "default_root_dir": "\0"})
    assert [mistake.partition(":")[0] for mistake in mistakes] == [
        "checkpoint.filename",
        "checkpoint.dirpath",
        "trainer.callbacks[1].init_args.dirpath",
        "trainer.default_root_dir",
        "trainer.logger.init_args.save_dir",
        "trainer.logger.init_args.name",
    ]


def test_fields_of_a_file_name_do_not_count():
    name = "{epoch}-{" + "n" * 300 + ":.2f}"
    assert mistakes_in_paths({"checkpoint": {"filename": name}}, {}) == []


def test_two_folders_of_one_key_are_told_apart():
    """One callback would replace the artifacts of the other."""
    checkpoints = {"a": {"dirpath": "../x"}, "b": {"dirpath": "x"}, "c": {"dirpath": "a/../../x"}}
    (mistake,) = mistakes_in_paths(checkpoints, {"logger": True})
    assert (
        "b.dirpath x: artifact keys are made of it, and they are those of a.dirpath ../x" in mistake
    )
