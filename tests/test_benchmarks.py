"""The benchmarks: their page says what was measured, nothing of this machine is in it, and every way answers."""

from __future__ import annotations

import doctest
import gzip
import json
import re
import sys
import time
from functools import partial
from importlib import import_module
from operator import attrgetter
from typing import TYPE_CHECKING

import psutil
import pytest

from benchmarks import consensus, figures, loads, merges, phases, simulate, startup, stores, texts
from benchmarks.figures import NOTHING
from benchmarks.loads import FIVE_THOUSAND, THOUSAND, VARIED, Workload
from benchmarks.measuring import Cell, Lab
from benchmarks.peer_environments import PEERS, MissingError, prepare_interpreter
from benchmarks.results import FOLDER, Results
from benchmarks.run import main, measure_quickest, select_cells
from benchmarks.sections import ALWAYS, SECTIONS
from benchmarks.subprocesses import ROOT, run
from benchmarks.table import FILE, NAMES, page
from benchmarks.ways import WAYS
from prefect_dispatch.integrators.synthesize.check_text import DirectAsker
from prefect_dispatch.testing import ScriptedExecutor
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from benchmarks.results import Row

PYTHON = [sys.executable, "-c"]
QUICK = Workload(4, 2, 0.01)
ROWS: dict[str, list[Row]] = {
    "throughput": [
        {"way": "aiohttp_loop", "load": str(VARIED), "seconds": 20.0, "done": 2000},
        {"way": "ours", "load": str(VARIED), "seconds": 22.0, "done": 2000},
        {"way": "ours", "load": str(THOUSAND), "seconds": 10.9, "ratio": 1.09, "done": 1000},
        {"way": "prefect_map", "load": str(FIVE_THOUSAND), "failed": "timed out after 300 s"},
    ],
    "overhead": [{"way": "ours", "load": "N 2,000", "seconds": 9.0, "cpu_ms": 4.0}],
    "records": [
        {"way": "in shards, PostgreSQL", "load": "N 5,000", "seconds": 4.0, "database_cpu_ms": 0.1},
        {"way": "one each, SQLite", "load": "N 5,000", "seconds": 90.0, "server_cpu_ms": 25.0},
    ],
    "stored": [{"way": "ours_again", "load": "N 10,000", "seconds": 1.5, "files": 10_000, "bytes": 5_000_000}],
    "scale": [
        {"way": "ours_nobody", "load": "N 10,000", "seconds": 9.0, "done": 10_000, "rss_mb": 200},
        {
            "way": "ours_nobody",
            "load": "N 100,000",
            "seconds": 88.0,
            "done": 100_000,
            "rss_mb": 650,
            "server_cpu_ms": 0.5,
        },
    ],
}


@pytest.fixture
def measured(tmp_path: Path) -> Results:
    """Rows as a run leaves them."""
    results = Results(tmp_path)
    for section, rows in ROWS.items():
        for row in rows:
            results.put(section, {"day": "2026-01-01", "busy": 0.1, **row})
    return results


def test_the_page_is_what_was_measured() -> None:
    """docs/performance.md is what the committed rows make: `python -m benchmarks.table` writes it."""
    assert FILE.read_text(encoding="utf-8") == page(Results())


def test_the_page_on_merges_is_what_was_measured() -> None:
    """docs/merges.md is what the committed rows make: `python -m benchmarks.merges` writes it."""
    assert merges.PAGE.read_text(encoding="utf-8") == merges.create_page(Results())


def test_rows_name_no_machine() -> None:
    """What is committed has neither a path nor an address in it."""
    for file in FOLDER.glob("*.json"):
        text = file.read_text(encoding="utf-8")
        assert set(json.loads(text)) == {"machine", "rows"}
        assert not re.search(r"/(home|root|work|tmp|usr)/|https?://|@", text), file.name


def test_a_page_tells_ratios_and_failures(measured: Results) -> None:
    """Where latencies vary the loop with aiohttp is the measure; what failed says of what; the rest is a dash."""
    text = page(measured)
    assert "| N 1,000, C 100, L 1 s | \u00d7 ideal | 1.10 | 1.09 |" in text
    assert "| \u00d7 aiohttp loop | 1.10 | 1.10 |" in text
    assert "timed out after 300 s" in text
    assert f"| N 5,000, C 500, L 1 s | \u00d7 ideal | 1.5 | {NOTHING} |" in text


