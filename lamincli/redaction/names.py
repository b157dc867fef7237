"""What the name of a value says: whether a secret stands under it.

A name is read as words (``hub.apiKey`` → hub, api, key), of which none decides alone:
``access_token`` is a secret, ``pad_token`` a mark, ``token_dim`` a number, and what stands under
``token`` may be either. So a name tells how much its value has yet to show.
"""

import re
import unicodedata
from enum import IntEnum
from functools import lru_cache


class Kind(IntEnum):
    """How sure a name makes it that its value is a secret, in rising order."""

    NONE = 0
    RANDOM = 1
    """A secret if it looks as if a generator had made it: ``session_id``, ``my_token``."""
    LIKELY = 2
    """A secret unless it is an ordinary word, a mark or a path: ``token``, ``auth``."""
    HOOK = 3
    """A secret if it is a URL: ``webhook``."""
    PLACE = 4
    """A secret unless it is the path of one: ``ssh_key``, ``credentials``."""
    SURE = 5
    """A secret."""


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_SURE = _set(
    "password passwords passwd passphrase passcode pswd passwort kennwort contraseña contrasena"
    " senha motdepasse wachtwoord lösenord пароль 密码 口令 パスワード 비밀번호 密钥 secret secrets"
    " apikey apikeys bearer sshpass pgpassword phpsessid jsessionid seedphrase"
)
_LIKELY = _set("token auth authorization pass dsn")
_PLACES = _set("credential credentials creds pwd")
_RANDOM = _set("tokens pw pat sessionid sessid cookie cookies sas mnemonic otp")
_HOOKS = _set("webhook webhooks")

_VENDORS = _set(
    "wandb openai anthropic cohere comet neptune mistral groq gemini google gcp azure aws hf"
    " huggingface github gh gitlab bitbucket slack discord telegram stripe sendgrid twilio mailgun"
    " mailchimp datadog sentry newrelic pinecone weaviate qdrant serpapi tavily kaggle zenodo"
    " dagshub mlflow clearml deepseek voyage nvidia ngc roboflow labelbox lamin lamindb s3 minio"
    " boto vault snowflake databricks redis mongo mongodb postgres postgresql mysql npm pypi twine"
    " docker dockerhub quay heroku circleci travis codecov sonar snyk netlify vercel cloudflare"
    " digitalocean linode doppler grafana okta airtable jira atlassian confluence figma shopify"
    " square paypal plaid dropbox algolia mapbox supabase firebase runpod coreweave beaker"
    " elevenlabs assemblyai deepgram langsmith langfuse langchain hubspot intercom zendesk"
    " pagerduty opsgenie rapidapi alchemy infura synapse dnanexus ncbi entrez pulumi terraform"
    " prefect airflow dagster argilla ghcr"
)
_OF_KEYS = _VENDORS | _set(
    "api access account private secret signing encryption encrypt decrypt decryption license"
    " licence ssh master consumer deploy deployment auth authentication authorization shared hmac"
    " aes rsa ecdsa ed25519 pgp gpg ssl tls pem jwt subscription admin integration ingestion"
    " storageaccount sharedaccess apim"
)
_PLACES_OF_KEYS = _set("private ssh deploy pem rsa gpg pgp ssl tls license licence")
_MAYBE_OF_KEYS = _set("session service client app application user host root")
_OF_TOKENS = _VENDORS | _set(
    "access auth authentication authorization api bot bearer refresh session security sas oauth"
    " oauth2 personal secret private deploy registry csrf xsrf jwt hub webhook login"
)
_LIKELY_OF_TOKENS = _set("id user app client service upload admin device push job")
_OF_MARKS = _set(
    "pad padding cls class mask masked eos bos unk unknown sep special gene genes cell image img"
    " video audio text start end begin stop next last first query register prompt vision patch mem"
    " memory latent content separator additional extra new prefix suffix placeholder pred target"
    " source time word space blank null empty subword byte char max min num n no avg mean total"
    " per init split visual speech dummy soft hard think eot eom bos_eos modality species organ"
    " batch domain task"
)
_OF_PASSES = _VENDORS | _set(
    "db database user my sql pg smtp mail email imap ftp sftp ssh admin root http https proxy auth"
    " login account ldap elastic kafka rabbitmq amqp broker key store keystore sudo vpn wifi"
)

# After the name of a secret: it is the same still.
_SAME = _set(
    "value values string str text raw plain data pem base64 b64 default primary secondary main"
    " backup prod production dev development stage staging test testing old new current header"
    " for of in v"
)
# After the name of a secret: it tells something about it.
_ABOUT = _set(
    "mode modes type types method methods strength length len size sizes file files filename path"
    " paths dir directory folder name names ids url uri urls endpoint policy env var variable"
    " envvar field fields column columns col count counts num number limit limits max min ttl"
    " expiry expires expiration expire rotation manager provider version format pattern patterns"
    " regex rule rules required enabled enable disabled class cls kwargs args config cfg scope"
    " scopes algorithm source location store arn ref reference label labels map mapping hint prompt"
    " reset change changed changes check checker checks validator validation generator encoder"
    " decoder model loss weight weights ratio prob rate level levels index idx prefix suffix"
    " position order separator sep user username owner email title description help table schema"
    " server service host port fn func function callback handler builder factory reader writer"
    " loader parser cache set group groups detection detector scanner scanning sharing santa"
    " manager_name is has use list alias style engine backend plugin template helper helpers"
    " module code timeout interval period retries retry"
)

