"""Weights of the public Up-Down and BAN question answerers under our names."""

from collections.abc import Mapping

import torch

from .configuration_mia_vqa import MIAVQAConfig
from .convert_mia import check_names

_PARTS = {"weight": "weight_v", "scale": "weight_g", "bias": "bias"}  # of a normalised layer: ours -> theirs
_QUESTION = {
    f"question.gru.{kind}_{side}_l0": f"q_emb.rnn.{kind}_{side}_l0"
    for kind in ("weight", "bias")
    for side in ("ih", "hh")
}
_CLASSIFIER = {"head.classifier.hidden": "classifier.main.0", "head.classifier.output": "classifier.main.3"}


def public_vqa_state_dict(state: Mapping[str, torch.Tensor], config: MIAVQAConfig) -> dict[str, torch.Tensor]:
    r"""State of [`MIAForVQA`] without the module from that of the public Up-Down code, or of BAN's.

    Those codes read padding: to get their numbers, pad questions in front to 14 words with the last id and give no
    `attention_mask`; and mask BAN's regions that are all zero by `region_mask`.

    Args:
        state: Their `state_dict()`.
        config ([`MIAVQAConfig`]): With `mia_iterations` 0; says which of the models it is.

    Raises:
        ValueError: If a name is missing or unknown, or the configuration has the module.
    """
    if config.mia_iterations > 0:
        raise ValueError(
            f"The public codes have no mutual iterative attention, got `mia_iterations` {config.mia_iterations}; "
            "convert with 0."
        )
    layers = _up_down_layers(config) if config.answer_head == "up_down" else _ban_layers(config)
    names = {f"{ours}.{own}": f"{theirs}.{other}" for ours, theirs in layers.items() for own, other in _PARTS.items()}
    names |= _QUESTION
    tables = ["w_emb.emb.weight", "w_emb.emb_.weight"][: 2 if config.tfidf_word_embeddings else 1]
    attention, functions = {}, []
    if config.answer_head == "ban":
        attention = {
            f"head.attention.glimpses.{ours}": f"v_att.logits.h_{theirs}"
            for ours, theirs in {"weight": "mat_v", "scale": "mat_g", "bias": "bias"}.items()
        }
        functions = [f"counter.f.{number}.weight" for number in range(16 if config.counts else 0)]
    check_names(state, [*names.values(), *tables, *attention.values(), *functions])
    converted = {ours: state[theirs] for ours, theirs in names.items()}
    converted["question.embed_words.weight"] = torch.cat([state[table] for table in tables], dim=1)
    for ours, theirs in attention.items():  # of shapes (1, G, 1, 3 H), () and (1, G, 1, 1)
        matrix = (config.num_glimpses, -1) if ours.endswith("weight") else (-1,)
        converted[ours] = state[theirs].reshape(matrix)
    # Of sixteen functions eight are used; the first number of each, the value at 0, is always 0.
    converted |= {f"head.counter.f.{number}.weight": state[name][1:] for number, name in enumerate(functions[:8])}
    return {name: x.reshape(1) if name.endswith(".scale") else x for name, x in converted.items()}


def _up_down_layers(config: MIAVQAConfig) -> dict[str, str]:
    attention = {"rows": "v_proj.main.0", "question": "q_proj.main.0"}
    if config.attention_type == "concat":
        attention = {"joint": "nonlinear.main.0"}
    return {
        **{f"head.attention.{ours}": f"v_att.{theirs}" for ours, theirs in attention.items()},
        "head.attention.score": "v_att.linear",
        "head.project_question": "q_net.main.0",
        "head.project_rows": "v_net.main.0",
        **_CLASSIFIER,
    }


def _ban_layers(config: MIAVQAConfig) -> dict[str, str]:
    layers = {"head.attention.rows": "v_att.logits.v_net.main.1", "head.attention.words": "v_att.logits.q_net.main.1"}
    for number in range(config.num_glimpses):
        layers |= {
            f"head.glimpses.{number}.rows": f"b_net.{number}.v_net.main.1",
            f"head.glimpses.{number}.words": f"b_net.{number}.q_net.main.1",
            f"head.glimpses.{number}.joint": f"q_prj.{number}.main.1",
        }
        if config.counts:
            layers[f"head.glimpses.{number}.count"] = f"c_prj.{number}.main.0"
    return layers | _CLASSIFIER


__all__ = ["public_vqa_state_dict"]
