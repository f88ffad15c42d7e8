"""Variants ranked by a function of the user's, and by the results of an experiment."""

from __future__ import annotations

import csv
import json
from itertools import permutations
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_dispatch.errors import JobError
from prefect_dispatch.integrators.audit import audit
from prefect_dispatch.integrators.run_merge import prepare_integrator
from prefect_dispatch.integrators.tournament.matches import group_contests
from prefect_dispatch.integrators.tournament.results import Conversions, rank_by_conversion
from prefect_dispatch.integrators.tournament.tournament import Tournament
from prefect_dispatch.models.brief import Brief
from prefect_dispatch.models.item import Item
from tests.integrators.judges import Bench
from tests.integrators.said import miss, say
from tests.integrators.test_tournament import ranking, table, variants

if TYPE_CHECKING:
    from pathlib import Path

    from prefect_dispatch.models.ledger import Merge
    from prefect_dispatch.models.outcome import Outcome

NOBODY = Bench(lambda first, second: pytest.fail("a tournament without a judge asked one"))


def ranked(tournament: Tournament, said: list[Outcome]) -> Merge:
    """Return an audited merge in which nobody was asked."""
    merge = tournament.merge_asking([], said, NOBODY)
    assert audit(merge, said, [], tournament, again=lambda once: tournament.merge_asking([], once, NOBODY)) == ()
    return merge


def words(text: str, key: str) -> float:
    """Count words, the item's key among them as one: what a user's metric may look like."""
    return len(f"{key} {text}".split())


def test_a_function_ranks() -> None:
    """More is better; equal scores share a rank; the rules name the function."""
    merge = ranked(Tournament(metric=words), variants("one", "one two", "three four", "a b c d"))
    assert [(row["rank"], row["value"], row["score"]) for row in ranking(merge)[::3]] == [
        (1, "a b c d", 5.0),
        (4, "one", 2.0),
    ]
    assert [row["rank"] for row in ranking(merge)] == [1, 2, 2, 4]
    assert "test_measures:words" in merge.rules
    assert [each.name for each in merge.tables] == ["ab-test"]
    assert (merge.flags, merge.shortfalls) == ((), ())


@pytest.mark.parametrize(
    ("figure", "reason"),
    [
        pytest.param(float("nan"), "the metric returned 'nan', which is no finite number", id="nan"),
        pytest.param(float("inf"), "the metric returned 'inf', which is no finite number", id="infinity"),
        pytest.param("7", "the metric returned '7', which is no finite number", id="text"),
        pytest.param(None, "the metric returned 'None', which is no finite number", id="nothing"),
        pytest.param(ZeroDivisionError("by zero"), "the metric raised ZeroDivisionError: by zero", id="raises"),
        pytest.param(SystemExit(0), "the metric raised SystemExit: 0", id="exits"),
    ],
)
def test_a_variant_that_the_function_cannot_measure(figure: object, reason: str) -> None:
    """It is not ranked, told with the reason, and never dropped."""

    def metric(value: str, key: str) -> object:
        if value == "odd" and isinstance(figure, BaseException):
            raise figure
        return figure if value == "odd" else len(value)

    merge = ranked(Tournament(metric=metric), [*variants("plain", "odd", "longer one"), miss("mug", brief="b7")])
    assert [row["value"] for row in ranking(merge)] == ["longer one", "plain"]
    value = cast("dict[str, Any]", merge.value)
    assert value["unranked"] == [{"brief": "b1", "item": "mug", "value": "odd", "reason": reason}]
    assert merge.shortfalls == (f"b1/mug is not ranked: {reason}.",)
    assert [gap["brief"] for gap in value["gaps"]] == ["b7"]


