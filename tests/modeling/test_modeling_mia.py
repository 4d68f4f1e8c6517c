"""The checks that every model passes, for captioners; Auto classes; concepts and their table; batches and padding;
losses and scheduled sampling; errors. Decoders: `test_caption_decoders.py`; `generate`: `test_generation_mia.py`."""

from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy, pad
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    ConvNextConfig,
    MobileNetV2Config,
    ResNetConfig,
)

from hf_grounding import MIAConfig, MIAForCaptioning, MIAModel, MIAProcessor
from hf_grounding.modeling.convert_mia import up_down_state_dict
from hf_grounding.modeling.modeling_mia import parameters_behind
from hf_grounding.processing.caption_tokenizers import caption_tokenizer_from_words
from hf_grounding.processing.image_processing_multilevel import MultiLevelGroundingImageProcessorPil
from tests.captioners import (
    CASE_IDS,
    CASES,
    DECODERS,
    LABELS,
    inputs_of,
    small_captioner,
    small_config,
    small_inputs,
    without_dropout,
)
from tests.common import ModelTesterMixin, SharingTesterMixin, assert_same


def resnet() -> ResNetConfig:
    return ResNetConfig(embedding_size=4, hidden_sizes=[4, 6, 8, 10], depths=[1, 1, 1, 1], layer_type="basic")


def pixels() -> torch.Tensor:
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(2))


class CaptionerTesterMixin(ModelTesterMixin):
    def of_old_words(self, outputs, num_words):
        logits = outputs["logits.0"][..., :num_words]
        kept = {name: x for name, x in outputs.items() if name not in ("loss.0", "caption_loss.0")}
        return {**kept, "logits.0": logits}


class TestUpDownWithMIA(CaptionerTesterMixin):
    cancelling = ("attention.key.bias", "attention.score.bias")

    def make_model(self):
        return without_dropout("up_down")

    def make_inputs(self):
        return {**small_inputs(), "labels": LABELS}


class TestVisualAttentionOverRegionsThatAttendToThemselves(CaptionerTesterMixin):
    cancelling = ("attention.key.bias", "attention.score.bias")
    decoder_type, mia_output = "visual_attention", "visual"

    def make_model(self):
        return without_dropout(self.decoder_type, mia_attention="self", mia_output=self.mia_output)

    def make_inputs(self):
        return {**small_inputs(), "labels": LABELS}


class TestConceptAttentionOverConceptsThatAttendToThemselves(TestVisualAttentionOverRegionsThatAttendToThemselves):
    decoder_type, mia_output = "concept_attention", "textual"


class TestTransformer(CaptionerTesterMixin):
    frozen = ("decoder.layers.embed_positions.",)
    cancelling = ("k_proj.bias",)

    def make_model(self):
        return without_dropout("transformer", 0)

    def make_inputs(self):
        return {**small_inputs(), "labels": LABELS}


class TestFrozenBackbone(CaptionerTesterMixin):
    no_compile = "tracing ResNet takes seconds; our part is compiled in the tests on region features"
    frozen: tuple[str, ...] = ("model.backbone.",)
    cancelling = ("attention.key.bias",)
    settings: dict[str, Any] = {"backbone_level": 2}

    def make_model(self):
        torch.manual_seed(0)  # weights as training starts from, because half precision adds up over ResNet's layers
        rates = dict.fromkeys(["dropout", "mia_dropout"], 0.0)
        config = small_config("visual_attention", backbone_config=resnet(), **self.settings, **rates)
        return MIAForCaptioning(config).eval()

    def make_inputs(self):
        inputs = small_inputs()
        return {"pixel_values": pixels(), **{k: v for k, v in inputs.items() if "region" not in k}, "labels": LABELS}


class TestTrainedBackbone(TestFrozenBackbone):
    frozen = ()
    settings = {"feature_dim": 10, "freeze_backbone": False}


