"""Each equation of the multi-level common space against a slow, literal version with loops and by hand."""

from math import exp, floor, log, sqrt
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from hf_grounding.modeling.configuration_multilevel import MultiLevelGroundingConfig
from hf_grounding.modeling.modeling_multilevel import (
    MultiLevelGroundingModel,
    TextMapping,
    VisualMapping,
    attended_similarity,
    attention_weights,
    box_loss,
    cosine_maps,
    gram_matrices,
    matching_loss,
    normalize,
    phrase_heatmaps,
    pool_words,
    resize_map,
)
from hf_grounding.modeling.text_encoders import (
    BiLSTMEncoder,
    LinearWordMix,
    SentenceMix,
    SoftmaxWordMix,
    pool_boundary,
    pool_mean,
)

CAPTIONS, WORDS, LEVELS, CELLS, WIDTH = 3, 4, 2, 9, 6
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])


def config(**settings: Any) -> MultiLevelGroundingConfig:
    sizes: dict[str, Any] = {"level_channels": [3, 5], "grid_size": 3, "hidden_size": WIDTH, "word_embedding_size": 4}
    return MultiLevelGroundingConfig(**{**sizes, "vocab_size": 11, **settings})


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(x: torch.Tensor) -> torch.Tensor:
    """`x / sqrt(max(sum x^2, 1e-12))` of one vector."""
    return x / sqrt(max(sum(value**2 for value in x.tolist()), 1e-12))


def texts_and_cells() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Words (C, T, D), sentences (C, D) and cells (B, L, N, D) in the common space."""
    words, sentences = F.normalize(random(CAPTIONS, WORDS, WIDTH), dim=-1), F.normalize(random(CAPTIONS, WIDTH), dim=-1)
    return words, sentences, F.normalize(random(CAPTIONS, LEVELS, CELLS, WIDTH, seed=1), dim=-1)


# Equations 1-10, literally


def literal_weights(units: torch.Tensor, cells: torch.Tensor, attention: str, axis: str) -> list[list[list[float]]]:
    """H[t][l][n] of the real `units` (T, D) of one caption in one image's `cells` (L, N, D), Eq. 1 or its ablation."""
    cosines = [[[float(unit @ cell) for cell in level] for level in cells] for unit in units]
    if attention == "relu":
        return [[[max(0.0, value) for value in row] for row in levels] for levels in cosines]
    weights = []
    for t, levels in enumerate(cosines):
        weights.append([])
        for i, row in enumerate(levels):
            totals = [
                sum(exp(other) for other in row) if axis == "regions" else sum(exp(word[i][n]) for word in cosines)
                for n in range(len(row))
            ]
            weights[t].append([exp(value) / total for value, total in zip(row, totals, strict=True)])
    return weights


def literal_scores(units: torch.Tensor, cells: torch.Tensor, normalized: bool = True, **attention: str):
    """R[t][l] of the units, Eq. 2-3 (or 6 without normalisation), with the attended vector formed; and H."""
    weights = literal_weights(units, cells, **{"attention": "relu", "axis": "regions", **attention})
    scores = []
    for unit_, levels in zip(units, weights, strict=True):
        attended = [
            sum(h * cell for h, cell in zip(row, level, strict=True)) for row, level in zip(levels, cells, strict=True)
        ]
        scores.append([float((unit(a) if normalized else a) @ unit_) for a in attended])
    return scores, weights


def literal_matching(logits: torch.Tensor, gamma: float, reduction: str) -> float:
    """Eq. 7-10 for one kind of score (captions, images)."""
    size, losses = len(logits), []
    for b in range(size):
        pair = exp(gamma * float(logits[b, b]))
        of_captions = pair / sum(exp(gamma * float(logits[c, b])) for c in range(size))
        of_images = pair / sum(exp(gamma * float(logits[b, i])) for i in range(size))
        losses.append(-(log(of_captions) + log(of_images)))
    return sum(losses) / (size if reduction == "mean" else 1)


