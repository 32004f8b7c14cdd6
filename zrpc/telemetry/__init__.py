"""Counters of what an agent does."""
