"""What the environment says."""

from __future__ import annotations

import pytest

from prefect_dispatch.errors import JobError
from prefect_dispatch.settings import (
    Settings,
    _own_variables,  # pyright: ignore[reportPrivateUsage] -- between the two, another thread comes
    environment_snapshot,
    settings,
)


def test_a_setting_that_changes_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment is looked at each time, whatever the case of its names."""
    monkeypatch.setenv("PREFECT_DISPATCH_MODEL", "openai/a")
    assert settings().model == "openai/a"
    monkeypatch.setenv("PREFECT_DISPATCH_MODEL", "openai/b")
    monkeypatch.setenv("prefect_dispatch_redact", "x+")
    assert settings() == Settings(model="openai/b", redact=("x+",))


def test_what_cant_be_used_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the reason, each time."""
    monkeypatch.setenv("PREFECT_DISPATCH_REDACT", "[")
    for _ in range(2):
        with pytest.raises(JobError, match=r"^PREFECT_DISPATCH_REDACT: the pattern '\[' is not a regular expression: "):
            settings()


def test_a_change_by_another_thread_is_not_mixed_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was looked up for one environment never holds another one's values, now or when it comes again."""
    monkeypatch.setenv("PREFECT_DISPATCH_STATE", "/state/one")
    before = environment_snapshot()
    monkeypatch.delenv("PREFECT_DISPATCH_STATE")
    assert ("PREFECT_DISPATCH_STATE", "/state/one") in _own_variables(before)
    monkeypatch.setenv("PREFECT_DISPATCH_STATE", "/state/one")
    assert settings().state == "/state/one"
