"""Secrets in texts and in JSON values."""

from __future__ import annotations

import base64
import json
import os
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_dispatch.errors import JobError, TerminalError
from prefect_dispatch.executors.base import Reply
from prefect_dispatch.security.redaction import (
    MARK,
    is_secret_name,
    redact,
    redact_json,
    safe_message,
    secret_detector,
    secrets_in,
)

if TYPE_CHECKING:
    from pydantic import JsonValue

REDACT = "PREFECT_DISPATCH_REDACT"


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "GITHUB_TOKEN", "db-password", "AWS_SECRET_ACCESS_KEY", "MY_PAT"])
def test_values_of_secret_variables_are_hidden(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value of the environment whose name says that it is secret never shows."""
    monkeypatch.setenv(name, "correct-horse")
    assert redact("refused: correct-horse!") == "refused: ***!"


@pytest.mark.parametrize(
    ("name", "value"),
    [pytest.param("MONKEY", "correct-horse", id="no-secret"), pytest.param("USE_KEY", "true", id="too-short")],
)
def test_other_values_stay(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages aren't garbled by variables that hold no secret."""
    monkeypatch.setenv(name, value)
    assert redact(f"it is {value}") == f"it is {value}"


@pytest.mark.parametrize(
    "name",
    [
        "PGPASSWORD",
        "MYSQL_PWD",
        "GITHUBTOKEN",
        "SLACK_WEBHOOK_URL",
        "DISCORD_WEBHOOK",
        "TEAMS_WEBHOOK_URI",
        "APITOKEN",
        "DBPASSWORD",
        "SECRETKEY",
        "OPENAIAPIKEY",
        "CLIENTSECRET",
        "SSHPASS",
        "MYSQLPASS",
        "ROOTPWD",
        "DB_PASS",
        "DB_CREDS",
        "MY_JWT",
        "JWT_SECRET_KEY",
        "SIGNINGKEY",
        "BOTTOKEN",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "REDISCLI_AUTH",
        "NPM_CONFIG__AUTH",
        "x-api-key",
    ],
)
def test_names_of_secrets(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that are written as one word."""
    assert is_secret_name(name)
    monkeypatch.setenv(name, "https://hooks.example.org/T0/correct-horse")
    assert redact("at https://hooks.example.org/T0/correct-horse.") == "at ***."


@pytest.mark.parametrize(
    "name",
    [
        "TOKENIZERS_PARALLELISM",
        "PASSWORD_STORE_DIR",
        "MAX_TOKENS",
        "KEYBOARD",
        "KEYBOARD_LAYOUT",
        "MONKEY",
        "TURKEY",
        "PWD",
        "OLDPWD",
        "COMPASS",
        "BYPASS",
        "SSH_AUTH_SOCK",
        "TOKEN_LIMIT",
        "TOKENIZER",
        "KEYCLOAK_HOST",
        "AUTHOR",
        "AUTHORITY",
        "PATTERN",
        "PASSENGER",
        "SECRETARY",
        "WEBHOOK_PORT",
        "DATABASE_URL",
        "PYTHONPATH",
        "GIT_AUTHOR_NAME",
        "max_completion_tokens",
        "logit_bias",
        "reasoning_effort",
    ],
)
def test_names_of_no_secrets(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What only looks like one garbles no message."""
    assert not is_secret_name(name)
    monkeypatch.setenv(name, "correct-horse")
    assert redact("it is correct-horse") == "it is correct-horse"


@pytest.mark.parametrize(
    ("name", "value", "secrets"),
    [
        ("DATABASE_URL", "postgresql://app:hunt%40er22@db:5432/app", ["hunt%40er22", "hunt@er22"]),
        ("ANYTHING", "redis://:topsecret@h:1/0", ["topsecret"]),
        ("HTTPS_PROXY", "http://me:proxy-pass@proxy:3128", ["proxy-pass"]),
        ("SENTRY_DSN", "https://abcdef012345@o1.ingest.sentry.io/1", ["abcdef012345"]),
        ("ANYTHING", "https://username@host/", []),
        ("PG_DSN", "host=h password='a b c d e' user=username", ["a b c d e"]),
        ("STORAGE_CONNECTION_STRING", "AccountName=x;AccountKey=abcd1234==;End", ["abcd1234=="]),
        ("DATABASE_URL", "postgres://postgres:postgres@db/app", []),
        ("DATABASE_URL", "postgres://username:database@database:1/app", []),
        ("DATABASE_URL", "postgres://username:abc@database:1/app", []),
        ("DATABASE_URL", "sqlite:///some/file.db", []),
        ("A_KEY", "short", []),
    ],
)
def test_passwords_in_connections(name: str, value: str, secrets: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """They are hidden wherever else they stand, unless they are the name of the user or the host."""
    assert sorted(set(secrets_in({name: value}))) == sorted(secrets)
    monkeypatch.setenv(name, value)
    for secret in secrets:
        assert redact(f"refused: {secret}") == "refused: ***"


def test_a_secret_that_holds_another_is_hidden_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """The longer one goes first."""
    monkeypatch.setenv("A_KEY", "secret")
    monkeypatch.setenv("B_KEY", "secret-and-more")
    assert redact("secret-and-more") == "***"


@pytest.mark.parametrize("before", ["", "a", "ab", "user:", "another user:"])
@pytest.mark.parametrize("secret", ["p@ss w/rd+é", 'say "so"\\', "-----BEGIN KEY-----\nabcdefghijklmnop\nqrst\n"])
def test_a_secret_is_hidden_however_it_is_written(before: str, secret: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Escaped as JSON or by `repr`, percent-encoded, on one line, in base64 at any place."""
    monkeypatch.setenv("A_KEY", secret)
    encoded = base64.b64encode((before + secret + " x").encode()).decode()
    texts = (json.dumps(secret), repr(secret), " ".join(secret.split()), quote(secret, safe=""))
    assert [redact(f"<{text}>") for text in texts] == [
        '<"***">',
        f"<{repr(secret)[0]}***{repr(secret)[0]}>",
        "<***>",
        "<***>",
    ]
    left = redact(encoded)
    assert MARK in left
    assert len(left) < 4 * len(before) // 3 + 14


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        pytest.param(text, hidden, id=text[:40].encode("unicode_escape").decode())
        for text, hidden in (
            ("sk-ant-REDACTED", "***"),
            ("key sk-proj-****1234.", "key ***"),
            ("AIzaSyA0123456789", "***"),
            ("(AKIAIOSFODNN7EXAMPLE)", "(***)"),
            ("ghp_0123456789abcdef", "***"),
            ("https://user:hunter22@example.org", "https://***@example.org"),
            ("https://example.org/v1?key=abcDEF123&x=1", "https://example.org/v1?key=***&x=1"),
            ("https://h/o?X-Amz-Signature=5d672d79c15b13", "https://h/o?X-Amz-Signature=***"),
            ("Authorization: Bearer abc.def", "Authorization: Bearer ***"),
            ("AUTHORIZATION:Basic dXNlcjpwYXNz, more", "AUTHORIZATION:Basic ***, more"),
            ("{'authorization': 'Bearer abc.def'}", "{'authorization': 'Bearer ***'}"),
            ("(b'Authorization', b'Bearer abc.def')", "(b'Authorization', b'Bearer ***')"),
            (r"{\"Authorization\": \"Bearer abc.def\"}", r"{\"Authorization\": \"Bearer ***\"}"),
            ("authorization=Bearer%20abc.def", "authorization=Bearer%20***"),
            ("Authorization: correct-horse-1", "Authorization: ***"),
            ('Authorization: Digest username="me", response="6629fa"', "Authorization: Digest ***"),
            (
                "Authorization: AWS4-HMAC-SHA256 Credential=AK/2015, Signature=5d6",
                "Authorization: AWS4-HMAC-SHA256 ***",
            ),
            ("Proxy-Authorization: Negotiate YIIJvwYGKw==", "Proxy-Authorization: Negotiate ***"),
            ("was sent bearer 0a1b2c3d4e", "was sent bearer ***"),
            ("x-api-key: correct-horse", "x-api-key: ***"),
            ("X-API-KEY=correct-horse", "X-API-KEY=***"),
            ('{"api_key": "correct-horse"}', '{"api_key": "***"}'),
            ("apiKey => 'correct-horse'", "apiKey => '***'"),
            ("api-key=correct-horse;", "api-key=***;"),
            ("OPENAI_API_KEY='abcdef-123456'", "OPENAI_API_KEY='***'"),
            ("aws_secret_access_key = wJalrXUtnFEMI/K7MDENG", "aws_secret_access_key = ***"),
            ("AccountKey=abcDEF0123456789==;Endpoint", "AccountKey=***;Endpoint"),
            ("password=hunter22", "password=***"),
            ('"client_secret": "correct_horse"', '"client_secret": "***"'),
            ("token: 0123456789abcdef0123", "token: ***"),
            ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc_DEF-1", "***"),
            ("Cookie: session=abc; other=def", "Cookie: ***"),
            ("'Set-Cookie': 'sid=38afes7a8; HttpOnly'", "'Set-Cookie': '***'"),
            ("-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4\n\nMIIE+/a=\n-----END RSA PRIVATE KEY----- end", "*** end"),
            (r"-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEF\nMIIEvQIBADANBgkq", "***"),
        )
    ],
)
def test_what_looks_like_a_key_is_hidden(text: str, hidden: str) -> None:
    """Keys show their shape even where no variable holds them, in any case and quoting."""
    assert redact(text) == hidden


@pytest.mark.parametrize(
    "text",
    [
        "the key is wrong",
        "token limit 4096",
        "max_tokens=4096, key: chapter-01",
        "The bearer shares of the company; bearer instruments.",
        "skateboarding, skyscrapers, sk-learn-compatible, pk_customer_order",
        "Incorrect API key provided: none.",
        "Missing API key: set OPENAI_API_KEY.",
        "client = Client(api_key=api_key, password=self.password, secret=get_secret())",
        "api_key=os.environ['KEY'], api_key=$KEY, api_key=${API_KEY}",
        "authorization: required; basic authorization: token expired",
        '{"password": "required", "token": "running", "auth": "OAuth2"}',
        "Password: Forgotten? A secret: nobody knows. Cookie: chocolate",
        "https://example.org/?key=overview&token=none",
        "a -----BEGIN CERTIFICATE----- is public",
        "mail me@example.org, see http://example.org/a@b",
    ],
)
def test_words_about_keys_stay(text: str) -> None:
    """A name of a secret is none, and most words after it aren't, either."""
    assert redact(text) == text


def test_half_a_character_and_an_error_without_words() -> None:
    """Whatever is told can be written."""

    class Speechless(Exception):  # noqa: N818 -- it can't even say that it is an error
        def __str__(self) -> str:
            raise RuntimeError

    assert redact("\ud800!") == "?!"
    assert safe_message(Speechless()) == "Speechless: (its message can't be read)"
    assert safe_message(ValueError("sk-proj-0123456789")) == "ValueError: ***"


@pytest.mark.parametrize(
    ("setting", "text", "hidden"),
    [
        pytest.param("ACME-[0-9]+", "see ACME-17 and ACME-x", "see *** and ACME-x", id="one"),
        pytest.param('["ACME-\\\\d+", "(?i)zeus"]', "ACME-17, ZEUS", "***, ***", id="list"),
        pytest.param("[1]", "a 1", "a ***", id="no-list-of-texts"),
        pytest.param("", "a 1", "a 1", id="empty"),
        pytest.param(".", "ab", "******", id="anything"),
        pytest.param(r"\*", "a*b", "a***b", id="the-mark-itself"),
        pytest.param(r"(?=b)|b", "abc", "a***c", id="nothing-before-something"),
        pytest.param('["(?<!a)b", "a"]', "ab", "******", id="uncovered-by-another"),
    ],
)
def test_what_the_users_own_patterns_match_is_hidden(
    setting: str, text: str, hidden: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One pattern or a JSON list, and what is hidden stays as it is."""
    monkeypatch.setenv(REDACT, setting)
    assert redact(text) == redact(redact(text)) == hidden


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "why"),
    [
        pytest.param("a(", r"'a\(' is not a regular expression: missing \)", id="no-pattern"),
        pytest.param('["ok", "b["]', r"'b\[' is not a regular expression", id="in-a-list"),
        pytest.param("a*", r"'a\*' matches the empty text", id="empty-match"),
        pytest.param("(a+)+$", r"'\(a\+\)\+\$' takes more than 1 s on a short text", id="endless"),
        pytest.param(r'["\d+"]', "begins like a JSON list, and is none: in JSON a backslash", id="half-a-list"),
    ],
)
def test_a_pattern_that_cant_be_used_is_refused(setting: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its text and the reason, before it hides too much or nothing."""
    monkeypatch.setenv(REDACT, setting)
    with pytest.raises(JobError, match=f"^{REDACT}: .*{why}"):
        redact("any")


@pytest.mark.slow
def test_a_pattern_that_takes_too_long_withholds_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """What can't be searched is neither told nor kept."""
    monkeypatch.setenv(REDACT, "(z+)+$")
    text = "z" * 5_000 + "!"
    assert secret_detector()(text)
    assert redact(text) == "(withheld: a pattern of PREFECT_DISPATCH_REDACT took too long on it)"
    with pytest.raises(TerminalError, match="took too long on an answer"):
        redact_json([text])


def test_a_pattern_that_uncovers_more_each_time_withholds_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is an end to going over it again."""
    monkeypatch.setenv(REDACT, r"(?<=\*)a|b")
    assert redact("b" + "a" * 5) == "***" * 6
    assert redact("b" + "a" * 50).startswith("(withheld")


@pytest.mark.parametrize(
    ("value", "clean"),
    [
        pytest.param({"a": ["sk-proj-0123456789", 1, None, True]}, {"a": ["***", 1, None, True]}, id="nested"),
        pytest.param({"api_key": "correct-horse", "b": 1}, {"api_key": "***", "b": 1}, id="by-name"),
        pytest.param({"password": "required"}, {"password": "required"}, id="a-word"),
        pytest.param({"ACME-1": 1, "ACME-2": 2, "ACME-3": 3}, {"***": 1, "*** (2)": 2, "*** (3)": 3}, id="keys"),
        pytest.param([4716, 4716.5, 4715], ["***", "***", 4715], id="numbers"),
    ],
)
def test_json_values(value: JsonValue, clean: JsonValue, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts, keys and numbers are gone through; two hidden keys are still two."""
    monkeypatch.setenv(REDACT, r"ACME-\d|4716(\.5)?")
    assert redact_json(value) == clean
    assert redact_json(clean) == clean


@pytest.mark.parametrize(
    "value",
    [
        pytest.param({"hunter22-x": 1}, id="key"),
        pytest.param([True, None, 471699123], id="number"),
        pytest.param({"a": [{"b": "so hunter22-x is"}]}, id="nested"),
        pytest.param({"api_key": "correct-horse"}, id="by-name"),
        pytest.param(["https://a.example/b?x-amz-signature=0123456789ab"], id="address"),
    ],
)
def test_a_secret_is_found_anywhere_in_a_value(value: JsonValue, monkeypatch: pytest.MonkeyPatch) -> None:
    """All texts of a value are searched at once, before each of them is searched by itself."""
    monkeypatch.setenv("A_KEY", "hunter22-x")
    monkeypatch.setenv("A_TOKEN", "471699123")
    assert "***" in json.dumps(redact_json(value))
    assert redact_json({"a": ["key", 4716, None, True]}) == {"a": ["key", 4716, None, True]}


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        pytest.param(r'{"a": "\u0068unter22-x"}', '{"a": "***"}', id="escaped"),
        pytest.param('```json\n{"a": "secret stuff"}\n```', '{"a": "***"}', id="greedy"),
        pytest.param('{"a": 1, "b": "é"}', '{"a": 1, "b": "é"}', id="clean"),
        pytest.param("It is hunter22-x, secret as it is.", "It is ***, ***", id="text"),
        pytest.param(r'{"a": "\u0068unter22-x", "a": 1}', '{"a": "***", "a": 1}', id="under-a-key-that-stands-twice"),
        pytest.param(r'{"a": "\u00e9 \/", "a": 1}', r'{"a": "\u00e9 \/", "a": 1}', id="clean-as-it-is"),
        pytest.param('{"ssn": 12, "b": 1}', '{***, "b": 1}', id="across-the-json"),
    ],
)
def test_what_an_agent_says_is_hidden_inside_json(said: str, kept: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """JSON in a text stays JSON where it can, and an escape hides nothing from us."""
    monkeypatch.setenv("A_KEY", "hunter22-x")
    monkeypatch.setenv(REDACT, '["secret.*", "\\"ssn\\": ?[0-9]+"]')
    assert Reply(value=said).value == kept
    assert Reply(value=None, model="m hunter22-x").model == "m ***"


def test_what_is_nested_too_deep_passes() -> None:
    """It is refused elsewhere, and nothing breaks here."""
    value: JsonValue = ["sk-proj-0123456789"]
    for _ in range(3_000):
        value = [value]
    assert isinstance(redact_json(value), list)


SECRETS = st.from_regex(r"[A-Za-z][0-9][A-Za-z0-9_-]{14,40}", fullmatch=True)
FORMS = st.sampled_from(
    [
        "Authorization: Bearer {}",
        "'authorization': 'Basic {}'",
        "x-api-key: {}",
        '"api_key": "{}"',
        "?key={}",
        "password={}",
        "Cookie: sid={}",
        "sk-proj-{}",
        "https://me:{}@host",
        "eyJhbGciOiJIUzI1NiJ9.{}.x",
        "Token: {}",
    ]
)
AROUND = st.text(max_size=30)


@given(SECRETS, FORMS, AROUND, AROUND)
def test_no_secret_survives_in_its_form(secret: str, form: str, before: str, after: str) -> None:
    """Whatever stands around it; and a second time changes nothing."""
    text = f"{before} {form.format(secret)} {after}"
    once = redact(text)
    assert secret not in once
    assert redact(once) == once


@pytest.mark.slow
@given(st.text(min_size=6, max_size=40).filter(lambda text: "\0" not in text and text.isprintable()), AROUND, AROUND)
def test_no_value_of_a_secret_variable_survives(secret: str, before: str, after: str) -> None:
    """Whatever it is, and whatever stands around it, unless the mark itself holds it."""
    os.environ["CANARY_API_KEY"] = secret
    try:
        once = redact(before + secret + after)
        assert secret not in once or secret in MARK * 10
        assert redact(once) == once
        assert (
            secret not in json.dumps(redact_json({before: [secret + after]}), ensure_ascii=False) or secret in MARK * 10
        )
    finally:
        del os.environ["CANARY_API_KEY"]


@given(st.text(alphabet="aB1 .:=*_-\"'sk?&@/\\{", max_size=60))
def test_scrubbing_twice_changes_nothing(text: str) -> None:
    """Also where texts almost look like secrets."""
    assert redact(redact(text)) == redact(text)
