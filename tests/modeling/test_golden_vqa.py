"""Answer heads against numbers of the public codes; each file's manifest says how they were made."""

import pytest
import torch

from hf_grounding.modeling.configuration_mia_vqa import MIAVQAConfig
from hf_grounding.modeling.convert_mia_vqa import public_vqa_state_dict
from hf_grounding.modeling.modeling_mia_vqa import MIAForVQA
from tests.golden import Golden


@pytest.fixture(params=["float64", "float32"])
def precision(request: pytest.FixtureRequest) -> str:
    return request.param


def converted(golden: Golden, prefix: str = "", **settings) -> MIAForVQA:
    sizes = golden.settings
    config = MIAVQAConfig(
        mia_iterations=0,
        feature_dim=sizes["v_dim"],
        question_hidden_size=sizes["num_hid"],
        vocab_size=sizes["vocab"] + 1,
        word_embedding_size=sizes["embedding"],
        num_labels=sizes["answers"],
        **settings,
    )
    assert config.pad_token_id == sizes["vocab"]
    model = MIAForVQA(config).eval().to(golden.dtype)
    model.load_state_dict(public_vqa_state_dict(golden.official_state(prefix), config))
    return model


@pytest.mark.parametrize("flavour, attention_type", [("newatt", "product"), ("concat", "concat")])
def test_up_down_gives_the_numbers_of_the_public_code(golden_dir, precision, flavour, attention_type):
    golden = Golden(golden_dir, "vqa_updown_a", precision)
    model = converted(golden, f"{flavour}/", attention_type=attention_type)
    inputs = {"region_features": golden["features"], "input_ids": golden["question"], "labels": golden["labels"]}
    outputs = model(**inputs, output_attentions=True)
    question = model.question(golden["question"], torch.ones_like(golden["question"]))
    golden.check(f"{flavour}/question_vector", question.last)
    golden.check(f"{flavour}/attention", outputs.region_attentions)
    golden.check(f"{flavour}/logits", outputs.logits)
    golden.check(f"{flavour}/loss", outputs.loss[None])


def test_ban_gives_the_numbers_of_the_public_code(golden_dir, precision):
    golden = Golden(golden_dir, "ban_a", precision)
    model = converted(golden, answer_head="ban", num_glimpses=golden.settings["glimpses"])
    mask, boxes = (golden["features"] != 0).any(dim=-1).long(), golden["boxes"][..., :4]
    assert mask.tolist() == [[1] * 10 + [0] * 2, [1] * 12]
    inputs = {"region_features": golden["features"], "region_mask": mask, "boxes": boxes}
    question = model.question(golden["question"], torch.ones_like(golden["question"]))
    golden.check("question_states", question.states)
    logits = model.head.attention(golden["features"], question.states).mT  # (B, G, n, T)
    logits = logits.masked_fill(mask[:, None, :, None] == 0, -1e30)
    golden.check("attention_logits", logits)
    golden.check("count_feature_glimpse0", model.head.counter(logits.amax(dim=3), mask, boxes)[:, 0])
    outputs = model(**inputs, input_ids=golden["question"], labels=golden["labels"], output_attentions=True)
    golden.check("attention", outputs.word_region_attentions.mT)
    golden.check("logits", outputs.logits)
    golden.check("loss", outputs.loss[None])


def test_an_unknown_name_in_a_public_checkpoint_is_named(golden_dir):
    golden = Golden(golden_dir, "ban_a", "float32")
    state = {**golden.official_state(), "counter.g.weight": torch.zeros(1)}
    del state["q_prj.1.main.1.bias"]
    with pytest.raises(ValueError, match=r"lacks \['q_prj.1.main.1.bias'\] and also has \['counter.g.weight'\]"):
        public_vqa_state_dict(state, MIAVQAConfig(answer_head="ban", num_glimpses=2, mia_iterations=0))


def test_a_public_checkpoint_of_one_glimpse_that_does_not_count_fits(golden_dir):
    golden = Golden(golden_dir, "ban_a", "float32")
    others = ("counter.", "c_prj.", "b_net.1.", "q_prj.1.")
    state = {name: x for name, x in golden.official_state().items() if not name.startswith(others)}
    for name in ("v_att.logits.h_mat_v", "v_att.logits.h_bias"):
        state[name] = state[name][:, :1]
    sizes = golden.settings
    config = MIAVQAConfig(
        answer_head="ban",
        mia_iterations=0,
        num_glimpses=1,
        use_counter=False,
        feature_dim=sizes["v_dim"],
        question_hidden_size=sizes["num_hid"],
        vocab_size=sizes["vocab"] + 1,
        word_embedding_size=sizes["embedding"],
        num_labels=sizes["answers"],
    )
    model = MIAForVQA(config)
    model.load_state_dict(public_vqa_state_dict(state, config))
    first = golden.official_state()["v_att.logits.h_mat_v"][0, 0]
    torch.testing.assert_close(model.head.attention.glimpses.weight, first)


def test_public_codes_have_no_module():
    with pytest.raises(ValueError, match="no mutual iterative attention, got `mia_iterations` 2; convert with 0"):
        public_vqa_state_dict({}, MIAVQAConfig())
