"""Credentials in what would be published: keys and passwords by their patterns, in every encoding that texts come in.

The patterns are those of detect-secrets (Yelp, Apache-2.0), and those of Hugging Face's and Google's keys, which it
lacks. It is not a dependency: it reads files line by line as UTF-8, and UTF-16, base64 and the compressed texts of
images must be read too.
"""

import base64
import binascii
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import get_token

_PASSWORD = rb"(?:pass(?:word|wd|phrase)|pwd|api_?key|secret(?:_?(?:access_?)?key)?|(?:access|auth)_?token)"
# What stands for a password, from its first letter to an end: words, masks, variables, what templates fill, and code.
_WORDS = (
    rb"none|null|true|false|undefined|password|passwd|secret|token|redacted|placeholder|example|change[_-]?me|str|string"
    rb"|your[\w-]*"
)
_VARIABLES = (
    rb"\$\{[\w.:]+\}|\$\{\{[^{}\n]*\}\}|\$\([^()\n]*\)|\$\d|\$env:\w+"
    # Of small letters only what a variable is named: "$uper5ecret" is a password.
    rb"|\$(?:(?-i:[A-Z_][A-Z0-9_]*)|\w*(?:pass|pwd?|secret|key|token)\w*)"
    rb"|%\([^()\n]*\)[a-z]|%\w+%"
)
_BRACKETED = rb"<[^<>\n]*>|\{{1,3}[^{}\n]*\}{1,3}|\[[^\[\]\n]*\]"
_CODE = rb"(?:os|self|config|args|getpass)(?:[.(\[]|(?![^\s)\]},;]))"
_STANDS_FOR_IT = _WORDS + rb"|[*x._-]+|" + _VARIABLES + rb"|" + _BRACKETED
_NO_PASSWORD = rb"(?!(?:" + _STANDS_FOR_IT + rb")[.:!?*]*(?:[\s\"'`,;&|()\[\]{}<\\]|\Z)|" + _CODE + rb")"
# Between quotes the end is the quote, so that words may follow on words.
_NO_QUOTED_PASSWORD = (
    rb"(?!(?:" + _STANDS_FOR_IT + rb"|your[\w\s-]*|(?:enter|insert)\s[a-z\s]*)[.:!?*]*[\"'\\]|" + _CODE + rb")"
)


def _quoted(content: bytes) -> bytes:
    """The pattern of a password between quotes of either kind; `%` in `content` stands for the quote."""
    forms = (quote + _NO_QUOTED_PASSWORD + content.replace(b"%", quote) + quote for quote in (b'"', b"'"))
    return rb"(?:" + rb"|".join(forms) + rb")"


_PASSWORD_PARTS = (b"pass", b"pwd", b"key", b"secret", b"token")


@dataclass(frozen=True)
class Pattern:
    """One form of a credential.

    Attributes:
        kind: what it is, for errors.
        parts: in lower case; a text without any of them holds none, which is known far sooner than by the pattern.
        pattern: of the credential itself.
    """

    kind: str
    parts: tuple[bytes, ...]
    pattern: re.Pattern[bytes]


