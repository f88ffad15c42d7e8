"""Coding agents as users: jobs that outlive the agent, consent of the user, and the MCP server."""
