"""`generate` of every captioner: greedy against a loop by hand, with and without cache, beams, sampling and penalties;
what each word is about, along the beam that was chosen."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from transformers import ResNetConfig

from hf_grounding import MIAForCaptioning
from tests.captioners import CASE_IDS, CASES, END, PAD, REGION_MASK, START, inputs_of, small_captioner, small_inputs

LENGTH = 6
MODES = [("visual_condition", 2), ("up_down", 2), ("transformer", 0), ("ss_attention", 0)]


def model_of(name: str, iterations: int, **settings: Any) -> MIAForCaptioning:
    """Which ends its captions at different lengths."""
    model = small_captioner(name, iterations, **settings)
    model.output.bias.data[END] += 1
    return model


@torch.no_grad()
def greedy_by_hand(model: MIAForCaptioning, inputs: dict[str, torch.Tensor], penalty: float = 1.0) -> torch.Tensor:
    """The most probable word each time, from the whole caption so far; padding behind its end."""
    words = torch.full((3, 1), START)
    ended = torch.zeros(3, dtype=torch.bool)
    while words.shape[1] <= LENGTH and not ended.all():
        scores = model(**inputs, decoder_input_ids=words).logits[:, -1]
        for row, said in enumerate(words.tolist()):
            for word in set(said):
                scores[row, word] *= penalty if scores[row, word] < 0 else 1 / penalty
        best = scores.argmax(dim=-1).masked_fill(ended, PAD)
        words = torch.cat([words, best[:, None]], dim=1)
        ended |= best == END
    return words


@pytest.mark.parametrize("name, iterations", CASES, ids=CASE_IDS)
def test_one_beam_is_the_most_probable_word_each_time_with_and_without_cache(name, iterations):
    model, inputs = model_of(name, iterations), small_inputs(name)
    expected = greedy_by_hand(model, inputs)
    for use_cache in (True, False):
        found = model.generate(**inputs, num_beams=1, do_sample=False, max_new_tokens=LENGTH, use_cache=use_cache)
        assert torch.equal(found, expected)


@pytest.mark.parametrize("name, iterations", CASES, ids=CASE_IDS)
def test_beams_of_a_batch_are_those_of_each_image_alone_with_and_without_cache(name, iterations):
    model = model_of(name, iterations)
    options = {"num_beams": 3, "max_new_tokens": LENGTH, "return_dict_in_generate": True, "output_scores": True}
    found = model.generate(**small_inputs(name), **options)
    uncached = model.generate(**small_inputs(name), **options, use_cache=False)
    assert torch.equal(uncached.sequences, found.sequences)
    torch.testing.assert_close(uncached.sequences_scores, found.sequences_scores, rtol=1e-4, atol=1e-5)
    for image in range(3):
        alone = model.generate(**inputs_of(image, name), **options)
        length = alone.sequences.shape[1]
        assert torch.equal(found.sequences[image, :length], alone.sequences[0])
        assert not written(found.sequences)[image, length - 1 :].any()
        torch.testing.assert_close(found.sequences_scores[image], alone.sequences_scores[0], rtol=1e-4, atol=1e-5)


# What each word is about


def written(sequences: torch.Tensor) -> torch.Tensor:
    """True for each token of `sequences[:, 1:]` up to a caption's end, and at it."""
    ends = (sequences[:, 1:] == END).long()
    return ends.cumsum(dim=1) - ends == 0