def test_a_row_takes_the_place_of_an_earlier_one(measured: Results) -> None:
    """The last measurement of a cell counts; one that failed is measured anew where only the missing are."""
    before = len(measured.rows("throughput"))
    load = str(FIVE_THOUSAND)
    assert not measured.has("throughput", "prefect_map", load)
    measured.put("throughput", {"way": "prefect_map", "load": load, "seconds": 99.0})
    assert measured.has("throughput", "prefect_map", load)
    assert len(measured.rows("throughput")) == before
    assert not measured.has("flood", "ours", load)


def test_the_model_follows_what_was_measured(measured: Results) -> None:
    """Twice the processor for an item takes twice the workers; nothing is claimed of what was not measured."""
    costs = simulate.read_costs(measured)
    assert costs is not None
    assert costs.item_kb == pytest.approx(1024 * 450 / 90_000)
    assert costs.base_mb == pytest.approx(150)
    rate = simulate.ITEMS / 3600
    cores = next(iter(simulate.compute_stages(costs, rate, 10)))
    assert cores.use == pytest.approx(rate * 0.004 / 40)
    assert "| 1 h | 2,778 | 5,556 | 16 | 4 | Prefect's server, one core, 139 % |" in simulate.create_tables(measured)
    assert "| Prefect's server, one core | 1.39 task runs | 17 % | 2,000 |" in simulate.create_tables(measured)
    assert "| one file for each answer | 10,000,000 PUTs | 50.00 |" in simulate.create_tables(measured)
    assert simulate.create_tables(Results(measured.folder / "none")) == "Not measured yet."


def test_examples_run() -> None:
    """Every example in a docstring gives what it says."""
    for name in (loads.__name__, figures.__name__):
        assert doctest.testmod(import_module(name)).failed == 0


def test_every_way_is_measured_and_named() -> None:
    """No way is forgotten, and none goes by a function's name on the page."""
    lab = Lab()
    cells = select_cells(lab, list(SECTIONS), quick=False)
    ways = {cell.way for cell in cells}
    assert set(ALWAYS) < set(SECTIONS)
    assert PEERS.keys() <= ways
    assert (WAYS.keys() | PEERS.keys()) - {"ours_nobody", "ours_nobody_alone"} <= ways
    assert WAYS.keys() | PEERS.keys() | {"ours_again"} | stores.WAYS.keys() == NAMES.keys()
    keys = [(cell.section, cell.way, cell.load) for cell in cells]
    assert len(keys) == len(set(keys))


def test_every_part_of_a_run_can_be_measured() -> None:
    """The functions that are wrapped to measure the parts exist under their names."""
    for place in phases.PARTS.values():
        module, _, path = place.partition(":")
        assert callable(attrgetter(path)(import_module(f"prefect_dispatch.{module}"))), place


def test_a_cell_that_fails_is_a_row() -> None:
    """What goes wrong is told in its row, and the next cell comes; of several runs the quickest is kept."""
    seconds = iter([2.0, 1.0, 3.0])

    def broken() -> Row:
        raise MissingError("not installed")

    failed = Cell("s", "w", "l", 1, broken).row()
    assert failed["failed"] == "MissingError: not installed"
    quickest = measure_quickest(Cell("s", "w", "l", 1, lambda: {"seconds": next(seconds), "ended": 1.0}), 3)
    assert (quickest["seconds"], quickest["runs"], "ended" in quickest) == (1.0, 3, False)


def test_a_command_that_takes_too_long_is_ended_with_all_it_started() -> None:
    """Nothing is left of it."""
    child = "import subprocess, sys, time; subprocess.run([sys.executable, '-c', 'import time; time.sleep(98)'])"
    start = time.monotonic()
    assert run([*PYTHON, child], limit_s=0.5) == {"failed": "timed out after 0.5 s"}
    assert time.monotonic() - start < 60
    wait_until(lambda: not _running("import time; time.sleep(98)"), "what it started has ended")


def _running(word: str) -> list[psutil.Process]:
    return [each for each in psutil.process_iter(["cmdline"]) if word in (each.info["cmdline"] or [])]


def test_what_a_command_says_and_of_what_it_failed() -> None:
    """The last line of JSON is what it says; without one, or with an exit status, the last line of its errors."""
    memory: list[tuple[float, float]] = []
    said = run([*PYTHON, "import time; time.sleep(0.3); print('{}'); print('{\"done\": 1}')"], memory=memory)
    assert said == {"done": 1}
    assert memory
    failed = run([*PYTHON, f"raise SystemExit('in {ROOT}: no')"])
    assert failed == {"failed": "in …: no"}
    assert run([*PYTHON, ""]) == {"failed": "exit status 0"}


