"""Workspaces: an isolated checkout for each piece of work, and the capture of its change as a patch."""
