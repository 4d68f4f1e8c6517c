"""Visual question answering with Mutual Iterative Attention (NeurIPS 2019, arXiv 1905.06139, Table 3).

The module stands before the answerer and refines the image's regions by its concepts -> `MIAModel`; questions stay as
they are. The two answerers of the table -> `answer_heads.py`. With `mia_iterations=0` they are its baselines.

The paper does not say how wide the module is here: regions are projected to `hidden_size` as for captions, and the
heads are built for rows of that width, or of the regions' own with `mia_project_back`. Concepts have a table of their
own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput, auto_docstring, can_return_tuple

from .answer_heads import BilinearAttentionHead, QuestionEncoder, UpDownAnswerHead
from .caption_decoders import at_least_float32
from .configuration_mia_vqa import MIAVQAConfig
from .modeling_mia import MIAModel, MIAPreTrainedModel


@dataclass
class MIAVQAOutput(ModelOutput):
    r"""Output of [`MIAForVQA`]. B questions, n regions, T words, G glimpses; attentions only with `output_attentions`.

    Args:
        loss (scalar): Binary cross entropy, sum over answers, mean over questions. Only with `labels`.
        logits (`(B, num_labels)`): Of each answer; their sigmoid is its probability.
        region_attentions (`(B, n)`): Weight of each region, sum 1, 0 on padding; in BAN the sum over words, mean over
            glimpses. A row of the module counts for the region that stands in its place.
        word_region_attentions (`(B, G, T, n)`): BAN's attention maps; each sums to 1.
        mia_attentions (`tuple` of `(B, 2, heads, n, n)`): Of the module by iteration, visual and textual, or only one
            of them, see [`MIAModelOutput.attentions_by_iteration`]; `None` without it.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    region_attentions: torch.FloatTensor | None = None
    word_region_attentions: torch.FloatTensor | None = None
    mia_attentions: tuple[torch.Tensor, ...] | None = None


