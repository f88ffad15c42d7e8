"""Test runs in several environments, compared test by test."""
