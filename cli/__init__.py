"""The `zrpc` command, one file per command."""
