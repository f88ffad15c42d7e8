"""The report as a self-contained HTML page, safe to open from disk with any content from agents and items.

All data is JSON in inert script elements, and a content security policy allows no scripts but those written here.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import secrets
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from itertools import chain, islice
from math import fsum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect_dispatch.models.ledger import Ref
from prefect_dispatch.models.output_schema import serialize_output
from prefect_dispatch.models.version import __version__
from prefect_dispatch.reporting.html.matrix_heatmap import PASSED_VERDICTS, build_heat_map
from prefect_dispatch.reporting.html.texts import TextPreviews, fit_length, to_readable_text, to_script_json
from prefect_dispatch.reporting.progress import run_issues
from prefect_dispatch.security.escaping import column_names
from prefect_dispatch.security.escaping import value_text as shown_value

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.models.brief import Brief
    from prefect_dispatch.models.item import Item
    from prefect_dispatch.models.ledger import FieldRow, Proposal, Table
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


_MAX_EXACT_NUMBER = 2**53


"""The integer up to which JavaScript's numbers represent every integer."""


def build_summary(report: Report, texts: TextPreviews) -> dict[str, Any]:
    """Return the data on a run as a whole.

    Args:
        report: The report.
        texts: Truncates and redacts texts.
    """
    usage, own = report.usage.model_dump(mode="json"), report.integration.model_dump(mode="json")
    conflicts = [row for row in report.fields if row.losers]
    return {
        "version": __version__,
        "status": report.status,
        "message": report.message,
        "run": report.run,
        "usage": usage,
        "integration": own,
        "plan": report.plan,
        "course": [each._asdict() for each in run_issues(report)],
        "spending": list(_spending([*report.outcomes, *report.asked])),
        "failures": dict(Counter(gap.error.kind for gap in report.gaps).most_common()),
        "dispositions": dict(Counter(row.disposition for row in report.ledger).most_common()),
        "rules": report.rules,
        "shortfalls": report.shortfalls,
        "violations": [[each.law, each.where, each.message] for each in report.violations[:MAX_ENTRIES]],
        "flags": list(_flags(texts, report)),
        "proposals": [_proposal(texts, each) for each in report.proposals[:MAX_ENTRIES]],
        "conflicts": [_conflict(texts, row) for row in conflicts[:MAX_ENTRIES]],
        "decided": report.decided.model_dump(mode="json"),
        "tables": [_table(texts, each) for each in report.tables],
        "changes": _changes(report),
        "value": None if report.value is None else texts.preview_value(report.value, MAX_VALUE),
        "prose": isinstance(report.value, str),
        "counts": {
            "gaps": len(report.gaps),
            "violations": len(report.violations),
            "flags": len(report.flags),
            "proposals": len(report.proposals),
            "conflicts": len(conflicts),
            "fields": len(report.fields),
        },
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


def _flags(texts: TextPreviews, report: Report) -> Iterator[dict[str, Any]]:
    for flag in report.flags[:MAX_ENTRIES]:
        yield {
            "path": flag.path,
            "kind": flag.kind,
            "text": texts.preview(flag.text, MAX_SUMMARY_TEXT),
            "message": flag.message,
            "sources": _sources(flag.sources),
        }


def _proposal(texts: TextPreviews, proposal: Proposal) -> dict[str, Any]:
    return {
        "left": texts.preview(shown_value(proposal.left), MAX_SUMMARY_TEXT),
        "right": texts.preview(shown_value(proposal.right), MAX_SUMMARY_TEXT),
        "score": proposal.score,
        "why": proposal.why,
        "leftSources": _sources(proposal.left_sources),
        "rightSources": _sources(proposal.right_sources),
    }


def _conflict(texts: TextPreviews, row: FieldRow) -> dict[str, Any]:
    return {
        "path": row.path,
        "rule": row.rule,
        "winner": texts.preview(shown_value(row.winner), MAX_CONFLICT_VALUE),
        "sources": _sources(row.sources),
        "losers": [
            {"value": texts.preview(shown_value(each.value), MAX_CONFLICT_VALUE), "sources": _sources(each.sources)}
            for each in row.losers[:MAX_SOURCES]
        ],
        "of": len(row.losers),
    }


def _table(texts: TextPreviews, table: Table) -> dict[str, Any]:
    names = column_names(table.rows)
    return {
        "name": table.name,
        "title": table.title,
        "note": table.note,
        "columns": names,
        "rows": [[_table_cell(texts, row.get(name)) for name in names] for row in table.rows[:MAX_ENTRIES]],
        "of": len(table.rows),
    }


def _table_cell(texts: TextPreviews, value: JsonValue) -> JsonValue:
    """Return a table's value for display and sorting: numbers that JavaScript represents exactly stay numbers."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, float) or (isinstance(value, int) and abs(value) < _MAX_EXACT_NUMBER):
        return value
    return str(texts.preview(to_readable_text(value), MAX_SUMMARY_TEXT)[0])


def _changes(report: Report) -> dict[str, Any]:
    return {
        "earlier": report.changes.earlier,
        "said": str(report.changes),
        "counts": {name: len(refs) for name, refs in report.changes.lists.items()},
        "names": {name: _ref_names(refs) for name, refs in report.changes.lists.items()},
    }


def _ref_names(refs: Sequence[Ref]) -> list[list[str]]:
    return [[ref.brief, ref.item] for ref in refs[:MAX_ENTRIES]]


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
            texts.preview_line(to_readable_text(outcome.value), _MAX_CELL) if outcome.status == "succeeded" else "",
        ]


def attempt_spans(report: Report, outcomes: Sequence[Outcome]) -> Iterator[list[Any]]:
    """Yield the data of the timeline: when each attempt of a run was made, and how long it took.

    Yields:
        The index of the outcome's row (-1 for a question of the integrator), seconds from the start of the run to the
        start of the attempt, seconds that it took, seconds of these that it waited, its number from 1, 1 if it failed
        (else 0), and the name of the integrator's question (else empty).
    """
    start = start_time(report.run)
    for number, outcome in enumerate(outcomes):
        yield from _outcome_spans(outcome, number, "", start)
    for outcome in report.asked:
        yield from _outcome_spans(outcome, -1, str(Ref.of(outcome)), start)


def _outcome_spans(outcome: Outcome, row: int, name: str, start: datetime | None) -> Iterator[list[Any]]:
    """Yield the data of an outcome's attempts; attempts without a start time are left out."""
    for number, attempt in enumerate(outcome.spent, 1):
        if attempt.started is not None and start is not None:
            offset = round((attempt.started - start).total_seconds(), 3)
            took = round(attempt.seconds + attempt.waited_s, 3)
            yield [row, offset, took, attempt.waited_s, number, int(attempt.error is not None), name]


def start_time(run: Mapping[str, Any]) -> datetime | None:
    """Return when a run started; None if its report has no valid time."""
    try:
        return datetime.fromisoformat(str(run.get("started")))
    except ValueError:
        return None


def count_untimed(outcomes: Iterable[Outcome]) -> int:
    """Return the number of attempts without a start time: those in a provider's batch."""
    attempts: list[Attempt] = [attempt for outcome in outcomes for attempt in outcome.spent]
    return sum(attempt.started is None for attempt in attempts)


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
        self._briefs = {brief.name: brief for brief in briefs}
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
            for name, brief in self._briefs.items()
        }

    def iter_blocks(self) -> Iterator[list[dict[str, Any]]]:
        """Yield the data of the items, block by block."""
        remaining = iter(self._outcomes)
        while block := list(islice(remaining, BLOCK_SIZE)):
            yield [self._item_data(outcome) for outcome in block]

    def _item_data(self, outcome: Outcome) -> dict[str, Any]:
        """Return the data of one item's view."""
        brief, item = self._briefs.get(outcome.brief), self._items.get(outcome.item)
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
    for field in fields:
        values = [
            (contributed, field.winner, field.sources),
            *((removed, each.value, each.sources) for each in field.losers),
        ]
        for group, value, sources in values:
            shown = [field.path, texts.preview(shown_value(value), MAX_FIELD_VALUE), field.rule]
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


