"""Mutual Iterative Attention (Liu et al., NeurIPS 2019, arXiv 1905.06139): regions and concepts that align each other.

n visual features and n textual concepts refine each other N times: each concept gathers the regions it is about, then
each refined region gathers the concepts that name it. Afterwards row i of both describes the same thing. There is no
loss of alignment: the module stands before a captioner or question answerer and learns from that one's loss.

Eq. 1-4 -> `MultiHeadAttention`, `FeedForward` and, with its residual connections, `MutualAttentionLayer`; the
iterations and Eq. 7 -> `MutualIterativeAttention`.

Only what is gathered is mixed: the shortcut of a layer is its source and not its query, so no textual value is ever
added to the visual features, nor the reverse. The other modality chooses the weights alone.

Where paper and authors' code disagree, `block_variant` chooses: in the paper each layer as a whole has a residual
connection of its own ("paper", with dropout as before every other one), in the code the visual layer alone has it, and
without dropout ("official"). Biases of the projections, which the equations leave out, are as in the code
(`attention_bias`), and so is dropout on attention weights.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import sqrt
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn
from transformers.utils import ModelOutput

Side = Literal["visual", "textual"]
SIDES: tuple[Side, Side] = ("visual", "textual")
OTHER_SIDE: dict[Side, Side] = {"visual": "textual", "textual": "visual"}


@dataclass
class MutualIterativeAttentionOutput(ModelOutput):
    r"""Output of [`MutualIterativeAttention`].

    Args:
        fused (`(batch, n, hidden_size)`): `LayerNorm(I_N + T_N)`, Eq. 7; only of a module whose `output` is "both".
        visual (`(batch, n, hidden_size)`): I_N, the visual features after the last iteration; not if `output` is
            "textual".
        textual (`(batch, n, hidden_size)`): T_N, the textual concepts after the last iteration; not if `output` is
            "visual".
        visual_attentions (tuple of `(batch, num_heads, n, n)`, one per iteration that refines visual rows): Weight of
            each visual source row (column) in each refined visual row (row), before dropout. Only with
            `output_attentions=True`.
        textual_attentions (tuple of `(batch, num_heads, n, n)`): The same for textual rows.
    """

    fused: torch.FloatTensor | None = None
    visual: torch.FloatTensor | None = None
    textual: torch.FloatTensor | None = None
    visual_attentions: tuple[torch.FloatTensor, ...] | None = None
    textual_attentions: tuple[torch.FloatTensor, ...] | None = None


class AttentionProjection(nn.Linear):
    r"""W^Q, W^K or W^V of all heads side by side; its weights start as normal(0, sqrt(2 / (d + d_k)))."""

    def __init__(self, hidden_size: int, num_heads: int, bias: bool = True):
        self.init_std = sqrt(2 / (hidden_size + hidden_size // num_heads))  # first: the constructor initialises
        super().__init__(hidden_size, hidden_size, bias=bias)

    def reset_parameters(self) -> None:
        super().reset_parameters()  # the bias starts as in any linear layer
        nn.init.normal_(self.weight, std=self.init_std)


class OutputProjection(nn.Linear):
    r"""W^O, which mixes the heads; its weights start as Xavier's normal distribution."""

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.xavier_normal_(self.weight)


class MultiHeadAttention(nn.Module):
    r"""`head_i = softmax(Q W^Q_i (S W^K_i)^T / sqrt(d_k)) S W^V_i`, `MHA(Q, S) = [head_1 .. head_k] W^O`.

    Shapes: `query` (batch, m, d), `source` (batch, n, d), `source_mask` (batch, n) -> (batch, m, d) and, if asked for,
    the weights (batch, num_heads, m, n), else `None`.
    """

    def __init__(self, hidden_size: int, num_heads: int, bias: bool, attention_dropout: float):
        super().__init__()
        self.num_heads = num_heads
        self.query = AttentionProjection(hidden_size, num_heads, bias)
        self.key = AttentionProjection(hidden_size, num_heads, bias)
        self.value = AttentionProjection(hidden_size, num_heads, bias)
        self.output = OutputProjection(hidden_size, hidden_size, bias=bias)
        self.attention_dropout = nn.Dropout(attention_dropout)

    def forward(
        self,
        query: torch.Tensor,
        source: torch.Tensor,
        source_mask: torch.Tensor | None = None,
        output_attentions: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        q, k, v = (
            x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (batch, heads, rows, d_k)
            for x in (self.query(query), self.key(source), self.value(source))
        )
        allowed = None
        if source_mask is not None:
            real = source_mask != 0
            # A row without a real key is padding as a whole; it attends to all of it, because softmax needs something.
            allowed = (real | ~real.any(dim=-1, keepdim=True))[:, None, None]  # (batch, 1, 1, n)
        if not output_attentions:
            dropout = self.attention_dropout.p if self.training else 0.0
            heads = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, dropout_p=dropout)
            return self.output(heads.transpose(1, 2).flatten(2)), None
        logits = q @ k.mT / sqrt(q.shape[-1])  # (batch, heads, m, n)
        if allowed is not None:
            logits = logits.masked_fill(~allowed, torch.finfo(logits.dtype).min)
        weights = logits.softmax(dim=-1)
        heads = self.attention_dropout(weights) @ v
        return self.output(heads.transpose(1, 2).flatten(2)), weights


