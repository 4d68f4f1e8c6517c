"""States of LSTMs as a cache of `generate`, which beams can re-order."""

from typing import Any

import torch
from transformers import Cache


class LSTMState:
    """Hidden and cell state of one LSTM, (batch, size) each; `None` before the first step, which stands for zeros."""

    is_compileable = is_croppable = is_sliding = supports_early_init = False

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.hidden: torch.Tensor | None = None
        self.cell: torch.Tensor | None = None
        self.num_steps = 0

    def read(self, like: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden and cell state; zeros of (batch of `like`, size) before the first step."""
        if self.hidden is None or self.cell is None:
            return like.new_zeros(len(like), size), like.new_zeros(len(like), size)
        return self.hidden, self.cell

    def update(self, hidden: torch.Tensor, cell: torch.Tensor, num_steps: int) -> None:
        self.hidden, self.cell, self.num_steps = hidden, cell, self.num_steps + num_steps

    def get_max_length(self) -> int:
        return -1

    def get_mask_sizes(self, query_length: Any) -> tuple[int, int]:
        return self.num_steps + int(query_length), 0

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        if self.hidden is not None and self.cell is not None:
            indices = indices.to(self.hidden.device)
            self.hidden, self.cell = self.hidden.index_select(0, indices), self.cell.index_select(0, indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.hidden is not None and self.cell is not None:
            self.hidden = self.hidden.repeat_interleave(repeats, dim=0)
            self.cell = self.cell.repeat_interleave(repeats, dim=0)


class RecurrentCache(Cache):
    """What `past_key_values` is for recurrent decoders: one [`LSTMState`] for each LSTM."""

    def __init__(self, num_layers: int):
        super().__init__(layers=[LSTMState() for _ in range(num_layers)])

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.layers[layer_idx].num_steps
