"""Spatial-Semantic attention: its equations against slow, literal versions and values by hand, the checks that every
model passes, settings and errors. What it shares with all captioners is in `test_modeling_mia.py` and
`test_generation_mia.py`, which run for it too."""

from math import exp, log

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText

from hf_grounding import SSAttentionCaptioner, SSAttentionConfig, SSAttentionProcessor, save_with_code
from hf_grounding.modeling.modeling_ss_attention import RegionPrior, attention_loss, grounding_loss, location_vectors
from hf_grounding.processing.caption_tokenizers import caption_tokenizer_from_words
from tests.captioners import LABELS, REGION_MASK, small_captioner, small_config, small_inputs, without_dropout
from tests.common import assert_same, run_python
from tests.modeling.test_modeling_mia import CaptionerTesterMixin

NAME = "ss_attention"
SIGMA = torch.tensor([[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0]])
AT_WORDS = torch.zeros(3, 5, 4, dtype=torch.long)  # image 0, word 1: region 2; image 1, word 3: regions 0 and 2
AT_WORDS[0, 1, 2] = AT_WORDS[1, 3, 0] = AT_WORDS[1, 3, 2] = 1


def inputs() -> dict[str, torch.Tensor]:
    return {**small_inputs(NAME), "labels": LABELS}


class TestSpatialSemanticAttention(CaptionerTesterMixin):
    cancelling = ("attention.score.bias", "prior.score.bias")

    def make_model(self):
        model = without_dropout(NAME, 0, ss_bias=True, decoder_attention_bias=True, attention_loss_weight=0.5)
        for parameter in model.decoder.prior.parameters():
            parameter.data.abs_()  # a dead ReLU has no gradient
        return model

    def make_inputs(self):
        return {**inputs(), "grounding_targets": SIGMA, "attention_targets": AT_WORDS}


# The equations


@pytest.mark.parametrize("ss_bias", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_an_untrained_prior_has_something_to_learn_from_every_branch(seed, ss_bias):
    torch.manual_seed(seed)
    prior = SSAttentionCaptioner(small_config(NAME, 0, ss_bias=ss_bias)).decoder.prior
    evidence = prior.evidence(torch.rand(2, 4, 5).softmax(dim=-1), torch.rand(2, 4, 5))
    assert (evidence > 0).all()
    assert (prior.score.weight > 0).all()


def test_the_prior_is_that_of_a_loop_over_regions():
    torch.manual_seed(0)
    prior = RegionPrior(SSAttentionConfig(num_object_classes=7))
    classes, places = torch.rand(2, 4, 7).softmax(dim=-1), torch.rand(2, 4, 5)
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])
    beta = prior(classes, places, mask).exp()
    weights = {name: p.detach()[0].tolist() for name, p in prior.named_parameters()}
    for image, real in enumerate([3, 1]):
        scores = []
        for region in range(real):
            c = sum(w * x for w, x in zip(weights["semantic.weight"], classes[image, region].tolist(), strict=True))
            p = sum(w * x for w, x in zip(weights["spatial.weight"], places[image, region].tolist(), strict=True))
            scores.append(weights["score.weight"][0] * max(c, 0) + weights["score.weight"][1] * max(p, 0))
        total = sum(map(exp, scores))
        expected = [exp(score) / total for score in scores] + [0.0] * (4 - real)
        torch.testing.assert_close(beta[image], torch.tensor(expected))
    assert beta[1].tolist() == [1.0, 0.0, 0.0, 0.0]


