"""Mutual iterative attention: goldens, a literal version of its equations with loops over heads, and its properties."""

import json
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from hf_grounding.modeling.mutual_iterative_attention import (
    AttentionProjection,
    MutualIterativeAttention,
    MutualIterativeAttentionOutput,
    OutputProjection,
    accumulated_attention,
    official_mia_state_dict,
)

BATCH, ROWS, WIDTH, HEADS, INNER = 3, 5, 12, 3, 7
VISUAL_MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 1, 1, 0]])
CONCEPT_MASK = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 1, 0, 1, 0]])
MASKS = {"visual_mask": VISUAL_MASK, "concept_mask": CONCEPT_MASK}

SETTINGS: list[dict[str, Any]] = [
    {},
    {"num_iterations": 0},
    {"num_iterations": 3},
    {"order": "textual_first"},
    {"attention": "self"},
    {"block_variant": "official"},
    {"block_variant": "official", "order": "textual_first"},
    {"attention_bias": False},
    {"share_iteration_weights": False},
    {"layer_norm_eps": 0.1},
]
every_setting = pytest.mark.parametrize("settings", SETTINGS, ids=lambda x: ",".join(map(str, x.values())) or "default")


def make_module(**settings: Any) -> MutualIterativeAttention:
    """Small module in float64 and eval mode, with all parameters random, norms too."""
    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "num_heads": HEADS, "num_iterations": 2, "intermediate_size": INNER}
    module = MutualIterativeAttention(**{**sizes, **settings}).double().eval()
    for parameter in module.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return module


