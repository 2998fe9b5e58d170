"""Credentials: every kind is found in every encoding, and nothing of a real model's files is taken for one."""

import base64
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.numpy import save_file

import hf_clip
from hf_clip.hub.credentials import find_credential, find_credential_in_file, hide_credentials
from tests.helpers.counts import soak_count
from tests.helpers.model_cards import card_of

# Made up, each of a form that its issuer gives; put together here, so that no other scanner stops at this file.
SECRETS = {
    "rsa": "-----BEGIN RSA PRIVATE " + "KEY-----",
    "openssh": "-----BEGIN OPENSSH PRIVATE " + "KEY-----",
    "pkcs8": "-----BEGIN PRIVATE " + "KEY-----",
    "pkcs8-encrypted": "-----BEGIN ENCRYPTED PRIVATE " + "KEY-----",
    "pgp": "-----BEGIN PGP PRIVATE " + "KEY BLOCK-----",
    "putty": "PuTTY-User-Key-" + "File-3: ssh-ed25519",
    "aws-id": "AKIA" + "ABCDEFGH23456789",
    "aws-session": "ASIA" + "ABCDEFGH23456789",
    "aws-secret": "aws_secret_access_" + "key = wJalrXUtnFEMIK7MDENGbPxRfiCYzEXAMPLEKEYa",
    "github": "ghp_" + "aB3" * 12,
    "github-app": "ghs_" + "aB3" * 12,
    "github-fine-grained": "github_pat_" + "11ABCDEFG0" * 8,
    "hugging-face": "hf_" + "aB3" * 11,
    "openai": "sk-" + "a1" * 10 + "T3BlbkFJ" + "b2" * 10,
    "openai-project": "sk-proj-" + "aB3_" * 20,
    "slack": "xoxb-" + "123456789012-abcdEFGH",
    "slack-hook": "https://hooks.slack.com/services/" + "T0000/B0000/XXXX",
    "google": "AIza" + "aB3_-" * 7,
    "google-oauth": "GOCSPX-" + "aB3_" * 7,
    "jwt": "eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
    "password": "password=" + "hunter2",
    "password-spaced": "Password = " + "'hunter2'",
    "password-yaml": "db_password: " + "hunter22",
    "password-json": '"passwd": "' + 'hunter2"',
    "password-in-query": "host/x?user=a&password=" + "hunter2&b=1",
    "password-of-an-x": "password: " + "xK9mPq2vLw",
    "password-of-a-capital-x": "password=" + "Xylophone77",
    "password-of-a-dollar": '"password": "$' + 'uper5ecret"',
    "password-of-a-dot": "password=" + ".hunter22",
    "password-of-a-percent": "passwd=" + "%hunter22",
    "password-of-a-bracket": "password=" + "<hunter22",
    "password-of-a-word": "password=" + "none.of9",
    "password-with-a-comment": "db_password: " + "hunter22pw  # prod",
    "password-of-words": "password: '" + "two words here'",
    "password-of-words-json": '"password": "' + 'none of them 4me"',
    "url": "https://user:" + "pw1@example.org/x",
    "database-url": "postgresql://me:" + "s3cret@db:5432/x",
    "url-dollars": "postgres://admin:" + "Pa$$w0rd@db.example.com/x",
    "url-asterisk": "mysql://root:" + "s*cret9@db.example.com",
    "redis-url": "redis://:" + "s3cret@db",
}
ENCODINGS = ("utf-8", "utf-16", "utf-16-be", "utf-32")
AROUND = "Text before it, of some length, in the middle of which nothing is to be found.\n"
WRAPPED = {
    "plain": lambda content: b"\n" + content + b"\n",
    "base64": lambda content: b"data: " + base64.b64encode(content) + b"\n",
    "base64-url-safe-after-a-letter": lambda content: b"x" + base64.urlsafe_b64encode(content),
    "base64-in-lines": lambda content: base64.encodebytes(AROUND.encode() * 2 + content),
    "base64-in-json": lambda content: json.dumps(base64.encodebytes(AROUND.encode() + content).decode()).encode(),
}


@pytest.mark.parametrize("secret", SECRETS)
def test_every_kind_is_found_in_every_encoding(secret):
    for encoding in ENCODINGS:
        for name, wrap in WRAPPED.items():
            content = AROUND.encode() + wrap(SECRETS[secret].encode(encoding)) + AROUND.encode()
            assert find_credential(content) is not None, (encoding, name)


