"""Multi-level common semantic space for phrase grounding (Akbari et al., CVPR 2019, arXiv 1811.11683).

Words, sentences and the cells of several visual levels are mapped into one space of width D. A word's heatmap is its
similarity to every cell; the level whose attended vector fits the word best is chosen; captions and images are matched
through those scores, so heatmaps are learned from captions alone.

Section 3.1 -> `VisualMapping`, section 3.2 -> `TextMapping` (encoders in `text_encoders.py`), Eq. 1-4 -> `cosine_maps`,
`attention_weights`, `attended_similarity`, Eq. 5 -> `pool_words`, Eq. 7-10 -> `matching_loss`.

Where we differ from the literal equations, values agree: the attended vector a is never formed. `<a, s>` and `|a|`
follow from the cosines and the Gram matrix of the cells, which is cheaper when there are fewer cells than dimensions,
and padded words are dropped before the products rather than masked after. Where paper and code disagree, see the
configuration.
"""

from collections.abc import Sequence
from functools import reduce
from itertools import pairwise

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.nn.functional import all_gather
from torch.utils.checkpoint import checkpoint
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.utils import auto_docstring, can_return_tuple

from .configuration_multilevel import MultiLevelGroundingConfig
from .outputs import MultiLevelGroundingOutput
from .text_encoders import BiLSTMEncoder, LinearWordMix, PretrainedTextEncoder, SentenceMix, SoftmaxWordMix

EPSILON = 1e-12  # of `normalize`, on the squared norm


def normalize(x: torch.Tensor, dim: int = -1) -> torch.Tensor:
    r"""`x / sqrt(max(sum x^2, 1e-12))`; a zero vector stays zero."""
    wide = x.to(_wide(x.dtype))
    return (wide * _inverse_root(wide.square().sum(dim=dim, keepdim=True), x.dtype)).to(x.dtype)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Squared norms are taken in float32 at least: float16 ends at 65504."""
    return torch.promote_types(dtype, torch.float32)


def _inverse_root(squared_norm: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`1 / sqrt(max(squared_norm, 1e-12))`.

    In float16 the floor is higher, so that gradients, which are up to this large, stay in range.
    """
    return squared_norm.clamp(min=max(EPSILON, 1 / torch.finfo(dtype).max)).rsqrt()


def resize_map(x: torch.Tensor, size: int, mode: str) -> torch.Tensor:
    r"""Bilinear resize of `x` (batch, channels, height, width) to `size` x `size`, without anti-aliasing.

    `mode` says where the centre of target pixel i lies in a source n times as large: `"half_pixel"` (i + .5) n - .5,
    `"tf_legacy"` i n, `"align_corners"` i (in - 1) / (out - 1).
    """
    if x.shape[-2:] == (size, size):
        return x
    if mode != "tf_legacy":
        return F.interpolate(x, size=(size, size), mode="bilinear", align_corners=mode == "align_corners")
    for dim in (-2, -1):
        length = x.shape[dim]
        source = torch.arange(size, device=x.device, dtype=torch.float64) * (length / size)
        low = source.floor().long()
        shape = [1] * x.ndim
        shape[dim] = size
        weight = (source - low).to(x.dtype).view(shape)
        high = (low + 1).clamp(max=length - 1)
        x = x.index_select(dim, low) * (1 - weight) + x.index_select(dim, high) * weight
    return x


def convolve(x: torch.Tensor, layer: nn.Linear) -> torch.Tensor:
    r"""1x1 convolution with the weights of `layer`: (batch, in, height, width) -> (batch, out, height, width).

    As a convolution, and not as the same product of matrices, because torch's convolutions in float32 are up to twice
    as fast on CPUs for which its matrix library has no kernel of their own (`benchmarks/README.md`).
    """
    return F.conv2d(x, layer.weight[:, :, None, None], layer.bias)


