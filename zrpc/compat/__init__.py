"""zrpc under torch's names, for programs that are not changed."""
