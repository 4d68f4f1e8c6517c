"""Level selection rates: values worked by hand, messages."""

import pytest

from hf_grounding.metrics import level_selection_rates


def test_rates_worked_by_hand():
    # people: words at levels 2, 2, 0 and (second phrase) 2 -> 1/4, 0, 3/4; scene: 2 alone. All words: 5.
    result = level_selection_rates([[2, 2, 0], [2], [1]], 3, categories=[["people"], ["people", "scene"], []])
    assert result == {
        "average": [0.2, 0.2, 0.6],
        "count": 5,
        "by_category": {
            "people": {"rates": [0.25, 0.0, 0.75], "count": 4},
            "scene": {"rates": [0.0, 0.0, 1.0], "count": 1},
        },
    }


def test_without_categories_only_the_average_is_given():
    assert level_selection_rates([[0], [1], []], 2) == {"average": [0.5, 0.5], "count": 2, "by_category": {}}


@pytest.mark.parametrize(
    "levels, categories, message",
    [
        ([[0], [4]], None, r"\[0, 4\).*row 1 has 4"),
        ([[0], [-1]], None, "row 1 has -1"),
        ([[], []], None, "no words"),
        ([[0], [1]], [["people"]], "`levels` 2, `categories` 1"),
    ],
)
def test_error_names_the_row(levels, categories, message):
    with pytest.raises(ValueError, match=message):
        level_selection_rates(levels, 4, categories=categories)