def test_equal_answers_are_measured_for_each_item() -> None:
    """What a function makes of the item's key holds for that item alone; equal figures are still one variant."""

    def fit(value: str, key: str) -> float:
        if key == "none":
            raise KeyError(key)
        return float(len(key) == len(value))

    said = [say(key, "abc") for key in ("a", "b", "key", "none")]
    merge = ranked(Tournament(metric=fit), said)
    assert [(row["item"], row["rank"], row["score"]) for row in ranking(merge)] == [("key", 1, 1.0), ("a", 2, 0.0)]
    assert {row.item: (row.disposition, row.by and row.by.item, row.reason) for row in merge.ledger} == {
        "a": ("merged", None, "rank 2 of 2"),
        "b": ("duplicate_of", "a", "equal variant, ranked once"),
        "key": ("merged", None, "rank 1 of 2"),
        "none": ("merged", None, "not ranked: the metric raised KeyError: 'none'"),
    }
    [shown] = table(merge, "ab-test")  # whoever visits sees one text
    assert (shown["name"], shown["rank"], shown["weight_percent"]) == ("terms/key", 1, 100.0)


def test_a_function_cannot_change_an_answer() -> None:
    """What a metric does to the value that it gets is not what the agent said."""

    def metric(value: dict[str, Any], key: str) -> float:
        value["n"] += 1
        return float(value["n"])

    assert [row["value"] for row in ranking(ranked(Tournament(metric=metric), variants({"n": 1}, {"n": 2})))] == [
        {"n": 2},
        {"n": 1},
    ]


def test_a_function_that_guesses_is_found_out() -> None:
    """A metric that says something else each time fails the audit."""
    drawn = iter(range(100))

    def metric(value: str, key: str) -> int:
        return next(drawn)

    tournament, said = Tournament(metric=metric), variants("a", "b")
    assert audit(tournament.merge_asking([], said, NOBODY), said, [], tournament)


def test_a_function_is_looked_up_below_the_folder(tmp_path: Path) -> None:
    """`module:name` stands for code of the user's; what isn't a function is refused."""
    (tmp_path / "own_metric.py").write_text("def score(value, key):\n    return len(value)\n\nnumber = 7\n")
    briefs = [Brief(name=f"b{at}", instructions="Write.") for at in range(2)]
    items = [Item(key="mug", value="")]
    tournament = Tournament(metric="own_metric:score")
    assert tournament.references == ("own_metric:score",)
    found = prepare_integrator(tournament, briefs, items, tmp_path)
    assert isinstance(found, Tournament)
    assert ranking(ranked(found, variants("a", "bb")))[0]["score"] == 2.0
    assert found.resolve_references(pytest.fail) is found
    with pytest.raises(JobError, match="The metric 'own_metric:number' must be a function, not int"):
        prepare_integrator(Tournament(metric="own_metric:number"), briefs, items, tmp_path)


class Later:
    """Scores a variant, some time."""

    async def __call__(self, value: str, key: str) -> float:
        """Score it."""
        return 1.0


@pytest.mark.parametrize(
    ("metric", "problem"),
    [
        pytest.param(len, r"'builtins:len' must take 2 arguments: value, key\.", id="arity"),
        pytest.param(Later(), "Later' must return at once: neither be async nor yield", id="async"),
    ],
)
def test_a_function_that_cannot_score_is_refused(metric: object, problem: str, tmp_path: Path) -> None:
    """What would fail for every variant is noticed before any is written."""
    briefs = [Brief(name=f"b{at}", instructions="Write.") for at in range(2)]
    with pytest.raises(JobError, match=problem):
        prepare_integrator(Tournament(metric=metric), briefs, [Item(key="mug", value="")], tmp_path)


def results(folder: Path, rows: list[dict[str, Any]], name: str = "results.csv") -> Path:
    """Write a table of results."""
    path = folder / name
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)  # pyright: ignore[reportUnknownMemberType] -- loose stubs
    elif path.suffix in {".jsonl", ".ndjson"}:
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


def exported(said: list[Outcome]) -> list[str]:
    """Return the keys that an earlier run gave to variants, in the order of the briefs."""
    merge = Tournament(metric=words).merge_asking([], said, NOBODY)
    return [row["key"] for row in sorted(table(merge, "ab-test"), key=lambda row: row["name"])]


