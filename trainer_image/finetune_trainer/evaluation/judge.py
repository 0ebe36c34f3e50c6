"""An encoder before the pictures of a run. Pictures are looked at as they are drawn: hundreds of large ones need not be
kept, what the encoder saw is enough."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from finetune_trainer.evaluation.drawing import Drawn, first_pictures
from finetune_trainer.evaluation.encoders import Encoder
from finetune_trainer.evaluation.intervals import Figure
from finetune_trainer.evaluation.judgement import Shown, judged, target_of
from finetune_trainer.evaluation.seen import Seen, joined
from finetune_trainer.evaluation.wording import Wording


@dataclass(frozen=True)
class Look:
    """What there was to see at one moment of the training."""

    shown: tuple[Shown, ...]
    """For each prompt; empty where nobody judges."""
    rows: tuple[tuple[Image.Image, ...], ...]
    """For each prompt its first pictures."""
    losses: Mapping[str, Figure] = field(default_factory=dict)
    """With fixed noise, where they are measured."""


class Judge:
    """Judges pictures of the same prompts and seeds, again and again."""

    def __init__(
        self, encoder: Encoder, wording: Wording, prompts: Sequence[str], training: Iterable[Sequence[Image.Image]]
    ) -> None:
        """
        Args:
            prompts: what is drawn at each judgement.
            training: the training pictures in batches, at least one.
        """
        self.encoder, self._wording = encoder, wording
        self._prompts = tuple(prompts)
        self._training = joined([encoder.see(batch) for batch in training])
        words = [wording.without_subject(prompt) for prompt in prompts]
        texts = encoder.read(words) if any(words) else None
        # a prompt of the rare word alone says nothing that pictures could be true to
        read = texts if texts is not None else [None] * len(words)
        self._texts = [features if text else None for text, features in zip(words, read, strict=True)]

    @property
    def recognises(self) -> bool:
        """Whether the encoder has a name for what the training pictures show."""
        return target_of(self._training.verdicts) is not None

    def look(self, batches: Iterable[Sequence[Drawn]], keep: int) -> Look:
        """Looks at pictures of all prompts, and keeps the first `keep` of each."""
        seen: list[list[Seen]] = [[] for _ in self._prompts]

        def looked_at() -> Iterable[Sequence[Drawn]]:
            for batch in batches:
                for (index, _), one in zip(batch, self.encoder.see([p for _, p in batch]).rows(), strict=True):
                    seen[index].append(one)
                yield batch

        rows = first_pictures(looked_at(), len(self._prompts), keep)
        shown = [
            Shown(prompt, self._wording.kind(prompt), joined(parts), None if text is None else np.asarray(text))
            for prompt, parts, text in zip(self._prompts, seen, self._texts, strict=True)
        ]
        return Look(tuple(shown), rows)

    def figures(self, base: Look, now: Look) -> dict[str, Figure]:
        """Figures of `now` beside the base model's look at the same prompts and seeds."""
        return judged(self._training, base.shown, now.shown) | dict(now.losses)
