"""A text encoder's vocabulary with new words: rows of their own beside the frozen table."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Vocabulary(nn.Module):
    """Takes the place of a token embedding. The table stays as it is and gets no gradient; new rows are parameters of
    their own, so that an optimizer holds state for them alone, and no decay reaches the table.

    Its state dict is the table's, under the name that it always had: what is saved of a text encoder is a text encoder
    as every loader knows it. New words are a result of their own.
    """

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        self.weight = table.weight
        self.rows = nn.ParameterList()
        self.register_state_dict_post_hook(_forget_rows)

    @property
    def count(self) -> int:
        """Words of the table and new rows together."""
        return len(self.weight) + sum(len(rows) for rows in self.rows)

    def add(self, vectors: Tensor) -> nn.Parameter:
        """New rows, float32 [n, width], numbered on from `count`."""
        rows = nn.Parameter(vectors.detach().clone().to(self.weight))
        self.rows.append(rows)
        return rows

    def forward(self, ids: Tensor) -> Tensor:
        """float32 [..., width] of int64 ids [...]"""
        size = len(self.weight)
        table = nn.functional.embedding(ids.clamp(max=size - 1), self.weight)
        # also where no id is new: the rows then get a gradient of zeros, the same parameters in each process
        new = nn.functional.embedding((ids - size).clamp(min=0), torch.cat(list(self.rows)))
        return torch.where((ids >= size).unsqueeze(-1), new, table)


def _forget_rows(vocabulary: nn.Module, state: dict[str, Any], prefix: str, metadata: object) -> None:
    for key in [key for key in state if key.startswith(f"{prefix}rows.")]:
        del state[key]
