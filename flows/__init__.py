"""Prefect flows: the core, and one for each job."""
