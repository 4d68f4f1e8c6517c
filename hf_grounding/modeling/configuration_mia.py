"""Settings of Mutual Iterative Attention (NeurIPS 2019, arXiv 1905.06139) and of the captioners it stands in front of.

Defaults are the paper's, with the numbers of the official code where the paper gives none.
"""

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .configuration_multilevel import as_config

DecoderName = Literal[
    "visual_attention",
    "concept_attention",
    "visual_condition",
    "concept_condition",
    "visual_regional_attention",
    "up_down",
    "transformer",
]
_READ_CONCEPTS = ("concept_attention", "visual_condition", "concept_condition")


@strict
class MIAModuleConfig(PreTrainedConfig):
    r"""Settings of the module itself, which all configurations of models with it begin with.

    Args:
        feature_dim (`int`): Numbers of one region or grid cell (2048 for ResNet's grid and for bottom-up features).
        hidden_size (`int`): d, the width of regions and concepts, and of all captioners but Up-Down.
        mia_iterations (`int`): N; 0 turns the module off, which gives the paper's baselines.
        mia_output (`str`): What the model behind it sees: "both" the fused rows wherever it reads regions or concepts,
            "visual" only refined regions, "textual" only refined concepts (Table 4).
        mia_order (`str`): Which side is refined first, "visual_first" or "textual_first".
        mia_attention (`str`): "mutual", or "self" for the ablation in which each side attends to itself; with one
            `mia_output` the other side is then not read.
        block_variant (`str`): "paper" or "official", the code's asymmetric block.
        share_iteration_weights (`bool`): One block for all iterations.
        attention_bias (`bool`): Biases on the projections of the module's attention.
        num_attention_heads, intermediate_size (`int`): Of the module, and of the transformer captioner.
        mia_dropout (`float`): Inside the module.
        layer_dropout (`float`, *optional*): The block's last dropout; default `mia_dropout`.
    """

    feature_dim: int = 2048
    hidden_size: int = 512
    mia_iterations: int = 2
    mia_output: Literal["both", "visual", "textual"] = "both"
    mia_order: Literal["visual_first", "textual_first"] = "visual_first"
    mia_attention: Literal["mutual", "self"] = "mutual"
    block_variant: Literal["paper", "official"] = "paper"
    share_iteration_weights: bool = True
    attention_bias: bool = True
    num_attention_heads: int = 8
    intermediate_size: int = 2048
    mia_dropout: float | int = 0.1
    layer_dropout: float | int | None = None

    def module_reads(self, side: Literal["visual", "textual"]) -> bool:
        """Whether the module reads regions ("visual") or concepts ("textual")."""
        return self.mia_iterations > 0 and (self.mia_attention == "mutual" or self.mia_output in ("both", side))


