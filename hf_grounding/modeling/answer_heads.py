"""Question answering over the regions of an image: Up-Down (arXiv 1707.07998) and BAN (arXiv 1805.07932).

Both read a question's words and rows of an image, raw regions or those that mutual iterative attention refined, and
score every answer. Where the papers leave something open, the two public codes that MIA's numbers were made with decide
(spatial features and answers' texts are not used there either).

Question -> `QuestionEncoder`; Up-Down -> `UpDownAnswerHead`; BAN's attention maps -> `BilinearAttention`, its residual
glimpses -> `Glimpse`, the counter it takes from Zhang et al. (arXiv 1802.05766) -> `Counter`.

Padding is masked here, of questions and of regions. The public codes read padded words as words: without
`attention_mask` ours does as well.
"""

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from .caption_decoders import at_least_float32
from .configuration_mia_vqa import MIAVQAConfig


class NormalizedLinear(nn.Linear):
    r"""`y = x W^T + b` with `W = g V / ||V||_F`: weight normalisation with one scalar g for the whole matrix.

    `weight` is V, `scale` is g. At first g is the norm of V, so that a new layer is an ordinary one.
    """

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features)
        self.scale = nn.Parameter(self.weight.detach().norm()[None])  # (1,)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if "scale" in self._parameters:  # not yet while the linear layer's constructor runs
            init.copy_(self.scale, self.weight.norm()[None])

    def normalized(self) -> torch.Tensor:
        """W, (out_features, in_features)."""
        return self.weight * (self.scale / self.weight.norm())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.normalized(), self.bias)


class Question(NamedTuple):
    """States of the words (B, T, H), 0 on padding; the last word's (B, H); mask (B, T), 1 = word, 0 = padding."""

    states: torch.Tensor
    last: torch.Tensor
    mask: torch.Tensor


class QuestionEncoder(nn.Module):
    """A GRU over word vectors, in which padding takes no step, on whichever side it is: (B, T) ids -> [`Question`]."""

    def __init__(self, config: MIAVQAConfig):
        super().__init__()
        # BAN's two tables are one here, because both are trained and their vectors stand side by side.
        width = config.word_embedding_size * (2 if config.tfidf_word_embeddings else 1)
        self.embed_words = nn.Embedding(config.vocab_size, width, padding_idx=config.pad_token_id)
        self.gru = nn.GRU(width, cast("int", config.question_hidden_size), batch_first=True)

    def forward(self, input_ids: torch.Tensor, mask: torch.Tensor) -> Question:
        words = self.embed_words(input_ids)  # (B, T, width)
        # The words first: what a GRU makes of the padding behind them changes no state before.
        order = (mask == 0).long().argsort(dim=1, stable=True)[..., None]  # (B, T, 1)
        states, _ = self.gru(words.gather(1, order.expand_as(words)))  # (B, T, H)
        ends = (mask != 0).sum(dim=1).clamp(min=1) - 1
        last = states[torch.arange(len(states), device=states.device), ends]
        states = torch.zeros_like(states).scatter(1, order.expand_as(states), states)  # back in their places
        return Question(states * (mask != 0)[..., None], last, mask)


class AnswerHeadOutput(NamedTuple):
    """Logits of the answers (B, num_labels); weights of rows, (B, n) in Up-Down or (B, G, T, n) in BAN."""

    logits: torch.Tensor
    weights: torch.Tensor


