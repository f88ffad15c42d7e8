"""The data of a report's page: the run as a whole, its rows, its timeline, the view of each item, and the heat map."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from datetime import datetime
from itertools import accumulate, chain, islice
from math import fsum
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from prefect_dispatch.models import __version__
from prefect_dispatch.models.bill import rows_paid
from prefect_dispatch.models.ledger import Ref
from prefect_dispatch.models.output_schema import serialize_output
from prefect_dispatch.models.test_run import RED, RUN, Result, label
from prefect_dispatch.reporting.costs import bill_rows, describe_paid_before
from prefect_dispatch.reporting.html.answers import build_answer_cells, build_value_view, format_plain, table_cell
from prefect_dispatch.reporting.html.document import (
    TextPreviews,
    fit_length,
    load_assets,
    render_document,
    to_readable_text,
)
from prefect_dispatch.reporting.progress import run_issues
from prefect_dispatch.security.escaping import column_names

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.models.brief import Brief
    from prefect_dispatch.models.item import Item
    from prefect_dispatch.models.ledger import FieldRow, Table
    from prefect_dispatch.models.outcome import Attempt, Outcome
    from prefect_dispatch.models.report import Report

MAX_ENTRIES = 2_000
"""Most entries of one list: conflicts, flags, proposals, rows of a table, names of what changed."""
MAX_VALUE = 1_000_000
"""Most characters of the merged value."""
MAX_SUMMARY_TEXT = 2_000
"""Most characters of any other text."""
MAX_CONFLICT_VALUE = 500
"""Most characters of a value in a conflict."""
MAX_SOURCES = 20
"""Most losers of a conflict, and most sources of a value."""
MAX_TITLE_NAMES = 3
"""Most briefs that the title of a page names."""


def render_page(report: Report, briefs: Sequence[Brief] = (), items: Sequence[Item] = ()) -> Iterator[str]:
    """Return the HTML page of a report, in chunks.

    Args:
        report: The report.
        briefs: The briefs of the run.
        items: The items of the run.

    Raises:
        MissingLibraryError: If a library that the build downloads is missing.
    """
    assets = load_assets()
    outcomes, texts = select_outcomes(report), TextPreviews()
    views = ItemViews(outcomes, briefs, items, report.fields, texts)
    names = sorted({outcome.brief for outcome in report.outcomes} or {brief.name for brief in briefs})
    more = f" and {len(names) - MAX_TITLE_NAMES} more" if len(names) > MAX_TITLE_NAMES else ""
    title = ", ".join(names[:MAX_TITLE_NAMES]) + more
    heat = build_heat_map(report, texts)
    spans = list(attempt_spans(report, outcomes))
    red = heat and {"red": sum(each["verdict"] not in PASSED_VERDICTS for each in heat["environments"])}

    def data() -> Iterator[tuple[str, object]]:
        yield (
            "report",
            {
                **build_summary(report, texts),
                "matrix": red,
                "view": build_value_view(None if heat else report.value, briefs, texts),
                "title": title,
                "briefs": views.build_briefs(),
                "columns": COLUMNS,
                "block": BLOCK_SIZE,
                "length": views.length,
                "rows": [len(outcomes), len(report.outcomes)],
                "atOnce": count_at_once(report, spans),
                "untimed": count_untimed(chain(report.outcomes, report.asked)),
                "licences": assets.licences,
            },
        )
        yield "rows", list(outcome_rows(report, outcomes, texts))
        if cells := build_answer_cells(outcomes, views.briefs, texts):
            yield "answers", cells
        yield "spans", spans
        if heat:
            yield "heat", heat
        for number, block in enumerate(views.iter_blocks()):
            yield f"block-{number}", block

    return render_document(assets, f"{title}: {report.status}", data())


def build_summary(report: Report, texts: TextPreviews) -> dict[str, Any]:
    """Return the data on a run as a whole.

    Args:
        report: The report.
        texts: Truncates and redacts texts.
    """
    conflicts = [row for row in report.fields if row.losers]
    named = ("violations", "requirements", "flags", "proposals", "gaps", "fields")
    return {
        "version": __version__,
        "status": report.status,
        "message": report.message,
        "run": report.run,
        "usage": report.usage.model_dump(mode="json"),
        "integration": report.integration.model_dump(mode="json"),
        "plan": report.plan,
        "bill": {"rows": bill_rows(rows_paid(report.bill, "run")), "before": describe_paid_before(report.bill)},
        "course": [each._asdict() for each in run_issues(report)],
        "spending": list(_spending([*report.outcomes, *report.asked])),
        "failures": dict(Counter(gap.error.kind for gap in report.gaps).most_common()),
        "dispositions": dict(Counter(row.disposition for row in report.ledger).most_common()),
        "rules": report.rules,
        "shortfalls": report.shortfalls,
        "violations": [[each.law, each.where, each.message] for each in report.violations[:MAX_ENTRIES]],
        "requirements": [
            {
                "brief": each.brief,
                "kind": each.kind,
                "text": texts.preview(each.text, MAX_SUMMARY_TEXT),
                "verdict": each.verdict,
                "checked": each.checked,
                "violations": each.violations,
                "places": [
                    {
                        "path": place.path,
                        "message": texts.preview(place.message, MAX_SUMMARY_TEXT),
                        "sources": _sources(place.sources),
                    }
                    for place in each.places
                ],
                "note": each.note,
            }
            for each in report.requirements[:MAX_ENTRIES]
        ],
        "flags": [
            {
                "path": each.path,
                "kind": each.kind,
                "text": texts.preview(each.text, MAX_SUMMARY_TEXT),
                "message": each.message,
                "sources": _sources(each.sources),
            }
            for each in report.flags[:MAX_ENTRIES]
        ],
        "proposals": [
            {
                "left": texts.preview(format_plain(each.left), MAX_SUMMARY_TEXT),
                "right": texts.preview(format_plain(each.right), MAX_SUMMARY_TEXT),
                "score": each.score,
                "why": each.why,
                "leftSources": _sources(each.left_sources),
                "rightSources": _sources(each.right_sources),
            }
            for each in report.proposals[:MAX_ENTRIES]
        ],
        "conflicts": [_conflict(row, texts) for row in conflicts[:MAX_ENTRIES]],
        "decided": report.decided.model_dump(mode="json"),
        "tables": [_table(each, texts) for each in report.tables],
        "changes": {
            "earlier": report.changes.earlier,
            "said": str(report.changes),
            "counts": {name: len(refs) for name, refs in report.changes.lists.items()},
            "names": {name: _ref_names(refs[:MAX_ENTRIES]) for name, refs in report.changes.lists.items()},
        },
        "value": None if report.value is None else texts.preview_value(report.value, MAX_VALUE),
        "prose": isinstance(report.value, str),
        "counts": {name: len(getattr(report, name)) for name in named} | {"conflicts": len(conflicts)},
    }


def _spending(outcomes: Iterable[Outcome]) -> Iterator[list[Any]]:
    """Yield the usage of this run for each brief and model.

    Yields:
        Brief, model, number of outcomes, requests, prompt tokens, completion tokens, and US dollars (None if unknown).
    """
    groups: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.spent:
            groups.setdefault((outcome.brief, outcome.model), []).append(outcome)
    for (brief, model), group in sorted(groups.items()):
        spent = [attempt.usage for outcome in group for attempt in outcome.spent]
        costs = [usage.cost_usd for usage in spent]
        yield [
            brief,
            model,
            len(group),
            sum(usage.requests for usage in spent),
            sum(usage.prompt_tokens for usage in spent),
            sum(usage.completion_tokens for usage in spent),
            None if None in costs else round(fsum(filter(None, costs)), 9),
        ]


def _conflict(row: FieldRow, texts: TextPreviews) -> dict[str, Any]:
    def preview(value: JsonValue, sources: Sequence[Ref]) -> dict[str, Any]:
        return {"value": texts.preview(format_plain(value), MAX_CONFLICT_VALUE), "sources": _sources(sources)}

    winner = preview(row.winner, row.sources)
    losers = [preview(each.value, each.sources) for each in row.losers[:MAX_SOURCES]]
    kept = {"winner": winner["value"], "sources": winner["sources"]}
    return {"path": row.path, "rule": row.rule, **kept, "losers": losers, "of": len(row.losers)}


def _table(table: Table, texts: TextPreviews) -> dict[str, Any]:
    names = column_names(table.rows)
    return {
        "name": table.name,
        "title": table.title,
        "note": table.note,
        "columns": names,
        "rows": [[table_cell(row.get(name), texts) for name in names] for row in table.rows[:MAX_ENTRIES]],
        "of": len(table.rows),
    }


def _ref_names(refs: Sequence[Ref]) -> list[list[str]]:
    return [[ref.brief, ref.item] for ref in refs]


def _sources(refs: Sequence[Ref]) -> dict[str, Any]:
    return {"names": _ref_names(refs[:MAX_SOURCES]), "of": len(refs)}


MAX_ROWS = 20_000
"""Most rows of a page; if there are more outcomes, those without an answer take precedence."""


COLUMNS = (
    *("brief", "item", "disposition", "by", "reason", "status", "origin", "model", "attempts", "reasks", "waits"),
    *("tokens", "cost", "seconds", "kind", "error", "change", "answer"),
)
"""The columns of a row, in this order."""


_MAX_CELL = 160
"""Most characters of an answer, a reason or an error in a row."""


def select_outcomes(report: Report, most: int = MAX_ROWS) -> Sequence[Outcome]:
    """Return the outcomes that get a row, in canonical order.

    Args:
        report: The report.
        most: Most rows; if there are more outcomes, those without an answer take precedence.
    """
    if len(report.outcomes) <= most:
        return report.outcomes
    chosen = sorted(report.outcomes, key=lambda outcome: outcome.status == "succeeded")[:most]
    return sorted(chosen, key=lambda outcome: Ref.of(outcome).order)


def outcome_rows(report: Report, outcomes: Sequence[Outcome], texts: TextPreviews) -> Iterator[list[Any]]:
    """Yield a row for each outcome, with the columns of `COLUMNS`."""
    ledger = {Ref.of(row): row for row in report.ledger}
    changes = {ref: name for name, refs in report.changes.lists.items() for ref in refs}
    for outcome in outcomes:
        ref = Ref.of(outcome)
        row = ledger.get(ref)
        spent = [attempt.usage for attempt in outcome.attempts]
        costs = [usage.cost_usd for usage in spent]
        yield [
            outcome.brief,
            outcome.item,
            row.disposition if row else "",
            str(row.by) if row and row.by else "",
            texts.preview_line(row.reason, _MAX_CELL) if row else "",
            outcome.status,
            outcome.origin or "",
            outcome.model,
            len(outcome.attempts),
            sum(attempt.reasks for attempt in outcome.attempts),
            sum(attempt.waits for attempt in outcome.attempts),
            sum(usage.tokens for usage in spent),
            None if None in costs else round(sum(filter(None, costs)), 9),
            round(sum(attempt.seconds for attempt in outcome.attempts), 3),
            outcome.error.kind if outcome.error else "",
            texts.preview_line(outcome.error.message, _MAX_CELL) if outcome.error else "",
            changes.get(ref, ""),
            _answer_text(outcome, texts),
        ]


def _answer_text(outcome: Outcome, texts: TextPreviews) -> str:
    """Return the start of an answer as a line; empty if its fields have columns of their own."""
    if outcome.status != "succeeded" or (outcome.value and isinstance(outcome.value, dict)):
        return ""
    return texts.preview_line(format_plain(outcome.value), _MAX_CELL)


def attempt_spans(report: Report, outcomes: Sequence[Outcome]) -> Iterator[list[Any]]:
    """Yield the data of the timeline: when each attempt of a run was made, and how long it took.

    Yields:
        The index of the outcome's row (-1 for a question of the integrator), seconds from the start of the run to the
        start of the attempt, seconds that it took, seconds of these that it waited, its number from 1, 1 if it failed
        (else 0), and the name of the integrator's question (else empty).
    """
    try:
        start = datetime.fromisoformat(str(report.run.get("started")))
    except ValueError:
        return
    rows = ((number, outcome, "") for number, outcome in enumerate(outcomes))
    for row, outcome, name in chain(rows, ((-1, outcome, str(Ref.of(outcome))) for outcome in report.asked)):
        for number, attempt in enumerate(outcome.spent, 1):
            if attempt.started is not None:
                offset = round((attempt.started - start).total_seconds(), 3)
                took = round(attempt.seconds + attempt.waited_s, 3)
                yield [row, offset, took, attempt.waited_s, number, int(attempt.error is not None), name]


_ROUNDING_S = 0.003
"""Seconds by which the end of an attempt may come after the start of the next one in its slot: times are rounded."""
_SHORTEST_S = 0.0005
"""Seconds that each attempt takes at least, so that its end comes after its start."""


def count_at_once(report: Report, spans: Iterable[Sequence[Any]]) -> int:
    """Return the largest number of attempts that ran at the same time, at most the concurrency of the run.

    Attempts that are re-asked free their slot between two requests, and clocks of several machines differ, so their
    times alone would say more than was ever in flight.

    Args:
        report: The report.
        spans: The data of the timeline.
    """
    spans = list(spans)
    # Of equal times the end comes first, as one attempt may begin in the slot of another that has just ended.
    ends = ((offset + max(took - _ROUNDING_S, _SHORTEST_S), -1) for _, offset, took, *_ in spans)
    events = sorted(chain(ends, ((offset, 1) for _, offset, *_ in spans)))
    most = max(accumulate(step for _, step in events), default=0)
    limits = report.run.get("limits")
    concurrency = limits.get("concurrency") if isinstance(limits, dict) else None
    return min(most, concurrency) if isinstance(concurrency, int) else most


def count_untimed(outcomes: Iterable[Outcome]) -> int:
    """Return the number of attempts without a start time: those in a provider's batch."""
    return sum(attempt.started is None for outcome in outcomes for attempt in outcome.spent)