ASSETS_FOLDER = Path(__file__).parent


"""The folder with the template, the style sheet and the scripts."""


SCRIPTS = ("dom", "charts", "grids", "heat", "timeline", "findings", "item", "summary", "views", "main")


"""The page's own scripts, in the order in which they are concatenated."""


GENERATOR = "prefect-dispatch report page"


"""Content of the page's `generator` element, by which a later run recognizes a page that it may overwrite."""


_ELEMENT_END = re.compile(r"<(?=/script|!--)", re.IGNORECASE)


_SOURCE_MAP = re.compile(r"^//# sourceMappingURL=.*$", re.MULTILINE)


_SLOT = re.compile(r"%%([A-Z]+)%%")


class MissingLibraryError(Exception):
    """A JavaScript library that the build downloads is missing; the message says how to get it."""


@dataclass(frozen=True)
class PageAssets:
    """The static parts of a page.

    Attributes:
        template: The HTML template.
        style: The style sheet.
        page_script: The page's own script.
        libraries: The scripts of the libraries.
        licences: Name, version, home and licence text of each library.
    """

    template: str
    style: str
    page_script: str
    libraries: tuple[str, ...]
    licences: tuple[dict[str, str], ...]


def load_assets(folder: Path = ASSETS_FOLDER) -> PageAssets:
    """Load the static parts of a page.

    Args:
        folder: The folder with their files.

    Raises:
        MissingLibraryError: If a library is missing.
    """
    vendored: list[dict[str, Any]] = json.loads((folder / "vendored.json").read_bytes())
    scripts: list[str] = []
    licences: list[dict[str, str]] = []
    for package in vendored:
        script, licence = (_read_library(folder, file["name"], package) for file in package["files"])
        scripts.append(_escape_script(script))
        licences.append({name: package[name] for name in ("name", "version", "home")} | {"text": licence})
    own = "\n".join((folder / "script" / f"{name}.js").read_text("utf-8") for name in SCRIPTS)
    return PageAssets(
        template=(folder / "template.html").read_text("utf-8"),
        style=(folder / "page.css").read_text("utf-8"),
        page_script=_escape_script(f'(() => {{\n"use strict";\n{own}}})();'),
        libraries=tuple(scripts),
        licences=tuple(licences),
    )