@pytest.mark.parametrize("name", ["r.csv", "r.tsv", "r.jsonl", "r.ndjson", "r.parquet", "R.CSV"])
def test_an_experiment_ranks(tmp_path: Path, name: str) -> None:
    """The results of an experiment, in any form of table, rank the variants that an earlier run exported."""
    said = variants("a", "b", "c")
    figures = zip(exported(said), (1000, 1000, 500), (50, 90, 44), strict=True)
    rows = [{"key": key, "trials": trials, "conversions": done} for key, trials, done in figures]
    results(tmp_path, rows, name)
    merge = ranked(Tournament(results=name).resolve_paths(tmp_path), said)
    first, second, third = ranking(merge)
    assert (first["value"], first["score"], first["trials"], first["conversions"]) == ("b", 0.09, 1000, 90)
    # Wilson's formula, worked out by hand: centre 0.091569, half width 0.017773.
    assert (first["low"], first["high"]) == (pytest.approx(0.0738, abs=1e-4), pytest.approx(0.1094, abs=1e-4))
    assert first["p_vs_best"] is None
    assert (second["value"], second["score"]) == ("c", 0.088)
    assert second["p_vs_best"] > 0.9
    assert (third["value"], third["rank"]) == ("a", 3)
    assert third["p_vs_best"] < 0.001
    assert [flag.message for flag in merge.flags] == ["b1/mug is first, but at 95% it can't be told apart from b2/mug."]
    assert name in merge.rules
    assert str(tmp_path) not in merge.model_dump_json()


def test_what_the_results_lack_or_have_too_much_is_told(tmp_path: Path) -> None:
    """A variant without a row or a visitor is not ranked; a row for nobody here is told: nothing is dropped."""
    said = variants("a", "b", "c")
    keys = exported(said)
    rows = [{"id": keys[0], "n": 10, "k": 1}, {"id": keys[1], "n": 0, "k": 0}, {"id": "original", "n": 9, "k": 9}]
    results(tmp_path, rows)
    tournament = Tournament(results="results.csv", results_key="id", results_trials="n", results_conversions="k")
    merge = ranked(tournament.resolve_paths(tmp_path), said)
    assert [row["value"] for row in ranking(merge)] == ["a"]
    assert sorted(merge.shortfalls) == [
        "The results have rows for no variant here: original.",
        "b1/mug is not ranked: nobody was shown it.",
        f"b2/mug is not ranked: the results have no row for {keys[2]!r}.",
    ]


def test_results_are_read_where_nobody_prepared_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Merged without a flow, the file is looked up from the working folder."""
    said = variants("a", "b")
    results(tmp_path, [{"key": key, "trials": 4, "conversions": at} for at, key in enumerate(exported(said))])
    monkeypatch.chdir(tmp_path)
    assert [row["value"] for row in ranking(ranked(Tournament(results="results.csv"), said))] == ["b", "a"]


GOOD = {"key": "v-1", "trials": 10, "conversions": 1}


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        pytest.param({"conversions": 11}, "row 'v-1': 11 'conversions' of 10 'trials'", id="more-than-all"),
        pytest.param({"conversions": -1}, "'conversions' is .*-1.*, not a whole number from 0 on", id="negative"),
        pytest.param({"trials": 2.5}, "'trials' is .*2.5.*, not a whole number", id="half"),
        pytest.param({"trials": "1,000"}, "'trials' is '1,000', not a whole number", id="separator"),
        pytest.param({"trials": ""}, "'trials' is '', not a whole number", id="empty"),
        pytest.param({"trials": "\u0661\u0660"}, "not a whole number", id="other-digits"),
        pytest.param({"trials": 10**9 + 1}, "'trials' is .*1000000001.* exact up to 1000000000 only", id="large"),
        pytest.param({"trials": "9" * 5000}, "'trials' is '9{38}….* exact up to 1000000000 only", id="endless"),
        pytest.param({"trials": "x" * 5000}, "'trials' is 'x{38}…, not a whole number", id="long"),
        pytest.param({"trials": 1e300}, r"'trials' is .*1e\+300", id="large-float"),
    ],
)
@pytest.mark.parametrize("name", ["results.csv", "results.jsonl"])
def test_results_that_cannot_be_are_refused(tmp_path: Path, row: dict[str, Any], problem: str, name: str) -> None:
    """Counts that can't be are refused by row and column, before anything is spent."""
    results(tmp_path, [{**GOOD, **row}], name)
    with pytest.raises(JobError, match=problem):
        Tournament(results=name).resolve_paths(tmp_path)