BLOCK_SIZE = 100
"""Items in one block."""


MAX_TEXT = 4_000
"""Most characters of a text of a brief, and of an error."""


MAX_FIELD_VALUE = 300
"""Most characters of a merged field's value."""


MAX_FIELDS = 40
"""Most merged fields in the view of an item."""


MAX_ATTEMPTS = 20
"""Most attempts of an item that are shown, the last ones; an item in many parts may have more."""


class ItemViews:
    """Builds the data of the item views of a report.

    Attributes:
        briefs: The briefs of the run by name.
        length: Most characters of each text that is shown, by the size of all texts.
    """

    def __init__(
        self,
        outcomes: Sequence[Outcome],
        briefs: Sequence[Brief],
        items: Sequence[Item],
        fields: Sequence[FieldRow],
        texts: TextPreviews,
    ) -> None:
        """Index briefs, items and merged fields.

        Args:
            outcomes: The outcomes to show, in the order of the page's rows.
            briefs: The briefs of the run; outcomes of other briefs are shown without a prompt.
            items: The items of the run.
            fields: The field rows of the merged value.
            texts: Truncates and redacts texts.
        """
        self._outcomes, self._texts = outcomes, texts
        self._contributed, self._removed = _values_by_outcome(fields, texts)
        self.briefs = {brief.name: brief for brief in briefs}
        self._items = {item.key: item for item in items}
        self.length = fit_length(_text_sizes(outcomes, self._items))

    def build_briefs(self) -> dict[str, Any]:
        """Return the data of each brief, with its placeholders, by name."""
        return {
            name: {
                **_brief_texts(brief, self._texts),
                "output": self._texts.preview(serialize_output(brief.output), self.length),
                "checks": [
                    self._texts.preview(_format_check(check.model_dump(mode="json")), self.length)
                    for check in brief.checks
                ],
                "model": brief.model,
            }
            for name, brief in self.briefs.items()
        }

    def iter_blocks(self) -> Iterator[list[dict[str, Any]]]:
        """Yield the data of the items, block by block."""
        remaining = iter(self._outcomes)
        while block := list(islice(remaining, BLOCK_SIZE)):
            yield [self._item_data(outcome) for outcome in block]

    def _item_data(self, outcome: Outcome) -> dict[str, Any]:
        """Return the data of one item's view."""
        brief, item = self.briefs.get(outcome.brief), self._items.get(outcome.item)
        attempts, ref = outcome.attempts[-MAX_ATTEMPTS:], Ref.of(outcome)
        return {
            "prompt": _render_brief(brief, item, self._texts) if brief and item else None,
            "value": self._preview(item.value) if item else None,
            "answer": self._preview(outcome.value) if outcome.status == "succeeded" else None,
            "attempts": [self._attempt_data(each) for each in attempts],
            "earlier": len(outcome.attempts) - len(attempts),
            "error": self._texts.preview(outcome.failure, MAX_TEXT) if outcome.error else None,
            "gave": self._contributed.get(ref, ()),
            "lost": self._removed.get(ref, ()),
            "joined": outcome.joined,
            "fingerprint": outcome.fingerprint,
            "priority": [outcome.brief_priority, outcome.item_priority],
        }

    def _attempt_data(self, attempt: Attempt) -> dict[str, Any]:
        """Return the data of an attempt."""
        fields = attempt.model_dump(mode="json", exclude={"rejections", "escalations", "error"}, exclude_defaults=True)
        rejections = [
            [self._texts.preview(each.text, self.length), [self._line(problem) for problem in each.problems]]
            for each in attempt.rejections
        ]
        escalations = [self._line(f"{each.kind}: {each.message}") for each in attempt.escalations]
        error = None if attempt.error is None else self._line(attempt.error)
        return {**fields, "rejections": rejections, "escalations": escalations, "error": error}

    def _line(self, text: str) -> str:
        return self._texts.preview_line(text, MAX_TEXT)

    def _preview(self, value: JsonValue) -> list[str | int]:
        return self._texts.preview(to_readable_text(value), self.length)


