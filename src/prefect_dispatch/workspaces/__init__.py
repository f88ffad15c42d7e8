"""Workspaces: a checkout of its own for each piece of work, and what of it is collected as a change."""
