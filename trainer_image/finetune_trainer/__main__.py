"""`python -m finetune_trainer` is the command `finetune`."""

from finetune_trainer.cli import app

app(prog_name="finetune")