def test_a_peer_that_does_not_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so."""
    monkeypatch.setenv("PREFECT_DISPATCH_PEERS", str(tmp_path))
    monkeypatch.setattr(
        "benchmarks.peer_environments.UV", (sys.executable, "-c", "raise SystemExit('no such version')")
    )
    with pytest.raises(MissingError, match="not installed: no such version"):
        prepare_interpreter("curator")
    entities = merges.EntitySet({"a": {"name": "Ann"}, "b": {"name": "Ann"}}, {("a", "b"): True}, ("name",))
    assert merges.measure_linker(entities, "splink")["failed"].startswith("not installed: no such version")


@pytest.mark.parametrize("way", ["aiohttp_loop", "litellm_loop"])
@pytest.mark.slow
def test_ways_without_prefect(way: str) -> None:
    """Each asks every item once, and one beforehand."""
    found = Lab().measure(way, QUICK)
    assert (found["done"], found["requests"]) == (4, 4), found


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "ways",
    [
        pytest.param(("ours", "prefect_map"), marks=pytest.mark.long, id="main"),
        pytest.param(
            ("ours_alone", "ours_nobody", "ours_nobody_alone", "ours_planned", "prefect_gathered", "prefect_async_map"),
            marks=pytest.mark.long,
            id="others",
        ),
    ],
)
def test_ways_with_prefect(ways: tuple[str, ...]) -> None:
    """Each answers all, and the server has every task run of it, the integrator's among them."""
    lab = Lab()
    try:
        for way in ways:
            found = lab.measure(way, QUICK, tuned=True)
            assert (found.get("done"), found.get("recorded")) == (4, found.get("made")), (way, found)
    finally:
        lab.servers.drop()


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It keeps each row at once, and where only the missing are measured, only what failed is measured again."""
    times: list[str] = []

    def measured(way: str) -> Row:
        times.append(way)
        return {"seconds": 1.0} if way == "good" else {"failed": "no"}

    def cells(_: Lab, *, quick: bool) -> Iterator[Cell]:
        for way in ("good", "bad"):
            yield Cell("start", way, f"quick {quick}", 60, partial(measured, way))

    monkeypatch.setattr("benchmarks.run.SECTIONS", {"start": cells})
    for more in ([], ["--missing"]):
        monkeypatch.setattr(sys, "argv", ["run", "--quick", "--sections", "start", "--json", str(tmp_path), *more])
        main()
    assert times == ["good", "bad", "bad"]
    assert "2 cells, about 2 minutes" in capsys.readouterr().out
    assert [row["way"] for row in Results(tmp_path).rows("start")] == ["good", "bad"]


def test_what_it_takes_to_begin() -> None:
    """A command is timed in a fresh process, on the clock and by its processor."""
    found = startup.measure_command("import prefect_dispatch", 1)
    assert found["seconds"] > 0
    assert found["cpu_s"] > 0


def test_texts_and_judges_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of each set the naive check and the rules are measured; a judge is calibrated on one part of the documents."""
    documents = [f"Bosch delivers part {number} within five weeks to the bakery." for number in range(100, 112)]
    rows = [
        [at, f"Bosch delivers part {100 + at} within {count} weeks.", int(count == "five")]
        for at in range(12)
        for count in ("five", "six")
    ]
    packed = gzip.compress(json.dumps({"docs": documents, "rows": rows}).encode())
    for name in texts.SETS.values():
        (tmp_path / f"{name}.json.gz").write_bytes(packed)
    texts.print_rules(tmp_path)
    assert "| mean | 120 | 50.0 | 54.6 | 100.0 | 100.0 | 100.0 | 100.0 | 0.0 |" in capsys.readouterr().out
    judge = ScriptedExecutor(
        lambda ask: {"label": "not_found" if "six" in str(ask.item.value) else "supported", "sentence": documents[0]}
    )
    texts.print_judge(texts.measure_judge(tmp_path, DirectAsker(judge), 2))
    out = capsys.readouterr().out
    assert "judge alone: a doubt from " in out
    assert "20 texts with 20 claims, of which 20 have a verdict, 20 requests; for 1,000 claims: cost 0.0000 US" in out
    cut = texts.measure_judge(tmp_path, DirectAsker(judge), 6, minutes=0)
    assert (cut.texts, cut.held_out[False]) == (20, 100.0)


