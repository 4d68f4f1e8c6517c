"""Up-Down captioner, training and writing, against a step-by-step literal implementation.

    python benchmarks/captioning.py            # the paper's sizes: about 10 minutes on an idle machine of two cores
    python benchmarks/captioning.py --smoke    # small sizes, to see that it runs
    python benchmarks/captioning.py --device cuda --compile

Sizes are those of the usual public set-up: 10 images x 36 regions x 2048 numbers, five captions each of 5 to 16 words
(10.5 in the mean) and the end token, two LSTMs of 1000, 9,488 words. A training step is forward, backward, clipping by
value and Adam, with dropout; the losses are compared without it. The literal step has the same weights and writes the
equations step by step as public codes do: all captions of a batch at every step until the longest ends, one word
embedded at a time, LSTM cells on concatenated inputs, and the log-probabilities of every word, padding included.
Captions are written by `generate` from weights that never choose the end token, so each has all 17 words.

Every measurement is a process of its own (peak memory is a process's; on a GPU, its tensors'); variants take turns,
A B C A B C, and the best of the rounds counts. The share is of the rate of large matrix products in the same precision,
by the products of a variant as torch counts them. `keep_freed_memory` (training/common.py) is on for all.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from machine import product_rate, wait_for
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers.utils import logging

from hf_grounding.modeling.configuration_mia import MIAConfig
from hf_grounding.modeling.convert_mia import up_down_state_dict
from hf_grounding.modeling.modeling_mia import MIAForCaptioning
from hf_grounding.training.common import keep_freed_memory

PAPER = {"images": 10, "captions": 5, "regions": 36, "feature": 2048, "size": 1000, "attention": 512, "vocab": 9488}
SMOKE = {"images": 2, "captions": 5, "regions": 4, "feature": 16, "size": 24, "attention": 16, "vocab": 50}
WORDS = 16  # of the longest caption; one more step for the end token


class LiteralAttention(nn.Module):
    """`alpha = softmax(w_a . tanh(W_v v_i + W_h h1))`, `sum_i alpha_i v_i`."""

    def __init__(self, sizes: dict[str, int]):
        super().__init__()
        self.h2att = nn.Linear(sizes["size"], sizes["attention"])
        self.alpha_net = nn.Linear(sizes["attention"], 1)

    def forward(self, h: torch.Tensor, rows: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        scores = self.alpha_net(torch.tanh(keys + self.h2att(h)[:, None])).squeeze(-1)
        return torch.bmm(F.softmax(scores, dim=1)[:, None], rows).squeeze(1)


class LiteralCore(nn.Module):
    """One step: `h1 = LSTM([h2; vbar; x])`, attention, `h2 = LSTM([vhat; h1])`."""

    def __init__(self, sizes: dict[str, int]):
        super().__init__()
        size = sizes["size"]
        self.att_lstm = nn.LSTMCell(3 * size, size)
        self.lang_lstm = nn.LSTMCell(2 * size, size)
        self.attention = LiteralAttention(sizes)

    def forward(self, x, mean, rows, keys, state):
        (h1, c1), (h2, c2) = state
        h1, c1 = self.att_lstm(torch.cat([h2, mean, x], dim=1), (h1, c1))
        attended = self.attention(h1, rows, keys)
        h2, c2 = self.lang_lstm(torch.cat([attended, h1], dim=1), (h2, c2))
        return h2, ((h1, c1), (h2, c2))


class LiteralUpDown(nn.Module):
    """The equations one after another; parameters have the names that `up_down_state_dict` reads."""

    def __init__(self, sizes: dict[str, int], dropout: float):
        super().__init__()
        size, feature = sizes["size"], sizes["feature"]
        self.embed = nn.Sequential(nn.Embedding(sizes["vocab"], size), nn.ReLU(), nn.Dropout(dropout))
        self.fc_embed = nn.Sequential(nn.Linear(feature, size), nn.ReLU(), nn.Dropout(dropout))
        self.att_embed = nn.Sequential(nn.Linear(feature, size), nn.ReLU(), nn.Dropout(dropout))
        self.ctx2att = nn.Linear(size, sizes["attention"])
        self.core = LiteralCore(sizes)
        self.dropout = nn.Dropout(dropout)
        self.logit = nn.Linear(size, sizes["vocab"])

    def forward(self, region_features: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Loss of `tokens` (N, 1 + T + 1): the start, the words, ends."""
        mean, rows = self.fc_embed(region_features.mean(dim=1)), self.att_embed(region_features)
        repeats = len(tokens) // len(rows)
        mean, rows, keys = (x.repeat_interleave(repeats, dim=0) for x in (mean, rows, self.ctx2att(rows)))
        zeros = mean.new_zeros(len(tokens), mean.shape[1])
        state = ((zeros, zeros), (zeros, zeros))
        log_probs = region_features.new_zeros(len(tokens), tokens.shape[1] - 1, self.logit.out_features)
        for step in range(tokens.shape[1] - 1):
            if step > 0 and tokens[:, step].sum() == 0:
                break
            hidden, state = self.core(self.embed(tokens[:, step]), mean, rows, keys, state)
            log_probs[:, step] = F.log_softmax(self.logit(self.dropout(hidden)), dim=1)
        targets = tokens[:, 1:]
        scored = F.pad(targets[:, :-1] > 0, (1, 0), value=True).to(log_probs)  # words, and the first end
        return -(log_probs.gather(2, targets[..., None]).squeeze(2) * scored).sum() / scored.sum()