@pytest.mark.parametrize(
    ("rows", "name", "problem"),
    [
        pytest.param([GOOD, GOOD], "results.csv", "Two items have the key 'v-1'", id="twice"),
        pytest.param(
            [{"key": "v-1", "trial": 1}], "results.csv", "no column 'trials'; did you mean 'trial'", id="column"
        ),
        pytest.param([{"id": "v-1"}], "results.csv", "no column 'key'", id="no-key"),
        pytest.param([{**GOOD, "trials": True}], "results.jsonl", "'trials' is True", id="yes"),
        pytest.param([{**GOOD, "trials": None}], "results.jsonl", "'trials' is None", id="null"),
        pytest.param([GOOD], "results.xlsx", "no known form; name a file that ends in .csv", id="form"),
    ],
)
def test_a_table_that_is_none_is_refused(tmp_path: Path, rows: list[dict[str, Any]], name: str, problem: str) -> None:
    """So is a table that lacks a column, names a variant twice, or is no table."""
    results(tmp_path, rows, name)
    with pytest.raises(JobError, match=problem):
        Tournament(results=name).resolve_paths(tmp_path)


def test_the_largest_results_are_compared(tmp_path: Path) -> None:
    """At the limit the test still tells what can be told apart, as the normal approximation has it there."""
    said, most = variants("a", "b", "c"), 10**9
    rows = [
        {"key": key, "trials": f"000{most}", "conversions": most // 2 + more}
        for key, more in zip(exported(said), (0, 31_623, 10**6), strict=True)
    ]
    results(tmp_path, rows)
    merge = ranked(Tournament(results="results.csv").resolve_paths(tmp_path), said)
    assert [row["p_vs_best"] for row in ranking(merge)] == [None, 0.0, 0.0]
    results(tmp_path, rows[:2])
    merge = ranked(Tournament(results="results.csv").resolve_paths(tmp_path), said)
    assert ranking(merge)[1]["p_vs_best"] == pytest.approx(0.157299, abs=1e-4)  # of z = sqrt(2)


def test_results_that_are_not_there(tmp_path: Path) -> None:
    """A file that can't be read is refused by name."""
    with pytest.raises(JobError, match=r"none\.csv"):
        Tournament(results="none.csv").resolve_paths(tmp_path)


def test_whole_numbers_may_be_written_as_floats(tmp_path: Path) -> None:
    """Tables out of spreadsheets and data frames say 10.0 for 10."""
    results(tmp_path, [{**GOOD, "trials": 10.0}], "results.jsonl")
    Tournament(results="results.jsonl").resolve_paths(tmp_path)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=2, max_size=4))
@settings(deadline=None, max_examples=40)
def test_what_holds_of_any_results(counts: list[tuple[int, int]]) -> None:
    """Rates lie in their intervals, ranks follow rates, and a variant without visitors is never ranked."""
    said = [say(f"k{at}", at) for at in range(len(counts))]
    [contest] = group_contests(said)
    given_ = {v.key: Conversions(n + k, k) for v, (n, k) in zip(contest.variants, counts, strict=True)}
    scored = rank_by_conversion(contest, given_)
    assert {variant.key for variant, _ in scored.unranked} == {key for key, found in given_.items() if not found.trials}
    rows: list[dict[str, Any]] = [figures for _, figures in scored.ranked]
    assert all(row["low"] <= row["score"] <= row["high"] for row in rows)
    assert [row["score"] for row in rows] == sorted((row["score"] for row in rows), reverse=True)
    assert len(rows) + len(scored.unranked) == len(counts)


def test_the_order_of_rows_does_not_matter(tmp_path: Path) -> None:
    """However the results are sorted, the merge is the same."""
    said = variants("a", "b", "c")
    rows = [{"key": key, "trials": 9, "conversions": 3} for key in exported(said)]
    merges: set[str] = set()
    for turned in permutations(rows):
        results(tmp_path, list(turned))
        merges.add(ranked(Tournament(results="results.csv").resolve_paths(tmp_path), said).model_dump_json())
    assert len(merges) == 1
