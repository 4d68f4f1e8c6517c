"""VQA accuracy: does the predicted answer agree with what people answered?

Rules of the official VQA evaluator: three of the other nine people saying the same is full agreement. Answers are
compared after `normalize_answer`, which keeps the evaluator's quirks because published numbers contain them. The
targets VQA models are trained on, `soft_scores` and `majority_answer`, are here too, so that they cannot drift apart.
"""

import re
from collections import Counter
from collections.abc import Sequence, Sized
from statistics import fmean
from typing import Any

from ._protocol import same_length

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_MAX_PERIODS = 32  # the evaluator gives a regular expression's flags (re.UNICODE is 32) where the count belongs

_ARTICLES = {"a", "an", "the"}
_DIGITS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5"}
_DIGITS |= {"six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10"}

# Each is recognised with one of its apostrophes left out. What is missing here (i'd, she's, let's) the evaluator does
# not mend either: "shes" stays "shes".
_SPELLED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
_CONTRACTIONS = {
    form[:place] + form[place + 1 :]: form
    for form in _SPELLED.split()
    for place, sign in enumerate(form)
    if sign == "'"
}
_CONTRACTIONS["somebody'd"] = "somebodyd"  # a slip of the evaluator: the one entry that loses its apostrophe

_SOFT_SCORES = (0.0, 0.3, 0.6, 0.9, 1.0)  # by the number of people who gave the answer; 1 from four on


