"""Redaction of secrets, and escaping of untrusted text."""
