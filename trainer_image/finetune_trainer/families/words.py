"""A text encoder's vocabulary with new words: rows of their own beside the frozen table."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Vocabulary(nn.Module):
    """Takes the place of a token embedding. The table stays as it is and gets no gradient; new rows are parameters of
    their own, so that an optimizer holds state for them alone, and no decay reaches the table."""

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        # the same name as before: state dicts of the encoder keep their keys
        self.weight = table.weight
        self.rows = nn.ParameterList()

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
        if not len(self.rows):
            return nn.functional.embedding(ids, self.weight)
        size = len(self.weight)
        table = nn.functional.embedding(ids.clamp(max=size - 1), self.weight)
        new = nn.functional.embedding((ids - size).clamp(min=0), torch.cat(list(self.rows)))
        return torch.where((ids >= size).unsqueeze(-1), new, table)
