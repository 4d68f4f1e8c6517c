"""Text side of the common space: encoders that give layers of word states, and the trainable mixes of those layers.

Every encoder maps `input_ids, attention_mask` to `layers (K, batch, T, width)`. What the models need of them is one
vector for each word (`LinearWordMix`, `SoftmaxWordMix`) and one for the sentence (`SentenceMix`). Section 3.2 of arXiv
1811.11683; the mix rules are the authors' code.
"""

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from transformers import AutoModel, PreTrainedModel


class BiLSTMEncoder(nn.Module):
    r"""Trainable word vectors and one BiLSTM.

    Layers: `[e; e]` (so that widths agree) and the BiLSTM's `[forward; backward]`.
    """

    def __init__(self, config):
        super().__init__()
        size = config.word_embedding_size
        self.embed_words = nn.Embedding(config.vocab_size, size, padding_idx=config.pad_token_id)
        self.lstm = nn.LSTM(size, size, batch_first=True, bidirectional=True)
        self.width, self.num_layers = 2 * size, 2

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        if (attention_mask.diff(dim=1) > 0).any():
            raise ValueError(
                "The BiLSTM reads captions padded on the right; set the tokenizer's `padding_side` to 'right'."
            )
        words = self.embed_words(input_ids)  # (batch, T, size)
        lengths = attention_mask.sum(dim=1).clamp(min=1).cpu()
        packed = pack_padded_sequence(words, lengths, batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=input_ids.shape[1])
        return torch.stack([torch.cat([words, words], dim=-1), states])


class PretrainedTextEncoder(nn.Module):
    r"""Any `AutoModel` text encoder; layers are its hidden states. Frozen ones stay in eval mode."""

    model: PreTrainedModel

    def __init__(self, config):
        super().__init__()
        self.frozen = config.freeze_text_encoder
        self.set_model(AutoModel.from_config(config.text_config))
        self.width = config.text_config.hidden_size
        self.num_layers = config.text_config.num_hidden_layers + 1

    def set_model(self, model: PreTrainedModel) -> None:
        r"""Uses `model`, of the same configuration, such as a pretrained one."""
        self.model = model
        self.train(self.training)  # a frozen one starts in eval mode

    def train(self, mode: bool = True):
        # `from_pretrained` makes all weights trainable, and then calls this.
        if self.frozen:
            self.model.requires_grad_(False)
        if getattr(self.model, "pooler", None) is not None:
            self.model.pooler.requires_grad_(False)  # not used: trainable, it would wait for gradients that never come
        return super().train(mode and not self.frozen)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            outputs = self.model(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True)
        return torch.stack(outputs.hidden_states)


class LinearWordMix(nn.Module):
    r"""`w_0 layer_0 + w_1 layer_1 + ... + b` with scalar weights, as the authors' BiLSTM variant."""

    def __init__(self, num_layers: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_layers))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, layers: torch.Tensor) -> torch.Tensor:
        return torch.tensordot(self.weight, layers, dims=1) + self.bias


class SoftmaxWordMix(nn.Module):
    r"""`scale * sum_k softmax(w)_k layer_k`, ELMo's scalar mix."""

    def __init__(self, num_layers: int, with_scale: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_layers))
        self.scale = nn.Parameter(torch.ones(())) if with_scale else 1.0

    def forward(self, layers: torch.Tensor) -> torch.Tensor:
        return self.scale * torch.tensordot(self.weight.softmax(dim=0), layers, dims=1)


class SentenceMix(nn.Module):
    r"""Sentence vector: each layer pooled over its words, then `sum_k w_k pooled_k` without bias or softmax."""

    def __init__(self, num_layers: int, pooling: str):
        super().__init__()
        self.pool = {"boundary": pool_boundary, "mean": pool_mean}[pooling]
        self.weight = nn.Parameter(torch.full((num_layers,), 1.0 / num_layers))

    def forward(self, layers: torch.Tensor, word_mask: torch.Tensor) -> torch.Tensor:
        return torch.tensordot(self.weight, self.pool(layers, word_mask), dims=1)


def pool_boundary(layers: torch.Tensor, word_mask: torch.Tensor) -> torch.Tensor:
    r"""`[backward half at the first word; forward half at the last]`, backward first as in the authors' code.

    First and last are where `word_mask` is 1, so padding and special tokens may stand on either side.

    Shapes: `layers` (K, batch, T, 2 h) with halves [forward; backward], `word_mask` (batch, T) -> (K, batch, 2 h).
    """
    forward, backward = layers.chunk(2, dim=-1)
    rows = torch.arange(word_mask.shape[0], device=layers.device)
    real = word_mask.long()
    first = real.argmax(dim=1)  # of equal values, the first
    last = real.shape[1] - 1 - real.flip(1).argmax(dim=1)
    return torch.cat([backward[:, rows, first], forward[:, rows, last]], dim=-1)


def pool_mean(layers: torch.Tensor, word_mask: torch.Tensor) -> torch.Tensor:
    r"""Mean over real words: (K, batch, T, width) -> (K, batch, width)."""
    weights = word_mask.to(layers.dtype) / word_mask.sum(dim=1, keepdim=True).clamp(min=1)
    return (layers * weights[None, :, :, None]).sum(dim=2)
