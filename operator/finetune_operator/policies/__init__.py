"""The rules of a job's life, one a file. All are pure: what was observed goes in, a decision comes out."""
