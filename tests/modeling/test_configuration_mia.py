"""Settings of the captioners: defaults of the paper and its code, strict types, checks across fields, saving."""

import pytest
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError
from transformers import AutoConfig, ResNetConfig

from hf_grounding import MIAConfig
from tests.captioners import MIA_DECODERS


def test_defaults_are_those_of_the_paper_and_its_code():
    config = MIAConfig()
    assert (config.mia_iterations, config.num_attention_heads, config.intermediate_size) == (2, 8, 2048)
    assert (config.feature_dim, config.hidden_size, config.embedding_size) == (2048, 512, 512)
    assert (config.attention_hidden_size, config.dropout, config.mia_dropout) == (49, 0.5, 0.1)
    assert (config.mia_output, config.mia_order, config.mia_attention) == ("both", "visual_first", "mutual")
    assert (config.block_variant, config.label_smoothing) == ("paper", 0.0)
    assert config.share_iteration_weights
    assert config.tie_word_embeddings
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id, config.unk_token_id) == (0, 1, 2, 3)


def test_captions_start_with_the_start_word_unless_told_otherwise():
    assert MIAConfig(bos_token_id=5).decoder_start_token_id == 5
    assert MIAConfig(bos_token_id=5, decoder_start_token_id=0).decoder_start_token_id == 0


@pytest.mark.parametrize("name", MIA_DECODERS)
@pytest.mark.parametrize("iterations", [0, 2])
def test_the_properties_say_what_each_captioner_reads(name, iterations):
    config = MIAConfig(decoder_type=name, mia_iterations=iterations)
    on = iterations > 0
    assert config.uses_regions == (on or name != "concept_attention")
    assert config.uses_concepts == (on or name in ("concept_attention", "visual_condition", "concept_condition"))
    assert config.projects_regions == (on or name not in ("concept_attention", "up_down"))


@pytest.mark.parametrize("output", ["both", "visual", "textual"])
def test_self_attention_with_one_output_does_not_read_the_other_side(output):
    settings = {"mia_attention": "self", "mia_output": output}
    of_both = MIAConfig(decoder_type="concept_condition", **settings)
    assert of_both.uses_regions
    assert of_both.uses_concepts  # by the decoder
    assert of_both.module_reads("visual") == (output != "textual")
    assert of_both.module_reads("textual") == (output != "visual")
    if output != "textual":
        of_regions = MIAConfig(decoder_type="visual_attention", **settings)
        assert of_regions.uses_concepts == (output == "both")
    if output != "visual":
        of_concepts = MIAConfig(decoder_type="concept_attention", **settings)
        assert of_concepts.uses_regions == (output == "both")


@pytest.mark.parametrize(
    "setting",
    [
        {"vocab_size": "10"},
        {"mia_iterations": 1.0},
        {"mia_output": "fused"},
        {"mia_order": "visual"},
        {"mia_attention": "cross"},
        {"block_variant": "code"},
        {"dropout": "0.5"},
        {"backbone_config": "resnet"},
        {"freeze_backbone": "yes"},
    ],
    ids=lambda setting: f"{next(iter(setting.items()))}",
)
def test_a_value_of_the_wrong_type_or_choice_is_refused_by_name(setting):
    (name,) = setting
    with pytest.raises(StrictDataclassFieldValidationError, match=name):
        MIAConfig(**setting)


def test_an_unknown_decoder_is_answered_with_the_known_ones():
    with pytest.raises(StrictDataclassFieldValidationError) as error:
        MIAConfig(decoder_type="updown")
    for name in (*MIA_DECODERS, "updown"):
        assert name in str(error.value)


