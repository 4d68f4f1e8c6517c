"""Mutual Iterative Attention for captioning ("Aligning Visual Regions and Textual Concepts for Semantic-Grounded Image
Representations", NeurIPS 2019, arXiv 1905.06139).

Sections 2 and 3 of the paper -> `mutual_iterative_attention.py`; the features it refines -> `MIAModel`; the captioners
of its Tables 1 and 2 -> `caption_decoders.py`, one of which `MIAForCaptioning` holds. With `mia_iterations=0` they are
the paper's baselines.

Where we differ from the official code: finished beams are frozen, gradients (not parameters) are clipped, and padding
is masked: an image with n regions keeps its n best concepts, and rows beyond take no part.
"""

from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Cache, GenerationMixin, PreTrainedModel
from transformers.utils import ModelOutput, auto_docstring, can_return_tuple

from .caption_decoders import CaptionDecoder, ImageMemory, at_least_float32, make_decoder
from .configuration_mia import MIAConfig
from .modeling_multilevel import BackboneLevels
from .mutual_iterative_attention import MutualIterativeAttention


@dataclass
class MIAModelOutput(ModelOutput):
    r"""Output of [`MIAModel`]: what a downstream model reads in place of regions and concepts.

    B images, n regions. Rows of the fused output stand for region i and concept i together. Where the module does not
    read both sides, concepts are as many as were given.

    Args:
        last_hidden_state (`(B, n, hidden_size)`): What `mia_output` names, for "both" `LayerNorm(I_N + T_N)`, Eq. 7;
            without the module the visual rows, or the concepts of a model that reads no regions.
        visual_states (`(B, n, hidden_size)`): What takes the place of V, by `mia_output`.
        textual_states (`(B, n, hidden_size)`): What takes the place of T.
        visual_mask, textual_mask (`(B, n)`): 1 = real row, 0 = padding.
        attentions (`tuple` of `(B, heads, n, n)`): Of each iteration that refines regions: over regions, by refined
            region.
        textual_attentions (`tuple` of `(B, heads, n, n)`): Likewise, over concepts, by refined concept.
    """

    last_hidden_state: torch.FloatTensor | None = None
    visual_states: torch.FloatTensor | None = None
    textual_states: torch.FloatTensor | None = None
    visual_mask: torch.LongTensor | None = None
    textual_mask: torch.LongTensor | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    textual_attentions: tuple[torch.Tensor, ...] | None = None

    @property
    def attentions_by_iteration(self) -> tuple[torch.Tensor, ...] | None:
        """`attentions` and `textual_attentions` of each iteration in one (B, 2, heads, n, n); (B, 1, heads, n, n) where
        only one side is refined, which is that of `mia_output`."""
        if self.attentions is None or self.textual_attentions is None:
            return None
        sides = zip_longest(self.attentions, self.textual_attentions)
        return tuple(torch.stack([weights for weights in both if weights is not None], dim=1) for both in sides)


