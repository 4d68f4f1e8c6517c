"""The concept detector against numbers of an independent float64 transcription of the noisy-OR.

Every `concept_*.safetensors` set in the golden folder is checked, in float64 and float32, at the tolerances of its
manifest.
"""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from hf_grounding.modeling.configuration_concepts import ConceptDetectorConfig
from hf_grounding.modeling.modeling_concepts import ConceptDetector, noisy_or_logits
from hf_grounding.processing.concepts import ConceptProcessor

Golden = tuple[dict[str, torch.Tensor], torch.dtype, float]


@pytest.fixture(params=["float64", "float32"])
def goldens(request: pytest.FixtureRequest, golden_dir: Path) -> list[Golden]:
    files = sorted(golden_dir.glob("concept_*.safetensors"))
    assert files, f"no concept_*.safetensors in {golden_dir}"
    dtype, sets = getattr(torch, request.param), []
    for file in files:
        tolerance = json.loads(file.with_suffix(".manifest.json").read_text(encoding="utf-8"))["tolerance"]
        tensors = {name: x.to(dtype) if x.is_floating_point() else x for name, x in load_file(file).items()}
        sets.append((tensors, dtype, tolerance["float64" if dtype == torch.float64 else "float32_abs"]))
    return sets


def assert_near(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def test_golden_noisy_or_and_cross_entropy_of_each_word(goldens):
    for golden, dtype, tolerance in goldens:
        logits = golden["logits"].requires_grad_()
        assert_near(noisy_or_logits(logits).sigmoid(), golden["word_probability"], tolerance)
        odds = noisy_or_logits(logits)
        assert_near(odds.sigmoid(), golden["word_probability"], tolerance)
        losses = F.binary_cross_entropy_with_logits(odds, golden["labels"], reduction="none")
        assert_near(losses, golden["bce_per_word"], tolerance)
        losses.sum().backward()
        assert logits.grad.isfinite().all()
        assert losses.dtype == dtype


def test_golden_probabilities_that_are_tiny_keep_their_digits(goldens):
    for golden, dtype, _ in goldens:
        expected, rtol = golden["word_probability"], 1e-12 if dtype == torch.float64 else 1e-5
        assert (expected > 0).all()
        torch.testing.assert_close(noisy_or_logits(golden["logits"]).sigmoid(), expected, rtol=rtol, atol=0)


def test_golden_outputs_of_the_whole_model(goldens):
    for golden, dtype, tolerance in goldens:
        num_concepts = golden["logits"].shape[1]
        config = ConceptDetectorConfig(num_concepts=num_concepts, feature_channels=num_concepts, loss_weight=1.0)
        model = ConceptDetector(config).to(dtype).eval()
        model.head.classifier.weight.data = torch.eye(num_concepts, dtype=dtype)[:, :, None, None]
        model.head.classifier.bias.data.zero_()
        output = model(feature_maps=golden["logits"], labels=golden["labels"])
        assert_near(output.concept_probs, golden["word_probability"], tolerance)
        assert_near(output.max_probs, golden["max_probability"], tolerance)
        assert_near(output.location_probs, golden["logits"].sigmoid(), tolerance)
        assert_near(output.loss, golden["bce_per_word"].mean(), tolerance)


def test_golden_ranking(goldens):
    for golden, _, _ in goldens:
        num_concepts = golden["ranking"].shape[1]
        processor = ConceptProcessor(concepts=[str(i) for i in range(num_concepts)])
        ranked = processor.rank(noisy_or_logits(golden["logits"]).sigmoid())
        assert [[int(each.word) for each in row] for row in ranked] == golden["ranking"].tolist()
