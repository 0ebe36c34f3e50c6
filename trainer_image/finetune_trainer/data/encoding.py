"""All that a training shows, encoded before its first step: the VAE is then not needed beside it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from finetune_trainer.data.ahead import Ahead
from finetune_trainer.data.samples import Samples
from finetune_trainer.errors import Interrupted
from finetune_trainer.telemetry.listener import Listener

WHAT = "views encoded"


def encode_views(samples: Samples, steps: int, listener: Listener, should_stop: Callable[[], bool]) -> None:
    """Encodes what `steps` steps show, or finds it in the cache: one view at a time, so that each is the same whatever
    is encoded with it, while a thread reads the next pictures.

    Raises:
        Interrupted: `should_stop` said so; what was encoded is kept.
        DataError: a picture cannot be read any more.
    """
    views = samples.views(steps)

    def find(number: int) -> object:
        latents, key = views[number]
        return latents.find(key)

    with Ahead(find, range(len(views)), torch.device("cpu")) as ahead:
        for number, (latents, key) in enumerate(views):
            if should_stop():
                raise Interrupted(f"stopped after {number} of {len(views)} {WHAT}; they are kept")
            latents.keep(key, ahead.take())
            listener.work(number + 1, len(views), WHAT)
