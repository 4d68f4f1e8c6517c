"""Each decoder against a slow, literal version: one caption and one word at a time, from the tables of the paper's
baselines and the equations of Up-Down; properties of the transformer; the cache of recurrent states."""

import pytest
import torch
from transformers import GenerationConfig

from hf_grounding.modeling.caption_decoders import UpDownDecoder
from hf_grounding.modeling.modeling_mia import MIAForCaptioning
from hf_grounding.modeling.recurrent_cache import RecurrentCache
from tests.captioners import inputs_of, small_captioner, small_inputs

CAPTIONS = torch.tensor([[1, 5, 9, 4], [1, 4, 12, 6], [1, 8, 8, 3]])


def literal_lstm(x, h, c, w_ih, w_hh, bias):
    """`W_ih x + W_hh h + b`, in the order input, forget, cell, output."""
    i, f, g, o = (w_ih @ x + w_hh @ h + bias).chunk(4)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def literal_attention(layer, h, rows):
    """`e_i = w_a . tanh(W_x x_i + W_h h)`, softmax over i, then the weighted sum."""
    scores = torch.stack([layer.score(torch.tanh(layer.rows(x) + layer.state(h)))[0] for x in rows])
    weights = scores.exp() / scores.exp().sum()
    return sum(weight * x for weight, x in zip(weights, rows, strict=True)), weights


def literal_baseline(model, V, T, words):
    """Logits and weights of the four captioners of the official code; "regional" is the first over other features."""
    decoder, name = model.decoder, model.config.decoder_type.replace("visual_regional", "visual")
    weights_of_lstm = (decoder.lstm_words.weight, decoder.lstm_states.weight, decoder.lstm_words.bias)
    v_a = None if V is None or name == "concept_attention" else decoder.project_visual(sum(V) / len(V))
    t_a = None if T is None else sum(T) / len(T)
    h = c = torch.zeros(model.config.hidden_size)
    if name == "visual_condition":
        h, c = literal_lstm(t_a, h, c, *weights_of_lstm)
    if name == "concept_condition":
        h, c = literal_lstm(v_a, h, c, *weights_of_lstm)
    logits, attentions = [], []
    for word in words:
        added = v_a if name in ("visual_attention", "visual_condition") else t_a
        h, c = literal_lstm(decoder.embed_words.weight[word] + added, h, c, *weights_of_lstm)
        output = h
        if name in ("visual_attention", "concept_attention"):
            attended, weights = literal_attention(decoder.attention, h, V if name == "visual_attention" else T)
            output = attended + h
            attentions.append(weights)
        logits.append(model.output(output))
    return torch.stack(logits), torch.stack(attentions) if attentions else None


def literal_up_down(model, V, T, words):
    """The equations as they stand, each LSTM with one matrix for all that it is given."""
    decoder: UpDownDecoder = model.decoder
    size = decoder.width
    last, of_h1 = decoder.attention_states.weight.split(size, dim=1)
    attention_lstm = (
        torch.cat([last, decoder.attention_image.weight, decoder.attention_words.weight], dim=1),  # [h2; vbar; x_t]
        of_h1,
        decoder.attention_words.bias,
    )
    attended, of_h1, of_h2 = decoder.language_states.weight.split(size, dim=1)
    language_lstm = (torch.cat([attended, of_h1], dim=1), of_h2, decoder.language_states.bias)  # [vhat; h1]
    v = [decoder.embed_regions(x).relu() for x in V]
    v_bar = decoder.embed_global(sum(V) / len(V)).relu()
    h1 = c1 = h2 = c2 = torch.zeros(size)
    logits, attentions = [], []
    for word in words:
        x = decoder.embed_words.weight[word].relu()
        h1, c1 = literal_lstm(torch.cat([h2, v_bar, x]), h1, c1, *attention_lstm)
        v_hat, weights = literal_attention(decoder.attention, h1, v)
        h2, c2 = literal_lstm(torch.cat([v_hat, h1]), h2, c2, *language_lstm)
        logits.append(model.output(h2))
        attentions.append(weights)
    return torch.stack(logits), torch.stack(attentions)


