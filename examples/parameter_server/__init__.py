"""A parameter server in the words of torch's RPC: nothing here names zrpc."""
