"""Each equation of the answer heads against a slow, literal version of it; the counter on boxes with a known count."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from hf_grounding.modeling.answer_heads import (
    BilinearAttention,
    BilinearAttentionHead,
    Counter,
    Glimpse,
    NormalizedLinear,
    PiecewiseLinear,
    Question,
    QuestionEncoder,
    UpDownAnswerHead,
)
from tests.answerers import HIDDEN, QUESTION_MASK, QUESTIONS, small_config


def normalized(layer: NormalizedLinear, x: torch.Tensor) -> torch.Tensor:
    """`g V x / ||V||_F + b`, entry by entry."""
    norm = sum(v.item() ** 2 for v in layer.weight.flatten()) ** 0.5
    matrix = layer.scale.item() / norm * layer.weight
    return torch.stack([(row * x).sum() + b for row, b in zip(matrix, layer.bias, strict=True)])


def classified(head: UpDownAnswerHead | BilinearAttentionHead, x: torch.Tensor, drop: int = 1) -> torch.Tensor:
    return normalized(head.classifier.output, drop * normalized(head.classifier.hidden, x).relu())


RATES = ("dropout", "attention_dropout", "bilinear_dropout", "classifier_dropout")


@pytest.fixture(params=[None, *RATES])
def dropped(request, monkeypatch) -> str | None:
    """The one rate above 0, if any; dropout then multiplies by 3, so that it is seen where it stands."""
    monkeypatch.setattr(nn.Dropout, "forward", lambda self, x: 3 * x if self.p > 0 else x)
    return request.param


def rates(dropped: str | None) -> dict[str, float]:
    return {rate: 0.5 if rate == dropped else 0.0 for rate in RATES}


def factors(dropped: str | None) -> tuple[int, int, int]:
    """What stands for dropout of attention, of the bilinear map and of the classifier."""
    attention, bilinear, classifier = (3 if rate == dropped else 1 for rate in RATES[1:])
    return attention, bilinear, classifier


def seeded(module_class: type, *arguments) -> nn.Module:
    torch.manual_seed(0)
    module = module_class(*arguments).double().eval()
    for name, parameter in module.named_parameters():
        if name.endswith("scale"):
            parameter.data *= 1.7
    return module


def random_question() -> Question:
    """Of two questions; the second is padded in front."""
    mask = torch.tensor([[1, 1, 1], [0, 1, 1]])
    states = torch.randn(2, 3, HIDDEN, generator=torch.Generator().manual_seed(5), dtype=torch.double) * mask[..., None]
    return Question(states, states[:, -1], mask)


def random_rows(size: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    rows = torch.randn(2, 4, size, generator=torch.Generator().manual_seed(6), dtype=torch.double)
    return rows, torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])


# Layers and questions


def test_a_normalised_layer_has_one_scale_for_its_whole_matrix():
    layer = seeded(NormalizedLinear, 3, 2)
    x = torch.randn(3, dtype=torch.double)
    torch.testing.assert_close(layer(x), normalized(layer, x))
    assert layer.scale.shape == (1,)
    torch.testing.assert_close(layer.normalized().norm(), layer.scale[0])


def test_a_new_normalised_layer_is_an_ordinary_one():
    layer = NormalizedLinear(5, 4)
    torch.testing.assert_close(layer.normalized(), layer.weight.detach())


@pytest.mark.parametrize("side", ["front", "back"])
def test_padding_takes_no_step_of_the_questions_network_on_either_side(side):
    encoder = seeded(QuestionEncoder, small_config("up_down"))
    ids, mask = QUESTIONS, QUESTION_MASK
    if side == "back":
        ids, mask = ids.flip(1), mask.flip(1)
    question = encoder(ids, mask)
    cell = nn.GRUCell(4, HIDDEN).double()
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    cell.load_state_dict({name: getattr(encoder.gru, f"{name}_l0") for name in names})
    for row in range(3):
        state = torch.zeros(HIDDEN, dtype=torch.double)
        for step in range(5):
            if mask[row, step]:
                state = cell(encoder.embed_words(ids[row, step]), state)
                torch.testing.assert_close(question.states[row, step], state)
            else:
                assert not question.states[row, step].any()
        torch.testing.assert_close(question.last[row], state)


def test_bans_words_have_two_vectors_side_by_side_and_up_downs_one():
    assert QuestionEncoder(small_config("ban")).embed_words.weight.shape == (13, 8)
    assert QuestionEncoder(small_config("ban", tfidf_word_embeddings=False)).embed_words.weight.shape == (13, 4)
    assert QuestionEncoder(small_config("up_down")).embed_words.weight.shape == (13, 4)


# Up-Down


@pytest.mark.parametrize("flavour", ["product", "concat"])
def test_up_down_is_its_equations(flavour, dropped):
    head = seeded(UpDownAnswerHead, small_config("up_down", 0, attention_type=flavour, **rates(dropped)))
    drop, _, drop_hidden = factors(dropped)
    question, (rows, mask) = random_question(), random_rows()
    outputs = head(question, rows, mask)
    for b in range(2):
        q, real = question.last[b], int(mask[b].sum())
        scores = []
        for v in rows[b, :real]:
            if flavour == "product":
                compared = normalized(head.attention.rows, v).relu() * normalized(head.attention.question, q).relu()
                compared = drop * compared
            else:
                compared = normalized(head.attention.joint, torch.cat([v, q])).relu()
            scores.append(normalized(head.attention.score, compared))
        alpha = torch.cat(scores).softmax(dim=0)
        torch.testing.assert_close(outputs.weights[b, :real], alpha)
        assert not outputs.weights[b, real:].any()
        attended = sum(a * v for a, v in zip(alpha, rows[b], strict=False))
        joint = normalized(head.project_question, q).relu() * normalized(head.project_rows, attended).relu()
        torch.testing.assert_close(outputs.logits[b], classified(head, joint, drop_hidden))


# BAN


def test_bilinear_attention_is_its_equation_pair_by_pair(dropped):
    attention = seeded(BilinearAttention, small_config("ban", 0, **rates(dropped)))
    drop, drop_rows, _ = factors(dropped)
    words, (rows, _) = random_question().states, random_rows()
    logits = attention(rows, words)
    assert logits.shape == (2, 2, 3, 4)  # (batch, glimpses, words, rows)
    vectors = attention.glimpses.weight * attention.glimpses.scale / attention.glimpses.weight.norm()
    for b, g, j, i in np.ndindex(*logits.shape):
        v = drop_rows * normalized(attention.rows, drop * rows[b, i]).relu()
        q = normalized(attention.words, drop * words[b, j]).relu()
        assert len(v) == 3 * HIDDEN
        expected = sum(m * x * y for m, x, y in zip(vectors[g], v, q, strict=True)) + attention.glimpses.bias[g]
        torch.testing.assert_close(logits[b, g, j, i], expected)


def test_a_glimpse_adds_what_all_pairs_say_and_the_count_to_every_word(dropped):
    glimpse = seeded(Glimpse, small_config("ban", 0, **rates(dropped)))
    drop, _, _ = factors(dropped)
    words, (rows, _) = random_question().states, random_rows()
    weights, counts = torch.rand(2, 3, 4, dtype=torch.double), torch.rand(2, 4, dtype=torch.double)
    refined = glimpse(rows, words, weights, counts)
    for b in range(2):
        joint = torch.zeros(HIDDEN, dtype=torch.double)
        for j, i in np.ndindex(3, 4):
            v = normalized(glimpse.rows, drop * rows[b, i]).relu()
            q = normalized(glimpse.words, drop * words[b, j]).relu()
            joint += weights[b, j, i] * v * q
        change = normalized(glimpse.joint, drop * joint) + normalized(glimpse.count, counts[b]).relu()
        torch.testing.assert_close(refined[b], words[b] + change)


def test_ban_takes_its_glimpses_one_after_another_and_answers_from_the_sum_of_real_words(dropped):
    head = seeded(BilinearAttentionHead, small_config("ban", 0, **rates(dropped)))
    drop_hidden = factors(dropped)[2]
    question, (rows, mask) = random_question(), random_rows()
    boxes = torch.rand(2, 4, 2, 2, dtype=torch.double).sort(dim=2).values.flatten(2)
    outputs = head(question, rows, mask, boxes)
    maps = head.attention(rows, question.states)
    for b in range(2):
        real, first = int(mask[b].sum()), int(3 - question.mask[b].sum())
        words = question.states[b : b + 1, first:]
        for g in range(2):
            logits = maps[b, g, first:, :real]
            weights = logits.flatten().softmax(dim=0).view_as(logits)
            torch.testing.assert_close(outputs.weights[b, g, first:, :real], weights)
            counts = head.counter(logits.amax(dim=0)[None, None], mask[b, None, :real], boxes[b, None, :real])[:, 0]
            words = head.glimpses[g](rows[b : b + 1, :real], words, weights[None], counts)
        torch.testing.assert_close(outputs.logits[b], classified(head, words.sum(dim=1)[0], drop_hidden))


def test_attention_over_pairs_sums_to_one_over_real_ones_and_is_zero_elsewhere():
    head = seeded(BilinearAttentionHead, small_config("ban", 0, use_counter=False))
    question, (rows, mask) = random_question(), random_rows()
    weights = head(question, rows, mask).weights
    torch.testing.assert_close(weights.sum(dim=(2, 3)), torch.ones(2, 2, dtype=torch.double))
    real = (question.mask[:, None, :, None] * mask[:, None, None]).expand_as(weights)
    assert (weights[real == 1] > 0).all()
    assert not weights[real == 0].any()


class LargestTensor(TorchDispatchMode):
    """The largest number of elements of any tensor that is computed meanwhile."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, torch.Tensor):
                self.size = max(self.size, value.untyped_storage().size() // value.element_size())
        return result


def test_no_tensor_of_the_bilinear_map_is_as_large_as_pairs_times_width():
    batch, words, regions, width = 2, 5, 9, 8
    config = small_config("ban", 0, num_glimpses=4, question_hidden_size=width, use_counter=False)
    head = BilinearAttentionHead(config)
    states = torch.rand(batch, words, width)
    question = Question(states, states[:, -1], torch.ones(batch, words))
    with LargestTensor() as largest:
        logits = head(question, torch.rand(batch, regions, 6), torch.ones(batch, regions)).logits
        logits.sum().backward()
    assert largest.size < batch * words * regions * 3 * width  # of one glimpse; there are four


# The counter


@pytest.mark.parametrize("weights", [[1.0] * 4, [0.5, 2.0, 1.0, 0.1]], ids=["straight", "bent"])
def test_a_piecewise_function_goes_through_the_shares_of_its_weights(weights):
    function = PiecewiseLinear(4).double()
    function.weight.data = torch.tensor(weights, dtype=torch.double)
    x = torch.tensor([0, 0.1, 0.25, 0.3, 0.6, 0.75, 0.9, 1.0], dtype=torch.double)
    expected = np.interp(x, np.linspace(0, 1, 5), np.concatenate([[0], np.cumsum(weights)]) / sum(weights))
    torch.testing.assert_close(function(x), torch.from_numpy(expected))


def tiles(*columns: int) -> torch.Tensor:
    """Boxes side by side, a tenth of the image wide."""
    return torch.tensor([[[c / 10, 0.2, (c + 1) / 10, 0.8] for c in columns]])


# Logits of 40 are weights of 1, of -40 of 0; then every f is sure, and the count is whole.
@pytest.mark.parametrize(
    "columns, logits, count",
    [
        ((0, 2, 4, 6), [40, 40, 40, 40], 4),
        ((0, 2, 4, 6), [40, -40, 40, -40], 2),
        ((0, 2, 4, 6), [-40] * 4, 0),
        ((0, 0, 0, 6), [40] * 4, 2),  # three boxes on one object
        ((3, 3, 3, 3), [40] * 4, 1),
        ((0, 2), [40, 40], 2),  # fewer boxes than can be counted
        ((0, 1, 2, 3, 4, 5, 6, 7), [40] * 8, 5),  # more than can be counted
    ],
)
def test_the_counter_counts_objects_and_not_boxes(columns, logits, count):
    counts = Counter(5)(torch.tensor([[logits]]).float(), torch.ones(1, len(columns)), tiles(*columns))
    expected = torch.zeros(6)
    expected[count] = 1
    torch.testing.assert_close(counts[0, 0], expected, rtol=0, atol=1e-5)


def test_a_count_between_two_numbers_is_shared_between_them():
    # One box with weight 1/2: one loop of f_1(1/4) = 1/4, so the count is 1/2; the confidence is that of f_6 and f_7:
    # |1/2 - 1/2| of the box and |0 - 1/2| of its distance 0 from itself.
    counts = Counter(1)(torch.zeros(1, 1, 1), torch.ones(1, 1), tiles(0))
    torch.testing.assert_close(counts[0, 0], torch.tensor([0.25, 0.25]))


def test_the_counter_is_the_papers_equations_box_by_box():
    counter = seeded(Counter, 3)
    for f in counter.f:
        f.weight.data.uniform_(0.2, 1.5)
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(1, 1, 5, generator=generator, dtype=torch.double)
    boxes = torch.rand(1, 5, 2, 2, generator=generator, dtype=torch.double).sort(dim=2).values.flatten(2)
    f, best = counter.f, logits[0, 0].argsort(descending=True)[:3]
    a, b = logits[0, 0, best].sigmoid(), boxes[0, best]

    def distance(i: int, j: int) -> torch.Tensor:
        width = (torch.minimum(b[i, 2], b[j, 2]) - torch.maximum(b[i, 0], b[j, 0])).clamp(min=0)
        height = (torch.minimum(b[i, 3], b[j, 3]) - torch.maximum(b[i, 1], b[j, 1])).clamp(min=0)
        areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (b[i], b[j])]
        return 1 - width * height / (sum(areas) - width * height)

    def alike(i: int, j: int) -> torch.Tensor:
        product = f[2](1 - (a[i] - a[j]).abs())
        for k in range(3):
            edges = [f[3](a[k] * a[x]) * f[4](distance(k, x)) for x in (i, j)]
            product = product * f[2](1 - (edges[0] - edges[1]).abs())
        return product

    copies = [sum(alike(i, j) for j in range(3)) for i in range(3)]
    total = sum(f[0](a[i] ** 2) / copies[i] for i in range(3))
    for i, j in np.ndindex(3, 3):
        total = total + f[0](a[i] * a[j]) * f[1](distance(i, j)) / (copies[i] * copies[j])
    count = total.sqrt()
    sure = sum((f[5](x) - 0.5).abs() for x in a) / 3
    sure = sure + sum((f[6](distance(i, j)) - 0.5).abs() for i, j in np.ndindex(3, 3)) / 9
    expected = torch.zeros(4, dtype=torch.double)
    expected[int(count)], expected[int(count) + 1] = 1 - count % 1, count % 1
    counts = counter(logits, torch.ones(1, 5), boxes)[0, 0]
    torch.testing.assert_close(counts, expected * f[7](sure))


def test_masked_boxes_are_not_counted_wherever_they_are():
    counter = Counter(5)
    boxes, logits = tiles(0, 2, 4), torch.full((1, 1, 3), 40.0)
    masked = counter(logits, torch.tensor([[1, 0, 1]]), boxes)
    torch.testing.assert_close(masked, counter(logits[..., :2], torch.ones(1, 2), tiles(0, 4)))
