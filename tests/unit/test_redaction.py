import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamincli.redaction import (
    REDACTED,
    is_secret_key,
    redact,
    redact_argv,
    redact_line,
    redact_text,
    redacted_keys,
)

SECRET = "s3cr3t-value"


@pytest.mark.parametrize(
    "key",
    [
        "api_key", "apiKey", "API-KEY", "openai_api_key", "hub.token", "token", "auth_token",
        "password", "db_password", "dbPassword", "passwd", "secret", "client_secret",
        "aws_secret_access_key", "private_key", "credentials", "Authorization", "dsn",
        "HUGGINGFACE_HUB_TOKEN", "--model.init_args.api_key", "connection_string",
    ],
)  # fmt: skip
def test_names_of_secrets_are_known(key):
    assert is_secret_key(key)


@pytest.mark.parametrize(
    "key",
    ["tokenizer", "monitor", "key", "author", "secretary", "passage", "learning_rate", "keys",
     "tokenizer_name", "key_is_virtual", "compass", "dataset_key"],
)  # fmt: skip
def test_names_that_only_look_like_secrets_are_kept(key):
    assert not is_secret_key(key)
    assert redact({key: "value"}) == {key: "value"}


def test_secrets_are_found_at_any_depth():
    config = {"model": {"init_args": {"hub": [{"api_key": SECRET}, {"x": 1}]}}, "lr": 1e-3}
    assert redact(config) == {
        "model": {"init_args": {"hub": [{"api_key": REDACTED}, {"x": 1}]}},
        "lr": 1e-3,
    }
    assert config["model"]["init_args"]["hub"][0]["api_key"] == SECRET, "the input is untouched"


def test_what_was_taken_out_is_named_by_its_path():
    config = {
        "model": {"init_args": {"api_key": SECRET, "lr": 1e-3, "url": f"https://me:{SECRET}@h/x"}},
        "data": {"init_args": {"headers": [{"name": "token", "value": SECRET}, {"x": 1}]}},
    }
    assert redacted_keys(redact(config)) == [
        "model.init_args.api_key", "model.init_args.url", "data.init_args.headers.0.value",
    ]  # fmt: skip
    assert redacted_keys(config) == []


def test_all_below_a_secret_key_is_secret():
    assert redact({"credentials": {"user": "me", "more": [SECRET]}}) == {
        "credentials": {"user": REDACTED, "more": [REDACTED]}
    }


def test_numbers_of_tokens_are_no_secrets():
    config = {"max_tokens": 512, "token_dim": 64, "numToken": 3, "token": None, "secret": ""}
    assert redact(config) == config


@pytest.mark.parametrize("key", ["password", "access_token", "token", "pin.secret"])
def test_numbers_can_be_secrets(key):
    assert redact({key: 1234}) == {key: REDACTED}


@pytest.mark.parametrize(
    ("line", "left"),
    [
        ("api_key: abc\n", "api_key: ***REDACTED***\n"),
        ('  "token": "abc",\n', '  "token": ***REDACTED***\n'),
        ("lr: 0.1\n", "lr: 0.1\n"),
        ("db: postgres://a:b@c/d\n", "db: postgres://***REDACTED***@c/d\n"),
    ],
)
def test_lines_of_what_cannot_be_parsed_are_cleaned(line, left):
    assert redact_line(line) == left


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("postgresql://me:pw@db:5432/x", f"postgresql://{REDACTED}@db:5432/x"),
        ("postgres://me:p%40w@db/x?sslmode=require", f"postgres://{REDACTED}@db/x?sslmode=require"),
        ("https://:tok@host/p", f"https://{REDACTED}@host/p"),
        ("s3://b/k?AWSAccessKeyId=x&Signature=abc&v=1", f"&Signature={REDACTED}&v=1"),
        ("Bearer abcdefgh12345678", f"Bearer {REDACTED}"),
        ("key AKIAABCDEFGHIJKLMNOP here", f"key {REDACTED} here"),
        ("hf_abcdefghijklmnopqrstuvwx", REDACTED),
        ("ghp_abcdefghijklmnopqrstuvwxyz0123", REDACTED),
    ],
)
def test_values_of_known_form_are_found(text, left):
    assert left in redact_text(text)


@pytest.mark.parametrize(
    "text", ["https://host:8080/path", "s3://bucket/key", "a@b.c", "logs/epoch=1", "user@host:dir"]
)
def test_harmless_values_are_kept(text):
    assert redact_text(text) == text


@pytest.mark.parametrize(
    "words",
    [
        ["fit", "--model.api_key", SECRET],
        ["fit", f"--model.api_key={SECRET}"],
        ["fit", "--model", f'{{"class_path": "a.B", "init_args": {{"apiKey": "{SECRET}"}}}}'],
        ["fit", f"--data.init_args.db=postgresql://me:{SECRET}@host/db"],
        ["fit", "--x.tokens", "aaa", SECRET],
        ["fit", "--m", f"api_key={SECRET}"],
        ["fit", "--m.dict", f"a=1,token={SECRET}"],
        ["fit", "--m.conf", f'{{"api_key":\t"{SECRET}"}}'],
        ["fit", "--m.headers", f'["X-Api-Key: {SECRET}"]'],
        ["fit", "--m.conf", f'[{{"name": "api_key", "value": "{SECRET}"}}]'],
        ["fit", "--m.wandb_key", SECRET],
        ["fit", "--m.db", f"Server=x;Password={SECRET};"],
        ["fit", "--m.db", f"postgresql://u:p@{SECRET}@h/db"],
        ["fit", "--m.url", f"https://{SECRET}@host/x"],
        ["fit", "--data.headers", f'["Authorization: Bearer {SECRET}"]'],
    ],
)
def test_secrets_on_the_command_line_are_found(words):
    assert SECRET not in redact_argv(words)


def test_command_line_is_quoted_and_otherwise_kept():
    import shlex

    words = ["fit", "--model.name", "a b", "--x={'a': 1}", "--trainer.max_epochs", "3"]
    assert shlex.split(redact_argv(words)) == words


NESTED = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(NESTED)
def test_redaction_never_fails_and_is_done_in_one_go(value):
    once = redact(value)
    assert redact(once) == once


@given(NESTED, st.lists(st.text(), max_size=3))
def test_no_string_below_a_secret_key_survives(value, path):
    config = {"api_key": value}
    for key in path:
        config = {key: [config]}

    def strings(node):
        if isinstance(node, dict):
            return [s for v in node.values() for s in strings(v)]
        if isinstance(node, list):
            return [s for v in node for s in strings(v)]
        return [node] if isinstance(node, str) else []

    assert all(s in ("", REDACTED) for s in strings(redact(config)))
