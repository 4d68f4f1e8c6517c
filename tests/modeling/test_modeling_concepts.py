"""The checks that every model passes, for the concept detector; its noisy-OR against a literal one; options; errors."""

import math
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from transformers import MobileNetV2Config, ResNetConfig

from hf_grounding.modeling.configuration_concepts import ConceptDetectorConfig
from hf_grounding.modeling.modeling_concepts import ConceptDetector, noisy_or_logits
from hf_grounding.processing.concepts import ConceptProcessor
from hf_grounding.processing.image_processing_multilevel import MultiLevelGroundingImageProcessorPil
from tests.common import ModelTesterMixin, SharingTesterMixin, assert_same, tensors_of

WORDS = ["a", "man", "rides", "horse", "dog"]
LABELS = torch.tensor([[1, 1, 0, 1, 0], [0, 0, 0, 0, 1], [1, 0, 1, 0, 0]])


def small_model(seed: int = 0, **settings: Any) -> ConceptDetector:
    """Five words over a map of 6 channels; the last layer's weights are larger than those that training starts from."""
    sizes: dict[str, Any] = {"feature_channels": 6, "id2label": dict(enumerate(WORDS))}
    torch.manual_seed(seed)
    config = ConceptDetectorConfig(**{**sizes, "initializer_range": 0.5, "bias_init": -2.0, **settings})
    return ConceptDetector(config).eval()


def small_inputs() -> dict[str, Any]:
    maps = torch.randn(3, 6, 4, 3, generator=torch.Generator().manual_seed(1))
    return {"feature_maps": (maps,), "labels": LABELS}


def pixels() -> torch.Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def mobilenet() -> MobileNetV2Config:
    return MobileNetV2Config(depth_multiplier=0.1, image_size=32, finegrained_output=False)


def resnet() -> ResNetConfig:
    return ResNetConfig(embedding_size=4, hidden_sizes=[4, 6, 8, 10], depths=[1, 1, 1, 1], layer_type="basic")


class ConceptTesterMixin(ModelTesterMixin):
    def test_resized_token_embeddings_keep_the_old_rows_and_run(self, tmp_path):
        pytest.skip("the concept detector reads no text, so it has no token embeddings")


class TestOnFeatureMaps(ConceptTesterMixin):
    def make_model(self):
        return small_model()

    def make_inputs(self):
        return small_inputs()


class TestHiddenLayers(ConceptTesterMixin):
    def make_model(self):
        return small_model(hidden_sizes=[7, 8], normalize_features=True)

    def make_inputs(self):
        return small_inputs()


class TestFrozenResNet(ConceptTesterMixin):
    no_compile = "tracing ResNet takes seconds; our part is compiled in the tests on feature maps"
    frozen = ("backbone.",)

    def make_model(self):
        return small_model(backbone_config=resnet(), backbone_level=2, freeze_backbone=True)

    def make_inputs(self):
        return {"pixel_values": pixels(), "labels": LABELS}


class TestTrainedResNet(ConceptTesterMixin):
    no_compile = "tracing ResNet takes seconds; our part is compiled in the tests on feature maps"

    def make_model(self):
        return small_model(backbone_config=resnet(), feature_channels=10)

    def make_inputs(self):
        return {"pixel_values": pixels(), "labels": LABELS}


class TestSharing(SharingTesterMixin):
    auto_classes = ("AutoModel", "AutoModelForImageClassification")

    def make_model(self):
        return small_model(backbone_config=mobilenet(), backbone_level=5, feature_channels=8)

    def make_processor(self):
        image_processor = MultiLevelGroundingImageProcessorPil(size={"height": 32, "width": 32})
        return ConceptProcessor(image_processor, concepts=WORDS, num_concepts=3)


# The noisy-OR


def literal_noisy_or(logits: torch.Tensor) -> torch.Tensor:
    """`P = 1 - prod_j (1 - p_j)`, location by location, (batch, words, height, width) -> (batch, words)."""
    batch, words, height, width = logits.shape
    probs = torch.zeros(batch, words, dtype=logits.dtype)
    for b in range(batch):
        for w in range(words):
            absent = 1.0
            for y in range(height):
                for x in range(width):
                    absent *= 1 - 1 / (1 + math.exp(-logits[b, w, y, x].item()))
            probs[b, w] = 1 - absent
    return probs