class FeedForward(nn.Module):
    r"""`FCN(X) = max(0, X W_1 + b_1) W_2 + b_2`, each row by itself. (..., d) -> (..., d)."""

    def __init__(self, hidden_size: int, intermediate_size: int):
        super().__init__()
        self.up = nn.Linear(hidden_size, intermediate_size)
        self.down = nn.Linear(intermediate_size, hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.up(x).relu())


class MutualAttentionLayer(nn.Module):
    r"""`FCN(MHA(Q, S))`, where each step is dropped out, added to its shortcut and normalised.

        A = LN(S + Dropout(MHA(Q, S)))
        F = LN(A + Dropout(FCN(A)))
        O = LN(S + Dropout(F))            # only with `layer_shortcut`, else O = F

    The shortcuts are the source: row j of O is source row j, to which the rows that query j chose were added.

    Shapes: those of [`MultiHeadAttention`], with m = n.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        intermediate_size: int,
        *,
        attention_bias: bool,
        layer_shortcut: bool,
        dropout: float,
        attention_dropout: float,
        layer_dropout: float,
        layer_norm_eps: float,
    ):
        super().__init__()
        self.attention = MultiHeadAttention(hidden_size, num_heads, attention_bias, attention_dropout)
        self.attention_norm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)
        self.feed_forward = FeedForward(hidden_size, intermediate_size)
        self.feed_forward_norm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)
        self.layer_norm = nn.LayerNorm(hidden_size, eps=layer_norm_eps) if layer_shortcut else None
        self.dropout = nn.Dropout(dropout)
        self.layer_dropout = nn.Dropout(layer_dropout)

    def forward(
        self,
        query: torch.Tensor,
        source: torch.Tensor,
        source_mask: torch.Tensor | None = None,
        output_attentions: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        attended, weights = self.attention(query, source, source_mask, output_attentions)
        x = self.attention_norm(source + self.dropout(attended))
        x = self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))
        if self.layer_norm is not None:
            x = self.layer_norm(source + self.layer_dropout(x))
        return x, weights


class MutualIterativeAttention(nn.Module):
    r"""The whole module: N iterations of the two layers and the fusion (Eq. 7).

        I_t = V_layer(query=T_{t-1}, source=I_{t-1})
        T_t = T_layer(query=I_t, source=T_{t-1})        # the new I_t
        fused = LN(I_N + T_N)

    With N = 0 there are no layers: I_0, T_0 and their fusion come back.

    Steps and layers that `output` does not depend on are left out, and so is a side that it does not depend on.

    Args:
        hidden_size (`int`): Width d of both modalities (512 in the paper's code).
        num_heads (`int`): Heads k; must divide `hidden_size`.
        num_iterations (`int`): N, 0 or more.
        intermediate_size (`int`, *optional*): Inner width of the FCN; default `4 * hidden_size`.
        order (`"visual_first"` or `"textual_first"`): Which modality is refined first in an iteration; the second one
            is queried by the refined first one.
        attention (`"mutual"` or `"self"`): Queries come from the other modality, or, for comparison, from the same one
            (then `order` has no effect).
        output (`"both"`, `"visual"` or `"textual"`): What is asked for: everything, or one refined modality alone.
        block_variant (`"paper"` or `"official"`): Residual connection around each layer as a whole in both modalities,
            or, as in the authors' code, in the visual one alone and without its dropout.
        attention_bias (`bool`): Biases in W^Q, W^K, W^V, W^O.
        share_iteration_weights (`bool`): The same two layers in all iterations, as in the paper, or N pairs of layers.
        dropout (`float`): On the output of attention and of the FCN.
        attention_dropout (`float`): On the attention weights.
        layer_dropout (`float`, *optional*): Before the residual connection around a layer of the `"paper"` variant;
            default `dropout`.
        layer_norm_eps (`float`): Epsilon of all layer norms.

    Raises:
        ValueError: If a size or a name cannot work.

    Example:

        >>> aligned = MutualIterativeAttention(512)(torch.rand(2, 36, 512), torch.rand(2, 36, 512))
        >>> aligned.fused.shape
        torch.Size([2, 36, 512])
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int = 8,
        num_iterations: int = 2,
        *,
        intermediate_size: int | None = None,
        order: Literal["visual_first", "textual_first"] = "visual_first",
        attention: Literal["mutual", "self"] = "mutual",
        output: Literal["both", "visual", "textual"] = "both",
        block_variant: Literal["paper", "official"] = "paper",
        attention_bias: bool = True,
        share_iteration_weights: bool = True,
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        layer_dropout: float | None = None,
        layer_norm_eps: float = 1e-5,
    ):
        super().__init__()
        if num_heads < 1 or hidden_size % num_heads:
            raise ValueError(f"`num_heads` must divide `hidden_size` ({hidden_size}), got {num_heads}.")
        if num_iterations < 0:
            raise ValueError(f"`num_iterations` must be 0 or more, got {num_iterations}.")
        _check_choice("order", order, ("visual_first", "textual_first"))
        _check_choice("attention", attention, ("mutual", "self"))
        _check_choice("output", output, ("both", *SIDES))
        _check_choice("block_variant", block_variant, ("paper", "official"))
        self.hidden_size, self.attention, self.output = hidden_size, attention, output
        self.share_iteration_weights = share_iteration_weights
        steps = (SIDES if order == "visual_first" else SIDES[::-1]) * num_iterations
        self.steps, self.reads = _steps_behind(output, steps, mutual=attention == "mutual")
        paper = block_variant == "paper"

        def make_layers(side: Side, layer_shortcut: bool) -> nn.ModuleList:
            count = self.steps.count(side)
            return nn.ModuleList(
                MutualAttentionLayer(
                    hidden_size,
                    num_heads,
                    4 * hidden_size if intermediate_size is None else intermediate_size,
                    attention_bias=attention_bias,
                    layer_shortcut=layer_shortcut,
                    dropout=dropout,
                    attention_dropout=attention_dropout,
                    layer_dropout=(dropout if layer_dropout is None else layer_dropout) if paper else 0.0,
                    layer_norm_eps=layer_norm_eps,
                )
                for _ in range(min(count, 1) if share_iteration_weights else count)
            )

        self.visual_layers = make_layers("visual", layer_shortcut=True)
        self.textual_layers = make_layers("textual", layer_shortcut=paper)
        self.fusion_norm = nn.LayerNorm(hidden_size, eps=layer_norm_eps) if output == "both" else None

    def forward(
        self,
        visual: torch.Tensor | None = None,
        concepts: torch.Tensor | None = None,
        visual_mask: torch.Tensor | None = None,
        concept_mask: torch.Tensor | None = None,
        output_attentions: bool = False,
    ) -> MutualIterativeAttentionOutput:
        r"""Refines both modalities.

        Args:
            visual (`torch.Tensor` of shape `(batch, n, hidden_size)`): Visual features I_0.
            concepts (`torch.Tensor` of shape `(batch, n, hidden_size)`): Embedded textual concepts T_0, as many. Of
                self-attention with one `output` the other modality is not read, and may be left out.
            visual_mask (`torch.Tensor` of shape `(batch, n)`, *optional*): 1 = real, 0 = padding, to which no row
                attends. Padded rows are computed as well, and mean nothing.
            concept_mask (`torch.Tensor` of shape `(batch, n)`, *optional*): The same for the concepts.
            output_attentions (`bool`): Also return the attention weights.

        Raises:
            ValueError: If the shapes do not fit.
        """
        masks: dict[Side, torch.Tensor | None] = {"visual": visual_mask, "textual": concept_mask}
        rows = self._checked({"visual": visual, "textual": concepts}, masks)
        attentions: dict[Side, list[torch.Tensor | None]] = {"visual": [], "textual": []}
        for side in self.steps:
            # Each modality is refined by the other as it is by then; the one that comes first sees the older one.
            query = rows[side if self.attention == "self" else OTHER_SIDE[side]]
            layers = self.visual_layers if side == "visual" else self.textual_layers
            layer = layers[0 if self.share_iteration_weights else len(attentions[side])]
            rows[side], weights = layer(query, rows[side], masks[side], output_attentions)
            attentions[side].append(weights)
        return MutualIterativeAttentionOutput(
            fused=None if self.fusion_norm is None else self.fusion_norm(rows["visual"] + rows["textual"]),
            visual=None if self.output == "textual" else rows["visual"],
            textual=None if self.output == "visual" else rows["textual"],
            visual_attentions=tuple(attentions["visual"]) if output_attentions else None,
            textual_attentions=tuple(attentions["textual"]) if output_attentions else None,
        )

    def _checked(
        self, given: dict[Side, torch.Tensor | None], masks: dict[Side, torch.Tensor | None]
    ) -> dict[Side, torch.Tensor]:
        """Rows of the sides that are read."""
        rows: dict[Side, torch.Tensor] = {}
        for side in self.reads:
            x, mask = given[side], masks[side]
            name, mask_name = ("visual", "visual_mask") if side == "visual" else ("concepts", "concept_mask")
            if x is None or x.ndim != 3 or x.shape[-1] != self.hidden_size:
                came = "nothing" if x is None else tuple(x.shape)
                raise ValueError(f"`{name}` must be (batch, n, {self.hidden_size}), got {came}.")
            if mask is not None and mask.shape != x.shape[:2]:
                raise ValueError(f"`{mask_name}` must be (batch, n) = {tuple(x.shape[:2])}, got {tuple(mask.shape)}.")
            rows[side] = x
        if len({x.shape for x in rows.values()}) > 1:
            raise ValueError(
                f"`visual` and `concepts` must be equally many, because they are added row by row; got "
                f"{tuple(rows['visual'].shape)} and {tuple(rows['textual'].shape)}. Keep the best concepts, or pad "
                f"them and pass `concept_mask`."
            )
        return rows


