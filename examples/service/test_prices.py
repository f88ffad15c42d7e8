"""The integration tests of the service that listens on PORT, as `job.yaml` runs them in each environment."""

from __future__ import annotations

import json
import os
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest


def ask(path: str) -> dict[str, Any]:
    """Return what the service answers."""
    with urlopen(f"http://127.0.0.1:{os.environ['PORT']}{path}", timeout=10) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def test_version() -> None:
    """The version is the one that the environment started."""
    assert ask("/health") == {"version": os.environ["ITEM_SERVICE"]}


@pytest.mark.parametrize(("item", "exact"), [("tea", 412), ("cake", 388)])
def test_price(item: str, exact: int) -> None:
    """A price is in the currency that is set, and as close to the exact one as its coins allow."""
    found = ask(f"/price?item={item}")
    assert found["currency"] == os.environ["CURRENCY"]
    assert abs(found["cents"] - exact) <= int(os.environ.get("ROUND_TO", "1")) / 2


def test_unknown() -> None:
    """An item without a price is not found."""
    with pytest.raises(HTTPError, match="404"):
        ask("/price?item=gold")
