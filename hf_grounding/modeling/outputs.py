"""What the models return. Shapes are documented here once.

B images, C captions (B when each image has one), T padded words, L levels, M grid side, D width of the common space.
"""

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput


@dataclass
class MultiLevelGroundingOutput(ModelOutput):
    r"""Output of [`MultiLevelGroundingModel`].

    Args:
        loss (scalar): Eq. 7-10, the regulariser and, with `supervision="boxes"`, the box term. Only with
            `return_loss=True`.
        word_logits (`(C, B)`): R_w of caption c against image b, Eq. 5. Only with `return_loss=True`.
        sentence_logits (`(C, B)`): R_s of caption c against image b, Eq. 6. Only with `return_loss=True`.
        heatmaps (`(C, T, M, M)`): H of each word in its own image at its chosen level; 0 for padding.
        word_scores (`(C, T)`): R_t, in [0, 1]; 0 for padding.
        word_levels (`(C, T)`): Index of the chosen level.
        sentence_heatmaps (`(C, M, M)`), sentence_scores (`(C,)`), sentence_levels (`(C,)`): The same for whole
            captions.
        image_embeds (`(B, M * M, L, D)`): V, normalised over D; row-major cells.
        word_embeds (`(C, T, D)`), sentence_embeds (`(C, D)`): Words and sentences in the common space, normalised.
    """

    loss: torch.FloatTensor | None = None
    word_logits: torch.FloatTensor | None = None
    sentence_logits: torch.FloatTensor | None = None
    heatmaps: torch.FloatTensor | None = None
    word_scores: torch.FloatTensor | None = None
    word_levels: torch.LongTensor | None = None
    sentence_heatmaps: torch.FloatTensor | None = None
    sentence_scores: torch.FloatTensor | None = None
    sentence_levels: torch.LongTensor | None = None
    image_embeds: torch.FloatTensor | None = None
    word_embeds: torch.FloatTensor | None = None
    sentence_embeds: torch.FloatTensor | None = None