def _steps_behind(output: str, steps: Sequence[Side], *, mutual: bool) -> tuple[list[Side], list[Side]]:
    """The steps, each named by the side that it refines, that the output depends on, and the sides that they read."""
    needed: list[Side] = [side for side in SIDES if output in ("both", side)]
    kept: list[Side] = []
    for side in reversed(steps):
        if side in needed:
            kept.insert(0, side)
            if mutual:
                needed = list(SIDES)
    return kept, needed


def accumulated_attention(attentions: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    r"""The paper's accumulated attention after each iteration t: `A_t ... A_1`, A being the mean over heads.

    Shortcuts, by which each row also keeps what stood in its place, are ignored.

    Args:
        attentions (sequence of `torch.Tensor` of shape `(batch, num_heads, n, n)`): `visual_attentions` or
            `textual_attentions` of the output.

    Returns:
        One `(batch, n, n)` per iteration: weight of each original row (column) in each refined row (row).

    Raises:
        ValueError: If there are none.
    """
    if not attentions:
        raise ValueError(
            "Expected the attention weights of one iteration at least, got none. Call the model with "
            "`output_attentions=True` and one iteration or more."
        )
    means = [weights.mean(dim=1) for weights in attentions]
    return list(accumulate(means, lambda earlier, later: later @ earlier))


_LAYER_NAMES = {  # the authors' -> ours
    "enc_attn.w_qs": "attention.query",
    "enc_attn.w_ks": "attention.key",
    "enc_attn.w_vs": "attention.value",
    "enc_attn.fc": "attention.output",
    "enc_attn.layer_norm": "attention_norm",
    "pos_ffn.w_1": "feed_forward.up",
    "pos_ffn.w_2": "feed_forward.down",
    "pos_ffn.layer_norm": "feed_forward_norm",
}
_OFFICIAL_NAMES = {
    **{f"layer_refine_V.{theirs}": f"visual_layers.0.{ours}" for theirs, ours in _LAYER_NAMES.items()},
    **{f"layer_refine_T.{theirs}": f"textual_layers.0.{ours}" for theirs, ours in _LAYER_NAMES.items()},
    "layer_refine_V.layer_norm": "visual_layers.0.layer_norm",
    "layer_norm": "fusion_norm",
}


def official_mia_state_dict(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    r"""Weights of the authors' MIA module under our names, for `block_variant="official"` with shared weights and both
    outputs.

    Args:
        state (mapping of `str` to `torch.Tensor`): State of that module alone, `layer_refine_V.enc_attn.w_qs.weight`
            and so on; its 1x1 convolutions become linear layers.

    Raises:
        ValueError: If names are missing or unknown; says which.
    """
    names = {f"{old}.{kind}": f"{new}.{kind}" for old, new in _OFFICIAL_NAMES.items() for kind in ("weight", "bias")}
    missing, unknown = sorted(names.keys() - state.keys()), sorted(state.keys() - names.keys())
    if missing or unknown:
        hints = [(name, difflib.get_close_matches(name, names, n=1, cutoff=0.4)) for name in unknown]
        told = [f"{name!r} (nearest known: {near[0]!r})" if near else repr(name) for name, near in hints]
        raise ValueError(
            f"Expected the state of the official MIA module, whose names begin with `layer_refine_V.`, "
            f"`layer_refine_T.` and `layer_norm.`; missing: {', '.join(map(repr, missing)) or 'none'}; "
            f"unknown: {', '.join(told) or 'none'}."
        )
    return {names[name]: x.squeeze(-1) if x.ndim == 3 else x for name, x in state.items()}


def _check_choice(argument: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        nearest = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.4)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise ValueError(f"`{argument}` must be one of {list(choices)}, got {value!r}.{hint}")
