"""State machines without I/O: calls, references, membership, the common end."""