class TestSharing(SharingTesterMixin):
    auto_classes = ("AutoModelForImageTextToText",)
    words = {"text": ["a man", "the dog"], "concepts": [["man", "horse"], ["dog"]]}

    def make_model(self):
        return small_captioner("visual_attention", backbone_config=resnet(), feature_dim=10)

    def make_processor(self):
        image_processor = MultiLevelGroundingImageProcessorPil(size={"height": 64, "width": 64})
        tokenizer = caption_tokenizer_from_words(["a", "the", "man", "horse", "dog"])
        return MIAProcessor(image_processor, tokenizer, extraction={"concept_detector": "somewhere"})


class TestSharingOfTheBaseModel(TestSharing):
    auto_classes = ("AutoModel",)

    def make_model(self):
        return super().make_model().model


class TestBackboneTrainedFromItsThirdConvolutions(TestFrozenBackbone):
    frozen = ("model.backbone.model.embedder.", "model.backbone.model.encoder.stages.0.")
    settings = {"feature_dim": 10, "freeze_backbone": False, "backbone_trainable_from": 1}


# Backbones that are trained from a stage on


@pytest.mark.parametrize("loaded", [False, True], ids=["built", "loaded"])
def test_what_comes_before_the_stage_stays_in_eval_mode_and_what_follows_does_not(tmp_path, loaded):
    settings = {"feature_dim": 10, "freeze_backbone": False, "backbone_trainable_from": 1}
    model = small_captioner("visual_attention", 0, backbone_config=resnet(), **settings)
    if loaded:
        model.save_pretrained(tmp_path)
        model = MIAForCaptioning.from_pretrained(tmp_path)
    network = model.train().model.backbone.model
    stages = network.encoder.stages
    assert not any(module.training for kept in (network.embedder, stages[0]) for module in kept.modules())
    assert all(module.training for stage in stages[1:] for module in stage.modules())
    assert not any(module.training for module in model.eval().modules())


def test_any_backbone_with_hidden_states_can_be_trained_from_a_stage_on():
    networks = [
        (MobileNetV2Config(depth_multiplier=0.1, image_size=32, finegrained_output=False), "layer.2."),
        (ConvNextConfig(hidden_sizes=[4, 6, 8, 10], depths=[1, 1, 1, 1]), "encoder.stages.1."),
    ]
    for config, between in networks:
        with torch.device("meta"):
            network = AutoModel.from_config(config)
        first, second = (parameters_behind(network, state) for state in (1, 2))
        names = {name for name, _ in network.named_parameters()}
        assert first < second < names
        assert second - first == {name for name in names if name.startswith(between)}


def test_a_stage_that_the_backbone_has_not_is_named():
    settings = {"feature_dim": 10, "freeze_backbone": False}
    with pytest.raises(ValueError, match=r"`backbone_trainable_from` 5 is no hidden state .*, which has 5"):
        small_captioner("up_down", backbone_config=resnet(), backbone_trainable_from=5, **settings)


# Auto classes


