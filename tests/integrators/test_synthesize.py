"""One text of all answers: what the model leaves out is added, and what it makes up is marked."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from prefect_dispatch.errors import JobError, RejectedError, TerminalError
from prefect_dispatch.executors.base import Ask
from prefect_dispatch.executors.llm.llm import LLM
from prefect_dispatch.integrators.audit import audit
from prefect_dispatch.integrators.base import AskingIntegrator
from prefect_dispatch.integrators.synthesize.answer_index import number_answers
from prefect_dispatch.integrators.synthesize.findings import WORDING_KINDS, check_prose
from prefect_dispatch.integrators.synthesize.judge import Claim, claims_table, read_verdicts
from prefect_dispatch.integrators.synthesize.map_reduce import estimate_tokens
from prefect_dispatch.integrators.synthesize.output_format import MARK, split_document
from prefect_dispatch.integrators.synthesize.synthesize import Synthesize, describe_executor
from prefect_dispatch.models.brief import Brief
from prefect_dispatch.models.ledger import Merge
from prefect_dispatch.testing import ScriptedExecutor
from tests.integrators.said import miss, say
from tests.integrators.writers import Desk, Sheet, faithful, scripted, sloppy

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from pydantic import JsonValue

    from prefect_dispatch.models.outcome import Outcome

PLAIN = Synthesize(instructions="Sum up.")
SAID = [say(f"item-{at}", f"the period is {7 * at + 3} days") for at in range(20)]
SURE = settings(deadline=None, max_examples=40)


def merged(
    script: Callable[[Ask], JsonValue] = faithful, said: Sequence[Outcome] = SAID, *, by: Synthesize = PLAIN
) -> tuple[Merge, Desk]:
    """Return a merge that passes its audit, and what was asked for it."""
    desk = Desk(scripted(script))
    merge = by.merge_asking([], said, desk)
    assert audit(merge, said, [], by, again=lambda again: by.merge_asking([], again, desk)) == ()
    return merge, desk


def prose(merge: Merge, said: Sequence[Outcome] = SAID) -> str:
    """Return what the model wrote, marks included."""
    text, _, wrong = split_document(str(merge.value), number_answers(said), said)
    assert wrong == []
    return text


def reasons(merge: Merge) -> dict[str, str]:
    """Return the reason of each ledger row by the item."""
    return {row.item: row.reason for row in merge.ledger}


def test_a_faithful_text_is_published_as_it_is() -> None:
    """Everything cited and nothing changed: no flag, no other section, one question, and the sources below."""
    merge, desk = merged()
    assert prose(merge) == "\n".join(f"It says the period is {7 * at + 3} days [{at + 1}]." for at in range(20))
    assert "## Also reported" not in str(merge.value)
    assert str(merge.value).endswith("[19] terms/item-18  \n[20] terms/item-19  ")
    assert (merge.flags, merge.shortfalls, len(desk.questions)) == ((), (), 1)
    assert reasons(merge)["item-4"] == "cited in sentence 5"
    assert [ref.item for ref in merge.fields[0].sources] == [outcome.item for outcome in SAID]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [*range(12), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(12, 40))])
@pytest.mark.parametrize("context", [8192, 600])
def test_a_sloppy_writer_loses_nothing(seed: int, context: int) -> None:
    """A fifth forgotten, numbers changed, unknown ids: all items are there, and each changed number is marked."""
    merge, _ = merged(sloppy(seed), by=Synthesize(instructions="Sum up.", reasks=1, context_tokens=context))
    text = str(merge.value)
    for at, outcome in enumerate(SAID, 1):
        lines = [line for line in prose(merge).split("\n") if f"[{at}]" in line]
        verbatim = f"[{at}] terms/{outcome.item}:\n    {outcome.value}" in text
        assert bool(lines) != verbatim
        for line in lines:
            number = re.findall(r"is (\d+)", line)[0]
            assert (f"{number}{MARK}" in line) == (f"is {number} days" not in str(outcome.value))
    for unknown in re.findall(r"\[9\d\d\](.{13})", text):
        assert unknown == MARK
    for flag in merge.flags:
        assert flag.start is not None
        assert text[flag.start :].startswith(flag.text + MARK)
    assert {row.disposition for row in merge.ledger} == {"merged"}


def test_what_is_wrong_is_sent_back() -> None:
    """The writer is told each fault, and mends its draft: the second one is published, and paid for once."""
    merge, desk = merged(sloppy(3, mends=True))
    assert [question.item.key for question in desk.questions] == ["1-part-1", "1-again-1-part-1"]
    faults = Sheet(Ask(brief=desk.questions[1].brief, item=desk.questions[1].item)).faults
    assert any(re.fullmatch(r"- Answer \[\d+\] is not cited\.", fault) for fault in faults)
    assert any("doesn't stand in [" in fault for fault in faults)
    assert merge.flags == ()


def test_the_draft_with_the_fewest_faults_is_kept() -> None:
    """A writer that gets worse when it is told so: its first draft is published."""

    def worse(ask: Ask) -> JsonValue:
        lines = str(faithful(ask)).split("\n")
        return "\n".join(lines[:2] if Sheet(ask).again else lines[:-1])

    merge, desk = merged(worse)
    assert len(desk.questions) == 3
    assert list(reasons(merge).values()).count("also reported: not cited by the model") == 1


@pytest.mark.parametrize(("context", "steps"), [(600, 3), (900, 2)])
def test_many_answers_are_merged_in_steps(context: int, steps: int) -> None:
    """A small context: parts are written first and merged then, and the numbers survive every step."""
    said = [say(f"item-{at}", f"the period is {at} days, by what the {at} notes say") for at in range(150)]

    def short(ask: Ask) -> JsonValue:
        sheet = Sheet(ask)
        ranges = re.findall(r"\[(\d+)-(\d+)\]", "".join(sheet.parts))
        numbers = [number for number, _ in sheet.answers] + [int(each) for ends in ranges for each in ends]
        return f"Notes [{min(numbers)}-{max(numbers)}]."

    by = Synthesize(instructions="Sum up.", context_tokens=context)
    merge, desk = merged(short, said, by=by)
    levels = {question.item.key[0] for question in desk.questions}
    assert len(levels) >= steps
    assert prose(merge, said) == "Notes [1-150]."
    assert merge.shortfalls == ()


def test_every_question_fits_into_the_context() -> None:
    """Whatever is asked leaves room for its answer."""
    by = Synthesize(instructions="Sum up.", context_tokens=600)
    _, desk = merged(sloppy(1), by=by)
    assert len(desk.questions) > 3
    assert all(
        estimate_tokens(desk.executor, each.brief, str(each.item.value)) <= 600 * 7 / 8 for each in desk.questions
    )


def test_parts_that_cannot_be_merged_stand_one_after_another() -> None:
    """Drafts as long as what they are of can't be merged in a small context: none is lost, and the run says so."""
    merge, _ = merged(by=Synthesize(instructions="Sum up.", context_tokens=600))
    assert prose(merge).count("It says") == 20
    assert re.fullmatch(
        r"The answers were written up in \d+ parts that could not be merged into one\.", merge.shortfalls[0]
    )


