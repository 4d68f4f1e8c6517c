"""The multi-level model and the pooling of its heatmaps against numbers made with the authors' own functions.

Every `multilevel_*.safetensors` set in the golden folder is checked, in float64 and float32, at the sizes and
tolerances of its manifest.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig

from hf_grounding.modeling.configuration_multilevel import MultiLevelGroundingConfig
from hf_grounding.modeling.modeling_multilevel import (
    MultiLevelGroundingModel,
    attended_similarity,
    attention_weights,
    cosine_maps,
    gram_matrices,
    matching_loss,
    normalize,
    phrase_heatmaps,
    pool_words,
    resize_map,
)
from hf_grounding.modeling.outputs import MultiLevelGroundingOutput
from hf_grounding.processing.grounding import heatmap_points
from hf_grounding.processing.image_processing_multilevel import MultiLevelGroundingImageProcessorPil
from hf_grounding.processing.processing_multilevel import MultiLevelGroundingProcessor
from hf_grounding.processing.words import Phrase, train_word_tokenizer

RESIZE_MODES = ("half_pixel", "tf_legacy", "align_corners")


@dataclass
class Golden:
    """One set at one precision. `golden["attn/H"]` is a tensor, `golden.sizes["gamma1"]` a number of the manifest."""

    name: str
    sizes: dict
    tensors: dict[str, torch.Tensor]
    dtype: torch.dtype
    tolerance: float

    def __getitem__(self, key: str) -> torch.Tensor:
        value = self.tensors[key]
        return value.to(self.dtype) if value.is_floating_point() else value

    @property
    def feature_maps(self) -> tuple[torch.Tensor, ...]:
        return tuple(self[f"levels/{level}"].movedim(-1, 1) for level in range(self.sizes["levels"]))

    @property
    def regions(self) -> torch.Tensor:
        """V of the attention and the losses, as our functions take it: (image, level, n, D)."""
        return self["V/tf_legacy"].transpose(1, 2)

    @property
    def text_layers(self) -> torch.Tensor:
        """`[e; e]`, first and second LSTM layer."""
        return torch.stack([torch.cat([self["text/word_emb"]] * 2, dim=-1), self["text/lstm1"], self["text/lstm2"]])

    def check(self, actual: torch.Tensor, expected: torch.Tensor | str) -> None:
        expected = self[expected] if isinstance(expected, str) else expected
        assert actual.dtype == self.dtype
        torch.testing.assert_close(actual, expected.view(actual.shape), rtol=0, atol=self.tolerance, msg=self._message)

    def _message(self, message: str) -> str:
        return f"{self.name}, {self.dtype}: {message}"

    def model(self, resize_mode: str = "tf_legacy", **settings) -> MultiLevelGroundingModel:
        """Our model with the set's sizes and weights. Its text encoder gives the set's layers, whatever the ids are."""
        sizes = self.sizes
        # A text model of the right width and depth: its output is replaced below.
        text = BertConfig(
            hidden_size=sizes["text_width"],
            num_hidden_layers=2,
            num_attention_heads=1,
            intermediate_size=1,
            vocab_size=2,
        )
        config = MultiLevelGroundingConfig(
            level_channels=sizes["level_channels"],
            grid_size=sizes["M"],
            resize_mode=resize_mode,
            hidden_size=sizes["visual_widths"][-1],
            visual_hidden_sizes=sizes["visual_widths"],
            negative_slope=sizes["leaky"],
            gamma_1=sizes["gamma1"],
            gamma_2=sizes["gamma2"],
            text_config=text,
            sentence_layers=[1, 2],
            sentence_pooling="boundary",
            **settings,
        )
        model = MultiLevelGroundingModel(config).to(self.dtype).eval()
        weights = {"word_mix.weight": self["text/mix_raw"], "word_mix.scale": self["text/mix_scale"].squeeze()}
        weights["sentence_mix.weight"] = self["text/sentence_mix"]
        for kind in ("weight", "bias"):
            for level in range(sizes["levels"]):
                for i in range(len(sizes["visual_widths"])):
                    weights[f"visual_mappings.{level}.layers.{i}.{kind}"] = self[f"weights/visual/{level}/{i}/{kind}"]
            for unit in ("word", "sentence"):
                for i in range(2):
                    weights[f"{unit}_mapping.layers.{i}.{kind}"] = self[f"weights/{unit}/{i}/{kind}"]
        trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert weights.keys() == trainable, "the set must give every weight of the model"
        model.load_state_dict(weights, strict=False)
        layers = self.text_layers
        model.text_encoder.forward = lambda input_ids, attention_mask: layers
        return model

    def outputs(self, chunk_size: int | None = None, **settings) -> MultiLevelGroundingOutput:
        """The whole model, from feature maps and text layers to the loss (without the regulariser)."""
        mask = self["text/mask"].long()
        model = self.model(l2_weight=0.0, attention_chunk_size=chunk_size, **settings)
        return model(
            feature_maps=self.feature_maps, input_ids=torch.zeros_like(mask), attention_mask=mask, return_loss=True
        )


@pytest.fixture(params=["float64", "float32"])
def goldens(request: pytest.FixtureRequest, golden_dir: Path) -> list[Golden]:
    files = sorted(golden_dir.glob("multilevel_*.safetensors"))
    assert files, f"no multilevel_*.safetensors in {golden_dir}"
    sets = []
    for file in files:
        manifest = json.loads(file.with_suffix(".manifest.json").read_text(encoding="utf-8"))
        tolerance = manifest["tolerance"]["float64" if request.param == "float64" else "float32_abs"]
        dtype = getattr(torch, request.param)
        sets.append(Golden(file.stem, manifest["config"], load_file(file), dtype, tolerance))
    return sets


@pytest.mark.parametrize("mode", RESIZE_MODES)
def test_golden_maps_resized_to_the_grid(goldens, mode):
    for golden in goldens:
        resized = {int(key.rsplit("/", 1)[1]) for key in golden.tensors if key.startswith(f"resized/{mode}/")}
        grid = golden.sizes["M"]
        assert resized == {level for level, side in enumerate(golden.sizes["level_sizes"]) if side != grid}
        for level in resized:
            actual = resize_map(golden.feature_maps[level], grid, mode)
            golden.check(actual.movedim(1, -1), f"resized/{mode}/{level}")


@pytest.mark.parametrize("mode", RESIZE_MODES)
def test_golden_cells_in_the_common_space(goldens, mode):
    for golden in goldens:
        regions = golden.model(resize_mode=mode).embed_images(golden.feature_maps)
        golden.check(regions.transpose(1, 2), f"V/{mode}")


def test_golden_mixes_of_text_layers(goldens):
    for golden in goldens:
        assert golden["text/mask"].sum(dim=1).tolist() == golden.sizes["lengths"]
        model, layers = golden.model(), golden.text_layers
        golden.check(model.word_mix(layers), "text/word_input")
        golden.check(model.sentence_mix(layers[1:], golden["text/mask"].long()), "text/sentence_input")


def test_golden_words_and_sentences_in_the_common_space(goldens):
    for golden in goldens:
        mask = golden["text/mask"].long()
        words, sentences = golden.model().embed_text(mask, mask, mask)
        golden.check(words, "text/s")
        golden.check(sentences, "text/sbar")


def test_golden_words_and_sentences_without_the_final_activation(goldens):
    for golden in goldens:
        mask = golden["text/mask"].long()
        words, sentences = golden.model(final_activation=False).embed_text(mask, mask, mask)
        golden.check(words, "text/s_no_final_activation")
        golden.check(sentences, "text/sbar_no_final_activation")


def test_golden_heatmaps_of_every_level(goldens):
    for golden in goldens:
        grid = (golden.sizes["M"], golden.sizes["M"])
        for text, name, levels in (
            (golden["text/s"], "attn/H", "attn/heatmap_word_levels"),
            (golden["text/sbar"][:, None], "attn/H_s", "attn/heatmap_sentence_levels"),
        ):
            weights = attention_weights(cosine_maps(text, golden.regions), "relu", "regions", None)  # (item, L, T, n)
            golden.check(weights.permute(0, 2, 3, 1).contiguous(), name)
            golden.check(weights.permute(0, 2, 3, 1).unflatten(2, grid).contiguous(), levels)


def test_golden_attended_vectors_and_their_scores(goldens):
    for golden in goldens:
        regions = golden.regions
        gram = regions @ regions.transpose(-1, -2)
        for text, vectors, scores in (
            (golden["text/s"], "attn/attended_word", "attn/R_t_levels"),
            (golden["text/sbar"][:, None], "attn/attended_sentence", "attn/R_s_levels"),
        ):
            cosines = cosine_maps(text, regions)
            weights = attention_weights(cosines, "relu", "regions", None)
            attended = normalize(weights @ regions).transpose(1, 2)  # (item, T, L, D): formed only here
            golden.check(attended.contiguous(), vectors)
            actual = attended_similarity(weights, cosines, gram)[1].transpose(1, 2)  # never forms them
            golden.check(actual.contiguous(), scores)
            golden.check(torch.einsum("itld,itd->itl", attended, text), scores)


def test_golden_chosen_heatmaps_scores_and_levels(goldens):
    for golden in goldens:
        every_word = torch.ones_like(golden["text/mask"]).long()  # the set has padded words too
        output = golden.model().ground(
            golden["text/s"], golden["text/sbar"], golden.regions, gram_matrices(golden.regions), every_word
        )
        golden.check(output.heatmaps, "attn/heatmap_word")
        golden.check(output.word_scores, "attn/R_t")
        golden.check(output.sentence_heatmaps, "attn/heatmap_sentence")
        golden.check(output.sentence_scores, "attn/R_s_of_pair")
        if golden.dtype == torch.float64:
            assert torch.equal(output.word_levels, golden["attn/level_word"])
            assert torch.equal(output.sentence_levels, golden["attn/level_sentence"])


def test_golden_whole_model_masks_padded_words(goldens):
    for golden in goldens:
        output = golden.outputs()
        golden.check(output.image_embeds, "V/tf_legacy")
        golden.check(output.word_logits, "masked/R_w")
        golden.check(output.sentence_logits, "masked/R_s")
        golden.check(output.loss, "masked/loss_mean")
        golden.check(golden.outputs(loss_reduction="sum").loss, "masked/loss_sum")
        real = golden["text/mask"]
        golden.check(output.word_scores, golden["attn/R_t"] * real)
        golden.check(output.heatmaps, golden["attn/heatmap_word"] * real[:, :, None, None])


def test_golden_word_scores_of_all_pairs(goldens):
    for golden in goldens:
        model, mask = golden.model(), golden["text/mask"]
        args = (golden["text/s"], golden["text/sbar"], golden.regions, gram_matrices(golden.regions))
        for name, counted in (("code_unmasked", torch.ones_like(mask)), ("masked", mask)):
            scores, _ = model._cross_scores(*args, mask.long(), counted.long())
            scores = scores.transpose(0, 1)  # (caption, image, word)
            golden.check(scores.contiguous(), golden[f"{name}/R_t_all_pairs"] * counted[:, None])
            pooled = pool_words(scores, counted[:, None].long(), golden.sizes["gamma1"])
            golden.check(pooled, f"{name}/R_w")


def test_golden_each_direction_of_the_matching_loss(goldens):
    for golden in goldens:
        gamma = golden.sizes["gamma2"]
        for name, unit in (("word", "w"), ("sentence", "s")):
            logits = golden[f"masked/R_{unit}"]
            terms = golden[f"masked/nll_cap_given_img_{unit}"] + golden[f"masked/nll_img_given_cap_{unit}"]
            golden.check(matching_loss(logits, gamma, "sum"), terms.sum())
            directions = ("cap_given_img", "img_given_cap")
            means = sum(golden[f"code_unmasked/loss_{direction}_{name}"] for direction in directions)
            golden.check(matching_loss(golden[f"code_unmasked/R_{unit}"], gamma, "mean"), means)


def test_golden_whole_model_counts_padded_words_as_the_code(goldens):
    for golden in goldens:
        output = golden.outputs(mask_padding=False)
        golden.check(output.word_logits, "code_unmasked/R_w")
        golden.check(output.sentence_logits, "code_unmasked/R_s")
        golden.check(output.loss, "code_unmasked/loss")


def test_golden_whole_model_with_equation_6b_as_printed(goldens):
    for golden in goldens:
        output = golden.outputs(normalize_sentence_attended=False)
        golden.check(output.sentence_logits, "literal_eq6b/R_s")
        golden.check(output.loss, "literal_eq6b/loss_mean")


@pytest.mark.parametrize("chunk_size", [1, 2])
def test_golden_whole_model_with_images_in_chunks(goldens, chunk_size):
    for golden in goldens:
        golden.check(golden.outputs(chunk_size=chunk_size).loss, "masked/loss_mean")
        golden.check(golden.outputs(chunk_size=chunk_size, mask_padding=False).loss, "code_unmasked/loss")


@pytest.mark.parametrize("scope, name", [("all", "all_mapping_kernels"), ("visual", "visual_only")])
def test_golden_regulariser(goldens, scope, name):
    for golden in goldens:
        golden.check(golden.model(l2_scope=scope).regulariser(), f"regulariser/{name}")


@dataclass
class Pointing:
    """Phrases of one pointing set and the heatmaps they were pooled from."""

    name: str
    phrases: list[dict]
    tolerance: float
    tensors: dict[str, torch.Tensor]

    def pooled(self, phrase: dict) -> torch.Tensor:
        return torch.tensor(phrase["pooled_heatmap"], dtype=torch.float64)


@pytest.fixture(scope="module")
def pointings(golden_dir: Path) -> list[Pointing]:
    files = [path for path in sorted(golden_dir.glob("multilevel_pointing_*.json")) if ".manifest" not in path.name]
    assert files, f"no multilevel_pointing_*.json in {golden_dir}"
    sets = []
    for file in files:
        manifest = json.loads(file.with_suffix(".manifest.json").read_text(encoding="utf-8"))
        phrases = json.loads(file.read_text(encoding="utf-8"))["phrases"]
        tensors = load_file(golden_dir / f"{file.stem.replace('_pointing', '')}.safetensors")
        sets.append(Pointing(file.stem, phrases, manifest["tolerance"]["pooled_heatmap"], tensors))
    return sets


def test_golden_pooled_phrase_heatmaps(pointings):
    for golden in pointings:
        heatmaps, scores = golden.tensors["attn/heatmap_word"], golden.tensors["attn/R_t"]
        for phrase in golden.phrases:
            item = slice(phrase["item"], phrase["item"] + 1)
            mask = torch.zeros(1, 1, scores.shape[1])
            mask[0, 0, phrase["word_idx"]] = 1
            actual = phrase_heatmaps(heatmaps[item], scores[item], mask)[0, 0]
            expected = golden.pooled(phrase).view_as(actual)
            torch.testing.assert_close(actual, expected, rtol=0, atol=golden.tolerance)


def test_golden_processor_pools_the_same_phrase_heatmaps(pointings):
    tokenizer = train_word_tokenizer(["a word"])
    processor = MultiLevelGroundingProcessor(MultiLevelGroundingImageProcessorPil(), tokenizer)
    for golden in pointings:
        heatmaps, scores = golden.tensors["attn/heatmap_word"], golden.tensors["attn/R_t"]
        rows = [[p for p in golden.phrases if p["item"] == item] for item in range(len(scores))]
        mask = torch.zeros(len(rows), max(map(len, rows)), scores.shape[1])
        for item, row in enumerate(rows):
            for i, phrase in enumerate(row):
                mask[item, i, phrase["word_idx"]] = 1
        inputs = {"word_mask": torch.ones_like(scores), "phrase_mask": mask}
        inputs["phrases"] = [[Phrase("", 0, 1)] * len(row) for row in rows]
        outputs = MultiLevelGroundingOutput(
            heatmaps=heatmaps,
            word_scores=scores,
            sentence_heatmaps=golden.tensors["attn/heatmap_sentence"],
            sentence_scores=golden.tensors["attn/R_s_of_pair"],
        )
        for row, (pooled, _) in zip(rows, processor.phrase_heatmaps(outputs, inputs, "word"), strict=True):
            for phrase, actual in zip(row, pooled, strict=True):
                expected = golden.pooled(phrase).view_as(actual)
                torch.testing.assert_close(actual, expected, rtol=0, atol=golden.tolerance)


def test_golden_points_of_pooled_heatmaps(pointings):
    for golden in pointings:
        side = golden.tensors["attn/heatmap_word"].shape[-1]
        for phrase in golden.phrases:
            width, height = phrase["image_wh"]
            (point,) = heatmap_points(golden.pooled(phrase).view(1, side, side), height, width).tolist()
            assert point == phrase["point_xy"], (golden.name, phrase)


def test_golden_points_of_sentence_heatmaps_hit_the_same_boxes(pointings):
    for golden in pointings:
        for phrase in golden.phrases:
            width, height = phrase["image_wh"]
            heatmap = golden.tensors["attn/heatmap_sentence"][phrase["item"]]
            ((x, y),) = heatmap_points(heatmap[None], height, width).tolist()
            hit = any(x1 <= x <= x2 and y1 <= y <= y2 for x1, y1, x2, y2 in phrase["boxes_xyxy"])
            assert hit == phrase["sentence_hit"], (golden.name, phrase)
