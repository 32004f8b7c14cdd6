"""How frames travel: ZeroMQ, and its fake in one process."""