def test_an_answer_that_is_too_long_is_reported_verbatim() -> None:
    """Nothing is cut: what doesn't fit stands below the text, and the reason in the ledger."""
    said = [*SAID, say("long", "word " * 3000)]
    merge, _ = merged(said=said, by=Synthesize(instructions="Sum up.", context_tokens=2000))
    assert "    " + "word " * 3000 in str(merge.value)
    assert reasons(merge)["long"] == "also reported: too long for a context of 2000 tokens"
    assert merge.shortfalls == ("1 answer is too long for a context of 2000 tokens, and only reported verbatim.",)


def test_a_context_that_instructions_fill_leaves_every_answer_verbatim() -> None:
    """Nobody is asked what can't be answered."""
    merge, desk = merged(by=Synthesize(instructions="Sum up. " * 200, context_tokens=300))
    assert desk.questions == []
    assert prose(merge) == ""
    assert str(merge.value).startswith("## Also reported")
    assert merge.shortfalls == ("20 answers are too long for a context of 300 tokens, and only reported verbatim.",)


def refusing(place: str) -> Callable[[Ask], JsonValue]:
    """Return a writer that refuses whatever has a word in it."""

    def write(ask: Ask) -> JsonValue:
        if place in str(ask.item.value):
            raise RejectedError("Not that.", kind="refused")
        return faithful(ask)

    return write


