"""The broker, and how members and tools speak with it."""
