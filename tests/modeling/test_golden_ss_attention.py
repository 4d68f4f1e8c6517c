"""Spatial-Semantic attention against golden numbers; each file's manifest says how they were made."""

import numpy as np
import pytest
import torch

from hf_grounding import SSAttentionCaptioner, SSAttentionConfig, SSAttentionProcessor
from hf_grounding.modeling.convert_mia import up_down_state_dict
from hf_grounding.modeling.modeling_ss_attention import grounding_loss, location_vectors
from hf_grounding.processing.caption_tokenizers import caption_tokenizer_from_words
from hf_grounding.processing.regions import Regions, box_iou
from tests.modeling.test_golden_captioning import Golden

PUBLIC_NAMES = {
    "embed.0.weight": "word_embed.weight",
    "att_embed.0.weight": "region_embed.weight",
    "att_embed.0.bias": "region_embed.bias",
    "ctx2att.weight": "att.W_v.weight",
    "core.attention.h2att.weight": "att.W_h.weight",
    "core.attention.alpha_net.weight": "att.W_a.weight",
    "logit.weight": "out.weight",
    "logit.bias": "out.bias",
    **{
        f"core.{ours}_lstm.{kind}": f"lstm_{ours}.{kind}"
        for ours in ("att", "lang")
        for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    },
}
WITHOUT = (
    "fc_embed.0.weight",
    "fc_embed.0.bias",
    "ctx2att.bias",
    "core.attention.h2att.bias",
    "core.attention.alpha_net.bias",
)


@pytest.fixture(params=["a", "b"])
def golden(request, golden_dir) -> Golden:
    return Golden(golden_dir, f"ss_attention_{request.param}", "float64")


@pytest.fixture(params=["float64", "float32"])
def either(request, golden_dir) -> list[Golden]:
    return [Golden(golden_dir, f"ss_attention_{name}", request.param) for name in "ab"]


def captioner(golden: Golden, **settings) -> SSAttentionCaptioner:
    sizes = golden.settings
    config = SSAttentionConfig(
        vocab_size=sizes["vocab"],
        feature_dim=sizes["feat"],
        num_object_classes=sizes["classes"],
        decoder_hidden_size=sizes["hidden"],
        embedding_size=sizes["embed"],
        attention_hidden_size=sizes["att"],
        prior_weight=settings.pop("prior_weight", sizes["lambda"]),
        grounding_loss_weight=sizes["mu"],
        dropout=0.0,
        **dict.fromkeys(["pad_token_id", "bos_token_id", "eos_token_id"], 0),
        **settings,
    )
    model = SSAttentionCaptioner(config).eval().to(golden.dtype)
    public = {theirs: golden[f"weights/{name}"] for theirs, name in PUBLIC_NAMES.items()}
    state = up_down_state_dict(public | dict.fromkeys(WITHOUT, torch.zeros(1)))
    state = {name: value for name, value in state.items() if name in model.state_dict()}
    if config.uses_prior:
        visual = {"semantic": config.ss_semantic_input == "visual", "spatial": config.ss_spatial_input == "visual"}
        for ours, theirs in (("semantic", "W_c"), ("spatial", "W_p")):
            state[f"decoder.prior.{ours}.weight"] = golden[
                f"weights/ss.{theirs}{'_visual' if visual[ours] else ''}.weight"
            ]
        state["decoder.prior.score.weight"] = golden["weights/ss.W_b.weight"]
    model.load_state_dict(state)  # all of them, and no other
    return model


def images(golden: Golden) -> dict[str, torch.Tensor]:
    sides = golden["image_wh"].repeat(1, 2)[:, None]
    return {
        "region_features": golden["features"],
        "region_mask": golden["region_mask"].long(),
        "boxes": golden["boxes"] / sides,
        "class_probs": golden["class_probs"],
        "image_sizes": golden["image_wh"].flip(1),
    }


def captions(golden: Golden) -> dict[str, torch.Tensor]:
    targets = golden["target_tokens"]
    return {
        "decoder_input_ids": golden["input_tokens"],
        "labels": targets.masked_fill(targets < 0, -100),
        "grounding_targets": golden["sigma"],
        "output_attentions": True,
    }