def test_a_part_that_fails_is_reported_verbatim() -> None:
    """A question without an answer ends nothing: its answers stand below the text, and the run says so."""
    merge, _ = merged(refusing("the period is 17 days"), by=Synthesize(instructions="Sum up.", context_tokens=600))
    lost = [
        item
        for item, reason in reasons(merge).items()
        if reason == "also reported: its part could not be written: refused"
    ]
    assert "item-2" in lost
    assert len(lost) < 20
    assert re.match(
        r"The part on \d+ answers \(\[\d+\] to \[\d+\]\) could not be written \(refused\); it is", merge.shortfalls[0]
    )


def test_a_part_that_stands_alone_goes_up_as_it_is() -> None:
    """Where parts are merged and one is left over, nobody is asked about that one again."""
    asked: list[str] = []

    def count(ask: Ask) -> JsonValue:
        asked.append(str(ask.item.value))
        return faithful(ask)

    merge, _ = merged(count, by=Synthesize(instructions="Sum up.", context_tokens=460))
    assert len(asked) == len(set(asked))
    assert "## Also reported" not in str(merge.value)
    assert merge.shortfalls == ("The answers were written up in 3 parts that could not be merged into one.",)


@pytest.mark.parametrize("text", ["[1-20]", "[1]…[2-20].", "[1-20] * [3]"])
def test_citations_alone_account_for_nothing(text: str) -> None:
    """A text without words is none: every answer stands below, word for word, and the run says so."""
    merge, _ = merged(lambda ask: text)
    assert all(outcome.value in str(merge.value) for outcome in SAID if isinstance(outcome.value, str))
    assert merge.shortfalls != ()


def test_all_that_fails_leaves_every_answer_verbatim() -> None:
    """No text at all: everything that was said is there all the same."""
    merge, _ = merged(refusing("period"))
    assert prose(merge) == ""
    assert all(f"    {outcome.value}" in str(merge.value) for outcome in SAID)


def test_parts_stay_where_merging_fails() -> None:
    """What was written isn't lost because it can't be merged."""
    said = [say(f"item-{at}", f"{at} days " + "and nights " * 20) for at in range(20)]

    def short(ask: Ask) -> JsonValue:
        sheet = Sheet(ask)
        if sheet.merging:
            raise RejectedError("Not that.", kind="refused")
        return "Days " + "".join(f"[{number}]" for number, _ in sheet.answers) + "."

    merge, _ = merged(short, said, by=Synthesize(instructions="Sum up.", context_tokens=600))
    assert "## Also reported" not in str(merge.value)
    assert any("parts could not be merged (refused); they stand one after another" in each for each in merge.shortfalls)


def test_a_wrong_key_fails_the_merge() -> None:
    """What every question would meet is raised, so that the run fails and its answers stay stored."""

    def locked(ask: Ask) -> JsonValue:
        raise TerminalError("Wrong key.")

    with pytest.raises(TerminalError, match="Wrong key"):
        PLAIN.merge_asking([], SAID, Desk(scripted(locked)))


def test_what_has_no_answer_is_told_in_the_text() -> None:
    """Failed and skipped items have a sentence in the value, and rows in the ledger."""
    said = [*SAID, miss("gone"), miss("left", "skipped")]
    merge, _ = merged(said=said)
    assert "\n\nNo answer for 2 of 22: terms/gone (timeout), terms/left (timeout).\n\n## Sources" in str(merge.value)
    assert {row.item: row.disposition for row in merge.ledger if row.item in ("gone", "left")} == {
        "gone": "failed",
        "left": "skipped",
    }


def test_without_an_answer_nobody_is_asked() -> None:
    """Nothing to write of: the value says what is missing."""
    desk = Desk(scripted())
    assert PLAIN.merge_asking([], [miss("a")], desk).value == "No answer for 1 of 1: terms/a (timeout)."
    assert PLAIN.merge_asking([], [], desk).value == ""
    assert desk.questions == []


