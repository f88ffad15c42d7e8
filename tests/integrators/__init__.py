"""Tests of the integrators and of the audit."""
