"""Executors: the only code that talks to an agent."""
