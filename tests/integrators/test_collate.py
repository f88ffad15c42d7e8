"""Collating: every answer in the value, every outcome in the ledger."""

from __future__ import annotations

from prefect_dispatch.integrators.collate import Collate
from tests.integrators.said import entries, miss, say


def test_answers_stand_in_the_order_of_their_items_and_briefs() -> None:
    """Numbers inside keys count by their value; of one item, briefs come by name."""
    said = [say("f10", 1), say("f9", 2), say("f9", 3, brief="facts")]
    assert entries(Collate().merge([], said)) == [
        {"brief": "facts", "item": "f9", "value": 3},
        {"brief": "terms", "item": "f9", "value": 2},
        {"brief": "terms", "item": "f10", "value": 1},
    ]


def test_each_answer_is_traced() -> None:
    """A field row leads to each answer and names the outcome that it comes from."""
    [row] = Collate().merge([], [say("a", {"x": 1}), miss("b")]).fields
    assert (row.path, row.winner, row.rule, [*map(str, row.sources)]) == (
        "/answers/0/value",
        {"x": 1},
        "collate",
        ["terms/a"],
    )


def test_what_has_no_answer_is_in_the_ledger() -> None:
    """Failed and skipped outcomes are gaps of the value, and in the ledger with the reason."""
    merge = Collate().merge([], [miss("b"), miss("c", "skipped"), say("a", None)])
    assert [(row.item, row.disposition, row.reason) for row in merge.ledger] == [
        ("a", "merged", ""),
        ("b", "failed", "timeout: No answer."),
        ("c", "skipped", "timeout: No answer."),
    ]
    assert merge.value == {
        "answers": [{"brief": "terms", "item": "a", "value": None}],
        "gaps": [
            {"brief": "terms", "item": "b", "status": "failed", "reason": "timeout: No answer."},
            {"brief": "terms", "item": "c", "status": "skipped", "reason": "timeout: No answer."},
        ],
    }


def test_a_failure_without_a_reason_has_its_row() -> None:
    """An outcome that doesn't say why it failed is in the ledger all the same."""
    bare = miss("a").model_copy(update={"error": None})
    assert [row.reason for row in Collate().merge([], [bare]).ledger] == [""]
