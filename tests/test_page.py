"""What a report's page holds: all of a report, cut where it says so, without secrets, and nothing that is active."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from prefect_dispatch.models.brief import Brief
from prefect_dispatch.models.checks import MaxWords
from prefect_dispatch.models.decisions import Decisions
from prefect_dispatch.models.item import Item
from prefect_dispatch.models.ledger import Ref, Table, Violation
from prefect_dispatch.models.outcome import Attempt, Failure, Outcome, Usage
from prefect_dispatch.models.report import Changes, Report
from prefect_dispatch.reporting.html.document import (
    ASSETS_FOLDER,
    LENGTHS,
    MAX_TOTAL,
    TextPreviews,
    fit_length,
    load_assets,
    missing_library,
    to_script_json,
)
from prefect_dispatch.reporting.html.page import (
    BLOCK_SIZE,
    COLUMNS,
    MAX_ATTEMPTS,
    MAX_ENTRIES,
    MAX_FIELDS,
    MAX_SOURCES,
    ItemViews,
    attempt_spans,
    build_summary,
    count_at_once,
    count_untimed,
    outcome_rows,
    render_page,
    select_outcomes,
)
from tests.reports import BRIEF, made

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import JsonValue

HOSTILE = "</script><script>alert(1)</script><!--<img src=x onerror=alert(1)>&\u2028\u2029\"'`${1}"


def data(html: str) -> dict[str, Any]:
    """Return the data of a page by the id of its element."""
    found = re.findall(r'<script type="application/json" id="([\w-]+)">(.*?)</script>', html)
    return {name: json.loads(text) for name, text in found}


def told(report: Report, briefs: Sequence[Brief] = (), items: Sequence[Item] = ()) -> dict[str, Any]:
    """Return the data of a report's page."""
    return data("".join(render_page(report, briefs, items)))


def row(outcome: Outcome, report: Report | None = None) -> dict[str, Any]:
    """Return the row of an outcome."""
    report = report or Report(status="complete", message="", outcomes=(outcome,))
    (only,) = outcome_rows(report, (outcome,), TextPreviews())
    return dict(zip(COLUMNS, only, strict=True))


def test_all_of_a_report() -> None:
    """Rows, attempts, conflicts with both sides, changes, flags, proposals, tables and rules: it is all there."""
    report, briefs, items = made(250)
    found = told(report, briefs, items)
    whole = found["report"]
    assert [block for block in found if block.startswith("block-")] == ["block-0", "block-1", "block-2"]
    assert [len(found[f"block-{n}"]) for n in range(3)] == [BLOCK_SIZE, BLOCK_SIZE, 50]
    assert (len(found["rows"]), whole["rows"]) == (250, [250, 250])
    assert whole["counts"]["gaps"] == len(report.gaps) == sum(whole["failures"].values())
    assert len(whole["conflicts"]) == whole["counts"]["conflicts"] > 0
    first = whole["conflicts"][0]
    assert (first["winner"], first["losers"][0]["value"]) == (["permissive"], ["copyleft"])
    assert first["sources"]["names"] != first["losers"][0]["sources"]["names"]
    assert whole["changes"]["counts"] == {"new": 2, "gone": 1, "changed": 3}
    assert [len(whole[name]) for name in ("flags", "proposals", "tables")] == [1, 1, 1]
    assert whole["rules"] == report.rules
    assert whole["plan"]["to_ask"] == 250


