"""Secrets that are known by their form, whatever they are called.

The forms are those that the vendors document, so that scanners find what has leaked. Each is looked
for by a part of it that is the same in all, which costs a search for that part and no more; behind
it, every expression is tried once a place and either takes what it has read or stops at a length
that is known, so that the time is linear in the text.
"""

import re
from collections.abc import Callable
from functools import cache

from lamincli.redaction.values import REDACTED, looks_random

# What they begin with, and what follows. What precedes is no letter or digit, but may be `\n`.
_PREFIXED: tuple[tuple[str, str], ...] = (
    # clouds
    ("AKIA", r"[A-Z0-9]{16}(?![A-Z0-9])(?:[,:\s\"']{1,4}[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+]))?"),
    ("ASIA", r"[A-Z0-9]{16}(?![A-Z0-9])(?:[,:\s\"']{1,4}[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+]))?"),
    ("ABIA", r"[A-Z0-9]{16}(?![A-Z0-9])"),
    ("ACCA", r"[A-Z0-9]{16}(?![A-Z0-9])"),
    ("ABSK", r"[A-Za-z0-9+/]{100,}={0,2}"),  # Bedrock
    ("AIza", r"[A-Za-z0-9_\-]{35}"),  # Google
    ("ya29.", r"[A-Za-z0-9_\-]{20,}"),
    ("1//0", r"[A-Za-z0-9_\-]{30,}"),
    ("GOCSPX-", r"[A-Za-z0-9_\-]{20,}"),
    ("LTAI", r"[A-Za-z0-9]{16,24}(?![A-Za-z0-9])"),  # Alibaba
    ("dop_v1_", r"[a-f0-9]{40,}"),
    ("doo_v1_", r"[a-f0-9]{40,}"),
    ("dor_v1_", r"[a-f0-9]{40,}"),
    ("HRKU-", r"[A-Za-z0-9_\-]{36,}"),
    ("fo1_", r"[A-Za-z0-9_\-]{43}"),
    ("fm2_", r"[A-Za-z0-9+/]{50,}={0,3}"),
    # code and packages
    *((f"gh{kind}_", r"[A-Za-z0-9]{20,}") for kind in "pousr"),
    ("github_pat_", r"[A-Za-z0-9_]{20,}"),
    *(
        (f"gl{kind}-", r"[A-Za-z0-9_\-.]{16,}")
        for kind in ("pat", "dt", "rt", "cbt", "ptt", "ft", "imt", "agent", "oas", "soat", "ffct")
    ),
    ("GR1348941", r"[A-Za-z0-9_\-]{20,}"),
    ("ATATT3", r"[A-Za-z0-9_\-=]{50,}"),
    ("ATBB", r"[A-Za-z0-9]{28,}"),
    ("pypi-", r"[A-Za-z0-9_\-]{30,}"),
    ("npm_", r"[A-Za-z0-9]{30,}"),
    ("rubygems_", r"[a-f0-9]{40,}"),
    ("CLOJARS_", r"[a-z0-9]{50,}"),
    ("oy2", r"[a-z0-9]{43}(?![A-Za-z0-9])"),  # NuGet
    ("dckr_pat_", r"[A-Za-z0-9_\-]{20,}"),
    ("dckr_oat_", r"[A-Za-z0-9_\-]{20,}"),
    ("AKCp", r"[A-Za-z0-9]{60,}"),
    ("sgp_", r"[A-Za-z0-9_]{40,}"),
    ("sqp_", r"[a-f0-9]{40}"),
    ("squ_", r"[a-f0-9]{40}"),
    ("sqa_", r"[a-f0-9]{40}"),
    # models and experiments
    ("hf_", r"[A-Za-z0-9]{20,40}(?![A-Za-z0-9_])"),
    ("api_org_", r"[A-Za-z0-9]{20,}"),
    ("sk-ant-", r"[A-Za-z0-9_\-]{20,}"),
    ("sk-proj-", r"[A-Za-z0-9_\-]{20,}"),
    ("sk-svcacct-", r"[A-Za-z0-9_\-]{20,}"),
    ("sk-admin-", r"[A-Za-z0-9_\-]{20,}"),
    ("sk-or-v1-", r"[A-Za-z0-9]{20,}"),
    ("sk-", r"(?<![/\\]sk-)[A-Za-z0-9]{20,}(?![A-Za-z0-9_\-/])"),
    ("sk-", r"(?<![/\\]sk-)[A-Za-z0-9_\-]{20,100}(?![\w\-/])"),
    ("gsk_", r"[A-Za-z0-9]{40,}"),
    ("pplx-", r"[A-Za-z0-9]{40,}"),
    ("r8_", r"[A-Za-z0-9]{30,}"),
    ("xai-", r"[A-Za-z0-9]{40,}"),
    ("nvapi-", r"[A-Za-z0-9_\-]{40,}"),
    ("tvly-", r"[A-Za-z0-9\-]{20,}"),
    ("lsv2_pt_", r"[A-Za-z0-9_]{30,}"),
    ("lsv2_sk_", r"[A-Za-z0-9_]{30,}"),
    ("wandb_v1_", r"[A-Za-z0-9_\-]{30,}"),
    ("pnu_", r"[A-Za-z0-9]{36}"),
    # messages and money
    *((f"xox{kind}-", r"[A-Za-z0-9\-]{10,}") for kind in "abeprs"),
    ("xoxo-", r"\d[A-Za-z0-9\-]{10,}"),
    ("xoxe.xox", r"[bp]-[A-Za-z0-9\-]{10,}"),
    ("xapp-", r"\d-[A-Za-z0-9\-]{20,}"),
    ("SG.", r"[A-Za-z0-9_\-]{16,32}\.[A-Za-z0-9_\-]{16,}"),
    ("xkeysib-", r"[a-f0-9]{40,}(?:-[A-Za-z0-9]{16})?"),
    ("key-", r"[a-f0-9]{32}(?![A-Za-z0-9])"),
    ("SK", r"[a-f0-9]{32}(?![A-Za-z0-9])"),
    *(
        (f"{kind}_{mode}_", r"[A-Za-z0-9]{10,}")
        for kind in ("sk", "rk")
        for mode in ("live", "test", "prod")
    ),
    ("whsec_", r"[A-Za-z0-9+/=]{20,}"),
    ("sq0atp-", r"[A-Za-z0-9_\-]{20,}"),
    ("sq0csp-", r"[A-Za-z0-9_\-]{20,}"),
    ("EAAM", r"[A-Za-z0-9]{100,}"),
    ("EAAC", r"[A-Za-z0-9]{100,}"),
    ("EAAA", r"[A-Za-z0-9_\-]{56,60}(?![A-Za-z0-9_\-])"),
    *((f"shp{kind}_", r"[a-fA-F0-9]{32}") for kind in ("at", "ca", "pa", "ss")),
    ("EZAK", r"[A-Za-z0-9]{54}"),
    ("EZTK", r"[A-Za-z0-9]{54}"),
    ("FLWSECK", r"[A-Za-z0-9_\-]{12,}"),
    # services
    ("dapi", r"[a-f0-9]{32}(?:-\d)?(?![A-Za-z0-9])"),
    ("hvs.", r"[A-Za-z0-9_\-]{20,}"),
    ("hvb.", r"[A-Za-z0-9_\-]{20,}"),
    ("hvr.", r"[A-Za-z0-9_\-]{20,}"),
    *((f"dp.{kind}.", r"[A-Za-z0-9]{40,}") for kind in ("pt", "st", "ct", "sa", "scim", "audit")),
    ("glsa_", r"[A-Za-z0-9]{32}_[A-Fa-f0-9]{8}"),
    ("glc_", r"[A-Za-z0-9+/]{32,}={0,3}"),
    ("NRAK-", r"[A-Z0-9]{27}"),
    ("NRII-", r"[A-Za-z0-9\-]{32}"),
    ("lin_api_", r"[A-Za-z0-9]{40}"),
    ("lin_oauth_", r"[A-Za-z0-9]{40,}"),
    ("ntn_", r"[A-Za-z0-9]{40,}"),
    ("secret_", r"[A-Za-z0-9]{43}(?![A-Za-z0-9])"),
    ("PMAK-", r"[a-f0-9]{24}-[a-f0-9]{34}"),
    ("pul-", r"[a-f0-9]{40}"),
    ("pscale_", r"(?:tkn|oauth|pw)_[A-Za-z0-9_=.\-]{32,}"),
    ("sntryu_", r"[a-f0-9]{64}"),
    ("sntrys_", r"[A-Za-z0-9+/=_]{40,}"),
    ("figd_", r"[A-Za-z0-9_\-]{40,}"),
    ("sbp_", r"[a-f0-9]{40}"),
    ("sha256~", r"[A-Za-z0-9_\-]{43}"),
    ("dt0c01.", r"[A-Za-z0-9]{24}\.[A-Za-z0-9]{64}"),
    ("rdme_", r"[a-z0-9]{70}"),
    ("A3-", r"[A-Z0-9]{6}-(?:[A-Z0-9]{11}|[A-Z0-9]{6}-[A-Z0-9]{5})(?:-[A-Z0-9]{5}){3}"),
    ("ops_eyJ", r"[A-Za-z0-9+/]{100,}={0,3}"),
    ("AGE-SECRET-KEY-1", r"[A-Z0-9]{58}"),
    ("tskey-", r"[A-Za-z0-9\-]{20,}"),
    ("doppler-", r"[A-Za-z0-9]{40,}"),
    ("v1.0-", r"[a-f0-9]{24}-[a-f0-9]{146}"),
)  # fmt: skip
# Web hooks: who knows the address may write there. The host is kept.
_HOOKS: tuple[tuple[str, str], ...] = (
    ("hooks.slack.com/", r"(?:services|workflows|triggers)/[\w\-/]{20,}"),
    ("discord.com/api/webhooks/", r"\d+/[\w\-]{20,}"),
    ("discordapp.com/api/webhooks/", r"\d+/[\w\-]{20,}"),
    ("discord.com/api/v", r"\d+/webhooks/\d+/[\w\-]{20,}"),
    (".webhook.office.com/", r"[\w\-/@]{20,}"),
    ("outlook.office.com/webhook/", r"[\w\-/@]+"),
    (".logic.azure.com", r"(?::\d+)?/workflows/[^\s\"'<>]+"),
    (".api.powerplatform.com", r"(?::\d+)?/[^\s\"'<>]*workflows/[^\s\"'<>]+"),
    ("hooks.zapier.com/hooks/", r"[\w\-/]{10,}"),
    ("hook.us1.make.com/", r"\w+"),
    ("hook.eu1.make.com/", r"\w+"),
    ("maker.ifttt.com/trigger/", r"[\w\-/]+"),
    ("chat.googleapis.com/v1/spaces/", r"[^\s\"'<>]+"),
    ("api.telegram.org/bot", r"[\w:\-]+"),
    ("open.feishu.cn/open-apis/bot/", r"[\w\-/]{20,}"),
    ("open.larksuite.com/open-apis/bot/", r"[\w\-/]{20,}"),
    ("oapi.dingtalk.com/robot/send", r"\?[^\s\"'<>]+"),
    ("qyapi.weixin.qq.com/cgi-bin/webhook/", r"[^\s\"'<>]+"),
    ("hc-ping.com/", r"[\w\-/]{20,}"),
    ("webhook.site/", r"[\w\-]{20,}"),
    ("events.pagerduty.com/integration/", r"[\w\-/]{20,}"),
)
# Forms without a beginning of their own: what must be in the text, and the form.
_ELSEWHERE: tuple[tuple[str, str], ...] = (
    (  # JSON web tokens
        "eyJ",
        r"(?<![\w\-])eyJ[\w\-]{8,}\."
        r"(?:eyJ[\w\-]{8,}(?:\.[\w\-]*){0,3}|[\w\-]{8,}(?:\.[\w\-]*){1,3})",
    ),
    (  # Discord: in it the id of a bot, whose digits begin so in base64
        ".",
        r"(?<![\w.\-])[MNO][ATDjkz][A-Za-z0-9]{21,24}={0,2}\.[\w\-]{6}\.[\w\-]{27,38}(?![\w.\-])",
    ),
    ("==", r"(?<!sha512-)(?<![A-Za-z0-9+/=])[A-Za-z0-9+/]{86}==(?!=)"),  # Azure storage
    (".atlasv1.", r"(?<![A-Za-z0-9])[A-Za-z0-9]{14}\.atlasv1\.[\w\-=]{60,70}"),
    ("-us", r"(?<![A-Za-z0-9])[a-f0-9]{32}-us\d{1,2}(?![A-Za-z0-9])"),  # Mailchimp
    (":AA", r"(?<![A-Za-z0-9])\d{8,10}:AA[\w\-]{33}(?![\w\-])"),  # Telegram
    ("Q~", r"(?<![\w~.\-])[\w~.\-]{3}\dQ~[\w~.\-]{31,34}(?![\w~.\-])"),  # Entra
    ("_mmk", r"(?<![A-Za-z0-9])[A-Za-z0-9]{6}_[A-Za-z0-9]{29}_mmk"),
    ("_gitlab_session=", r"(?<=_gitlab_session=)[0-9a-z]{32}"),
)  # fmt: skip
# Forms that names of files and experiments have too: `sk-learn-baseline-2024-fold3`.
_NEED_A_LOOK = {r"(?<![/\\]sk-)[A-Za-z0-9_\-]{20,100}(?![\w\-/])", r"[A-Za-z0-9_\-]{30,}"}
_BEFORE = r"(?:(?<![A-Za-z0-9+])|(?<=\\[nrt])|(?<=%[0-9A-F]{2}))"