def test_texts_need_their_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the folder a sentence says so."""
    monkeypatch.setattr(sys, "argv", ["texts", "--data", str(tmp_path / "none")])
    texts.main()
    assert capsys.readouterr().out.startswith("Skipped: there is no folder")


@pytest.mark.slow
def test_merges_are_measured_on_small_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each section stores its rows, and the page says so; a folder that is missing is skipped with a sentence."""
    data, results = tmp_path / "data", Results(tmp_path / "results")
    assert "Not measured yet." in merges.create_page(results)
    # 1. Votes: two of three say what is right.
    for name in consensus.SETS:
        write_packed(data / "truth" / f"{name}.labels.csv.gz", "question,worker,answer\nq,a,yes\nq,b,yes\nq,c,no\n")
        write_packed(data / "truth" / f"{name}.gold.csv.gz", "question,truth\nq,yes\n")
    # 2. Records: one pair is the same, one is similar.
    records = {
        "left": [{"title": "Kettle, 2 litres", "Beer_Name": "Red Ale"}, {"title": "Cup", "Beer_Name": ""}],
        "right": [{"title": "kettle, 2 Litres", "Beer_Name": "red ale"}, {"title": "Cups", "Beer_Name": "Stout"}],
        "pairs": [[0, 0, 1], [1, 1, 0]],
    }
    for file, _ in merges.ENTITY_SETS.values():
        write_packed(data / "entities" / f"{file}.json.gz", json.dumps(records))
    febrl = "rec_id, given_name, surname\nrec-1-org, anna, wong\nrec-1-dup-0, anna, wong\nrec-2-org, bert, lee\n"
    write_packed(data / "entities" / "febrl1.csv.gz", febrl)
    # 3. Texts.
    documents = [f"Bosch delivers part {number} within five weeks." for number in range(100, 112)]
    rows = [
        [at, f"Bosch delivers part {100 + at} within {n} weeks.", int(n == "five")]
        for at in range(12)
        for n in ("five", "six")
    ]
    for name in texts.SETS.values():
        write_packed(data / "prose" / f"{name}.json.gz", json.dumps({"docs": documents, "rows": rows}))
    # 4. Code: merged as expected, wrongly, and in conflict.
    base = "a = 1\nb = 2\nc = 3\nd = 4\ne = 5\nf = 6\ng = 7\n"
    cases = [
        {
            "left": base.replace("1", "0"),
            "right": base.replace("7", "9"),
            "expected": base.replace("1", "0").replace("7", "9"),
        },
        {"left": f"z = 1\n{base}", "right": f"{base}z = 2\n", "expected": "<<<<<<< LEFT\n"},
        {"left": base.replace("1", "0"), "right": base.replace("1", "9"), "expected": "<<<<<<< LEFT\n"},
        {"left": base.replace("1", "0"), "right": base, "expected": base.replace("1", " 0")},
    ]
    lines = "".join(json.dumps({"name": "a.toml", "base": base, **case}) + "\n" for case in cases)
    write_packed(data / "code" / "mergiraf.jsonl.gz", lines)
    command = ["merges", "--data", str(data), "--results", str(results.folder), "--lies", "60"]
    monkeypatch.setattr(sys, "argv", command)
    merges.main()
    assert {row["right"] for row in results.rows("merges-votes")} == {100.0}
    f1 = {(row["way"], row["load"]): row["f1"] for row in results.rows("merges-records")}
    assert (f1["equal identity", "Beer"], f1["equal identity", merges.FEBRL]) == (100.0, 100.0)
    ours = {row["load"]: row for row in results.rows("merges-code") if row["way"] == "merge_branches"}
    assert (ours["right"]["exact"], ours["right"]["white space"]) == (1, 1)
    assert (ours["conflict"]["reported"], ours["conflict"]["wrong, flagged"]) == (1, 1)
    [(told, found)] = [(row["told"], row["found"]) for row in results.rows("merges-lies") if row["way"] == "all"]
    assert 0 < found <= told <= 60
    judge = ScriptedExecutor({"label": "supported", "sentence": documents[0]})
    merges.measure_judge(results, data / "prose", "openai/tiny", DirectAsker(judge), 2)
    whole = merges.create_page(results)
    assert "Not measured yet." not in whole
    assert "| `openai/tiny` | 20 | 20 |" in whole
    monkeypatch.setattr(
        sys,
        "argv",
        ["merges", "--data", str(tmp_path / "none"), "--results", str(results.folder), "--sections", "code"],
    )
    capsys.readouterr()
    merges.main()
    assert capsys.readouterr().out.startswith("Skipped: code, as there is no folder")


def write_packed(file: Path, text: str) -> None:
    """Write a compressed file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.compress(text.encode()))
