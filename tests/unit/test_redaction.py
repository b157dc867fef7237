import argparse
import collections
import json
import pathlib
import sys
import types
from dataclasses import dataclass, field
from typing import NamedTuple

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lamincli.redaction import (
    REDACTED,
    forget,
    is_secret_key,
    learn,
    redact,
    redact_argv,
    redact_config,
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


@pytest.mark.parametrize("value", [1234, 0.5, True, 10**30, complex(1, 2), None])
def test_numbers_and_booleans_are_never_secrets(value):
    config = dict.fromkeys(("password", "access_token", "token", "pin.secret"), value)
    assert redact(config) == config


def test_where_a_secret_is_taken_from_is_no_secret():
    config = {
        "api_key": "${oc.env:WANDB_API_KEY}",
        "token": "$HF_TOKEN",
        "password": "{{ password }}",
        "api_key_env": "WANDB_API_KEY",
        "client_secret": "???",
        "ssh_key": "~/.ssh/id_ed25519",
        "credentials": "/home/me/keys.json",
        "password_file": "/run/secrets/db",
    }
    assert redact(config) == config


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


@pytest.mark.parametrize("value", ["${oc.env:KEY,s3cr3t-value}", "${KEY:-s3cr3t-value}"])
def test_what_stands_for_a_variable_that_is_not_set_is_a_secret(value):
    assert redact({"api_key": value}) == {"api_key": REDACTED}
    assert redact({"api_key": "${oc.env:KEY,null}"}) == {"api_key": "${oc.env:KEY,null}"}


def test_a_secret_that_has_a_name_in_one_place_is_known_in_all():
    config = {"note": f"it is {SECRET}!", "db": {"password": SECRET}, "of": {SECRET: 1}}
    clean = {"note": f"it is {REDACTED}!", "db": {"password": REDACTED}, "of": {REDACTED: 1}}
    assert redact(config) == clean
    assert yaml.safe_load(redact_config(yaml.safe_dump(config))) == clean


# -- shapes ----------------------------------------------------------------------------------------


class Login(NamedTuple):
    user: str
    password: str


@dataclass(frozen=True)
class Hub:
    api_key: str = SECRET
    lr: float = 0.1


@dataclass
class Nested:
    hub: Hub = field(default_factory=Hub)


@pytest.mark.parametrize(
    "value",
    [
        collections.OrderedDict(lr=1, api_key=SECRET),
        collections.defaultdict(dict, {"api_key": SECRET}),
        {"api_keys": {SECRET}},
        {"api_keys": frozenset([SECRET])},
        {"password": SECRET.encode()},
        {"password": bytearray(SECRET.encode())},
        Login("me", SECRET),
        Nested(),
        argparse.Namespace(api_key=SECRET),
        types.SimpleNamespace(api_key=SECRET),
        collections.deque([{"api_key": SECRET}], maxlen=3),
        collections.UserDict({"api_key": SECRET}),
        (("api_key", SECRET),),
        {"private_key": pathlib.PurePosixPath(SECRET)},
        {"url": pathlib.PurePosixPath(f"https://me:{SECRET}@host/x")},
    ],
    ids=lambda value: type(value).__name__,
)
def test_containers_of_all_kinds_stay_what_they_are(value):
    clean = redact(value)
    assert SECRET not in repr(clean)
    assert type(clean) is type(value)
    assert SECRET in repr(value), "the input is untouched"


def test_odd_values_never_raise():
    class Odd(dict):
        def items(self):
            raise RuntimeError("no")

    deep: dict = {}
    below = deep
    for _ in range(10_000):
        below["a"] = {}
        below = below["a"]
    round_: list = [SECRET]
    round_.append({"token": round_})
    wide: list = [SECRET]
    for _ in range(100):  # 2 ** 100 ways lead to the secret
        wide = [wide, wide]
    for value in (Odd(a=1), deep, round_, wide, object(), {(1, "a"): {b"x": [{1, 2}]}}, Odd):
        redact({"x": value, "api_key": value})
        learn(value)


def test_keys_that_are_secrets_do_not_become_one():
    tokens = ["ghp_" + letter * 30 for letter in "ab"]
    assert redact(dict.fromkeys(tokens, 1)) == {REDACTED: 1, f"{REDACTED} (2)": 1}


# -- URLs and headers ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "password", ["pa/ss/w0rd", "pa@ss@w0rd", "pa:ss:w0rd", "a/b@c:d/e", "12/3@4"]
)
@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:{}@db.example.org:5432/x",
        "https://me:{}@example.org/path",
        "redis://:{}@cache:6379/0",
        "mongodb+srv://me:{}@c0.mongodb.net/db?retryWrites=true",
        "git+https://bot:{}@github.com/org/repo.git@main#egg=x",
    ],
)
def test_passwords_in_urls_may_hold_any_sign(url, password):
    text = f"GET {url.format(password)} failed"
    left = redact_text(text)
    assert password not in left
    assert password[-4:] not in left
    assert left.startswith(f"GET {url.partition('://')[0]}://{REDACTED}@")
    assert left.endswith(" failed")


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("-e git+https://ghx@github.com/o/r.git@abc#egg=x", f"-e git+https://{REDACTED}@github.com/o/r.git@abc#egg=x"),
        ("p @ git+https://u:ghx@gitlab.com/o/r.git@abc", f"p @ git+https://{REDACTED}@gitlab.com/o/r.git@abc"),
        ("--extra-index-url https://u:pw@pypi.org/simple", f"--extra-index-url https://{REDACTED}@pypi.org/simple"),
    ],
)  # fmt: skip
def test_environment_files_keep_what_was_installed(text, left):
    assert redact_text(text) == left


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Token {}", "Authorization: ApiKey {}", "authorization: bearer {}",
        "AUTHORIZATION: BEARER {}", "Authorization: {}", "Authorization: Some-Scheme {}",
        "Proxy-Authorization: Basic {}", "X-Api-Key: {}", "PRIVATE-TOKEN: {}", "Cookie: id={}",
        "curl -H 'Authorization: Token {}' https://x.org", "bearer {}", "BEARER {}", "ApiKey {}",
        "curl -u me:{} https://x.org", "machine h login me password {}", "default login x password {}",
        "machine h\n  login me\n  password {}\n", "Server=x;Uid=me;Pwd={};", "AccountKey={};Suffix=x",
        "https://x.org/?access_token={}&a=1", "https://h/c?sv=2022&sig={}", "sshpass -p {} ssh h",
        "db.host:5432:app:me:{}", "<add key='Password' value='{}'/>", "headers['api_key'] = '{}'",
        'os.environ["API_KEY"] = "{}"', "password -> {}", "the api key is {}", "{{'token': '{}'}}",
    ],
)  # fmt: skip
def test_headers_and_grammars_of_programs_are_known(text):
    assert "s3cr3tVAl77x" not in redact_text(text.format("s3cr3tVAl77x"))


