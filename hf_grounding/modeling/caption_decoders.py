"""Caption decoders: the paper's seven, each a way from an image's rows and the words so far to the next word.

Sections 4 to 6 of the captioners that Mutual Iterative Attention stands in front of: `LSTMDecoder` is visual attention,
concept attention, visual condition and concept condition; `UpDownDecoder` that of Anderson et al. (CVPR 2018);
`TransformerDecoder` that of Vaswani et al. (2017). All have two methods: `memory` computes what stays the same for a
whole caption, once for an image; `forward` goes on from a cache of states for one or many words.

Shapes: B images, N captions, T words, n rows (regions, cells or concepts) of an image.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from transformers import Cache, DynamicCache, EncoderDecoderCache, MarianConfig
from transformers.models.marian.modeling_marian import MarianDecoder
from transformers.utils import ModelOutput

from .recurrent_cache import RecurrentCache


@dataclass
class ImageMemory(ModelOutput):
    r"""What a decoder needs of an image, the same at every word. Rows can be repeated for captions and beams.

    Args:
        last_hidden_state (`(B, n, width)`): The rows the decoder attends to.
        row_mask (`(B, n)`): 1 = real row, 0 = padding.
        row_keys (`(B, n, attention_hidden_size)`): Rows as additive attention compares them.
        pooled (`(B, width)`): The image's part of each LSTM input.
        first (`(B, width)`): Fed to the LSTM before the first word.
        row_prior (`(B, n)`): How much each row counts whatever the word: beta of Spatial-Semantic attention.
        row_log_prior (`(B, n)`): Its logarithm, which is exact where beta itself is too small a number.
        attentions (`tuple` of `(B, 2, heads, n, n)`): Visual and textual attention of the module by iteration, or
            only one of them, see [`MIAModelOutput.attentions_by_iteration`], if asked for.
    """

    last_hidden_state: torch.FloatTensor | None = None
    row_mask: torch.LongTensor | None = None
    row_keys: torch.FloatTensor | None = None
    pooled: torch.FloatTensor | None = None
    first: torch.FloatTensor | None = None
    row_prior: torch.FloatTensor | None = None
    row_log_prior: torch.FloatTensor | None = None
    attentions: tuple[torch.Tensor, ...] | None = None

    def of_captions(self, image_index: torch.Tensor) -> "ImageMemory":
        """A row for each caption, of the image it belongs to."""
        tensors = {name: value for name, value in self.items() if isinstance(value, torch.Tensor)}
        return ImageMemory(**{name: value.index_select(0, image_index) for name, value in tensors.items()})


@dataclass
class DecodedWords:
    r"""What a decoder gives for T words.

    Args:
        hidden (`(N, T, width)`): Input of the output layer.
        attentions (`(N, heads, T, n)`, *optional*): Weight of each row when each word is written, without a prior.
        cache: States after the last word.
    """

    hidden: torch.Tensor
    attentions: torch.Tensor | None
    cache: Cache


def masked_mean(rows: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over real rows: (B, n, d), (B, n) -> (B, d)."""
    weights = mask.to(rows.dtype) / mask.sum(dim=1, keepdim=True).clamp(min=1)
    return torch.einsum("bn,bnd->bd", weights, rows)


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def lstm_cell(gates: torch.Tensor, cell: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden and cell state from the gates (N, 4 R) before their activation, in torch's order i, f, g, o."""
    i, f, g, o = gates.chunk(4, dim=-1)
    cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
    return o.sigmoid() * cell.tanh(), cell


def _words_by_step(input_ids: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """(N, T) -> (sum of sizes): the words of the captions that go on, one step after another."""
    return torch.cat([input_ids[:count, step] for step, count in enumerate(sizes)])


def _stack(steps: list[torch.Tensor]) -> torch.Tensor:
    """(count_t, width) of each step -> (count_0, T, width), 0 where a caption has ended."""
    rows = len(steps[0])
    return torch.stack([nn.functional.pad(step, (0, 0, 0, rows - len(step))) for step in steps], dim=1)


class _StepProduct(torch.autograd.Function):
    """`x W' + b` of one step of several, whose gradients of W and b are left to the first step's backward, the last."""

    @staticmethod
    def forward(ctx, x, weight, bias, is_first, waiting):
        ctx.save_for_backward(x, weight)
        ctx.is_first, ctx.waiting = is_first, waiting
        return nn.functional.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        ctx.waiting.append((gradient, x))
        of_weight = of_bias = None
        if ctx.is_first:
            gradients, inputs = (torch.cat(parts) for parts in zip(*ctx.waiting, strict=True))
            ctx.waiting.clear()
            of_weight = gradients.T @ inputs if ctx.needs_input_grad[1] else None
            of_bias = gradients.sum(dim=0) if ctx.needs_input_grad[2] else None
        return gradient @ weight, of_weight, of_bias, None, None


class GateLayer(nn.Linear):
    """A part of the four gates of an LSTM, (..., size) -> (..., 4 R); its first weights are those of torch's LSTM."""

    def reset_parameters(self) -> None:
        bound = (self.out_features // 4) ** -0.5  # by R, not by what goes in
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)


class RecurrentLinear(GateLayer):
    """A layer inside a loop over time, whose weights' gradient is one large product and not a sum of small ones."""

    def over_steps(self, num_steps: int) -> Callable[[torch.Tensor], torch.Tensor]:
        """The layer as a function of one step's input, to be called at each of the steps."""
        if num_steps == 1:
            return self  # autocast then casts its weights once for all words that are written
        device = self.weight.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.weight.dtype
        weight, bias = self.weight.to(dtype), None if self.bias is None else self.bias.to(dtype)
        first = iter([True])
        waiting: list[tuple[torch.Tensor, torch.Tensor]] = []  # gradient and input of the steps whose turn has been
        return lambda x: _StepProduct.apply(x.to(dtype), weight, bias, next(first, False), waiting)


class AttentionLayer(nn.Linear):
    """A layer of additive attention; its first weights are Xavier-uniform, as in the official code."""

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.xavier_uniform_(self.weight)


class AdditiveAttention(nn.Module):
    r"""`alpha = softmax_i( w_a . tanh(W_x x_i + W_h h) )` over real rows; `activation` may be "relu" in place of tanh.

    Rows are projected once for an image (`keys`), with one dropout mask for the whole caption.
    """

    def __init__(
        self,
        row_size: int,
        state_size: int,
        hidden_size: int,
        *,
        bias: bool,
        dropout: float = 0.0,
        activation: Literal["tanh", "relu"] = "tanh",
    ):
        super().__init__()
        self.activation = {"tanh": torch.tanh, "relu": torch.relu}[activation]
        self.rows = AttentionLayer(row_size, hidden_size, bias=bias)  # W_x
        self.state = AttentionLayer(state_size, hidden_size, bias=bias)  # W_h
        self.score = AttentionLayer(hidden_size, 1, bias=bias)  # w_a
        self.dropout = nn.Dropout(dropout)

    def keys(self, rows: torch.Tensor) -> torch.Tensor:
        return self.rows(self.dropout(rows))

    def forward(self, state: torch.Tensor, keys: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(N, T, state), (N, n, hidden), (N, n) -> weights (N, T, n)."""
        state = self.state(self.dropout(state))
        compared = self.dropout(self.activation(keys[:, None] + state[:, :, None]))  # (N, T, n, hidden)
        scores = at_least_float32(self.score(compared).squeeze(-1))
        return scores.masked_fill(mask[:, None] == 0, torch.finfo(scores.dtype).min).softmax(dim=-1).to(keys.dtype)


class CaptionDecoder(nn.Module):
    """What all decoders share: the words' embeddings, and the names of their two methods."""

    width: int  # of `hidden`, the input of the output layer
    attended: Literal["visual", "textual", ""] = "visual"  # the rows that get weights, "" for none

    def __init__(self, config: Any):
        super().__init__()
        self.embed_words = nn.Embedding(config.vocab_size, config.embedding_size)

    def new_cache(self) -> Cache:
        """Of the states before the first word."""
        raise NotImplementedError

    def memory(self, image: Any) -> ImageMemory:
        """What stays the same for a whole caption, from a [`MIAModelOutput`]."""
        raise NotImplementedError

    def forward(
        self, input_ids: torch.Tensor, memory: ImageMemory, cache: Cache, sizes: list[int] | None = None
    ) -> DecodedWords:
        r"""
        Args:
            input_ids (`torch.Tensor` of shape `(N, T)`): The words so far, from where the cache ends.
            memory ([`ImageMemory`]): A row for each caption.
            cache: Changed in place.
            sizes (`list[int]`, *optional*): At word t only the first `sizes[t]` captions go on, in descending order; a
                decoder may leave out the rest, whose states then mean nothing.
        """
        raise NotImplementedError


class LSTMDecoder(CaptionDecoder):
    r"""One LSTM that reads words plus an image vector; its output plus what it attends to gives the word.

    | decoder | before the first word | input | attention |
    |---|---|---|---|
    | visual attention | - | w_t + v_a | over V |
    | concept attention | - | w_t + t_a | over T |
    | visual condition | t_a | w_t + v_a | - |
    | concept condition | v_a | w_t + t_a | - |

    `v_a = W(mean V)`, `t_a = mean T`. The attention does not feed back into the LSTM, so it is computed for all words
    at once.
    """

    def __init__(self, config: Any):
        super().__init__(config)
        name = config.decoder_type
        self.width = config.hidden_size
        if name.endswith("_attention"):
            self.attended = "textual" if name == "concept_attention" else "visual"
        else:
            self.attended = ""
        self.added = "textual" if name.startswith("concept_") else "visual"
        self.first = {"visual_condition": "textual", "concept_condition": "visual"}.get(name)
        self.dropout = nn.Dropout(config.dropout)
        if "visual" in (self.added, self.first):
            self.project_visual = nn.Linear(config.hidden_size, config.hidden_size)
        self.lstm_words = GateLayer(config.embedding_size, 4 * config.hidden_size)  # with the LSTM's bias
        self.lstm_states = RecurrentLinear(config.hidden_size, 4 * config.hidden_size, bias=False)
        if self.attended:
            sizes = config.hidden_size, config.hidden_size, config.attention_hidden_size
            self.attention = AdditiveAttention(*sizes, bias=False, dropout=config.dropout)

    def new_cache(self) -> RecurrentCache:
        return RecurrentCache(1)

    def memory(self, image: Any) -> ImageMemory:
        vectors = {}
        if "visual" in (self.added, self.first):
            mean = masked_mean(image.visual_states, image.visual_mask)
            vectors["visual"] = self.project_visual(self.dropout(mean))
        if "textual" in (self.added, self.first):
            vectors["textual"] = masked_mean(image.textual_states, image.textual_mask)
        rows = image.textual_states if self.attended == "textual" else image.visual_states
        return ImageMemory(
            last_hidden_state=rows,
            row_mask=image.textual_mask if self.attended == "textual" else image.visual_mask,
            row_keys=self.attention.keys(rows) if self.attended else None,
            pooled=vectors[self.added],
            first=vectors[self.first] if self.first else None,
        )

    def forward(self, input_ids, memory, cache, sizes=None):
        sizes = sizes or [len(input_ids)] * input_ids.shape[1]
        pooled = torch.cat([memory.pooled[:count] for count in sizes])
        gates = self.lstm_words(self.embed_words(_words_by_step(input_ids, sizes)) + pooled).split(sizes)
        lstm_states = self.lstm_states.over_steps(len(sizes))
        (layer,) = cache.layers
        starts = layer.num_steps == 0
        h, c = layer.read(gates[0], self.width)
        if starts and self.first:
            h, c = lstm_cell(self.lstm_words(memory.first) + lstm_states(h), c)
        outputs = []
        for words, count in zip(gates, sizes, strict=True):
            h, c = lstm_cell(words + lstm_states(h[:count]), c[:count])
            outputs.append(h)
        layer.update(h, c, len(outputs))
        hidden = _stack(outputs)
        if not self.attended:
            return DecodedWords(hidden, None, cache)
        weights = self.attention(hidden, memory.row_keys, memory.row_mask)  # (N, T, n)
        return DecodedWords(hidden + weights @ memory.last_hidden_state, weights[:, None], cache)


class UpDownDecoder(CaptionDecoder):
    r"""Up-Down: a first LSTM that attends to regions, a second that writes.

        h1 = LSTM([h2; vbar; x_t]),  alpha = softmax(w_a . tanh(W_v v_i + W_h h1)),  h2 = LSTM([sum_i alpha_i v_i; h1])

    An image whose memory has a `row_prior` weighs its regions by `weigh(alpha, row_prior)` in place of alpha.

    Each product of a weight with `[a; b]` is written as a sum, so that the parts of words and of the image are computed
    outside the loop over time, and one matrix product is left of each LSTM.
    """

    def __init__(self, config: Any):
        super().__init__(config)
        size = self.width = config.decoder_hidden_size
        row_size = config.hidden_size if config.projects_regions else config.feature_dim
        self.dropout = nn.Dropout(config.dropout)
        self.embed_regions = nn.Linear(row_size, size)
        self.embed_global = nn.Linear(row_size, size) if config.embed_global else None
        options = {"bias": config.decoder_attention_bias, "activation": config.decoder_attention_activation}
        self.attention = AdditiveAttention(size, size, config.attention_hidden_size, **options)
        self.attention_words = GateLayer(config.embedding_size, 4 * size)  # of x_t, with the LSTM's bias
        self.attention_image = GateLayer(size, 4 * size, bias=False)  # of vbar
        self.attention_states = RecurrentLinear(2 * size, 4 * size, bias=False)  # of [h2; h1]
        self.language_states = RecurrentLinear(3 * size, 4 * size)  # of [vhat; h1; h2]

    def new_cache(self) -> RecurrentCache:
        return RecurrentCache(2)

    def memory(self, image: Any) -> ImageMemory:
        regions = image.visual_states.to(self.embed_regions.weight.dtype)
        rows = self.dropout(self.embed_regions(regions).relu())
        if self.embed_global is None:
            mean = masked_mean(rows, image.visual_mask)
        else:
            mean = self.dropout(self.embed_global(masked_mean(regions, image.visual_mask)).relu())
        return ImageMemory(
            last_hidden_state=rows,
            row_mask=image.visual_mask,
            row_keys=self.attention.keys(rows),
            pooled=self.attention_image(mean),
        )

    def weigh(self, alpha: torch.Tensor, prior: torch.Tensor) -> torch.Tensor:
        """Weights (..., n) of regions in what the second LSTM reads, from their attention and their prior."""
        raise NotImplementedError

    def forward(self, input_ids, memory, cache, sizes=None):
        sizes = sizes or [len(input_ids)] * input_ids.shape[1]
        words = self.dropout(self.embed_words(_words_by_step(input_ids, sizes)).relu())
        gates = self.attention_words(words).split(sizes)
        h1, c1 = cache.layers[0].read(gates[0], self.width)
        h2, c2 = cache.layers[1].read(gates[0], self.width)
        pooled, rows, keys, mask = memory.pooled, memory.last_hidden_state, memory.row_keys, memory.row_mask
        prior = memory.row_prior
        attention_states, language_states = (
            layer.over_steps(len(sizes)) for layer in (self.attention_states, self.language_states)
        )
        outputs, weights = [], []
        for words, count in zip(gates, sizes, strict=True):
            if count < len(h1):  # not at every step: the gradient of a part is written into one of the whole
                h1, c1, h2, c2, pooled = (x[:count] for x in (h1, c1, h2, c2, pooled))
                rows, keys, mask = (x[:count] for x in (rows, keys, mask))
                prior = None if prior is None else prior[:count]
            h1, c1 = lstm_cell(words + pooled + attention_states(torch.cat([h2, h1], dim=1)), c1)
            alpha = self.attention(h1[:, None], keys, mask)  # (count, 1, n)
            gamma = alpha if prior is None else self.weigh(alpha, prior[:, None])
            attended = (gamma @ rows)[:, 0]
            h2, c2 = lstm_cell(language_states(torch.cat([attended, h1, h2], dim=1)), c2)
            outputs.append(h2)
            weights.append(alpha[:, 0])
        cache.layers[0].update(h1, c1, len(outputs))
        cache.layers[1].update(h2, c2, len(outputs))
        return DecodedWords(_stack(outputs), _stack(weights)[:, None], cache)


class TransformerDecoder(CaptionDecoder):
    r"""Transformer captioner: encoder layers over the image's rows without positions, decoder layers over the words.

    A word's weights are the last layer's, over encoder outputs; output i stands for row i, which it adds to.
    """

    def __init__(self, config: Any):
        super().__init__(config)
        size = self.width = config.hidden_size
        options = {"dim_feedforward": config.intermediate_size, "dropout": config.transformer_dropout}
        layer = nn.TransformerEncoderLayer(size, config.num_attention_heads, **options, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, config.num_encoder_layers, enable_nested_tensor=False)
        settings = MarianConfig(
            vocab_size=config.vocab_size,
            d_model=size,
            decoder_layers=config.num_decoder_layers,
            decoder_attention_heads=config.num_attention_heads,
            decoder_ffn_dim=config.intermediate_size,
            dropout=config.transformer_dropout,
            activation_function="relu",
            scale_embedding=True,
            max_position_embeddings=config.max_position_embeddings,
            pad_token_id=config.pad_token_id,
            bos_token_id=config.bos_token_id,
            eos_token_id=config.eos_token_id,
            forced_eos_token_id=config.eos_token_id,
            decoder_start_token_id=config.decoder_start_token_id,
            attn_implementation="eager",  # the others do not give their weights
        )
        self.layers = MarianDecoder(settings)
        self.layers.embed_tokens = None  # it is given embedded words

    def train(self, mode: bool = True):
        self.layers.embed_positions.requires_grad_(False)  # `from_pretrained` makes all trainable, then calls this
        return super().train(mode)

    def new_cache(self) -> EncoderDecoderCache:
        return EncoderDecoderCache(DynamicCache(), DynamicCache())

    def memory(self, image: Any) -> ImageMemory:
        rows = self.encoder(image.visual_states, src_key_padding_mask=image.visual_mask == 0)
        return ImageMemory(last_hidden_state=rows, row_mask=image.visual_mask)

    def forward(self, input_ids, memory, cache, sizes=None):
        most, length = self.layers.max_target_positions, cache.get_seq_length() + input_ids.shape[1]
        if length > most:
            raise ValueError(f"A caption may have {most} words (`config.max_position_embeddings`), got {length}.")
        decoded = self.layers(
            inputs_embeds=self.embed_words(input_ids),
            encoder_hidden_states=memory.last_hidden_state,
            encoder_attention_mask=memory.row_mask,
            past_key_values=cache,
            use_cache=True,
            output_attentions=True,
        )
        return DecodedWords(decoded.last_hidden_state, decoded.cross_attentions[-1], cache)


def make_decoder(config: Any) -> CaptionDecoder:
    """The decoder that a [`MIAConfig`] names."""
    classes = {"up_down": UpDownDecoder, "transformer": TransformerDecoder}
    return classes.get(config.decoder_type, LSTMDecoder)(config)
