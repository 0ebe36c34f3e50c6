"""Pictures by the hundred from prompts: with a run's results, within a run, or with a base model for comparison."""
