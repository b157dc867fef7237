"""Secrets as vendors make them, with random values, and texts that hold none.

They are generated, so that no scanner takes this file for a leak.
"""

import base64
import json
import random
import string
from collections.abc import Callable

_RANDOM = random.Random(11)
_LOWER, _UPPER, _DIGITS = string.ascii_lowercase, string.ascii_uppercase, string.digits
_ANY = _LOWER + _UPPER + _DIGITS
_HEX = _DIGITS + "abcdef"
_URL = _ANY + "-_"


def some(letters: str, count: int) -> str:
    return "".join(_RANDOM.choice(letters) for _ in range(count))


def _uuid() -> str:
    return "-".join(some(_HEX, count) for count in (8, 4, 4, 4, 12))


def _segment(content: dict) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")


def private_key(kind: str) -> str:
    body = "\n".join(some(_ANY + "+/", 64) for _ in range(3))
    return f"-----BEGIN {kind}-----\n{body}\n{some(_ANY, 30)}==\n-----END {kind}-----"


FORMS: dict[str, Callable[[], str]] = {
    "aws": lambda: "AKIA" + some(_UPPER + "234567", 16),
    "github": lambda: "ghp_" + some(_ANY, 36),
    "github fine": lambda: f"github_pat_{some(_ANY, 22)}_{some(_ANY, 59)}",
    "gitlab": lambda: "glpat-" + some(_URL, 20),
    "hugging face": lambda: "hf_" + some(_LOWER + _UPPER, 34),
    "openai": lambda: f"sk-{some(_ANY, 20)}T3BlbkFJ{some(_ANY, 20)}",
    "openai project": lambda: "sk-proj-" + some(_URL, 74),
    "anthropic": lambda: f"sk-ant-api03-{some(_URL, 93)}AA",
    "google": lambda: "AIza" + some(_URL, 35),
    "stripe": lambda: "sk_live_" + some(_ANY, 24),
    "stripe restricted": lambda: "rk_live_" + some(_ANY, 24),
    "pypi": lambda: "pypi-AgEIcHlwaS5vcmc" + some(_URL, 100),
    "npm": lambda: "npm_" + some(_ANY, 36),
    "sendgrid": lambda: f"SG.{some(_URL, 22)}.{some(_URL, 43)}",
    "docker": lambda: "dckr_pat_" + some(_URL, 27),
    "slack": lambda: f"xoxb-{some(_DIGITS, 12)}-{some(_DIGITS, 12)}-{some(_ANY, 24)}",
    "slack app": lambda: f"xapp-1-A{some(_UPPER, 10)}-{some(_DIGITS, 13)}-{some(_HEX, 64)}",
    "web token": lambda: (
        f"{_segment({'alg': 'HS256'})}.{_segment({'sub': some(_ANY, 9)})}.{some(_URL, 43)}"
    ),
    "azure": lambda: some(_ANY, 86) + "==",
    "databricks": lambda: "dapi" + some(_HEX, 32),
    "vault": lambda: "hvs." + some(_URL, 95),
    "wandb": lambda: f"wandb_v1_{some(_ANY, 24)}_{some(_ANY, 40)}",
    "telegram": lambda: f"{some(_DIGITS, 10)}:AA{some(_URL, 33)}",
    "groq": lambda: "gsk_" + some(_ANY, 52),
    "age": lambda: "AGE-SECRET-KEY-1" + some("QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L", 58),
}
WEB_HOOKS: dict[str, Callable[[], str]] = {
    "slack": lambda: (
        f"https://hooks.slack.com/services/T{some(_UPPER, 8)}/B{some(_UPPER, 8)}/{some(_ANY, 24)}"
    ),
    "discord": lambda: f"https://discord.com/api/webhooks/{some(_DIGITS, 18)}/{some(_URL, 68)}",
    "teams": lambda: (
        f"https://a.webhook.office.com/webhookb2/{_uuid()}@{_uuid()}/IncomingWebhook/{some(_HEX, 32)}/{_uuid()}"
    ),
    "zapier": lambda: f"https://hooks.zapier.com/hooks/catch/{some(_DIGITS, 7)}/{some(_ANY, 8)}",
}
PRIVATE_KEYS = (
    "RSA PRIVATE KEY", "EC PRIVATE KEY", "PRIVATE KEY", "ENCRYPTED PRIVATE KEY",
    "OPENSSH PRIVATE KEY", "PGP PRIVATE KEY BLOCK",
)  # fmt: skip
NAMES = (
    "api_key", "apiKey", "API-KEY", "aPi_KeY", "OPENAI_API_KEY", "x-api-key", "apikey", "token",
    "access_token", "accessToken", "HF_TOKEN", "githubToken", "wandb_token", "use_auth_token",
    "refresh_token", "password", "PaSsWoRd", "db_password", "passwd", "passphrase", "pwd",
    "db_pass", "PGPASSWORD", "MYSQL_PWD", "password2", "secret", "client_secret", "SecretKey",
    "aws_secret_access_key", "AWS_SESSION_TOKEN", "private_key", "ssh_key", "master_key",
    "consumer_key", "consumerSecret", "signing_key", "encryption_key", "account_key", "AccountKey",
    "session_id", "sessionId", "pat", "GITHUB_PAT", "credentials", "sas_token",
    "connection_string", "authorization", "cookie", "bearer", "wandb_key", "license_key",
)  # fmt: skip
"""Names under which a value is a secret."""