def random_logits(*shape: int) -> torch.Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64) - 3


def test_the_noisy_or_equals_a_literal_one():
    logits = random_logits(2, 5, 3, 4)
    expected = literal_noisy_or(logits)
    torch.testing.assert_close(noisy_or_logits(logits).sigmoid(), expected)
    torch.testing.assert_close(noisy_or_logits(logits), expected.log() - (1 - expected).log())


def test_the_noisy_or_of_two_locations_worked_by_hand():
    # p = 1/2 and 1/4: P = 1 - 1/2 * 3/4 = 5/8, log-odds log(5/3)
    logits = torch.tensor([[0.0, -math.log(3.0)]])
    torch.testing.assert_close(noisy_or_logits(logits).sigmoid(), torch.tensor(5 / 8))
    torch.testing.assert_close(noisy_or_logits(logits), torch.tensor(math.log(5 / 3)))


def test_the_model_equals_a_literal_one_from_its_weights():
    model, inputs = small_model(hidden_sizes=[7]).double(), small_inputs()
    cells = inputs["feature_maps"][0].double().permute(0, 2, 3, 1)  # (batch, height, width, channels)
    hidden, last = model.head.hidden[0], model.head.classifier
    cells = (cells @ hidden.weight[:, :, 0, 0].T + hidden.bias).clamp(min=0)
    logits = (cells @ last.weight[:, :, 0, 0].T + last.bias).permute(0, 3, 1, 2)
    output = model(**inputs)
    probs = literal_noisy_or(logits)
    torch.testing.assert_close(output.location_probs, 1 / (1 + (-logits).exp()))
    torch.testing.assert_close(output.concept_probs, probs)
    torch.testing.assert_close(output.max_probs, output.location_probs.flatten(2).max(dim=2).values)
    losses = [
        -math.log(p) if y else -math.log(1 - p)
        for p, y in zip(probs.flatten().tolist(), LABELS.flatten().tolist(), strict=True)
    ]
    assert output.loss.item() == pytest.approx(20 * sum(losses) / len(losses))


@pytest.mark.parametrize("z", [-1000.0, -200.0, -40.0, -3.0, 0.0, 5.0, 30.0, 1000.0])
def test_one_location_is_the_sigmoid(z):
    for dtype in (torch.float32, torch.float64):
        logits = torch.full((1, 1), z, dtype=dtype, requires_grad=True)
        torch.testing.assert_close(noisy_or_logits(logits), logits[0, 0])
        torch.testing.assert_close(noisy_or_logits(logits).sigmoid(), logits[0, 0].sigmoid(), rtol=1e-5, atol=0)
        (gradient,) = torch.autograd.grad(noisy_or_logits(logits), logits)
        torch.testing.assert_close(gradient, torch.ones_like(logits))


def test_a_permutation_of_the_locations_changes_nothing():
    model, inputs = small_model(), small_inputs()
    (maps,) = inputs["feature_maps"]
    order = torch.randperm(12, generator=torch.Generator().manual_seed(4))
    permuted = maps.flatten(2)[:, :, order].view(3, 6, 2, 6)
    expected, actual = model(feature_maps=maps, labels=LABELS), model(feature_maps=permuted, labels=LABELS)
    for name in ("loss", "logits", "concept_probs", "max_probs"):
        torch.testing.assert_close(actual[name], expected[name])
    torch.testing.assert_close(actual.location_probs.flatten(2), expected.location_probs.flatten(2)[:, :, order])