@torch.no_grad()
def taught(
    model: MIAForCaptioning, inputs: dict[str, torch.Tensor], sequences: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Weights of regions and concepts when the model is given the words, and not its own beams."""
    index = torch.arange(3).repeat_interleave(len(sequences) // 3)
    words = {"decoder_input_ids": sequences[:, :-1], "image_index": index, "output_attentions": True}
    outputs = model(**inputs, **words)
    weights = outputs.cross_attentions[0].mean(dim=1).masked_fill(~written(sequences)[..., None], 0)
    return {"visual": weights, "textual": weights}


ABOUT = [
    ("visual_attention", 0, "both", ["visual"]),
    ("concept_attention", 0, "both", ["textual"]),
    ("visual_regional_attention", 0, "both", ["visual"]),
    ("up_down", 0, "both", ["visual"]),
    ("transformer", 0, "both", ["visual"]),
    ("visual_condition", 0, "both", []),
    ("concept_condition", 0, "both", []),
    ("visual_attention", 2, "both", ["visual", "textual"]),
    ("concept_attention", 2, "both", ["visual", "textual"]),
    ("visual_regional_attention", 2, "both", ["visual", "textual"]),
    ("up_down", 2, "both", ["visual", "textual"]),
    ("transformer", 2, "both", ["visual", "textual"]),
    ("visual_condition", 2, "both", []),
    ("concept_condition", 2, "both", []),
    ("visual_attention", 2, "visual", ["visual"]),
    ("up_down", 2, "visual", ["visual"]),
    ("transformer", 2, "visual", ["visual"]),
    ("concept_attention", 2, "textual", ["textual"]),
    ("visual_condition", 2, "textual", []),
    ("ss_attention", 0, "both", ["visual"]),
    ("ss_attention", 2, "both", ["visual", "textual"]),
]
SEARCHES = {
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "greedy": {"num_beams": 1},
    "samples": {"do_sample": True, "num_return_sequences": 2},
    "uncached": {"num_beams": 3, "num_return_sequences": 2, "use_cache": False},
}


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("name, iterations, output, kinds", ABOUT)
def test_each_word_says_which_regions_and_concepts_it_is_about_along_its_beam(name, iterations, output, kinds, search):
    model = model_of(name, iterations, mia_output=output)
    options = {"max_new_tokens": LENGTH, "return_dict_in_generate": True, "output_attentions": True}
    torch.manual_seed(0)
    found = model.generate(**small_inputs(name), **options, **SEARCHES[search])
    names = {"visual": "region_attentions", "textual": "concept_attentions"}
    assert {name for name in names.values() if name in found} == {names[kind] for kind in kinds}
    expected = taught(model, small_inputs(name), found.sequences) if kinds else {}
    for kind in kinds:
        actual = found[names[kind]]
        assert actual.shape == (len(found.sequences), found.sequences.shape[1] - 1, 4)
        torch.testing.assert_close(actual, expected[kind], rtol=1e-4, atol=1e-6)
        total = 1.5 if name == "ss_attention" else 1.0  # 1 + lambda
        torch.testing.assert_close(actual.sum(dim=-1), total * written(found.sequences).float())
    if "visual" in kinds:
        real = REGION_MASK.repeat_interleave(len(found.sequences) // 3, dim=0)
        assert found.region_attentions.masked_select((real == 0)[:, None]).eq(0).all()


def test_the_captions_of_those_tests_end_at_different_words():
    found = model_of("up_down", 2).generate(
        **small_inputs(), num_beams=3, num_return_sequences=2, max_new_tokens=LENGTH
    )
    assert len(set(written(found).sum(dim=1).tolist())) > 1


def test_attentions_are_only_there_when_asked_for():
    found = model_of("up_down", 2).generate(**small_inputs(), max_new_tokens=3, return_dict_in_generate=True)
    assert "region_attentions" not in found
    assert "concept_attentions" not in found


# Modes of generation


@pytest.mark.parametrize("name, iterations", MODES)
@pytest.mark.parametrize("beams", [1, 3])
def test_sampling_repeats_with_its_seed(name, iterations, beams):
    model = model_of(name, iterations)
    options = {"do_sample": True, "num_beams": beams, "num_return_sequences": 3, "max_new_tokens": LENGTH}

    def sample(seed):
        torch.manual_seed(seed)
        return model.generate(**small_inputs(name), **options)

    assert torch.equal(sample(0), sample(0))
    assert not all(torch.equal(sample(0), sample(seed)) for seed in (1, 2))


def test_samples_have_the_models_probabilities():
    model, inputs = model_of("up_down", 2), inputs_of(0)
    expected = model(**inputs, decoder_input_ids=torch.tensor([[START]])).logits[0, 0].softmax(dim=-1)
    torch.manual_seed(0)
    samples = model.generate(**inputs, do_sample=True, num_return_sequences=2000, max_new_tokens=1, top_k=0)
    frequencies = samples[:, 1].bincount(minlength=13) / 2000
    torch.testing.assert_close(frequencies, expected, rtol=0, atol=0.04)


@pytest.mark.parametrize("name, iterations", MODES)
def test_scores_of_words_along_a_beam_are_their_log_probabilities(name, iterations):
    model = model_of(name, iterations)
    options = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": LENGTH, "length_penalty": 0.0}
    found = model.generate(**small_inputs(name), **options, return_dict_in_generate=True, output_scores=True)
    scores = model.compute_transition_scores(found.sequences, found.scores, found.beam_indices)
    torch.testing.assert_close(scores.sum(dim=1), found.sequences_scores, rtol=1e-4, atol=1e-5)
    index = torch.arange(3).repeat_interleave(2)
    with torch.no_grad():
        logits = model(**small_inputs(name), decoder_input_ids=found.sequences[:, :-1], image_index=index).logits
    expected = logits.log_softmax(dim=-1).gather(2, found.sequences[:, 1:, None])[..., 0]
    torch.testing.assert_close(scores, expected * written(found.sequences), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name, iterations", MODES)
def test_a_repetition_penalty_is_that_of_a_loop_by_hand(name, iterations):
    model, inputs = model_of(name, iterations), small_inputs(name)
    found = model.generate(**inputs, num_beams=1, do_sample=False, max_new_tokens=LENGTH, repetition_penalty=3.0)
    assert torch.equal(found, greedy_by_hand(model, inputs, penalty=3.0))


@pytest.mark.parametrize("beams", [1, 3])
def test_no_two_words_follow_each_other_twice_if_forbidden(beams):
    model = small_captioner("up_down", 2)
    model.output.bias.data[5] += 3
    options = {"num_beams": beams, "do_sample": False, "max_new_tokens": 9}

    def repeats(**more):
        captions = model.generate(**small_inputs(), **options, **more).tolist()
        pairs = [[pair for pair in pairwise(words) if PAD not in pair] for words in captions]
        return any(len(set(each)) < len(each) for each in pairs)

    assert repeats()
    assert not repeats(no_repeat_ngram_size=2)


@pytest.mark.parametrize("beams", [1, 3])
@torch.no_grad()
def test_captions_of_photos_are_those_of_the_cells_of_their_map(beams):
    backbone = ResNetConfig(embedding_size=4, hidden_sizes=[4, 6], depths=[1, 1], layer_type="basic")
    model, inputs = model_of("visual_attention", 2, backbone_config=backbone), small_inputs()
    photos = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    (cells,) = model.model.backbone(photos)
    inputs |= {"region_features": cells.flatten(2).mT, "region_mask": torch.ones(3, 4, dtype=torch.long)}
    options = {"num_beams": beams, "max_new_tokens": LENGTH, "return_dict_in_generate": True, "output_logits": True}
    expected = model.generate(**inputs, **options)
    concepts = {name: inputs[name] for name in ("concept_ids", "concept_mask")}
    found, others = (model.generate(pixel_values=each, **concepts, **options) for each in (photos, photos.flip(0)))
    assert torch.equal(found.sequences, expected.sequences)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-5)
    assert (others.logits[0] - expected.logits[0]).abs().max() > 0.01
    with pytest.raises(ValueError, match="either `region_features` or `pixel_values`, not both"):
        model.generate(pixel_values=photos, **inputs, **options)


@pytest.mark.parametrize("name, iterations", CASES, ids=CASE_IDS)
def test_captions_can_be_written_in_bfloat16(name, iterations):
    model, inputs = model_of(name, iterations).bfloat16(), small_inputs(name)
    inputs["region_features"] = inputs["region_features"].bfloat16()
    options = {"num_beams": 2, "max_new_tokens": LENGTH, "return_dict_in_generate": True, "output_scores": True}
    found = model.generate(**inputs, **options, output_logits=True)
    assert all(logits.isfinite().all() for logits in found.logits)
    assert found.sequences_scores.isfinite().all()
    nearly = model_of(name, iterations)(**small_inputs(name), decoder_input_ids=torch.full((3, 1), START)).logits[:, 0]
    # bfloat16 keeps 8 bits; the first beam of each image stands for it
    torch.testing.assert_close(found.logits[0][::2].float(), nearly, rtol=0.1, atol=0.3)


def test_a_model_whose_start_end_and_padding_are_one_word_ends_its_captions():
    ids = dict.fromkeys(["pad_token_id", "bos_token_id", "eos_token_id"], 0)
    model = small_captioner("up_down", 2, **ids)
    model.output.bias.data[0] += 2
    found = model.generate(
        **small_inputs(), max_new_tokens=8, return_dict_in_generate=True, output_attentions=True, num_beams=1
    )
    words = found.sequences[:, 1:]
    for caption, weights in zip(words.tolist(), found.region_attentions, strict=True):
        length = caption.index(0) + 1
        assert caption[length:] == [0] * (len(caption) - length)
        assert weights[:length].gt(0).any(dim=-1).all()
        assert weights[length:].eq(0).all()