PATTERNS = (
    Pattern(
        "a private key",
        (b"private key", b"putty-user-key"),
        re.compile(rb"BEGIN (?:[A-Z0-9]+ ){0,2}PRIVATE KEY(?: BLOCK)?-|PuTTY-User-Key-File-\d"),
    ),
    Pattern(
        "an AWS key",
        (b"a3t", b"abia", b"acca", b"akia", b"asia"),
        re.compile(rb"(?<![A-Za-z0-9+/])(?:A3T[A-Z0-9]|ABIA|ACCA|AKIA|ASIA)[A-Z0-9]{16}"),
    ),
    Pattern(
        "an AWS key",
        (b"aws",),
        re.compile(
            rb"(?i:aws.{0,20}?(?:key|pwd|pw|password|pass|token).{0,20}?)"
            rb"['\"= ][0-9A-Za-z/+]{40}(?![0-9A-Za-z/+=])"
        ),
    ),
    Pattern(
        "a token of GitHub",
        (b"gh", b"github_pat_"),
        re.compile(rb"\bgh[pousr]_[A-Za-z0-9]{36}|\bgithub_pat_[A-Za-z0-9_]{22,}"),
    ),
    Pattern(
        "a token of the Hub",
        (b"hf_", b"api_org_"),
        re.compile(rb"\bhf_[A-Za-z0-9]{30,}|\bapi_org_[A-Za-z]{34}"),
    ),
    Pattern(
        "a key of OpenAI",
        (b"sk-",),
        re.compile(rb"\bsk-[\w-]*[A-Za-z0-9]{20}T3BlbkFJ[A-Za-z0-9]{20}|\bsk-(?:proj|svcacct|admin)-[\w-]{40,}"),
    ),
    Pattern(
        "a token of Slack",
        (b"xox", b"xapp-", b"hooks.slack.com"),
        re.compile(
            rb"(?i:\bxox[abposre]-(?:\d+-)+[a-z0-9]+|\bxapp-\d-[A-Z0-9]+-\d+-[a-z0-9]+)"
            rb"|hooks\.slack\.com/services/T\w+/B\w+/\w+"
        ),
    ),
    Pattern(
        "a key of Google",
        (b"aiza", b"gocspx-", b"ya29."),
        re.compile(rb"(?<![\w-])AIza[\w-]{35}|\bGOCSPX-[\w-]{28}|\bya29\.[\w-]{20,}"),
    ),
    Pattern("a JSON web token", (b".eyj",), re.compile(rb"\beyJ[\w=-]+\.eyJ[\w=-]+\.[\w=-]*")),
    Pattern(
        "a URL with a password",
        (b"://",),
        re.compile(
            rb"(?<![A-Za-z0-9+.-])[A-Za-z][A-Za-z0-9+.-]*://"
            rb"[^\s/:@'\"<>{}*]*:(?!//|(?:(?i:" + _VARIABLES + rb")|\*+)@)[^\s/@'\"<>{}]+@[A-Za-z0-9[]"
        ),
    ),
    Pattern(
        "a password",
        _PASSWORD_PARTS,
        re.compile(rb"(?i:" + _PASSWORD + rb"\s*=\s*[\"']?" + _NO_PASSWORD + rb"[^\s\"'()&,;]{4,})"),
    ),
    Pattern(
        "a password",
        _PASSWORD_PARTS,
        re.compile(rb"(?i:" + _PASSWORD + rb"[\"']?\s*[:=]\s*" + _quoted(rb"[^\s%]{4,}") + rb")"),
    ),
    # With spaces, of which keys and tokens have none.
    Pattern(
        "a password",
        (b"pass", b"pwd"),
        re.compile(
            rb"(?i:(?:pass(?:word|wd|phrase)|pwd)[\"']?\s*[:=]\s*" + _quoted(rb"[^\s%][^%\r\n]{2,}[^\s%]") + rb")"
        ),
    ),
    # Without quotes, but alone on its line: a setting in YAML, and not a sentence of a card.
    Pattern(
        "a password",
        _PASSWORD_PARTS,
        re.compile(
            rb"(?im:^[^\w\n]*[\w-]*" + _PASSWORD + rb":[ \t]+" + _NO_PASSWORD + rb"[^\s\"'|>][^\s\"']{3,}"
            rb"(?:[ \t]+#[^\r\n]*)?[ \t\r]*$)"
        ),
    ),
)
_LINE_END = rb"(?:\\[rn]|[\r\n])+[ \t]*"
_LETTERS = rb"[A-Za-z0-9+/_-]"
# Fewer letters hold no credential.
_SHORTEST = 16
# Wrapped or not, at whatever width; the last line may be of one letter.
_BASE64 = re.compile(
    rb"(?:%b{%d,}|%b{4,}(?=%b%b{4}))(?:%b%b+)*"
    % (_LETTERS, _SHORTEST, _LETTERS, _LINE_END, _LETTERS, _LINE_END, _LETTERS)
)
_URL_SAFE = bytes.maketrans(b"-_", b"+/")
_PNG = b"\x89PNG\r\n\x1a\n"


