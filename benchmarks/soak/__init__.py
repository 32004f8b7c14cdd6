"""One worker that serves at full speed for a long time."""
