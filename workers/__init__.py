"""Ready-made worker entries."""
