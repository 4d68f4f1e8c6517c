"""Weights of other codes under our names: the official captioners of MIA, and the public Up-Down implementation."""

from collections.abc import Iterable, Mapping

import torch

from .configuration_mia import MIAConfig

State = Mapping[str, torch.Tensor]


def official_captioner_state_dict(state: State, config: MIAConfig) -> dict[str, torch.Tensor]:
    r"""`decoder.*` and `output.*` of [`MIAForCaptioning`] from the official code's `Decoder`.

    Args:
        state: Its `state_dict()`: `caption_embed`, `LSTM`, `affine_va`, `attention`, `mlp`.
        config ([`MIAConfig`]): Says which of the four captioners it is; what that one does not have is left out.

    Raises:
        ValueError: If a name is missing or unknown.
    """
    names = {
        "decoder.embed_words.weight": "caption_embed.weight",
        "decoder.lstm_words.weight": "LSTM.weight_ih_l0",
        "decoder.lstm_states.weight": "LSTM.weight_hh_l0",
        **{f"decoder.project_visual.{name}": f"affine_va.{name}" for name in ("weight", "bias")},
        "decoder.attention.rows.weight": "attention.affine_x.weight",
        "decoder.attention.state.weight": "attention.affine_h.weight",
        "decoder.attention.score.weight": "attention.affine_alpha.weight",
        **{f"output.{name}": f"mlp.{name}" for name in ("weight", "bias")},
    }
    biases = ["LSTM.bias_ih_l0", "LSTM.bias_hh_l0"]  # of two, one is enough
    check_names(state, [*names.values(), *biases])
    absent = {
        "concept_attention": ("decoder.project_visual",),
        "visual_condition": ("decoder.attention",),
        "concept_condition": ("decoder.attention",),
    }.get(config.decoder_type, ())
    converted = {ours: state[theirs] for ours, theirs in names.items() if not ours.startswith(absent or "-")}
    return converted | {"decoder.lstm_words.bias": state[biases[0]] + state[biases[1]]}


def up_down_state_dict(state: State) -> dict[str, torch.Tensor]:
    r"""`decoder.*` and `output.*` of [`MIAForCaptioning`] from the public Up-Down code (`UpDownModel`).

    Its LSTMs have one matrix for all inputs; ours are cut where the loop over time needs them. Two biases become one.

    Raises:
        ValueError: If a name is missing or unknown.
    """
    linear = {
        "decoder.embed_regions": "att_embed.0",
        "decoder.embed_global": "fc_embed.0",
        "decoder.attention.rows": "ctx2att",
        "decoder.attention.state": "core.attention.h2att",
        "decoder.attention.score": "core.attention.alpha_net",
        "output": "logit",
    }
    names = {f"{ours}.{kind}": f"{theirs}.{kind}" for ours, theirs in linear.items() for kind in ("weight", "bias")}
    names["decoder.embed_words.weight"] = "embed.0.weight"
    lstms = ("core.att_lstm", "core.lang_lstm")
    parts = [f"{lstm}.{kind}_{side}" for lstm in lstms for kind in ("weight", "bias") for side in ("ih", "hh")]
    check_names(state, [*names.values(), *parts])
    converted = {ours: state[theirs] for ours, theirs in names.items()}
    size = state["core.att_lstm.weight_hh"].shape[1]
    last, image, words = state["core.att_lstm.weight_ih"].tensor_split([size, 2 * size], dim=1)  # of [h2; vbar; x]
    converted["decoder.attention_words.weight"] = words
    converted["decoder.attention_image.weight"] = image
    converted["decoder.attention_states.weight"] = torch.cat([last, state["core.att_lstm.weight_hh"]], dim=1)
    converted["decoder.attention_words.bias"] = state["core.att_lstm.bias_ih"] + state["core.att_lstm.bias_hh"]
    language = [state["core.lang_lstm.weight_ih"], state["core.lang_lstm.weight_hh"]]  # of [vhat; h1] and of h2
    converted["decoder.language_states.weight"] = torch.cat(language, dim=1)
    converted["decoder.language_states.bias"] = state["core.lang_lstm.bias_ih"] + state["core.lang_lstm.bias_hh"]
    return converted


def check_names(state: State, expected: Iterable[str]) -> None:
    wanted = set(expected)
    missing, unknown = sorted(wanted - state.keys()), sorted(state.keys() - wanted)
    if missing or unknown:
        raise ValueError(
            f"This is no such checkpoint: it lacks {missing or 'nothing'} and also has {unknown or 'nothing'}."
        )


__all__ = ["official_captioner_state_dict", "up_down_state_dict"]
