"""What was taken out of a published config is named, and is given before anything is made of it."""

import pytest
import yaml
from jsonargparse import Namespace

from lamincli.redaction import REDACTED
from lamincli.taken_out import TakenOut, mistakes_in, without_placeholders

CONFIG = f"""
# taken out of this copy: model.init_args.api_key
trainer:
  max_epochs: 1e1
  callbacks:
  - class_path: a.B
    init_args: {{api_key: '{REDACTED}', level: 3}}
model:
  class_path: m.Model
  init_args:
    api_key: '{REDACTED}'
    db: postgresql://{REDACTED}@host/db
    nested: {{token: '{REDACTED}', size: 3}}
    auth:
      user: '{REDACTED}'
      password: '{REDACTED}'
    day: 2026-03-01
    words: "yes"
"""


def left(taken_out, content=CONFIG, path="c.yaml", has_sections=False):
    with taken_out.noted():
        return yaml.safe_load(without_placeholders(content, path, has_sections))


def given(text, stage="fit"):
    def plain(value):
        return (
            Namespace({k: plain(v) for k, v in value.items()}) if isinstance(value, dict) else value
        )

    return Namespace({"subcommand": stage, stage: plain(yaml.safe_load(text) or {})})


ALL = ["model.init_args.api_key", "model.init_args.db", "model.init_args.nested.token",
       "model.init_args.auth.user", "model.init_args.auth.password"]  # fmt: skip


def test_what_was_taken_out_is_left_out_and_noted():
    taken_out = TakenOut()
    arguments = left(taken_out)["model"]["init_args"]
    assert arguments == {"nested": {"size": 3}, "day": yaml.safe_load("2026-03-01"), "words": "yes"}
    assert list(taken_out.keys) == ALL


def test_text_that_is_left_is_the_same():
    """1e1 is a number to jsonargparse, and a text to PyYAML: it must stay unquoted."""
    taken_out = TakenOut()
    with taken_out.noted():
        text = without_placeholders(CONFIG, "c.yaml", False)
    assert "max_epochs: 1e1\n" in text
    assert 'words: "yes"' in text


def test_item_of_a_list_keeps_its_place():
    taken_out = TakenOut()
    assert left(taken_out)["trainer"]["callbacks"][0]["init_args"]["api_key"] == REDACTED


def test_configs_are_as_they_are_where_nobody_notes():
    assert without_placeholders(CONFIG, "c.yaml", False) == CONFIG


def test_all_that_is_missing_is_told():
    taken_out = TakenOut(of={})
    left(taken_out)
    missing = taken_out.missing(given("model: {class_path: m.Model}"), "fit")
    assert list(missing) == ALL
    assert missing[ALL[0]] == (
        "model.init_args.api_key was taken out of c.yaml. Give it: --model.init_args.api_key VALUE"
    )


def test_what_is_given_is_not_asked_for():
    taken_out = TakenOut()
    left(taken_out)
    here = "model: {init_args: {api_key: x, db: null, nested: {token: ''}, auth: {user: me}}}"
    assert list(taken_out.missing(given(here), "fit")) == ["model.init_args.auth.password"]


def test_arguments_of_another_class_are_not_asked_for():
    taken_out = TakenOut()
    left(taken_out)
    assert taken_out.missing(given("model: {class_path: m.Other}"), "fit") == {}


def test_config_of_all_stages_is_asked_for_that_of_this_one():
    taken_out = TakenOut()
    text = f"fit: {{model: {{api_key: '{REDACTED}'}}}}\ntest: {{model: {{token: '{REDACTED}'}}}}\n"
    assert left(taken_out, text, has_sections=True) == {}
    assert list(taken_out.missing(given("{}"), "fit")) == ["model.api_key"]
    assert taken_out.missing(given("model: {api_key: x}"), "fit") == {}


def test_option_group_with_the_name_of_a_stage_is_no_section():
    taken_out = TakenOut()
    left(taken_out, f"test: {{token: '{REDACTED}'}}")
    assert list(taken_out.missing(given("{}"), "fit")) == ["test.token"]


def test_repeated_parts_are_each_left_out():
    """An alias of YAML stands for the same thing in two places."""
    taken_out = TakenOut()
    assert left(taken_out, f"a: &x {{token: '{REDACTED}', n: 1}}\nb: *x\n") == {
        "a": {"n": 1}, "b": {"n": 1}
    }  # fmt: skip
    assert list(taken_out.keys) == ["a.token", "b.token"]


def test_items_of_lists_can_be_given(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(CONFIG)
    words = ["fit", "--config", str(file), "--trainer.callbacks.0.init_args.api_key", "k", "--x=1"]
    taken_out = TakenOut()
    assert taken_out.take_from(words) == ["fit", "--config", str(file), "--x=1"]
    assert left(taken_out)["trainer"]["callbacks"][0]["init_args"]["api_key"] == "k"


def test_words_that_name_nothing_are_left_to_the_parser():
    words = ["fit", "--trainer.callbacks.0.init_args.api_key=k"]
    assert TakenOut().take_from(words) == words


@pytest.mark.parametrize("text", ["- a\n", "a: [", f"{REDACTED}: x: y", f"'{REDACTED}'"])
def test_what_is_no_config_is_left_to_the_parser(text):
    with TakenOut().noted():
        assert without_placeholders(text, "c.yaml", False) == text


def test_placeholders_in_any_place_of_a_config_are_named():
    config = {
        "a": [1, {"b": REDACTED}], "c": f"x{REDACTED}", "d": {REDACTED: 1}, "e": None, "f": (REDACTED,),
    }  # fmt: skip
    assert [mistake.split(" ")[0] for mistake in mistakes_in(config)] == ["a.1.b", "c", "f.0", "d"]
