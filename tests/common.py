"""Checks that every model and processor of ours passes. A test class inherits a mixin and says what it tests."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    PreTrainedModel,
    ProcessorMixin,
    YolosConfig,
    YolosForObjectDetection,
    YolosImageProcessorPil,
)

from hf_grounding import save_with_code
from hf_grounding.processing.detectors import TransformersDetector

REPO = Path(__file__).resolve().parents[1]


def run_python(code: str, *arguments: str, cwd: Path, isolated: bool = False) -> None:
    """Runs `code` in a new interpreter; `isolated` = without PYTHONPATH and the current folder on its path."""
    command = [sys.executable, *(["-I"] if isolated else []), "-c", code, *arguments]
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def tensors_of(outputs: Any) -> dict[str, torch.Tensor]:
    """All tensors of a model's or processor's output, by name; tuples of tensors get a number."""
    tensors = {}
    for name, value in outputs.items():
        values = value if isinstance(value, tuple | list) else [value]
        tensors.update({f"{name}.{i}": x.detach() for i, x in enumerate(values) if isinstance(x, torch.Tensor)})
    return tensors


def assert_same(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], **tolerances: float) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, msg=lambda text, name=name: f"{name}: {text}", **tolerances)


def tiny_detector(folder: Path | None = None) -> TransformersDetector:
    """A YOLOS of random weights, 10 queries and 3 classes; saved to `folder` where one is given."""
    torch.manual_seed(0)
    config = YolosConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=[32, 32],
        patch_size=8,
        num_detection_tokens=10,
        id2label={0: "dog", 1: "cat", 2: "car"},
    )
    model, processor = YolosForObjectDetection(config), YolosImageProcessorPil(size={"height": 32, "width": 32})
    if folder is not None:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    return TransformersDetector(model, processor)


class ModelTesterMixin:
    """Checks of a model in this process.

    A class gives `make_model()`, a small random model of fixed seed in eval mode, and `make_inputs()`, arguments of its
    forward pass with at least two rows of different length, for which `return_loss=True` gives a loss.
    """

    frozen: tuple[str, ...] = ()  # beginnings of the names of parameters that never train
    cancelling: tuple[str, ...] = ()  # ends of the names of those that a softmax is blind to, as they shift all scores
    chosen: tuple[str, ...] = ()  # outputs that follow a discrete choice, and so may jump with the precision
    no_compile: str | None = None  # why `torch.compile` is not tested

    def make_model(self) -> PreTrainedModel:
        raise NotImplementedError

    def make_inputs(self) -> dict[str, Any]:
        raise NotImplementedError

    def of_old_words(self, outputs: dict[str, torch.Tensor], num_words: int) -> dict[str, torch.Tensor]:
        """What of the outputs stays the same when words are added to the vocabulary, which had `num_words`."""
        return outputs

    def cast(self, inputs: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
        def one(value):
            if isinstance(value, tuple):
                return tuple(one(x) for x in value)
            return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value

        return {name: one(value) for name, value in inputs.items()}

    def test_saved_and_loaded_it_gives_the_same_outputs(self, tmp_path):
        model, inputs = self.make_model(), self.make_inputs()
        model.save_pretrained(tmp_path)
        files = {"config.json", "model.safetensors"} | ({"generation_config.json"} if model.can_generate() else set())
        assert {path.name for path in tmp_path.iterdir()} == files
        loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
        assert {name: list(keys) for name, keys in info.items() if keys} == {}
        assert not loaded.training
        assert loaded.config.to_dict().keys() == model.config.to_dict().keys()
        assert_same(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
        # Not to the last bit: kernels add in another order where the weights lie elsewhere in memory.
        assert_same(tensors_of(loaded(**inputs)), tensors_of(model(**inputs)), rtol=1e-5, atol=1e-6)
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert {name for name, parameter in loaded.named_parameters() if parameter.requires_grad} == trained

    def test_a_weight_that_is_missing_from_the_checkpoint_is_initialised_and_reported(self, tmp_path):
        model = self.make_model()
        name = next(name for name, parameter in reversed(list(model.named_parameters())) if parameter.requires_grad)
        state = {key: value for key, value in model.state_dict().items() if key != name}
        model.save_pretrained(tmp_path, state_dict=state)
        loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
        assert set(info["missing_keys"]) == {name}
        assert loaded.state_dict()[name].isfinite().all()
        assert_same({key: loaded.state_dict()[key] for key in state}, state, rtol=0, atol=0)

    def test_gradients_reach_every_trainable_parameter_and_no_other(self):
        model = self.make_model().train()
        model(**self.make_inputs(), return_loss=True).loss.backward()
        for name, parameter in model.named_parameters():
            if name.startswith(self.frozen):
                assert not parameter.requires_grad, name
                assert parameter.grad is None, name
            else:
                assert parameter.grad is not None, name
                assert parameter.grad.isfinite().all(), name
                largest = parameter.grad.abs().max()
                assert (largest < 1e-6) if name.endswith(self.cancelling) else (largest > 0), name

    def test_a_training_step_leaves_the_frozen_part_as_it_is(self):
        model = self.make_model()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
        model.train()(**self.make_inputs(), return_loss=True).loss.backward()
        optimizer.step()
        for name, value in model.state_dict().items():
            if not name.endswith(self.cancelling):
                frozen = name.startswith(self.frozen)
                assert torch.equal(value, before[name]) == frozen, name

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
    def test_half_precision_is_finite_and_near_float32(self, dtype):
        model, inputs = self.make_model(), self.make_inputs()
        with torch.no_grad():
            expected = model(**inputs, return_loss=True)
            actual = model.to(dtype)(**self.cast(inputs, dtype), return_loss=True)
        for name, value in tensors_of(actual).items():
            assert value.isfinite().all(), name
        compared = [name for name, value in expected.items() if value.is_floating_point() and name not in self.chosen]
        for name in compared:  # bf16 keeps 8 bits of every intermediate value
            torch.testing.assert_close(actual[name].float(), expected[name], rtol=0.05, atol=0.05)
        embeddings = [value for name, value in actual.items() if name.endswith("embeds")]
        assert all(value.dtype == dtype for value in embeddings)

    def test_compiled_it_gives_the_same_outputs(self):
        if self.no_compile:
            pytest.skip(self.no_compile)
        model, inputs = self.make_model(), {**self.make_inputs(), "return_loss": True}
        torch._dynamo.reset()
        # The "eager" backend tests that the graph is captured rightly, and needs no C++ compiler.
        compiled = torch.compile(model, backend="eager")
        with torch.no_grad():
            assert_same(tensors_of(compiled(**inputs)), tensors_of(model(**inputs)), rtol=1e-5, atol=1e-6)

    def test_resized_token_embeddings_keep_the_old_rows_and_run(self, tmp_path):
        model, inputs = self.make_model(), self.make_inputs()
        size = model.get_input_embeddings().num_embeddings
        expected = self.of_old_words(tensors_of(model(**inputs)), size)
        model.resize_token_embeddings(size + 3, mean_resizing=False)
        assert model.get_input_embeddings().weight.shape[0] == size + 3
        assert model.config.get_text_config().vocab_size == size + 3
        resized = tensors_of(model(**inputs))
        assert_same(self.of_old_words(resized, size), expected, rtol=1e-5, atol=1e-6)
        model.save_pretrained(tmp_path)
        loaded = type(model).from_pretrained(tmp_path)
        assert loaded.get_input_embeddings().num_embeddings == size + 3
        assert_same(tensors_of(loaded(**inputs)), resized, rtol=1e-5, atol=1e-6)

    def test_outputs_can_be_a_tuple(self):
        model, inputs = self.make_model(), self.make_inputs()
        outputs = model(**inputs)
        for actual, expected in zip(model(**inputs, return_dict=False), outputs.to_tuple(), strict=True):
            assert torch.equal(actual, expected)


# With "without_package" no code of ours can be imported, wherever it is installed: all must come from the checkpoint.
LOAD_AND_RUN = """
import json, sys
folder, results, auto_classes, words, how = sys.argv[1:]
remote = how == "without_package"
if remote:
    sys.modules["hf_grounding"] = None
    try:
        import hf_grounding
    except ImportError:
        pass
    else:
        raise AssertionError("hf_grounding can be imported")