def normalize_answer(text: str) -> str:
    r"""The form in which answers are compared: no punctuation, no articles, numbers up to ten as digits, lower case.

    Quirks of the official evaluator, kept:

    - a sign of ``;/[]"{}()=+\_-><@`,?!`` becomes a space, but is removed throughout if it stands next to a space
      anywhere, or if the text has a comma between digits: "on/off" is "on off", but "on/off and/ or" is "onoff and or";
    - a period is removed unless a digit follows ("5.30" stays, "2." is "2"), the first 32 of them;
    - contractions get the one apostrophe they lack ("dont" -> "don't", "couldntve" stays); other apostrophes and colons
      are untouched.

    Example:

        >>> normalize_answer("The two T-shirts, I dont know."), normalize_answer("1,000")
        ("2 t shirts i don't know", '1000')
    """
    cleaned = _clean(text)
    joined = _DIGIT_COMMA_DIGIT.search(cleaned) is not None
    unpunctuated = cleaned
    for sign in _PUNCTUATION:
        removed = joined or f"{sign} " in cleaned or f" {sign}" in cleaned
        unpunctuated = unpunctuated.replace(sign, "" if removed else " ")
    unpunctuated = _PERIOD.sub("", unpunctuated, count=_MAX_PERIODS)
    words = (_DIGITS.get(word, word) for word in unpunctuated.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(
    predictions: Sequence[str],
    answers: Sequence[Sequence[str]],
    *,
    answer_types: Sequence[str] | None = None,
    question_types: Sequence[str] | None = None,
) -> dict[str, Any]:
    r"""Mean agreement of the predictions with people's answers, by the official evaluator's leave-one-out procedure.

    For each of a question's answers in turn, the prediction scores min(1, m / 3) with m the matches among the *other*
    answers; the question's accuracy is the mean. With ten answers, k of which match, that is 0, .3, .6, .9 and 1 for
    k = 0, 1, 2, 3 and >= 4. Other numbers of answers follow the same procedure; with fewer than four the best possible
    accuracy is (answers - 1) / 3, thus 0 where a question has a single answer.

    Answers and prediction are compared after [`normalize_answer`], except where all answers of a question are the same
    text: then the prediction must be exactly that text, outer whitespace aside.

    Args:
        predictions (n answers): One per question.
        answers (n lists of answers): What people said, one entry per person; equal texts count each.
        answer_types (n names, optional): "yes/no", "number" or "other" in VQA.
        question_types (n names, optional): The first words of the question in VQA.

    Returns:
        `dict`: "vqa_accuracy" in [0, 1], not rounded; "per_question" (n values in [0, 1]); "by_answer_type" and
        "by_question_type" (name -> "vqa_accuracy", "count"; empty without the argument); "count" (questions).

    Raises:
        ValueError: For no questions, lists of different lengths, a question without answers, or answers that are not
            strings.

    Example:

        >>> answers = [["2"] * 2 + ["3"] * 8, ["red"] * 10]
        >>> result = vqa_accuracy(["two", "red"], answers, answer_types=["number", "other"])
        >>> result["per_question"], result["vqa_accuracy"]
        ([0.6, 1.0], 0.8)
        >>> result["by_answer_type"]["number"]
        {'vqa_accuracy': 0.6, 'count': 1}
    """
    if not isinstance(predictions, Sized) or not isinstance(answers, Sized):
        raise ValueError("`predictions` and `answers` must be lists, with one entry per question.")
    if len(predictions) == 0:
        raise ValueError("There is nothing to score: `predictions` is empty; expected one answer per question.")
    same_length(predictions=predictions, answers=answers, answer_types=answer_types, question_types=question_types)
    _check_strings(predictions, "predictions")
    for name, types in (("answer_types", answer_types), ("question_types", question_types)):
        if types is not None:
            _check_strings(types, name)
    for row, given in enumerate(answers):
        _check_strings(given, f"answers[{row}]")
    scores = [_agreement(prediction, given) for prediction, given in zip(predictions, answers, strict=True)]
    return {
        "vqa_accuracy": fmean(scores),
        "by_answer_type": _by_type(scores, answer_types),
        "by_question_type": _by_type(scores, question_types),
        "per_question": scores,
        "count": len(scores),
    }


def soft_scores(answers: Sequence[str]) -> dict[str, float]:
    """Training targets of one question: each answer's score, 0.3, 0.6, 0.9 or 1 where 1, 2, 3 or more people gave it.

    As in the usual training scripts the texts are counted as they are, without normalisation. Answers outside the
    model's vocabulary are the caller's to drop.

    Raises:
        ValueError: For no answers, or answers that are not strings.

    Example:

        >>> soft_scores(["red"] * 7 + ["dark red"] * 2 + ["Red"])
        {'red': 1.0, 'dark red': 0.6, 'Red': 0.3}
    """
    _check_strings(answers, "answers")
    return {answer: _SOFT_SCORES[min(count, 4)] for answer, count in Counter(answers).items()}


def majority_answer(answers: Sequence[str]) -> str:
    """The entry a question adds to the answer vocabulary: its most frequent answer, the first of several, normalised.

    Counted as they are and normalised afterwards, as the usual training scripts do. These also remove commas; none is
    left after [`normalize_answer`].

    Raises:
        ValueError: For no answers, or answers that are not strings.

    Example:

        >>> majority_answer(["2", "Two.", "Two."])
        '2'
    """
    _check_strings(answers, "answers")
    return normalize_answer(Counter(answers).most_common(1)[0][0])


def _agreement(prediction: str, answers: Sequence[str]) -> float:
    """Accuracy of one prediction, in [0, 1]."""
    prediction, answers = _clean(prediction), [_clean(answer) for answer in answers]
    if len(set(answers)) > 1:
        prediction, answers = normalize_answer(prediction), [normalize_answer(answer) for answer in answers]
    matching = answers.count(prediction)
    # Left out in turn: an answer that matches leaves one match less among the others, any other leaves all of them.
    left_out_matching = matching * min(1.0, (matching - 1) / 3)
    left_out_other = (len(answers) - matching) * min(1.0, matching / 3)
    return (left_out_matching + left_out_other) / len(answers)


def _clean(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _by_type(scores: list[float], types: Sequence[str] | None) -> dict[str, dict[str, float]]:
    """Mean score and count of each type, in alphabetical order."""
    if types is None:
        return {}
    groups: dict[str, list[float]] = {}
    for score, name in zip(scores, types, strict=True):
        groups.setdefault(name, []).append(score)
    return {name: {"vqa_accuracy": fmean(groups[name]), "count": len(groups[name])} for name in sorted(groups)}


def _check_strings(values: Sequence[str], argument: str) -> None:
    """`ValueError` that tells which value is not a string, or that there are none, or one string instead of a list."""
    if isinstance(values, str) or len(values) == 0:
        raise ValueError(f"`{argument}` must be a list of at least one answer, got {values!r}.")
    for row, value in enumerate(values):
        if not isinstance(value, str):
            raise ValueError(f"`{argument}` must hold strings; entry {row} is {value!r}.")