def render_document(assets: PageAssets, title: str, data: dict[str, object], blocks: Iterable[object]) -> Iterator[str]:
    """Yield the HTML of a page in chunks.

    Args:
        assets: The static parts of the page.
        title: The title of its window.
        data: The data by the id of its element; the first one precedes the scripts, which read it when they start.
        blocks: The data of the item views, each block in an element of its own.
    """
    nonce = secrets.token_urlsafe(16)
    first, *rest = data.items()
    scripts = "".join(f"<script>{text}</script>\n" for text in (assets.page_script, *assets.libraries))
    slots = {
        "POLICY": _content_security_policy((assets.page_script, *assets.libraries), nonce),
        "TITLE": html.escape(title),
        "GENERATOR": GENERATOR,
        "NONCE": nonce,
        "STYLE": assets.style,
        "FIRST": _data_element(*first),
        "SCRIPTS": scripts,
    }
    # One pass over the template, so that slots in what is inserted are not replaced.
    yield _SLOT.sub(lambda slot: slots[slot[1]], assets.template)
    yield from (_data_element(*each) for each in rest)
    yield from (_data_element(f"block-{number}", block) for number, block in enumerate(blocks))
    yield "</body>\n</html>\n"


def _content_security_policy(scripts: Iterable[str], nonce: str) -> str:
    """Return the content security policy: only these scripts run, by their digests, and nothing is loaded."""
    digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'nonce-{nonce}'; img-src data:; "
        "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )


def _data_element(name: str, data: object) -> str:
    return f'<script type="application/json" id="{name}">{to_script_json(data)}</script>\n'


def _read_library(folder: Path, name: str, package: dict[str, Any]) -> str:
    try:
        return (folder / "vendor" / name).read_text("utf-8")
    except OSError:
        raise MissingLibraryError(
            f"{package['name']} {package['version']} is missing, which the build downloads: install prefect-dispatch "
            "again (in a checkout: `uv sync --reinstall-package prefect-dispatch`) where npm's registry can be reached."
        ) from None


def _escape_script(script: str) -> str:
    """Return a script for use in a script element, which it can't end, without the URL of its source map."""
    return _ELEMENT_END.sub(r"<\\", _SOURCE_MAP.sub("", script))


__all__ = ["GENERATOR", "missing_library", "render_page"]


MAX_TITLE_NAMES = 3


"""Most briefs that the title of a page names."""


def missing_library(folder: Path = ASSETS_FOLDER) -> str:
    """Return why no page can be built with this installation, in a sentence; empty if it can."""
    try:
        load_assets(folder)
    except MissingLibraryError as error:
        return str(error)
    return ""


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
    outcomes = select_outcomes(report)
    texts = TextPreviews()
    pages = ItemViews(outcomes, briefs, items, report.fields, texts)
    names = sorted({outcome.brief for outcome in report.outcomes} or {brief.name for brief in briefs})
    first_names = ", ".join(names[:MAX_TITLE_NAMES])
    title = f"{first_names} and {len(names) - MAX_TITLE_NAMES} more" if len(names) > MAX_TITLE_NAMES else first_names
    matrix = build_heat_map(report, texts)
    data: dict[str, object] = {
        "report": {
            **build_summary(report, texts),
            "matrix": matrix
            and {"red": sum(each["verdict"] not in PASSED_VERDICTS for each in matrix["environments"])},
            "title": title,
            "briefs": pages.build_briefs(),
            "columns": COLUMNS,
            "block": BLOCK_SIZE,
            "length": pages.length,
            "rows": [len(outcomes), len(report.outcomes)],
            "untimed": count_untimed(chain(report.outcomes, report.asked)),
            "licences": assets.licences,
        },
        "rows": list(outcome_rows(report, outcomes, texts)),
        "spans": list(attempt_spans(report, outcomes)),
        **({"heat": matrix} if matrix else {}),
    }
    return render_document(assets, f"{title}: {report.status}", data, pages.iter_blocks())