# -- the text of a config --------------------------------------------------------------------------


def test_published_config_names_what_was_taken_out():
    text = f"model:\n  init_args: {{api_key: {SECRET}, lr: 0.1}}\ndata: [{{token: {SECRET}}}]\n"
    clean = redact_config(text)
    head, _, rest = clean.partition("\n")
    assert head == "# Taken out of this copy: model.init_args.api_key, data.0.token"
    assert rest == text.replace(SECRET, json.dumps(REDACTED)), "the rest is what it was"
    assert redact_config(clean) == clean, "it is said once"


def test_config_without_secrets_is_published_as_it_is():
    text = "# mine\nmodel: &m\n  pad_token: '<pad>'  # a mark\nother: *m\n"
    assert redact_config(text) == text


def test_comments_of_a_config_are_cleaned():
    text = f"# token: {SECRET}\nlr: 0.1  # password: {SECRET}\n#   api_key: {SECRET}\n"
    clean = redact_config(text)
    assert SECRET not in clean
    assert yaml.safe_load(clean) == {"lr": 0.1}
    assert clean.startswith("# Taken out of this copy: ")


@pytest.mark.parametrize(
    "text",
    [
        f"a: &a {SECRET}\napi_key: *a\n",
        f"base: &b {{api_key: {SECRET}}}\nmodel:\n  <<: *b\n  lr: 1\n",
        f"api_key: {SECRET}\napi_key: null\n",
        f"lr: 1\n---\napi_key: {SECRET}\n---\n[{{token: {SECRET}}}]\n",
        f"password: |\n  {SECRET}\n  more\nlr: 1\n",
        f"password: >-\n  {SECRET}\n\nlr: 1\n",
        f"password:\n  {SECRET}\n  and so on\nlr: 1\n",
        f"? api_key\n: {SECRET}\n",
        f'"api\\u005fkey": "{SECRET}"\n',
        f"h: !!python/object/apply:collections.OrderedDict\n- - - api_key\n    - {SECRET}\n",
        f"api_keys: !!set {{{SECRET}: null}}\n",
        "password: !!binary |\n  czNjcjN0LXZhbHVl\n",
        f"login: !!python/object/new:{__name__}.Login\n- me\n- {SECRET}\n",
        f"login: !!python/object/new:gone.Credentials\n- {SECRET}\n",
        f"hub: !!python/object:{__name__}.Hub\n  api_key: {SECRET}\n",
        f"x: !ENV ${{A}}\ntoken: !vault {SECRET}\n",
        f"\ufeffapi_key: {SECRET}\n",
        f"%YAML 1.1\n---\napi_key: {SECRET}\n",
        f"api_key: {SECRET}\r\nlr: 1\r\n",
        f"größe: 1\nключ: 'ü'\napi_key: {SECRET}\n",
        f'{{"api_key": "{SECRET}", "lr": 1}}',
        f"[model]\napi_key = '{SECRET}'\n[db]\nurl = 'postgres://a:{SECRET}@h/d'\n",  # TOML
        f"lr: [1\napi_key: {SECRET}\n",  # torn
        f"cmd: 'tool --api-key {SECRET}'\n",
        f"env: [{{name: API_KEY, value: {SECRET}}}]\n",
    ],
)
def test_no_form_of_yaml_hides_a_secret(text):
    clean = redact_config(text)
    assert SECRET not in clean
    assert "czNjcjN0" not in clean
    assert "# Taken out of this copy" in clean or clean.startswith("{")


