"""Flow that analyses many files in the same way."""

from __future__ import annotations

from prefect_dispatch.flows.forms.analyze_files import FORM
from prefect_dispatch.flows.runtime.form_flow import form_flow

analyze_files = form_flow(FORM)