VARIANTS = {
    "the paper": {},
    "sum over the batch": {"loss_reduction": "sum"},
    "other gammas": {"gamma_1": 2, "gamma_2": 3.5},
    "padded words count": {"mask_padding": False},
    "equation 6b as printed": {"normalize_sentence_attended": False},
    "softmax over regions": {"attention": "softmax"},
    "softmax over words": {"attention": "softmax", "softmax_axis": "words"},
    "softmax over words, padded words count": {"attention": "softmax", "softmax_axis": "words", "mask_padding": False},
    "softmax over regions, padded words count": {"attention": "softmax", "mask_padding": False},
    "words on one level": {"word_level": 1},
    "words and sentences on levels of their own": {"word_level": 1, "sentence_level": 0},
    "one level for both": {"word_level": 1, "sentence_level": 1},
    "images one at a time": {"attention_chunk_size": 1},
    "softmax over words, two images at a time": {
        "attention": "softmax",
        "softmax_axis": "words",
        "attention_chunk_size": 2,
    },
}


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS.keys())
def test_scores_heatmaps_and_loss_are_those_of_the_literal_equations(settings):
    words, sentences, cells = texts_and_cells()
    torch.manual_seed(0)
    cfg = config(**settings)
    model = MultiLevelGroundingModel(cfg).double()
    chosen = cells[:, model.levels]
    gram = gram_matrices(chosen)
    output = model.ground(words, sentences, chosen, gram, MASK)
    model.add_loss(output, words, sentences, chosen, gram, MASK)

    attention = {"attention": cfg.attention, "axis": cfg.softmax_axis}
    word_logits, sentence_logits = torch.zeros(CAPTIONS, CAPTIONS), torch.zeros(CAPTIONS, CAPTIONS)
    for caption in range(CAPTIONS):
        real = int(MASK[caption].sum())
        count = real if cfg.mask_padding else WORDS
        # Padding has no share in the softmax over words; where it counts, it counts as 0.
        shared = real if (cfg.attention, cfg.softmax_axis) == ("softmax", "words") else count
        for image in range(CAPTIONS):
            scores, heatmaps = literal_scores(words[caption, :shared], cells[image], **attention)
            best = [max(row) if cfg.word_level is None else row[cfg.word_level] for row in scores]
            best += [0.0] * (count - shared)
            word_logits[caption, image] = log(sum(exp(cfg.gamma_1 * r) for r in best)) / cfg.gamma_1
            normalized = cfg.normalize_sentence_attended
            ((row,), (whole,)) = literal_scores(sentences[caption, None], cells[image], normalized, **attention)
            best_level = row.index(max(row)) if cfg.sentence_level is None else cfg.sentence_level
            sentence_logits[caption, image] = row[best_level]
            if image != caption:
                continue
            assert output.sentence_levels[caption] == best_level
            assert output.sentence_scores[caption] == pytest.approx(row[best_level], abs=1e-9)
            expected = torch.tensor(whole[best_level]).view(3, 3)
            torch.testing.assert_close(output.sentence_heatmaps[caption].float(), expected)
            for t in range(real):
                level = scores[t].index(best[t])
                assert output.word_levels[caption, t] == level
                assert output.word_scores[caption, t] == pytest.approx(best[t], abs=1e-9)
                expected = torch.tensor(heatmaps[t][level]).view(3, 3)  # cell n is row n // M, column n % M
                torch.testing.assert_close(output.heatmaps[caption, t].float(), expected)

    torch.testing.assert_close(output.word_logits.float(), word_logits)
    torch.testing.assert_close(output.sentence_logits.float(), sentence_logits)
    expected = sum(literal_matching(x, cfg.gamma_2, cfg.loss_reduction) for x in (word_logits, sentence_logits))
    assert (output.loss - model.regulariser()).item() == pytest.approx(expected, rel=1e-5)


def test_heatmaps_and_scores_of_padded_words_are_zero():
    words, sentences, cells = texts_and_cells()
    output = MultiLevelGroundingModel(config()).double().ground(words, sentences, cells, gram_matrices(cells), MASK)
    padded = MASK == 0
    assert output.heatmaps[padded].abs().sum() == 0
    assert output.word_scores[padded].abs().sum() == 0