@pytest.mark.parametrize("name, tied", [("up_down", True), ("concept_attention", True), ("up_down", False)])
def test_auto_classes_load_the_captioner_and_its_base_model_from_one_checkpoint(tmp_path, name, tied):
    model, inputs = small_captioner(name, tie_word_embeddings=tied), small_inputs(name)
    model.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is MIAConfig
    captioner = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert type(captioner) is MIAForCaptioning
    assert_same(captioner.state_dict(), model.state_dict(), rtol=0, atol=0)
    base, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(base) is MIAModel
    assert not info["missing_keys"]
    assert_same(base.state_dict(), model.model.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(
        base(**inputs).last_hidden_state, model.model(**inputs).last_hidden_state, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("name, iterations", CASES, ids=CASE_IDS)
def test_every_captioner_can_be_saved_and_loaded(tmp_path, name, iterations):
    model, inputs = small_captioner(name, iterations), {**small_inputs(name), "labels": LABELS}
    model.save_pretrained(tmp_path)
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert {kind: keys for kind, keys in info.items() if keys} == {}
    torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits)


def test_a_new_model_starts_as_the_paper_and_the_code_say():
    torch.manual_seed(0)
    config = MIAConfig(vocab_size=50, feature_dim=100, hidden_size=128, embedding_size=128, intermediate_size=16)
    model = MIAForCaptioning(config)
    regions = model.model.project_regions.linear
    assert regions.bias.eq(0).all()
    bound = (6 / 100) ** 0.5  # Kaiming-uniform before a ReLU
    assert 0.95 * bound < regions.weight.abs().max() <= bound
    for layer in (model.decoder.attention.rows, model.decoder.attention.state):
        bound = (6 / (128 + 49)) ** 0.5  # Xavier-uniform
        assert 0.95 * bound < layer.weight.abs().max() <= bound
        assert layer.bias is None
    query = model.model.mia.visual_layers[0].attention.query.weight
    torch.testing.assert_close(query.std().item(), (2 / (128 + 16)) ** 0.5, rtol=0.05, atol=0)


# Concepts


def captions() -> dict[str, torch.Tensor]:
    return {"decoder_input_ids": torch.tensor([[1, 5, 9], [1, 4, 6], [1, 7, 2]])}


@pytest.mark.parametrize("name", DECODERS)
@torch.no_grad()
def test_only_as_many_concepts_as_regions_are_used(name):
    model, inputs = small_captioner(name), small_inputs(name)
    expected = model(**inputs, **captions()).logits
    more = torch.tensor([[6, 8], [10, 11], [12, 4]])
    inputs["concept_ids"] = torch.cat([inputs["concept_ids"], more], dim=1)
    inputs["concept_mask"] = pad(inputs["concept_mask"], (0, 2), value=1)
    torch.testing.assert_close(model(**inputs, **captions()).logits, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", DECODERS)
@torch.no_grad()
def test_fewer_concepts_than_regions_are_filled_up_with_the_pad_word(name):
    model, inputs = small_captioner(name, pad_token_id=3), small_inputs(name)
    inputs["concept_ids"], inputs["concept_mask"] = inputs["concept_ids"][:, :2], inputs["concept_mask"][:, :2]
    expected = model(**inputs, **captions()).logits
    for word in (3, 10):  # what stands under the mask is of no account
        filled = {
            "concept_ids": pad(inputs["concept_ids"], (0, 2), value=word),
            "concept_mask": pad(inputs["concept_mask"], (0, 2)),
        }
        torch.testing.assert_close(model(**{**inputs, **filled}, **captions()).logits, expected, rtol=1e-5, atol=1e-6)
    model.get_input_embeddings().weight.data[3] += 1  # the pad word itself is
    assert not torch.equal(model(**inputs, **captions()).logits, expected)


@torch.no_grad()
def test_an_image_with_fewer_regions_uses_only_as_many_concepts():
    model, inputs = small_captioner("up_down"), small_inputs()
    inputs["concept_mask"][:] = 1
    expected = model(**inputs, **captions()).logits
    changed = {**inputs, "concept_ids": inputs["concept_ids"].clone()}
    changed["concept_ids"][1, 3:] = 10  # image 1 has three regions, image 2 two
    changed["concept_ids"][2, 2:] = 10
    torch.testing.assert_close(model(**changed, **captions()).logits, expected, rtol=1e-5, atol=1e-6)
    changed["concept_ids"][2, 1] = 10
    actual = model(**changed, **captions()).logits
    assert torch.equal(actual[:2], expected[:2])
    assert (actual[2] - expected[2]).abs().max() > 0.01


def test_without_the_module_the_number_of_concepts_is_free():
    model, inputs = small_captioner("visual_condition", 0), small_inputs()
    rows = model.model(**inputs)
    assert torch.equal(rows.textual_mask, inputs["concept_mask"])
    inputs["concept_ids"][0, 3] = 9
    assert not torch.equal(model.model(**inputs).textual_states[0, 3], rows.textual_states[0, 3])


@pytest.mark.parametrize("output", ["visual", "textual"])
def test_where_self_attention_reads_one_side_the_number_of_concepts_is_free(output):
    model = small_captioner("concept_condition", mia_attention="self", mia_output=output)
    inputs = small_inputs()
    extra = {
        "concept_ids": pad(inputs["concept_ids"], (0, 2), value=9),
        "concept_mask": pad(inputs["concept_mask"], (0, 2)),
    }
    extra["concept_mask"][2] = 1  # six concepts of image 2, which has two regions
    rows = model.model(**{**inputs, **extra})
    assert torch.equal(rows.visual_mask, inputs["region_mask"])
    assert torch.equal(rows.textual_mask, extra["concept_mask"])
    fewer = model.model(**{**inputs, **extra, "concept_mask": pad(inputs["concept_mask"], (0, 2))})
    logits, without = (model.decoder.memory(each).pooled for each in (rows, fewer))
    torch.testing.assert_close(logits[:2], without[:2])
    assert not torch.allclose(logits[2], without[2], atol=1e-3)


def test_concepts_of_another_number_of_images_are_refused():
    for settings in ({}, {"mia_attention": "self", "mia_output": "visual"}, {"mia_iterations": 0}):
        model, inputs = small_captioner("visual_condition", **settings), small_inputs()
        inputs["concept_ids"], inputs["concept_mask"] = inputs["concept_ids"][:1], inputs["concept_mask"][:1]
        with pytest.raises(ValueError, match="`concept_ids` are of 1 images, the regions of 3"):
            model.model(**inputs)


@pytest.mark.parametrize("attention", ["mutual", "self"])
@pytest.mark.parametrize("output", ["both", "visual", "textual"])
@pytest.mark.parametrize("iterations", [0, 1])
def test_the_configuration_says_what_the_module_reads(attention, output, iterations):
    config = small_config("concept_condition", iterations, mia_attention=attention, mia_output=output)
    module = MIAModel(config).mia
    read = [] if module is None else module.reads
    assert [side for side in ("visual", "textual") if config.module_reads(side)] == read


@pytest.mark.parametrize(
    "output, visual, textual",
    [("both", "fused", "fused"), ("visual", "visual", "embedded"), ("textual", "projected", "textual")],
)
def test_the_decoder_sees_what_mia_output_says(output, visual, textual):
    model = small_captioner("visual_condition", mia_output=output).model
    inputs = inputs_of(0)
    projected = model.project_regions(inputs["region_features"])
    embedded = model.embed_concepts(inputs["concept_ids"])
    refined = model.mia(projected, embedded)
    rows = {**refined, "projected": projected, "embedded": embedded}
    actual = model(**inputs)
    torch.testing.assert_close(actual.visual_states, rows[visual])
    torch.testing.assert_close(actual.textual_states, rows[textual])
    torch.testing.assert_close(actual.last_hidden_state, rows[{"both": "fused"}.get(output, output)])


def test_concepts_and_words_share_one_table_through_saving_and_resizing(tmp_path):
    model = small_captioner("concept_attention")
    assert model.model.embed_concepts.weight is model.decoder.embed_words.weight
    model.resize_token_embeddings(15, mean_resizing=False)
    model.save_pretrained(tmp_path)
    assert "decoder.embed_words.weight" not in load_file(tmp_path / "model.safetensors")
    for each in (model, MIAForCaptioning.from_pretrained(tmp_path)):
        assert each.model.embed_concepts.weight is each.decoder.embed_words.weight
        assert each.model.embed_concepts.num_embeddings == each.decoder.embed_words.num_embeddings == 15


def test_the_trainer_does_not_miss_the_tied_table_when_it_loads_weights(tmp_path):
    for tied, missing in ((True, {"decoder.embed_words.weight"}), (False, set())):
        model = small_captioner("up_down", tie_word_embeddings=tied)
        model.save_pretrained(tmp_path)
        result = model.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=False)
        assert set(result.missing_keys) == missing == model._keys_to_ignore_on_save


def test_a_table_that_is_set_is_the_concepts_too():
    model = small_captioner("concept_attention")
    table = torch.nn.Embedding(13, 8)
    model.set_input_embeddings(table)
    model.tie_weights()
    assert model.decoder.embed_words.weight is model.model.embed_concepts.weight is table.weight


def test_untied_tables_are_two_through_saving_and_resizing(tmp_path):
    model = small_captioner("up_down", tie_word_embeddings=False, embedding_size=5)
    concepts, words = model.model.embed_concepts.weight.clone(), model.decoder.embed_words.weight.clone()
    model.resize_token_embeddings(15, mean_resizing=False)
    model.save_pretrained(tmp_path)
    loaded = MIAForCaptioning.from_pretrained(tmp_path)
    assert loaded.config.vocab_size == 15
    assert torch.equal(loaded.model.embed_concepts.weight[:13], concepts)
    assert torch.equal(loaded.decoder.embed_words.weight[:13], words)
    assert loaded.model.embed_concepts.weight.shape == (15, 8)
    inputs = small_inputs()
    inputs["concept_ids"][0, 0] = 14
    torch.testing.assert_close(
        loaded(**inputs, **captions()).logits, model(**inputs, **captions()).logits, rtol=1e-5, atol=1e-6
    )


# Batches, padding and losses


@pytest.mark.parametrize("name, iterations", CASES, ids=CASE_IDS)
@torch.no_grad()
def test_a_batch_equals_its_images_alone_without_padding(name, iterations):
    model = small_captioner(name, iterations)
    logits = model(**small_inputs(name), **captions()).logits
    for image in range(3):
        alone = model(**inputs_of(image, name), decoder_input_ids=captions()["decoder_input_ids"][image, None]).logits
        torch.testing.assert_close(logits[image], alone[0], rtol=1e-4, atol=1e-5)


def more_padding(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Two more columns of regions and concepts, and large numbers and other words wherever the mask is 0."""
    longer = {name: pad(inputs[name], (0, 2)) for name in ("region_mask", "concept_mask", "concept_ids")}
    features = pad(inputs["region_features"], (0, 0, 0, 2))
    features.masked_fill_(longer["region_mask"][..., None] == 0, 1e3)
    of_regions = {name: pad(inputs[name], (0, 0, 0, 2)) for name in ("boxes", "class_probs") if name in inputs}
    for values in of_regions.values():
        values.masked_fill_(longer["region_mask"][..., None] == 0, 0.9)
    return {
        **of_regions,
        **longer,
        "region_features": features,
        "concept_ids": longer["concept_ids"].masked_fill(longer["concept_mask"] == 0, 10),
    }


@pytest.mark.parametrize("name, iterations", CASES, ids=CASE_IDS)
@torch.no_grad()
def test_padding_and_what_stands_in_it_change_nothing(name, iterations):
    model, inputs = small_captioner(name, iterations), small_inputs(name)
    expected = model(**inputs, **captions(), output_attentions=True)
    actual = model(**more_padding(inputs), **captions(), output_attentions=True)
    torch.testing.assert_close(actual.logits, expected.logits, rtol=1e-4, atol=1e-5)
    for longer, weights in zip(actual.cross_attentions, expected.cross_attentions, strict=True):
        torch.testing.assert_close(longer, pad(weights, (0, 2)), rtol=1e-4, atol=1e-6)
    options = {"num_beams": 3, "max_new_tokens": 6}
    assert torch.equal(model.generate(**more_padding(inputs), **options), model.generate(**inputs, **options))


@pytest.mark.parametrize("name, iterations", CASES, ids=CASE_IDS)
@torch.no_grad()
def test_captions_of_one_image_share_it_and_equal_each_alone(name, iterations):
    model, index = small_captioner(name, iterations), torch.tensor([0, 0, 2, 1, 2])
    words = torch.tensor([[1, 5, 9], [1, 4, 6], [1, 7, 2], [1, 12, 12], [1, 3, 8]])
    batch = model(**small_inputs(name), decoder_input_ids=words, image_index=index, labels=words)
    assert batch.logits.shape == (5, 3, 13)
    for caption, image in enumerate(index.tolist()):
        alone = model(**inputs_of(image, name), decoder_input_ids=words[caption, None])
        torch.testing.assert_close(batch.logits[caption], alone.logits[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(batch.loss, cross_entropy(batch.logits.flatten(0, 1), words.flatten()))


@pytest.mark.parametrize("name, iterations", CASES, ids=CASE_IDS)
def test_a_training_step_has_the_loss_and_gradients_of_all_words_though_ended_captions_are_left_out(name, iterations):
    model = without_dropout(name, iterations, label_smoothing=0.1)
    inputs = {**small_inputs(name), "labels": LABELS[[0, 1, 2, 0]], "image_index": torch.tensor([0, 1, 2, 1])}
    expected = model(**inputs)
    expected.loss.backward()
    gradients = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    actual = model.train()(**inputs)
    assert actual.logits is None
    torch.testing.assert_close(actual.loss, expected.loss)
    actual.loss.backward()
    trained = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    assert_same(trained, gradients, rtol=1e-3, atol=1e-5)


def test_up_down_runs_only_the_captions_that_go_on():
    model, rows = without_dropout("up_down").train(), []
    hook = model.decoder.attention.state.register_forward_hook(lambda _, args, __: rows.append(len(args[0])))
    model(**small_inputs(), labels=LABELS)
    hook.remove()
    assert rows == [3, 3, 2, 1, 1]


def test_labels_become_inputs_one_place_later_behind_the_start():
    model = small_captioner("up_down", pad_token_id=3)
    expected = [[1, 5, 9, 2, 3], [1, 4, 6, 8, 12], [1, 7, 2, 3, 3]]
    assert model.prepare_decoder_input_ids_from_labels(LABELS).tolist() == expected
    by_labels = model(**small_inputs(), labels=LABELS)
    explicit = model(**small_inputs(), decoder_input_ids=torch.tensor(expected))
    assert explicit.loss is None
    torch.testing.assert_close(by_labels.logits, explicit.logits, rtol=1e-5, atol=1e-6)
    scored = by_labels.logits.log_softmax(dim=-1)[LABELS != -100]
    by_hand = -scored[torch.arange(10), LABELS[LABELS != -100]].mean()
    torch.testing.assert_close(by_labels.loss, by_hand)


def test_dropout_makes_training_steps_differ_and_evaluation_not():
    for name in DECODERS:
        model, inputs = small_captioner(name), {**small_inputs(name), "labels": LABELS}
        assert model(**inputs).loss == model(**inputs).loss
        model.train()
        assert model(**inputs).loss != model(**inputs).loss, name


# Scheduled sampling


def model_that_says(word: int) -> MIAForCaptioning:
    model = without_dropout("up_down")
    model.output.bias.data[word] += 50
    return model.train()


def test_scheduled_sampling_of_all_words_goes_on_from_the_models_own():
    model, inputs = model_that_says(10), {**small_inputs(), "labels": LABELS}
    plain = model(**inputs).loss
    model.scheduled_sampling_prob = 1.0
    own = torch.tensor([[1, 10, 10, 10, 10]]).expand(3, -1)
    expected = model.eval()(**inputs, decoder_input_ids=own).loss
    torch.testing.assert_close(model.train()(**inputs).loss, expected)
    assert (expected - plain).abs() > 0.01


def test_scheduled_sampling_replaces_the_share_of_words_that_it_is_told_to():
    model, read = model_that_says(10), []
    model.scheduled_sampling_prob = 0.25
    model.decoder.embed_words.register_forward_hook(lambda _, args, __: read.append(args[0]))
    index = torch.arange(3).repeat_interleave(400)
    torch.manual_seed(0)
    model(**small_inputs(), labels=LABELS[[1]].expand(1200, -1), image_index=index)
    words = torch.stack(read, dim=1)
    assert words[:, 0].eq(1).all()
    assert set(words[:, 2].tolist()) == {6, 10}
    assert abs((words[:, 1:] == 10).float().mean() - 0.25) < 0.02


@pytest.mark.parametrize("name", ["visual_condition", "up_down", "transformer"])
def test_gradients_flow_through_words_of_ones_own(name):
    model = without_dropout(name, 2).train()
    model.scheduled_sampling_prob = 0.5
    model(**small_inputs(name), labels=LABELS).loss.backward()
    for parameter in (model.output.weight, model.decoder.embed_words.weight, model.model.project_regions.linear.weight):
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().max() > 1e-4


# Pictures


def test_cells_of_the_backbones_map_are_the_regions_row_by_row():
    model = small_captioner("visual_attention", 0, backbone_config=resnet(), backbone_level=2).model
    (feature_map,) = model.backbone(pixels())
    batch, channels, height, width = feature_map.shape
    cells = [[feature_map[b, :, y, x] for y in range(height) for x in range(width)] for b in range(batch)]
    cells = torch.stack([torch.stack(rows) for rows in cells])
    assert cells.shape == (3, height * width, channels)
    expected = model(region_features=cells).last_hidden_state
    torch.testing.assert_close(model(pixel_values=pixels()).last_hidden_state, expected, rtol=1e-5, atol=1e-6)


# Errors


@pytest.mark.parametrize(
    "change, message",
    [
        ({"region_features": None}, "Give `region_features` or `pixel_values`; got neither"),
        ({"pixel_values": torch.zeros(3, 3, 8, 8)}, "either `region_features` or `pixel_values`, not both"),
        (
            {"region_features": None, "pixel_values": torch.zeros(3, 3, 8, 8)},
            r"has no backbone \(`config.backbone_config` is None\); pass `region_features`",
        ),
        ({"region_features": torch.zeros(3, 4, 5)}, r"must be \(batch, num_regions, 6\) .*, got \(3, 4, 5\)"),
        ({"region_features": torch.zeros(4, 6)}, r"must be \(batch, num_regions, 6\) .*, got \(4, 6\)"),
        ({"region_mask": torch.ones(3, 3)}, r"`region_mask` must be \(3, 4\) as `region_features`, got \(3, 3\)"),
        ({"concept_ids": None}, r"`concept_ids` must be \(batch, num_concepts\), got nothing"),
        ({"concept_ids": torch.ones(4).long()}, r"`concept_ids` must be .*, got shape \(4,\)"),
        ({"concept_mask": torch.ones(3, 3)}, r"`concept_mask` must be \(3, 4\) as `concept_ids`, got \(3, 3\)"),
        (
            {"concept_ids": torch.ones(2, 4).long(), "concept_mask": None},
            "`concept_ids` are of 2 images, the regions of 3",
        ),
        ({"decoder_input_ids": None}, "Give `labels`, or `decoder_input_ids` to go on from"),
        (
            {"decoder_input_ids": torch.ones(6, 2).long()},
            "6 captions for 3 images; tell the image of each by `image_index`",
        ),
    ],
)
def test_inputs_that_are_missing_or_do_not_fit_say_what_was_expected(change, message):
    model, inputs = small_captioner("up_down"), {**small_inputs(), **captions()}
    with pytest.raises(ValueError, match=message):
        model(**{**inputs, **change})


def test_a_misspelt_input_of_generate_is_refused():
    with pytest.raises(ValueError, match="region_featurs"):
        small_captioner("up_down").generate(**small_inputs(), region_featurs=torch.zeros(1))


def test_a_checkpoint_of_another_code_that_lacks_a_name_is_refused():
    with pytest.raises(ValueError, match=r"it lacks \['att_embed.0.bias'.* also has \['other'\]"):
        up_down_state_dict({"other": torch.zeros(1)})


def test_models_without_regions_or_concepts_have_no_weights_for_them():
    assert MIAModel(small_config("concept_attention", 0)).project_regions is None
    assert MIAModel(small_config("visual_attention", 0)).embed_concepts is None
    assert not list(MIAModel(small_config("up_down", 0)).parameters())
