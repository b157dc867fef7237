"""Hard-coded secrets are told by line and name, before the code is published as it is."""

import pytest
from unit.secrets_of_test import FORMS, private_key

from lamincli.redaction import secrets_in_code
from lamincli.redaction.code import HardCoded

TOKEN = FORMS["github"]()


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ('API_KEY = "s3cr3t-value"', "API_KEY"),
        ('self.password: str = "s3cr3t-value"', "password"),
        ('os.environ["WANDB_API_KEY"] = "s3cr3t-value"', "WANDB_API_KEY"),
        ('os.environ.setdefault("WANDB_API_KEY", "s3cr3t-value")', "WANDB_API_KEY"),
        ('config = {"lr": 1, "api_key": "s3cr3t-value"}', "api_key"),
        ('connect(user="me", password="s3cr3t-value")', "password"),
        ('def f(lr=1, *, token="s3cr3t-value"): ...', "token"),
        ('user, password = "me", "s3cr3t-value"', "password"),
        ('api_keys = ["s3cr3t-value"]', "api_keys"),
        ('parser.add_argument("--api-key", default="s3cr3t-value")', "--api-key"),
        ('wandb.login(key="0a1b2c3d4e5f60718293a4b5c6d7e8f901234567")', "login"),
        (f'x = "{TOKEN}"', "x"),
        (f"# {TOKEN}", ""),
        (f'run("{TOKEN}")', ""),
        ('db = "postgresql://me:s3cr3t-value@host/db"', "db"),
        (f'"""{private_key("PRIVATE KEY")}"""', ""),
        ('%cd x\nAPI_KEY = "s3cr3t-value"', "API_KEY"),  # a notebook's, which does not parse
    ],
)
def test_secrets_in_code_are_found_with_line_and_name(code, name):
    line = 3 + code.startswith("%")
    (found, *more) = secrets_in_code(f"import os\n\n{code}\n")
    assert (found.line, found.name) == (line, name)
    assert not more
    assert "s3cr3t" not in str(found)


def test_code_without_secrets_tells_nothing():
    code = """
import os
PAD_TOKEN = "[PAD]"
TOKEN = "token"
SECRET = "client_secret"
SECRET_NAME, PASSWORD = "accessToken", "password"
API_KEY = os.environ["WANDB_API_KEY"]
password = getpass("Password: ")
KEYS = {"batch_key": "batch", "layer_key": "counts_v2"}
def f(tokenizer="bpe", pooling_token="cls", api_key=None, password=""): ...
parser.add_argument("--token", help="The token of the hub, as hf_...", default=None)
url = "https://github.com/o/r@main"
token = "${oc.env:HF_TOKEN}"
# the api_key is read from the environment
"""
    assert secrets_in_code(code) == []


@pytest.mark.parametrize(
    "code", ["", "\x00", "(" * 10_000, "def f(:\n", "é = 'ü'\n", "x = 1 +\n" * 99]
)
def test_code_of_any_kind_is_read(code):
    assert secrets_in_code(code) == []


def test_own_code_is_without_secrets():
    from pathlib import Path

    import lamincli

    for file in Path(lamincli.__file__).parent.rglob("*.py"):
        assert secrets_in_code(file.read_text()) == [], file


def test_place_is_told_in_words():
    assert str(HardCoded(3, "API_KEY")) == "API_KEY in line 3"
    assert str(HardCoded(4)) == "line 4"
