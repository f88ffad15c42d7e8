"""Forms of flows: a typed function that returns the parts of a job, with the arrangement of its parameters."""

from __future__ import annotations

import inspect
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, cast, get_type_hints

from prefect_dispatch.flows.runtime.form_layout import FormLayout, arrange_parameter, group_parameters
from prefect_dispatch.serialization.json_text import digest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from prefect_dispatch.flows.runtime.prepared_job import JobSpec
P = ParamSpec("P")

_NAME_CHARACTERS = 40
"""Characters of a question from which a name is derived."""


class Form(Generic[P]):
    """Form of a flow: a typed function that returns the parts of a job, with the arrangement of its parameters.

    Attributes:
        function: The function. Its parameters are those of the form, with `name`, `folder`, `out`, `refresh` and
            optionally `limit` among them, which it need not pass on.
        name: The name of the flow, as job files call it.
        layout: The arrangement of the parameters.
        signature: The parameters, arranged: those of the function, and one for each group.
        defaults: The defaults of these parameters; a required one has `inspect.Parameter.empty`.
    """

    def __init__(self, function: Callable[P, JobSpec], layout: FormLayout) -> None:
        """Arrange the parameters of a function."""
        self.function = function
        self.name = function.__name__.lstrip("_")
        self.layout = layout
        self.signature = self.describe({})
        self.defaults: Mapping[str, Any] = {each.name: each.default for each in self.signature.parameters.values()}

    def describe(self, descriptions: Mapping[str, str]) -> inspect.Signature:
        """Return the signature with descriptions of its parameters, which only what is shown to people needs."""
        # The types are resolved here, as Prefect would look up their names in another module.
        types = get_type_hints(self.function, include_extras=True)
        plain = inspect.signature(self.function)
        given = {name: each.replace(annotation=types[name]) for name, each in plain.parameters.items()}
        arranged = [arrange_parameter(self.layout, each, descriptions.get(name, "")) for name, each in given.items()]
        return plain.replace(parameters=[*arranged, *group_parameters(self.layout, given, descriptions)])

    def build(self, *args: P.args, **kwargs: P.kwargs) -> JobSpec:
        """Return the parts of the job.

        Raises:
            JobError: If they can't be built.
        """
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        fields = self.layout.flatten(bound.arguments, self.defaults)
        spec: JobSpec = cast("Any", self.function)(**fields)
        is_default = fields["name"] == self.defaults["name"]
        return replace(
            spec,
            folder=fields["folder"],
            out=fields["out"] or None,
            limit=fields.get("limit"),
            refresh=fields["refresh"],
            name=_derive_name(self.layout, fields) if is_default else fields["name"],
        )


def _derive_name(layout: FormLayout, fields: Mapping[str, Any]) -> str | None:
    """Return a name for a job that was given none, so that only runs of the same question are compared."""
    texts = [fields[name] for name in layout.identity if isinstance(fields[name], str | list | tuple)]
    if not texts:
        return None
    words = re.findall(r"[a-z0-9]+", str(texts[0]).lower()[:_NAME_CHARACTERS])
    return "-".join([*words, digest(texts)[:6]])
