"""Training of the question answerers Up-Down and BAN, against a literal implementation of the public codes' equations.

    python benchmarks/vqa.py                       # batch 512: about 15 minutes on an idle machine of two cores
    python benchmarks/vqa.py --batch_size 64       # less memory
    python benchmarks/vqa.py --smoke               # small sizes, to see that it runs

Sizes are those of the public codes: 36 regions x 2048 numbers, 14 words, hidden 1024 (Up-Down) and 1280 with eight
glimpses and the counter (BAN), 3,129 answers; with the module, regions and concepts of width 512. A step is forward,
backward, clipping by norm and Adamax, with dropout; losses are compared without it. The literal step has the same
weights and writes the equations as the public codes do: the question repeated over regions, the bilinear map as one
product of three tensors, the counter once for each glimpse, weight normalisation in every layer.

Every measurement is a process of its own (peak memory is a process's); variants take turns and the best of the rounds
counts. The share is of the rate of large matrix products in the same precision, by the products of a variant as torch
counts them. `keep_freed_memory` (training/common.py) is on for all.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import torch
import torch.nn.functional as F
from machine import product_rate
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hf_grounding.modeling.configuration_mia_vqa import MIAVQAConfig
from hf_grounding.modeling.convert_mia_vqa import public_vqa_state_dict
from hf_grounding.modeling.modeling_mia_vqa import MIAForVQA
from hf_grounding.training.common import keep_freed_memory

PAPER = {"regions": 36, "feature": 2048, "words": 14, "vocab": 20000, "answers": 3129, "concepts": 1000, "module": 512}
SMOKE = {"regions": 12, "feature": 16, "words": 5, "vocab": 50, "answers": 20, "concepts": 10, "module": 16}
PAPER |= {"up_down": 1024, "ban": 1280}  # hidden
SMOKE |= {"up_down": 24, "ban": 24}
HEADS, GLIMPSES, OBJECTS = ("up_down", "ban"), 8, 10


class NormalizedLinear(nn.Module):
    """`x (g V / ||V||)^T + b`."""

    def __init__(self, width: int, size: int):
        super().__init__()
        start = nn.Linear(width, size)
        self.weight_v, self.bias = nn.Parameter(start.weight.detach()), nn.Parameter(start.bias.detach())
        self.weight_g = nn.Parameter(self.weight_v.detach().norm())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight_v * (self.weight_g / self.weight_v.norm()), self.bias)


class Layers(nn.Module):
    """A normalised layer, in `main`, with ReLU behind it and dropout in front or not."""

    def __init__(self, width: int, size: int, dropout: float | None = None, relu: bool = True):
        super().__init__()
        layers = [] if dropout is None else [nn.Dropout(dropout)]
        self.main = nn.Sequential(*layers, NormalizedLinear(width, size), *([nn.ReLU()] if relu else []))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.main(x)


class Classifier(nn.Module):
    def __init__(self, size: int, answers: int, dropout: float):
        super().__init__()
        layers = [NormalizedLinear(size, 2 * size), nn.ReLU(), nn.Dropout(dropout), NormalizedLinear(2 * size, answers)]
        self.main = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.main(x)


class Words(nn.Module):
    def __init__(self, vocab: int, tables: int):
        super().__init__()
        self.emb = nn.Embedding(vocab, 300, padding_idx=vocab - 1)
        if tables > 1:
            self.emb_ = nn.Embedding(vocab, 300, padding_idx=vocab - 1)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.cat([table(ids) for table in self.children()], dim=2)


class Recurrent(nn.Module):
    def __init__(self, width: int, size: int):
        super().__init__()
        self.rnn = nn.GRU(width, size, batch_first=True)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return self.rnn(words)[0]


class LiteralAttention(nn.Module):
    def __init__(self, feature: int, size: int, dropout: float):
        super().__init__()
        self.v_proj, self.q_proj = Layers(feature, size), Layers(size, size)
        self.dropout = nn.Dropout(dropout)
        self.linear = NormalizedLinear(size, 1)

    def forward(self, v: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        repeated = self.q_proj(q).unsqueeze(1).repeat(1, v.shape[1], 1)
        return F.softmax(self.linear(self.dropout(self.v_proj(v) * repeated)), dim=1)


class LiteralUpDown(nn.Module):
    def __init__(self, sizes: dict[str, int], size: int, dropout: bool):
        super().__init__()
        self.w_emb, self.q_emb = Words(sizes["vocab"], 1), Recurrent(300, size)
        self.v_att = LiteralAttention(sizes["feature"], size, 0.2 * dropout)
        self.q_net, self.v_net = Layers(size, size), Layers(sizes["feature"], size)
        self.classifier = Classifier(size, sizes["answers"], 0.5 * dropout)

    def forward(self, region_features, boxes, input_ids, labels) -> torch.Tensor:
        q = self.q_emb(self.w_emb(input_ids))[:, -1]
        attended = (self.v_att(region_features, q) * region_features).sum(dim=1)
        logits = self.classifier(self.q_net(q) * self.v_net(attended))
        return F.binary_cross_entropy_with_logits(logits, labels) * labels.shape[1]


class BilinearMap(nn.Module):
    """`h_mat`, normalised, `h_bias`, and the projections of both sides; for a glimpse without the first two."""

    def __init__(self, feature: int, size: int, wide: int, maps: int | None, dropout: bool):
        super().__init__()
        self.v_net, self.q_net = Layers(feature, wide, 0.2 * dropout), Layers(size, wide, 0.2 * dropout)
        self.dropout = nn.Dropout(0.5 * dropout)
        if maps is not None:
            self.h_mat_v = nn.Parameter(torch.randn(1, maps, 1, wide))
            self.h_mat_g = nn.Parameter(self.h_mat_v.detach().norm())
            self.h_bias = nn.Parameter(torch.randn(1, maps, 1, 1))

    def maps(self, v: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        h_mat = self.h_mat_v * (self.h_mat_g / self.h_mat_v.norm())
        return torch.einsum("xhyk,bvk,bqk->bhvq", h_mat, self.dropout(self.v_net(v)), self.q_net(q)) + self.h_bias

    def forward(self, v: torch.Tensor, q: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return torch.einsum("bvk,bvq,bqk->bk", self.v_net(v), weights, self.q_net(q))


class BilinearMaps(nn.Module):
    def __init__(self, feature: int, size: int, dropout: bool):
        super().__init__()
        self.logits = BilinearMap(feature, size, 3 * size, GLIMPSES, dropout)

    def forward(self, v: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        logits = self.logits.maps(v, q)
        empty = (v.abs().sum(dim=2) == 0)[:, None, :, None].expand(logits.shape)
        return logits.masked_fill(empty, -torch.inf)


class Piecewise(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(17))
        self.weight.data[0] = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        w = self.weight.abs() / self.weight.abs().sum()
        w = w.view([17] + [1] * x.ndim).expand(17, *x.shape)
        sums, y = w.cumsum(dim=0), 16 * x.unsqueeze(0)
        left = y.detach().long()
        return (sums.gather(0, left.clamp(max=16)) + y.frac() * w.gather(0, (left + 1).clamp(max=16))).squeeze(0)


class LiteralCounter(nn.Module):
    def __init__(self):
        super().__init__()
        self.f = nn.ModuleList(Piecewise() for _ in range(16))

    def forward(self, boxes: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        logits, best = logits.topk(OBJECTS, dim=1)
        a, b = logits.float().sigmoid(), boxes.gather(1, best[..., None].expand(-1, -1, 4))
        low, high = (
            torch.maximum(b[:, :, None, :2], b[:, None, :, :2]),
            torch.minimum(b[:, :, None, 2:], b[:, None, :, 2:]),
        )
        shared, areas = (high - low).clamp(min=0).prod(dim=-1), (b[..., 2:] - b[..., :2]).prod(dim=-1)
        distance = 1 - shared / (areas[:, :, None] + areas[:, None] - shared + 1e-12)
        edges = a[:, :, None] * a[:, None]
        score = self.f[0](edges) * self.f[1](distance)
        alike = self.f[3](edges) * self.f[4](distance)
        same = self.f[2](1 - (alike[:, :, :, None] - alike[:, :, None]).abs()).prod(dim=1)
        copies = (same * self.f[2](1 - (a[:, :, None] - a[:, None]).abs())).sum(dim=2)
        score = (score / (copies[:, :, None] * copies[:, None])).sum(dim=(1, 2)) + (self.f[0](a * a) / copies).sum(
            dim=1
        )
        count = (score[:, None] + 1e-20).sqrt().clamp(max=OBJECTS)
        whole, rest = count.detach().long(), count.frac()
        one_hot = torch.zeros(len(count), OBJECTS + 1)
        lower = one_hot.scatter(1, whole, 1.0)
        upper = one_hot.scatter(1, (whole + 1).clamp(max=OBJECTS), 1.0)
        sure = (self.f[5](a) - 0.5).abs().mean(dim=1, keepdim=True)
        sure = sure + (self.f[6](distance) - 0.5).abs().mean(dim=(1, 2))[:, None]
        return ((1 - rest) * lower + rest * upper) * self.f[7](sure)


class LiteralBAN(nn.Module):
    def __init__(self, sizes: dict[str, int], size: int, dropout: bool):
        super().__init__()
        feature = sizes["feature"]
        self.w_emb, self.q_emb = Words(sizes["vocab"], 2), Recurrent(600, size)
        self.v_att = BilinearMaps(feature, size, dropout)
        self.b_net = nn.ModuleList(BilinearMap(feature, size, size, None, dropout) for _ in range(GLIMPSES))
        self.q_prj = nn.ModuleList(Layers(size, size, 0.2 * dropout, relu=False) for _ in range(GLIMPSES))
        self.c_prj = nn.ModuleList(Layers(OBJECTS + 1, size) for _ in range(GLIMPSES))
        self.classifier = Classifier(size, sizes["answers"], 0.5 * dropout)
        self.counter = LiteralCounter()

    def forward(self, region_features, boxes, input_ids, labels) -> torch.Tensor:
        q = self.q_emb(self.w_emb(input_ids))
        maps = self.v_att(region_features, q)
        weights = F.softmax(maps.flatten(2), dim=2).view_as(maps)
        for g in range(GLIMPSES):
            joint = self.b_net[g](region_features, q, weights[:, g])
            counts = self.counter(boxes, maps[:, g].amax(dim=2))
            q = self.q_prj[g](joint[:, None]) + q
            q = q + self.c_prj[g](counts)[:, None]
        logits = self.classifier(q.sum(dim=1))
        return F.binary_cross_entropy_with_logits(logits, labels) * labels.shape[1]


def make_model(head: str, what: str, sizes: dict[str, int], dropout: bool) -> nn.Module:
    torch.manual_seed(0)
    size = sizes[head]
    rates = (
        {}
        if dropout
        else dict.fromkeys(
            ["dropout", "mia_dropout", "attention_dropout", "bilinear_dropout", "classifier_dropout"], 0.0
        )
    )
    literal = (LiteralUpDown if head == "up_down" else LiteralBAN)(sizes, size, dropout)
    if what == "literal":
        return literal.train()
    config = MIAVQAConfig(
        answer_head=head,
        mia_iterations=2 if what == "with MIA" else 0,
        feature_dim=sizes["feature"],
        hidden_size=sizes["module"],
        intermediate_size=4 * sizes["module"],
        concept_vocab_size=sizes["concepts"],
        vocab_size=sizes["vocab"],
        question_hidden_size=size,
        num_glimpses=GLIMPSES,
        num_labels=sizes["answers"],
        **rates,
    )
    model = MIAForVQA(config)
    if what == "ours":
        model.load_state_dict(public_vqa_state_dict(literal.state_dict(), config))
    return model.train()


def make_batch(sizes: dict[str, int], count: int, seed: int, what: str) -> dict[str, torch.Tensor]:
    """Features, boxes, questions of 3 to 14 words padded in front, and soft labels of three answers each."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, sizes["words"] + 1, (count, 1), generator=generator)
    ids = torch.randint(0, sizes["vocab"] - 1, (count, sizes["words"]), generator=generator)
    corners = torch.rand(count, sizes["regions"], 2, 2, generator=generator).sort(dim=2).values
    answers = torch.randint(0, sizes["answers"], (count, 3), generator=generator)
    batch = {
        "region_features": torch.rand(count, sizes["regions"], sizes["feature"], generator=generator),
        "boxes": corners.flatten(2),
        "input_ids": ids.masked_fill(torch.arange(sizes["words"]) < sizes["words"] - lengths, sizes["vocab"] - 1),
        "labels": torch.zeros(count, sizes["answers"]).scatter(1, answers, 0.6),
    }
    if what == "with MIA":
        concepts = torch.randint(0, sizes["concepts"], (count, sizes["regions"]), generator=generator)
        batch["concept_ids"] = concepts
    return batch


