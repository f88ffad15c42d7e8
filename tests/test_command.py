"""A command: what is run, and what its exit code means."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from prefect_dispatch.models.brief import Command


def test_a_line_is_for_the_shell_and_words_are_for_no_shell() -> None:
    """A line stays one argument of `sh -c`; words are taken as they are."""
    assert Command(run='wc -w < "$ITEM_VALUE"').argv == ("/bin/sh", "-c", 'wc -w < "$ITEM_VALUE"')
    assert Command(run=("wc", "$HOME")).argv == ("wc", "$HOME")


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"run": ""}, "at least 1 character"),
        ({"run": []}, "at least 1 item"),
        ({"run": "a\0b"}, "pattern"),
        ({"run": "true", "ok": []}, "at least 1 item"),
        ({"run": "true", "ok": [256]}, "less than or equal to 255"),
        ({"run": "true", "retry": [0]}, "0 means success"),
        ({"run": "true", "ok": [0, 3], "retry": [3]}, "3 stands under 'ok' and under 'retry'"),
        ({"run": "true", "env": {"a b": "1"}}, "pattern"),
        ({"run": "true", "env": {"A": "1\0"}}, "pattern"),
        ({"run": "true", "report": ["../junit.xml"]}, "'../junit.xml' leads out of where the command runs"),
        ({"run": "true", "report": ["out/../../x"]}, "leads out of where"),
        ({"run": "true", "report": ["/out/*.xml"]}, "leads out of where"),
        ({"run": "true", "report": ["**/../x"]}, "goes up from"),
        ({"run": "true", "exit": [0]}, "unknown key 'exit'"),
    ],
)
def test_what_is_no_command_is_refused(said: dict[str, Any], why: str) -> None:
    """Each with what is wrong."""
    with pytest.raises(ValidationError, match=why):
        Command.model_validate(said)
