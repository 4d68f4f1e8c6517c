"""Captioners against numbers of the original codes; each file's manifest says how they were made."""

from typing import Any

import pytest
import torch

from hf_grounding.modeling.configuration_mia import MIAConfig
from hf_grounding.modeling.convert_mia import official_captioner_state_dict, up_down_state_dict
from hf_grounding.modeling.modeling_mia import MIAForCaptioning, MIAModelOutput
from tests.golden import Golden

BASELINES = {
    "VisualAttention": "visual_attention",
    "ConceptAttention": "concept_attention",
    "VisualCondition": "visual_condition",
    "ConceptCondition": "concept_condition",
}


@pytest.fixture(params=["float64", "float32"])
def precision(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def baselines(golden_dir, precision) -> Golden:
    return Golden(golden_dir, "mia_caption_baselines_a", precision)


def load(config: MIAConfig, state: dict[str, torch.Tensor], dtype: torch.dtype) -> MIAForCaptioning:
    model = MIAForCaptioning(config).eval().to(dtype)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.startswith("model.") for name in missing), missing
    return model


def released(golden: Golden, official: str, **settings: Any) -> tuple[MIAForCaptioning, Any]:
    """One of the released captioners, and its memory of the golden images' rows."""
    sizes = golden.settings
    config = MIAConfig(
        decoder_type=BASELINES[official],
        mia_iterations=0,
        vocab_size=sizes["vocab"],
        feature_dim=sizes["hidden"],
        hidden_size=sizes["hidden"],
        embedding_size=sizes["hidden"],
        attention_hidden_size=sizes["attention_hidden"],
        **settings,
    )
    model = load(config, official_captioner_state_dict(golden.official_state(), config), golden.dtype)
    mask = torch.ones(golden["V"].shape[:2], dtype=torch.long)
    rows = {"visual_states": golden["V"], "textual_states": golden["T"], "visual_mask": mask, "textual_mask": mask}
    return model, model.decoder.memory(MIAModelOutput(**rows))


@pytest.mark.parametrize("official", BASELINES)
def test_the_released_captioners_give_their_logits(baselines, official):
    model, memory = released(baselines, official)
    outputs = model(encoder_outputs=memory, decoder_input_ids=baselines["captions"][:, :-1])
    baselines.check(f"logits/{official}", outputs.logits)


@pytest.mark.parametrize(("smoothing", "name"), [(0.0, "cross_entropy_nonpad"), (0.1, "label_smoothing_0.1")])
def test_the_loss_is_the_official_one(baselines, smoothing, name):
    model, memory = released(baselines, "VisualAttention", label_smoothing=smoothing, dropout=0.0)
    captions = baselines["captions"]
    labels = captions[:, 1:].masked_fill(captions[:, 1:] == 0, -100)
    assert (labels == -100).any()
    for training in (False, True):  # a training step leaves captions out that have ended
        inputs = {"encoder_outputs": memory, "decoder_input_ids": captions[:, :-1], "labels": labels}
        baselines.check(f"loss/{name}", model.train(training)(**inputs).loss[None])


def test_an_unknown_name_in_a_checkpoint_is_named(baselines):
    state = {**baselines.official_state(), "attention.affine_y.weight": torch.zeros(1)}
    del state["mlp.bias"]
    with pytest.raises(ValueError, match=r"it lacks \['mlp.bias'\] and also has \['attention.affine_y.weight'\]"):
        official_captioner_state_dict(state, MIAConfig())


@pytest.fixture(params=["a", "b"])
def up_down(request, golden_dir, precision) -> tuple[Golden, MIAForCaptioning, dict[str, torch.Tensor]]:
    golden = Golden(golden_dir, f"updown_decoder_{request.param}", precision)
    sizes = golden.settings
    config = MIAConfig(
        decoder_type="up_down",
        mia_iterations=0,
        vocab_size=sizes["vocab_size"] + 1,
        feature_dim=sizes["feat"],
        decoder_hidden_size=sizes["rnn_size"],
        embedding_size=sizes["embed"],
        attention_hidden_size=sizes["att_hid"],
        **dict.fromkeys(["pad_token_id", "bos_token_id", "eos_token_id"], 0),
    )
    model = load(config, up_down_state_dict(golden.official_state()), golden.dtype)
    return golden, model, {"region_features": golden["att_feats"], "region_mask": golden["att_masks"].long()}


def test_up_down_gives_the_logits_and_the_attention_of_the_public_code(up_down):
    golden, model, inputs = up_down
    memory = model.get_encoder()(**inputs)
    # The file's global features are rounded to float32, so they are taken as they are.
    memory.pooled = model.decoder.attention_image(model.decoder.embed_global(golden["fc_feats"]).relu())
    outputs = model(encoder_outputs=memory, decoder_input_ids=golden["input_tokens"], output_attentions=True)
    golden.check("logits", outputs.logits)
    golden.check("attention", outputs.cross_attentions[0][:, 0])


def test_up_down_writes_the_captions_of_the_public_code(up_down):
    golden, model, inputs = up_down
    length = golden.settings["max_length"]
    greedy = model.generate(**inputs, max_new_tokens=length, num_beams=1, do_sample=False)
    assert torch.equal(greedy[:, 1:], golden["greedy_tokens"])
    for beams in (3, 5):
        found = model.generate(
            **inputs,
            max_new_tokens=length,
            num_beams=beams,
            num_return_sequences=beams,
            length_penalty=0.0,
            return_dict_in_generate=True,
            output_scores=True,
        )
        captions = found.sequences[:, 1:].unflatten(0, (-1, beams))
        assert torch.equal(captions[:, 0], golden[f"beam{beams}_tokens"][:, 0])
        expected = golden[f"beam{beams}_scores"]
        assert expected.isfinite().all()
        scores = found.sequences_scores.view_as(expected).to(expected)  # transformers adds them up in float32
        torch.testing.assert_close(scores, expected, rtol=0, atol=5e-5)