def test_scores_of_a_hand_worked_image():
    # One level, cells (1, 0) and (0, 1).
    # s = (.6, .8):  H = (.6, .8), sum H v = (.6, .8) = a,  R = .36 + .64 = 1
    # s = (-.6, .8): H = (0, .8),  sum H v = (0, .8),  a = (0, 1),  R = .8
    # s = (-1, 0):   H = (0, 0),   a = 0,  R = 0
    cells = torch.eye(2)[None]
    words = torch.tensor([[0.6, 0.8], [-0.6, 0.8], [-1.0, 0.0]])
    cosines = cosine_maps(words, cells)
    weights = attention_weights(cosines, "relu", "regions", None)
    torch.testing.assert_close(weights, torch.tensor([[[0.6, 0.8], [0.0, 0.8], [0.0, 0.0]]]))
    similarity, scores = attended_similarity(weights, cosines, cells @ cells.mT)
    torch.testing.assert_close(similarity, torch.tensor([[1.0, 0.64, 0.0]]))
    torch.testing.assert_close(scores, torch.tensor([[1.0, 0.8, 0.0]]))


def test_gram_matrices_have_the_gradient_of_the_product():
    cells = random(2, LEVELS, CELLS, WIDTH).requires_grad_()
    torch.testing.assert_close(gram_matrices(cells), cells @ cells.mT)
    assert torch.autograd.gradcheck(gram_matrices, cells[:1, :, :3, :2].detach().requires_grad_())


def test_the_first_level_wins_a_tie():
    words, sentences, cells = texts_and_cells()
    same = cells[:, :1].expand(-1, 2, -1, -1)
    output = MultiLevelGroundingModel(config()).double().ground(words, sentences, same, gram_matrices(same), MASK)
    assert output.word_levels.eq(0).all()
    assert output.sentence_levels.eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_an_image_without_anything_of_the_caption_scores_zero_with_finite_gradients(dtype):
    cells = torch.zeros(2, LEVELS, CELLS, WIDTH, dtype=dtype)
    cells[..., 0] = 1
    words = -cells[:, 0, :WORDS].clone()  # opposite to every cell
    words.requires_grad_()
    mask = torch.ones(2, WORDS, dtype=torch.long)
    model = MultiLevelGroundingModel(config()).to(dtype)
    gram = gram_matrices(cells)
    output = model.ground(words, words[:, 0], cells, gram, mask)
    model.add_loss(output, words, words[:, 0], cells, gram, mask)
    for zero in (output.heatmaps, output.word_scores, output.sentence_heatmaps, output.sentence_scores):
        assert zero.eq(0).all()
    assert phrase_heatmaps(output.heatmaps, output.word_scores, mask[:, None]).eq(0).all()
    output.loss.backward()
    assert output.loss.isfinite()
    assert words.grad.isfinite().all()


def test_normalize_gives_unit_vectors_and_keeps_zero():
    # (3, 4) has norm 5; the square of 1e-7 is below 1e-12, so it is divided by 1e-6
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-7, 0.0]])
    torch.testing.assert_close(normalize(x), torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.1, 0.0]]))


def test_normalize_in_float16_neither_overflows_nor_divides_by_zero():
    x = torch.tensor([[300.0, 400.0], [0.0, 0.0]], dtype=torch.float16)  # 300^2 is above the largest float16
    torch.testing.assert_close(normalize(x), torch.tensor([[0.6, 0.8], [0.0, 0.0]], dtype=torch.float16))


def test_pooling_over_words_by_hand():
    # one word of score .3: (1/5) log exp(1.5) = .3;  two of score 0: (1/5) log 2;  the masked .9 does not count
    scores = torch.tensor([[0.3, 0.9], [0.0, 0.0]])
    pooled = pool_words(scores, torch.tensor([[1, 0], [1, 1]]), 5.0)
    torch.testing.assert_close(pooled, torch.tensor([0.3, log(2) / 5]))