else:
    import hf_grounding
import torch, transformers
from PIL import Image
from safetensors.torch import save_file
words, auto_classes = json.loads(words), [getattr(transformers, name) for name in json.loads(auto_classes)]
config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=remote)
processor = transformers.AutoProcessor.from_pretrained(folder, trust_remote_code=remote)
image_processor = transformers.AutoImageProcessor.from_pretrained(folder, trust_remote_code=remote)
models = [each.from_pretrained(folder, trust_remote_code=remote) for each in auto_classes]
inputs = processor(images=[Image.open(f"{results}/{i}.png") for i in range(len(words["text"]))], **words)
tensors = {k: v for k, v in (dict(inputs) | dict(models[-1](**inputs))).items() if hasattr(v, "shape")}
tensors = {f"{k}.0": v.detach().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}
save_file(tensors, f"{results}/results.safetensors")
classes = [type(each) for each in (config, processor, image_processor, processor.image_processor, *models)]
with open(f"{results}/classes.json", "w") as file:
    json.dump([[each.__module__, each.__name__] for each in classes], file)
"""


class SharingTesterMixin:
    """Checks that a model and its processor can be given away. Each starts new interpreters, which takes seconds.

    Besides `make_model()`, which here takes pictures and text, a class gives `make_processor()` and the Auto classes.
    """

    auto_classes: tuple[str, ...] = ("AutoModel",)  # that know the model; the last one is written into checkpoints
    words: Mapping[str, Any] = {"text": ["a man rides a horse .", "a dog"]}  # what the processor takes beside images

    def make_model(self) -> PreTrainedModel:
        raise NotImplementedError

    def make_processor(self) -> ProcessorMixin:
        raise NotImplementedError

    def images(self) -> list[Image.Image]:
        generator = torch.Generator().manual_seed(0)
        arrays = torch.randint(
            256, (len(self.words["text"]), 20, 30, 3), generator=generator, dtype=torch.uint8
        ).numpy()
        return [Image.fromarray(array) for array in arrays]

    def expected(self) -> dict[str, torch.Tensor]:
        inputs = self.make_processor()(images=self.images(), **self.words)
        return tensors_of(dict(inputs) | dict(self.make_model()(**inputs)))

    def run_loaded(self, folder: Path, results: Path, auto_classes: tuple[str, ...], how: str) -> list[list[str]]:
        """Loads everything from `folder` in a new process, compares its outputs, and gives the classes it found."""
        results.mkdir()
        for i, image in enumerate(self.images()):
            image.save(results / f"{i}.png")
        arguments = (str(folder), str(results), json.dumps(auto_classes), json.dumps(self.words), how)
        alone = how == "without_package"
        run_python(LOAD_AND_RUN, *arguments, cwd=results if alone else REPO, isolated=alone)
        assert_same(load_file(results / "results.safetensors"), self.expected(), rtol=1e-5, atol=1e-6)
        return json.loads((results / "classes.json").read_text())

    def test_auto_classes_load_our_classes_in_a_new_process(self, tmp_path):
        model, processor = self.make_model(), self.make_processor()
        for each in (model, processor):
            each.save_pretrained(tmp_path / "saved")
        assert not list((tmp_path / "saved").glob("*.py"))
        found = self.run_loaded(tmp_path / "saved", tmp_path / "results", self.auto_classes, "with_package")
        ours = [model.config, processor, *[processor.image_processor] * 2, *[model] * len(self.auto_classes)]
        assert found == [[type(each).__module__, type(each).__name__] for each in ours]

    def test_saved_with_its_code_it_runs_without_the_package(self, tmp_path):
        model, processor = self.make_model(), self.make_processor()
        save_with_code(model, processor, tmp_path / "saved")
        suffixes = {path.suffix for path in (tmp_path / "saved").iterdir()}
        assert suffixes == {".json", ".py", ".safetensors"}
        results = self.run_loaded(tmp_path / "saved", tmp_path / "results", self.auto_classes[-1:], "without_package")
        ours = [type(each).__name__ for each in (model.config, processor, *[processor.image_processor] * 2, model)]
        assert [name for _, name in results] == ours
        assert all(module.startswith("transformers_modules.") for module, _ in results)
        model.save_pretrained(tmp_path / "plain")  # saving with code once changes nothing for later saves
        processor.save_pretrained(tmp_path / "plain")
        assert not list((tmp_path / "plain").glob("*.py"))
        assert "auto_map" not in (tmp_path / "plain" / "config.json").read_text()