def _text_sizes(outcomes: Sequence[Outcome], items: Mapping[str, Item]) -> Iterator[int]:
    """Yield the length of each text of the items: values, answers and invalid answers."""
    values = {key: len(to_readable_text(item.value)) for key, item in items.items()}
    for outcome in outcomes:
        yield values.get(outcome.item, 0)
        yield len(to_readable_text(outcome.value))
        for attempt in outcome.attempts[-MAX_ATTEMPTS:]:
            yield from (len(each.text) for each in attempt.rejections)


def _values_by_outcome(
    fields: Sequence[FieldRow], texts: TextPreviews
) -> tuple[dict[Ref, list[Any]], dict[Ref, list[Any]]]:
    """Return the values that each outcome contributed to the merged value, and those of it that a rule removed."""
    contributed: dict[Ref, list[Any]] = {}
    removed: dict[Ref, list[Any]] = {}
    for row in fields:
        losers = ((removed, each.value, each.sources) for each in row.losers)
        for group, value, sources in ((contributed, row.winner, row.sources), *losers):
            shown = [row.path, texts.preview(format_plain(value), MAX_FIELD_VALUE), row.rule]
            for ref in sources:
                entries = group.setdefault(ref, [])
                if len(entries) < MAX_FIELDS:
                    entries.append(shown)
    return contributed, removed


