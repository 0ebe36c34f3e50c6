"""What a run tells while it works: progress bar, metrics, /progress, logs, termination message."""
