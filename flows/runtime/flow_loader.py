"""Flows with a form, made on first use: Prefect takes a second to import, and a refused job file needs none."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefect_dispatch.flows.runtime.form import Form


def make_on_use(form: Form[...]) -> Callable[[str], object]:
    """Return the `__getattr__` of the module of a form: it makes the form's flow when that is first used."""

    def get_flow(name: str) -> object:
        module = sys.modules[form.function.__module__]
        if name != form.name:
            msg = f"module {module.__name__!r} has no attribute {name!r}"
            raise AttributeError(msg)
        from prefect_dispatch.flows.runtime.form_flow import form_flow  # noqa: PLC0415 -- imports Prefect

        return vars(module).setdefault(name, form_flow(form))

    return get_flow
