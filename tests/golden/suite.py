# ruff: noqa: INP001 -- a script
"""Stands in for a test runner: a report that is the same wherever the environment is the same."""

from __future__ import annotations

import os
import sys
from pathlib import Path

NOW = os.environ
FAILED = {
    "test_west": NOW.get("ITEM_ZONE") == "EST5",
    "test_east": NOW.get("ITEM_ZONE") == "IST-5:30",
    "test_price": NOW.get("ITEM_SERVICE") == "2" and NOW.get("CURRENCY") == "CHF",
}


def main() -> int:
    """Write the report, and return 1 if a test has failed."""
    cases = [
        f'<testcase classname="suite" name="{name}" time="0.25">'
        + (f'<failure message="{name} failed">Here.</failure>' if failed else "")
        + "</testcase>"
        for name, failed in FAILED.items()
    ]
    cases.append('<testcase classname="suite" name="test_other" time="0.5"><skipped message="not here"/></testcase>')
    Path(sys.argv[1]).write_text(f'<testsuite name="suite">{"".join(cases)}</testsuite>', encoding="utf-8")
    return int(any(FAILED.values()))


if __name__ == "__main__":
    sys.exit(main())