class AnswerClassifier(nn.Module):
    """`W_2 drop(relu(W_1 x))`: (B, H) -> (B, num_labels)."""

    def __init__(self, config: MIAVQAConfig):
        super().__init__()
        hidden = cast("int", config.classifier_hidden_size)
        self.hidden = NormalizedLinear(cast("int", config.question_hidden_size), hidden)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.output = NormalizedLinear(hidden, config.num_labels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.output(self.dropout(self.hidden(x).relu()))


def masked_softmax(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Softmax over the last axis where `mask` (of a shape that broadcasts) is not 0, and 0 elsewhere."""
    return logits.masked_fill(mask == 0, torch.finfo(logits.dtype).min).softmax(dim=-1)


# Up-Down


class ProductAttention(nn.Module):
    """`w . drop(relu(W_v v_i) * relu(W_q q))`: rows (B, n, row_size), question (B, H) -> logits (B, n)."""

    def __init__(self, row_size: int, hidden_size: int, dropout: float):
        super().__init__()
        self.rows = NormalizedLinear(row_size, hidden_size)
        self.question = NormalizedLinear(hidden_size, hidden_size)
        self.dropout = nn.Dropout(dropout)
        self.score = NormalizedLinear(hidden_size, 1)

    def forward(self, rows: torch.Tensor, question: torch.Tensor) -> torch.Tensor:
        compared = self.rows(rows).relu() * self.question(question).relu()[:, None]  # (B, n, H)
        return self.score(self.dropout(compared)).squeeze(-1)


class ConcatAttention(nn.Module):
    """`w . relu(W [v_i; q])`, the first of the public code's two flavours; shapes as [`ProductAttention`]."""

    def __init__(self, row_size: int, hidden_size: int):
        super().__init__()
        self.joint = NormalizedLinear(row_size + hidden_size, hidden_size)
        self.score = NormalizedLinear(hidden_size, 1)

    def forward(self, rows: torch.Tensor, question: torch.Tensor) -> torch.Tensor:
        of_rows, of_question = self.joint.normalized().tensor_split([rows.shape[-1]], dim=1)
        # The question's part is the same for all rows, so it is computed once.
        joint = F.linear(rows, of_rows) + F.linear(question, of_question, self.joint.bias)[:, None]
        return self.score(joint.relu()).squeeze(-1)


class UpDownAnswerHead(nn.Module):
    r"""One attention over the rows, by the question: `relu(W_q q) * relu(W_v sum_i alpha_i v_i)` -> answers."""

    def __init__(self, config: MIAVQAConfig):
        super().__init__()
        size = cast("int", config.question_hidden_size)
        self.attention: ProductAttention | ConcatAttention = (
            ProductAttention(config.row_size, size, config.attention_dropout)
            if config.attention_type == "product"
            else ConcatAttention(config.row_size, size)
        )
        self.project_question = NormalizedLinear(size, size)
        self.project_rows = NormalizedLinear(config.row_size, size)
        self.classifier = AnswerClassifier(config)

    def forward(
        self, question: Question, rows: torch.Tensor, row_mask: torch.Tensor, boxes: torch.Tensor | None = None
    ) -> AnswerHeadOutput:
        """Rows (B, n, row_size), `row_mask` (B, n); boxes are not used."""
        weights = masked_softmax(self.attention(rows, question.last), row_mask)
        attended = (weights[:, None] @ rows).squeeze(1)  # (B, row_size)
        joint = self.project_question(question.last).relu() * self.project_rows(attended).relu()
        return AnswerHeadOutput(self.classifier(joint), weights)


# BAN


class GlimpseWeights(NormalizedLinear):
    """One vector and one bias for each glimpse, which start as normal(0, 1)."""

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight)
        nn.init.normal_(self.bias)
        if "scale" in self._parameters:
            init.copy_(self.scale, self.weight.norm()[None])


class BilinearAttention(nn.Module):
    r"""`L[g, j, i] = sum_k M[g, k] Q'[j, k] drop(V')[i, k] + b[g]` for word j and row i.

    `V' = relu(W_v drop(v))` and `Q' = relu(W_q drop(q))` are three times as wide as the question's states. Shapes: rows
    (B, n, row_size), words (B, T, H) -> (B, G, T, n).
    """

    def __init__(self, config: MIAVQAConfig):
        super().__init__()
        size = cast("int", config.question_hidden_size)
        self.input_dropout = nn.Dropout(config.attention_dropout)
        self.rows = NormalizedLinear(config.row_size, 3 * size)
        self.words = NormalizedLinear(size, 3 * size)
        self.row_dropout = nn.Dropout(config.bilinear_dropout)
        self.glimpses = GlimpseWeights(3 * size, config.num_glimpses)

    def forward(self, rows: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        rows = self.row_dropout(self.rows(self.input_dropout(rows)).relu())  # (B, n, 3 H)
        words = self.words(self.input_dropout(words)).relu()  # (B, T, 3 H)
        # The glimpses go to the words, of which there are fewest; nothing of pairs is as wide as 3 H.
        queries = words[:, None] * self.glimpses.normalized()[:, None].to(words.dtype)  # (B, G, T, 3 H)
        logits = queries.flatten(1, 2) @ rows.mT  # (B, G T, n)
        return logits.unflatten(1, queries.shape[1:3]) + self.glimpses.bias[:, None, None]


class Glimpse(nn.Module):
    r"""`q_j + P drop(sum_ij A[j, i] relu(W_v drop(v_i)) relu(W_q drop(q_j))) + relu(W_c c)` for one attention map A.

    Shapes: rows (B, n, row_size), words (B, T, H), weights (B, T, n), counts (B, num_counted_objects + 1) -> (B, T, H).
    """

    def __init__(self, config: MIAVQAConfig):
        super().__init__()
        size = cast("int", config.question_hidden_size)
        self.dropout = nn.Dropout(config.attention_dropout)
        self.rows = NormalizedLinear(config.row_size, size)
        self.words = NormalizedLinear(size, size)
        self.joint = NormalizedLinear(size, size)
        self.count = NormalizedLinear(config.num_counted_objects + 1, size) if config.counts else None

    def forward(
        self, rows: torch.Tensor, words: torch.Tensor, weights: torch.Tensor, counts: torch.Tensor | None
    ) -> torch.Tensor:
        gathered = weights @ self.rows(self.dropout(rows)).relu()  # (B, T, H): of each word its rows
        joint = (gathered * self.words(self.dropout(words)).relu()).sum(dim=1)  # (B, H)
        change = self.joint(self.dropout(joint))
        if self.count is not None:
            change = change + self.count(counts).relu()
        return words + change[:, None]


class BilinearAttentionHead(nn.Module):
    """Bilinear Attention Networks: G attention maps over pairs of word and row, each added to the words in its turn."""

    def __init__(self, config: MIAVQAConfig):
        super().__init__()
        self.attention = BilinearAttention(config)
        self.counter = Counter(config.num_counted_objects) if config.counts else None
        self.glimpses = nn.ModuleList(Glimpse(config) for _ in range(config.num_glimpses))
        self.classifier = AnswerClassifier(config)

    def forward(
        self, question: Question, rows: torch.Tensor, row_mask: torch.Tensor, boxes: torch.Tensor | None = None
    ) -> AnswerHeadOutput:
        """Rows (B, n, row_size), `row_mask` (B, n), boxes (B, n, 4) where the head counts."""
        pairs = (question.mask[:, None, :, None] != 0) & (row_mask[:, None, None] != 0)  # (B, 1, T, n)
        logits = self.attention(rows, question.states)
        logits = logits.masked_fill(~pairs, torch.finfo(logits.dtype).min)
        weights = logits.flatten(2).softmax(dim=-1).view_as(logits)
        counts: tuple[torch.Tensor | None, ...] = (None,) * len(self.glimpses)
        if self.counter is not None and boxes is not None:
            # All maps are there before the first glimpse, so objects of all are counted at once.
            counts = self.counter(logits.amax(dim=2), row_mask, boxes).to(logits.dtype).unbind(dim=1)
        words = question.states
        for number, glimpse in enumerate(self.glimpses):
            words = glimpse(rows, words, weights[:, number].to(rows.dtype), counts[number])
        return AnswerHeadOutput(self.classifier((words * (question.mask != 0)[..., None]).sum(dim=1)), weights)


class PiecewiseLinear(nn.Module):
    """A function from [0, 1] onto [0, 1] that never falls, straight between 0, 1/16, .., 1; it starts as f(x) = x."""

    def __init__(self, num_pieces: int = 16):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_pieces))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rises = at_least_float32(self.weight).abs()
        rises = rises / rises.sum()
        starts = F.pad(rises.cumsum(dim=0), (1, 0))[:-1]  # values at the left ends
        place = x * len(rises)
        piece = place.detach().long().clamp(0, len(rises) - 1)
        return starts[piece] + (place - piece) * rises[piece]