@dataclass
class MIACaptioningOutput(ModelOutput):
    r"""Output of [`MIAForCaptioning`]. N captions of B images, T words, n rows.

    Args:
        loss (scalar): Cross entropy, mean over the words of `labels`. Only with `labels`.
        logits (`(N, T, vocab_size)`): Of the next word. `None` in a training step, where only the words of `labels` go
            through the output layer.
        past_key_values: States after the last word. Only with `use_cache`.
        cross_attentions (`tuple` of one `(N, heads, T, n)`): Weight of each row when each word is written. Empty for
            the two condition decoders, which have no attention. Only with `output_attentions`; of a training step as
            far as the longest caption, and 0 behind a caption's end.
        decoder_attentions (`None`): Recurrent decoders have none.
        encoder_last_hidden_state (`(N, n, width)`): The rows that `cross_attentions` weigh.
        encoder_attentions (`tuple` of `(B, 2, heads, n, n)`): Of the module by iteration, visual and textual, or only
            one of them, see [`MIAModelOutput.attentions_by_iteration`]; `None` without it.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    past_key_values: Cache | None = None
    cross_attentions: tuple[torch.Tensor, ...] | None = None
    decoder_attentions: tuple[torch.Tensor, ...] | None = None
    encoder_last_hidden_state: torch.FloatTensor | None = None
    encoder_attentions: tuple[torch.Tensor, ...] | None = None


class MIAPreTrainedModel(PreTrainedModel):
    config: MIAConfig
    base_model_prefix = "model"
    main_input_name = "region_features"
    input_modalities = ("image", "text")
    _no_split_modules: list[str] = []

    @torch.no_grad()
    def _init_weights(self, module):
        # Layers know their first values: torch's defaults, and those that the module sets itself. transformers guards
        # what was loaded while this runs.
        if isinstance(module, nn.MultiheadAttention):
            module._reset_parameters()
        elif hasattr(module, "reset_parameters"):
            module.reset_parameters()


class PartlyTrainedBackbone(BackboneLevels):
    """Backbone of which only what follows the hidden state `config.backbone_trainable_from` is trained.

    Modules that only that state depends on stay in eval mode: no batch statistics, no dropout.
    """

    kept: frozenset[str] = frozenset()

    def __init__(self, config: MIAConfig):
        super().__init__(config)
        self.kept = parameters_behind(self.model, cast("int", config.backbone_trainable_from))
        self.train()

    def train(self, mode: bool = True):
        # Each time, because `from_pretrained` makes all weights trainable, and then calls this.
        super().train(mode)
        kept = {parameter for name, parameter in self.model.named_parameters() if name in self.kept}
        for parameter in kept:
            parameter.requires_grad_(False)
        for module in self.model.modules():
            own = set(module.parameters())
            if own and own <= kept:
                module.eval()
        return self


def parameters_behind(network: PreTrainedModel, state: int) -> frozenset[str]:
    r"""Names of the parameters that one of a visual network's hidden states depends on.

    Found by differentiating it, so that no network needs to say how it is built; on the meta device too.

    Args:
        network ([`PreTrainedModel`]): With all parameters trainable.
        state (`int`): Index into its `hidden_states`.

    Raises:
        ValueError: If there is no such state.
    """
    names, parameters = zip(*network.named_parameters(), strict=True)
    first = parameters[0]
    pixels = torch.zeros(1, network.config.num_channels, 64, 64, dtype=first.dtype, device=first.device)
    training = network.training
    with torch.enable_grad():
        states = network.eval()(pixels, output_hidden_states=True).hidden_states
        if not -len(states) <= state < len(states):
            raise ValueError(
                f"`backbone_trainable_from` {state} is no hidden state of this backbone, which has {len(states)}."
            )
        gradients = torch.autograd.grad(states[state].sum(), parameters, allow_unused=True)
    network.train(training)
    return frozenset(name for name, gradient in zip(names, gradients, strict=True) if gradient is not None)


class ProjectionLayer(nn.Linear):
    """Its first weights are Kaiming-uniform and its biases 0, as in the official code."""

    def reset_parameters(self) -> None:
        nn.init.kaiming_uniform_(self.weight, nonlinearity="relu")
        nn.init.zeros_(self.bias)


class VisualProjection(nn.Module):
    """`V = relu(W drop(A) + b)`: (B, n, feature_dim) -> (B, n, hidden_size)."""

    def __init__(self, config: MIAConfig):
        super().__init__()
        self.dropout = nn.Dropout(config.dropout)
        self.linear = ProjectionLayer(config.feature_dim, config.hidden_size)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.linear(self.dropout(features.to(self.linear.weight.dtype))).relu()


@auto_docstring(custom_intro="Regions and concepts of an image, refined by mutual iterative attention.")
class MIAModel(MIAPreTrainedModel):
    def __init__(self, config: MIAConfig):
        super().__init__(config)
        has_backbone = config.uses_regions and config.backbone_config is not None
        kind = BackboneLevels if config.backbone_trainable_from is None else PartlyTrainedBackbone
        self.backbone: BackboneLevels | None = kind(config) if has_backbone else None
        self.project_regions = VisualProjection(config) if config.projects_regions else None
        self.embed_concepts: nn.Embedding | None = None
        if config.uses_concepts:
            self.embed_concepts = nn.Embedding(config.vocab_size, config.hidden_size)
        self.mia: MutualIterativeAttention | None = None
        if config.mia_iterations:
            self.mia = MutualIterativeAttention(
                config.hidden_size,
                config.num_attention_heads,
                config.mia_iterations,
                intermediate_size=config.intermediate_size,
                order=config.mia_order,
                attention=config.mia_attention,
                output=config.mia_output,
                block_variant=config.block_variant,
                attention_bias=config.attention_bias,
                share_iteration_weights=config.share_iteration_weights,
                dropout=config.mia_dropout,
                attention_dropout=config.mia_dropout,
                layer_dropout=config.layer_dropout,
            )
        self.post_init()

    def get_input_embeddings(self):
        return self.embed_concepts

    def set_input_embeddings(self, value):
        self.embed_concepts = value

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        region_features: torch.Tensor | None = None,
        region_mask: torch.Tensor | None = None,
        concept_ids: torch.Tensor | None = None,
        concept_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        **kwargs,
    ) -> MIAModelOutput:
        r"""
        region_features (`torch.Tensor` of shape `(batch, num_regions, feature_dim)`, *optional*):
            Features of regions or grid cells; instead of `pixel_values`.
        region_mask (`torch.Tensor` of shape `(batch, num_regions)`, *optional*):
            1 = real region, 0 = padding. Default: all are real.
        concept_ids (`torch.LongTensor` of shape `(batch, num_concepts)`, *optional*):
            Words of the image, the most probable first. As many of them as there are regions are used where the module
            reads both; else all.
        concept_mask (`torch.Tensor` of shape `(batch, num_concepts)`, *optional*):
            1 = real concept, 0 = padding.
        """
        visual = visual_mask = textual = textual_mask = None
        if self.config.uses_regions:
            visual, visual_mask = self._regions(region_features, region_mask, pixel_values)
        pairs_up = self.mia is not None and len(self.mia.reads) == 2
        if self.embed_concepts is not None:
            textual, textual_mask = self._concepts(
                self.embed_concepts, concept_ids, concept_mask, visual_mask, as_many_as_regions=pairs_up
            )
        if self.mia is None:
            return MIAModelOutput(
                last_hidden_state=textual if visual is None else visual,
                visual_states=visual,
                textual_states=textual,
                visual_mask=visual_mask,
                textual_mask=textual_mask,
            )
        refined = self.mia(visual, textual, visual_mask, textual_mask, output_attentions=bool(output_attentions))
        if pairs_up and self.mia.output != "visual":
            textual_mask = visual_mask  # a refined concept stands for the region in its place too
        states = {
            "both": (refined.fused, refined.fused),
            "visual": (refined.visual, textual),
            "textual": (visual, refined.textual),
        }
        visual, textual = states[self.mia.output]
        return MIAModelOutput(
            last_hidden_state=textual if self.mia.output == "textual" else visual,
            visual_states=visual,
            textual_states=textual,
            visual_mask=visual_mask,
            textual_mask=textual_mask,
            attentions=refined.visual_attentions,
            textual_attentions=refined.textual_attentions,
        )

    def _regions(
        self, features: torch.Tensor | None, mask: torch.Tensor | None, pixel_values: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if features is None:
            features = self._cells(pixel_values)
        elif pixel_values is not None:
            raise ValueError("Give either `region_features` or `pixel_values`, not both.")
        size = self.config.feature_dim
        if features.ndim != 3 or features.shape[-1] != size:
            raise ValueError(
                f"`region_features` must be (batch, num_regions, {size}) (`config.feature_dim`), "
                f"got {tuple(features.shape)}."
            )
        if mask is None:
            mask = torch.ones(features.shape[:2], dtype=torch.long, device=features.device)
        elif mask.shape != features.shape[:2]:
            raise ValueError(
                f"`region_mask` must be {tuple(features.shape[:2])} as `region_features`, got {tuple(mask.shape)}."
            )
        return (features if self.project_regions is None else self.project_regions(features)), mask

    def _cells(self, pixel_values: torch.Tensor | None) -> torch.Tensor:
        """Cells of the backbone's map, row by row: (batch, height * width, channels)."""
        if pixel_values is None:
            raise ValueError("Give `region_features` or `pixel_values`; got neither.")
        if self.backbone is None:
            raise ValueError("This model has no backbone (`config.backbone_config` is None); pass `region_features`.")
        (feature_map,) = self.backbone(pixel_values.to(self.dtype))
        return feature_map.flatten(2).transpose(1, 2)

    def _concepts(
        self,
        embed: nn.Embedding,
        ids: torch.Tensor | None,
        mask: torch.Tensor | None,
        region_mask: torch.Tensor | None,
        *,
        as_many_as_regions: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Embedded concepts (batch, n, hidden_size) and their mask.

        As many as regions: the first n, where an image has n real regions, filled up with padding where there are
        fewer. All padding is embedded as the pad word, because the module keeps it in the rows it stands in.
        """
        if ids is None or ids.ndim != 2:
            came = "nothing" if ids is None else f"shape {tuple(ids.shape)}"
            raise ValueError(f"This model reads concepts: `concept_ids` must be (batch, num_concepts), got {came}.")
        if mask is None:
            mask = torch.ones_like(ids)
        elif mask.shape != ids.shape:
            raise ValueError(f"`concept_mask` must be {tuple(ids.shape)} as `concept_ids`, got {tuple(mask.shape)}.")
        if region_mask is not None and len(ids) != len(region_mask):
            raise ValueError(f"`concept_ids` are of {len(ids)} images, the regions of {len(region_mask)}.")
        if region_mask is not None and as_many_as_regions:
            missing = region_mask.shape[1] - ids.shape[1]
            ids, mask = F.pad(ids, (0, missing)), F.pad(mask, (0, missing)) * (region_mask != 0)
        return embed(ids.masked_fill(mask == 0, self.config.pad_token_id)), mask


@auto_docstring(custom_intro="Captioner over regions and concepts, refined by mutual iterative attention or not.")
class MIAForCaptioning(MIAPreTrainedModel, GenerationMixin):
    _make_decoder = staticmethod(make_decoder)  # a model built on this one may have its own

    def __init__(self, config: MIAConfig):
        super().__init__(config)
        self.model = MIAModel(config)
        self.decoder = self._make_decoder(config)
        self.dropout = nn.Dropout(config.dropout)
        self.output = nn.Linear(self.decoder.width, config.vocab_size)
        # Probability that a training step feeds a word of its own in place of the caption's (Bengio et al., 2015).
        self.scheduled_sampling_prob = 0.0
        # Checkpoints hold the table under the concepts' name, where `MIAModel` finds it too.
        tied = {"decoder.embed_words.weight": "model.embed_concepts.weight"}
        self._tied_weights_keys = tied if config.uses_concepts else {}
        # So that the Trainer, which loads weights by their names alone, does not miss the other name.
        self._keys_to_ignore_on_save = set(self._tied_weights_keys) if config.tie_word_embeddings else set()
        self.post_init()

    def get_input_embeddings(self):
        return self.decoder.embed_words

    def set_input_embeddings(self, value):
        self.decoder.embed_words = value
        if self.config.uses_concepts and self.config.tie_word_embeddings:
            self.model.set_input_embeddings(value)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Also of the concepts, see `PreTrainedModel.resize_token_embeddings`."""
        if self.config.uses_concepts:
            self.model.resize_token_embeddings(*args, **kwargs)
        return super().resize_token_embeddings(*args, **kwargs)

    def get_output_embeddings(self):
        return self.output

    def set_output_embeddings(self, value):
        self.output = value

    def get_encoder(self, modality: str | None = None) -> "CaptionEncoder":
        return CaptionEncoder(self.model, self.decoder)

    def _prepare_model_inputs(self, inputs, bos_token_id, model_kwargs):
        # Photos take the place of `region_features`, which transformers would make up if they alone were looked for.
        if inputs is None and model_kwargs.get("pixel_values") is not None:
            return model_kwargs.pop("pixel_values"), "pixel_values", model_kwargs
        return super()._prepare_model_inputs(inputs, bos_token_id, model_kwargs)

    def _prepare_cache_for_generation(
        self, generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
    ):
        if generation_config.use_cache and model_kwargs.get("past_key_values") is None:
            model_kwargs["past_key_values"] = self.decoder.new_cache()

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        r"""Writes captions, see `GenerationMixin.generate`.

        With `return_dict_in_generate=True` and `output_attentions=True` the output also says what each word is about:
        `region_attentions` and `concept_attentions` of shape `(num_sequences, num_tokens, n)`, the weight of each
        original region and concept when each token of `sequences[:, 1:]` was written, along the beam that was chosen;
        0 behind a caption's end. Each is only there if the decoder attends to rows that hold regions or concepts.

        A row of Mutual Iterative Attention counts for the region and the concept that stand in its place, which every
        layer adds to it. What it gathered besides, [`accumulated_attention`] of `encoder_attentions` tells; measured
        against people's boxes, weights that are traced back through it point worse (recipe `mia_up_down_flickr8k`).
        """
        outputs = super().generate(*args, **kwargs)
        if isinstance(outputs, ModelOutput) and any(outputs.get("cross_attentions") or ()):
            weights = _attentions_along_beams(outputs, self.config.eos_token_id)
            is_fused = self.model.mia is not None and self.config.mia_output == "both"
            for side in ("visual", "textual") if is_fused else (self.decoder.attended,):
                outputs[{"visual": "region_attentions", "textual": "concept_attentions"}[side]] = weights
        return outputs

    def prepare_decoder_input_ids_from_labels(self, labels: torch.Tensor) -> torch.Tensor:
        """`labels` one place to the right, behind the start of a caption: (N, T) -> (N, T)."""
        start = labels.new_full((len(labels), 1), self.config.decoder_start_token_id)
        return torch.cat([start, labels[:, :-1]], dim=1).masked_fill(
            F.pad(labels[:, :-1], (1, 0)) == -100, self.config.pad_token_id
        )

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        region_features: torch.Tensor | None = None,
        region_mask: torch.Tensor | None = None,
        concept_ids: torch.Tensor | None = None,
        concept_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        image_index: torch.Tensor | None = None,
        encoder_outputs: ImageMemory | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        **kwargs,
    ) -> MIACaptioningOutput:
        r"""
        region_features (`torch.Tensor` of shape `(batch, num_regions, feature_dim)`, *optional*):
            Features of regions or grid cells; instead of `pixel_values`.
        region_mask (`torch.Tensor` of shape `(batch, num_regions)`, *optional*):
            1 = real region, 0 = padding. Default: all are real.
        concept_ids (`torch.LongTensor` of shape `(batch, num_concepts)`, *optional*):
            Words of the image, the most probable first.
        concept_mask (`torch.Tensor` of shape `(batch, num_concepts)`, *optional*):
            1 = real concept, 0 = padding.
        labels (`torch.LongTensor` of shape `(num_captions, num_tokens)`, *optional*):
            Captions with the end token, without the start; -100 = not scored, only behind a caption's end.
        image_index (`torch.LongTensor` of shape `(num_captions,)`, *optional*):
            Image of each caption, which share what is computed of the image. Default: one caption for each image.
        encoder_outputs ([`ImageMemory`], *optional*):
            What [`CaptionEncoder`] made of the image.
        """
        memory = encoder_outputs
        if memory is None:
            memory = self.get_encoder()(
                region_features=region_features,
                region_mask=region_mask,
                concept_ids=concept_ids,
                concept_mask=concept_mask,
                pixel_values=pixel_values,
                output_attentions=output_attentions,
            )
        encoder_attentions = memory.attentions
        if image_index is not None:
            memory = memory.of_captions(image_index)
        if decoder_input_ids is None:
            if labels is None:
                raise ValueError("Give `labels`, or `decoder_input_ids` to go on from; `generate` writes captions.")
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        if len(decoder_input_ids) != len(memory.row_mask):
            raise ValueError(
                f"{len(decoder_input_ids)} captions for {len(memory.row_mask)} images; tell the image of each by "
                "`image_index`."
            )
        if labels is not None and self.training:
            loss, weights = self._training_loss(decoder_input_ids, labels, memory)
            return MIACaptioningOutput(loss=loss, cross_attentions=_as_tuple(weights) if output_attentions else None)
        cache = self.decoder.new_cache() if past_key_values is None else past_key_values
        decoded = self.decoder(decoder_input_ids, memory, cache)
        logits = self.output(self.dropout(decoded.hidden))
        return MIACaptioningOutput(
            loss=None if labels is None else self._loss(logits, labels),
            logits=logits,
            past_key_values=decoded.cache if use_cache else None,
            cross_attentions=_as_tuple(decoded.attentions) if output_attentions else None,
            encoder_last_hidden_state=memory.last_hidden_state,
            encoder_attentions=encoder_attentions,
        )

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean over scored words of (..., vocab_size) logits; smoothing gives nothing to the right word itself."""
        classes = logits.shape[-1]
        smoothing = self.config.label_smoothing * classes / (classes - 1)  # torch's share includes the right word
        logits = at_least_float32(logits.flatten(0, -2))
        return F.cross_entropy(logits, labels.flatten(), label_smoothing=smoothing)

    def _training_loss(
        self, input_ids: torch.Tensor, labels: torch.Tensor, memory: ImageMemory
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Loss, and weights (N, heads, T, n) of the rows."""
        lengths = (labels != -100).sum(dim=1)
        order = lengths.argsort(descending=True)  # so that captions that have ended can be left out of each step
        input_ids, labels, memory = input_ids[order], labels[order], memory.of_captions(order)
        if self.scheduled_sampling_prob > 0:
            hidden, weights = self._decode_with_own_words(input_ids, memory)
        else:
            sizes = (lengths[:, None] > torch.arange(labels.shape[1], device=lengths.device)).sum(dim=0).tolist()
            decoded = self.decoder(input_ids, memory, self.decoder.new_cache(), [size for size in sizes if size])
            hidden, weights = decoded.hidden, decoded.attentions
        labels = labels[:, : hidden.shape[1]]
        scored = labels != -100
        if weights is not None:
            weights = (weights * scored[:, None, :, None])[order.argsort()]
        return self._loss(self.output(self.dropout(hidden[scored])), labels[scored]), weights

    def _decode_with_own_words(
        self, input_ids: torch.Tensor, memory: ImageMemory
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Hidden states (N, T, width), and weights of the rows, where each word after the first is, by chance, drawn
        from the model's own."""
        cache, words, steps, weights = self.decoder.new_cache(), input_ids[:, :1], [], []
        for step in range(input_ids.shape[1]):
            decoded = self.decoder(words, memory, cache)
            steps.append(decoded.hidden)
            weights.append(decoded.attentions)
            if step + 1 < input_ids.shape[1]:
                with torch.no_grad():
                    own = self.output(self.dropout(steps[-1][:, 0])).float().softmax(dim=-1).multinomial(1)
                words = input_ids[:, step + 1, None]
                chosen = torch.rand(words.shape, device=words.device) < self.scheduled_sampling_prob
                words = torch.where(chosen, own, words)
        return torch.cat(steps, dim=1), None if weights[0] is None else torch.cat(weights, dim=2)


def _as_tuple(weights: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
    return () if weights is None else (weights,)


def _attentions_along_beams(outputs: ModelOutput, end: int) -> torch.Tensor:
    """Weights (num_sequences, T, n), mean over heads, of the beam that each token of `sequences` came from."""
    steps = torch.stack([step[0][:, :, -1].mean(dim=1) for step in outputs.cross_attentions], dim=1)
    beams = outputs.get("beam_indices")
    if beams is None:
        ends = outputs.sequences[:, -steps.shape[1] :] == end
        return steps.masked_fill((ends.cumsum(dim=1) > ends)[..., None], 0)
    times = torch.arange(beams.shape[1], device=beams.device).expand_as(beams)
    return steps[beams.clamp(min=0).long(), times].masked_fill((beams < 0)[..., None], 0)


class CaptionEncoder(nn.Module):
    """All that is computed of an image, once: the module's rows, and the decoder's part that no word changes.

    It owns no weights; `generate` asks for it by `get_encoder`.
    """

    def __init__(self, model: MIAModel, decoder: CaptionDecoder):
        super().__init__()
        self.model, self.decoder = model, decoder

    def forward(self, **kwargs: Any) -> ImageMemory:
        """Takes what [`MIAModel`] takes."""
        image = self.model(**kwargs)
        memory = self.decoder.memory(image)
        memory.attentions = image.attentions_by_iteration
        return memory


__all__ = ["MIAForCaptioning", "MIAModel", "MIAPreTrainedModel"]
