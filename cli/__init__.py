"""The `zrpc` command, one file per command."""

COMMANDS = (
    *("launch", "broker", "worker", "status", "events", "call", "trace", "scale"),
    *("stop", "config", "doctor", "completion"),
)
"""In the order in which help lists them."""