def find_credential(content: bytes) -> str | None:
    """What kind of credential stands in some bytes ("a token of GitHub"), or None.

    Texts are read as UTF-8 or another superset of ASCII, as UTF-16 and UTF-32, and as base64 of either, wrapped at
    line ends or not.
    """
    # The user's own, whatever it looks like.
    token = (get_token() or "").encode()
    for text in _spellings(content):
        if (kind := _match(text, token)) is not None:
            return kind
        for run in _BASE64.finditer(text):
            lines = re.split(_LINE_END, run[0])
            # As one, and line by line: words that follow on the next line are letters of base64 too.
            for letters in {b"".join(lines), *(line for line in lines if len(line) >= _SHORTEST)}:
                for decoded in _decode_base64(letters):
                    for spelling in _spellings(decoded):
                        if (kind := _match(spelling, token)) is not None:
                            return f"{kind} in base64"
    return None


def find_credential_in_file(file: Path) -> str | None:
    """`find_credential` of a file's texts: all of it, but of weights their header, and of images their texts too."""
    with file.open("rb") as opened:
        if file.suffix == ".safetensors":
            length = int.from_bytes(opened.read(8), "little")
            return find_credential(opened.read(length))
        content = opened.read()
    for text in (content, *_compressed_texts(content)):
        if (kind := find_credential(text)) is not None:
            return kind
    return None


def hide_credentials(text: str) -> str:
    """The text with three asterisks in the place of each credential that is spelled out in it."""
    content = text.encode("utf-8", "surrogatepass")
    for form in PATTERNS:
        content = form.pattern.sub(b"***", content)
    return content.decode("utf-8", "surrogatepass")


def _match(text: bytes, token: bytes) -> str | None:
    if token and token in text:
        return "a token of the Hub"
    lowered = text.lower()
    for form in PATTERNS:
        if any(part in lowered for part in form.parts):
            for found in form.pattern.finditer(text):
                if form.kind != "a JSON web token" or _is_json_web_token(found[0]):
                    return form.kind
    return None


def _is_json_web_token(token: bytes) -> bool:
    """Whether the first two of its parts are JSON: other text has dots and such letters too."""
    for part in token.split(b".")[:2]:
        try:
            json.loads(base64.urlsafe_b64decode(part.rstrip(b"=") + b"=="))
        except ValueError:
            return False
    return True


def _spellings(content: bytes) -> Iterator[bytes]:
    """The bytes, and without their zeros: ASCII text in UTF-16 and UTF-32, of either order, is left."""
    yield content
    if b"\0" in content:
        yield content.replace(b"\0", b"")


def _decode_base64(run: bytes) -> Iterator[bytes]:
    """What a run of base64's letters decodes to; letters that merely stand before it may shift where it begins."""
    letters = run.translate(_URL_SAFE)
    for start in range(4):
        part = letters[start:]
        # One letter that is over holds no byte.
        part = part[: len(part) - (len(part) % 4 == 1)]
        try:
            yield base64.b64decode(part + b"=" * (-len(part) % 4))
        except binascii.Error:
            continue


def _compressed_texts(content: bytes) -> Iterator[bytes]:
    """The compressed chunks of a PNG that hold text or what a camera wrote; others stand in it as they are."""
    if not content.startswith(_PNG):
        return
    position = len(_PNG)
    while position + 8 <= len(content):
        length = int.from_bytes(content[position : position + 4], "big")
        kind, data = content[position + 4 : position + 8], content[position + 8 : position + 8 + length]
        if kind in (b"zTXt", b"iTXt", b"iCCP"):
            for start in (match.end() for match in re.finditer(rb"\0", data)):
                try:
                    # A text of many gigabytes packs into a few kilobytes.
                    yield zlib.decompressobj().decompress(data[start:], 1 << 24)
                except zlib.error:
                    continue
        position += 12 + length
