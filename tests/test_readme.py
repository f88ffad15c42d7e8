"""The README keeps its word: its length, its Python, its commands; and the pages that it shows parts of."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import yaml

from prefect_dispatch import Item, Outcome
from prefect_dispatch.flows.job_file import Job
from prefect_dispatch.flows.runtime.part_joiner import PartJoiner
from tests.fences import fences
from tests.openai_server import Behaviour, document, openai_server
from tests.pictures import LARGEST, SIZE, png_size

README = Path(__file__).parent.parent / "README.md"
GALLERY = README.parent / "docs" / "gallery.md"
FENCES = fences(README)


def blocks(language: str) -> list[str]:
    """Return the fenced blocks of a language; `test_docs.py` holds all of them to what any page is held to."""
    return [fence.text for fence in FENCES if fence.language == language]


def test_it_opens_with_two_commands() -> None:
    """The first shell block has exactly two, one for the job and one for the tests, each of them whole."""
    run, test = blocks("sh")[0].splitlines()
    assert run.endswith("prefect-dispatch run examples/licenses/job.yaml --out report")
    assert test.endswith("pytest -n logical --dist worksteal")
    assert all(command.startswith("python3 -m venv .venv && ") for command in (run, test))


def test_it_is_short() -> None:
    """It is read in a few minutes: at most 150 lines and 1,200 words."""
    text = README.read_text(encoding="utf-8")
    assert text.count("\n") <= 150
    assert len(text.split()) <= 1200


@pytest.mark.parametrize("page", [README, GALLERY], ids=lambda page: page.stem)
def test_its_pictures_are_there(page: Path) -> None:
    """Each picture exists in light and dark, is small, and has a text for those who don't see it."""
    pictures = re.findall(r"<picture>.*?</picture>", page.read_text(encoding="utf-8"), re.DOTALL)
    assert pictures
    for picture in pictures:
        (dark,), (light,) = re.findall(r'srcset="(.*?)"', picture), re.findall(r'src="(.*?)"', picture)
        assert (dark, 'media="(prefers-color-scheme: dark)"' in picture) == (light.replace("-light.", "-dark."), True)
        assert len(re.findall(r'alt="([^"]{20,})"', picture)) == 1
        for file in (page.parent / dark, page.parent / light):
            assert png_size(file) == SIZE
            assert file.stat().st_size < LARGEST


def test_the_rule_for_long_items_joins_its_parts(tmp_path: Path) -> None:
    """The rule that the page on long items shows joins the answers to the parts as the page says."""
    text = fences(README.parent / "docs" / "long-items.md")[0].text
    job = Job.model_validate({"items": [{"text": "A contract."}], **yaml.safe_load(text)})
    items = [Item(key="a", value={"text": "A contract."})]
    parts = [Outcome(brief="people", item="a", status="succeeded", value=[{"name": name}]) for name in ("Ada", "ada")]
    assert PartJoiner(job.briefs, items, tmp_path)(job.briefs[0], parts) == (
        [{"name": "Ada"}],
        "2 parts, joined by merge_records; removed: name ada by priority",
    )


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_its_pipeline_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The Python that it shows merges two answers about one person, and prints the record and that there is no gap."""

    def answer(request: dict[str, object], n: int) -> Behaviour:
        name = "Ada Lovelace" if "Ada" in document(request) else "ada lovelace"
        return Behaviour(content=f'{{"name": "{name}", "year": 1843}}')

    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789")
    monkeypatch.setenv("PREFECT_DISPATCH_MODEL", "openai/test")
    (tmp_path / "pipeline.py").write_text(blocks("python")[0])
    with openai_server(answer) as server:
        monkeypatch.setenv("OPENAI_API_BASE", server.url)
        runpy.run_path(str(tmp_path / "pipeline.py"))
        assert server.count == 2
    printed = capsys.readouterr().out.splitlines()[-1]
    assert printed == "[{'name': 'Ada Lovelace', 'year': 1843}] ()"
