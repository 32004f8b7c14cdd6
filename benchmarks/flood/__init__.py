"""A worker and its broker under a flood of bad handshakes."""
