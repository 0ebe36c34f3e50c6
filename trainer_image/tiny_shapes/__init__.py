"""Makes tiny-shapes, the base model that is small enough to be fine-tuned on a CPU, from nothing."""
