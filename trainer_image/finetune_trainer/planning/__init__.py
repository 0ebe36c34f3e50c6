"""Which engine executes a training, and what it does to fit: decided from facts, kept for the next attempt."""
