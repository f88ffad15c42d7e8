"""Flow that researches topics independently of each other, and synthesizes one finding."""

from __future__ import annotations

from prefect_dispatch.flows.forms.research_topics import FORM
from prefect_dispatch.flows.runtime.form_flow import form_flow

research_topics = form_flow(FORM)