HARMLESS_NAMES = (
    "pad_token", "cls_token", "mask_token", "eos_token", "bos_token", "special_tokens", "tokens",
    "token_type", "token_pooling", "gene_token", "token_dictionary_file", "token_embedding",
    "tokenizer", "token_dropout", "low_pass", "high_pass", "band_pass", "num_pass", "passes",
    "compass", "passthrough", "password_strength", "auth_mode", "author", "cookie_cutter",
    "secretory", "key", "keys", "query", "primary_key", "sort_key", "obs_key", "batch_key",
    "layer_key", "label_key", "prng_key", "key_padding_mask", "monkey", "session_length",
)  # fmt: skip
"""Names under which nothing ordinary is a secret."""

HARMLESS_VALUES = (
    "mean", "40.0", "[PAD]", "<|endoftext|>", "</s>", "▁mask", "data/genes.pkl", "human_v2",
    "ENSG00000139618", "scVI_latent", "resnet50_fpn_v2", "lamincli.demo.DigitsClassifier",
)  # fmt: skip

HARMLESS_TEXTS = (
    "gs://a/b?key=gene",
    "token=mean",
    "/data/sk-learn-experiments-2024-longname/model.ckpt",
    "runs/sk-abcdefghijklmnopqrstuv/last.ckpt",
    "abfss://container@account.dfs.core.windows.net/x",
    "https://host:8080/path@v1",
    "git+https://github.com/x/y@main",
    "git+ssh://git@github.com/x/y.git@v1.0",
    "https://zenodo.org/record/1/files/a.h5ad?download=1&key=x",
    "postgresql://user@host/db",
    "C:\\Users\\me\\token\\x",
    f"sha256:{'ab12' * 16}",
    "lamin://owner/instance/artifact/75565p0orQPHywz10000",
    "  best checkpoint key  logs/p1hm6R6aFK3yhb0f/epoch=10-step=231.ckpt  val/accuracy=0.995",
    "detect-secrets==1.5.0",
    "keyring==24.3.0",
    "tokenizers==0.15.0",
    "the token is mean pooled",
    "Basic training of tokens",
    "Authorization: none",
    "${oc.env:WANDB_API_KEY}",
    "api_key: ${oc.env:WANDB_API_KEY}",
    "api_key: $WANDB_API_KEY",
    "password: null",
    "max_tokens=512",
    "| token | count |",
    "author: A. Smith <a@b.org>",
    "def f(token: str, key: int) -> None:",
    "self.token = token",
    'api_key = os.environ["WANDB_API_KEY"]',
    "-----BEGIN CERTIFICATE-----",
    "Epoch 3: 100%|####| 12/12 [00:01<00:00, 9.1it/s, v_num=0, token_acc=0.9]",
)
"""What looks like a secret, and is none."""