def test_what_lies_around_a_secret_stays():
    text = (
        "# head\nmodel: !!python/tuple\n- &k 'x'\n- *k\n"
        f"key: |\n  -----BEGIN PRIVATE KEY-----\n  {'A' * 64}\n  -----END PRIVATE KEY-----\n"
        "data: {a: 1, b: [c, d]} # tail\n"
    )
    clean = redact_config(text)
    assert clean.splitlines()[1:] == [
        "# head", "model: !!python/tuple", "- &k 'x'", "- *k",
        f"key: {json.dumps(REDACTED + chr(10))}", "data: {a: 1, b: [c, d]} # tail",
    ]  # fmt: skip


WORDS = st.sampled_from(["api_key", "lr", "url", "token", "pad_token", "x", "name", "value"])
SCALARS = st.sampled_from(
    [SECRET, "adam", "a # b", "x: y", "- z", "", "ü\n\nb\n", " c", "'d", '"', "*e"]
)
CONFIGS = st.recursive(
    SCALARS | st.integers() | st.booleans() | st.none() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=12,
)


@given(
    st.dictionaries(WORDS, CONFIGS, min_size=1), st.sampled_from([None, True, False]), st.booleans()
)
def test_a_cleaned_config_parses_to_the_cleaned_values(config, style, is_wide):
    text = yaml.safe_dump(config, default_flow_style=style, width=10 if is_wide else 1000)
    assert yaml.safe_load(redact_config(text)) == redact(config)


# -- values that are known -------------------------------------------------------------------------


@pytest.fixture
def nothing_known():
    forget()
    yield
    forget()


def test_a_secret_of_the_config_is_known_by_its_value_elsewhere(nothing_known):
    value = 'Tr0ub4dor&3"/x'
    learn({"db": {"password": value}})
    for text in (f"connecting with {value}!", json.dumps(f"<{value}>"), "?q=Tr0ub4dor%263%22%2Fx"):
        assert "Tr0ub4dor" not in redact_text(text)
    assert redact({"note": value}) == {"note": REDACTED}
    assert "Tr0ub4dor" not in redact_argv(["fit", "--model.note", value])
    assert "Tr0ub4dor" not in redact_config(yaml.safe_dump({"note": value}))


def test_words_are_not_known_as_secrets(nothing_known):
    learn({"password": "yaml", "secret": "sample", "token": "collections", "api_key": "pytest"})
    learn({"x": {"lr": "0.1", "name": "classifier"}})
    text = "yaml sample collections pytest classifier"
    assert "collections" in sys.modules
    assert redact_text(text) == text


@pytest.mark.parametrize("name", ["smb_pass", "repo_pass", "db_pw", "pw"])
def test_passwords_of_services_that_no_list_knows(name):
    assert redact({name: "Zx9qLw72VbTr4KpN8sYd"}) == {name: REDACTED}
    for harmless in ("first", "low", 40.0, True, None, "forward"):
        assert redact({name: harmless}) == {name: harmless}
