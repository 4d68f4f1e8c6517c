"""Settings of the multi-level common semantic space (CVPR 2019, arXiv 1811.11683).

Paper: "Multi-level Multimodal Common Semantic Space for Image-Phrase Grounding". Defaults are the paper's; where the
paper and the authors' code disagree, the field says so.
"""

import difflib
import math
from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, PreTrainedConfig


@strict
class MultiLevelGroundingConfig(PreTrainedConfig):
    r"""Settings of [`MultiLevelGroundingModel`].

    Args:
        backbone_config (`dict` or `PreTrainedConfig`, *optional*): Visual network, any transformers model with several
            feature maps (MobileNetV2, ResNet, ...). `None` means that `feature_maps` are always passed in.
        backbone_levels (`list[int]`): Which of the backbone's maps are the levels, low level first: indices into
            `hidden_states`; -1 is the last one, and `len(hidden_states)` stands for `last_hidden_state` where that is
            yet another map (MobileNetV2).
        freeze_backbone (`bool`): Keep the backbone as it is loaded and in eval mode, as the paper. `False` trains it as
            well; ours, for backbones that nobody has trained.
        level_channels (`list[int]`): Channels of each level. Their number is L, the number of levels.
        grid_size (`int`): M; every level is resized to M x M (18 with VGG16, 19 with PNASNet-5).
        resize_mode (`str`): Bilinear variant: `"half_pixel"`, or the authors' `"tf_legacy"` and `"align_corners"`.
        normalize_features (`bool`): Centre and scale every cell of a feature map over its channels first; ours.
            Backbones whose levels differ in scale train faster so.
        hidden_size (`int`): D, width of the common space.
        visual_hidden_sizes (`list[int]`, *optional*): Widths of the 1x1 convolutions of a level, the last one D.
            Default D, D, D (the authors' PNASNet code uses 2048, 2048, 1024).
        visual_mapping, text_mapping (`str`): `"nonlinear"` or the ablation `"linear"`: one linear layer, no activation.
        negative_slope (`float`): Slope of every LeakyReLU.
        final_activation (`bool`): LeakyReLU also after the last text layer, as the authors' code; `False` is the
            paper's wording.
        normalize_every_layer (`bool`): L2-normalise between the text layers too (the authors' later code).
        text_config (`dict` or `PreTrainedConfig`, *optional*): Any `AutoModel` text encoder; its hidden states are
            mixed. `None` is a trainable BiLSTM over words.
        freeze_text_encoder (`bool`): Keep the `AutoModel` encoder as it is loaded (the paper's ELMo); the BiLSTM always
            trains.
        word_layers (`list[int]`, *optional*): Encoder layers mixed into the words; default all. `[0]` with the BiLSTM
            leaves the words without their context, which over-fits less on few captions.
        sentence_layers (`list[int]`): Encoder layers mixed into the sentence vector. Here as in `word_layers`, layer 0
            is the encoder's input and negative indices count from the last.
        sentence_pooling (`str`, *optional*): `"boundary"` joins the backward half at the first word with the forward
            half at the last (recurrent encoders), `"mean"` averages the words. Default: boundary for the BiLSTM, mean
            for an `AutoModel`.
        vocab_size, pad_token_id (`int`): Of the word-level tokenizer; used by the BiLSTM.
        word_embedding_size (`int`): Width of the BiLSTM's word vectors and of each of its directions.
        mix_scale (`bool`): A trainable scale on the softmax mix of encoder layers (ELMo's own; the authors' later code
            has none).
        attention (`str`): `"relu"` (Eq. 1), or the ablation `"softmax"` on the raw cosines.
        softmax_axis (`str`): What the ablation's softmax runs over: `"regions"` for each word, or `"words"` for each
            region. Padded words never have a share in it.
        word_level, sentence_level (`int`, *optional*): Use one level instead of choosing the best (Table 4).
        mask_padding (`bool`): Leave padded words out of Eq. 5, and of nothing else; the authors' code counts them. With
            the softmax over words they count as R_t = 0.
        normalize_sentence_attended (`bool`): Normalise the attended vector in Eq. 6, as the code; the paper prints no
            normalisation.
        gamma_1 (`float`): Sharpness of the pooling over words, Eq. 5.
        gamma_2 (`float`): Sharpness of the matching probabilities, Eq. 7.
        loss_reduction (`str`): `"mean"` over the batch as the code, or `"sum"` as the paper.
        l2_weight (`float`): The regulariser is `l2_weight / 2` times the sum of squared mapping weights, biases
            excluded.
        l2_scope (`str`): `"all"` mappings as the paper, or `"visual"` only as the code.
        supervision (`str`): `"weak"`, the paper: captions alone; `"boxes"`, ours: phrase boxes of the training set as
            well.
        box_loss_weight (`float`): Weight of the box term when `supervision="boxes"`.
        box_temperature (`float`): Sharpness of the heatmaps in the box term.
        dropout (`float`): On the inputs of the visual and textual mappings; ours, 0 in the paper.
        attention_chunk_size (`int`, *optional*): Images compared with all captions at once in the loss; a smaller
            number needs less memory. Default: all.
    """

    model_type = "multilevel_grounding"

    backbone_config: dict | PreTrainedConfig | None = None
    backbone_levels: list[int] | None = None
    freeze_backbone: bool = True
    level_channels: list[int] | tuple[int, ...] = (512, 512, 512, 512)
    grid_size: int = 18
    resize_mode: Literal["half_pixel", "tf_legacy", "align_corners"] = "half_pixel"
    normalize_features: bool = False
    hidden_size: int = 1024
    visual_hidden_sizes: list[int] | None = None
    visual_mapping: Literal["nonlinear", "linear"] = "nonlinear"
    text_mapping: Literal["nonlinear", "linear"] = "nonlinear"
    negative_slope: float | int = 0.25
    final_activation: bool = True
    normalize_every_layer: bool = False
    text_config: dict | PreTrainedConfig | None = None
    freeze_text_encoder: bool = True
    word_layers: list[int] | tuple[int, ...] | None = None
    sentence_layers: list[int] | tuple[int, ...] = (-1,)
    sentence_pooling: Literal["boundary", "mean"] | None = None
    vocab_size: int = 10000
    pad_token_id: int | None = 0
    word_embedding_size: int = 512
    mix_scale: bool = True
    attention: Literal["relu", "softmax"] = "relu"
    softmax_axis: Literal["regions", "words"] = "regions"
    word_level: int | None = None
    sentence_level: int | None = None
    mask_padding: bool = True
    normalize_sentence_attended: bool = True
    gamma_1: float | int = 5.0
    gamma_2: float | int = 10.0
    loss_reduction: Literal["mean", "sum"] = "mean"
    l2_weight: float | int = 0.0005
    l2_scope: Literal["all", "visual"] = "all"
    supervision: Literal["weak", "boxes"] = "weak"
    box_loss_weight: float | int = 1.0
    box_temperature: float | int = 15.0
    dropout: float | int = 0.0
    attention_chunk_size: int | None = None

    def __post_init__(self, **kwargs):
        self.backbone_config = as_config(self.backbone_config, "backbone_config")
        self.text_config = as_config(self.text_config, "text_config")
        if self.visual_hidden_sizes is None:
            self.visual_hidden_sizes = [self.hidden_size] * 3
        if self.sentence_pooling is None:
            self.sentence_pooling = "boundary" if self.text_config is None else "mean"
        super().__post_init__(**kwargs)

    @property
    def num_levels(self) -> int:
        return len(self.level_channels)

    def validate_levels(self):
        """Levels named anywhere must exist, and a backbone must say which of its maps they are."""
        if not self.level_channels or min(self.level_channels) < 1:
            raise ValueError(
                f"`level_channels` must be the channels, 1 or more, of at least one level; got {self.level_channels}."
            )
        if self.backbone_config is not None and len(self.backbone_levels or ()) != self.num_levels:
            raise ValueError(
                f"`backbone_levels` names {len(self.backbone_levels or ())} maps but `level_channels` has "
                f"{self.num_levels}; with a backbone both need one entry for each level."
            )
        if not self.sentence_layers:
            raise ValueError(
                "`sentence_layers` is empty; name at least one layer of the text encoder, such as -1, the last."
            )
        if self.word_layers is not None and not self.word_layers:
            raise ValueError("`word_layers` is empty; name at least one layer of the text encoder, or None for all.")
        for name in ("word_level", "sentence_level"):
            level = getattr(self, name)
            if level is not None and not 0 <= level < self.num_levels:
                raise ValueError(f"`{name}` must be in 0..{self.num_levels - 1} or None, got {level}.")

    def validate_sizes(self):
        for name in ("grid_size", "hidden_size", "word_embedding_size", "vocab_size", "attention_chunk_size"):
            size = getattr(self, name)
            if size is not None and size < 1:
                raise ValueError(f"`{name}` must be 1 or more, got {size}.")
        if (self.visual_hidden_sizes or [])[-1:] != [self.hidden_size]:
            raise ValueError(
                f"The last of `visual_hidden_sizes` must be `hidden_size` ({self.hidden_size}), "
                f"got {self.visual_hidden_sizes}."
            )
        if self.text_config is None and self.sentence_pooling == "mean":
            raise ValueError(
                '`sentence_pooling="mean"` needs a `text_config`; the BiLSTM\'s sentence is its two end states.'
            )

    def validate_weights(self):
        for name in ("gamma_1", "gamma_2", "box_temperature"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"`{name}` must be above 0, got {getattr(self, name)}.")
        for name in ("l2_weight", "box_loss_weight", "negative_slope"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"`{name}` must be 0 or more, got {getattr(self, name)}.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"`dropout` must be in [0, 1), got {self.dropout}.")


def as_config(value: "dict | PreTrainedConfig | None", name: str) -> PreTrainedConfig | None:
    if not isinstance(value, dict):
        return value
    if "model_type" not in value:
        raise ValueError(
            f"`{name}` is a dict without `model_type`; give it, or a config object such as `MobileNetV2Config()`."
        )
    if value["model_type"] not in CONFIG_MAPPING:
        nearest = difflib.get_close_matches(value["model_type"], CONFIG_MAPPING.keys(), n=1)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise ValueError(f"`{name}` has the unknown `model_type` {value['model_type']!r}.{hint}")
    return CONFIG_MAPPING[value["model_type"]](**value)