SIZES = ("vocab_size", "feature_dim", "hidden_size", "num_attention_heads", "intermediate_size", "embedding_size")
SIZES += ("decoder_hidden_size", "attention_hidden_size", "max_position_embeddings")
SIZES += ("num_encoder_layers", "num_decoder_layers")
SHARES = ("mia_dropout", "layer_dropout", "dropout", "transformer_dropout", "label_smoothing")


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"mia_iterations": -1}, "`mia_iterations` must be 0 or more, got -1"),
        ({"backbone_trainable_from": 1}, "needs a `backbone_config` and `freeze_backbone` False"),
        ({"backbone_trainable_from": 1, "backbone_config": {"model_type": "resnet"}}, "and `freeze_backbone` False"),
        *[({name: 0}, f"`{name}` must be 1 or more, got 0") for name in SIZES],
        *[({name: 1.0}, rf"`{name}` must be in \[0, 1\), got 1.0") for name in SHARES],
        *[({name: -0.1}, rf"`{name}` must be in \[0, 1\), got -0.1") for name in SHARES],
        ({"dropout": float("nan")}, r"`dropout` must be in \[0, 1\), got nan"),
        (
            {"decoder_type": "up_down", "embedding_size": 300},
            r"Concepts share .* `embedding_size` \(300\) must be `hidden_size` \(512\)",
        ),
        (
            {"embedding_size": 300, "tie_word_embeddings": False},
            r"'visual_attention' adds words .* `embedding_size` \(300\) must be `hidden_size` \(512\)",
        ),
        (
            {"hidden_size": 12, "embedding_size": 12},
            r"`hidden_size` \(12\) must be a multiple of `num_attention_heads` \(8\)",
        ),
        (
            {"decoder_type": "transformer", "mia_iterations": 0, "hidden_size": 12, "embedding_size": 12},
            r"`hidden_size` \(12\) must be a multiple of `num_attention_heads` \(8\)",
        ),
        *[
            ({"decoder_type": name, "mia_output": "textual"}, f"'{name}' reads regions only.*Use 'both' or 'visual'")
            for name in ("visual_attention", "visual_regional_attention", "up_down", "transformer")
        ],
        (
            {"decoder_type": "concept_attention", "mia_output": "visual"},
            "'concept_attention' reads concepts only, so with `mia_output` 'visual' the module would have no effect",
        ),
        ({"pad_token_id": None}, "`pad_token_id` must be an id of the vocabulary, 0 to 9999, got None"),
        ({"bos_token_id": -1}, "`bos_token_id` must be an id of the vocabulary, 0 to 9999, got -1"),
        ({"eos_token_id": [2, 3]}, r"`eos_token_id` must be an id of the vocabulary, 0 to 9999, got \[2, 3\]"),
        ({"unk_token_id": 10000}, "`unk_token_id` must be an id of the vocabulary, 0 to 9999, got 10000"),
        ({"decoder_start_token_id": 10000}, "`decoder_start_token_id` must be an id of the vocabulary"),
    ],
)
def test_settings_that_do_not_fit_say_what_was_expected(settings, message):
    with pytest.raises(StrictDataclassClassValidationError) as error:
        MIAConfig(**settings)
    with pytest.raises(ValueError, match=message):
        raise error.value.__cause__


@pytest.mark.parametrize(
    "settings",
    [
        {"decoder_type": "up_down", "mia_output": "visual"},
        {"decoder_type": "concept_attention", "mia_output": "textual"},
        *[
            {"decoder_type": name, "mia_output": output}
            for name in ("visual_condition", "concept_condition")
            for output in ("visual", "textual")
        ],
        {"decoder_type": "up_down", "mia_iterations": 0, "mia_output": "textual"},
        {"decoder_type": "up_down", "mia_iterations": 0, "embedding_size": 300, "hidden_size": 12},
        {"decoder_type": "up_down", "tie_word_embeddings": False, "embedding_size": 300},
        dict.fromkeys(["pad_token_id", "bos_token_id", "eos_token_id"], 0),
    ],
)
def test_settings_that_fit_are_taken(settings):
    config = MIAConfig(**settings)
    assert {name: getattr(config, name) for name in settings} == settings


def test_the_settings_survive_saving(tmp_path):
    config = MIAConfig(decoder_type="up_down", mia_output="visual", backbone_config=ResNetConfig(depths=[1, 1, 1, 1]))
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, MIAConfig)
    assert {**loaded.to_dict(), "_name_or_path": ""} == config.to_dict()
    assert isinstance(loaded.backbone_config, ResNetConfig)
    assert loaded.backbone_config.depths == [1, 1, 1, 1]


def test_an_unknown_backbone_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match=r"`backbone_config` has the unknown `model_type` 'resnt'. Did you mean 'resn"):
        MIAConfig(backbone_config={"model_type": "resnt"})
