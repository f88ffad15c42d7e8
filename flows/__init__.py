"""Prefect flows: `dispatch`, the flows with a form, and the phases of a run."""
