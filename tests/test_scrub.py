"""Secrets in texts."""

from __future__ import annotations

import pytest

from prefect_dispatch.scrub import scrub


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "GITHUB_TOKEN", "db-password", "AWS_SECRET_ACCESS_KEY", "MY_PAT"])
def test_values_of_secret_variables_are_hidden(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value of the environment whose name says that it is secret never shows."""
    monkeypatch.setenv(name, "correct-horse")
    assert scrub("refused: correct-horse!") == "refused: ***!"


@pytest.mark.parametrize(
    ("name", "value"),
    [pytest.param("MONKEY", "correct-horse", id="no-secret"), pytest.param("USE_KEY", "true", id="too-short")],
)
def test_other_values_stay(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages aren't garbled by variables that hold no secret."""
    monkeypatch.setenv(name, value)
    assert scrub(f"it is {value}") == f"it is {value}"


def test_a_secret_that_holds_another_is_hidden_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """The longer one goes first."""
    monkeypatch.setenv("A_KEY", "secret")
    monkeypatch.setenv("B_KEY", "secret-and-more")
    assert scrub("secret-and-more") == "***"


@pytest.mark.parametrize(
    "text",
    ["sk-ant-REDACTED", "AIzaSyA0123456789", "https://user:hunter22@example.org", "Authorization: Bearer abc.def"],
)
def test_what_looks_like_a_key_is_hidden(text: str) -> None:
    """Keys show their shape even where no variable holds them."""
    assert "***" in scrub(text)
    assert not any(part in scrub(text) for part in ("0123", "hunter22", "abc.def"))
