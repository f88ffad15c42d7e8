"""Flow that runs a test suite in many environments, each in a checkout of its own, and compares the results."""

from __future__ import annotations

from prefect_dispatch.flows.forms.test_matrix import FORM
from prefect_dispatch.flows.runtime.form_flow import form_flow

test_matrix = form_flow(FORM)
