"""`check_text`: what a text says otherwise than its sources is doubtful, and an honest paraphrase is not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from prefect_dispatch import check_text
from prefect_dispatch.errors import JobError, TerminalError, TransientError
from prefect_dispatch.integrators.audit import audit
from prefect_dispatch.integrators.synthesize.answer_index import number_answers
from prefect_dispatch.integrators.synthesize.findings import check_claims
from prefect_dispatch.integrators.synthesize.output_format import WORDING_RULE
from prefect_dispatch.integrators.synthesize.synthesize import Synthesize
from prefect_dispatch.testing import ScriptedExecutor
from tests.integrators.said import say
from tests.integrators.writers import Desk

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import JsonValue

    from prefect_dispatch.executors.base import Ask

SOURCES: list[JsonValue] = [
    "The client, a bakery in Leipzig, paid 1,234,567 euros in the fourth quarter. Its revenue grew by 11.8 % in 2023.",
    "Bosch delivers spare parts within five weeks. The contract may be ended, but not before 31 March 2025.",
    "The court did not grant the appeal of the Siemens board. Three judges signed the safe and permanent settlement.",
    {"name": "Zlib", "years": 7, "copyleft": False, "patents": None, "note": "Keep the notice in coronavirus studies."},
    {"name": "Apache", "years": 9, "copyleft": False, "tags": ["permissive"]},
]

WRONG: dict[str, tuple[str, str]] = {
    "nothing-in-common": ("Everything was looked into [1][2][3].", "support"),
    "another-predicate": ("The client is bankrupt [1].", "support"),
    "a-dropped-finding": ("Bosch delivers spare parts [2][3].", "source"),
    "negated": ("Bosch doesn't deliver spare parts within five weeks [2].", "negation"),
    "negated-anew": ("The bakery paid, and nobody objected [1].", "negation"),
    "a-lost-negation": ("The court granted the appeal of the Siemens board [3].", "negation"),
    "another-direction": ("The revenue of the bakery in Leipzig fell by 11.8 % in 2023 [1].", "direction"),
    "a-negative-prefix": ("Three judges signed the unsafe settlement [3].", "direction"),
    "an-opposite": ("Three judges signed the temporary settlement [3].", "direction"),
    "stronger": ("Bosch always delivers spare parts within five weeks [2].", "direction"),
    "another-name": ("The client, a bakery in Dresden, paid in the fourth quarter [1].", "name"),
    "a-name-at-the-start": ("Ada Lovelace signed the settlement of the board [3].", "name"),
    "another-unit": ("Bosch delivers spare parts within five days [2].", "unit"),
    "another-number": ("Bosch delivers spare parts within six weeks [2].", "number"),
    "another-amount": ("The client paid about 1.3 million euros [1].", "number"),
    "not-that-much": ("The client paid more than 2 million euros [1].", "number"),
    "another-quarter": ("The client paid in the third quarter [1].", "number"),
    "another-date": ("The contract may not be ended before 30 March 2025 [2].", "date"),
    "another-subject": ("Zlib has 9 years of copyleft notice [4][5].", "subject"),
    "other-words": ('The court said "we refuse" [3].', "quotation"),
    "uncited": ("Bosch delivers spare parts.\n\nThe client paid [1].", "claim"),
    "unknown": ("The client paid [9].", "citation"),
    "a-long-detail": (
        "The client, a bakery in Leipzig, paid in the fourth quarter as heavy machinery repairs caused delays [1].",
        "support",
    ),
    "words-torn-apart": ("Quarter, client, euros, revenue; Leipzig grew bakery [1].", "support"),
}
HONEST = {
    "rounded": "The client paid about 1.2 million euros [1].",
    "rounded-per-cent": "Revenue grew by 12 % [1].",
    "a-bound": "The client paid more than 1 million euros [1]. It paid less than 1,300,000 euros [1].",
    "a-quarter": "The client paid in Q4 [1].",
    "covid": "Zlib is about COVID-19 studies [4].",
    "two": "Two suppliers are involved: Bosch delivers spare parts [2]. The client paid [1].",
    "a-term": 'The client, a "quick payer", paid in the fourth quarter [1].',
    "a-term-of-the-source": "Bosch delivers “spare parts” [2].",
    "a-number-word": "Bosch delivers within 5 weeks [2].",
    "false-is-no": "Zlib has no copyleft [4].",
    "silence": "It does not mention the costs of spare parts [2].",
    "silent-on-one": "Neither Zlib nor Bosch grants a discount on spare parts [2][4].",
    "a-negation": "The appeal was not granted by the court [3].",
    "meta": "Both agree [4][5].",
    "a-form": "Delivery of a spare part by Bosch takes five weeks [2].",
    "an-acronym": "Bosch delivers SP within five weeks [2].",
    "a-word-of-the-same-side": "Its revenue rose by 11.8 % in 2023 [1].",
    "a-heading": "## Payments and Deliveries\n\nThe client paid [1].",
    "a-date": "The contract may be ended, but not before March 2025 [2].",
    "a-title": "The Siemens board lost the appeal, which the court did not grant [3].",
}


@pytest.mark.parametrize(("text", "kind"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_doubtful(text: str, kind: str) -> None:
    """Each doubt is on words of the text, with a reason."""
    found = check_text(text, SOURCES)
    reasons = [reason for each in found.sentences for reason in each.reasons]
    assert kind in {reason.kind for reason in reasons}
    assert all(text[reason.start : reason.end] == reason.text for reason in reasons)
    assert all(reason.message.endswith(".") and "{" not in reason.message for reason in reasons)
    assert not found.is_clean


@pytest.mark.parametrize("text", HONEST.values(), ids=HONEST)
def test_an_honest_text_is_clean(text: str) -> None:
    """Paraphrases, rounded amounts, terms in quotation marks and counts are no doubts."""
    found = check_text(text, SOURCES)
    assert [reason for each in found.sentences for reason in each.reasons] == []
    assert {each.verdict for each in found.sentences} <= {"supported", "heading"}


def test_sources_without_a_trace() -> None:
    """A source that no sentence cites is reported; in a text without citations, one of which nothing stands there."""
    found = check_text("The client paid [1].", SOURCES[:2])
    assert [each.message for each in found.flags] == ["No sentence cites [2] (source/2)."]
    found = check_text("The client, a bakery in Leipzig, paid.", SOURCES[:2])
    assert [each.message for each in found.flags] == ["Nothing of [2] (source/2) stands in the text."]
    assert found.labels == ("source/1", "source/2")
    assert check_text("The client paid. Bosch delivers.", SOURCES[:2]).is_clean


def test_sources_that_say_the_same() -> None:
    """An answer whose words all others have, too, is traced by half of a sentence."""
    same = ["Keep the notice.", "Keep the notice."]
    assert check_text("Both keep the notice [1][2].", same).is_clean


def test_other_languages_are_compared_by_figures_alone() -> None:
    """The rules on the wording are for English: a German noun is no name."""
    german = ["Der Vertrag kann von den Parteien mit einer Frist von 5 Wochen gekündigt werden."]
    assert check_text(
        "Die Kündigung ist mit einer Frist von 5 Wochen und ohne Angabe der Gründe möglich [1].", german
    ).is_clean
    found = check_text("Die Kündigung ist mit einer Frist von 6 Wochen möglich [1].", german)
    assert [reason.kind for reason in found.flags] == ["number"]
    assert check_text("The notice period is 5 weeks for the lessee [1].", german).is_clean
    assert check_text("这是测试 [1].", ["这是测试"]).is_clean


@pytest.mark.parametrize(
    ("text", "sources", "message"),
    [
        (" \n", ["a"], "The text to check is empty."),
        ("a", [" "][:0], "There is no source"),
        ("a", ["", None], "There is no source"),
        ("a", "one text", "pass a list of texts"),
        ("a" * 1_000_001, ["a"], "too long"),
    ],
)
def test_what_cannot_be_checked(text: str, sources: Sequence[Any], message: str) -> None:
    """An empty or endless text is refused before anything is compared."""
    with pytest.raises(JobError, match=message):
        check_text(text, sources)


def test_the_text_of_a_synthesis_is_checked_without_what_was_added() -> None:
    """Marks, the list of sources and the answers below are no sentences; the flags are those of the report."""
    said = [say("a", "Keep it for 5 years in Leipzig."), say("b", "Bosch pays the client.")]
    text = "Keep it for 6 years in Dresden [1]."
    synthesize = Synthesize(instructions="Write.", reasks=0)
    desk = Desk(ScriptedExecutor(lambda _: text))
    merge = synthesize.merge_asking([], said, desk)
    assert audit(merge, said, [], synthesize, again=lambda again: synthesize.merge_asking([], again, desk)) == ()
    found = check_text(str(merge.value), said)
    assert [each.text for each in found.sentences] == [text]
    assert {reason.kind for each in found.sentences for reason in each.reasons} == {flag.kind for flag in merge.flags}
    assert {flag.kind for flag in merge.flags} == {"number", "name"}
    # What the wording rules find is a flag, and neither a mark nor a fault that is sent back.
    assert str(merge.value).startswith("Keep it for 6 [unverified] years in Dresden [1].")
    # A flag that was taken away is missed, but not in a report of a version that had none.
    fewer = merge.model_copy(update={"flags": tuple(flag for flag in merge.flags if flag.kind == "number")})
    assert {each.law for each in audit(fewer, said, [], synthesize)} == {"precision"}
    earlier = fewer.model_copy(update={"rules": merge.rules.replace(WORDING_RULE, "")})
    assert audit(earlier, said, [], synthesize) == ()


def test_a_judge_is_asked_after_the_rules() -> None:
    """Headings go to the judge, too; of one that cites nothing, only a contradiction is a doubt."""

    def judge(ask: Ask) -> Any:  # noqa: ANN401 -- JSON
        claim = str(ask.item.value)
        if "Rivals" in claim:
            return {"label": "contradicted", "sentence": "Bosch delivers to the client."}
        if "Deliveries" in claim:
            return {"label": "not_found", "sentence": ""}
        if "client" in claim.partition("Answers:")[0]:
            return {"label": "supported", "sentence": "Bosch delivers to the client."}
        raise TransientError("busy")

    headings = "## Bosch, Rivals and Client\n\n## Deliveries to the Client of Bosch\n\n"
    text = f"{headings}Bosch delivers to the client [1]. Bosch delivers [1]."
    found = check_text(text, ["Bosch delivers to the client."], judge=ScriptedExecutor(judge))
    assert [(each.verdict, [reason.kind for reason in each.reasons]) for each in found.sentences] == [
        ("doubtful", ["contradicted"]),
        ("heading", []),
        ("supported", []),
        ("supported", []),
    ]
    assert found.judged == 3
    assert found.cost_usd == 0

    def stop(_: Ask) -> Any:  # noqa: ANN401 -- never returns
        raise TerminalError("wrong key")

    with pytest.raises(TerminalError):
        check_text("Bosch delivers [1].", ["Bosch delivers."], judge=ScriptedExecutor(stop))


def test_outcomes_without_an_answer_are_no_sources() -> None:
    """Outcomes are numbered as in a report."""
    said = [say("b", "Bosch delivers."), say("a", "The client pays.")]
    found = check_text("The client pays [1]. Bosch delivers [2].", said)
    assert found.is_clean
    assert found.labels == ("terms/a", "terms/b")


def test_a_leaf_of_a_value_is_compared_with_its_sources() -> None:
    """A text with given sources is compared with these; a quotation block is left to the comparison of quotations."""
    sources = number_answers([say("a", "Bosch delivers in five weeks.")])
    assert [each.kind for each in check_claims("Siemens and Bosch deliver.", sources, [1])] == []
    assert [each.kind for each in check_claims("Bosch never delivers.", sources, [1])] == ["negation"]
    assert [each.kind for each in check_claims("> Nobody ever wrote this here. [1]", sources)] == ["source"]
    assert check_claims("Bosch never delivers.", sources) == []