def make_model(sizes: dict[str, int], dropout: float, literal: bool) -> nn.Module:
    torch.manual_seed(0)
    stepwise = LiteralUpDown(sizes, dropout)
    if literal:
        return stepwise.train()
    config = MIAConfig(
        decoder_type="up_down",
        mia_iterations=0,
        vocab_size=sizes["vocab"],
        feature_dim=sizes["feature"],
        embedding_size=sizes["size"],
        decoder_hidden_size=sizes["size"],
        attention_hidden_size=sizes["attention"],
        dropout=dropout,
        **dict.fromkeys(["pad_token_id", "bos_token_id", "eos_token_id"], 0),
    )
    model = MIAForCaptioning(config)
    model.load_state_dict(up_down_state_dict(stepwise.state_dict()))
    return model.train()


def make_batch(sizes: dict[str, int], seed: int, literal: bool, device: str) -> dict[str, torch.Tensor]:
    """Features and captions, as the literal step or our model takes them."""
    batch = draw_batch(sizes, seed, literal)
    return {name: values.to(device) for name, values in batch.items()}


def draw_batch(sizes: dict[str, int], seed: int, literal: bool) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.rand(sizes["images"], sizes["regions"], sizes["feature"], generator=generator)
    count = sizes["images"] * sizes["captions"]
    lengths = torch.normal(10.5, 2.0, (count, 1), generator=generator).round().long().clamp(5, WORDS)
    lengths[0] = WORDS
    places = torch.arange(WORDS + 1)
    words = torch.randint(1, sizes["vocab"], (count, WORDS + 1), generator=generator) * (places < lengths)
    if literal:
        return {"region_features": features, "tokens": F.pad(words, (1, 0))}
    images = torch.arange(sizes["images"]).repeat_interleave(sizes["captions"])
    return {"region_features": features, "labels": words.masked_fill(places > lengths, -100), "image_index": images}


def autocast(bf16: bool, device: str) -> torch.autocast:
    return torch.autocast(device, torch.bfloat16, enabled=bf16)


