"""Pictures and captions become samples, and what can be computed once is cached."""