LITERAL = [
    *[(name, 0, "both") for name in ("visual_attention", "concept_attention", "visual_condition", "up_down")],
    *[(name, 0, "both") for name in ("concept_condition", "visual_regional_attention")],
    *[(name, 2, output) for name in ("visual_attention", "up_down") for output in ("both", "visual")],
    *[("concept_attention", 2, output) for output in ("both", "textual")],
    *[(name, 2, o) for name in ("visual_condition", "concept_condition") for o in ("both", "visual", "textual")],
]


@pytest.mark.parametrize("name, iterations, output", LITERAL)
@torch.no_grad()
def test_logits_and_weights_are_those_of_the_equations(name, iterations, output):
    model = small_captioner(name, iterations, mia_output=output)
    outputs = model(**small_inputs(), decoder_input_ids=CAPTIONS, output_attentions=True)
    literal = literal_up_down if name == "up_down" else literal_baseline
    for image, words in enumerate(CAPTIONS.tolist()):
        rows = model.model(**inputs_of(image))
        V = None if rows.visual_states is None else list(rows.visual_states[0])
        T = None if rows.textual_states is None else list(rows.textual_states[rows.textual_mask == 1])
        logits, weights = literal(model, V, T, words)
        torch.testing.assert_close(outputs.logits[image], logits, rtol=1e-4, atol=1e-5)
        if weights is None:
            assert outputs.cross_attentions == ()
        else:
            (actual,) = outputs.cross_attentions
            torch.testing.assert_close(actual[image, 0, :, : weights.shape[1]], weights, rtol=1e-4, atol=1e-6)
            assert actual[image, 0, :, weights.shape[1] :].eq(0).all()


def test_the_regional_captioner_is_the_visual_one_over_other_features():
    regional, visual = small_captioner("visual_regional_attention"), small_captioner("visual_attention")
    inputs = {**small_inputs(), "decoder_input_ids": CAPTIONS}
    torch.testing.assert_close(regional(**inputs).logits, visual(**inputs).logits, rtol=1e-5, atol=1e-6)


# The transformer


@torch.no_grad()
def test_the_transformer_sees_no_later_word():
    model = small_captioner("transformer")
    expected = model(**small_inputs(), decoder_input_ids=CAPTIONS).logits
    changed = CAPTIONS.clone()
    changed[:, 2] = 10
    actual = model(**small_inputs(), decoder_input_ids=changed).logits
    torch.testing.assert_close(actual[:, :2], expected[:, :2])
    assert (actual[:, 2:] - expected[:, 2:]).abs().amax(dim=(0, 2)).min() > 0.001


@torch.no_grad()
def test_the_transformer_knows_the_order_of_words_but_not_of_regions():
    model = small_captioner("transformer", 0)
    inputs, words = inputs_of(0), torch.tensor([[1, 5, 9, 4]])
    expected = model(**inputs, decoder_input_ids=words, output_attentions=True)
    order = torch.tensor([2, 0, 3, 1])
    inputs["region_features"] = inputs["region_features"][:, order]
    shuffled = model(**inputs, decoder_input_ids=words, output_attentions=True)
    torch.testing.assert_close(shuffled.logits, expected.logits, rtol=1e-4, atol=1e-5)
    weights = expected.cross_attentions[0][..., order]
    torch.testing.assert_close(shuffled.cross_attentions[0], weights, rtol=1e-4, atol=1e-6)
    swapped = model(**inputs, decoder_input_ids=words[:, [0, 2, 1, 3]])
    assert (swapped.logits[:, 3] - expected.logits[:, 3]).abs().max() > 0.001


def test_the_transformers_positions_are_sinusoids_that_saving_keeps(tmp_path):
    model = small_captioner("transformer", 0, max_position_embeddings=9)
    model.save_pretrained(tmp_path)
    wavelengths = 10000 ** (torch.arange(4) * 2 / 8)
    angles = torch.arange(9)[:, None] / wavelengths
    for each in (model, MIAForCaptioning.from_pretrained(tmp_path)):
        positions = each.decoder.layers.embed_positions.weight
        torch.testing.assert_close(positions, torch.cat([angles.sin(), angles.cos()], dim=1))
        assert not positions.requires_grad


