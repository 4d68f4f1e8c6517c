"""A layer inside a loop over time: the same numbers and gradients as a plain one, in one product."""

import pytest
import torch
from torch import nn

from hf_grounding.modeling.caption_decoders import RecurrentLinear


def run(layer, call, steps, sizes):
    """Rows that leave a recurrence one after another; its result and the gradients of everything."""
    h = torch.zeros(sizes[0], 4, dtype=steps.dtype)
    outputs = []
    for step, count in enumerate(sizes):
        h = call(torch.cat([steps[:count, step], h[:count]], dim=1)).tanh()
        outputs.append(h)
    result = torch.cat(outputs)
    return result, torch.autograd.grad((result * result.detach()).sum(), [steps, *layer.parameters()])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", [[4, 4, 2, 1], [4]])
def test_a_loop_has_the_gradients_of_a_plain_layer(bias, sizes):
    torch.manual_seed(0)
    layer = RecurrentLinear(6, 4, bias=bias).double()
    steps = torch.randn(4, 4, 2, dtype=torch.float64, requires_grad=True)
    expected = run(layer, lambda x: nn.functional.linear(x, layer.weight, layer.bias), steps, sizes)
    torch.testing.assert_close(run(layer, layer.over_steps(len(sizes)), steps, sizes), expected)


def test_frozen_weights_pass_the_gradient_on():
    torch.manual_seed(0)
    layer = RecurrentLinear(4, 4).requires_grad_(False)
    x = torch.randn(3, 4, requires_grad=True)
    product = layer.over_steps(2)
    product(product(x)).sum().backward()
    torch.testing.assert_close(x.grad, (layer.weight @ layer.weight).sum(dim=0).expand(3, 4))


def test_a_graph_can_be_walked_twice():
    torch.manual_seed(0)
    layer = RecurrentLinear(4, 4)
    product = layer.over_steps(2)
    loss = product(product(torch.randn(3, 4))).sum()
    first, again = (torch.autograd.grad(loss, list(layer.parameters()), retain_graph=True) for _ in range(2))
    torch.testing.assert_close(first, again)


def test_autocast_leaves_float32_gradients_close_to_exact_ones():
    torch.manual_seed(0)
    layer = RecurrentLinear(6, 4)
    steps = torch.randn(4, 30, 2, requires_grad=True)
    _, expected = run(layer, layer, steps, [4] * 30)
    with torch.autocast("cpu", torch.bfloat16):
        _, gradients = run(layer, layer.over_steps(30), steps, [4] * 30)
    for actual, exact in zip(gradients, expected, strict=True):
        assert actual.dtype == torch.float32
        assert (actual - exact).norm() < 0.02 * exact.norm()
