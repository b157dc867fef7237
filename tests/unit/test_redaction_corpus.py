"""Secrets of every form in every place are found, and what only looks like them is kept."""

import json
import shlex

import pytest
import yaml
from unit.secrets_of_test import (
    FORMS,
    HARMLESS_NAMES,
    HARMLESS_TEXTS,
    HARMLESS_VALUES,
    NAMES,
    PRIVATE_KEYS,
    WEB_HOOKS,
    private_key,
)

from lamincli.redaction import redact, redact_argv, redact_config, redact_text

SECRET = "s3cr3t-vAl7"


def places_of(value: str) -> dict[str, str]:
    """Put a value where nothing but its form tells what it is; returns what is left."""
    as_comment = "".join(f"# {line}\n" for line in value.split("\n"))
    return {
        "value": repr(redact({"model": {"init_args": {"x": value}}})),
        "list": repr(redact(["a.csv", value])),
        "key": repr(redact({"of": {value: 1}})),
        "bytes": repr(redact(value.encode())),
        "inside": repr(redact(f"use {value} for this")),
        "yaml": redact_config(yaml.safe_dump({"a": {"x": value}})),
        "json": redact_config(json.dumps({"a": {"x": value}})),
        "comment": redact_config(f"a: 1\n{as_comment}b: 2\n"),
        "words": redact_argv(["fit", "--model.x", value]),
        "log": redact_text(f"12:00 INFO connecting with {value}\n"),
        "repr": redact_text(f"Config(lr=0.1, x={value!r})"),
    }


@pytest.mark.parametrize("form", FORMS)
def test_forms_are_known_in_every_place(form):
    value = FORMS[form]()
    leaks = {place for place, left in places_of(value).items() if value[-10:] in left}
    assert not leaks


@pytest.mark.parametrize("kind", PRIVATE_KEYS)
def test_private_keys_are_known_in_every_place(kind):
    value = private_key(kind)
    lines = value.split("\n")[1:-1]
    for place, left in places_of(value).items():
        assert not any(line in left for line in lines), place
    cut = value.rpartition("\n")[0]  # without its last line, as in a log that was cut
    assert not any(line in redact_text(cut) for line in lines)


@pytest.mark.parametrize("host", WEB_HOOKS)
def test_addresses_of_web_hooks_are_secrets(host):
    value = WEB_HOOKS[host]()
    for place, left in places_of(value).items():
        assert value.rpartition("/")[2] not in left, place
        assert value.split("/")[2] in left, "the host is kept"


@pytest.mark.parametrize("name", NAMES)
def test_names_tell_secrets_in_every_place(name):
    option = f"--{name}"
    left = {
        "value": redact({"model": {name: SECRET, "lr": 0.1}}),
        "list": redact({name: ["a", SECRET]}),
        "words": redact([option, SECRET]),
        "pair": redact([name, SECRET]),
        "pairs": redact([[name, SECRET], ["lr", "0.1"]]),
        "name and value": redact([{"name": name, "value": SECRET}]),
        "option in a string": redact(f"tool {option} {SECRET} --lr 1"),
        "option=": redact(f"tool {option}={SECRET} --lr 1"),
        "json in a string": redact(json.dumps({"lr": 1, name: SECRET})),
        "twice": redact(json.dumps(json.dumps({"lr": 1, name: SECRET}))),
        "argv": redact_argv(["fit", option, SECRET]),
        "argv=": redact_argv(["fit", f"{option}={SECRET}"]),
        "json in argv": redact_argv(["fit", "--model", json.dumps({name: SECRET})]),
        "yaml": redact_config(f"model:\n  {name}: {SECRET}\n"),
        "comment": redact_config(f"lr: 1  # was\n# {name}: {SECRET}\n"),
        "shell": redact_text(f"export {name.replace('-', '_')}={SECRET}\n"),
        "repr": redact_text(f"{{'lr': 0.1, {name!r}: {SECRET!r}}}"),
        "log": redact_text(f"12:00 INFO {name}: {SECRET}\n"),
        "table": redact_text(f"│ {name} │ {SECRET} │\n"),
        "xml": redact_text(f"<{name}>{SECRET}</{name}>"),
    }
    assert not [place for place, text in left.items() if SECRET in str(text)]


@pytest.mark.parametrize("name", HARMLESS_NAMES)
def test_ordinary_values_are_kept_in_every_place(name):
    for value in HARMLESS_VALUES:
        nested = {"model": {name: value, "more": [{name: [value]}]}}
        assert redact(nested) == nested
        words = ["fit", f"--model.{name}", value]
        assert shlex.split(redact_argv(words)) == words
        for text in (f"{name}={value}", f'{name}: "{value}"\n', f"--{name} {value}"):
            assert redact_text(text) == text
        config = yaml.safe_dump(nested)
        assert redact_config(config) == config


@pytest.mark.parametrize("text", HARMLESS_TEXTS)
def test_texts_that_only_look_like_secrets_are_kept(text):
    assert redact_text(text) == text
    assert redact({"x": text}) == {"x": text}


@pytest.mark.parametrize(
    "text",
    [
        "a" * 1_000_000,
        "QUJD" * 250_000,
        "eyJ" * 300_000,
        "token=" * 100_000,
        "sk-" * 100_000,
        "a.b-" * 250_000,
        "https://" + "a@" * 500_000,
        "-----BEGIN PRIVATE KEY-----" * 40_000,
        "Authorization: none " * 50_000,
        "Epoch 1: train/loss=0.1, token_acc=0.9\n" * 10_000,
    ],
    ids=lambda text: text[:12],
)
def test_a_big_text_takes_no_longer_than_its_length(text):
    # Where an expression were tried again from every place, this would not end today.
    assert isinstance(redact_text(text), str)