class Counter(nn.Module):
    r"""How many objects an attention is on, from its weights `a = sigmoid(logits)` and the overlaps of boxes.

    The boxes with the largest weights are the nodes of a graph with edges `a a^T`. Edges within one object are removed
    by overlap (f_1, f_2), and copies of one object by how alike boxes are (f_3 to f_5); then the number of edges is the
    square of the number of objects (Zhang et al., Eq. 4-12). f_6 to f_8 say how sure that is.

    Args:
        num_objects (`int`): N, boxes that are looked at, and the highest count. An image with fewer is filled up with
            boxes of no size and weight.

    Shapes: logits (B, G, n), mask (B, n), boxes xyxy (B, n, 4) -> (B, G, N + 1) in float32 or more: the count as
    one-hot of 0 .. N, shared between two neighbours where it is no whole number, times the confidence.
    """

    def __init__(self, num_objects: int):
        super().__init__()
        self.num_objects = num_objects
        self.f = nn.ModuleList(PiecewiseLinear() for _ in range(8))

    def forward(self, logits: torch.Tensor, mask: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        # Not in half precision, in which areas would vanish; under autocast neither.
        with torch.autocast(logits.device.type, enabled=False):
            weights = at_least_float32(logits).sigmoid() * (mask != 0)[:, None]  # (B, G, n)
            boxes = boxes.to(weights.dtype) * (mask != 0)[..., None]
            missing = max(self.num_objects - weights.shape[-1], 0)
            weights, boxes = F.pad(weights, (0, missing)), F.pad(boxes, (0, 0, 0, missing))
            a, best = weights.topk(self.num_objects, dim=-1)  # (B, G, N)
            overlaps = _overlaps(boxes)[:, None].expand(-1, a.shape[1], -1, -1)  # (B, G, n, n)
            overlaps = overlaps.gather(2, best[..., None].expand(*best.shape, overlaps.shape[-1]))
            overlaps = overlaps.gather(3, best[:, :, None].expand(*best.shape, best.shape[-1]))  # (B, G, N, N)
            return self._count(a, 1 - overlaps)

    def _count(self, a: torch.Tensor, distance: torch.Tensor) -> torch.Tensor:
        f = self.f
        edges = a[..., None] * a[..., None, :]  # (B, G, N, N)
        kept = f[0](edges) * f[1](distance)
        alike = f[3](edges) * f[4](distance)  # by its columns two boxes are compared
        same_edges = f[2](1 - (alike[..., None] - alike[..., None, :]).abs()).prod(dim=2)
        copies = (same_edges * f[2](1 - (a[..., None] - a[..., None, :]).abs())).sum(dim=-1)  # (B, G, N)
        kept = kept / (copies[..., None] * copies[..., None, :])
        # Loops, which were removed as edges within an object, count once for each.
        total = kept.sum(dim=(-2, -1)) + (f[0](a * a) / copies).sum(dim=-1)  # (B, G)
        count = (total + 1e-20).sqrt().clamp(max=self.num_objects)
        numbers = torch.arange(self.num_objects + 1, device=count.device)
        one_hot = (1 - (count[..., None] - numbers).abs()).clamp(min=0)  # (B, G, N + 1)
        doubt_a, doubt_distance = (f[5](a) - 0.5).abs(), (f[6](distance) - 0.5).abs()
        confidence = f[7](doubt_a.mean(dim=-1) + doubt_distance.mean(dim=(-2, -1)))
        return one_hot * confidence[..., None]


def _overlaps(boxes: torch.Tensor) -> torch.Tensor:
    """Intersection over union of all boxes of an image, 0 for boxes without area: (B, n, 4) -> (B, n, n)."""
    low = torch.maximum(boxes[:, :, None, :2], boxes[:, None, :, :2])
    high = torch.minimum(boxes[:, :, None, 2:], boxes[:, None, :, 2:])
    shared = (high - low).clamp(min=0).prod(dim=-1)
    areas = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(dim=-1)
    return shared / (areas[:, :, None] + areas[:, None] - shared + 1e-12)


__all__ = ["BilinearAttentionHead", "Counter", "QuestionEncoder", "UpDownAnswerHead"]