def run_worker(
    head: str, what: str, sizes: dict[str, int], batch_size: int, bf16: bool, repeats: int
) -> dict[str, float]:
    keep_freed_memory()
    model = make_model(head, what, sizes, dropout=True)
    optimizer = torch.optim.Adamax(model.parameters(), lr=1e-3)
    batches = [make_batch(sizes, batch_size, seed, what) for seed in range(2)]

    def loss_of(answerer: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            outputs = answerer(**batch)
        return outputs if what == "literal" else outputs.loss

    def step() -> None:
        batches.append(batches.pop(0))
        loss_of(model, batches[-1]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.25)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = []
    for _ in range(1 + repeats):  # the first one warms up
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    with FlopCounterMode(display=False) as counter:
        step()
    with torch.no_grad():
        loss = loss_of(make_model(head, what, sizes, dropout=False), batches[0]).item()
    return {
        "seconds": min(times[1:]),
        "peak_gib": peak / 2**20,
        "gflop": counter.get_total_flops() / 1e9,
        "loss": loss,
    }


def measure_in_turns(variants: dict[str, dict], common: dict, rounds: int) -> dict[str, dict[str, float]]:
    """Every variant in a process of its own in each round: the best of its times, and the rest of its last round."""
    results: dict[str, dict[str, float]] = {}
    for _ in range(rounds):
        for name, settings in variants.items():
            command = [sys.executable, __file__, "--worker", json.dumps(common | settings)]
            result = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])
            best = min(result["seconds"], results.get(name, result)["seconds"])
            results[name] = result | {"seconds": best}
    return results