def _brief_texts(brief: Brief, texts: TextPreviews) -> dict[str, Any]:
    """Return the texts of a brief that make up its prompt."""
    return {
        "scope": texts.preview(brief.scope, MAX_TEXT),
        "instructions": texts.preview(brief.instructions, MAX_TEXT),
        "constraints": [texts.preview(each, MAX_TEXT) for each in brief.constraints],
    }


def _render_brief(brief: Brief, item: Item, texts: TextPreviews) -> dict[str, Any]:
    """Return the texts of a brief for an item; empty if they are those of the brief itself, without placeholders."""
    if not any("{" in text for text in (brief.scope, brief.instructions, *brief.constraints)):
        return {}
    own = brief.fill_placeholders(item)
    if all(getattr(own, name) == getattr(brief, name) for name in ("scope", "instructions", "constraints")):
        return {}
    return _brief_texts(own, texts)


def _format_check(fields: dict[str, Any]) -> str:
    """Return a check as text: its kind, and its fields that are set."""
    kind = str(fields.pop("kind"))
    return ", ".join(
        [kind, *(f"{name} {to_readable_text(value)}" for name, value in fields.items() if value not in ("", None))]
    )


CELLS = 1_500_000
"""Most cells of a page, one for each test in each environment; failing and differing tests come first."""
MAX_CELL_DETAILS = 5_000
"""Most cells with details on why they aren't a pass."""
MAX_CASE_MESSAGE, MAX_CASE_TEXT = 300, 1_000
"""Most characters of a message, and of the details of the test runner."""
LETTERS = {
    "passed": "P",
    "xfailed": "X",
    "skipped": "S",
    "flaky": "K",
    "failed": "F",
    "error": "E",
    "absent": "-",
    "no result": "?",
}
"""The letter of each result."""

