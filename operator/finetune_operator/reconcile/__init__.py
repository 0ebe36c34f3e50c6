"""observe → plan → apply → status: one pass over one FineTuneJob."""