@strict
class MIAConfig(MIAModuleConfig):
    r"""Settings of [`MIAModel`] and [`MIAForCaptioning`], which take those of [`MIAModuleConfig`] as well.

    Args:
        decoder_type (`str`): The captioner: "visual_attention", "concept_attention", "visual_condition",
            "concept_condition", "visual_regional_attention" (visual attention over detected regions), "up_down" or
            "transformer".
        vocab_size (`int`): Words of the captions; concepts are words too.
        embedding_size (`int`): Width of a word's embedding.
        tie_word_embeddings (`bool`): Concepts are embedded with the captions' table; needs `embedding_size` =
            `hidden_size`.
        decoder_hidden_size (`int`): R, the width of Up-Down's LSTMs; the other decoders have `hidden_size`.
        attention_hidden_size (`int`): Width in which additive attention compares regions and state.
        decoder_attention_activation (`str`): Of Up-Down's attention, "tanh" or "relu".
        decoder_attention_bias (`bool`): Biases in Up-Down's attention.
        embed_global (`bool`): Up-Down embeds the mean of the regions by a layer of its own, as in the public code; else
            the mean of the embedded regions takes its place.
        dropout (`float`): On regions, states and words, where each captioner has it.
        num_encoder_layers, num_decoder_layers (`int`): Of the transformer captioner.
        transformer_dropout (`float`): Of the transformer captioner.
        max_position_embeddings (`int`): Longest caption of the transformer captioner.
        label_smoothing (`float`): Probability that goes to the other words, shared equally among them (0.1 in the
            official code).
        backbone_config (`dict` or `PreTrainedConfig`, *optional*): Visual network for `pixel_values`; `None` means that
            `region_features` are always passed in.
        backbone_level (`int`): Which of its maps, as in [`ConceptDetectorConfig`]; its cells are the regions.
        freeze_backbone (`bool`): Keep the backbone as it is loaded and in eval mode.
        backbone_trainable_from (`int`, *optional*): Of a backbone that is not frozen, train only what follows this one
            of its hidden states; what the state itself depends on is kept as it is loaded. 1 for a ResNet: its third
            group of convolutions and what follows, as the official code.
        pad_token_id, bos_token_id, eos_token_id, unk_token_id (`int`): The official vocabulary's; the Up-Down family
            has 0 for the first three.
    """

    model_type = "mia"
    keys_to_ignore_at_inference = ["past_key_values", "cross_attentions", "encoder_attentions"]

    decoder_type: DecoderName = "visual_attention"
    vocab_size: int = 10000
    embedding_size: int = 512
    tie_word_embeddings: bool = True
    decoder_hidden_size: int = 512
    attention_hidden_size: int = 49
    decoder_attention_activation: Literal["tanh", "relu"] = "tanh"
    decoder_attention_bias: bool = True
    embed_global: bool = True
    dropout: float | int = 0.5
    num_encoder_layers: int = 6
    num_decoder_layers: int = 6
    transformer_dropout: float | int = 0.1
    max_position_embeddings: int = 128
    label_smoothing: float | int = 0.0
    backbone_config: dict | PreTrainedConfig | None = None
    backbone_level: int = -1
    freeze_backbone: bool = True
    backbone_trainable_from: int | None = None
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    unk_token_id: int | None = 3
    decoder_start_token_id: int | None = None
    is_encoder_decoder: bool = True

    def __post_init__(self, **kwargs):
        self.backbone_config = as_config(self.backbone_config, "backbone_config")
        if self.decoder_start_token_id is None:
            self.decoder_start_token_id = self.bos_token_id
        super().__post_init__(**kwargs)

    @property
    def backbone_levels(self) -> list[int]:
        """As [`MultiLevelGroundingConfig`] names its maps."""
        return [self.backbone_level]

    @property
    def uses_regions(self) -> bool:
        """Whether the model reads regions at all: concept attention by itself does not."""
        return self.module_reads("visual") or self.decoder_type != "concept_attention"

    @property
    def uses_concepts(self) -> bool:
        """Whether the model reads concepts."""
        return self.module_reads("textual") or self.decoder_type in _READ_CONCEPTS

    @property
    def projects_regions(self) -> bool:
        """Whether regions are brought to `hidden_size` first; the Up-Down baseline embeds the raw ones itself."""
        return self.uses_regions and (self.mia_iterations > 0 or self.decoder_type != "up_down")

    def validate_sizes(self):
        if self.mia_iterations < 0:
            raise ValueError(f"`mia_iterations` must be 0 or more, got {self.mia_iterations}.")
        sizes = ("vocab_size", "feature_dim", "hidden_size", "num_attention_heads", "intermediate_size")
        sizes += ("embedding_size", "decoder_hidden_size", "attention_hidden_size", "max_position_embeddings")
        for name in (*sizes, "num_encoder_layers", "num_decoder_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be 1 or more, got {getattr(self, name)}.")

    def validate_shares(self):
        for name in ("mia_dropout", "layer_dropout", "dropout", "transformer_dropout", "label_smoothing"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise ValueError(f"`{name}` must be in [0, 1), got {value}.")

    def validate_widths(self):
        if self.tie_word_embeddings and self.uses_concepts and self.embedding_size != self.hidden_size:
            raise ValueError(
                "Concepts share the captions' word embeddings (`tie_word_embeddings`), so `embedding_size` "
                f"({self.embedding_size}) must be `hidden_size` ({self.hidden_size})."
            )
        if self.decoder_type != "up_down" and self.embedding_size != self.hidden_size:
            raise ValueError(
                f"The decoder '{self.decoder_type}' adds words to image vectors, so `embedding_size` "
                f"({self.embedding_size}) must be `hidden_size` ({self.hidden_size})."
            )
        uses_heads = self.mia_iterations > 0 or self.decoder_type == "transformer"
        if uses_heads and self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"`hidden_size` ({self.hidden_size}) must be a multiple of `num_attention_heads` "
                f"({self.num_attention_heads})."
            )

    def validate_backbone(self):
        if self.backbone_trainable_from is not None and (self.backbone_config is None or self.freeze_backbone):
            raise ValueError(
                "`backbone_trainable_from` says which part of a backbone is trained, so it needs a `backbone_config` "
                "and `freeze_backbone` False."
            )

    def validate_output(self):
        if self.decoder_type == "concept_attention":
            reads, unread, other = "concepts", "visual", "textual"
        elif self.decoder_type in _READ_CONCEPTS:
            return
        else:
            reads, unread, other = "regions", "textual", "visual"
        if self.mia_iterations > 0 and self.mia_output == unread:
            raise ValueError(
                f"The decoder '{self.decoder_type}' reads {reads} only, so with `mia_output` '{unread}' the module "
                f"would have no effect. Use 'both' or '{other}', or `mia_iterations` 0 for the baseline."
            )

    def validate_token_ids(self):
        for name in ("pad_token_id", "bos_token_id", "eos_token_id", "unk_token_id", "decoder_start_token_id"):
            value = getattr(self, name)
            if not isinstance(value, int) or not 0 <= value < self.vocab_size:
                raise ValueError(f"`{name}` must be an id of the vocabulary, 0 to {self.vocab_size - 1}, got {value}.")


__all__ = ["MIAConfig", "MIAModuleConfig"]
