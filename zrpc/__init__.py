"""TorchScript calls, Python calls and remote references between processes, on ZeroMQ."""