def make_inputs(rows: int = ROWS, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    visual, concepts = torch.randn(2, BATCH, rows, WIDTH, generator=generator, dtype=torch.float64)
    return visual, concepts


def assert_equal_outputs(actual: MutualIterativeAttentionOutput, expected: MutualIterativeAttentionOutput) -> None:
    for name in ("fused", "visual", "textual"):
        torch.testing.assert_close(actual[name], expected[name], rtol=0, atol=1e-12)


# Golden numbers

GOLDEN_SETTINGS: dict[str, dict[str, Any]] = {
    "official": {"block_variant": "official"},
    "official_self": {"block_variant": "official", "attention": "self"},
    "official_textual_first": {"block_variant": "official", "order": "textual_first"},
    "paper": {},
    "paper_masked": {},
    "paper_nobias": {"attention_bias": False},
    "paper_self": {"attention": "self"},
    "paper_textual_first": {"order": "textual_first"},
}
GOLDEN_PARTS = {
    "attn.q": "attention.query",
    "attn.k": "attention.key",
    "attn.v": "attention.value",
    "attn.o": "attention.output",
    "attn_norm": "attention_norm",
    "ffn.w1": "feed_forward.up",
    "ffn.w2": "feed_forward.down",
    "ffn_norm": "feed_forward_norm",
    "layer_norm": "layer_norm",
}


class Golden:
    """One golden file: its tensors in one precision, and modules with its weights."""

    def __init__(self, file: Path, dtype: torch.dtype):
        manifest = json.loads(file.with_suffix(".manifest.json").read_text(encoding="utf-8"))
        self.config, self.dtype = manifest["config"], dtype
        self.tolerance = manifest["tolerance"]["float64" if dtype == torch.float64 else "float32_abs"]
        tensors = load_file(file)
        self.tensors = {name: x.to(dtype) if x.is_floating_point() else x for name, x in tensors.items()}

    def below(self, folder: str) -> dict[str, torch.Tensor]:
        return {name.removeprefix(f"{folder}/"): x for name, x in self.tensors.items() if name.startswith(f"{folder}/")}

    def weights(self) -> dict[str, torch.Tensor]:
        """All weights under our names."""
        state = {}
        for name, x in self.below("weights").items():
            layer, _, rest = name.partition(".")
            part, _, kind = rest.rpartition(".")
            if layer == "out_norm":
                state[f"fusion_norm.{kind}"] = x
            else:
                state[f"{layer}s.0.{GOLDEN_PARTS[part]}.{kind}"] = x
        return state

    def module(self, num_iterations: int, **settings: Any) -> MutualIterativeAttention:
        config = self.config
        module = MutualIterativeAttention(
            config["d_model"],
            config["heads"],
            num_iterations,
            intermediate_size=config["d_ff"],
            layer_norm_eps=config["layer_norm_eps"],
            **settings,
        )
        weights = self.weights()
        assert module.state_dict().keys() <= weights.keys()
        module.load_state_dict({name: weights[name] for name in module.state_dict()})
        return module.to(self.dtype).eval()

    def assert_near(self, actual: torch.Tensor, expected: torch.Tensor) -> None:
        torch.testing.assert_close(actual, expected, rtol=0, atol=self.tolerance)


@pytest.fixture(params=["float64", "float32"])
def goldens(request: pytest.FixtureRequest, golden_dir: Path) -> list[Golden]:
    files = sorted(golden_dir.glob("mia_block_*.safetensors"))
    assert files, f"no mia_block_*.safetensors in {golden_dir}"
    return [Golden(file, getattr(torch, request.param)) for file in files]


@pytest.mark.parametrize("output_attentions", [False, True], ids=["fused_kernel", "explicit"])
@pytest.mark.parametrize("variant", GOLDEN_SETTINGS)
def test_golden_outputs_of_each_variant_and_number_of_iterations(goldens, variant, output_attentions):
    names = {"I": "visual", "T": "textual", "fused": "fused"}
    for golden in goldens:
        masks = {name: golden.tensors[name] for name in MASKS} if variant == "paper_masked" else {}
        expected = {name: x for name, x in golden.below(variant).items() if name.startswith("N")}
        assert expected
        for name, tensor in expected.items():
            iterations, output = name.split("/")
            module = golden.module(int(iterations.removeprefix("N")), **GOLDEN_SETTINGS[variant])
            result = module(golden.tensors["I0"], golden.tensors["T0"], **masks, output_attentions=output_attentions)
            golden.assert_near(result[names[output]], tensor)


def test_golden_attention_weights_of_each_iteration(goldens):
    for golden in goldens:
        outputs = golden.module(3)(golden.tensors["I0"], golden.tensors["T0"], output_attentions=True)
        for modality in ("visual", "textual"):
            expected = golden.below(f"paper/attn_{modality}")
            attentions = outputs[f"{modality}_attentions"]
            assert len(expected) == len(attentions) == 3
            for t, weights in enumerate(attentions, start=1):
                golden.assert_near(weights, expected[f"iter{t}"])


def test_golden_sets_hold_no_variant_that_is_not_tested(goldens):
    for golden in goldens:
        folders = {name.split("/")[0] for name in golden.tensors if "/" in name}
        assert folders == GOLDEN_SETTINGS.keys() | {"weights", "official_state_dict"}


def test_weights_of_the_official_module_load_strictly_and_are_the_golden_ones(goldens):
    for golden in goldens:
        state = official_mia_state_dict(golden.below("official_state_dict"))
        module = golden.module(2, block_variant="official")
        expected = {name: x.clone() for name, x in module.state_dict().items()}
        for parameter in module.parameters():
            nn.init.zeros_(parameter)
        module.load_state_dict(state, strict=True)
        for name, x in module.state_dict().items():
            assert torch.equal(x, expected[name]), name


# The equations, literally


def literal_attention(attention, query, source, real):
    """MHA(Q, S) of one image, head by head; `real` lists the source rows that may be seen."""
    width = WIDTH // HEADS

    def project(layer, x):
        return x @ layer.weight.T + (0 if layer.bias is None else layer.bias)

    heads = []
    for i in range(HEADS):
        columns = slice(i * width, (i + 1) * width)
        q, k, v = (
            project(getattr(attention, name), x)[:, columns]
            for name, x in (("query", query), ("key", source), ("value", source))
        )
        rows = []
        for j in range(len(query)):
            powers = {n: torch.exp(q[j] @ k[n] / sqrt(width)) for n in real}
            rows.append(sum(powers[n] * v[n] for n in real) / sum(powers.values()))
        heads.append(torch.stack(rows))
    return project(attention.output, torch.cat(heads, dim=-1))


def literal_norm(norm, x):
    centred = x - x.mean(dim=-1, keepdim=True)
    variance = (centred**2).mean(dim=-1, keepdim=True)
    return centred / torch.sqrt(variance + norm.eps) * norm.weight + norm.bias


def literal_layer(layer, query, source, real, shortcut):
    inner = literal_norm(layer.attention_norm, source + literal_attention(layer.attention, query, source, real))
    up, down = layer.feed_forward.up, layer.feed_forward.down
    outer = torch.clamp(inner @ up.weight.T + up.bias, min=0) @ down.weight.T + down.bias
    outer = literal_norm(layer.feed_forward_norm, inner + outer)
    return literal_norm(layer.layer_norm, source + outer) if shortcut else outer


def literal_module(module, visual, concepts, visual_real, concept_real, settings):
    paper, mutual = settings.get("block_variant") != "official", settings.get("attention") != "self"
    for t in range(settings.get("num_iterations", 2)):
        index = 0 if settings.get("share_iteration_weights", True) else t
        v_layer, t_layer = (
            module.visual_layers[index] if len(module.visual_layers) else None,
            module.textual_layers[index] if len(module.textual_layers) else None,
        )
        if settings.get("order") == "textual_first":
            concepts = literal_layer(t_layer, visual if mutual else concepts, concepts, concept_real, paper)
            visual = literal_layer(v_layer, concepts if mutual else visual, visual, visual_real, True)
        else:
            visual = literal_layer(v_layer, concepts if mutual else visual, visual, visual_real, True)
            concepts = literal_layer(t_layer, visual if mutual else concepts, concepts, concept_real, paper)
    return literal_norm(module.fusion_norm, visual + concepts), visual, concepts


@pytest.mark.parametrize("masks", [{}, MASKS], ids=["all", "masked"])
@every_setting
def test_outputs_are_those_of_the_equations_with_loops_over_heads_and_rows(settings, masks):
    module, (visual, concepts) = make_module(**settings), make_inputs()
    outputs = module(visual, concepts, **masks)
    for i in range(BATCH):
        real = [masks[name][i].nonzero().flatten().tolist() if masks else range(ROWS) for name in MASKS]
        expected = literal_module(module, visual[i], concepts[i], *real, settings)
        for name, value in zip(("fused", "visual", "textual"), expected, strict=True):
            torch.testing.assert_close(outputs[name][i], value, rtol=0, atol=1e-10)


# Properties


@every_setting
def test_asking_for_attention_weights_changes_no_output(settings):
    module, inputs = make_module(**settings), make_inputs()
    for masks in ({}, MASKS):
        silent, asked = module(*inputs, **masks), module(*inputs, **masks, output_attentions=True)
        assert_equal_outputs(asked, silent)
        assert silent.visual_attentions is silent.textual_attentions is None
        assert len(asked.visual_attentions) == len(asked.textual_attentions) == settings.get("num_iterations", 2)


def test_weights_sum_to_one_over_real_keys_and_are_zero_on_padding():
    outputs = make_module()(*make_inputs(), **MASKS, output_attentions=True)
    for attentions, mask in ((outputs.visual_attentions, VISUAL_MASK), (outputs.textual_attentions, CONCEPT_MASK)):
        for weights in attentions:
            assert weights.shape == (BATCH, HEADS, ROWS, ROWS)
            torch.testing.assert_close(weights.sum(dim=-1), torch.ones_like(weights[..., 0]))
            padding = (mask == 0)[:, None, None].expand_as(weights)
            assert (weights[padding] == 0).all()
            assert (weights[~padding] > 0).all()


def test_the_attended_rows_do_not_depend_on_the_order_of_the_source_so_only_the_shortcut_does():
    layer, (query, source) = make_module().visual_layers[0], make_inputs()
    order = torch.tensor([3, 0, 4, 1, 2])
    attended, _ = layer.attention(query, source, VISUAL_MASK)
    permuted, _ = layer.attention(query, source[:, order], VISUAL_MASK[:, order])
    torch.testing.assert_close(permuted, attended, rtol=0, atol=1e-12)

    # The layer's output is what its steps give with the shortcuts permuted and the attended rows as they were.
    shortcut = source[:, order]
    x = layer.attention_norm(shortcut + attended)
    x = layer.layer_norm(shortcut + layer.feed_forward_norm(x + layer.feed_forward(x)))
    output, _ = layer(query, shortcut, VISUAL_MASK[:, order])
    torch.testing.assert_close(output, x, rtol=0, atol=1e-12)
    assert not torch.allclose(output, layer(query, source, VISUAL_MASK)[0])


@every_setting
def test_pairs_in_another_order_give_the_same_rows_in_that_order(settings):
    module, (visual, concepts), order = make_module(**settings), make_inputs(), torch.tensor([3, 0, 4, 1, 2])
    permuted = module(visual[:, order], concepts[:, order], VISUAL_MASK[:, order], CONCEPT_MASK[:, order])
    expected = module(visual, concepts, **MASKS)
    assert_equal_outputs(permuted, MutualIterativeAttentionOutput(*(x[:, order] for x in expected.to_tuple())))


@pytest.mark.parametrize("order", ["visual_first", "textual_first"])
def test_the_other_modality_reaches_a_modality_through_the_attention_weights_alone(order):
    module, (visual, concepts), (other_visual, other_concepts) = (
        make_module(order=order),
        make_inputs(),
        make_inputs(seed=2),
    )
    expected = module(visual, concepts)
    assert not torch.allclose(module(visual, other_concepts).visual, expected.visual)
    assert not torch.allclose(module(other_visual, concepts).textual, expected.textual)
    for layer in (*module.visual_layers, *module.textual_layers):
        nn.init.zeros_(layer.attention.query.weight)  # the query is its bias: the weights follow from the keys alone
    expected = module(visual, concepts)
    assert torch.equal(module(visual, other_concepts).visual, expected.visual)
    assert torch.equal(module(other_visual, concepts).textual, expected.textual)


def test_in_self_attention_each_modality_stays_on_its_own():
    module, (visual, concepts), (other_visual, other_concepts) = (
        make_module(attention="self"),
        make_inputs(),
        make_inputs(seed=2),
    )
    expected = module(visual, concepts)
    assert torch.equal(module(visual, other_concepts).visual, expected.visual)
    assert torch.equal(module(other_visual, concepts).textual, expected.textual)


@every_setting
def test_padding_on_both_sides_changes_nothing(settings):
    module, inputs = make_module(**settings), make_inputs()
    padded = [torch.cat([x, 100 * torch.ones(BATCH, 2, WIDTH, dtype=x.dtype)], dim=1) for x in inputs]
    masks = {name: F.pad(mask, (0, 2)) for name, mask in MASKS.items()}
    outputs = module(*padded, **masks)
    kept = MutualIterativeAttentionOutput(*(x[:, :ROWS] for x in outputs.to_tuple()))
    assert_equal_outputs(kept, module(*inputs, **MASKS))


@pytest.mark.parametrize("dtype", [torch.bool, torch.long, torch.float32])
def test_masks_may_be_of_any_type_and_all_ones_are_none(dtype):
    module, inputs = make_module(), make_inputs()
    typed = {name: mask.to(dtype) for name, mask in MASKS.items()}
    assert_equal_outputs(module(*inputs, **typed), module(*inputs, **MASKS))
    ones = torch.ones(BATCH, ROWS, dtype=dtype)
    assert_equal_outputs(module(*inputs, ones, ones), module(*inputs))


@every_setting
def test_a_batch_equals_its_images_one_at_a_time(settings):
    module, (visual, concepts) = make_module(**settings), make_inputs()
    alone = [
        module(visual[i : i + 1], concepts[i : i + 1], VISUAL_MASK[i : i + 1], CONCEPT_MASK[i : i + 1]).to_tuple()
        for i in range(BATCH)
    ]
    rows = MutualIterativeAttentionOutput(*(torch.cat(each) for each in zip(*alone, strict=True)))
    assert_equal_outputs(module(visual, concepts, **MASKS), rows)


@pytest.mark.parametrize("output_attentions", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_an_image_without_real_rows_gives_no_nan_and_leaves_the_others_alone(dtype, output_attentions):
    module, (visual, concepts) = make_module().to(dtype), (x.to(dtype).requires_grad_() for x in make_inputs())
    masks = {name: mask.clone() for name, mask in MASKS.items()}
    for mask in masks.values():
        mask[1] = 0
    outputs = module(visual, concepts, **masks, output_attentions=output_attentions)
    assert all(outputs[name].isfinite().all() for name in ("fused", "visual", "textual"))
    expected = module(visual, concepts, **MASKS, output_attentions=output_attentions)
    assert torch.equal(outputs.fused[[0, 2]], expected.fused[[0, 2]])
    for mask in masks.values():
        mask[1] = 1  # such an image attends to all its rows
    assert torch.equal(
        outputs.fused[1], module(visual, concepts, **masks, output_attentions=output_attentions).fused[1]
    )
    outputs.fused.float().square().sum().backward()
    assert visual.grad.isfinite().all()
    assert concepts.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters())


@every_setting
@pytest.mark.parametrize("output_attentions", [False, True])
def test_gradients_reach_every_parameter_and_both_inputs(settings, output_attentions):
    module, inputs = make_module(**settings).train(), [x.requires_grad_() for x in make_inputs()]
    torch.manual_seed(0)
    weight = torch.randn(BATCH, ROWS, WIDTH, dtype=torch.float64)
    (module(*inputs, output_attentions=output_attentions).fused * weight).sum().backward()
    for name, parameter in (*module.named_parameters(), *zip(("visual", "concepts"), inputs, strict=True)):
        assert parameter.grad is not None, name
        # A key's bias adds the same to all of a query's logits, which softmax does not see.
        assert name.endswith("key.bias") or parameter.grad.abs().max() > 1e-6, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("output_attentions", [False, True])
def test_half_precision_is_near_float64(dtype, output_attentions):
    module, inputs = make_module(), make_inputs()
    with torch.no_grad():
        expected = module(*inputs, **MASKS)
        actual = module.to(dtype)(*(x.to(dtype) for x in inputs), **MASKS, output_attentions=output_attentions)
    for name in ("fused", "visual", "textual"):
        assert actual[name].dtype == dtype
        torch.testing.assert_close(actual[name].double(), expected[name], rtol=0.05, atol=0.08)


@pytest.mark.parametrize("output_attentions", [False, True])
def test_compiled_it_gives_the_same_outputs_in_one_graph(output_attentions):
    module, inputs = make_module(), make_inputs()
    torch._dynamo.reset()
    # The "eager" backend tests that the graph is captured rightly, and needs no C++ compiler.
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    actual = compiled(*inputs, **MASKS, output_attentions=output_attentions)
    assert_equal_outputs(actual, module(*inputs, **MASKS))


# One output alone

OUTPUTS = pytest.mark.parametrize("output", ["visual", "textual"])


@OUTPUTS
@every_setting
def test_one_output_is_that_of_the_whole_module_without_what_it_does_not_depend_on(settings, output):
    whole, inputs = make_module(**settings), make_inputs()
    alone = make_module(output=output, **settings)
    alone.load_state_dict({name: whole.state_dict()[name] for name in alone.state_dict()})
    expected = whole(*inputs, **MASKS, output_attentions=True)
    outputs = alone(*inputs, **MASKS, output_attentions=True)
    torch.testing.assert_close(outputs[output], expected[output], rtol=0, atol=1e-12)
    absent = {"fused", "visual", "textual"} - {output}
    assert all(outputs.get(name) is None for name in absent)
    for side in ("visual", "textual"):
        attentions = outputs[f"{side}_attentions"]
        assert len(attentions) == alone.steps.count(side)
        for actual, known in zip(attentions, expected[f"{side}_attentions"], strict=False):  # the last may be left out
            torch.testing.assert_close(actual, known, rtol=0, atol=1e-12)


@OUTPUTS
@every_setting
def test_of_one_output_gradients_reach_every_parameter_and_what_is_read(settings, output):
    module, inputs = make_module(output=output, **settings).train(), [x.requires_grad_() for x in make_inputs()]
    torch.manual_seed(0)
    (module(*inputs)[output] * torch.randn(BATCH, ROWS, WIDTH, dtype=torch.float64)).sum().backward()
    read = [x for side, x in zip(("visual", "textual"), inputs, strict=True) if side in module.reads]
    assert read
    for name, parameter in (*module.named_parameters(), *((f"input {i}", x) for i, x in enumerate(read))):
        assert name.endswith("key.bias") or parameter.grad.abs().max() > 1e-6, name
    assert all(x.grad is None for x in inputs if not any(x is one for one in read))


@pytest.mark.parametrize(
    ("settings", "steps", "reads"),
    [
        ({"num_iterations": 1}, ["visual", "textual"], ["visual", "textual"]),
        ({"num_iterations": 0, "output": "visual"}, [], ["visual"]),
        ({"num_iterations": 1, "output": "visual"}, ["visual"], ["visual", "textual"]),
        ({"output": "visual"}, ["visual", "textual", "visual"], ["visual", "textual"]),
        ({"output": "visual", "order": "textual_first"}, ["textual", "visual"] * 2, ["visual", "textual"]),
        ({"output": "textual"}, ["visual", "textual"] * 2, ["visual", "textual"]),
        ({"output": "textual", "order": "textual_first"}, ["textual", "visual", "textual"], ["visual", "textual"]),
        ({"attention": "self"}, ["visual", "textual"] * 2, ["visual", "textual"]),
        ({"attention": "self", "output": "visual"}, ["visual", "visual"], ["visual"]),
        ({"attention": "self", "output": "textual"}, ["textual", "textual"], ["textual"]),
    ],
)
def test_only_the_steps_that_the_output_depends_on_are_taken(settings, steps, reads):
    module = make_module(share_iteration_weights=False, **settings)
    assert (module.steps, module.reads) == (steps, reads)
    assert (len(module.visual_layers), len(module.textual_layers)) == (steps.count("visual"), steps.count("textual"))


def test_a_side_that_is_not_read_may_be_left_out():
    (visual, concepts), settings = make_inputs(), {"attention": "self"}
    of_regions = make_module(output="visual", **settings)
    assert torch.equal(of_regions(visual).visual, of_regions(visual, concepts).visual)
    assert torch.equal(of_regions(visual, concepts[:, :3]).visual, of_regions(visual).visual)
    of_concepts = make_module(output="textual", **settings)
    assert torch.equal(of_concepts(concepts=concepts).textual, of_concepts(visual, concepts).textual)
    with pytest.raises(ValueError, match=r"`concepts` must be \(batch, n, 12\), got nothing"):
        make_module(output="visual")(visual)


# Parameters and dropout


def test_it_works_with_its_sizes_alone():
    visual, concepts = torch.randn(2, 1, 4, 16)
    module = MutualIterativeAttention(16, 4, 1)
    assert module(visual, concepts).fused.shape == (1, 4, 16)
    assert module.visual_layers[0].feed_forward.up.out_features == 64


def test_without_iterations_the_inputs_come_back_and_there_are_no_layers():
    module, (visual, concepts) = make_module(num_iterations=0), make_inputs()
    outputs = module(visual, concepts, output_attentions=True)
    assert outputs.visual is visual
    assert outputs.textual is concepts
    assert outputs.visual_attentions == outputs.textual_attentions == ()
    torch.testing.assert_close(outputs.fused, module.fusion_norm(visual + concepts))
    assert module.state_dict().keys() == {"fusion_norm.weight", "fusion_norm.bias"}


@pytest.mark.parametrize("shared, num_layers", [(True, 1), (False, 3)])
def test_iterations_share_their_two_layers_unless_told_otherwise(shared, num_layers):
    module = make_module(num_iterations=3, share_iteration_weights=shared)
    assert len(module.visual_layers) == len(module.textual_layers) == num_layers


def test_all_layer_norms_have_the_given_epsilon():
    norms = [each for each in make_module(layer_norm_eps=0.1).modules() if isinstance(each, nn.LayerNorm)]
    assert [norm.eps for norm in norms] == [0.1] * 7


def test_only_parameters_that_are_used_exist():
    def names(**settings: Any) -> set[str]:
        return set(make_module(**settings).state_dict())

    textual_norm = {f"textual_layers.0.layer_norm.{kind}" for kind in ("weight", "bias")}
    assert names() - names(block_variant="official") == textual_norm
    assert names() == names(attention="self") == names(order="textual_first")
    biases = {
        f"{layer}_layers.0.attention.{name}.bias"
        for layer in ("visual", "textual")
        for name in ("query", "key", "value", "output")
    }
    assert names() - names(attention_bias=False) == biases


def test_projections_start_as_in_the_official_code_and_reset_alike():
    torch.manual_seed(0)
    module = MutualIterativeAttention(256, 4, 1)
    for layer in (*module.visual_layers, *module.textual_layers):
        attention = layer.attention
        # normal: d 256, d_k 64 -> sqrt(2 / 320); Xavier: sqrt(2 / 512). 65,536 draws: the error of a std is 0.3 %
        expected = {"query": sqrt(2 / 320), "key": sqrt(2 / 320), "value": sqrt(2 / 320), "output": sqrt(2 / 512)}
        for name, std in expected.items():
            projection = getattr(attention, name)
            assert isinstance(projection, OutputProjection if name == "output" else AttentionProjection)
            for _ in range(2):
                assert projection.weight.std().item() == pytest.approx(std, rel=0.02)
                assert projection.weight.abs().max() > 3 * std  # normal and not uniform
                assert 0 < projection.bias.abs().max() <= 1 / 16  # a linear layer's own, 1 / sqrt(256)
                projection.reset_parameters()


@pytest.mark.parametrize("output_attentions", [False, True])
def test_attention_weights_are_dropped_out_in_training_only_and_returned_as_they_were(output_attentions):
    module, inputs = make_module(num_iterations=1, dropout=0.0, attention_dropout=1.0), make_inputs()
    expected = module(*inputs, output_attentions=True)
    dropped = module.train()(*inputs, output_attentions=output_attentions)
    layer = module.visual_layers[0]
    x = layer.attention_norm(inputs[0] + layer.attention.output.bias)  # nothing is gathered
    x = layer.layer_norm(inputs[0] + layer.feed_forward_norm(x + layer.feed_forward(x)))
    torch.testing.assert_close(dropped.visual, x)
    assert not torch.allclose(dropped.visual, expected.visual)
    if output_attentions:
        torch.testing.assert_close(dropped.visual_attentions, expected.visual_attentions)


def test_dropout_takes_the_outputs_of_attention_and_fcn_but_not_the_shortcuts():
    module, inputs = make_module(num_iterations=1, dropout=1.0, layer_dropout=0.0).train(), make_inputs()
    layer = module.visual_layers[0]
    x = layer.feed_forward_norm(layer.attention_norm(inputs[0]))
    torch.testing.assert_close(module(*inputs).visual, layer.layer_norm(inputs[0] + x))


def test_layer_dropout_leaves_the_shortcut_around_a_layer_and_is_for_the_paper_variant_alone():
    settings: dict[str, Any] = {"num_iterations": 1, "dropout": 0.0, "attention_dropout": 0.0, "layer_dropout": 1.0}
    module, inputs = make_module(**settings).train(), make_inputs()
    outputs = module(*inputs)
    torch.testing.assert_close(outputs.visual, module.visual_layers[0].layer_norm(inputs[0]))
    torch.testing.assert_close(outputs.textual, module.textual_layers[0].layer_norm(inputs[1]))
    official = make_module(**settings, block_variant="official")
    expected = official(*inputs)
    assert_equal_outputs(official.train()(*inputs), expected)


def test_layer_dropout_is_dropout_unless_given():
    assert make_module(dropout=0.3).visual_layers[0].layer_dropout.p == 0.3
    assert make_module(dropout=0.3, layer_dropout=0.0).visual_layers[0].layer_dropout.p == 0.0


# Where rows come from


def test_accumulated_attention_worked_by_hand():
    # Two heads whose means are A_1 = [[1, 0], [1, 0]] and A_2 = [[0, 1], [0, 1]].
    first = torch.tensor([[[[1.0, 0], [0.8, 0.2]], [[1, 0], [1.2, -0.2]]]])
    second = torch.tensor([[[[0.0, 1], [0, 1]], [[0, 1], [0, 1]]]])
    accumulated = accumulated_attention((first, second))
    torch.testing.assert_close(accumulated[0], torch.tensor([[[1.0, 0], [1, 0]]]))
    torch.testing.assert_close(accumulated[1], torch.tensor([[[1.0, 0], [1, 0]]]))  # A_2 A_1, and not A_1 A_2
    assert len(accumulated) == 2


@pytest.mark.parametrize("attention", ["mutual", "self"])
def test_accumulated_attentions_are_shares_and_padding_has_none(attention):
    outputs = make_module(num_iterations=3, attention=attention)(*make_inputs(), **MASKS, output_attentions=True)
    for attentions, mask in ((outputs.visual_attentions, VISUAL_MASK), (outputs.textual_attentions, CONCEPT_MASK)):
        padding = (mask == 0)[:, None].expand(-1, ROWS, -1)
        accumulated = accumulated_attention(attentions)
        assert len(accumulated) == 3
        for shares in accumulated:
            assert shares.shape == (BATCH, ROWS, ROWS)
            torch.testing.assert_close(shares.sum(dim=-1), torch.ones_like(shares[..., 0]))
        assert all((shares[padding] == 0).all() for shares in accumulated)


@pytest.mark.parametrize("attentions", [None, ()])
def test_maps_of_no_attention_weights_say_how_to_get_some(attentions):
    with pytest.raises(ValueError, match="`output_attentions=True`"):
        accumulated_attention(attentions)


# What cannot work


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"num_heads": 5}, r"`num_heads` must divide `hidden_size` \(12\), got 5"),
        ({"num_heads": 0}, r"`num_heads` must divide"),
        ({"num_iterations": -1}, r"`num_iterations` must be 0 or more, got -1"),
        ({"order": "visual"}, r"`order` must be one of .*got 'visual'\. Did you mean 'visual_first'\?"),
        ({"attention": "mutua"}, r"`attention` must be one of .* Did you mean 'mutual'\?"),
        ({"output": "fused"}, r"`output` must be one of \['both', 'visual', 'textual'\], got 'fused'"),
        ({"block_variant": "papers"}, r"`block_variant` must be one of .* Did you mean 'paper'\?"),
        ({"block_variant": "xyz"}, r"`block_variant` must be one of \['paper', 'official'\], got 'xyz'\.$"),
        ({"dropout": 1.5}, "between 0 and 1"),
        ({"attention_dropout": -0.1}, "between 0 and 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        make_module(**settings)


def test_inputs_that_do_not_fit_are_refused():
    module, (visual, concepts) = make_module(), make_inputs()
    with pytest.raises(ValueError, match=r"equally many.*\(3, 5, 12\) and \(3, 4, 12\).*`concept_mask`"):
        module(visual, concepts[:, :4])
    with pytest.raises(ValueError, match=r"`concepts` must be \(batch, n, 12\), got \(3, 5, 6\)"):
        module(visual, concepts[..., :6])
    with pytest.raises(ValueError, match=r"`visual` must be \(batch, n, 12\), got \(5, 12\)"):
        module(visual[0], concepts)
    with pytest.raises(ValueError, match=r"`concept_mask` must be \(batch, n\) = \(3, 5\), got \(3, 4\)"):
        module(visual, concepts, VISUAL_MASK, CONCEPT_MASK[:, :4])


def test_an_official_weight_of_another_name_is_refused_with_the_nearest_known_one(goldens):
    state = goldens[0].below("official_state_dict")
    state["layer_refine_V.enc_attn.w_q.weight"] = state.pop("layer_refine_V.enc_attn.w_qs.weight")
    with pytest.raises(
        ValueError,
        match=r"missing: 'layer_refine_V\.enc_attn\.w_qs\.weight'; "
        r"unknown: 'layer_refine_V\.enc_attn\.w_q\.weight' \(nearest known: 'layer_refine_V\.enc_attn\.w_qs\.weight'\)",
    ):
        official_mia_state_dict(state)


def test_a_state_of_another_module_is_no_official_one():
    with pytest.raises(ValueError, match=r"missing: 'layer_norm\.bias', .*; unknown: 'model'\."):
        official_mia_state_dict({"model": torch.zeros(1)})
