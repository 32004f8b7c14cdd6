"""Bytes to values and back: the envelope, the control messages, their limits."""