def test_a_caption_longer_than_the_transformers_positions_is_refused():
    model = small_captioner("transformer", 0, max_position_embeddings=3)
    with pytest.raises(ValueError, match=r"may have 3 words \(`config.max_position_embeddings`\), got 4"):
        model(**small_inputs(), decoder_input_ids=CAPTIONS)
    with pytest.raises(ValueError, match="may have 3 words"):
        model.generate(**small_inputs(), generation_config=GenerationConfig(min_new_tokens=8, max_new_tokens=8))


@pytest.mark.parametrize("name", ["visual_attention", "up_down", "transformer"])
def test_the_mean_and_the_weights_leave_padded_regions_out_even_where_all_are_padding(name):
    model, inputs = small_captioner(name, 0), small_inputs()
    inputs["region_mask"][2] = 0
    outputs = model(**inputs, decoder_input_ids=CAPTIONS)
    assert outputs.logits[:2].isfinite().all()
    torch.testing.assert_close(
        outputs.logits[:2], model(**small_inputs(), decoder_input_ids=CAPTIONS).logits[:2], rtol=1e-5, atol=1e-6
    )


def test_words_and_image_of_up_down_are_multiplied_outside_the_loop():
    model = small_captioner("up_down", 0)
    calls = {"attention_words": 0, "attention_image": 0, "attention.rows": 0, "attention.state": 0}

    def count(name):
        def hook(*_):
            calls[name] += 1

        return hook

    for name in calls:
        model.decoder.get_submodule(name).register_forward_hook(count(name))
    model(**small_inputs(), decoder_input_ids=CAPTIONS)
    assert calls == {"attention_words": 1, "attention_image": 1, "attention.rows": 1, "attention.state": 4}


# The cache


def filled_cache() -> RecurrentCache:
    cache = RecurrentCache(2)
    for number, layer in enumerate(cache.layers):
        states = torch.arange(3.0)[:, None] + 10 * number
        layer.update(states, states + 100, 4)
    return cache


@pytest.mark.parametrize(
    "change, rows",
    [
        (lambda cache: cache.reorder_cache(torch.tensor([2, 2, 0])), [2, 2, 0]),
        (lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2]),
        (lambda cache: cache.batch_select_indices(torch.tensor([1])), [1]),
    ],
    ids=["reorder", "repeat", "select"],
)
def test_the_cache_moves_both_states_of_all_lstms(change, rows):
    cache = filled_cache()
    assert cache.get_seq_length() == 4
    change(cache)
    for number, layer in enumerate(cache.layers):
        hidden, cell = layer.read(torch.zeros(len(rows)), 1)
        assert hidden.flatten().tolist() == [row + 10 * number for row in rows]
        assert cell.flatten().tolist() == [row + 10 * number + 100 for row in rows]
    assert cache.get_seq_length() == 4


def test_a_new_cache_and_one_that_was_reset_stand_for_zeros():
    emptied = filled_cache()
    emptied.reset()
    for cache in (RecurrentCache(2), emptied):
        cache.reorder_cache(torch.tensor([1, 0]))
        cache.batch_repeat_interleave(2)
        assert cache.get_seq_length() == 0
        for layer in cache.layers:
            hidden, cell = layer.read(torch.ones(2, 5), 3)
            assert hidden.eq(0).all()
            assert cell.eq(0).all()
            assert hidden.shape == cell.shape == (2, 3)


@pytest.mark.parametrize("name", ["visual_attention", "concept_condition", "up_down", "transformer"])
@torch.no_grad()
def test_words_may_come_in_any_pieces(name):
    model, inputs = small_captioner(name), small_inputs()
    expected = model(**inputs, decoder_input_ids=CAPTIONS)
    cache, logits = None, []
    for piece in CAPTIONS.split([2, 1, 1], dim=1):
        outputs = model(**inputs, decoder_input_ids=piece, past_key_values=cache, use_cache=True)
        cache = outputs.past_key_values
        logits.append(outputs.logits)
    torch.testing.assert_close(torch.cat(logits, dim=1), expected.logits, rtol=1e-4, atol=1e-5)
    assert cache.get_seq_length() == CAPTIONS.shape[1]
    assert expected.past_key_values is None
