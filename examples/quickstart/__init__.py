"""Data-parallel training of a small classifier, all of it in TorchScript functions on four workers."""
