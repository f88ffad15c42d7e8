"""Flow that writes variants of one text independently, and compares them at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal, cast

from pydantic import Field, GetPydanticSchema

from prefect_dispatch.errors import JobError
from prefect_dispatch.flows.runtime.flow_loader import make_on_use
from prefect_dispatch.flows.runtime.form import Form
from prefect_dispatch.flows.runtime.form_fields import (
    Budget,
    Concurrency,
    CredentialsField,
    Line,
    MaxTokens,
    ProfileField,
    Share,
    SharedBudget,
    Texts,
    executor_from_fields,
    limits_from_fields,
    require_distinct,
    second_executor,
)
from prefect_dispatch.flows.runtime.form_layout import FormGroup, FormLayout
from prefect_dispatch.flows.runtime.prepared_job import JobSpec
from prefect_dispatch.integrators.tournament.tournament import Tournament
from prefect_dispatch.models.base import Strict
from prefect_dispatch.models.brief import Brief, Name, Text
from prefect_dispatch.models.checks import MaxWords
from prefect_dispatch.models.item import Item, escape_template
from prefect_dispatch.models.limits import OptionalPilot  # noqa: TC001 -- the fields of a form
from prefect_dispatch.sources.inline import Listed
from prefect_dispatch.tasks.work_item import Refresh  # noqa: TC001 -- Prefect reads the signature

if TYPE_CHECKING:
    from prefect_dispatch.flows.runtime.form_flow import form_flow

CRITERION = "It speaks more to the people it is for, and claims nothing that the description doesn't say."
_LIMIT = 80
"""Maximum characters of an angle that an error message quotes."""


class Variant(Strict):
    """Variant of the text.

    Example:
        >>> Variant(name="bold", angle="Promise one thing, loudly.").name
        'bold'
    """

    name: Name
    """The name: small letters, digits and single hyphens."""
    angle: Text
    """What is particular to it: the angle, the tone, whom it speaks to."""


Variants = Annotated[
    Sequence["Variant | Mapping[str, str]"],
    GetPydanticSchema(lambda _, handler: handler(Annotated[tuple[Variant, ...], Field(min_length=2)])),
]


def _content_variants(  # noqa: PLR0913, PLR0917 -- the fields of a form
    product: Text,
    instructions: Text,
    variants: Variants,
    credentials: CredentialsField = None,
    model: Line = "",
    evaluation: Literal["judge", "metric", "results"] = "judge",
    criterion: Line = CRITERION,
    judge_model: Line = "",
    metric: Line = "",
    results: Line = "",
    constraints: Texts = (),
    max_words: Annotated[int, Field(title="Words", ge=1)] | None = None,
    folder: str = ".",  # noqa: ARG001 -- the flow reads it
    profile: ProfileField = None,
    concurrency: Concurrency = 8,
    budget_usd: Budget | None = None,
    min_success: Share = 0.0,
    name: Name = "product",
    out: Line = "",  # noqa: ARG001 -- the flow reads it
    refresh: Refresh = False,  # noqa: ARG001, FBT002 -- the flow reads it
    max_tokens: MaxTokens | None = None,
    pilot: OptionalPilot = None,  # calls may pass arguments by position, so new fields come last
    budget: SharedBudget = "",
) -> JobSpec:
    """Write variants of one text, each apart from the others, and rank them.

    Fill in `product`, `instructions` and two or more `variants`. No variant is written with another in sight; they
    meet in the evaluation. The table `ab-test` of the report has what an A/B tool takes.

    Args:
        product: The description of the product, and of whom it is for: all that a writer gets to see.
        instructions: What to write, such as a tagline in one sentence of at most eight words.
        variants: Two or more ways to write it, each with a name and an angle of its own.
        credentials: The key of the model's provider. None: it comes from the environment of the worker.
        model: The model to write with, e.g. openai/gpt-5-mini. Empty: the default of the credentials, or of the worker.
        evaluation: A judge compares them in pairs, a function of yours measures each, or an experiment has decided.
        criterion: For a judge: what makes one variant better than another.
        judge_model: For a judge: the model that judges. Empty: the one that wrote.
        metric: For a metric: `module:function` in the folder; it takes a text and a key, and returns a number.
        results: For results: a table in the folder with the columns key, trials and conversions.
        constraints: Rules that every variant must keep, one each.
        max_words: The most words of a variant; a longer one is sent back. Empty: no limit.
        folder: The folder that relative paths and a function of yours are looked up in, where the flow runs.
        profile: Saved settings for runs like this; fields that are changed here override them.
        concurrency: How many calls are under way at once.
        budget_usd: What the run may spend in US dollars, the judge included. Empty: no cap.
        min_success: The share of variants that must be written, such as 1.0; below it the run fails.
        name: What the product is called in the report: small letters, digits and hyphens.
        out: A folder or a URL for the report as files, `ab-test.json` among them. Empty: only Prefect keeps it.
        refresh: Write again even where a variant is stored: everything, or some variants by name.
        max_tokens: The tokens of the longest text, such as 500. A budget needs it, as it reserves the longest answer
            before each call. Empty: what the model allows.
        pilot: Variants that are written first, before the rest is paid for. What the whole would cost is shown, and you
            decide; nothing is ranked before that.
        budget: The name of a budget that runs share: a block of the type Dispatch Budget. What is left of it in the
            period bounds this run, too. Empty: none.
    """
    each_one = cast("tuple[Variant, ...]", variants)
    _require_distinct(each_one)
    _require_one_evaluation(evaluation, {"judge": criterion, "metric": metric, "results": results}, judge_model)
    checks = (MaxWords(words=max_words),) if max_words is not None else ()
    briefs = [
        Brief(
            name=each.name,
            scope="One product.",
            instructions=escape_template(f"{instructions}\n\n{each.angle}"),
            constraints=tuple(map(escape_template, constraints)),
            checks=checks,
        )
        for each in each_one
    ]
    executor = executor_from_fields(credentials, model, profile, max_tokens)
    integrator = Tournament.model_validate(
        {
            "criterion": criterion if evaluation == "judge" else "",
            "metric": metric if evaluation == "metric" else None,
            "results": results if evaluation == "results" else "",
            "judge": second_executor(executor, judge_model, "judge_model"),
        }
    )
    limits = limits_from_fields(
        profile, budget, concurrency=concurrency, budget_usd=budget_usd, min_success=min_success, pilot=pilot
    )
    return JobSpec(briefs, Listed(items=(Item(key=name, value=product),)), executor, integrator, limits)


LAYOUT = FormLayout(
    labels={
        "product": "Product",
        "instructions": "Instructions",
        "variants": "Variants",
        "credentials": "LLM credentials",
        "model": "Model",
        "folder": "Folder",
        "name": "Name",
    },
    groups={
        "limits": FormGroup(
            "Limits",
            "A budget, the length of a text, and a pilot.",
            {
                "budget_usd": "Budget in US dollars",
                "budget": "Shared budget",
                "max_tokens": "Longest text in tokens",
                "concurrency": "Concurrency",
                "min_success": "Share that must succeed",
                "pilot": "Pilot",
            },
        ),
        "report": FormGroup(
            "Report",
            "How the variants are ranked, and a folder for files.",
            {
                "evaluation": "Evaluation",
                "criterion": "Criterion",
                "judge_model": "Judge model",
                "metric": "Metric",
                "results": "Results file",
                "out": "Report folder",
            },
        ),
        "advanced": FormGroup(
            "Advanced",
            "Rules for all variants, a saved profile, and stored answers.",
            {
                "max_words": "Most words",
                "constraints": "Constraints",
                "profile": "Dispatch profile",
                "refresh": "Write again",
            },
        ),
    },
    identity=("instructions", "product"),
)


FORM = Form(_content_variants, LAYOUT)

if TYPE_CHECKING:
    content_variants = form_flow(FORM)
else:
    __getattr__ = make_on_use(FORM)


def _require_distinct(variants: Sequence[Variant]) -> None:
    """Check that the variants have distinct names and distinct angles.

    Raises:
        JobError: If not: for equal angles, one text would be requested and used for both.
    """
    require_distinct("variants", [each.name for each in variants])
    first: dict[str, str] = {}
    for each in variants:
        angle = " ".join(each.angle.split())
        if (other := first.setdefault(angle, each.name)) != each.name:
            raise JobError(
                f"variants: {other!r} and {each.name!r} have the same angle ({angle[:_LIMIT]!r}), so they would be one "
                "text; give each an angle of its own, or leave one out."
            )


def _require_one_evaluation(evaluation: str, given: Mapping[str, str], judge_model: str) -> None:
    """Check that the field of the chosen evaluation is filled in, and no field of another one.

    Raises:
        JobError: If not.
    """
    fields = {"judge": "criterion", "metric": "metric", "results": "results"}
    if not given[evaluation]:
        wants = {"judge": "what makes one variant better", "metric": "a `module:function`", "results": "a table's file"}
        raise JobError(f"{fields[evaluation]}: evaluation by {evaluation} needs {wants[evaluation]} here.")
    # A form submits every default, so a default does not count as filled in.
    more = {**given, "judge": judge_model or (given["judge"] if given["judge"] != CRITERION else "")}
    if other := next((way for way, text in more.items() if text and way != evaluation), None):
        name = "judge_model" if other == "judge" and judge_model else fields[other]
        raise JobError(f"{name}: it is for evaluation by {other}, and {evaluation!r} is chosen; change one of them.")
