"""Whole clusters on a fake clock: the protocol machines of all workers and the broker, joined by a network of chance."""
