"""Secrets that stand behind a name in a text: `api_key=…`, `"token": "…"`, `--password …`."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from lamincli.redaction.names import Kind, kind_of
from lamincli.redaction.values import LONGEST_RANDOM, REDACTED, is_number, is_secret

# `pat` alone is part of every path.
_PARTS_OF_NAMES = (
    "pass", "pwd", "pswd", "secret", "token", "key", "auth", "cred", "cookie", "sess", "bearer",
    "conn", "dsn", "webhook", "otp", "mnemonic", "sas", *(f"pat{sign}" for sign in "=:\"'\\> "),
    "kennwort", "contrase", "senha", "wachtwoord", "lösenord", "пароль", "密", "口令", "パスワード",
    "비밀번호",
)  # fmt: skip
_NAMED = re.compile(
    r"(?<!\w)(?<!\w[.\-])(?P<dash>-{1,2})?"
    r"(?P<key>(?:(?:api|access|secret|private|auth|account|shared|session|connection|license"
    r"|encryption|master|ssh|bot|user)[ ](?=(?:key|token|string|password|secret|id)))?"
    r"[^\W\d][\w.\-]{0,79})(?!\w)"
    r"(?P<close>(?:\\{0,3}[\"'`]|\]|\*\*){0,3})"
    r"(?:(?P<list>[ \t]*,[ \t]*(?=\\{0,3}[\"']))"
    r"|(?P<sign>[ \t.]{0,40}"
    r"(?::[ \t]*(?:str|bytes|Any|SecretStr|Optional\[str\]|str[ ]?\|[ ]?None)[ \t]*=(?!=)"
    r"|=>|->|:{1,3}=|\?=|(?<![!<>=])=(?!=)|==(?=[ ]?[\"'])|::?(?!//)|│|\|)[ \t]*)"
    r"|(?P<tag>>)"
    r"|(?P<space>[ \t]+(?:(?:is|was)[ \t]+)?))",
    re.IGNORECASE,
)  # fmt: skip
_QUOTE = re.compile(r"[fFrRbBuU]{0,2}(?P<quote>\\{0,3}(?:\"\"\"|'''|[\"'`]))")
_WITHIN = {quote: re.compile(rf"(?:[^{quote}\\\n]|\\.)*") for quote in "\"'`"}
_BARE = re.compile(
    r"(?:[^\s\"'`,;&)\]}│]"
    r"|[\"'`](?=\w)"
    r"|[,;&](?=[^\s\"'`])(?!\s?[\w.\-]{1,60}[=:])"
    r"|[)\]}](?=[\w!@#$%^*+/=~?\-]))+"
)
_BLOCK = re.compile(r"[|>][+\-]?\d?[ \t]*\n")
_REFERENCE = re.compile(r"\$[{(A-Z_]|\{\{|%[({A-Z_]{2,}")
_COMMENT = re.compile(r"\s#")
_LINE_START = re.compile(r"[\s\-#*+>|│\"']*\Z")
# What stands for a value in source lines and in help texts.
_CODE = re.compile(
    r"(?:None|True|False|null|nil|true|false|none|str|int|bytes|float|bool|Any|dict|list|object|type"
    r"|string|optional|required)\b(?![\-!@#$%^&*])"
    r"|(?:Optional|Union|List|Dict|Literal|Callable|SecretStr)\b"
    r"|(?:[A-Za-z_]+\.)*[A-Za-z_]+\("
    r"|(?:self|args|cfg|config|os|kwargs|settings|options|opts?|hparams|env|environ|request|params"
    r"|conf|ctx|cls|app)(?:\.[A-Za-z_]+)+\b"
    r"|[A-Za-z_.]+\[[\w\"'.\-:]*(?:\]|\Z)|MISSING\b"
    r"|[({\[]|%[sdr(]|\.\.\.|\*\*+|x{4,}\b|X{4,}\b|<[\w \-]+>"
)
_NO_LIST = re.compile(r"[:=(\[{]| for ")
_GROUP = {"[": "]", "(": ")", "{": "}"}
_SCHEMES = re.compile(
    r"(?:bearer|basic|token|api-?key|digest|negotiate|ntlm|hawk|oauth|aws4-hmac-sha256|sso-key|key"
    r"|ssws|splunk|snowflake)\s+",
    re.IGNORECASE,
)
_IN_PAIRS = re.compile(r"digest|oauth|hawk|aws4", re.IGNORECASE)
_LONGEST_HEADER = 8192
_HEADERS = frozenset(["authorization", "proxy-authorization", "cookie", "set-cookie"])
_NAME_VALUE = re.compile(
    r"\b(?:name|key)\\{0,3}[\"']?\s{0,9}[:=]\s{0,9}\\{0,3}[\"']?(?P<key>[\w.\-]{1,80})"
    r"\\{0,3}[\"']?[\s,]{1,40}"
    r"\\{0,3}[\"']?value\\{0,3}[\"']?\s{0,9}[:=]\s{0,9}",
    re.IGNORECASE,
)


def without_named(text: str) -> str:
    """Return a text without what stands behind the names of secrets."""
    kept: list[str] = []
    end = 0
    for start, stop in _lines_with_names(text):
        line = _Line(text, start, stop)
        at = max(end, start)
        while at < stop and (match := _NAMED.search(text, at, stop)) is not None:
            at = match.end()
            span = line.secret_after(match)
            if span is not None:
                kept += [text[end : span[0]], REDACTED]
                at = end = span[1]
    text = "".join([*kept, text[end:]])
    return _without_name_and_value(text) if "value" in text or "Value" in text else text


def _lines_with_names(text: str) -> Iterator[tuple[int, int]]:
    """Yield the lines, in order, that hold a part of the name of a secret."""
    lower = text.lower()
    if len(lower) != len(text):  # a few letters have a longer lower case
        lower = re.sub("[A-Z]+", lambda match: match[0].lower(), text)
    found: dict[int, int] = {}
    for part in _PARTS_OF_NAMES:
        at = lower.find(part)
        while at >= 0:
            start = lower.rfind("\n", 0, at) + 1
            end = lower.find("\n", at)
            found[start] = end = len(text) if end < 0 else end
            at = lower.find(part, end)
    yield from sorted(found.items())


@dataclass
class _Line:
    """A line of a text; what is looked for in it begins and ends here, but for blocks."""

    text: str
    start: int
    end: int
    _word: tuple[int, int] = field(default=(0, 0), init=False)

    def secret_after(self, match: "re.Match[str]") -> tuple[int, int] | None:
        """Return where the secret lies that a name stands before; `None` if it is none."""
        key, sign = match["key"], match["sign"]
        if sign and key.lower() in _HEADERS:
            return self._secret_of_header(match)
        kind = kind_of(key)
        if match["list"]:
            kind = kind if match["dash"] else min(kind, Kind.RANDOM)
        elif match["space"] and not match["dash"]:
            kind = min(kind, Kind.RANDOM)
        is_no_tag = match["tag"] and self.text[match.start() - 1 : match.start()] != "<"
        if kind is Kind.NONE or is_no_tag or (match["list"] and not match["close"]):
            return None
        start, end, is_quoted = self._value(match, kind)
        if end - start > LONGEST_RANDOM and kind < Kind.PLACE:
            return None
        value = self.text[start:end]
        if not is_quoted and not _may_be_bare(value, key, kind):
            return None
        if not is_quoted and kind is Kind.LIKELY:
            kind = Kind.RANDOM
        return (start, end) if is_secret(value, kind) else None

    def _value(self, match: "re.Match[str]", kind: Kind) -> tuple[int, int, bool]:
        """Return where the value after a name begins and ends, and whether it is quoted."""
        text, at, sign = self.text, match.end(), match["sign"]
        if (quote := _QUOTE.match(text, at)) is not None:
            return quote.end(), _end_of_quoted(text, quote, self.end), True
        if kind >= Kind.PLACE and _BLOCK.match(text, at):
            return at, _end_of_block(text, match.start() - self.start, at), True
        if kind is Kind.SURE and text[at : at + 1] in _GROUP and sign:
            closes = text.find(_GROUP[text[at]], at, min(self.end, at + 500))
            inner = text[at + 1 : closes] if closes > at else ""
            if inner and not _CODE.match(inner) and not _NO_LIST.search(inner):
                return at + 1, closes, True
        end = self._end_of_word(at)
        if kind >= Kind.PLACE and sign and ":" in sign and self._begins_with(match.start()):
            end = max(end, self._end_of_line_value(at))
        return at, end, False

    def _end_of_word(self, at: int) -> int:
        # A word ends where it ends, wherever in it one begins to read: once is enough.
        if not self._word[0] <= at < self._word[1]:
            bare = _BARE.match(self.text, at, self.end)
            self._word = (at, bare.end() if bare is not None else at)
        return max(at, self._word[1])

    def _begins_with(self, at: int) -> bool:
        is_near = at - self.start < 200
        return is_near and _LINE_START.match(self.text, self.start, at) is not None

    def _end_of_line_value(self, at: int) -> int:
        comment = _COMMENT.search(self.text, at, self.end)
        end = comment.start() if comment is not None else self.end
        while end > at and self.text[end - 1] in " \t,;│|":
            end -= 1
        return end

    def _secret_of_header(self, match: "re.Match[str]") -> tuple[int, int] | None:
        """Return what follows `Authorization:`, but for the word that says of which kind it is."""
        text, at = self.text, match.end()
        end = min(self.end, at + _LONGEST_HEADER)
        if (quote := _QUOTE.match(text, at)) is not None:
            at, end = quote.end(), _end_of_quoted(text, quote, end)
        elif (before := text[match.start() - 1 : match.start()]) and before in "\"'`":
            closes = text.find(before, at, end)
            end = closes if closes >= 0 else end
        elif not _IN_PAIRS.match(text, at):
            marks = [found for mark in "\"'`" if (found := text.find(mark, at, end)) >= 0]
            end = min([end, *marks])
        while end > at and text[end - 1] in " \t\r\\,;)]}│|":
            end -= 1
        scheme = _SCHEMES.match(text, at, end)
        begin = scheme.end() if scheme is not None else at
        value = text[begin:end]
        if not value or value.startswith(REDACTED) or _CODE.match(value) or _REFERENCE.match(value):
            return None
        is_given = scheme is not None or "=" in value or is_secret(value, Kind.LIKELY)
        return (begin, end) if is_given else None


def _end_of_quoted(text: str, quote: "re.Match[str]", limit: int) -> int:
    sign = quote["quote"]
    if len(sign) == 1:
        within = _WITHIN[sign].match(text, quote.end(), limit)
        return within.end() if within is not None else quote.end()
    limit = quote.end() + 16_384 if len(sign.lstrip("\\")) == 3 else limit
    closes = text.find(sign, quote.end(), limit)
    return closes if closes >= 0 else limit


def _end_of_block(text: str, depth: int, at: int) -> int:
    """Return the end of the lines that are indented deeper than the name above them."""
    end = text.find("\n", at)
    while 0 <= end < len(text) - 1:
        stop = text.find("\n", end + 1)
        content = text[end + 1 : stop if stop >= 0 else len(text)]
        if content.strip() and len(content) - len(content.lstrip(" #")) <= depth:
            break
        end = end + 1 + len(content)
    return end if end >= 0 else len(text)


def _may_be_bare(value: str, key: str, kind: Kind) -> bool:
    """Tell whether a word without quotes may be a value, and not code or a name for one."""
    if value in ("", "~") or _CODE.match(value) or _REFERENCE.match(value):
        return False
    if is_number(value):
        is_password = kind is Kind.SURE and ("pass" in key.lower() or "pwd" in key.lower())
        return is_password and len(value) >= 4
    return not _is_namesake(value, key)


def _is_namesake(value: str, key: str) -> bool:
    """Tell whether a value is called as its name is: `token=token`, `api_key=args.api_key`."""
    name, word = (text.lower().replace("-", "_").rpartition(".")[2] for text in (key, value))
    word = word.strip("{}$<>()")
    return word in (name, name.rpartition("_")[2]) or word.endswith(f"_{name}")


def _without_name_and_value(text: str) -> str:
    """Return a text without the values of pairs such as `{"name": "api_key", "value": "…"}`."""
    kept, end = [], 0
    for match in _NAME_VALUE.finditer(text):
        kind = kind_of(match["key"])
        if kind is Kind.NONE or match.start() < end:
            continue
        start, stop, is_quoted = _value_at_plain(text, match.end())
        value = text[start:stop]
        if is_secret(value, kind) and (is_quoted or not is_number(value)):
            kept += [text[end:start], REDACTED]
            end = stop
    return "".join([*kept, text[end:]])


def _value_at_plain(text: str, at: int) -> tuple[int, int, bool]:
    limit = at + _LONGEST_HEADER
    if (quote := _QUOTE.match(text, at)) is not None:
        return quote.end(), _end_of_quoted(text, quote, limit), True
    bare = _BARE.match(text, at, limit)
    return at, bare.end() if bare is not None else at, False