def cosine_maps(text: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
    r"""Cosines of words and cells: (..., T, D) and (..., L, N, D) -> (..., L, T, N). Inputs are normalised.

    Words (T, D) without leading dimensions meet the cells of all images, in one large product (see `convolve`).
    """
    if text.ndim > 2:
        return (regions @ text.unsqueeze(-3).mT).mT
    cells = regions.flatten(0, -3).mT.unsqueeze(-1).contiguous(memory_format=torch.channels_last)  # (..., D, N, 1)
    return F.conv2d(cells, text[:, :, None, None]).squeeze(-1).unflatten(0, regions.shape[:-2])


def attention_weights(cosines: torch.Tensor, attention: str, axis: str, word_mask: torch.Tensor | None) -> torch.Tensor:
    r"""Eq. 1, `H = max(0, cosine)`, or the softmax ablation over regions or words. Shapes: (..., L, T, N) -> the same.

    `word_mask` (..., T) is needed by the softmax over words alone, in which padding has no share; without it every row
    is a whole sentence, which has nothing to share with: its weights are 1.
    """
    if attention == "relu":
        return cosines.relu()
    if axis == "words":
        if word_mask is None:
            return torch.ones_like(cosines)
        cosines = cosines.masked_fill(word_mask[..., None, :, None] == 0, torch.finfo(cosines.dtype).min)
    return cosines.softmax(dim=-1 if axis == "regions" else -2)


class _Gram(torch.autograd.Function):
    """`V V^T`. It is symmetric, so its backward pass needs one product where autograd would take two."""

    @staticmethod
    def forward(ctx, regions: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(regions)
        return regions @ regions.mT

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        (regions,) = ctx.saved_tensors
        return (gradient + gradient.mT).to(regions.dtype) @ regions


def gram_matrices(regions: torch.Tensor) -> torch.Tensor:
    r"""Cosines of the cells with each other: V (..., L, N, D) -> V V^T (..., L, N, N)."""
    return _Gram.apply(regions)


def attended_similarity(
    weights: torch.Tensor, cosines: torch.Tensor, gram: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""Eq. 2-3 without forming the attended vector `sum_n H_n v_n`.

    Shapes: `weights`, `cosines` (..., L, T, N), `gram` (..., L, N, N) = V V^T. Returns (..., L, T) each:
    `<sum_n H_n v_n, s>` and its quotient by `|sum_n H_n v_n|`, which is R[t, l].
    """
    wide = _wide(cosines.dtype)
    similarity = (weights * cosines).sum(dim=-1, dtype=wide)
    # The Gram matrix is symmetric: on the left it keeps the order of `cosine_maps`' result in memory.
    squared_norm = (weights * (gram @ weights.mT).mT).sum(dim=-1, dtype=wide)
    scores = similarity * _inverse_root(squared_norm, cosines.dtype)
    return similarity.to(cosines.dtype), scores.to(cosines.dtype)


def pool_words(scores: torch.Tensor, word_mask: torch.Tensor, gamma: float) -> torch.Tensor:
    r"""Eq. 5, `R_w = (1 / gamma) log sum_t exp(gamma R_t)` over real words: (..., T) -> (...)."""
    return (gamma * scores).masked_fill(word_mask == 0, -torch.inf).logsumexp(dim=-1) / gamma


def matching_loss(logits: torch.Tensor, gamma: float, reduction: str) -> torch.Tensor:
    r"""Eq. 7-10: `-[log P(S_b | I_b) + log P(I_b | S_b)]`, mean or sum over the batch.

    `logits` (captions, images), pairs on the diagonal.
    """
    logits = gamma * logits
    log_probs = logits.log_softmax(dim=0).diagonal() + logits.log_softmax(dim=1).diagonal()
    return -(log_probs.mean() if reduction == "mean" else log_probs.sum())


def phrase_heatmaps(heatmaps: torch.Tensor, word_scores: torch.Tensor, phrase_mask: torch.Tensor) -> torch.Tensor:
    r"""Heatmap of a phrase, `sum_t R_t H_t / sum_t R_t` over its words (Flickr30k protocol of section 4.2).

    It is 0 when all R_t are 0. Below 0, which the softmax ablation can give, they count as 0.

    Shapes: `heatmaps` (C, T, M, M), `word_scores` (C, T), `phrase_mask` (C, P, T) -> (C, P, M, M).
    """
    weights = phrase_mask.to(word_scores.dtype) * word_scores[:, None].relu()  # (C, P, T)
    weights = weights / weights.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
    return torch.einsum("cpt,ctyx->cpyx", weights, heatmaps)


def box_loss(
    heatmaps: torch.Tensor, box_masks: torch.Tensor, temperature: float, num_phrases: torch.Tensor | None = None
) -> torch.Tensor:
    r"""Ours, beyond the paper: `-log` of the share of a phrase's sharpened heatmap in its boxes, mean over phrases.

    Sharpened is `softmax_n(temperature * heatmap_n)`, because the point is the peak: the plain mass can lie in the
    boxes and the peak beside.

    Shapes: `heatmaps`, `box_masks` (C, P, M, M); `box_masks` holds the covered share of each cell, and is 0 everywhere
    for padding and for phrases without boxes, which do not count. `num_phrases` divides the sum; default the number
    that count.
    """
    inside = box_masks.flatten(2)  # (C, P, N)
    share = ((temperature * heatmaps.flatten(2)).softmax(dim=-1) * inside).sum(dim=-1)
    losses = -share.clamp(min=1e-6).log().masked_fill(~has_boxes(box_masks), 0)
    num_phrases = has_boxes(box_masks).sum() if num_phrases is None else num_phrases
    return losses.sum() / num_phrases.clamp(min=1)


def has_boxes(box_masks: torch.Tensor) -> torch.Tensor:
    r"""Which phrases count in [`box_loss`]: (C, P, M, M) -> (C, P)."""
    return box_masks.flatten(2).amax(dim=-1) > 0


def choose_maps(outputs, levels: list[int]) -> tuple[torch.Tensor, ...]:
    r"""The feature maps that `config.backbone_levels` names, from a backbone's outputs.

    Raises:
        ValueError: If there is no such map, or it is not (batch, channels, height, width).
    """
    maps = [*(getattr(outputs, "reshaped_hidden_states", None) or outputs.hidden_states), outputs.last_hidden_state]
    last = len(maps) - 1
    wrong = [
        level for level in levels if not -last <= level <= last or maps[level if level >= 0 else level - 1].ndim != 4
    ]
    if wrong:
        shapes = "; ".join(f"{i}: {tuple(each.shape)}" for i, each in enumerate(maps))
        raise ValueError(
            f"`backbone_levels` {wrong} are no (batch, channels, height, width) maps of this backbone, "
            f"which has {shapes}."
        )
    return tuple(maps[level if level >= 0 else level - 1] for level in levels)


def check_layers(name: str, layers: Sequence[int], num_layers: int) -> None:
    r"""Refuses layers that the text encoder does not have; `name` is the setting that names them.

    Raises:
        ValueError: If a layer is not in -num_layers..num_layers - 1.
    """
    wrong = [layer for layer in layers if not -num_layers <= layer < num_layers]
    if wrong:
        raise ValueError(
            f"`{name}` {wrong} are no layers of the text encoder, which has {num_layers}, its input included; "
            f"name layers from {-num_layers} to {num_layers - 1}."
        )


class BackboneLevels(nn.Module):
    r"""Visual network; gives the chosen ones of its feature maps, low level first.

    Frozen unless the configuration says otherwise.
    """

    def __init__(self, config):
        super().__init__()
        self.model = AutoModel.from_config(config.backbone_config)
        self.levels, self.frozen = config.backbone_levels, config.freeze_backbone
        self.train()  # new modules are in training mode without having been told so

    def train(self, mode: bool = True):
        # Frozen: no batch statistics, no dropout. `from_pretrained` makes all weights trainable, and then calls this.
        if self.frozen:
            self.model.requires_grad_(False)
        return super().train(mode and not self.frozen)

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return choose_maps(self.model(pixel_values, output_hidden_states=True), self.levels)


class VisualMapping(nn.Module):
    r"""One level into the common space: resize to the grid, then 1x1 convolutions with LeakyReLU (section 3.1).

    (batch, channels, height, width) -> V_l (batch, N, D), normalised. A 1x1 convolution commutes with a bilinear
    resize, so the first one runs on whichever of the two grids is smaller.
    """

    def __init__(self, config, channels: int):
        super().__init__()
        self.grid_size, self.resize_mode, self.slope = config.grid_size, config.resize_mode, config.negative_slope
        self.linear = config.visual_mapping == "linear"
        self.standardize = (
            nn.LayerNorm(channels, elementwise_affine=False) if config.normalize_features else nn.Identity()
        )
        self.dropout = nn.Dropout(config.dropout)
        widths = [channels, config.hidden_size] if self.linear else [channels, *config.visual_hidden_sizes]
        self.layers = nn.ModuleList(nn.Linear(n_in, n_out) for n_in, n_out in pairwise(widths))

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        grows = feature_map.shape[-2] * feature_map.shape[-1] < self.grid_size**2
        feature_map = feature_map.contiguous(memory_format=torch.channels_last)
        x = self.standardize(feature_map.movedim(1, -1)).movedim(-1, 1)
        if not grows:
            x = resize_map(x, self.grid_size, self.resize_mode)
        x = convolve(self.dropout(x), self.layers[0])
        if grows:
            x = resize_map(x, self.grid_size, self.resize_mode)
        for layer in self.layers[1:]:
            x = convolve(F.leaky_relu(x, self.slope, inplace=True), layer)
        x = x.movedim(1, -1).flatten(1, 2)  # (batch, N, D), n = y * M + x
        return normalize(x if self.linear else F.leaky_relu(x, self.slope, inplace=True))


class TextMapping(nn.Module):
    r"""Two fully connected layers into the common space (section 3.2), or one linear layer.

    (..., width) -> (..., D), normalised.
    """

    def __init__(self, config, width: int):
        super().__init__()
        self.slope, self.every_layer = config.negative_slope, config.normalize_every_layer
        self.linear = config.text_mapping == "linear"
        self.final_activation = config.final_activation and not self.linear
        self.dropout = nn.Dropout(config.dropout)
        widths = [width, config.hidden_size] if self.linear else [width, config.hidden_size, config.hidden_size]
        self.layers = nn.ModuleList(nn.Linear(n_in, n_out) for n_in, n_out in pairwise(widths))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layers[0](self.dropout(x))
        for layer in self.layers[1:]:
            x = F.leaky_relu(x, self.slope, inplace=True)
            x = layer(normalize(x) if self.every_layer else x)
        return normalize(F.leaky_relu(x, self.slope, inplace=True) if self.final_activation else x)


class MultiLevelGroundingPreTrainedModel(PreTrainedModel):
    config: MultiLevelGroundingConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    _no_split_modules: list[str] = []

    @torch.no_grad()
    def _init_weights(self, module):
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)  # the authors' TensorFlow default
            init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=0.1)
            if module.padding_idx is not None:
                init.zeros_(module.weight[module.padding_idx])
        elif isinstance(module, nn.LSTM):
            for name, parameter in module.named_parameters():
                if "weight" in name:
                    init.xavier_uniform_(parameter)
                else:
                    init.zeros_(parameter)
                if "bias_ih" in name:  # TensorFlow cells add 1 to the forget gate; torch orders the gates i, f, g, o
                    init.ones_(parameter[module.hidden_size : 2 * module.hidden_size])
        elif isinstance(module, LinearWordMix):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, SoftmaxWordMix):
            init.zeros_(module.weight)
            if isinstance(module.scale, nn.Parameter):
                init.ones_(module.scale)
        elif isinstance(module, SentenceMix):
            init.constant_(module.weight, 1.0 / module.weight.numel())


@auto_docstring(
    custom_intro="Multi-level common semantic space: a heatmap and a score for every word and caption in an image."
)
class MultiLevelGroundingModel(MultiLevelGroundingPreTrainedModel):
    def __init__(self, config: MultiLevelGroundingConfig):
        super().__init__(config)
        self.backbone: BackboneLevels | None = BackboneLevels(config) if config.backbone_config is not None else None
        if config.word_level is None or config.sentence_level is None:
            self.levels = list(range(config.num_levels))
        else:  # the other levels are not mapped: they could not be trained
            self.levels = sorted({config.word_level, config.sentence_level})
        self.visual_mappings = nn.ModuleList(
            VisualMapping(config, config.level_channels[level]) for level in self.levels
        )
        recurrent = config.text_config is None
        self.text_encoder: BiLSTMEncoder | PretrainedTextEncoder = (
            BiLSTMEncoder(config) if recurrent else PretrainedTextEncoder(config)
        )
        self.word_layers = list(config.word_layers or range(self.text_encoder.num_layers))
        check_layers("word_layers", self.word_layers, self.text_encoder.num_layers)
        check_layers("sentence_layers", config.sentence_layers, self.text_encoder.num_layers)
        num_layers = len(self.word_layers)
        self.word_mix = LinearWordMix(num_layers) if recurrent else SoftmaxWordMix(num_layers, config.mix_scale)
        self.sentence_mix = SentenceMix(len(config.sentence_layers), config.sentence_pooling)
        self.word_mapping = TextMapping(config, self.text_encoder.width)
        self.sentence_mapping = TextMapping(config, self.text_encoder.width)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        encoder = self.text_encoder
        return encoder.embed_words if isinstance(encoder, BiLSTMEncoder) else encoder.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Embedding):
        if isinstance(self.text_encoder, BiLSTMEncoder):
            self.text_encoder.embed_words = value
        else:
            self.text_encoder.model.set_input_embeddings(value)

    def get_feature_maps(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        r"""Feature maps of the backbone, one (batch, channels, height, width) for each level, low level first.

        Raises:
            ValueError: If the model has no backbone.
        """
        if self.backbone is None:
            raise ValueError("This model has no backbone (`config.backbone_config` is None); pass `feature_maps`.")
        return self.backbone(pixel_values.to(self.dtype))

    def embed_images(self, feature_maps: tuple[torch.Tensor, ...]) -> torch.Tensor:
        r"""Section 3.1: feature maps -> V (batch, L, N, D), normalised over D.

        Raises:
            ValueError: If the number of maps or their channels are not those of the configuration.
        """
        channels = [feature_map.shape[1] for feature_map in feature_maps]
        if channels != list(self.config.level_channels):
            raise ValueError(
                f"`feature_maps` have {channels} channels but the model was made for "
                f"{list(self.config.level_channels)} (`config.level_channels`), one (batch, channels, height, width) "
                "map for each level, low level first."
            )
        maps = zip(self.visual_mappings, (feature_maps[level] for level in self.levels), strict=True)
        return torch.stack([mapping(feature_map) for mapping, feature_map in maps], dim=1)

    def embed_text(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, word_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        r"""Section 3.2: token ids -> words s (batch, T, D) and sentences (batch, D), normalised over D."""
        layers = self.text_encoder(input_ids, attention_mask)
        words = self.word_mapping(self.word_mix(layers[self.word_layers]))
        sentences = self.sentence_mapping(self.sentence_mix(layers[list(self.config.sentence_layers)], word_mask))
        return words, sentences

    def choose_level(self, scores: torch.Tensor, level: int | None) -> tuple[torch.Tensor, torch.Tensor]:
        r"""Eq. 4: best score over levels and its index, the first on ties. `scores` (..., L, T) -> (..., T) each."""
        if level is not None:
            position = self.levels.index(level)
            return scores[..., position, :], torch.full_like(scores[..., position, :], level, dtype=torch.long)
        best, index = scores.max(dim=-2)
        return best, index

    def _scores(self, text, regions, gram, word_mask=None):
        """Cosines' weights, un-normalised similarity and R of `text` (..., T, D) in `regions` (..., L, N, D)."""
        cosines = cosine_maps(text, regions)
        weights = attention_weights(cosines, self.config.attention, self.config.softmax_axis, word_mask)
        return weights, *attended_similarity(weights, cosines, gram)

    def _cross_scores(self, words, sentences, regions, gram, word_mask, counted) -> tuple[torch.Tensor, torch.Tensor]:
        """R_t (images, captions, T) and R_s (images, captions) of every caption in `regions` (images, L, N, D).

        `counted` (captions, T) says which R_t are asked for: those of `word_mask`, or of padding as well.
        """
        config, num_captions = self.config, len(sentences)
        couples_words = config.attention == "softmax" and config.softmax_axis == "words"
        asked = torch.ones_like(counted).bool() if couples_words else counted.bool()
        units = torch.cat([words[asked], sentences])  # in one product
        cosines = cosine_maps(units, regions)  # (images, L, words + captions, N)
        weights = attention_weights(cosines, config.attention, config.softmax_axis, None)
        if couples_words:
            by_caption = cosines[:, :, :-num_captions].unflatten(2, asked.shape).transpose(1, 2)
            shares = attention_weights(by_caption, config.attention, config.softmax_axis, word_mask)
            weights = torch.cat([shares.transpose(1, 2).flatten(2, 3), weights[:, :, -num_captions:]], dim=2)
        similarity, scores = attended_similarity(weights, cosines, gram)  # (images, L, words + captions)
        best, _ = self.choose_level(scores[..., :-num_captions], config.word_level)
        # Not by an index, which `torch.compile` cannot take.
        word_scores = best.new_zeros(regions.shape[0], *counted.shape).masked_scatter(asked, best)
        sentence_scores = (scores if config.normalize_sentence_attended else similarity)[..., -num_captions:]
        return word_scores, self.choose_level(sentence_scores, config.sentence_level)[0]

    def cross_logits(self, words, sentences, regions, gram, word_mask) -> tuple[torch.Tensor, torch.Tensor]:
        r"""R_w and R_s of every caption against every image, both (captions, images).

        Images are taken `config.attention_chunk_size` at a time and their similarities recomputed in the backward pass,
        so that the memory does not grow with captions x images.
        """
        counted = word_mask if self.config.mask_padding else torch.ones_like(word_mask)
        chunk_size = self.config.attention_chunk_size or len(regions)
        chunks = zip(regions.split(chunk_size), gram.split(chunk_size), strict=True)
        args = [(words, sentences, *chunk, word_mask, counted) for chunk in chunks]
        if len(args) > 1 and torch.is_grad_enabled():
            parts = [checkpoint(self._cross_scores, *arg, use_reentrant=False) for arg in args]
        else:
            parts = [self._cross_scores(*arg) for arg in args]
        word_scores, sentence_scores = (torch.cat(part) for part in zip(*parts, strict=True))
        return pool_words(word_scores, counted, self.config.gamma_1).T, sentence_scores.T

    def regulariser(self) -> torch.Tensor:
        r"""`l2_weight / 2` times the sum of squared weights of the mappings (biases excluded), a scalar."""
        mappings: list[nn.Module] = [self.visual_mappings]
        if self.config.l2_scope == "all":
            mappings += [self.word_mapping, self.sentence_mapping]
        weights = (layer.weight for mapping in mappings for layer in mapping.modules() if isinstance(layer, nn.Linear))
        return 0.5 * self.config.l2_weight * reduce(torch.add, (weight.square().sum() for weight in weights))

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        feature_maps: tuple[torch.Tensor, ...] | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        word_mask: torch.Tensor | None = None,
        image_index: torch.Tensor | None = None,
        phrase_mask: torch.Tensor | None = None,
        box_masks: torch.Tensor | None = None,
        return_loss: bool = False,
        **kwargs,
    ) -> MultiLevelGroundingOutput:
        r"""
        feature_maps (`tuple` of `torch.Tensor` of shape `(batch, channels, height, width)`, *optional*):
            Maps of the backbone, one for each level, low level first; instead of `pixel_values`.
        word_mask (`torch.Tensor` of shape `(captions, num_tokens)`, *optional*):
            1 = a word, 0 = padding or a special token of the encoder. Default: `attention_mask`.
        image_index (`torch.Tensor` of shape `(captions,)`, *optional*):
            The image each caption belongs to. Default: caption i belongs to image i. Not with `return_loss`.
        phrase_mask (`torch.Tensor` of shape `(captions, phrases, num_tokens)`, *optional*):
            1 = a word of the phrase. Needed by the loss with `supervision="boxes"`.
        box_masks (`torch.Tensor` of shape `(captions, phrases, grid_size, grid_size)`, *optional*):
            Share of each cell covered by the phrase's boxes. Needed by the loss with `supervision="boxes"`.
        return_loss (`bool`, defaults to `False`):
            Compare every caption with every image of the batch (in training, of all processes) and return the loss;
            image i must be caption i's, and no image may come twice.
        """
        if (pixel_values is None) == (feature_maps is None):
            raise ValueError("Give either `pixel_values` or `feature_maps`, not both and not neither.")
        if input_ids is None:
            raise ValueError("`input_ids` is missing; the processor makes it from `text`.")
        feature_maps = self.get_feature_maps(pixel_values) if feature_maps is None else feature_maps
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        word_mask = attention_mask if word_mask is None else word_mask
        dtype = self.word_mapping.layers[0].weight.dtype
        regions = self.embed_images(tuple(feature_map.to(dtype) for feature_map in feature_maps))  # (B, L, N, D)
        words, sentences = self.embed_text(input_ids, attention_mask, word_mask)
        if return_loss and image_index is not None:
            raise ValueError("`return_loss` needs one caption for each image; leave `image_index` out.")
        gram = gram_matrices(regions)
        own, own_gram = (regions, gram) if image_index is None else (regions[image_index], gram[image_index])
        if len(own) != len(words):
            raise ValueError(
                f"{len(words)} captions but {len(own)} images; say by `image_index` which belongs to which."
            )
        output = self.ground(words, sentences, own, own_gram, word_mask)
        output.image_embeds = regions.transpose(1, 2)
        if return_loss:
            self.add_loss(output, words, sentences, regions, gram, word_mask, phrase_mask, box_masks)
        return output

    def ground(self, words, sentences, regions, gram, word_mask) -> MultiLevelGroundingOutput:
        r"""Heatmaps, scores and levels of each caption in its own image, Eq. 1-4 and 6.

        Shapes: `regions` (C, L, N, D) and `gram` (C, L, N, N) of the image of each caption.
        """
        config = self.config
        weights, _, scores = self._scores(words, regions, gram, word_mask)  # (C, L, T, N), (C, L, T)
        word_scores, word_levels = self.choose_level(scores, config.word_level)
        sentence_weights, similarity, scores = self._scores(sentences[:, None], regions, gram)
        if not config.normalize_sentence_attended:
            scores = similarity
        sentence_scores, sentence_levels = self.choose_level(scores, config.sentence_level)
        grid = (config.grid_size, config.grid_size)
        return MultiLevelGroundingOutput(
            heatmaps=(self._at_level(weights, word_levels) * word_mask[..., None]).unflatten(-1, grid),
            word_scores=word_scores * word_mask,
            word_levels=word_levels,
            sentence_heatmaps=self._at_level(sentence_weights, sentence_levels)[:, 0].unflatten(-1, grid),
            sentence_scores=sentence_scores[:, 0],
            sentence_levels=sentence_levels[:, 0],
            word_embeds=words,
            sentence_embeds=sentences,
        )

    def _at_level(self, weights: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        """Weights of the chosen level: (C, L, T, N) and (C, T) -> (C, T, N)."""
        position = torch.searchsorted(torch.tensor(self.levels, device=levels.device), levels)
        return weights.gather(1, position[:, None, :, None].expand(-1, 1, -1, weights.shape[-1]))[:, 0]

    def add_loss(self, output, words, sentences, regions, gram, word_mask, phrase_mask=None, box_masks=None) -> None:
        r"""Matching losses over the batch (Eq. 7-10), regulariser and, with `supervision="boxes"`, the box term.

        They are stored in `output`.
        """
        config = self.config
        all_regions, all_grams = self._from_all_processes(regions), self._from_all_processes(gram)
        logits = self.cross_logits(words, sentences, all_regions, all_grams, word_mask)
        output.word_logits, output.sentence_logits = (self._from_all_processes(x) for x in logits)
        output.loss = self.regulariser() + sum(
            matching_loss(x, config.gamma_2, config.loss_reduction)
            for x in (output.word_logits, output.sentence_logits)
        )
        if config.supervision == "boxes":
            if phrase_mask is None or box_masks is None:
                raise ValueError(
                    '`supervision="boxes"` needs `phrase_mask` and `box_masks`; the processor makes them from phrases.'
                )
            heatmaps = phrase_heatmaps(output.heatmaps, output.word_scores, phrase_mask)
            # Every process divides by the average number of phrases: their mean is then the mean over all phrases.
            num_phrases = self._from_all_processes(has_boxes(box_masks).sum(dtype=torch.float32)[None]).sum()
            num_phrases = num_phrases / (len(output.word_logits) / len(words))
            loss = box_loss(heatmaps, box_masks, config.box_temperature, num_phrases)
            output.loss = output.loss + config.box_loss_weight * loss

    def _from_all_processes(self, x: torch.Tensor) -> torch.Tensor:
        """Rows of `x` of all training processes, so that the loss sees one large batch.

        Gradients flow back to every process; with the mean over processes that DistributedDataParallel takes they are
        those of the large batch.
        """
        if not (self.training and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return x
        return torch.cat(all_gather(x.contiguous()))


__all__ = ["MultiLevelGroundingModel", "MultiLevelGroundingPreTrainedModel"]
