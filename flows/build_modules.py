"""Flow that lets coding agents build modules in separate checkouts, and merges them at the end."""

from __future__ import annotations

from prefect_dispatch.flows.forms.build_modules import FORM
from prefect_dispatch.flows.runtime.form_flow import form_flow

build_modules = form_flow(FORM)