def test_beta_gamma_and_the_losses_by_hand():
    # Scores 0 and log 3 give beta = 1/4, 3/4; with alpha = 1/2, 1/2 and lambda = 1/2, gamma = 5/8, 7/8.
    model = small_captioner(NAME, 0, num_object_classes=1, feature_dim=6)
    prior = model.decoder.prior
    for parameter, values in ((prior.semantic.weight, [[1.0]]), (prior.score.weight, [[log(3), 0.0]])):
        parameter.data = torch.tensor(values)
    beta = prior(torch.tensor([[[0.0], [1.0]]]), torch.zeros(1, 2, 5), torch.ones(1, 2)).exp()
    torch.testing.assert_close(beta, torch.tensor([[0.25, 0.75]]))
    gamma = model.decoder.weigh(torch.tensor([[0.5, 0.5]]), beta)
    torch.testing.assert_close(gamma, torch.tensor([[0.625, 0.875]]))
    one, both, none = (torch.tensor([sigma]).float() for sigma in ([0, 1], [1, 1], [0, 0]))
    for sigma, expected in ((one, log(4 / 3)), (both, log(16 / 3)), (none, 0.0)):
        torch.testing.assert_close(grounding_loss(beta.log(), sigma), torch.tensor([expected]))


def test_the_grounding_loss_of_p_regions_is_at_least_p_log_p():
    sigma = torch.tensor([[1.0, 1, 1, 0]])
    best = grounding_loss(torch.tensor([[0.0, 0, 0, -100]]).log_softmax(dim=-1), sigma)
    torch.testing.assert_close(best, torch.tensor([3 * log(3)]))
    scores = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
    others = grounding_loss(scores.log_softmax(dim=-1), sigma)
    assert (others > best).all()


def test_the_prior_learns_of_a_region_whose_beta_is_too_small_a_number():
    prior = RegionPrior(SSAttentionConfig(num_object_classes=1))
    for parameter, values in ((prior.semantic.weight, [[1.0]]), (prior.score.weight, [[1.0, 0.0]])):
        parameter.data = torch.tensor(values)
    classes = torch.tensor([[[110.0], [0.5]]], requires_grad=True)
    log_beta = prior(classes, torch.zeros(1, 2, 5), torch.ones(1, 2))
    assert log_beta.exp()[0, 1] == 0
    loss = grounding_loss(log_beta, torch.tensor([[0.0, 1.0]]))
    loss.sum().backward()
    assert loss.item() == pytest.approx(109.5)
    assert classes.grad.flatten().tolist() == [1.0, -1.0]


def test_the_prior_is_as_exact_under_autocast_and_with_weights_of_half_precision():
    torch.manual_seed(0)
    prior = RegionPrior(SSAttentionConfig(num_object_classes=7))
    for parameter in prior.parameters():
        parameter.data = parameter.data.abs().bfloat16().float()
    given = (torch.rand(2, 4, 7).softmax(dim=-1), 500 * torch.rand(2, 4, 5), torch.ones(2, 4))
    expected = prior(*given)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(prior(*given), expected)
    assert torch.equal(prior.bfloat16()(*given), expected)


def test_locations_are_corners_and_share_of_the_image_in_both_orders_and_units():
    boxes = torch.tensor([[[0.1, 0.2, 0.5, 0.7]]])
    for order, corners in (("xxyys", [0.1, 0.5, 0.2, 0.7]), ("xyxys", [0.1, 0.2, 0.5, 0.7])):
        torch.testing.assert_close(location_vectors(boxes, None, order), torch.tensor([[[*corners, 0.2]]]))
    pixels = location_vectors(boxes, torch.tensor([[100, 200]]), "xxyys")  # 200 wide
    torch.testing.assert_close(pixels, torch.tensor([[[20.0, 100, 20, 70, 0.2]]]))