@auto_docstring(custom_intro="Up-Down or BAN over regions, refined by mutual iterative attention or not.")
class MIAForVQA(PreTrainedModel):
    config: MIAVQAConfig
    base_model_prefix = "model"
    main_input_name = "region_features"
    input_modalities = ("image", "text")
    _no_split_modules: list[str] = []
    _init_weights = MIAPreTrainedModel._init_weights

    def __init__(self, config: MIAVQAConfig):
        super().__init__(config)
        self.model = MIAModel(config.image_config)
        self.project_back: nn.Linear | None = None
        if config.mia_iterations > 0 and config.mia_project_back:
            self.project_back = nn.Linear(config.hidden_size, config.feature_dim)
        self.question = QuestionEncoder(config)
        head = UpDownAnswerHead if config.answer_head == "up_down" else BilinearAttentionHead
        self.head: UpDownAnswerHead | BilinearAttentionHead = head(config)
        self.post_init()

    def get_input_embeddings(self):
        return self.question.embed_words

    def set_input_embeddings(self, value):
        self.question.embed_words = value

    @torch.no_grad()
    def set_word_vectors(self, vectors: torch.Tensor, tfidf_vectors: torch.Tensor | None = None) -> None:
        r"""Where training of the questions' words starts from, such as GloVe's vectors.

        Args:
            vectors (`torch.Tensor` of shape `(vocab_size, word_embedding_size)`): Of the words by their ids, 0 for
                those that have none; what stands for padding is not used.
            tfidf_vectors (of the same shape, *optional*): Second vectors of a model with `tfidf_word_embeddings`.
                Default: the first ones again.

        Raises:
            ValueError: If a shape is another, or second vectors come that the model has no place for.
        """
        parts = [vectors]
        if self.config.tfidf_word_embeddings:
            parts.append(vectors if tfidf_vectors is None else tfidf_vectors)
        elif tfidf_vectors is not None:
            raise ValueError("This model has one vector for each word (`config.tfidf_word_embeddings` is False).")
        shape = (self.config.vocab_size, self.config.word_embedding_size)
        for part in parts:
            if part.shape != shape:
                raise ValueError(
                    f"Word vectors must be {shape} (words of the questions, width), got {tuple(part.shape)}."
                )
        table = self.question.embed_words.weight
        table.copy_(torch.cat(parts, dim=1))
        table[self.config.pad_token_id] = 0

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        region_features: torch.Tensor | None = None,
        region_mask: torch.Tensor | None = None,
        boxes: torch.Tensor | None = None,
        concept_ids: torch.Tensor | None = None,
        concept_mask: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        **kwargs,
    ) -> MIAVQAOutput:
        r"""
        region_features (`torch.Tensor` of shape `(batch, num_regions, feature_dim)`):
            Features of each question's image.
        region_mask (`torch.Tensor` of shape `(batch, num_regions)`, *optional*):
            1 = real region, 0 = padding. Default: all are real.
        boxes (`torch.Tensor` of shape `(batch, num_regions, 4)`, *optional*):
            xyxy in [0, 1], for a model that counts.
        concept_ids (`torch.LongTensor` of shape `(batch, num_concepts)`, *optional*):
            Of the image, the most probable first; as many of them as there are regions are used. Only for a model that
            reads concepts (`config.uses_concepts`).
        concept_mask (`torch.Tensor` of shape `(batch, num_concepts)`, *optional*):
            1 = real concept, 0 = padding.
        input_ids (`torch.LongTensor` of shape `(batch, num_tokens)`):
            The questions.
        attention_mask (`torch.Tensor` of shape `(batch, num_tokens)`, *optional*):
            1 = word, 0 = padding, which changes nothing. Default: padding is read like words, as the public codes do.
        labels (`torch.Tensor` of shape `(batch, num_labels)`, *optional*):
            How right each answer is, in [0, 1].
        """
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        if region_features is None:
            raise ValueError("Give `region_features`; this model has no backbone that would read photos.")
        image = self.model(
            region_features=region_features.to(self.dtype),
            region_mask=region_mask,
            concept_ids=concept_ids,
            concept_mask=concept_mask,
            output_attentions=output_attentions,
        )
        rows, row_mask = image.visual_states, image.visual_mask
        attention_mask = self._check(rows, boxes, input_ids, attention_mask, labels)
        if self.project_back is not None:
            rows = self.project_back(rows)
        question = self.question(cast("torch.Tensor", input_ids), attention_mask)
        logits, weights = self.head(question, rows, row_mask, boxes)
        outputs = MIAVQAOutput(loss=None if labels is None else self._loss(logits, labels), logits=logits)
        if output_attentions:
            self._add_attentions(outputs, weights, image)
        return outputs

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logits = at_least_float32(logits)
        return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype)) * logits.shape[1]

    def _add_attentions(self, outputs: MIAVQAOutput, weights: torch.Tensor, image: Any) -> None:
        of_words = weights if weights.ndim == 4 else None  # (B, G, T, n)
        of_regions = weights if of_words is None else of_words.mean(dim=1).sum(dim=1)
        outputs.mia_attentions = image.attentions_by_iteration
        outputs.region_attentions, outputs.word_region_attentions = of_regions, of_words

    def _check(
        self,
        rows: torch.Tensor,
        boxes: torch.Tensor | None,
        input_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        labels: torch.Tensor | None,
    ) -> torch.Tensor:
        """The questions' mask, when everything fits to the rows of the images."""
        if input_ids is None or input_ids.ndim != 2 or len(input_ids) != len(rows) or not input_ids.shape[1]:
            raise ValueError(
                f"`input_ids` must be ({len(rows)}, num_tokens), a question for each image of `region_features`, "
                f"got {_shape(input_ids)}."
            )
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        expected: Mapping[str, tuple[torch.Tensor | None, tuple[int, ...]]] = {
            "attention_mask": (attention_mask, tuple(input_ids.shape)),
            "labels": (labels, (len(rows), self.config.num_labels)),
            "boxes": (boxes, (*rows.shape[:2], 4)),
        }
        for name, (value, shape) in expected.items():
            if value is not None and value.shape != shape:
                raise ValueError(f"`{name}` must be {shape}, got {tuple(value.shape)}.")
        if boxes is None and self.config.counts:
            raise ValueError(
                "This model counts objects: give the `boxes` (batch, num_regions, 4) of the regions, xyxy in [0, 1]."
            )
        return attention_mask


def _shape(value: torch.Tensor | None) -> str:
    return "nothing" if value is None else f"shape {tuple(value.shape)}"


__all__ = ["MIAForVQA"]
