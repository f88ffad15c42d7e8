"""Variants of one text, kept apart until they are compared."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from prefect.exceptions import ParameterTypeError

from prefect_dispatch import LLM, LLMCredentials, Report, Tournament, content_variants
from prefect_dispatch.errors import JobError
from prefect_dispatch.flows.content_variants import CRITERION, Variant
from prefect_dispatch.flows.runtime.form_layout import with_form_messages
from tests.openai_server import Behaviour, openai_server

if TYPE_CHECKING:
    from pathlib import Path

ORDER = [
    "product", "instructions", "variants", "credentials", "model", "folder", "name", "limits", "report", "advanced",
]  # fmt: skip
VARIANTS = [{"name": "bold", "angle": "Promise {one} thing."}, {"name": "calm", "angle": "Whisper."}]


def given(**more: object) -> Any:  # noqa: ANN401 -- the parts of a job
    """Return what a form with three fields, and some more, is put together to."""
    filled = {"product": "A kettle.", "instructions": "Write a tagline.", "variants": VARIANTS, **more}
    valid = content_variants.validate_parameters(filled)
    return with_form_messages(lambda: content_variants.form.build(**valid))


def test_the_form_has_few_fields_and_groups_in_order() -> None:
    """Three fields are enough; how the variants are compared is a choice."""
    form = content_variants.parameters.model_dump()
    fields = sorted(form["properties"].items(), key=lambda field: field[1]["position"])
    assert [name for name, _ in fields] == ORDER
    assert all(field["description"] for _, field in fields)
    assert form["required"] == ["product", "instructions", "variants"]
    assert form["definitions"]["Report"]["properties"]["evaluation"]["enum"] == ["judge", "metric", "results"]
    assert dict(fields)["variants"]["minItems"] == 2


def test_what_a_form_becomes() -> None:
    """A brief for each variant, braces in it meant as they stand; one way to compare them."""
    parts = given(max_words=8, constraints=["No {price}."], judge_model="openai/judge")
    assert [brief.name for brief in parts.briefs] == ["bold", "calm"]
    read = parts.briefs[0].fill_placeholders(parts.items.items[0])
    assert (read.instructions, read.constraints) == ("Write a tagline.\n\nPromise {one} thing.", ("No {price}.",))
    assert parts.briefs[0].checks[0].words == 8
    assert isinstance(parts.integrator, Tournament)
    assert (parts.integrator.criterion, parts.integrator.judge) == (CRITERION, LLM(model="openai/judge"))
    assert given(evaluation="metric", metric="mine:score").integrator.metric == "mine:score"
    assert given(evaluation="results", results="clicks.csv").integrator.results == "clicks.csv"


@pytest.mark.parametrize(
    ("more", "told"),
    [
        pytest.param({"evaluation": "metric"}, "metric: evaluation by metric needs a `module", id="no-metric"),
        pytest.param({"evaluation": "results"}, "results: evaluation by results needs a table", id="no-results"),
        pytest.param({"criterion": ""}, "criterion: evaluation by judge needs what makes", id="no-criterion"),
        pytest.param({"metric": "a:b"}, "metric: it is for evaluation by metric, and 'judge' is chosen", id="metric"),
        pytest.param(
            {"evaluation": "metric", "metric": "a:b", "judge_model": "x/y"}, "judge_model: it is for", id="judge"
        ),
        pytest.param(
            {"evaluation": "metric", "metric": "a:b", "criterion": "Short."}, "criterion: it is for", id="criterion"
        ),
        pytest.param({"evaluation": "metric", "metric": "no name"}, "metric: must be a function", id="no-function"),
        pytest.param({"variants": [VARIANTS[0], VARIANTS[0]]}, "variants: 'bold' stands there twice", id="twice"),
        pytest.param(
            {"variants": [*VARIANTS, {"name": "loud", "angle": " Promise\n{one}  thing."}]},
            r"variants: 'bold' and 'loud' have the same angle \('Promise \{one\} thing.'\), .* an angle of its own",
            id="one-angle",
        ),
    ],
)
def test_what_does_not_go_together_is_told(more: dict[str, Any], told: str) -> None:
    """The message begins with the field of the form, and says the way out."""
    with pytest.raises(JobError, match=told):
        given(**more)


def test_one_variant_is_none() -> None:
    """There must be two to compare, each with a name."""
    with pytest.raises(ParameterTypeError, match="variants"):
        given(variants=VARIANTS[:1])
    with pytest.raises(ParameterTypeError, match="name"):
        given(variants=[*VARIANTS, {"name": "No Name", "angle": "x"}])


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_a_judge_without_a_key_is_refused_before_anything_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of which only the writers could be paid is none; a plan elsewhere needs no key."""
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    monkeypatch.delenv("ANTHROPIC_AUTH_TOKEN", raising=False)
    saved = {"api_key": "sk-none-needed", "api_base": "http://127.0.0.1:9", "model": "openai/test"}
    LLMCredentials.model_validate(saved).save("of-writers", overwrite=True)
    told = (
        "judge_model: there is no key for 'anthropic/judge': the environment of this run has no ANTHROPIC_API_KEY; "
        "the credentials 'of-writers' are for models of the provider of 'openai/test'."
    )
    with pytest.raises(JobError, match=f"^{told}"):
        content_variants(
            "A kettle.", "Write a tagline.", VARIANTS, credentials="of-writers", judge_model="anthropic/judge"
        )
    assert given(credentials="of-writers", judge_model="anthropic/judge").integrator.judge.credentials is None
    monkeypatch.setenv("PREFECT_DISPATCH_MODEL", "openai/test")
    told = told.partition(";")[0] + r"\. Set it there, or name a model whose key is known\."
    with pytest.raises(JobError, match=f"^{told}"):
        content_variants("A kettle.", "Write a tagline.", VARIANTS, judge_model="anthropic/judge")


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_a_pilot_writes_some_variants_first_and_ranks_nothing() -> None:
    """What it has written is not written again, and the judge is asked only once all are there."""

    def behave(request: dict[str, Any], n: int) -> Behaviour:
        if "winner" in json.dumps(request):
            return Behaviour(content=json.dumps({"reason": "Bolder.", "winner": "first"}))
        return Behaviour(content="Boil!" if "Promise" in json.dumps(request) else "Softly.")

    with openai_server(behave) as server:
        LLMCredentials.model_validate(
            {"api_key": "sk-none-needed", "api_base": server.url, "model": "openai/test"}
        ).save("of-a-pilot", overwrite=True)
        fields: dict[str, Any] = {"credentials": "of-a-pilot"}
        form: Any = content_variants
        first: Report = form(
            "A kettle.", "Write it.", VARIANTS, **fields, limits={"pilot": {"items": 1, "gate": "report"}}
        )
        assert (first.status, server.count) == ("gaps", 1)
        assert [(gap.status, gap.error.kind) for gap in first.gaps] == [("skipped", "pilot")]
        assert not any(table.name == "ab-test" for table in first.tables)
        second: Report = form("A kettle.", "Write it.", VARIANTS, **fields)
        written = [each for each in server.requests if "winner" not in json.dumps(each.body)]
    assert (second.status, len(written), second.usage.cached) == ("complete", 2, 1)


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_variants_meet_only_in_their_evaluation(tmp_path: Path) -> None:
    """No writer sees another's text; the export has each variant with its rank, exactly as it was written."""

    def behave(request: dict[str, Any], n: int) -> Behaviour:
        said = json.dumps(request["messages"])
        if "winner" in json.dumps(request):
            first = said.find("=Boil!") < said.find("Softly.")
            return Behaviour(content=json.dumps({"reason": "Bolder.", "winner": "first" if first else "second"}))
        return Behaviour(content="=Boil!" if "Promise" in said else "Softly.")

    with openai_server(behave) as server:
        LLMCredentials.model_validate(
            {"api_key": "sk-none-needed", "api_base": server.url, "model": "openai/test"}
        ).save("of-variants", overwrite=True)
        report: Report = content_variants(
            "A kettle.",
            "Write a tagline.",
            [Variant(name="bold", angle="Promise one thing."), VARIANTS[1]],
            credentials="of-variants",
            folder=str(tmp_path),
            out="report",
        )
        written = [json.dumps(each.body) for each in server.requests if "winner" not in json.dumps(each.body)]
    assert report.status == "complete"
    assert len(written) == 2
    assert not any("Boil" in each or "Softly" in each for each in written)
    exported = json.loads((tmp_path / "report" / "ab-test.json").read_text(encoding="utf-8"))
    assert [(row["name"], row["payload"], row["rank"], row["weight_percent"]) for row in exported] == [
        ("bold/product", "=Boil!", 1, 50.0),
        ("calm/product", "Softly.", 2, 50.0),
    ]
