"""Settings of the multi-level model: defaults of the paper, strict types, checks across fields, saving and loading."""

import json

import pytest
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError
from transformers import AutoConfig, BertConfig, MobileNetV2Config

from hf_grounding.modeling.configuration_multilevel import MultiLevelGroundingConfig


def test_defaults_are_those_of_the_paper_with_vgg16():
    config = MultiLevelGroundingConfig()
    assert config.num_levels == 4
    assert (config.grid_size, config.hidden_size, config.visual_hidden_sizes) == (18, 1024, [1024, 1024, 1024])
    assert (config.gamma_1, config.gamma_2, config.negative_slope, config.l2_weight) == (5.0, 10.0, 0.25, 0.0005)
    assert (config.supervision, config.attention, config.resize_mode) == ("weak", "relu", "half_pixel")
    assert (config.word_level, config.sentence_level) == (None, None)
    assert config.mask_padding
    assert config.normalize_sentence_attended
    assert config.final_activation
    assert config.freeze_backbone
    assert not config.normalize_every_layer
    assert not config.normalize_features


def test_derived_defaults_follow_what_is_given():
    assert MultiLevelGroundingConfig(hidden_size=8).visual_hidden_sizes == [8, 8, 8]
    assert MultiLevelGroundingConfig().sentence_pooling == "boundary"
    assert MultiLevelGroundingConfig(text_config=BertConfig()).sentence_pooling == "mean"
    assert (
        MultiLevelGroundingConfig(text_config=BertConfig(), sentence_pooling="boundary").sentence_pooling == "boundary"
    )


@pytest.mark.parametrize(
    "setting",
    [
        {"grid_size": "18"},
        {"hidden_size": 1024.0},
        {"resize_mode": "nearest"},
        {"attention": "max"},
        {"softmax_axis": "levels"},
        {"supervision": "strong"},
        {"loss_reduction": "none"},
        {"l2_scope": "text"},
        {"visual_mapping": "quadratic"},
        {"text_mapping": None},
        {"mask_padding": "yes"},
        {"word_level": 1.0},
        {"level_channels": 512},
        {"backbone_config": "resnet"},
        {"gamma_1": "5"},
    ],
    ids=lambda setting: f"{next(iter(setting.items()))}",
)
def test_a_value_of_the_wrong_type_or_choice_is_refused_by_name(setting):
    (name,) = setting
    with pytest.raises(StrictDataclassFieldValidationError, match=name):
        MultiLevelGroundingConfig(**setting)


def test_types_are_checked_on_later_assignment_too():
    config = MultiLevelGroundingConfig()
    with pytest.raises(StrictDataclassFieldValidationError, match="grid_size"):
        config.grid_size = "18"


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"level_channels": []}, r"`level_channels` must be the channels.* of at least one level; got \[\]"),
        ({"level_channels": [8, 0]}, r"`level_channels` must be the channels, 1 or more"),
        ({"gamma_1": float("nan")}, "`gamma_1` must be above 0, got nan"),
        ({"l2_weight": float("nan")}, "`l2_weight` must be 0 or more, got nan"),
        ({"word_layers": []}, "`word_layers` is empty; name at least one layer"),
        ({"backbone_config": MobileNetV2Config()}, "names 0 maps but `level_channels` has 4"),
        (
            {"backbone_config": MobileNetV2Config(), "backbone_levels": [1, 2]},
            "names 2 maps but `level_channels` has 4",
        ),
        ({"word_level": 4}, r"`word_level` must be in 0..3 or None, got 4"),
        ({"sentence_level": -1}, r"`sentence_level` must be in 0..3 or None, got -1"),
        ({"level_channels": [3, 3], "word_level": 2}, r"`word_level` must be in 0..1 or None, got 2"),
        ({"sentence_layers": []}, "`sentence_layers` is empty; name at least one layer"),
        ({"grid_size": 0}, "`grid_size` must be 1 or more, got 0"),
        ({"hidden_size": -3}, "`hidden_size` must be 1 or more, got -3"),
        ({"attention_chunk_size": 0}, "`attention_chunk_size` must be 1 or more, got 0"),
        (
            {"visual_hidden_sizes": [8, 8]},
            r"last of `visual_hidden_sizes` must be `hidden_size` \(1024\), got \[8, 8\]",
        ),
        ({"visual_hidden_sizes": []}, r"last of `visual_hidden_sizes` must be `hidden_size` \(1024\), got \[\]"),
        ({"sentence_pooling": "mean"}, '`sentence_pooling="mean"` needs a `text_config`'),
        ({"gamma_1": 0}, "`gamma_1` must be above 0, got 0"),
        ({"gamma_2": -1.5}, "`gamma_2` must be above 0, got -1.5"),
        ({"box_temperature": 0.0}, "`box_temperature` must be above 0, got 0.0"),
        ({"l2_weight": -0.1}, "`l2_weight` must be 0 or more, got -0.1"),
        ({"box_loss_weight": -1}, "`box_loss_weight` must be 0 or more, got -1"),
        ({"dropout": 1.0}, r"`dropout` must be in \[0, 1\), got 1.0"),
    ],
)
def test_settings_that_do_not_fit_say_what_was_expected(settings, message):
    with pytest.raises(StrictDataclassClassValidationError) as error:
        MultiLevelGroundingConfig(**settings)
    error.match("Class validation error")
    with pytest.raises(ValueError, match=message):
        raise error.value.__cause__


@pytest.mark.parametrize(
    "value, message",
    [
        ({"hidden_size": 8}, "`{}` is a dict without `model_type`; give it, or a config object"),
        ({"model_type": "bertt"}, "`{}` has the unknown `model_type` 'bertt'. Did you mean 'bert'?"),
        ({"model_type": "zzzzzzzz"}, "`{}` has the unknown `model_type` 'zzzzzzzz'."),
    ],
)
@pytest.mark.parametrize("name", ["backbone_config", "text_config"])
def test_nested_configurations_of_unknown_type_are_refused(name, value, message):
    with pytest.raises(ValueError, match="model_type") as error:
        MultiLevelGroundingConfig(**{name: value})
    assert message.format(name) in str(error.value)


def test_nested_configurations_may_be_dicts_and_survive_saving(tmp_path):
    config = MultiLevelGroundingConfig(
        backbone_config={"model_type": "mobilenet_v2", "depth_multiplier": 0.25},
        backbone_levels=[2, -1],
        level_channels=[8, 80],
        text_config=BertConfig(hidden_size=16, num_attention_heads=2),
        sentence_layers=[1, 2],
        word_layers=[0, -1],
        grid_size=7,
        word_level=1,
    )
    config.save_pretrained(tmp_path)
    for loaded in (MultiLevelGroundingConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert isinstance(loaded, MultiLevelGroundingConfig)
        assert {**loaded.to_dict(), "_name_or_path": ""} == config.to_dict()
        assert isinstance(loaded.backbone_config, MobileNetV2Config)
        assert loaded.backbone_config.depth_multiplier == 0.25
        assert isinstance(loaded.text_config, BertConfig)
        assert loaded.text_config.hidden_size == 16


def test_the_defaults_survive_saving(tmp_path):
    MultiLevelGroundingConfig().save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert saved["model_type"] == "multilevel_grounding"
    loaded = MultiLevelGroundingConfig.from_pretrained(tmp_path)
    assert loaded.num_levels == 4
    assert loaded.backbone_config is None
    assert loaded.text_config is None
