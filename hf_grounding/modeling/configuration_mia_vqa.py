"""Settings of visual question answering with Mutual Iterative Attention (NeurIPS 2019, arXiv 1905.06139, Table 3).

Defaults are those of the two answer heads' public codes, and of the paper for the module in front of them.
"""

from collections import Counter
from typing import Literal

from huggingface_hub.dataclasses import strict

from .configuration_mia import MIAConfig, MIAModuleConfig

_QUESTION_WIDTHS = {"up_down": 1024, "ban": 1280}


@strict
class MIAVQAConfig(MIAModuleConfig):
    r"""Settings of [`MIAForVQA`], which takes those of [`MIAModuleConfig`] as well.

    With `mia_iterations` 0 there are neither the module nor concepts, and regions reach the answer head as they are.
    With `mia_attention` "self" and `mia_output` "visual" concepts are not read either.
    Answers are `id2label`, or `label2id` in its place; there are `num_labels` of them, no two alike.

    Args:
        answer_head (`str`): "up_down", one attention over regions, or "ban", bilinear attention over pairs of a
            question's word and a region.
        attention_type (`str`): How Up-Down compares question and region: "product" of their projections, or "concat",
            a layer over both side by side.
        vocab_size (`int`): Words of the questions, with unknown and padding.
        pad_token_id (`int`, *optional*): Padding of questions. Default: the last id.
        word_embedding_size (`int`): Width of a word's vector (300 in GloVe).
        tfidf_word_embeddings (`bool`, *optional*): Each word has a second vector of that width beside the first, which
            starts as the vectors of words it occurs with. Default: for BAN.
        question_hidden_size (`int`, *optional*): H, of the GRU and of the head. Default: 1024 for Up-Down, 1280 for
            BAN.
        classifier_hidden_size (`int`, *optional*): Of the layer before the answers. Default: 2 H.
        concept_vocab_size (`int`): Words that concepts are chosen from; one more row of their table, the last, is
            padding.
        mia_project_back (`bool`): Bring refined rows back to `feature_dim`, the width that the baselines read.
        num_glimpses (`int`): G, attention maps of BAN.
        use_counter (`bool`): BAN counts objects from attention and `boxes`.
        num_counted_objects (`int`): Most that it counts.
        dropout (`float`): On regions before they are projected to `hidden_size`.
        attention_dropout (`float`): On what Up-Down's attention scores; on the input of all of BAN's projections.
        bilinear_dropout (`float`): On projected regions in BAN's attention.
        classifier_dropout (`float`): On the layer before the answers.
    """

    model_type = "mia_vqa"
    keys_to_ignore_at_inference = ["region_attentions", "word_region_attentions", "mia_attentions"]

    id2label: dict[int, str] | dict[str, str] | None = None
    label2id: dict[str, int] | dict[str, str] | None = None
    answer_head: Literal["up_down", "ban"] = "up_down"
    attention_type: Literal["product", "concat"] = "product"
    vocab_size: int = 20000
    pad_token_id: int | None = None
    mia_output: Literal["both", "visual"] = "both"  # the heads read regions, so refined concepts alone would be unread
    word_embedding_size: int = 300
    tfidf_word_embeddings: bool | None = None
    question_hidden_size: int | None = None
    classifier_hidden_size: int | None = None
    concept_vocab_size: int = 1000
    mia_project_back: bool = False
    num_glimpses: int = 8
    use_counter: bool = True
    num_counted_objects: int = 10
    dropout: float | int = 0.5
    attention_dropout: float | int = 0.2
    bilinear_dropout: float | int = 0.5
    classifier_dropout: float | int = 0.5

    def __post_init__(self, **kwargs):
        if self.pad_token_id is None:
            self.pad_token_id = self.vocab_size - 1
        if self.tfidf_word_embeddings is None:
            self.tfidf_word_embeddings = self.answer_head == "ban"
        if self.question_hidden_size is None:
            self.question_hidden_size = _QUESTION_WIDTHS.get(self.answer_head)
        if self.classifier_hidden_size is None and self.question_hidden_size is not None:
            self.classifier_hidden_size = 2 * self.question_hidden_size
        given = self.label2id
        if self.id2label is None and given is not None:
            self.id2label = {int(index): answer for answer, index in given.items()}
        super().__post_init__(**kwargs)
        self.label2id = {answer: index for index, answer in (self.id2label or {}).items()}
        if given is not None and {answer: int(index) for answer, index in given.items()} != self.label2id:
            raise ValueError("`label2id` and `id2label` are of different answers; give one of them.")

    @property
    def image_config(self) -> MIAConfig:
        """Of the [`MIAModel`] that answer heads read: its settings are those of Up-Down, which also leaves raw regions
        as they are where there is no module."""
        names = [*MIAModuleConfig.__annotations__, "dropout"]
        special = ("pad_token_id", "bos_token_id", "eos_token_id", "unk_token_id")
        return MIAConfig(
            decoder_type="up_down",
            vocab_size=self.concept_vocab_size + 1,
            embedding_size=self.hidden_size,
            tie_word_embeddings=False,
            **dict.fromkeys(special, self.concept_vocab_size),
            **{name: getattr(self, name) for name in names},
        )

    @property
    def uses_concepts(self) -> bool:
        """Whether the model reads concepts."""
        return self.module_reads("textual")

    @property
    def row_size(self) -> int:
        """Width of the rows that the answer head reads."""
        return self.hidden_size if self.mia_iterations > 0 and not self.mia_project_back else self.feature_dim

    @property
    def counts(self) -> bool:
        """Whether the model counts, for which it needs boxes."""
        return self.answer_head == "ban" and self.use_counter

    def validate_sizes(self):
        names = ("vocab_size", "word_embedding_size", "question_hidden_size", "classifier_hidden_size")
        for name in (*names, "concept_vocab_size", "num_glimpses", "num_counted_objects"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be 1 or more, got {getattr(self, name)}.")
        if self.pad_token_id is None or not 0 <= self.pad_token_id < self.vocab_size:
            raise ValueError(
                f"`pad_token_id` must be an id of the vocabulary, 0 to {self.vocab_size - 1}, got {self.pad_token_id}."
            )

    def validate_answers(self):
        answers = self.id2label or {}
        if not answers or sorted(answers) != list(range(len(answers))):
            raise ValueError(
                f"Answers must be numbered from 0 and at least one, got {len(answers)} (`id2label`, `num_labels`)."
            )
        if len(set(answers.values())) < len(answers):
            twice = [answer for answer, count in Counter(answers.values()).items() if count > 1]
            raise ValueError(f"`id2label` has {len(twice)} answers more than once, such as {twice[0]!r}.")

    def validate_shares(self):
        for name in ("attention_dropout", "bilinear_dropout", "classifier_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be in [0, 1), got {getattr(self, name)}.")

    def validate_module(self):
        self.image_config  # noqa: B018  that of the module checks its own settings


__all__ = ["MIAVQAConfig"]
