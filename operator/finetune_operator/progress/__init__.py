"""How far a training is: the operator asks the trainer, whose pod needs no token for it."""