def test_an_items_page() -> None:
    """It holds the brief as it reads for the item, the item, every attempt, what was invalid, answer and fields."""
    report, briefs, items = made(40)
    shown = told(report, briefs, items)
    of = shown["block-0"][2]
    assert of["prompt"]["instructions"] == ["Say what the licence Licence 2 allows and demands."]
    assert shown["report"]["briefs"]["licence-terms"]["constraints"][1] == ["Quote no more than ten words."]
    assert json.loads(of["value"][0]) == items[2].value
    assert json.loads(of["answer"][0])["name"] == "Licence 2"
    (attempt,) = of["attempts"]
    assert attempt["rejections"] == [[["Forty-two."], ["The answer is not JSON:"]]]
    assert attempt["started"].startswith("2026-03-02T")
    assert of["gave"] == [["/records/2/family", ["permissive"], "majority"]]
    assert of["lost"] == [["/records/3/family", ["copyleft"], "majority"]]
    assert [each["error"] is None for each in shown["block-0"][3]["attempts"][:1] if "error" in each] == [False]
    failed = shown["block-0"][5]
    assert (failed["answer"], failed["error"]) == (None, ["invalid_output: Nothing came of it."])


def test_a_page_without_briefs_or_items() -> None:
    """A report alone makes a page, too; what isn't known is left out."""
    report, _, _ = made(3)
    found = told(report)
    assert found["report"]["briefs"] == {}
    assert [(each["prompt"], each["value"]) for each in found["block-0"]] == [(None, None)] * 3
    empty = told(Report(status="failed", message="Nothing."))
    assert (empty["rows"], empty["spans"], empty["report"]["value"]) == ([], [], None)


def test_a_brief_that_is_the_same_for_all() -> None:
    """Words that are the same for every item stand once."""
    brief = BRIEF.model_copy(update={"instructions": "Name it.", "checks": (MaxWords(field="name", words=8),)})
    report, _, items = made(3)
    found = told(report, [brief], items)
    assert [each["prompt"] for each in found["block-0"]] == [{}] * 3
    assert found["report"]["briefs"]["licence-terms"]["checks"] == [["max_words, field name, words 8"]]
    braces = told(report, [brief.model_copy(update={"instructions": "Name it as { here"})], items)
    assert [each["prompt"] for each in braces["block-0"]] == [{}] * 3


def test_nothing_hostile_is_active() -> None:
    """Whatever an answer, an item or an error says: it ends no element, and opens none."""
    report, briefs, items = made(40, text=HOSTILE)
    html = "".join(render_page(report, briefs, items))
    scripts = load_assets().libraries
    assert html.count("<script") == html.count("</script>") == 1 + len(scripts) + len(data(html))
    bare = re.sub(r"<script.*?</script>|<style.*?</style>", "", html, flags=re.DOTALL)
    assert "alert" not in bare
    assert "onerror" not in bare
    assert not set(re.findall("[<>&\u2028\u2029]", to_script_json([HOSTILE])))
    assert json.loads(to_script_json([HOSTILE])) == [HOSTILE]
    assert data(html)["rows"][0][1] == f"texts/00000.txt{HOSTILE}"


def test_the_policy_names_every_script() -> None:
    """Only scripts that stand in the file run, by their digests; nothing is fetched, framed or sent."""
    report, briefs, items = made(3)
    html = "".join(render_page(report, briefs, items))
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)
    scripts = re.findall(r"<script>(.*?)</script>", html, flags=re.DOTALL)
    assert len(scripts) == 3
    for script in scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert "require-trusted-types-for 'script'" in policy
    assert "sourceMappingURL" not in html


def test_licences_are_told() -> None:
    """A page holds copies of the libraries, so it holds their licences."""
    report, briefs, items = made(3)
    licences = told(report, briefs, items)["report"]["licences"]
    assert [each["name"] for each in licences] == ["chart.js", "ag-grid-community"]
    assert all("Permission is hereby granted" in each["text"] for each in licences)


def test_its_texts_have_plain_words() -> None:
    """The page is read by people who know none of the words of its authors."""
    scripts = "".join(
        path.read_text(encoding="utf-8") for path in Path(render_page.__code__.co_filename).parent.glob("script/*.js")
    )
    assert "Arrow keys move" in scripts
    assert re.findall(r"(?i)\b(?:nobody|somebody|whoever|whatever|anew|heed|mend|tells? of)\b", scripts) == []