@pytest.mark.parametrize(
    "text",
    [
        "password: see the manual of your server",
        "password = None",
        "password=password",
        "password = os.environ['PASSWORD']",
        "password=${PASSWORD} password=$PASSWORD password: '{{ password }}' password=<your password>",
        "password: **********",
        '"password": 12345, "password</w>": 4711, "secret": 17',
        "The passwords of users are no part of the data.",
        "git@github.com:owner/name.git and https://example.org:8080/x@y and mailto:a@b.org",
        "https://user:***@example.org",
        "https://user:$PASSWORD@example.org https://user:${PASSWORD}@example.org mysql://%(user)s:%(password)s@db",
        "password=xxxxxxxx, password='XXXX-XXXX' password: '...' password=none. password='changeme'",
        "password: $DB_PASSWORD  # of the environment",
        "password=%(password)s password=%PASSWORD% password={password} password=$(pass show db) password=$db_password",
        '"password": "your password here", "passwd": "Enter your password", "api_key": "${{ secrets.KEY }}"',
        "password = config.password",
        "compass: 'an instrument that points north'",
        "hf_clip hf_clip_siglip hf_model_of_many_words_that_is_no_token",
        "sk-learn task-sk-something",
        'the_token: <|endoftext|>, "bos_token": "<|startoftext|>"',
        "AKIA is no key; nor is ABCAKIAABCDEFGH23456789ABC",
        "eyJust.eyJokes.here",
        "-----BEGIN PUBLIC KEY-----",
        "dog://[^:]+:([^@]+)@",
    ],
)
def test_what_is_none_is_not_taken_for_one(text):
    assert find_credential(text.encode()) is None
    assert find_credential(base64.b64encode(text.encode())) is None


@pytest.mark.parametrize("width", [4, 8, 12, 76])
def test_base64_is_read_at_whatever_width_it_is_wrapped(width):
    letters = base64.b64encode(b"password=" + b"hunter22xyz")
    lines = [letters[start : start + width] for start in range(0, len(letters), width)]
    for line_end in (b"\n", b"\r\n", b"\\n"):
        assert find_credential(b"data:\n" + line_end.join(lines)) == "a password in base64"


@pytest.mark.slow
def test_nothing_of_a_models_files_is_taken_for_one(saved):
    card_of(saved)
    files = [*saved.rglob("*"), *(Path(hf_clip.__file__).parent / "model").glob("*.py")]
    assert {file.name: kind for file in files if file.is_file() and (kind := find_credential_in_file(file))} == {}
    # The 48,894 merges of OpenAI's models (every eighth outside of `make soak`), and the tokens that they make.
    vocabulary = Path(hf_clip.__file__).parent / "assets" / "vocabulary" / "openai_merges.txt.gz"
    merges = gzip.decompress(vocabulary.read_bytes()).decode().splitlines()[:: soak_count(8, 1)]
    tokens = {merge.replace(" ", ""): index for index, merge in enumerate(merges)}
    assert find_credential(json.dumps({"vocab": tokens, "merges": merges}, indent=2).encode()) is None


@pytest.mark.parametrize("compressed", [False, True])
def test_texts_in_images_are_read(tmp_path, compressed):
    texts = PngInfo()
    texts.add_text("Comment", AROUND + SECRETS["github"], zip=compressed)
    texts.add_itxt("Prompt", AROUND * 3, zip=compressed)
    Image.new("RGB", (4, 4)).save(tmp_path / "plot.png", pnginfo=texts)
    assert find_credential_in_file(tmp_path / "plot.png") == "a token of GitHub"


def test_the_header_of_weights_is_read_and_their_numbers_are_not(tmp_path):
    secret = np.frombuffer(SECRETS["github"].encode(), np.uint8)
    save_file({"a": secret}, tmp_path / "a.safetensors", {"format": "pt"})
    save_file({"a": secret}, tmp_path / "b.safetensors", {"trained_with": SECRETS["openai"]})
    assert find_credential_in_file(tmp_path / "a.safetensors") is None
    assert find_credential_in_file(tmp_path / "b.safetensors") == "a key of OpenAI"


def test_the_users_own_token_is_found_whatever_it_looks_like(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "an-unusual-one")
    assert find_credential(b"x an-unusual-one y") == "a token of the Hub"


@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS)
def test_credentials_are_hidden_in_text(secret):
    shown = hide_credentials(f"é before\n{secret}\nafter")
    assert shown.startswith("é before\n") and secret not in shown