def test_matching_loss_by_hand():
    # exp(gamma R) is 3 on the diagonal and 1 beside it, so every probability is 3/4
    logits = torch.eye(2) * log(3) / 10
    assert float(matching_loss(logits, 10.0, "mean")) == pytest.approx(-2 * log(0.75))
    assert float(matching_loss(logits, 10.0, "sum")) == pytest.approx(-4 * log(0.75))


def test_regulariser_is_half_the_sum_of_squared_mapping_weights_without_biases():
    settings = {"l2_weight": 0.3, "visual_hidden_sizes": [4, WIDTH]}
    model = MultiLevelGroundingModel(config(**settings))
    visual = text = 0.0
    for name, parameter in model.named_parameters():
        torch.nn.init.constant_(parameter, 2.0)
        if "mapping" in name and name.endswith("weight"):
            total = sum(value**2 for value in parameter.flatten().tolist())
            visual, text = (visual + total, text) if name.startswith("visual") else (visual, text + total)
    # 4 x for each weight: levels 3-4-6 and 5-4-6, words and sentences 8-6-6
    assert visual == 4 * (3 * 4 + 4 * 6 + 5 * 4 + 4 * 6)
    assert text == 4 * 2 * (8 * 6 + 6 * 6)
    assert model.regulariser().item() == pytest.approx(0.3 / 2 * (visual + text))
    model.config.l2_scope = "visual"
    assert model.regulariser().item() == pytest.approx(0.3 / 2 * visual)


# The visual pathway


def source_coordinate(target: int, size_in: int, size_out: int, mode: str) -> float:
    if mode == "half_pixel":
        return max(0.0, (target + 0.5) * size_in / size_out - 0.5)
    if mode == "tf_legacy":
        return target * size_in / size_out
    return target * (size_in - 1) / (size_out - 1)


def literal_resize(x: torch.Tensor, size: int, mode: str) -> torch.Tensor:
    """One (height, width) map to size x size: every target cell is a weighted mean of four source cells."""
    height, width = x.shape
    resized = torch.zeros(size, size, dtype=x.dtype)
    for row in range(size):
        for column in range(size):
            y, x_ = source_coordinate(row, height, size, mode), source_coordinate(column, width, size, mode)
            for i, weight_y in ((floor(y), 1 - y % 1), (floor(y) + 1, y % 1)):
                for j, weight_x in ((floor(x_), 1 - x_ % 1), (floor(x_) + 1, x_ % 1)):
                    resized[row, column] += weight_y * weight_x * x[min(i, height - 1), min(j, width - 1)]
    return resized


MODES = ("half_pixel", "tf_legacy", "align_corners")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(7, 5), (2, 3), (4, 1), (1, 1), (4, 4)], ids=str)
def test_resize_is_the_literal_bilinear_mean_of_four_cells(shape, mode):
    x = random(2, 3, *shape)
    expected = torch.stack([literal_resize(channel, 4, mode) for image in x for channel in image])
    torch.testing.assert_close(resize_map(x, 4, mode).flatten(0, 1), expected)


@pytest.mark.parametrize(
    "mode, expected",
    [
        ("half_pixel", [0.0, 0.25, 0.75, 1.0]),  # sources -.25 (held at 0), .25, .75, 1.25 (held at 1)
        ("tf_legacy", [0.0, 0.5, 1.0, 1.0]),  # sources 0, .5, 1, 1.5 (held at 1)
        ("align_corners", [0.0, 1 / 3, 2 / 3, 1.0]),
    ],
)
def test_two_columns_resized_to_four_by_hand(mode, expected):
    resized = resize_map(torch.tensor([[[[0.0, 1.0]]]]), 4, mode)
    torch.testing.assert_close(resized[0, 0], torch.tensor([expected] * 4))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(5, 4), (2, 2), (3, 3), (2, 4)], ids=str)