def test_a_missing_library(tmp_path: Path) -> None:
    """The message says which one, and what brings it."""
    shutil.copytree(ASSETS_FOLDER, tmp_path / "page", ignore=shutil.ignore_patterns("chart.js"))
    assert re.search(r"chart\.js .* is missing.*uv sync --reinstall-package", missing_library(tmp_path / "page"))
    assert not missing_library()


def test_no_secret_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in a prompt nor an item nor an answer, be it cut in two by the length of a preview."""
    monkeypatch.setenv("MY_API_KEY", "correct-horse-battery")
    report, briefs, items = made(3, text=" correct-horse-battery")
    assert "correct-horse-battery" in report.model_dump_json()
    found = told(report, briefs, items)
    for name in ("block-0", "spans"):
        assert "correct-horse" not in json.dumps(found[name])
    shown = TextPreviews().preview("x" * 20 + "correct-horse-battery" + "y" * 60, 30)
    assert shown == ["x" * 20 + "***" + "y" * 7, 71]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "length"),
    [
        pytest.param([10] * 5, LENGTHS[0], id="few"),
        pytest.param([10] * 100_000, LENGTHS[0], id="many-short"),
        pytest.param([5_000] * 10_000, LENGTHS[2], id="many-long"),
        pytest.param([5_000] * 1_000_000, LENGTHS[-1], id="too-many"),
    ],
)
def test_the_length_of_a_preview(sizes: list[int], length: int) -> None:
    """Texts are shown as far as all of them together allow."""
    assert fit_length(sizes) == length
    assert sum(min(size, length) for size in sizes) <= MAX_TOTAL or length == LENGTHS[-1]


def test_what_is_cut_says_so() -> None:
    """A long text has the number of characters that are missing; a short one none."""
    item = Item(key="a", value="word " * 2_000)
    outcome = Outcome(brief="b", item="a", status="succeeded", value="x" * 4_000)
    pages = ItemViews([outcome], [Brief(name="b", instructions="Read.")], [item], (), TextPreviews())
    ((shown,),) = pages.iter_blocks()
    assert (len(shown["value"][0]), shown["value"][1]) == (4_000, 6_000)
    assert shown["answer"] == ["x" * 4_000]


def test_lists_are_bounded() -> None:
    """Of many attempts the last are shown, of many fields, rows, sources and names the first, with their number."""
    attempts = tuple(Attempt(error=f"timeout: {n}") for n in range(MAX_ATTEMPTS + 5))
    outcome = Outcome(brief="b", item="a", status="failed", attempts=attempts)
    report, _, _ = made(2)
    (field,) = report.fields[:1]
    many = [field.model_copy(update={"path": f"/{n}", "sources": (Ref(brief="b", item="a"),)}) for n in range(100)]
    ((shown,),) = ItemViews([outcome], (), (), many, TextPreviews()).iter_blocks()
    assert (len(shown["attempts"]), shown["earlier"], len(shown["gave"])) == (MAX_ATTEMPTS, 5, MAX_FIELDS)
    names = tuple(Ref(brief="b", item=str(n)) for n in range(MAX_ENTRIES + 1))
    wide = field.model_copy(update={"sources": names, "losers": (made(40)[0].fields[3].losers[0],) * (MAX_SOURCES + 1)})
    figures: dict[str, JsonValue] = {"n": 1}
    table = Table(name="t", title="T", rows=(figures,) * (MAX_ENTRIES + 1))
    long = report.model_copy(update={"fields": (wide,), "tables": (table,), "changes": Changes(new=names)})
    whole = build_summary(long, TextPreviews())
    (conflict,) = whole["conflicts"]
    assert (len(conflict["sources"]["names"]), conflict["sources"]["of"]) == (MAX_SOURCES, MAX_ENTRIES + 1)
    assert (len(conflict["losers"]), conflict["of"]) == (MAX_SOURCES, MAX_SOURCES + 1)
    assert (len(whole["tables"][0]["rows"]), whole["tables"][0]["of"]) == (MAX_ENTRIES, MAX_ENTRIES + 1)
    assert (len(whole["changes"]["names"]["new"]), whole["changes"]["counts"]["new"]) == (MAX_ENTRIES, MAX_ENTRIES + 1)


def test_rows_without_an_answer_go_before() -> None:
    """Of more items than a page shows, those that came to nothing are there; the order stays that of every list."""
    report, _, _ = made(40)
    shown = select_outcomes(report, 5)
    gaps = [outcome.item for outcome in report.outcomes if outcome.status == "failed"]
    assert len(shown) == 5
    assert {*gaps} <= {outcome.item for outcome in shown}
    assert [outcome.item for outcome in shown] == sorted(outcome.item for outcome in shown)


def test_a_row() -> None:
    """It sums up the attempts; what is unknown stays unknown, and a long text is one line."""
    attempts = (Attempt(usage=Usage(requests=1, prompt_tokens=3, cost_usd=None), reasks=1, waits=2, seconds=1.5),) * 2
    value = "one\ntwo " * 100
    found = row(Outcome(brief="b", item="a", status="succeeded", value=value, attempts=attempts, origin="asked"))
    assert (found["tokens"], found["cost"], found["seconds"], found["reasks"], found["waits"]) == (6, None, 3.0, 2, 4)
    assert (found["disposition"], found["by"], found["kind"]) == ("", "", "")
    assert "\n" not in found["answer"]
    assert found["answer"].endswith("…")
    report, _, _ = made(40)
    duplicate = next(each for each in report.ledger if each.by)
    assert row(report.outcomes[4], report)["by"] == str(duplicate.by)
    assert row(report.outcomes[1], report)["change"] == "changed"


def test_when_attempts_ran() -> None:
    """A span for each attempt of this run, retries and the integrator's own included; stored answers have none."""
    report, _, _ = made(40)
    asked = report.outcomes[0].model_copy(update={"brief": "judge"})
    found = list(attempt_spans(report.model_copy(update={"asked": (asked,)}), report.outcomes))
    assert {span[0] for span in found} == {
        -1,
        *(n for n, outcome in enumerate(report.outcomes) if outcome.origin == "asked"),
    }
    assert found[-1][6] == "judge/texts/00000.txt"
    assert found[0][:6] == [0, 0.0, report.outcomes[0].attempts[0].seconds, 0.0, 1, 0]
    retried = [span for span in found if span[0] == 3]
    assert [(span[4], span[5]) for span in retried] == [(1, 1), (2, 0)]
    assert retried[1][1] == pytest.approx(retried[0][1] + retried[0][2])
    for run in ({}, {"started": "yesterday"}):
        assert not list(attempt_spans(report.model_copy(update={"run": run}), report.outcomes))


