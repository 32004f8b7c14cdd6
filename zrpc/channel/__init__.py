"""How the bytes of large tensors travel between processes of one host, beside their messages."""