def training(sizes: dict[str, int], literal: bool, bf16: bool, compiled: bool, device: str) -> Callable[[], None]:
    """A function that takes one step, with another batch each time."""
    model = make_model(sizes, dropout=0.5, literal=literal).to(device)
    forward = torch.compile(model) if compiled else model
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-4, fused=True)
    batches = [make_batch(sizes, seed, literal, device) for seed in range(4)]

    def step() -> None:
        batches.append(batches.pop(0))
        with autocast(bf16, device):
            outputs = forward(**batches[-1])
        (outputs if literal else outputs.loss).backward()
        nn.utils.clip_grad_value_(model.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def writing(sizes: dict[str, int], how: str, bf16: bool, device: str) -> Callable[[], None]:
    """A function that writes captions of all 17 words for one batch of images."""
    model = make_model(sizes, dropout=0.5, literal=False).eval().to(device)
    features = make_batch(sizes, 0, False, device)["region_features"]
    nn.init.constant_(model.output.bias[:1], -1e4)  # the end token is never chosen

    def loop() -> None:
        memory, cache = model.get_encoder()(region_features=features), model.decoder.new_cache()
        words = [torch.zeros(len(features), 1, dtype=torch.long, device=device)]
        for _ in range(WORDS + 1):
            hidden = model.decoder(words[-1], memory, cache).hidden
            words.append(model.output(hidden[:, -1]).argmax(dim=-1, keepdim=True))

    options = {
        "greedy": {"num_beams": 1, "do_sample": False},
        "beam 5": {"num_beams": 5, "do_sample": False, "length_penalty": 0.0},
        "five samples": {"do_sample": True, "num_return_sequences": 5, "top_k": 0},
    }

    @torch.no_grad()
    def write() -> None:
        with autocast(bf16, device):
            if how in options:
                model.generate(region_features=features, max_new_tokens=WORDS + 1, **options[how])
            else:
                loop()

    return write


def run_worker(
    what: str, sizes: dict[str, int], bf16: bool, compiled: bool, repeats: int, device: str
) -> dict[str, float]:
    keep_freed_memory()
    logging.set_verbosity_error()  # that pad and end are one token is meant
    literal = what == "literal"
    trains = what in ("literal", "ours")
    call = training(sizes, literal, bf16, compiled, device) if trains else writing(sizes, what, bf16, device)
    before = peak_memory(device)
    seconds = []
    for _ in range(repeats + (6 if compiled else 1)):  # the first ones warm up, or compile
        started = time.perf_counter()
        call()
        wait_for(device)
        seconds.append(time.perf_counter() - started)
    result = {"seconds": min(seconds[-repeats:]), "peak_gib": (peak_memory(device) - before) / 2**30}
    if not compiled:
        with FlopCounterMode(display=False) as counter:
            call()
        result["gflop"] = counter.get_total_flops() / 1e9
    if trains:
        with autocast(bf16, device):
            outputs = make_model(sizes, dropout=0.0, literal=literal).to(device)(
                **make_batch(sizes, 0, literal, device)
            )
        result["loss"] = (outputs if literal else outputs.loss).item()
    return result


def peak_memory(device: str) -> int:
    """Bytes: of the process, or of its tensors on a GPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 2**10


def measure_in_turns(
    variants: dict[str, dict], sizes: dict[str, int], rounds: int, device: str
) -> dict[str, dict[str, float]]:
    """Every variant in a process of its own in each round: the best of its times, and the rest of its last round."""
    results: dict[str, dict[str, float]] = {}
    for _ in range(rounds):
        for name, settings in variants.items():
            call = {"sizes": sizes, "bf16": False, "compiled": False, "repeats": 4, "device": device} | settings
            command = [sys.executable, __file__, "--worker", json.dumps(call)]
            result = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])
            best = min(result["seconds"], results.get(name, result)["seconds"])
            results[name] = result | {"seconds": best}
    return results


def compare_training(sizes: dict[str, int], rates: dict[bool, float], rounds: int, compiled: bool, device: str) -> None:
    variants: dict[str, dict] = {}
    for bf16 in (False, True):
        suffix = ", bf16 autocast" if bf16 else ""
        variants[f"literal{suffix}"] = {"what": "literal", "bf16": bf16}
        variants[f"ours{suffix}"] = {"what": "ours", "bf16": bf16}
        if compiled:
            variants[f"ours{suffix}, compiled"] = {"what": "ours", "bf16": bf16, "compiled": True}
    results = measure_in_turns(variants, sizes, rounds, device)
    first, captions = results["literal"], sizes["images"] * sizes["captions"]
    print("| training step | captions/s | times faster | peak, GiB | GFLOP | share of the rate | loss | - literal |")
    print("|---|---|---|---|---|---|---|---|")
    for name, row in results.items():
        eager = results[name.removesuffix(", compiled")]
        share = eager["gflop"] / row["seconds"] / rates[variants[name]["bf16"]]
        print(
            f"| {name} | {captions / row['seconds']:.1f} | {first['seconds'] / row['seconds']:.2f} "
            f"| {row['peak_gib']:.2f} | {eager['gflop']:.0f} | {share:.2f} | {row['loss']:.6f} "
            f"| {row['loss'] - first['loss']:+.1e} |",
            flush=True,
        )


def compare_writing(sizes: dict[str, int], rates: dict[bool, float], rounds: int, device: str) -> None:
    names = ("greedy, loop by hand", "greedy", "beam 5", "five samples")
    variants = {
        name + (", bf16 autocast" if bf16 else ""): {"what": name, "bf16": bf16}
        for bf16 in (False, True)
        for name in names
    }
    results = measure_in_turns(variants, sizes, rounds, device)
    print("\n| writing | images/s | captions/s | peak, GiB | GFLOP | share of the rate |")
    print("|---|---|---|---|---|---|")
    for name, row in results.items():
        images = sizes["images"] / row["seconds"]
        captions = images * (5 if name.startswith("five") else 1)
        share = row["gflop"] / row["seconds"] / rates[variants[name]["bf16"]]
        print(
            f"| {name} | {images:.1f} | {captions:.1f} | {row['peak_gib']:.2f} | {row['gflop']:.0f} | {share:.2f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="small sizes")
    parser.add_argument("--rounds", type=int, default=2, help="processes of each variant")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--compile", action="store_true", help="also torch.compile our step; compiling takes minutes")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(run_worker(**json.loads(args.worker))))
        return
    sizes = SMOKE if args.smoke else PAPER
    rates = {bf16: product_rate(torch.bfloat16 if bf16 else torch.float32, args.device) for bf16 in (False, True)}
    print(f"matrix products: {rates[False]:.0f} GFLOP/s fp32, {rates[True]:.0f} GFLOP/s bf16\n")
    compare_training(sizes, rates, args.rounds, args.compile, args.device)
    compare_writing(sizes, rates, args.rounds, args.device)


if __name__ == "__main__":
    main()