@torch.no_grad()
def test_the_loop_over_words_reads_what_the_equations_say():
    model, given = small_captioner(NAME, 0), small_inputs(NAME)
    words = torch.tensor([[1, 5, 9], [1, 4, 6], [1, 7, 2]])
    outputs = model(**given, decoder_input_ids=words, output_attentions=True)
    decoder = model.decoder
    for image, real in enumerate(REGION_MASK.sum(dim=1).tolist()):
        v = decoder.embed_regions(given["region_features"][image, :real]).relu()
        beta = outputs.region_prior[image, :real]
        h1 = c1 = h2 = c2 = torch.zeros(7)
        lstm_1 = torch.cat([decoder.attention_image.weight, decoder.attention_words.weight], dim=1)
        for step, word in enumerate(words[image]):
            x = decoder.embed_words.weight[word].relu()
            read = lstm_1 @ torch.cat([v.mean(dim=0), x]) + decoder.attention_words.bias
            h1, c1 = cell(read + decoder.attention_states.weight @ torch.cat([h2, h1]), c1)
            scores = [
                decoder.attention.score.weight[0]
                @ (decoder.attention.state.weight @ h1 + decoder.attention.rows.weight @ v[i]).relu()
                for i in range(real)
            ]
            gamma = torch.stack(scores).softmax(dim=0) + 0.5 * beta
            torch.testing.assert_close(outputs.cross_attentions[0][image, 0, step, :real], gamma)
            vhat = sum(gamma[i] * v[i] for i in range(real))
            language = decoder.language_states
            h2, c2 = cell(language.weight @ torch.cat([vhat, h1, h2]) + language.bias, c2)
            torch.testing.assert_close(outputs.logits[image, step], model.output(h2), rtol=1e-4, atol=1e-5)