def test_how_many_attempts_ran_at_once() -> None:
    """Never more than the run allowed: neither by rounding, nor where an attempt freed its slot in between."""
    report, _, _ = made(40)
    spans = list(attempt_spans(report, report.outcomes))
    assert count_at_once(report, spans) == 8
    in_turn = [[0, 0.0, 1.0005, 0.0, 1, 0, ""], [1, 1.0, 1.0, 0.0, 1, 0, ""], [2, 2.0, 0.0, 0.0, 1, 0, ""]]
    assert count_at_once(Report(status="complete", message=""), in_turn) == 1
    overlapping = [[row, 0.0, 2.0, 0.0, 1, 0, ""] for row in range(9)]
    assert count_at_once(report, overlapping) == 8
    assert count_at_once(report.model_copy(update={"run": {}}), overlapping) == 9
    assert count_at_once(report, []) == 0


def test_attempts_without_a_time() -> None:
    """What ran in a batch has no time of its own, and is counted."""
    batch = Outcome(brief="b", item="a", status="succeeded", attempts=(Attempt(), Attempt()), origin="asked")
    report = Report(status="complete", message="", outcomes=(batch,), run={"started": "2026-03-02T09:30:00+00:00"})
    assert not list(attempt_spans(report, report.outcomes))
    assert count_untimed(report.outcomes) == 2