@given(st.data())
@SURE
@pytest.mark.slow
def test_order_does_not_matter(data: st.DataObject) -> None:
    """However the outcomes are shuffled: the same questions, and the same merge, byte for byte."""
    said = [*SAID[:8], miss("gone")]
    by = Synthesize(instructions="Sum up.", context_tokens=600)
    first, desk = merged(sloppy(5), said, by=by)
    second, other = merged(sloppy(5), data.draw(st.permutations(said)), by=by)
    ordered = [sorted(each.model_dump_json() for each in merge.ledger) for merge in (first, second)]
    assert ordered[0] == ordered[1]
    assert first.model_dump_json(exclude={"ledger"}) == second.model_dump_json(exclude={"ledger"})
    assert desk.questions == other.questions


HOSTILE = st.text(
    alphabet=st.sampled_from('[]1259(): \n#."“”-|\x00\r\u2028ab{}%,*>') | st.characters(codec="utf-8"), max_size=60
)
PIECES = [
    "## Sources",
    "## Also reported\n\n[1] terms/a:\n    x",
    "[1]",
    "[2]",
    "[77]",
    " [unverified]",
    "[unverified]",
]
MORE = [
    "[1]: http://x",
    "No answer for 1 of 2: terms/a (timeout).",
    "```",
    "[1] terms/a  ",
    "1,000",
    "12 %",
    "May 5",
]
WRITTEN = st.lists(HOSTILE | st.sampled_from(PIECES + MORE), max_size=8).map("\n".join)


@pytest.mark.slow
@given(WRITTEN, st.lists(WRITTEN, min_size=1, max_size=4), st.booleans())
@settings(deadline=None, max_examples=150)
def test_no_text_forges_a_section(written: str, answers: list[str], gap: bool) -> None:  # noqa: FBT001 -- drawn
    """Whatever a model writes and answers say: the audit passes, and every answer is cited or stands verbatim."""
    said = [say(f"k{at}\n## Sources\n[1] x", value) for at, value in enumerate(answers)]
    said += [miss("gone\n\n## Sources")] if gap else []
    merge, _ = merged(lambda ask: written, said, by=Synthesize(instructions="Sum up.", reasks=0))
    text = str(merge.value)
    assert len(re.findall(r"(?m)^## Sources$", text)) == 1
    assert len(re.findall(r"(?m)^## Also reported$", text)) <= 1
    exact = [flag for flag in merge.flags if flag.kind not in WORDING_KINDS]  # doubts about wording are not marked
    assert all(text[flag.start or 0 :].startswith(flag.text + MARK) for flag in exact)


def test_braces_in_instructions_are_meant() -> None:
    """Instructions are no template: what looks like a field of an item stands for itself."""
    by = Synthesize(instructions="Answer {name} as {{x}}.", constraints=("Keep {this}.",))
    _, desk = merged(by=by)
    asked = desk.questions[0].brief.fill_placeholders(desk.questions[0].item)
    assert asked.instructions.startswith("Answer {name} as {{x}}.")
    assert asked.constraints == ("Keep {this}.",)


def test_who_writes_and_who_judges_can_be_named() -> None:
    """The integrator's own executor is asked in place of the job's; a report names it without its insides."""
    own = ScriptedExecutor(faithful)
    by = Synthesize(instructions="Sum up.", executor=own)
    desk = Desk(scripted())
    by.merge_asking([], SAID, desk)
    assert own.calls == 1
    assert by.model_dump(mode="json")["executor"] == "ScriptedExecutor"
    assert isinstance(by, AskingIntegrator)


