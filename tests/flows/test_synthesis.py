"""A synthesis as a job: the writer's questions are task runs like all others, and paid for once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from prefect_dispatch import Brief, Item, Limits, Synthesize, dispatch
from prefect_dispatch.cli.commands import main
from prefect_dispatch.errors import DispatchFailed, RejectedError, TerminalError
from prefect_dispatch.executors.llm.local_model import has_smollm2
from prefect_dispatch.testing import ScriptedExecutor
from tests.integrators.writers import sloppy

if TYPE_CHECKING:
    from pydantic import JsonValue

    from prefect_dispatch.executors.base import Ask

LICENSES = Path(__file__).parents[2] / "examples" / "licenses"
PERIOD = Brief(name="period", instructions="Say how long it is kept.")
ITEMS = [Item(key=f"item-{at}", value=7 * at + 3) for at in range(30)]
QUICK = Limits(retries=0, reasks=0)


def work(ask: Ask) -> JsonValue:
    """Answer for an item, and write sloppily of all answers."""
    if ask.brief.name == PERIOD.name:
        if ask.item.key == "item-5":
            raise RejectedError("Not this one.", kind="refused")
        return f"the period is {ask.item.value} days"
    return sloppy(3)(ask)


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_a_synthesis_is_paid_for_once() -> None:
    """The second run, its items shuffled, asks nobody but the one that failed, and says the same."""
    by = Synthesize(instructions="Sum up.", context_tokens=600)
    scripted = ScriptedExecutor(work)
    report = dispatch([PERIOD], ITEMS, executor=scripted, integrator=by, limits=QUICK)
    assert (report.status, len(report.violations)) == ("gaps", 0)
    assert "No answer for 1 of 30: period/item-5 (refused)." in str(report.value)
    assert report.integration.asked == scripted.calls - len(ITEMS)
    assert report.integration.asked > 3
    assert report.flags
    again = dispatch([PERIOD], ITEMS[::-1], executor=scripted, integrator=by, limits=QUICK)
    assert (again.integration.asked, again.integration.cached) == (0, report.integration.asked)
    assert again.model_dump_json(include={"value", "ledger", "flags", "rules"}) == report.model_dump_json(
        include={"value", "ledger", "flags", "rules"}
    )


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_a_wrong_key_of_the_writer_fails_the_run() -> None:
    """The answers are stored, no text is made up, and the message says why."""

    def locked(ask: Ask) -> JsonValue:
        raise TerminalError("Wrong key.")

    by = Synthesize(instructions="Sum up.", executor=ScriptedExecutor(locked, fingerprint="locked"))
    with pytest.raises(DispatchFailed, match=r"Wrong key\.") as failed:
        dispatch([PERIOD], ITEMS[:3], executor=ScriptedExecutor(work), integrator=by, limits=QUICK)
    assert failed.value.report.value is None
    assert failed.value.report.usage.asked == 4


@pytest.mark.model
@pytest.mark.long
@pytest.mark.skipif(not has_smollm2(), reason="needs prefect-dispatch[local]")
@pytest.mark.timeout(1500)
@pytest.mark.usefixtures("store")
def test_a_real_model_synthesises_the_answers(tmp_path: Path) -> None:
    """A small model writes badly: every answer is there all the same, cited or word for word."""
    job = str(LICENSES / "synthesis.yaml")
    changes = ["--set", "integrator.reasks=1", "--set", "limits.timeout_s=400", "--set", "limits.min_success=0"]
    assert main(["run", job, "--limit", "3", "--out", str(tmp_path), *changes]) in (0, 3)
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert [row["disposition"] for row in report["ledger"]] == ["merged"] * 3
    assert report["violations"] == []
    text = report["value"]
    assert text.count("## Sources") == 1
    for at, row in enumerate(report["ledger"], 1):
        cited = row["reason"].startswith("cited in sentence")
        assert cited != (f"\n[{at}] license-terms/{row['item']}:\n    {{" in text)
    assert report["integration"]["asked"] >= 1