PASSED_VERDICTS = ("passed", "flaky")
"""The verdicts of environments that count as passed."""

_NO_RESULT = "no result"
_ROUNDED_FROM_MS = 10
"""Milliseconds from which a duration is rounded to an integer."""


@dataclass(slots=True)
class _Case:
    result: Result
    seconds: float
    message: str = ""
    text: str = ""
    tries: int = 1
    failures: list[str] = field(default_factory=list[str])


@dataclass(slots=True, kw_only=True)
class _Test:
    suite: str
    classname: str
    name: str
    same: str
    file: str = ""
    results: dict[str, _Case] = field(default_factory=dict[str, _Case])
    seconds: list[float | None] = field(default_factory=list[float | None])
    """Of a test that passed everywhere: the seconds, in the order of the environments with results."""

    def cells(self, environments: Sequence[_Environment]) -> list[_Case | None]:
        """Return its result in each environment; None where it is absent."""
        if self.results:
            return [self.results.get(each.environment) for each in environments]
        seconds = iter(self.seconds)
        took = [None if each.verdict == _NO_RESULT else next(seconds, None) for each in environments]
        return [None if each is None else _Case("passed", each) for each in took]


@dataclass(slots=True)
class _Value:
    tests: list[_Test]
    passed: list[_Test]