def test_a_model_that_was_given_up() -> None:
    """Why somebody else was asked stands with the attempt, in one line each."""
    first = Attempt(escalations=(Failure(kind="invalid_output", message="No\nJSON."),))
    outcome = Outcome(brief="b", item="a", status="succeeded", value=1, origin="asked", attempts=(first,))
    report = Report(status="complete", message="", outcomes=(outcome,))
    (attempt,) = told(report)["block-0"][0]["attempts"]
    assert attempt["escalations"] == ["invalid_output: No JSON."]


def test_spending_by_brief_and_model() -> None:
    """What this run spent, by who answered; an unknown price makes the sum unknown, a stored answer cost nothing."""
    usage = Usage(requests=1, prompt_tokens=10, completion_tokens=2, cost_usd=0.1)
    unknown = usage.model_copy(update={"cost_usd": None})
    first = Outcome(
        brief="b", item="1", status="succeeded", model="m", attempts=(Attempt(usage=usage),), origin="asked"
    )
    second = first.model_copy(update={"item": "2"})
    third = first.model_copy(update={"item": "3", "model": "n", "attempts": (Attempt(usage=unknown),)})
    outcomes = [first, second, third, first.model_copy(update={"item": "4", "origin": "stored"})]
    report = Report(status="complete", message="", outcomes=tuple(outcomes))
    assert build_summary(report, TextPreviews())["spending"] == [
        ["b", "m", 2, 2, 20, 4, 0.2],
        ["b", "n", 1, 1, 10, 2, None],
    ]


def test_figures_that_no_browser_can_hold() -> None:
    """A number beyond what JavaScript is exact in is shown as text; so is what is neither number nor text."""
    cells: dict[str, JsonValue] = {"big": 2**60, "small": 2, "share": 0.5, "yes": True, "none": None, "list": [1, 2]}
    report = Report(status="complete", message="", tables=(Table(name="t", title="T", rows=(cells,)),))
    (shown,) = build_summary(report, TextPreviews())["tables"]
    assert shown["columns"] == list(cells)
    assert shown["rows"] == [[str(2**60), 2, 0.5, True, None, "1; 2"]]


def test_decisions_and_violations() -> None:
    """What the audit found and what a review decided is on the page."""
    report = Report(
        status="failed",
        message="Broken.",
        value="A text.",
        violations=(Violation(law="recall", where="b/a", message="It is lost."),),
        decided=Decisions(same=(({"name": "A"}, {"name": "B"}),)),
    )
    whole = build_summary(report, TextPreviews())
    assert whole["violations"] == [["recall", "b/a", "It is lost."]]
    assert whole["decided"]["same"] == [[{"name": "A"}, {"name": "B"}]]
    assert (whole["value"], whole["prose"]) == (["A text."], True)


def test_the_title_names_some_briefs() -> None:
    """The window is called by its briefs, few of them."""
    outcomes = tuple(Outcome(brief=f"b{n}", item="a", status="skipped") for n in range(5))
    html = "".join(render_page(Report(status="failed", message="", outcomes=outcomes)))
    assert "<title>b0, b1, b2 and 2 more: failed</title>" in html


@pytest.mark.skipif(
    shutil.which("node") is None and not os.environ.get("CI"), reason="node is not installed; .ci/run requires it"
)
def test_the_scripts_are_whole(tmp_path: Path) -> None:
    """The page's own script is valid."""
    import subprocess  # noqa: PLC0415 -- only here

    script = tmp_path / "page.js"
    script.write_text(load_assets().page_script)
    subprocess.run([shutil.which("node") or "node", "--check", str(script)], check=True)  # noqa: S603 -- our own script
