"""What the tests that need a cluster share."""
