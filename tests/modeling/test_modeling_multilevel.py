"""The checks that every model passes, for the multi-level model with each of its text encoders; backbones; options of
the forward pass; errors. Its equations are in `test_equations_multilevel.py`."""

from typing import Any

import pytest
import torch
from transformers import BertConfig, MobileNetV2Config, ResNetConfig

from hf_grounding.modeling.configuration_multilevel import MultiLevelGroundingConfig
from hf_grounding.modeling.modeling_multilevel import MultiLevelGroundingModel, choose_maps
from hf_grounding.processing.image_processing_multilevel import MultiLevelGroundingImageProcessorPil
from hf_grounding.processing.processing_multilevel import MultiLevelGroundingProcessor
from hf_grounding.processing.words import train_word_tokenizer
from tests.common import ModelTesterMixin, SharingTesterMixin, assert_same, tensors_of

IDS = torch.tensor([[2, 3, 4, 5], [6, 7, 0, 0], [8, 9, 3, 0]])
MASK = (IDS > 0).long()
PHRASES = torch.tensor([[[1, 1, 0, 0], [0, 0, 1, 1]], [[1, 1, 0, 0], [0, 0, 0, 0]], [[0, 1, 1, 0], [1, 0, 0, 0]]])


def small_model(seed: int = 0, **settings: Any) -> MultiLevelGroundingModel:
    """Two levels of 3 and 5 channels on a 3 x 3 grid, D = 6, eleven words."""
    sizes: dict[str, Any] = {"level_channels": [3, 5], "grid_size": 3, "hidden_size": 6, "word_embedding_size": 4}
    torch.manual_seed(seed)
    return MultiLevelGroundingModel(MultiLevelGroundingConfig(**{**sizes, "vocab_size": 11, **settings})).eval()


def small_inputs(images: int = 3) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    maps = (torch.randn(images, 3, 5, 4, generator=generator), torch.randn(images, 5, 2, 2, generator=generator))
    return {"feature_maps": maps, "input_ids": IDS, "attention_mask": MASK}


def box_inputs() -> dict[str, torch.Tensor]:
    """Two phrases a caption; the second of caption 1 is padding, the second of caption 2 has no boxes."""
    boxes = torch.zeros(3, 2, 3, 3)
    boxes[0, 0, :2, 0] = 1
    boxes[0, 1, 2] = 0.5
    boxes[1, 0, 1, 1:] = 1
    boxes[2, 0, 0] = 1
    return {"phrase_mask": PHRASES, "box_masks": boxes}


