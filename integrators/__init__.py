"""Integrators: outcomes merged into one value, in one place, by documented rules."""
