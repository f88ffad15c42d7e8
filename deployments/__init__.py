"""Deployments of the flows: specifications, registration, serving, schedules and automations."""
