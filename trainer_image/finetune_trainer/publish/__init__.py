"""Where results go: a store, and the transaction that makes them visible all at once."""
