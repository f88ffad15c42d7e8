"""Flow that writes variants of one text independently, and compares them at the end."""

from __future__ import annotations

from prefect_dispatch.flows.forms.content_variants import FORM
from prefect_dispatch.flows.runtime.form_flow import form_flow

content_variants = form_flow(FORM)