def compare(head: str, common: dict, rates: dict[bool, float], rounds: int) -> None:
    variants = {
        what + (", bf16 autocast" if bf16 else ""): {"head": head, "what": what, "bf16": bf16}
        for bf16 in (False, True)
        for what in ("literal", "ours", "with MIA")
    }
    results = measure_in_turns(variants, common, rounds)
    first = results["literal"]
    print(
        f"| {head}, batch {common['batch_size']} | questions/s | times faster | peak, GiB | GFLOP "
        "| share of the rate | loss |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, row in results.items():
        share = row["gflop"] / row["seconds"] / rates[variants[name]["bf16"]]
        print(
            f"| {name} | {common['batch_size'] / row['seconds']:.1f} | {first['seconds'] / row['seconds']:.2f} "
            f"| {row['peak_gib']:.2f} | {row['gflop']:.0f} | {share:.2f} | {row['loss']:.5f} |",
            flush=True,
        )
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="small sizes")
    parser.add_argument("--batch_size", type=int, default=512, help="questions of a step")
    parser.add_argument("--rounds", type=int, default=2, help="processes of each variant")
    parser.add_argument("--repeats", type=int, default=2, help="measured steps of each process")
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=HEADS, help="which answerers")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(run_worker(**json.loads(args.worker))))
        return
    batch_size = min(args.batch_size, 8) if args.smoke else args.batch_size
    common = {"sizes": SMOKE if args.smoke else PAPER, "batch_size": batch_size, "repeats": args.repeats}
    rates = {bf16: product_rate(torch.bfloat16 if bf16 else torch.float32) for bf16 in (False, True)}
    print(f"matrix products: {rates[False]:.0f} GFLOP/s fp32, {rates[True]:.0f} GFLOP/s bf16\n")
    for head in args.heads:
        compare(head, common, rates, args.rounds)


if __name__ == "__main__":
    main()