@pytest.mark.parametrize("mapping", ["nonlinear", "linear", "unequal widths", "normalised features"])
def test_a_level_is_resized_then_convolved_whichever_of_the_two_runs_first(mapping, shape, mode):
    settings = {
        "nonlinear": {},
        "linear": {"visual_mapping": "linear"},
        "unequal widths": {"visual_hidden_sizes": [4, 7, WIDTH], "negative_slope": 0.1},
        "normalised features": {"normalize_features": True},
    }[mapping]
    torch.manual_seed(0)
    cfg = config(resize_mode=mode, **settings)
    level = VisualMapping(cfg, 5).double()
    feature_map = 3 * random(2, 5, *shape) + 1
    x = feature_map
    if cfg.normalize_features:  # over the channels of every cell, before anything else
        variance = x.var(dim=1, keepdim=True, unbiased=False)
        x = (x - x.mean(dim=1, keepdim=True)) / (variance + 1e-5).sqrt()
    x = torch.stack([torch.stack([literal_resize(channel, 3, mode) for channel in image]) for image in x])
    for layer in level.layers:
        x = F.conv2d(x, layer.weight[:, :, None, None], layer.bias)
        x = x if mapping == "linear" else torch.where(x > 0, x, cfg.negative_slope * x)
    expected = torch.stack([torch.stack([unit(image[:, n // 3, n % 3]) for n in range(9)]) for image in x])
    torch.testing.assert_close(level(feature_map), expected)
    assert len(level.layers) == (1 if mapping == "linear" else 3)


# The textual pathway


@pytest.mark.parametrize(
    "settings",
    [{}, {"final_activation": False}, {"normalize_every_layer": True}, {"text_mapping": "linear"}],
    ids=lambda settings: ", ".join(settings) or "default",
)
def test_text_mapping_is_two_activated_layers_or_one_linear_layer(settings):
    torch.manual_seed(0)
    cfg = config(**settings)
    mapping = TextMapping(cfg, 8).double()
    x = random(2, 3, 8)

    def activate(x):
        return torch.where(x > 0, x, 0.25 * x)

    first = mapping.layers[0]
    expected = x @ first.weight.T + first.bias
    if cfg.text_mapping == "nonlinear":
        expected = activate(expected)
        if cfg.normalize_every_layer:
            expected = F.normalize(expected, dim=-1)
        expected = expected @ mapping.layers[1].weight.T + mapping.layers[1].bias
        if cfg.final_activation:
            expected = activate(expected)
    torch.testing.assert_close(mapping(x), F.normalize(expected, dim=-1))
    assert len(mapping.layers) == (1 if cfg.text_mapping == "linear" else 2)


def literal_lstm(lstm: torch.nn.LSTM, words: torch.Tensor, suffix: str) -> list[torch.Tensor]:
    """States of one direction over `words` (T, width), in the order they are given."""
    weights = [getattr(lstm, f"{name}_l0{suffix}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    state = memory = torch.zeros(lstm.hidden_size, dtype=words.dtype)
    states = []
    for word in words:
        gates = weights[0] @ word + weights[2] + weights[1] @ state + weights[3]
        enter, forget, candidate, leave = gates.chunk(4)
        memory = torch.sigmoid(forget) * memory + torch.sigmoid(enter) * torch.tanh(candidate)
        state = torch.sigmoid(leave) * torch.tanh(memory)
        states.append(state)
    return states


def test_bilstm_layers_are_the_doubled_embedding_and_the_states_of_both_directions():
    torch.manual_seed(0)
    encoder = MultiLevelGroundingModel(config()).text_encoder.double()
    ids = torch.tensor([[2, 3, 4, 5], [6, 7, 0, 0]])
    doubled, states = encoder(ids, (ids > 0).long())
    words = encoder.embed_words.weight[ids]
    torch.testing.assert_close(doubled, torch.cat([words, words], dim=-1))
    for row, length in enumerate([4, 2]):
        forward = literal_lstm(encoder.lstm, words[row, :length], "")
        backward = literal_lstm(encoder.lstm, words[row, :length].flip(0), "_reverse")[::-1]
        expected = torch.stack([torch.cat(pair) for pair in zip(forward, backward, strict=True)])
        torch.testing.assert_close(states[row, :length], expected)
        assert states[row, length:].eq(0).all()


def test_the_forget_gates_of_a_new_bilstm_start_at_one():
    encoder = MultiLevelGroundingModel(config()).text_encoder
    assert isinstance(encoder, BiLSTMEncoder)
    for suffix in ("", "_reverse"):
        bias = getattr(encoder.lstm, f"bias_ih_l0{suffix}") + getattr(encoder.lstm, f"bias_hh_l0{suffix}")
        assert bias.tolist() == [0.0] * 4 + [1.0] * 4 + [0.0] * 8  # gates in, forget, candidate, out


def test_word_mixes_are_weighted_sums_of_layers():
    layers = random(3, 2, 4, 8)
    linear = LinearWordMix(3).double()
    torch.testing.assert_close(linear(layers), layers[0] + layers[1] + layers[2])  # weights 1, bias 0 at first
    weights = [0.5, -1.0, 2.0]
    with torch.no_grad():
        linear.weight.copy_(torch.tensor(weights))
        linear.bias.fill_(0.25)
    torch.testing.assert_close(linear(layers), sum(w * layer for w, layer in zip(weights, layers, strict=True)) + 0.25)

    softmax = SoftmaxWordMix(3).double()
    torch.testing.assert_close(softmax(layers), layers.mean(dim=0))
    with torch.no_grad():
        softmax.weight.copy_(torch.tensor(weights))
        softmax.scale.fill_(3.0)
    total = sum(exp(w) for w in weights)
    expected = 3 * sum(exp(w) / total * layer for w, layer in zip(weights, layers, strict=True))
    torch.testing.assert_close(softmax(layers), expected)


def test_without_a_scale_the_word_mix_has_only_its_weights():
    assert [name for name, _ in SoftmaxWordMix(3, with_scale=False).named_parameters()] == ["weight"]
    layers = random(3, 2, 4, 8)
    torch.testing.assert_close(SoftmaxWordMix(3, with_scale=False).double()(layers), layers.mean(dim=0))


def test_boundary_pooling_joins_backward_at_the_first_word_and_forward_at_the_last():
    # width 2: [forward, backward] = [10 + t, 20 + t]; the last real word of row 1 is t = 1
    layer = torch.tensor([[10.0 + t, 20.0 + t] for t in range(4)]).expand(1, 2, 4, 2)
    pooled = pool_boundary(layer, torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]))
    assert pooled.tolist() == [[[20.0, 13.0], [20.0, 11.0]]]


@pytest.mark.parametrize("dtype", [torch.long, torch.bool, torch.float32], ids=str)
def test_boundary_pooling_leaves_special_tokens_and_padding_of_either_side_out(dtype):
    # as [CLS] a b [SEP], [PAD] [PAD] a b, [PAD] [CLS] a [SEP]: states of words 1 and 2, of 2 and 3, of 2 alone
    layer = torch.tensor([[10.0 + t, 20.0 + t] for t in range(4)]).expand(2, 3, 4, 2)
    pooled = pool_boundary(layer, torch.tensor([[0, 1, 1, 0], [0, 0, 1, 1], [0, 0, 1, 0]]).to(dtype))
    assert pooled.tolist() == [[[21.0, 12.0], [22.0, 13.0], [22.0, 12.0]]] * 2


def test_mean_pooling_leaves_special_tokens_and_padding_out():
    layer = torch.tensor([[1.0], [3.0], [5.0], [100.0]]).expand(2, 1, 4, 1)
    assert pool_mean(layer, torch.tensor([[0, 1, 1, 0]])).flatten().tolist() == [4.0, 4.0]


def test_sentence_mix_is_a_weighted_sum_of_pooled_layers():
    layers, mix = random(2, 3, 4, 8), SentenceMix(2, "boundary").double()
    pooled = pool_boundary(layers, MASK)
    torch.testing.assert_close(mix(layers, MASK), 0.5 * pooled[0] + 0.5 * pooled[1])
    with torch.no_grad():
        mix.weight.copy_(torch.tensor([2.0, -3.0]))
    torch.testing.assert_close(mix(layers, MASK), 2 * pooled[0] - 3 * pooled[1])


# Phrases and boxes


def test_a_phrase_heatmap_is_the_mean_of_its_words_weighted_by_their_scores():
    heatmaps, scores = random(2, 4, 3, 3).abs(), random(2, 4).abs()
    scores[1] = torch.tensor([0.0, -0.1, 0.0, -0.5])
    mask = torch.tensor([[[1, 0, 1, 0], [0, 0, 0, 0]], [[1, 1, 1, 1], [0, 1, 0, 0]]])
    actual = phrase_heatmaps(heatmaps, scores, mask)
    expected = (scores[0, 0] * heatmaps[0, 0] + scores[0, 2] * heatmaps[0, 2]) / (scores[0, 0] + scores[0, 2])
    torch.testing.assert_close(actual[0, 0], expected)
    assert actual[0, 1].eq(0).all()  # padding
    assert actual[1].eq(0).all()  # no word of these phrases fits the image


def test_a_phrase_heatmap_by_hand():
    # scores .2 and .6 weigh 1/4 and 3/4: (1 + 3 * 5) / 4 = 4
    heatmaps = torch.tensor([1.0, 5.0]).view(1, 2, 1, 1)
    assert float(phrase_heatmaps(heatmaps, torch.tensor([[0.2, 0.6]]), torch.ones(1, 1, 2))) == pytest.approx(4.0)


def test_box_loss_is_the_log_share_of_the_sharpened_heatmap_inside_the_boxes():
    heatmaps, masks = random(2, 3, 3, 3).relu(), torch.zeros(2, 3, 3, 3)
    masks[0, 0, :2, 1] = 1
    masks[0, 2, 2] = 0.25
    masks[1, 1, 0, 0] = 1
    losses = []
    for caption, phrase in ((0, 0), (0, 2), (1, 1)):  # the others have no boxes
        warmth = [exp(7.0 * float(value)) for value in heatmaps[caption, phrase].flatten()]
        inside = masks[caption, phrase].flatten().tolist()
        losses.append(-log(sum(w * share for w, share in zip(warmth, inside, strict=True)) / sum(warmth)))
    assert float(box_loss(heatmaps, masks, 7.0)) == pytest.approx(sum(losses) / 3)


def test_box_loss_by_hand_is_finite_outside_and_zero_without_boxes():
    # a flat heatmap has a quarter of its share in one of four cells, at any sharpness
    flat, box = torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)
    box[..., 0, 0] = 1
    assert float(box_loss(flat, box, 15.0)) == pytest.approx(log(4))
    elsewhere = torch.tensor([[[[0.0, 0.0], [0.0, 100.0]]]])
    assert box_loss(elsewhere, box, 15.0).isfinite()
    assert float(box_loss(flat, torch.zeros_like(box), 15.0)) == 0.0


def test_box_supervision_adds_the_weighted_box_loss_of_the_phrase_heatmaps():
    words, sentences, cells = texts_and_cells()
    mask = torch.zeros(CAPTIONS, 1, WORDS)
    mask[:, 0, :2] = 1
    boxes = torch.zeros(CAPTIONS, 1, 3, 3, dtype=torch.float64)
    boxes[:, :, 0] = 1
    losses = []
    for settings in ({}, {"supervision": "boxes", "box_loss_weight": 0.5, "box_temperature": 4.0}):
        torch.manual_seed(0)
        model = MultiLevelGroundingModel(config(**settings)).double()
        gram = gram_matrices(cells)
        output = model.ground(words, sentences, cells, gram, MASK)
        model.add_loss(output, words, sentences, cells, gram, MASK, mask, boxes)
        losses.append(output.loss.item())
    expected = float(box_loss(phrase_heatmaps(output.heatmaps, output.word_scores, mask), boxes, 4.0))
    assert losses[1] - losses[0] == pytest.approx(0.5 * expected)
