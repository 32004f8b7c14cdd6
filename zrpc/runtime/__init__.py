"""Threads live here: the agent and its parts."""