@dataclass(slots=True)
class _Environment:
    environment: str
    verdict: str
    required: str
    tests: int | None
    seconds: float | None
    why: str


_VALUE = TypeAdapter(_Value)
_ENVIRONMENTS = TypeAdapter(list[_Environment])


def build_heat_map(report: Report, texts: TextPreviews) -> dict[str, Any] | None:
    """Return the data of a report's heat map; None if its value is no test matrix.

    Args:
        report: The report.
        texts: Truncates and redacts texts.

    Returns:
        `environments`: the data of each environment, in their order. `tests`: for each test its label, its suite,
        whether its results are the same, a letter for each environment (a single one if all are equal), and its
        milliseconds in each (empty if all are 0). `of`: the number of all tests. `said`: message, text and tries of
        a cell, by `row/column`.
    """
    try:
        table = next(table.rows for table in report.tables if table.name == "environments")
        environments = _ENVIRONMENTS.validate_python(list(table))
        value = _VALUE.validate_python(report.value)
    except (StopIteration, ValidationError):
        return None
    every = ((test, test.cells(environments)) for test in chain(value.tests, value.passed))
    lines = sorted(every, key=lambda line: _severity(*line))
    shown = lines[: CELLS // max(len(environments), 1)]
    several = len({outcome.brief for outcome in report.outcomes}) > 1
    refs = {str(ref) if several else ref.item: [ref.brief, ref.item] for ref in map(Ref.of, report.outcomes)}
    return {
        "environments": [asdict(each) | {"ref": refs.get(each.environment)} for each in environments],
        "results": {letter: result for result, letter in LETTERS.items()},
        "tests": [_test_data(*line, environments) for line in shown],
        "of": len(lines),
        "said": dict(islice(_cell_details((cells for _, cells in shown), texts), MAX_CELL_DETAILS)),
    }


def _severity(test: _Test, cells: Sequence[_Case | None]) -> tuple[int, int]:
    """Return the sort key of a test: failing ones (most failures first), then differing, flaky and partly absent."""
    results = [cell.result for cell in cells if cell]
    red = sum(result in RED for result in results)
    signs = (red > 0, test.same == "differs", "flaky" in results, test.same == "absent", True)
    return (signs.index(True), -red)


def _test_data(test: _Test, cells: Sequence[_Case | None], environments: Sequence[_Environment]) -> list[Any]:
    """Return the data of a test: label, suite, whether its results are the same, letters, and milliseconds."""
    absent = "passed" if test.suite == RUN else "absent"
    letters = "".join(
        LETTERS[cell.result if cell else _NO_RESULT if each.verdict == _NO_RESULT else absent]
        for cell, each in zip(cells, environments, strict=True)
    )
    times = [None if cell is None else _milliseconds(cell.seconds) for cell in cells]
    return [
        label((test.suite, test.classname, test.name, test.file)),
        test.suite,
        test.same,
        letters[:1] if len(set(letters)) == 1 else letters,
        times if any(times) else [],
    ]


def _milliseconds(seconds: float) -> float:
    """Return milliseconds, rounded to keep the page small."""
    milliseconds = seconds * 1000
    return round(milliseconds) if milliseconds >= _ROUNDED_FROM_MS else round(milliseconds, 2)


def _cell_details(lines: Iterable[Sequence[_Case | None]], texts: TextPreviews) -> Iterator[tuple[str, list[Any]]]:
    """Yield the details of the cells that have any: `row/column`, and message, text and tries."""
    for row, cells in enumerate(lines):
        for column, cell in enumerate(cells):
            if cell and (cell.message or cell.text or cell.tries > 1):
                message = texts.preview(cell.message, MAX_CASE_MESSAGE)
                several = "".join(f"- {failure}\n" for failure in cell.failures)
                text = texts.preview(f"{several}\n{cell.text}" if several else cell.text, len(several) + MAX_CASE_TEXT)
                yield f"{row}/{column}", [message, text, cell.tries]
