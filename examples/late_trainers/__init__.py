"""A parameter server, and trainers that join one after the other while it trains."""
