"""`finetune from-accelerate`: a configuration of accelerate as spec.engine and spec.training."""