def test_locations_logits_weights_and_losses_are_those_of_the_equations(either):
    for golden in either:
        inputs = images(golden)
        for order in ("xxyys", "xyxys"):
            golden.check(f"location_{order}", location_vectors(inputs["boxes"], None, order))
        model = captioner(golden)
        outputs = model(**inputs, **captions(golden))
        golden.check("beta", outputs.region_prior)
        log_beta = model.get_encoder()(**inputs).row_log_prior
        golden.check("relu/logits", outputs.logits)
        golden.check("relu/gamma", outputs.cross_attentions[0][:, 0])
        golden.check("loss/gnd_per_caption", grounding_loss(log_beta, golden["sigma"]))
        assert abs(outputs.caption_loss - golden["loss/ce_sum_per_caption"].mean()) < 10 * golden.tolerance
        assert abs(outputs.loss - golden["loss/total_default"][0]) < 10 * golden.tolerance
        by_alpha = captioner(golden, grounding_weights="alpha", ce_reduction="token_mean")(**inputs, **captions(golden))
        golden.check("relu/alpha", by_alpha.cross_attentions[0][:, 0])
        golden.check("loss/ce_token_mean", by_alpha.caption_loss[None])
        golden.check("loss/total_token_mean", by_alpha.loss[None])


def test_a_training_step_has_the_same_loss(golden):
    outputs = captioner(golden).train()(**images(golden), **captions(golden))
    golden.check("loss/total_default", outputs.loss[None])


def test_words_are_grounded_in_the_regions_of_the_largest_weights(golden):
    for weights in ("gamma", "alpha"):
        model = captioner(golden, grounding_weights=weights)
        found = model(**images(golden), **captions(golden)).cross_attentions[0][:, 0].argmax(dim=-1)
        assert torch.equal(found, golden[f"relu/grounding_argmax_{weights}"])


def test_attention_may_have_tanh_and_the_prior_no_weight(either):
    for golden in either:
        outputs = captioner(golden, decoder_attention_activation="tanh", grounding_weights="alpha")(
            **images(golden), **captions(golden)
        )
        golden.check("tanh/logits", outputs.logits)
        golden.check("tanh/alpha", outputs.cross_attentions[0][:, 0])
        plain = captioner(golden, prior_weight=0)
        assert plain.decoder.prior is None
        inputs = {name: x for name, x in images(golden).items() if name.startswith("region")}
        golden.check("lambda0/logits", plain(**inputs, **captions(golden)).logits)


@pytest.mark.parametrize(
    "name, settings",
    [
        ("p_only", {"ss_semantic_input": "visual"}),
        ("c_only", {"ss_spatial_input": "visual"}),
        ("neither", {"ss_semantic_input": "visual", "ss_spatial_input": "visual"}),
    ],
)
def test_visual_features_take_the_place_of_boxes_and_classes(either, name, settings):
    for golden in either:
        outputs = captioner(golden, **settings)(**images(golden), **captions(golden))
        golden.check(f"ablation/{name}/beta", outputs.region_prior)


def test_the_grounding_loss_has_the_gradients_of_the_prior_and_reaches_nothing_else(golden):
    model = captioner(golden)
    outputs = model(**images(golden), **captions(golden))
    outputs.grounding_loss.backward()
    trained = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    names = {"semantic": "W_c", "spatial": "W_p", "score": "W_b"}
    assert trained.keys() == {f"decoder.prior.{ours}.weight" for ours in names}
    for ours, theirs in names.items():
        golden.check(f"grad_gnd_mean/ss.{theirs}.weight", trained[f"decoder.prior.{ours}.weight"])


def test_annotated_boxes_belong_to_the_regions_of_the_largest_overlap(golden):
    processor = SSAttentionProcessor(None, caption_tokenizer_from_words(["a"]))
    for image, (width, height) in enumerate(golden["image_wh"].int().tolist()):
        real = golden["region_mask"][image].bool()
        boxes, overlaps = golden["boxes"][image][real], golden["iou_plus_one"][image][real]
        annotated = golden["gt_boxes"][image][golden["gt_mask"][image].bool()]
        golden_overlaps = overlaps[:, : len(annotated)]
        np.testing.assert_allclose(box_iou(boxes.numpy(), annotated.numpy(), plus_one=True), golden_overlaps, atol=1e-9)
        regions = Regions("photo", (height, width), boxes.numpy().astype(np.float32))
        phrases = [{"sentence": 0, "start": 0, "end": 1, "boxes": [box]} for box in annotated.tolist()]
        matched = processor.match_phrases(regions, phrases, (height, width))
        expected = golden["gt_assignment"][image][golden["gt_mask"][image].bool()].tolist()
        assert [phrase.regions for phrase in matched] == [() if row < 0 else (row,) for row in expected]
