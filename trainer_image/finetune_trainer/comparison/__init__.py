"""The same pictures through several techniques, over several training seeds, measured by the trainer itself."""