def test_models_are_found_and_known_before_anything_is_spent(tmp_path: Path) -> None:
    """Files of local models are looked up from the job's folder; an unknown provider is refused."""
    by = Synthesize(instructions="Sum up.", executor=LLM(model="local/tiny.gguf"), judge=LLM(model="nobody/knows"))
    placed = by.resolve_paths(tmp_path)
    assert isinstance(placed.executor, LLM)
    assert placed.executor.model == f"local/{tmp_path}/tiny.gguf"
    with pytest.raises(JobError, match="'nobody/knows' is unknown"):
        placed.preflight([])
    PLAIN.resolve_paths(tmp_path).preflight([])
    scoped = Brief(name="find", instructions="Find.", scope="One city.", constraints=("No names.", "One city."))
    assert [(each.answers, each.times, each.executor) for each in by.estimate_queries(9, [scoped])] == [
        (9, 1, by.executor),
        (1, 9, by.judge),
        (9, 2, by.judge),
    ]
    assert [(each.answers, each.times, each.executor) for each in PLAIN.estimate_queries(9, [scoped])] == [(9, 1, None)]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        pytest.param({}, "instructions", id="no-instructions"),
        pytest.param({"instructions": " "}, "at least 1 character", id="empty-instructions"),
        pytest.param({"instructions": "x", "context_tokens": 10}, "greater than or equal to 200", id="no-room"),
        pytest.param({"instructions": "x", "output": "prose"}, "must be 'text', a JSON Schema", id="output"),
        pytest.param({"instructions": "x", "executr": None}, "did you mean 'executor'", id="a-misspelt-key"),
        pytest.param({"instructions": "x", "judge": 5}, "not an executor", id="no-executor"),
    ],
)
def test_a_wrong_configuration_is_refused(fields: dict[str, Any], said: str) -> None:
    """A sentence names the key and the way out."""
    with pytest.raises(ValidationError, match=said):
        Synthesize.model_validate(fields)


def test_rules_say_how_it_was_written() -> None:
    """A reader learns who wrote, in how many steps, and what was not checked."""
    merge, _ = merged()
    assert merge.rules.startswith("The executor ScriptedExecutor wrote a text of 20 answers in 1 step:")
    model = LLM(model="local/smollm2", fallbacks=("local/b.gguf",))
    assert describe_executor(model) == "the model local/smollm2 or local/b.gguf"


@pytest.mark.parametrize(
    ("text", "doubtful"),
    [
        pytest.param("It says “keep it,” once [1].", [], id="a-comma-of-the-sentence"),
        pytest.param('It says "Keep … years" [1].', [], id="an-ellipsis"),
        pytest.param("It says «keep it» and „5 years“ [1].", [], id="other-marks"),
        pytest.param("It says “never keep it” [1].", ["“never keep it”"], id="invented"),
        pytest.param("It says “keep 5” [1].", ["“keep 5”"], id="a-number-inside-is-one-doubt"),
        pytest.param('It says "years … keep" [1].', ['"years … keep"'], id="the-wrong-way-round"),
        pytest.param("It says “keep it” [2].", ["“keep it”"], id="of-another"),
        pytest.param("It says “…” [1].", ["“…”"], id="nothing"),
        pytest.param("The licensees' rights and users' duties [1].", [], id="apostrophes"),
    ],
)
def test_a_quotation_stands_in_what_is_cited(text: str, doubtful: list[str]) -> None:
    """Words in quotation marks are looked up letter by letter, white space and the form of the marks aside."""
    sources = number_answers([say("a", "You must keep it. Keep it\nfor 5 years."), say("b", "No.")])
    assert [text[found.start : found.end] for found in check_prose(text, sources)] == doubtful


def test_a_model_counts_its_tokens() -> None:
    """What a model can count itself is counted by it, and its context is known."""
    model = LLM(model="openai/gpt-4o")
    brief = Brief(name="x", instructions="Sum up.")
    assert estimate_tokens(model, brief, "word " * 1000) - estimate_tokens(model, brief, "") in range(900, 1100)
    assert estimate_tokens(scripted(), brief, "word " * 300) - estimate_tokens(scripted(), brief, "") == 500


def test_a_heading_that_is_too_long_for_the_judge_has_no_verdict() -> None:
    """Of other claims, a row that is missing shows that the table isn't about them."""
    merge = Merge(value="", ledger=(), tables=(claims_table([]),))
    heading = Claim("", 0, 5, "Costs", (), is_heading=True)
    assert read_verdicts(merge, [heading], []) == []
    with pytest.raises(ValueError, match="lacks one of them"):
        read_verdicts(merge, [heading._replace(is_heading=False)], [])