def test_more_locations_make_no_word_less_likely_and_multiply_its_absence():
    model = small_model()
    (maps,) = small_inputs()["feature_maps"]
    top, bottom, both = model(feature_maps=maps[:, :, :1]), model(feature_maps=maps[:, :, 1:]), model(feature_maps=maps)
    absent = (1 - top.concept_probs) * (1 - bottom.concept_probs)
    torch.testing.assert_close(1 - both.concept_probs, absent, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(both.max_probs, torch.maximum(top.max_probs, bottom.max_probs))
    assert (both.concept_probs >= both.max_probs).all()


def test_a_batch_equals_its_rows_one_at_a_time():
    model = small_model(backbone_config=resnet(), feature_channels=10)
    together = model(pixel_values=pixels())
    for row in range(3):
        alone = model(pixel_values=pixels()[row : row + 1])
        assert_same(tensors_of(alone), {name: x[row : row + 1] for name, x in tensors_of(together).items()})


def test_gradients_in_float64_agree_with_differences():
    logits = random_logits(2, 3, 2, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: noisy_or_logits(z).sigmoid(), logits)
    assert torch.autograd.gradcheck(noisy_or_logits, logits)
    far = torch.tensor([[-20.0, -31.0], [-60.0, -59.0]], dtype=torch.float64, requires_grad=True)  # S below 1e-12
    assert torch.autograd.gradcheck(lambda z: noisy_or_logits(z[:, None]), far)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("z", [-1e4, -300.0, -104.0, -88.0, -28.0, -27.0, 17.0, 100.0, 1e4])
def test_extreme_logits_give_finite_losses_and_bounded_gradients(z, dtype):
    model = small_model(feature_channels=1, num_concepts=2, id2label={0: "x", 1: "y"}, loss_weight=2.0).to(dtype)
    model.head.classifier.weight.data.fill_(1.0)
    model.head.classifier.bias.data.zero_()
    maps = torch.full((1, 1, 3, 3), z, dtype=dtype, requires_grad=True)
    output = model(feature_maps=maps, labels=torch.tensor([[1, 0]]))
    output.loss.backward()
    assert all(x.isfinite().all() for x in tensors_of(output).values())
    # The right word costs nothing; the wrong one about its log-odds: mean over two words, times two.
    expected = abs(z) - math.log(9) if z < 0 else 9 * z
    assert output.loss.item() == pytest.approx(expected, rel=1e-2)
    assert maps.grad.isfinite().all()
    assert 0 < maps.grad.abs().max() <= 1.01


@pytest.mark.parametrize("z", [-27.5, -27.7, -30.0])
def test_the_two_branches_meet(z):
    logits = torch.full((1, 1, 1), z, dtype=torch.float64)
    torch.testing.assert_close(noisy_or_logits(logits), logits.flatten(), rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_the_probabilities_are_those_of_float32_from_the_same_logits(dtype):
    model = small_model().to(dtype)
    (maps,) = small_inputs()["feature_maps"]
    logits = model.head(maps.to(dtype))
    assert logits.dtype == dtype
    output = model(feature_maps=maps, labels=LABELS)  # the map is cast to the model's precision
    assert all(value.dtype == torch.float32 for value in tensors_of(output).values())
    torch.testing.assert_close(output.concept_probs, noisy_or_logits(logits.float()).sigmoid(), rtol=0, atol=0)
    torch.testing.assert_close(output.location_probs, logits.float().sigmoid(), rtol=0, atol=0)


# Training


def test_it_overfits_four_images_and_ranks_their_words_first():
    captions = ["a red square", ["a blue circle", "a circle"], "two green stars .", "a grey dog"]
    processor = ConceptProcessor(num_concepts=3)
    words = processor.build_vocabulary(captions)
    generator = torch.Generator().manual_seed(5)
    maps = torch.randn(4, 16, 3, 3, generator=generator)  # what is on them lies in one cell of each
    maps[torch.arange(4), :, torch.tensor([0, 2, 1, 2]), torch.tensor([1, 0, 2, 2])] = 4 * torch.eye(16)[:4]
    torch.manual_seed(0)
    model = ConceptDetector(ConceptDetectorConfig(id2label=dict(enumerate(words)), feature_channels=16)).train()
    optimizer = torch.optim.AdamW(model.parameter_groups(0.005, weight_decay=0.01))
    losses = []
    for _ in range(200):
        loss = model(feature_maps=maps, labels=processor.labels(captions)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 100
    ranked = processor.rank(model.eval()(feature_maps=maps).concept_probs)
    found = [{each.word for each in row if each.prob > 0.5} for row in ranked]
    assert found == [{"red", "square"}, {"blue", "circle"}, {"green", "stars"}, {"grey", "dog"}]


def test_the_first_probabilities_are_those_of_the_bias():
    torch.manual_seed(0)
    model = ConceptDetector(ConceptDetectorConfig(num_concepts=50, feature_channels=8))
    assert model.head.classifier.bias.eq(-6.58).all()
    assert model.head.classifier.weight.std().item() == pytest.approx(0.001, rel=0.2)
    output = model(feature_maps=torch.zeros(1, 8, 12, 12))
    # p = 1 / (1 + e^6.58) = .00139, and P = 1 - (1 - p)^144 = .181
    torch.testing.assert_close(output.location_probs, torch.full((1, 50, 12, 12), 0.001386), rtol=1e-3, atol=0)
    torch.testing.assert_close(output.concept_probs, torch.full((1, 50), 0.1810), rtol=1e-3, atol=0)


def test_the_last_layer_learns_faster_and_biases_do_not_decay():
    model = small_model(backbone_config=resnet(), feature_channels=10, hidden_sizes=[7])
    groups = model.parameter_groups(0.5, weight_decay=0.1)
    settings = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert len(settings) == sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    expected = {"head.classifier.weight": (5.0, 0.1), "head.classifier.bias": (5.0, 0.0)}
    for name, parameter in model.named_parameters():
        rest = (0.5, 0.1 if parameter.ndim > 1 else 0.0)
        assert settings[id(parameter)] == expected.get(name, rest), name


def test_frozen_parameters_are_in_no_group():
    model = small_model(backbone_config=resnet(), feature_channels=10, freeze_backbone=True)
    groups = model.parameter_groups(0.1)
    assert {id(p) for group in groups for p in group["params"]} == {id(p) for p in model.head.parameters()}
    torch.optim.SGD(groups, momentum=0.9)


def test_a_frozen_backbone_stays_in_eval_mode():
    model = small_model(backbone_config=resnet(), feature_channels=10, freeze_backbone=True).train()
    assert model.head.training
    assert not any(module.training for module in model.backbone.modules())


def test_dropout_is_off_in_eval_mode_and_on_in_training():
    model, inputs = small_model(dropout=0.5), small_inputs()
    expected = small_model()(**inputs).logits
    assert torch.equal(model(**inputs).logits, expected)
    assert not torch.allclose(model.train()(**inputs).logits, expected)


# Inputs and settings


def test_normalised_features_leave_the_scale_and_offset_of_every_cell_out():
    (maps,) = small_inputs()["feature_maps"]
    moved = maps * torch.tensor([1.0, 5.0, 20.0]).view(1, 1, 1, 3) + 7
    normal, plain = small_model(normalize_features=True), small_model()
    torch.testing.assert_close(
        normal(feature_maps=moved).logits, normal(feature_maps=maps).logits, rtol=1e-3, atol=1e-3
    )
    assert not torch.allclose(plain(feature_maps=moved).logits, plain(feature_maps=maps).logits, rtol=1e-2)


def test_words_and_ids_of_the_configuration_always_agree():
    config = ConceptDetectorConfig(id2label={"0": "cat", "1": "dog"}, label2id={"LABEL_0": 0, "LABEL_1": 1})
    assert config.id2label == {0: "cat", 1: "dog"}
    assert config.label2id == {"cat": 0, "dog": 1}


def test_the_feature_map_of_the_backbone_gives_what_its_pixels_give():
    model = small_model(backbone_config=mobilenet(), backbone_level=5, feature_channels=8)
    maps = model.get_feature_maps(pixels())
    assert [each.shape[:2] for each in maps] == [(3, 8)]
    expected = tensors_of(model(pixel_values=pixels()))
    assert_same(tensors_of(model(feature_maps=maps)), expected)
    assert_same(tensors_of(model(feature_maps=maps[0])), expected)


def test_without_labels_there_is_no_loss():
    output = small_model()(feature_maps=small_inputs()["feature_maps"])
    assert list(output) == ["logits", "concept_probs", "max_probs", "location_probs"]
    torch.testing.assert_close(output.logits.sigmoid(), output.concept_probs)


def test_the_loss_weight_scales_the_loss():
    heavy, light = (small_model(loss_weight=weight)(**small_inputs()).loss for weight in (20.0, 1.0))
    torch.testing.assert_close(heavy, 20 * light)


@pytest.mark.parametrize("num_words", [1, 2, 5])
def test_the_words_are_saved_with_the_model(tmp_path, num_words):
    words = dict(enumerate(WORDS[:num_words]))
    small_model(id2label=words).save_pretrained(tmp_path)
    config = ConceptDetector.from_pretrained(tmp_path).config
    assert config.id2label == words
    assert config.label2id == {word: i for i, word in words.items()}
    assert config.num_concepts == config.num_labels == num_words
    assert config.problem_type == "multi_label_classification"


@pytest.mark.parametrize(
    "settings", [{"num_concepts": 2}, {"num_labels": 2}, {"id2label": {0: "a", 1: "b"}}, {"label2id": {"a": 0, "b": 1}}]
)
def test_the_number_of_words_may_be_given_in_any_way(tmp_path, settings):
    config = ConceptDetectorConfig(**settings)
    assert config.num_concepts == config.num_labels == len(config.label2id) == 2
    config.save_pretrained(tmp_path)
    assert ConceptDetectorConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


def test_a_thousand_words_are_the_default():
    assert ConceptDetectorConfig().num_concepts == len(ConceptDetectorConfig().id2label) == 1000


@pytest.mark.parametrize(
    "settings, message",
    [
        (
            {"num_concepts": 3, "id2label": {0: "a"}},
            r"differs between the settings: .*'num_concepts': 3, 'id2label': 1",
        ),
        ({"num_concepts": 0}, "`num_concepts` must be 1 or more"),
        ({"id2label": {0: "a", 2: "b"}}, r"a word for each of 0\.\.1; its ids are 0, 2"),
        ({"id2label": {0: "dog", 1: "dog"}}, "words more than once: 'dog'"),
        ({"hidden_sizes": [0]}, "must be 1 or more, got 0"),
        ({"feature_channels": 0}, "must be 1 or more, got 0"),
        ({"dropout": 1.0}, r"`dropout` must be in \[0, 1\)"),
        ({"loss_weight": 0}, "`loss_weight` must be above 0"),
        ({"last_layer_lr_multiplier": -1}, "`last_layer_lr_multiplier` must be above 0"),
        ({"initializer_range": -0.1}, "`initializer_range` must be 0 or more"),
        ({"bias_init": math.nan}, "`bias_init` must be a number"),
        ({"backbone_config": {"model_type": "resnett"}}, "Did you mean 'resnet'"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises((ValueError, StrictDataclassClassValidationError), match=message):
        ConceptDetectorConfig(**settings)


def test_pixels_and_feature_maps_exclude_each_other():
    with pytest.raises(ValueError, match="either `pixel_values` or `feature_maps`"):
        small_model()(pixel_values=pixels(), **small_inputs())
    with pytest.raises(ValueError, match="either `pixel_values` or `feature_maps`"):
        small_model()(labels=LABELS)


def test_a_model_without_backbone_asks_for_feature_maps():
    with pytest.raises(ValueError, match=r"no backbone .* pass `feature_maps`"):
        small_model()(pixel_values=pixels())


@pytest.mark.parametrize(
    "maps", [torch.zeros(1, 5, 2, 2), torch.zeros(1, 6, 4), (torch.zeros(1, 6, 2, 2),) * 2, ()], ids=range(4)
)
def test_maps_that_are_not_those_of_the_model_are_refused(maps):
    with pytest.raises(ValueError, match=r"must be one \(batch, 6, height, width\) map .* got \["):
        small_model()(feature_maps=maps)


def test_labels_of_another_vocabulary_are_refused():
    with pytest.raises(ValueError, match=r"`labels` must be \(batch, num_concepts\) = \(3, 5\), got \(3, 4\)"):
        small_model()(feature_maps=small_inputs()["feature_maps"], labels=LABELS[:, :4])
