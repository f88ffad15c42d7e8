"""Flows with a form: blocks are passed by name, and messages are in the words of the form."""

from __future__ import annotations

import inspect
import json
import re
from contextvars import ContextVar
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from prefect.blocks.core import Block
from prefect.context import FlowRunContext
from prefect.exceptions import ParameterTypeError, SignatureMismatchError
from prefect.runtime import flow_run

from prefect_dispatch.blocks import DispatchProfile, LLMCredentials
from prefect_dispatch.errors import JobError
from prefect_dispatch.executors.block_references import block_name
from prefect_dispatch.flows.runtime.flow_class import JobFlow, run_attempt
from prefect_dispatch.flows.runtime.form_layout import with_form_messages
from prefect_dispatch.models.base import did_you_mean
from prefect_dispatch.models.report import Report
from prefect_dispatch.prefect_compat import parameter_descriptions
from prefect_dispatch.processes.ephemeral_server import use_server
from prefect_dispatch.security.escaping import count_noun
from prefect_dispatch.tasks.result_store import ReportSerializer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import Self

    from prefect_dispatch.flows.runtime.form import Form
    from prefect_dispatch.flows.runtime.form_layout import FormLayout
P = ParamSpec("P")
R = TypeVar("R")

_BLOCKS = {"credentials": LLMCredentials, "profile": DispatchProfile}
"""The blocks of forms, by field. Prefect converts the reference of a run to a block only if its class is imported."""


REFUSAL: ContextVar[str] = ContextVar("REFUSAL", default="")
"""The reason why the parameters of this run are refused, from their validation to the first step of the flow."""
_PROBLEM = re.compile(r"^ - ([\w.-]+): (.+)$", re.MULTILINE)
"""A problem in the message of Prefect's error for invalid parameters."""


class FormFlow(JobFlow[P, R]):
    """Flow with a form: blocks are passed by name, and a JSON Schema is data.

    Attributes:
        form: The form, which builds the parts of the job from the same parameters.
    """

    form: Form[P]

    def with_options(self, *args: Any, **kwargs: Any) -> Self:  # noqa: ANN401 -- Prefect's signature
        """Return the flow with other options, still a flow of this kind."""
        changed = super().with_options(*args, **kwargs)
        changed.form = self.form
        return changed

    if not TYPE_CHECKING:  # pragma: no branch -- the overloads are Prefect's

        def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 -- Prefect's signature
            """Run the flow, with a temporary server where the settings name none."""
            with use_server():
                return super().__call__(*args, **kwargs)

    def validate_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Return the validated parameters; a `$ref` in a schema is no reference to a block.

        In the run of a deployment, invalid parameters end the run in its first step, with a message in the words of the
        form: Prefect would log its own message with a traceback, and retry.

        Raises:
            ParameterTypeError: If a parameter is wrong.
        """
        try:
            return super().validate_parameters(_replace_blocks(parameters))
        except (ParameterTypeError, SignatureMismatchError, JobError) as error:
            if FlowRunContext.get() or not flow_run.get_id():  # a call in Python
                raise
            REFUSAL.set(self._explain(error, parameters))
            return {}

    def _explain(self, error: Exception, parameters: Mapping[str, Any]) -> str:
        """Return the reason why parameters are refused, by their names."""
        if unknown := next((name for name in parameters if name not in self.form.defaults), None):
            return f"{unknown}: there is no such field; {did_you_mean(unknown, [*self.form.defaults])}"
        if isinstance(error, JobError):
            return str(error)
        if problems := _PROBLEM.findall(str(error)):
            path, message = problems[0]
            more = f" ({count_noun(len(problems) - 1, 'more problem')}.)" if problems[1:] else ""
            return f"{path}: {message.removeprefix('Value error, ').rstrip('.')}.{more}"
        return "credentials: the block, or that of the profile, doesn't exist any more; choose another one."

    def serialize_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Return the parameters as Prefect records them with the run.

        Raises:
            JobError: If a block isn't saved: only its name is recorded.
        """
        return super().serialize_parameters(_replace_blocks(parameters))


def form_flow(form: Form[P]) -> FormFlow[P, Report]:
    """Return the flow that runs the job that a form builds from its parameters."""
    function = form.function
    signature = form.describe(parameter_descriptions(function)).replace(return_annotation=Report)

    @wraps(function)
    def run_form(*args: P.args, **kwargs: P.kwargs) -> Report:
        def step() -> Report:
            if refusal := REFUSAL.get():
                REFUSAL.set("")  # the process may run another flow
                raise JobError(refusal)
            from prefect_dispatch.flows.run_job import run_job  # noqa: PLC0415 -- a job that is refused needs none of it

            return run_job(form.build(*args, **kwargs))

        return run_attempt(lambda: with_form_messages(step, partial(_to_labels, form.layout)))

    cast("Any", run_form).__signature__ = signature
    # A deployment finds the flow by the module and the name of its function.
    run_form.__name__ = run_form.__qualname__ = form.name
    # The arguments are the last section of the docstring, and Prefect reads the descriptions of fields there.
    about = [f"    {name}: {group.description}" for name, group in form.layout.groups.items()]
    run_form.__doc__ = "\n".join([str(inspect.getdoc(function)), *about])
    name = form.name.replace("_", "-")
    flow: Any = FormFlow(cast("Any", run_form), name=name, result_serializer=ReportSerializer())
    flow.form = form
    return cast("FormFlow[P, Report]", flow)


def _to_labels(layout: FormLayout, message: str) -> str:
    """Replace the names of fields in a message by their labels, in the run of a deployment."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None or context.flow_run.deployment_id is None:
        return message
    return layout.to_labels(message)


def _replace_blocks(parameters: dict[str, Any]) -> dict[str, Any]:
    """Return parameters with blocks replaced by their names, and a JSON Schema by its text."""
    changed: dict[str, Any] = {}
    for field in _BLOCKS:
        if isinstance(block := parameters.get(field), Block):
            try:
                changed[field] = block_name(field, block)
            except ValueError as error:
                raise JobError(f"{field}: {error}.") from None
    if isinstance(schema := parameters.get("output"), dict):
        changed["output"] = json.dumps(schema)
    return {**parameters, **changed}