_WORD_BREAK = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_NO_WORD = re.compile(r"[\W_]+")
_NUMBERED = re.compile(r"(?<=\D)\d{1,4}$")
_RUN_ON = re.compile(
    r"(?:password|passwd|passphrase|api_?key|secret_?key|access_?key|private_?key|master_?key"
    r"|encryption_?key|signing_?key|consumer_?key|account_?key|license_?key|(?:client|app|consumer"
    r"|token|api|aws|shared)secret|topsecret|(?:auth|access|api|bot|refresh|bearer|github|gitlab"
    r"|hf|wandb|slack|npm|pypi)token)s?$"
)
_FILE_NAME = re.compile(
    r"\.(?:pyi?|ipynb|ya?ml|json|toml|cfg|ini|txt|md|log|[ct]sv|parquet|h5(?:ad)?|pt|pth|ckpt|npz?|pkl"
    r"|gz|zip|sh|pem|pub)$",
    re.IGNORECASE,
)
_LONGEST = 200


@lru_cache(maxsize=8192)
def kind_of(name: str) -> Kind:
    """Return what a name says of its value: ``hub.apiKey``, ``--db-password``, ``X-Auth-Token``.

    In a path such as ``secrets.wandb`` every part counts, for what lies below a secret is secret.
    What is called as a file, ``secrets.py``, is about that file.
    """
    if _FILE_NAME.search(name):
        return Kind.NONE
    name = unicodedata.normalize("NFKC", name[-_LONGEST:]).strip("-_ \t")
    parts = [part for part in name.split(".") if part]
    last = len(parts) - 1
    kinds = [_kind_of_part(part, is_last=index == last) for index, part in enumerate(parts)]
    if kinds and kinds[-1] is Kind.NONE and _ABOUT.issuperset(_words(parts[-1])):
        kinds = [kind for kind in kinds if kind is Kind.SURE]  # `credentials.url`
    return max(kinds, default=Kind.NONE)


def is_secret_key(key: str) -> bool:
    """Tell whether a name says that a secret stands under it."""
    return kind_of(key) >= Kind.LIKELY


def _kind_of_part(part: str, is_last: bool) -> Kind:
    # Also as one case, for those who write `PassWord` or `aPI_kEY`.
    readings = {_words(_WORD_BREAK.sub("_", part)), _words(part)}
    kind = max(_kind_of_words(words) for words in readings)
    return kind if is_last or kind >= Kind.PLACE else Kind.NONE


def _words(text: str) -> tuple[str, ...]:
    words = (_NUMBERED.sub("", word) for word in _NO_WORD.split(text.lower()))
    return tuple(word for word in words if word)


def _kind_of_words(words: tuple[str, ...]) -> Kind:
    kinds = [_kind_at(words, index) for index in range(len(words))]
    return max((_continued(kind, words[end:]) for kind, end in kinds), default=Kind.NONE)


def _kind_at(words: tuple[str, ...], index: int) -> tuple[Kind, int]:
    """Return what a word says with those before it, and where what was read ends."""
    word, before = words[index], words[index - 1] if index else ""
    end = index + 1
    if index and words[index - 1 : index + 2] == ("access", "key", "id"):
        return Kind.SURE, end + 1  # AWS's, which is half of a pair
    if word in _SURE or _RUN_ON.search(word):
        return Kind.SURE, end
    if word in ("key", "keys"):
        return _kind_of_keys(before), end
    if word in ("token", "tokens") and before:
        return _kind_of_tokens(before, words[:index]), end
    if word == "pass" and before:
        return (Kind.SURE if before in _OF_PASSES else Kind.RANDOM), end
    if word == "phrase" and before in ("pass", "seed"):
        return Kind.SURE, end
    if (word, before) in (("string", "connection"), ("str", "conn"), ("str", "connection")):
        return Kind.LIKELY, end
    if (word, before) in (("id", "session"), ("code", "recovery"), ("codes", "recovery")):
        return Kind.RANDOM, end
    if word in _PLACES:
        return Kind.PLACE, end
    if word in _HOOKS:
        return Kind.HOOK, end
    if word in _LIKELY:
        is_alone = not before or before in ("proxy", "x") or word in ("dsn", "authorization")
        return (Kind.LIKELY if is_alone else Kind.RANDOM), end
    return (Kind.RANDOM if word in _RANDOM else Kind.NONE), end


def _kind_of_keys(before: str) -> Kind:
    if before in _PLACES_OF_KEYS:
        return Kind.PLACE
    if before in _OF_KEYS:
        return Kind.SURE
    return Kind.RANDOM if before in _MAYBE_OF_KEYS else Kind.NONE


def _kind_of_tokens(before: str, earlier: tuple[str, ...]) -> Kind:
    if before in _OF_TOKENS:
        return Kind.SURE
    if _OF_MARKS.intersection(earlier):
        return Kind.NONE
    return Kind.LIKELY if before in _LIKELY_OF_TOKENS else Kind.RANDOM


def _continued(kind: Kind, rest: tuple[str, ...]) -> Kind:
    """Return what is left of a kind, given the words that follow what was read."""
    rest = tuple(word for word in rest if word not in _SAME and not word.isdigit())
    if not rest or kind is Kind.NONE:
        return kind
    if kind is Kind.HOOK:
        return kind if rest[0] in ("url", "uri", "urls", "endpoint") else Kind.NONE
    if rest[0] == "id":
        return Kind.RANDOM
    if rest[0] in ("hash", "salt"):
        return kind if kind is Kind.SURE else Kind.NONE
    if rest[0] in _ABOUT or kind < Kind.PLACE:
        return Kind.NONE
    return Kind.LIKELY