def pixels(images: int = 3) -> torch.Tensor:
    return torch.randn(images, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def mobilenet() -> MobileNetV2Config:
    return MobileNetV2Config(depth_multiplier=0.1, image_size=32, finegrained_output=False)


def resnet() -> ResNetConfig:
    return ResNetConfig(embedding_size=4, hidden_sizes=[4, 6, 8, 10], depths=[1, 1, 1, 1], layer_type="basic")


def bert() -> BertConfig:
    return BertConfig(
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=12,
        vocab_size=11,
        max_position_embeddings=16,
    )


class MultiLevelTesterMixin(ModelTesterMixin):
    chosen = ("heatmaps", "sentence_heatmaps")  # of the level that fits best


class TestBiLSTMOnFeatureMaps(MultiLevelTesterMixin):
    def make_model(self):
        return small_model()

    def make_inputs(self):
        return small_inputs()


class TestSupervisedByBoxes(MultiLevelTesterMixin):
    def make_model(self):
        return small_model(supervision="boxes")

    def make_inputs(self):
        return {**small_inputs(), **box_inputs()}


class TestMobileNetV2(MultiLevelTesterMixin, SharingTesterMixin):
    no_compile = "tracing MobileNetV2 takes seconds; our part is compiled in the tests on feature maps"
    frozen = ("backbone.",)
    auto_classes = ("AutoModel", "AutoModelForZeroShotObjectDetection")

    def make_model(self):
        settings = {"backbone_levels": [2, 5], "level_channels": [8, 8], "dropout": 0.1}
        return small_model(backbone_config=mobilenet(), **settings)

    def make_inputs(self):
        return {"pixel_values": pixels(), "input_ids": IDS, "attention_mask": MASK}

    def make_processor(self):
        image_processor = MultiLevelGroundingImageProcessorPil(size={"height": 32, "width": 32})
        return MultiLevelGroundingProcessor(image_processor, train_word_tokenizer(self.words["text"]), grid_size=3)


class TestResNetAndFrozenTextEncoder(MultiLevelTesterMixin):
    no_compile = "tracing ResNet takes seconds; our part is compiled in the tests on feature maps"
    frozen = ("backbone.", "text_encoder.")

    def make_model(self):
        settings = {"backbone_levels": [2, 4], "level_channels": [6, 10], "sentence_layers": [1, -1]}
        return small_model(backbone_config=resnet(), text_config=bert(), **settings)

    def make_inputs(self):
        return {"pixel_values": pixels(), "input_ids": IDS, "attention_mask": MASK}


class TestTrainedTextEncoder(MultiLevelTesterMixin):
    frozen = ("text_encoder.model.pooler.",)  # not used

    def make_model(self):
        return small_model(text_config=bert(), freeze_text_encoder=False)

    def make_inputs(self):
        return small_inputs()


class TestTrainedBackbone(MultiLevelTesterMixin):
    no_compile = "tracing ResNet takes seconds; our part is compiled in the tests on feature maps"

    def make_model(self):
        settings = {"backbone_levels": [2, 4], "level_channels": [6, 10], "freeze_backbone": False}
        return small_model(backbone_config=resnet(), **settings)

    def make_inputs(self):
        return {"pixel_values": pixels(), "input_ids": IDS, "attention_mask": MASK}


# Batches


def test_longer_padding_changes_nothing():
    model, inputs = small_model(), {**small_inputs(), **box_inputs(), "return_loss": True}
    model.config.supervision = "boxes"
    expected = tensors_of(model(**inputs))
    longer = {
        name: torch.nn.functional.pad(inputs[name], (0, 3)) for name in ("input_ids", "attention_mask", "phrase_mask")
    }
    actual = tensors_of(model(**{**inputs, **longer}))
    for name in ("heatmaps.0", "word_scores.0"):
        assert actual[name][:, 4:].eq(0).all()
    for name in ("heatmaps.0", "word_scores.0", "word_levels.0", "word_embeds.0"):
        actual[name] = actual[name][:, :4]
    real = {name: MASK.bool() for name in ("word_levels.0", "word_embeds.0")}  # of padding they mean nothing
    pick = {name: value[real[name]] if name in real else value for name, value in actual.items()}
    assert_same(pick, {name: value[real[name]] if name in real else value for name, value in expected.items()})


@pytest.mark.parametrize("text", ["bilstm", "bert"])
def test_a_batch_equals_its_rows_one_at_a_time(text):
    model = small_model(text_config=bert() if text == "bert" else None)
    inputs = small_inputs()
    together = model(**inputs)
    for row, length in enumerate(MASK.sum(dim=1).tolist()):
        maps = tuple(level[row : row + 1] for level in inputs["feature_maps"])
        alone = model(feature_maps=maps, input_ids=IDS[row : row + 1, :length])
        for name in ("heatmaps", "word_scores", "word_levels", "word_embeds"):
            torch.testing.assert_close(alone[name][0], together[name][row, :length])
        for name in ("sentence_heatmaps", "sentence_scores", "sentence_levels", "sentence_embeds", "image_embeds"):
            torch.testing.assert_close(alone[name][0], together[name][row])


def test_captions_that_share_an_image_equal_captions_of_repeated_images():
    model, inputs = small_model(), small_inputs(images=2)
    index = torch.tensor([0, 1, 1])
    shared = model(**inputs, image_index=index)
    repeated_maps = tuple(level[index] for level in inputs["feature_maps"])
    repeated = model(**{**inputs, "feature_maps": repeated_maps})
    assert len(shared.image_embeds) == 2
    shared.image_embeds = shared.image_embeds[index]
    assert_same(tensors_of(shared), tensors_of(repeated))


def test_the_word_mask_leaves_special_tokens_out():
    model, inputs = small_model(text_config=bert()), small_inputs()
    words = MASK.clone()
    words[:, 0] = 0  # as a [CLS] token
    output = model(**inputs, word_mask=words)
    assert output.word_scores[words == 0].eq(0).all()
    assert output.heatmaps[words == 0].eq(0).all()
    assert torch.equal(output.word_scores[:, 1:], model(**inputs).word_scores[:, 1:])
    assert not torch.equal(output.sentence_embeds, model(**inputs).sentence_embeds)


@pytest.mark.parametrize("pooling", ["boundary", "mean"])
def test_special_tokens_and_padding_of_either_side_have_no_part_in_the_sentence(pooling):
    model = small_model(text_config=bert(), sentence_pooling=pooling)
    states = torch.randn(1, 2, 5, 8, generator=torch.Generator().manual_seed(3))
    states[0, 1] = states[0, 0].roll(1, dims=0)  # the same words, one position later
    mask = torch.tensor([[0, 1, 1, 0, 0], [0, 0, 1, 1, 0]])
    expected = model.sentence_mix(states, mask)
    torch.testing.assert_close(expected[0], expected[1])
    states[0][mask == 0] = 100.0
    assert torch.equal(model.sentence_mix(states, mask), expected)


def test_padded_words_have_no_share_in_the_softmax_over_words_whether_they_count_or_not():
    settings = {"attention": "softmax", "softmax_axis": "words"}
    inputs = {**small_inputs(), "return_loss": True}
    masked, counted = small_model(**settings)(**inputs), small_model(**settings, mask_padding=False)(**inputs)
    for name in ("heatmaps", "word_scores"):
        assert torch.equal(counted[name], masked[name])
    # Each counted padding adds exp(0) = 1 to the sum of exp(gamma_1 R_t).
    padding = (MASK == 0).sum(dim=1, keepdim=True)
    torch.testing.assert_close((5 * counted.word_logits).exp(), (5 * masked.word_logits).exp() + padding)


def test_padded_words_change_the_word_logits_only_when_they_are_counted():
    inputs = {**small_inputs(), "return_loss": True}
    masked, counted = small_model()(**inputs), small_model(mask_padding=False)(**inputs)
    full = MASK.bool().all(dim=1)
    torch.testing.assert_close(counted.word_logits[full], masked.word_logits[full])
    assert (counted.word_logits[~full] > masked.word_logits[~full]).all()  # R_t is never negative, exp(0) = 1 is added
    torch.testing.assert_close(counted.sentence_logits, masked.sentence_logits)
    assert torch.equal(counted.word_scores, masked.word_scores)


@pytest.mark.parametrize("attention", ["relu", "softmax"])
def test_the_logits_of_pairs_agree_with_the_scores_of_captions_in_their_own_image(attention):
    model = small_model(attention=attention, softmax_axis="words")
    output = model(**small_inputs(), return_loss=True)
    torch.testing.assert_close(output.sentence_logits.diagonal(), output.sentence_scores)
    pooled = torch.where(MASK.bool(), (5 * output.word_scores).exp(), 0).sum(dim=1).log() / 5
    torch.testing.assert_close(output.word_logits.diagonal(), pooled)


def test_chunked_loss_and_gradients_equal_unchunked():
    def loss_and_gradients(chunk_size):
        model = small_model(attention_chunk_size=chunk_size, supervision="boxes").double()
        inputs = {**small_inputs(), **box_inputs(), "return_loss": True}
        loss = model(**inputs).loss
        loss.backward()
        return loss, {name: parameter.grad for name, parameter in model.named_parameters()}

    expected_loss, expected = loss_and_gradients(None)
    for chunk_size in (1, 2, 100):
        loss, gradients = loss_and_gradients(chunk_size)
        torch.testing.assert_close(loss, expected_loss)
        assert_same(gradients, expected)


def test_scores_are_between_zero_and_one():
    output = small_model()(**small_inputs())
    for scores in (output.word_scores, output.sentence_scores, output.heatmaps, output.sentence_heatmaps):
        assert scores.min() >= 0
        assert scores.max() <= 1 + 1e-6


# Ablations and options


def test_only_the_levels_in_use_are_mapped_and_chosen():
    sizes = {"level_channels": [3, 4, 5], "word_level": 2, "sentence_level": 0}
    model = small_model(**sizes)
    assert [mapping.layers[0].in_features for mapping in model.visual_mappings] == [3, 5]
    inputs = small_inputs()
    maps = (inputs["feature_maps"][0], torch.full((3, 4, 2, 2), torch.nan), inputs["feature_maps"][1])
    output = model(**{**inputs, "feature_maps": maps}, return_loss=True)
    assert output.image_embeds.shape == (3, 9, 2, 6)
    assert output.word_levels.eq(2).all()
    assert output.sentence_levels.eq(0).all()
    assert output.loss.isfinite()


def test_one_level_for_both_text_units_maps_one_level():
    model = small_model(word_level=1, sentence_level=1)
    assert len(model.visual_mappings) == 1
    output = model(**small_inputs())
    assert output.word_levels.eq(1).all()
    assert output.sentence_levels.eq(1).all()


def test_a_single_level_for_words_leaves_sentences_all_levels():
    model, free = small_model(word_level=1), small_model()
    assert len(model.visual_mappings) == 2
    actual, expected = model(**small_inputs()), free(**small_inputs())
    assert actual.word_levels.eq(1).all()
    assert not expected.word_levels.eq(1).all()
    assert torch.equal(actual.sentence_levels, expected.sentence_levels)


def test_linear_mappings_have_one_layer_each():
    model = small_model(visual_mapping="linear", text_mapping="linear")
    assert [len(m.layers) for m in (*model.visual_mappings, model.word_mapping, model.sentence_mapping)] == [1] * 4
    assert model(**small_inputs(), return_loss=True).loss.isfinite()


def test_chosen_word_layers_alone_reach_the_words():
    model = small_model(word_layers=[0])
    assert model.word_mix.weight.shape == (1,)
    same_word = torch.tensor([[2, 3], [2, 4], [5, 3]])
    words = model(feature_maps=small_inputs()["feature_maps"], input_ids=same_word).word_embeds
    torch.testing.assert_close(words[0, 0], words[1, 0])  # whatever stands beside it
    torch.testing.assert_close(words[0, 1], words[2, 1])


def test_the_first_and_last_layer_have_a_number_from_either_end():
    first_to_last, last_to_first = (
        small_model(text_config=bert(), word_layers=layers, sentence_layers=layers)(**small_inputs())
        for layers in ([0, 2], [-3, -1])
    )
    assert_same(tensors_of(first_to_last), tensors_of(last_to_first), rtol=0, atol=0)


def test_dropout_is_off_in_eval_mode_and_on_in_training():
    model, inputs = small_model(dropout=0.5), small_inputs()
    expected = small_model()(**inputs).word_embeds
    assert torch.equal(model(**inputs).word_embeds, expected)
    assert not torch.allclose(model.train()(**inputs).word_embeds, expected)


# Backbones and encoders


@pytest.mark.parametrize("config, levels, channels", [(mobilenet(), [2, 5], [8, 8]), (resnet(), [2, 4], [6, 10])])
def test_a_frozen_backbone_stays_in_eval_mode_and_keeps_its_statistics(config, levels, channels):
    model = small_model(backbone_config=config, backbone_levels=levels, level_channels=channels)
    expected = model.get_feature_maps(pixels())
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    assert any("running_mean" in name for name in before)
    model.train()
    assert model.training
    assert not any(module.training for module in model.backbone.modules())
    for actual, level in zip(model.get_feature_maps(pixels()), expected, strict=True):
        assert torch.equal(actual, level)
        assert not actual.requires_grad
    assert_same(dict(model.backbone.state_dict()), before, rtol=0, atol=0)


def test_a_frozen_text_encoder_stays_in_eval_mode_and_a_trained_one_follows():
    frozen, trained = (
        small_model(text_config=bert()).train(),
        small_model(text_config=bert(), freeze_text_encoder=False).train(),
    )
    assert not any(module.training for module in frozen.text_encoder.modules())
    assert all(module.training for module in trained.text_encoder.modules())


def test_feature_maps_of_the_backbone_give_what_its_pixels_give():
    model = small_model(backbone_config=resnet(), backbone_levels=[2, 4], level_channels=[6, 10])
    maps = model.get_feature_maps(pixels())
    assert [tuple(level.shape) for level in maps] == [(3, 6, 4, 4), (3, 10, 1, 1)]
    text = {"input_ids": IDS, "attention_mask": MASK}
    assert_same(tensors_of(model(feature_maps=maps, **text)), tensors_of(model(pixel_values=pixels(), **text)))


class BackboneOutput:
    """Hidden states that are told apart by their values, and a last hidden state that is yet another map."""

    hidden_states = tuple(torch.full((1, 2, 3, 3), float(i)) for i in range(4))
    last_hidden_state = torch.full((1, 2, 3, 3), 9.0)


def test_levels_are_counted_from_the_start_or_the_end_of_the_hidden_states():
    # four hidden states: 4 is the last hidden state itself
    chosen = choose_maps(BackboneOutput, [0, 3, -1, -4, 4])
    assert [float(level[0, 0, 0, 0]) for level in chosen] == [0.0, 3.0, 3.0, 0.0, 9.0]


@pytest.mark.parametrize("levels, wrong", [([5], r"\[5\]"), ([-5, 1], r"\[-5\]"), ([0, 7], r"\[7\]")])
def test_levels_the_backbone_does_not_have_are_named_with_the_shapes_there_are(levels, wrong):
    with pytest.raises(ValueError, match=rf"`backbone_levels` {wrong} are no .* 0: \(1, 2, 3, 3\)"):
        choose_maps(BackboneOutput, levels)


def test_maps_without_height_and_width_are_refused():
    class Tokens:
        hidden_states = (torch.zeros(1, 10, 8), torch.zeros(1, 10, 8))
        last_hidden_state = torch.zeros(1, 10, 8)

    with pytest.raises(ValueError, match=r"`backbone_levels` \[1\] are no \(batch, channels, height, width\) maps"):
        choose_maps(Tokens, [1])


# Errors


@pytest.mark.parametrize("name", ["word_layers", "sentence_layers"])
@pytest.mark.parametrize(
    "text, layers, message",
    [
        (None, [0, 2], r"\[2\] are no layers .* which has 2, its input included; name layers from -2 to 1"),
        (None, [-3], r"\[-3\] are no layers .* which has 2"),
        (bert(), [3, 1, -4], r"\[3, -4\] are no layers .* which has 3, its input included; name layers from -3 to 2"),
    ],
    ids=["bilstm", "bilstm, negative", "bert"],
)
def test_layers_the_text_encoder_does_not_have_are_named_when_the_model_is_built(name, text, layers, message):
    with pytest.raises(ValueError, match=f"`{name}` {message}"):
        small_model(text_config=text, **{name: layers})


def test_pixels_and_feature_maps_exclude_each_other():
    model, inputs = small_model(), small_inputs()
    with pytest.raises(ValueError, match="either `pixel_values` or `feature_maps`"):
        model(pixel_values=pixels(), **inputs)
    with pytest.raises(ValueError, match="either `pixel_values` or `feature_maps`"):
        model(input_ids=IDS)


def test_a_model_without_backbone_asks_for_feature_maps():
    with pytest.raises(ValueError, match=r"no backbone .* pass `feature_maps`"):
        small_model()(pixel_values=pixels(), input_ids=IDS)


def test_missing_text_is_named():
    with pytest.raises(ValueError, match="`input_ids` is missing; the processor makes it"):
        small_model()(feature_maps=small_inputs()["feature_maps"])


@pytest.mark.parametrize("maps, found", [((5, 3), r"\[5, 3\]"), ((3,), r"\[3\]"), ((3, 5, 5), r"\[3, 5, 5\]")])
def test_feature_maps_that_are_not_the_levels_of_the_model_are_refused(maps, found):
    wrong = tuple(torch.zeros(3, channels, 2, 2) for channels in maps)
    with pytest.raises(ValueError, match=rf"have {found} channels but the model was made for \[3, 5\]"):
        small_model()(feature_maps=wrong, input_ids=IDS)


def test_more_captions_than_images_need_an_image_index():
    inputs = small_inputs(images=2)
    with pytest.raises(ValueError, match="3 captions but 2 images; say by `image_index`"):
        small_model()(**inputs)


def test_the_loss_needs_one_caption_for_each_image():
    with pytest.raises(ValueError, match="`return_loss` needs one caption for each image"):
        small_model()(**small_inputs(), image_index=torch.arange(3), return_loss=True)


@pytest.mark.parametrize("missing", ["phrase_mask", "box_masks"])
def test_box_supervision_without_boxes_is_refused(missing):
    inputs = {**small_inputs(), **box_inputs(), missing: None}
    with pytest.raises(ValueError, match="needs `phrase_mask` and `box_masks`; the processor makes them"):
        small_model(supervision="boxes")(**inputs, return_loss=True)


def test_the_bilstm_refuses_captions_padded_on_the_left():
    encoder = MultiLevelGroundingModel(MultiLevelGroundingConfig(level_channels=[4], vocab_size=9)).text_encoder
    with pytest.raises(ValueError, match="padded on the right"):
        encoder(torch.tensor([[0, 1, 2]]), torch.tensor([[0, 1, 1]]))
