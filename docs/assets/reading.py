"""How the reference reads the code where the code alone doesn't say it."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING, Any

from griffe import Docstring, ExprCall, ExprKeyword, Extension, Function

if TYPE_CHECKING:
    from griffe import Attribute, Module, Object

_EXAMPLE = re.compile(r"^Example:$", re.MULTILINE)
"""The heading of an example; the plural is what griffe takes for a session at the prompt."""
_TREE = re.compile(r"^\S.*(?:\n[├│└].*)+", re.MULTILINE)
"""A tree in characters, its root included."""
_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
"""What pydantic calls the bounds of a field, and what people do."""


class Reading(Extension):
    """Shows examples as code, a block's fields with their descriptions, and flows as what they are made of."""

    def on_object(self, *, obj: Object, **_: Any) -> None:  # noqa: ANN401 -- what griffe says beside it
        """Name examples as griffe knows them, and keep the lines of what is drawn as a tree."""
        if obj.docstring:
            text = _EXAMPLE.sub("Examples:", obj.docstring.value)
            obj.docstring.value = _TREE.sub("```\n\\g<0>\n```", text)

    def on_attribute_instance(self, *, attr: Attribute, **_: Any) -> None:  # noqa: ANN401 -- what griffe says beside it
        """Say the bounds of a field in words; of a block's, take the description that Prefect's forms show."""
        if not isinstance(attr.value, ExprCall) or str(attr.value.function) != "Field":
            return
        named = {each.name: each.value for each in attr.value.arguments if isinstance(each, ExprKeyword)}
        if attr.docstring is None and "description" in named:
            attr.docstring = Docstring(ast.literal_eval(str(named["description"])), parent=attr)
            attr.value = named.get("default")
        bounds = [f"{words} {named[name]}" for name, words in _BOUNDS.items() if name in named]
        if attr.docstring and bounds:
            attr.docstring.value += f"\n\n{', '.join(bounds).capitalize()}."

    def on_module_members(self, *, mod: Module, **_: Any) -> None:  # noqa: ANN401 -- what griffe says beside it
        """Put the function, whose parameters are the flow's, in place of the flow; what it returns is a report."""
        made_of = mod.members.get(f"_{mod.name}")
        if mod.name in mod.members and isinstance(made_of, Function):
            made_of.name = mod.name
            made_of.returns = "Report"
            mod.members[mod.name] = made_of
            del mod.members[f"_{mod.name}"]
