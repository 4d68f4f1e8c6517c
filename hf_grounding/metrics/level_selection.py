"""Level selection rate: which visual level do the words of each category choose?

Table 3 of "Multi-level Multimodal Common Semantic Space for Image-Phrase Grounding" (CVPR 2019).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ._protocol import read_categories, same_length


def level_selection_rates(
    levels: Sequence[Sequence[int]], num_levels: int, *, categories: Sequence[Sequence[str]] | None = None
) -> dict[str, Any]:
    r"""Share of words that choose each level, by category and over all words.

    The table's "average" column counts all words of a sentence, also those in no phrase: give those as rows without a
    category. Its "sentence" column is a call of its own, with one row `[level]` per sentence.

    Args:
        levels (n lists of `int`): Levels chosen by the words of phrase n, 0-based; words without any positive score
            have no level and are best left out (an argmax over zeros would say level 0).
        num_levels (`int`): Levels of the model.
        categories (n lists of names, optional): A phrase with several counts in each.

    Returns:
        `dict`: "average" (`num_levels` rates, sum 1), "count" (words) and "by_category" (name -> rates, count).

    Raises:
        ValueError: For no words at all, a level outside `[0, num_levels)`, or lists of different lengths.

    Example:

        >>> level_selection_rates([[0, 1], [1, 1]], 2, categories=[["people"], ["scene"]])["by_category"]["people"]
        {'rates': [0.5, 0.5], 'count': 2}
    """
    same_length(levels=levels, categories=categories)
    members = read_categories(categories)
    counts = np.zeros((len(levels), num_levels), dtype=int)  # (n, num_levels)
    for row, chosen in enumerate(levels):
        for level in chosen:
            if not 0 <= level < num_levels:
                raise ValueError(f"`levels` must be in [0, {num_levels}) (`num_levels`); row {row} has {level}.")
            counts[row, level] += 1
    total = counts.sum(axis=0)
    if not total.any():
        raise ValueError("There is nothing to count: `levels` holds no words.")
    by_category = {name: counts[mask].sum(axis=0) for name, mask in members.items()}
    return {
        "average": (total / total.sum()).tolist(),
        "count": int(total.sum()),
        "by_category": {
            name: {"rates": (words / words.sum()).tolist(), "count": int(words.sum())}
            for name, words in by_category.items()
            if words.any()
        },
    }