def cell(gates: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    i, f, g, o = gates.view(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


@torch.no_grad()
def test_the_sum_of_gamma_can_be_divided_out():
    outputs = [
        small_captioner(NAME, 0, renormalize_weights=each)(**inputs(), output_attentions=True) for each in (False, True)
    ]
    gamma, shares = (each.cross_attentions[0][:, 0] for each in outputs)
    torch.testing.assert_close(gamma[:, 0].sum(dim=-1), torch.full((3,), 1.5))
    torch.testing.assert_close(shares[:, 0], gamma[:, 0] / 1.5)  # of the first word, before states differ
    assert (outputs[0].logits - outputs[1].logits).abs().max() > 0.01


# The losses of a batch


def test_the_loss_is_the_sum_of_its_parts_by_their_weights():
    weights = {"grounding_loss_weight": 0.3, "attention_loss_weight": 0.7}
    model = without_dropout(NAME, 0, ce_reduction="sum", **weights)
    given = {**inputs(), "grounding_targets": SIGMA, "attention_targets": AT_WORDS}
    for training in (False, True):
        outputs = model.train(training)(**given)
        parts = outputs.caption_loss + 0.3 * outputs.grounding_loss + 0.7 * outputs.attention_loss
        torch.testing.assert_close(outputs.loss, parts)
        words = without_dropout(NAME, 0)(**given).caption_loss  # the mean over the ten words of three captions
        torch.testing.assert_close(outputs.caption_loss, words * 10 / 3)
        beta, log_beta = outputs.region_prior, outputs.region_prior.log()
        torch.testing.assert_close(outputs.grounding_loss, -(log_beta[0, 0] + log_beta[0, 3] + log_beta[1, 1]) / 3)
        assert beta.requires_grad
        by_alpha = without_dropout(NAME, 0, grounding_weights="alpha")(**given, output_attentions=True)
        log_alpha = by_alpha.cross_attentions[0][:, 0].log()
        of_words = log_alpha[0, 1, 2] + (log_alpha[1, 3, 0] + log_alpha[1, 3, 2]) / 2
        torch.testing.assert_close(outputs.attention_loss, -of_words / 3)


def test_captions_of_one_image_have_targets_of_their_own():
    model = without_dropout(NAME, 0).train()
    index = torch.tensor([0, 0, 2])
    outputs = model(**inputs(), image_index=index, grounding_targets=SIGMA)
    expected = grounding_loss(outputs.region_prior[index].clamp(min=1e-30).log(), SIGMA).mean()
    torch.testing.assert_close(outputs.grounding_loss, expected)


@torch.no_grad()
def test_in_a_training_step_nothing_is_weighed_behind_a_captions_end():
    training, evaluation = (
        without_dropout(NAME, 0).train(each)(**inputs(), output_attentions=True).cross_attentions[0][:, 0]
        for each in (True, False)
    )
    scored = LABELS != -100
    torch.testing.assert_close(training[scored], evaluation[scored])
    torch.testing.assert_close(training.sum(dim=-1), 1.5 * scored)


def test_terms_without_weight_or_targets_are_left_out():
    given = {**inputs(), "grounding_targets": SIGMA, "attention_targets": AT_WORDS}
    outputs = without_dropout(NAME, 0)(**given)
    assert outputs.attention_loss is None
    assert outputs.grounding_loss > 0
    outputs = without_dropout(NAME, 0, grounding_loss_weight=0, attention_loss_weight=0)(**given)
    assert outputs.grounding_loss is None
    assert outputs.loss == outputs.caption_loss
    assert without_dropout(NAME, 0)(**inputs()).grounding_loss is None


def test_scheduled_sampling_trains_with_all_losses():
    model = without_dropout(NAME, 0, attention_loss_weight=1.0).train()
    model.scheduled_sampling_prob = 0.5
    outputs = model(**inputs(), grounding_targets=SIGMA, attention_targets=AT_WORDS)
    outputs.loss.backward()
    for parameter in (model.decoder.prior.semantic.weight, model.decoder.attention.state.weight):
        assert parameter.grad.abs().max() > 1e-5
    assert outputs.attention_loss > 0


def test_training_on_regions_of_one_class_raises_their_prior():
    model = without_dropout(NAME, 0, prior_weight=0.5)
    torch.manual_seed(0)
    for parameter in model.decoder.prior.parameters():
        torch.nn.init.uniform_(parameter, 0, 0.5)
    optimizer = torch.optim.Adam(model.decoder.prior.parameters(), lr=0.05)
    given = small_inputs(NAME)
    sigma = (given["class_probs"].argmax(dim=-1) == 3) & (REGION_MASK == 1)
    assert sigma.any()
    before = model(**given, labels=LABELS).region_prior[sigma].mean()
    for _ in range(100):
        optimizer.zero_grad()
        model(**given, labels=LABELS, grounding_targets=sigma).grounding_loss.backward()
        optimizer.step()
    after = model(**given, labels=LABELS).region_prior
    assert after[sigma].mean() > before + 0.2


# Settings


@torch.no_grad()
def test_without_weight_of_the_prior_it_is_a_plain_up_down():
    plain, inputs = small_captioner(NAME, 0, prior_weight=0), small_inputs()
    same = small_captioner(
        "up_down", 0, embed_global=False, decoder_attention_bias=False, decoder_attention_activation="relu"
    )
    same.load_state_dict(plain.state_dict())
    expected = same(**inputs, labels=LABELS, output_attentions=True)
    actual = plain(**inputs, labels=LABELS, output_attentions=True)
    torch.testing.assert_close(actual.logits, expected.logits)
    torch.testing.assert_close(actual.cross_attentions, expected.cross_attentions)
    assert actual.region_prior is None


@torch.no_grad()
def test_the_visual_inputs_need_neither_boxes_nor_classes():
    model = small_captioner(NAME, 0, ss_spatial_input="visual", ss_semantic_input="visual")
    beta = model(**small_inputs(), labels=LABELS).region_prior
    torch.testing.assert_close(beta.sum(dim=-1), torch.ones(3))
    changed = small_inputs()
    changed["region_features"] = changed["region_features"] + 1
    assert not torch.allclose(model(**changed, labels=LABELS).region_prior, beta, atol=1e-3)


@torch.no_grad()
def test_a_background_in_front_of_the_classes_is_left_out():
    model, given = small_captioner(NAME, 0), inputs()
    expected = model(**given).logits
    given["class_probs"] = torch.cat([torch.full((3, 4, 1), 0.3), given["class_probs"]], dim=-1)
    torch.testing.assert_close(model(**given).logits, expected)


@torch.no_grad()
def test_pixels_need_the_images_sizes():
    model, given = small_captioner(NAME, 0, normalize_boxes=False), inputs()
    with pytest.raises(ValueError, match=r"`image_sizes` must be \(3, 2\), .* got nothing"):
        model(**given)
    small, large = (model(**given, image_sizes=torch.tensor([[s, s]] * 3)).region_prior for s in (2, 20))
    assert not torch.allclose(small, large, atol=1e-3)


def test_auto_classes_load_it(tmp_path):
    model = small_captioner(NAME, 2)
    model.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is SSAttentionConfig
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert type(loaded) is SSAttentionCaptioner
    assert_same(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)


RUN_WITHOUT_PACKAGE = """
import sys
sys.modules["hf_grounding"] = None
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor
folder = sys.argv[1]
model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
assert type(processor).__name__ == "SSAttentionProcessor" and processor.object_words == {"dog": "dog"}
save_file({"logits": model(**load_file(folder + "/inputs.safetensors")).logits}, folder + "/logits.safetensors")
"""


def test_saved_with_its_code_it_runs_without_the_package(tmp_path):
    model, given, folder = small_captioner(NAME, 2), inputs(), tmp_path / "saved"
    processor = SSAttentionProcessor(None, caption_tokenizer_from_words(["a", "dog"]), object_words={"dog": "dog"})
    save_with_code(model, processor, folder)
    save_file(given, folder / "inputs.safetensors")
    run_python(RUN_WITHOUT_PACKAGE, str(folder), cwd=tmp_path, isolated=True)
    expected = {"logits": model(**given).logits.detach()}
    assert_same(load_file(folder / "logits.safetensors"), expected, rtol=1e-5, atol=1e-6)


def test_the_papers_settings_are_the_defaults():
    config = SSAttentionConfig()
    assert (config.prior_weight, config.grounding_loss_weight, config.num_object_classes) == (0.5, 1.0, 1601)
    assert (config.attention_hidden_size, config.decoder_hidden_size, config.mia_iterations) == (512, 1024, 0)
    model = SSAttentionCaptioner(small_config(NAME, 0))
    biased = {name for name, _ in model.decoder.named_parameters() if name.endswith("bias")}
    assert biased == {"embed_regions.bias", "attention_words.bias", "language_states.bias"}


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"prior_weight": -1}, "`prior_weight` must be 0 or more, got -1"),
        ({"grounding_loss_weight": -0.5}, "`grounding_loss_weight` must be 0 or more"),
        ({"prior_weight": float("nan")}, "`prior_weight` must be 0 or more, got nan"),
        ({"prior_weight": float("inf")}, "`prior_weight` must be 0 or more, got inf"),
        ({"num_object_classes": 0}, "`num_object_classes` must be 1 or more, got 0"),
        ({"decoder_type": "transformer"}, "attention is that of 'up_down', got `decoder_type` 'transformer'"),
        ({"backbone_config": {"model_type": "resnet"}}, "detected regions; leave `backbone_config` out"),
        ({"location_order": "yxyx"}, "location_order"),
        ({"mia_iterations": -1}, "`mia_iterations` must be 0 or more"),
        (
            {"attention_loss_weight": 0.1, "mia_iterations": 1, "hidden_size": 1024},
            "are no single regions; set it or `mia_iterations` to 0",
        ),
    ],
)
def test_settings_that_cannot_work_say_why(settings, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        SSAttentionConfig(**settings)


# What generate tells


@torch.no_grad()
@pytest.mark.parametrize("beams", [1, 3])
def test_generate_tells_the_prior_and_the_weights_that_words_are_grounded_by(beams):
    given = small_inputs(NAME)
    options = {"num_beams": beams, "max_new_tokens": 5, "return_dict_in_generate": True, "output_attentions": True}
    found = {
        name: small_captioner(NAME, 0, grounding_weights=name).generate(**given, **options)
        for name in ("gamma", "alpha")
    }
    assert torch.equal(found["gamma"].sequences, found["alpha"].sequences)
    gamma, alpha = (found[name].region_attentions for name in ("gamma", "alpha"))
    beta = found["gamma"].region_prior
    torch.testing.assert_close(beta, small_captioner(NAME, 0)(**given, labels=LABELS).region_prior)
    written = alpha.sum(dim=-1, keepdim=True)  # 0 behind a caption's end
    torch.testing.assert_close(gamma, alpha + 0.5 * beta[:, None] * written)


@torch.no_grad()
def test_features_given_by_any_name_are_told_their_prior():
    given = small_inputs(NAME)
    features = given.pop("region_features")
    options = {"max_new_tokens": 3, "return_dict_in_generate": True, "output_attentions": True}
    model = small_captioner(NAME, 0)
    expected = model.generate(region_features=features, **given, **options).region_prior
    assert torch.equal(model.generate(inputs=features, **given, **options).region_prior, expected)
    assert torch.equal(model.generate(features, **given, **options).region_prior, expected)


def test_a_plain_up_down_tells_no_prior():
    found = small_captioner(NAME, 0, prior_weight=0).generate(
        **small_inputs(), max_new_tokens=3, return_dict_in_generate=True, output_attentions=True
    )
    assert "region_prior" not in found


# Errors


@pytest.mark.parametrize(
    "change, message",
    [
        ({"boxes": None}, r"`boxes` must be \(3, 4, 4\) as `region_features`, got nothing"),
        ({"boxes": torch.zeros(3, 3, 4)}, r"`boxes` must be \(3, 4, 4\) .*, got shape \(3, 3, 4\)"),
        ({"boxes": torch.full((3, 4, 4), 300.0)}, r"`boxes` must be in \[0, 1\].*, got 300.0 to 300.0; divide pixels"),
        ({"boxes": torch.full((3, 4, 4), -7.0)}, r"`boxes` must be in \[0, 1\].*, got -7.0 to -7.0"),
        ({"boxes": torch.full((3, 4, 4), torch.nan)}, r"`boxes` must be in \[0, 1\].*, got nan to nan"),
        ({"boxes": None}, "or train with `ss_spatial_input: visual`"),
        ({"class_probs": None}, "Extract regions with a detector, .*, or train with `ss_semantic_input: visual`"),
        ({"class_probs": torch.full((3, 4, 5), torch.nan)}, r"`class_probs` must be probabilities.*, got nan to nan"),
        (
            {"class_probs": torch.full((3, 4, 5), -2.0)},
            r"`class_probs` must be .* in \[0, 1\], got -2.0 to -2.0; extract",
        ),
        ({"class_probs": None}, r"`class_probs` must be \(3, 4, 5\) as `region_features`, got nothing"),
        ({"class_probs": torch.zeros(3, 5, 5)}, r"`class_probs` must be \(3, 4, 5\) .*, got shape \(3, 5, 5\)"),
        (
            {"class_probs": torch.zeros(3, 4, 9)},
            r"`class_probs` has 9 classes, but the model reads 5 \(`config.num_object_classes`\), or 6 with a",
        ),
        ({"region_features": None}, "Give `region_features` or `pixel_values`; got neither"),
        ({"grounding_targets": torch.zeros(3, 5)}, r"`grounding_targets` must have shape \(3, 4\).*, got \(3, 5\)"),
        ({"attention_targets": torch.zeros(3, 5)}, r"`attention_targets` must have shape \(3, 5, 4\).*, got \(3, 5\)"),
    ],
)
def test_inputs_that_are_missing_or_do_not_fit_say_what_was_expected(change, message):
    model = small_captioner(NAME, 0, attention_loss_weight=1.0)
    with pytest.raises(ValueError, match=message):
        model(**{**inputs(), **change})


def test_attention_to_all_of_a_words_regions_alike_costs_log_of_their_number():
    alpha, targets = torch.full((1, 2, 4), 0.25), torch.tensor([[[1.0, 1, 1, 1], [0, 0, 0, 0]]])
    torch.testing.assert_close(attention_loss(alpha, targets), torch.tensor([4.0]).log())


def test_a_word_of_several_tokens_costs_their_mean():
    alpha = torch.tensor([[[0.5, 0.5], [0.25, 0.75], [0.5, 0.5]]])
    targets = torch.tensor([[[0.5, 0.0], [0.5, 0.0], [1.0, 1.0]]])  # two tokens of one word, and a word
    torch.testing.assert_close(attention_loss(alpha, targets), torch.tensor([(log(2) + log(4)) / 2 + log(2)]))


def test_supervised_words_without_targets_cost_nothing():
    alpha = torch.full((2, 3, 4), 0.25)
    assert attention_loss(alpha, torch.zeros(2, 3, 4)).tolist() == [0.0, 0.0]