_PEM_BEGIN = "-----BEGIN "
_PEM = re.compile(r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")
_PEM_BODY = re.compile(
    r"(?:\s*(?:Proc-Type|DEK-Info|Comment|Version): [^\n]{0,200}\n)*"
    r"(?:[\s|│>#\"',:\\\-]*[A-Za-z0-9+/]{20,}={0,2})*(?:[\s|│>#\"',:\\\-]*[A-Za-z0-9+/]{1,76}={1,2})?"
)
_LONGEST_PEM = 100_000
_PUTTY = re.compile(r"Private-Lines: \d+\s+(?:[A-Za-z0-9+/=]+\s+)+(?:Private-MAC: \w+)?")


def without_known_forms(text: str) -> str:
    """Return a text without private keys, web hooks, and tokens of well-known form."""
    text = _without_pem(text)
    for prefix, rest in _PREFIXED:
        if prefix in text:
            look = looks_random if rest in _NEED_A_LOOK else None
            text = _without(text, prefix, _compiled(f"{_BEFORE}{re.escape(prefix)}{rest}"), 0, look)
    for host, path in _HOOKS:
        if host in text:
            text = _without(text, host, _compiled(re.escape(host) + path), len(host), None)
    for part, form in _ELSEWHERE:
        if part in text:
            text = _compiled(form).sub(REDACTED, text)
    return text


@cache
def _compiled(form: str) -> "re.Pattern[str]":
    return re.compile(form)


def _without(
    text: str,
    prefix: str,
    form: "re.Pattern[str]",
    keeps: int,
    look: Callable[[str], bool] | None,
) -> str:
    """Return a text without what has a form, of which the first characters may be kept."""
    kept, end, at = [], 0, text.find(prefix)
    while at >= 0:
        match = form.match(text, at)
        is_it = match is not None and (look is None or look(match[0].removeprefix(prefix)))
        if match is not None and is_it and match.end() > at + keeps:
            kept += [text[end : at + keeps], REDACTED]
            end = match.end()
        at = text.find(prefix, match.end() if match is not None else at + 1)
    return "".join([*kept, text[end:]])


def _without_pem(text: str) -> str:
    """Return a text without private keys, also such as have lost their last line."""
    if "PuTTY-User-Key-File" in text:
        text = _PUTTY.sub(f"Private-Lines: {REDACTED}\n", text)
    kept, end, at = [], 0, text.find(_PEM_BEGIN)
    closed: dict[str, int] = {}  # where each kind is closed next, so that none is sought twice
    while at >= 0:
        if (begin := _PEM.match(text, at)) is not None:
            closing = begin[0].replace("BEGIN", "END")
            if closed.get(closing, 0) < begin.end():
                found = text.find(closing, begin.end())
                closed[closing] = found if found >= 0 else len(text)
            closes, body = closed[closing], _PEM_BODY.match(text, begin.end())
            is_whole = closes < min(len(text), begin.end() + _LONGEST_PEM)
            kept += [text[end:at], REDACTED]
            end = closes + len(closing) if is_whole else body.end() if body else begin.end()
        at = text.find(_PEM_BEGIN, max(end, at + 1))
    return "".join([*kept, text[end:]])
