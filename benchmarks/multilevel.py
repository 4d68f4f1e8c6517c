"""Training step of the multi-level common space against a literal transcription of its equations; one photo end to end.

    python benchmarks/multilevel.py            # the tables of benchmarks/README.md: about 15 minutes on an idle machine
    python benchmarks/multilevel.py --smoke    # small sizes, to see that it runs

A step is forward, backward and Adam from the feature maps of a frozen VGG16 (512 channels, 37 x 37 twice and 18 x 18
twice) and word ids; captions have 6 to T words. The literal step forms every H[b, c, t, n, l] and every attended vector
a[b, c, t, l]. Every measurement is a process of its own (peak memory is a process's); variants take turns, A B C A B C.
`keep_freed_memory` (training/common.py), which our training switches on, is on for both sides unless said otherwise.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import torch
import torch.nn.functional as F
from machine import product_rate

from hf_grounding import MultiLevelGroundingConfig, MultiLevelGroundingModel
from hf_grounding.modeling.modeling_multilevel import normalize
from hf_grounding.training.common import keep_freed_memory

PAPER = {"B": 32, "T": 20, "M": 18, "L": 4, "D": 1024}


def make_model(sizes: dict[str, int], chunk: int | None) -> MultiLevelGroundingModel:
    torch.manual_seed(0)
    config = MultiLevelGroundingConfig(
        level_channels=[512] * sizes["L"],
        grid_size=sizes["M"],
        hidden_size=sizes["D"],
        attention_chunk_size=chunk,
        word_embedding_size=64,  # the same text encoder on both sides, kept small
        vocab_size=1000,
    )
    return MultiLevelGroundingModel(config).train()


def make_batch(sizes: dict[str, int]) -> dict:
    generator = torch.Generator().manual_seed(0)
    batch, words = sizes["B"], sizes["T"]
    grids = [37 if level < sizes["L"] // 2 else 18 for level in range(sizes["L"])]
    maps = tuple(torch.rand(batch, grid, grid, 512, generator=generator).movedim(-1, 1) for grid in grids)
    lengths = torch.randint(min(6, words), words + 1, (batch,), generator=generator)
    lengths[0] = words
    mask = (torch.arange(words)[None] < lengths[:, None]).long()
    return {
        "feature_maps": maps,
        "input_ids": torch.randint(1, 1000, (batch, words), generator=generator) * mask,
        "attention_mask": mask,
    }


def literal_loss(model: MultiLevelGroundingModel, batch: dict) -> torch.Tensor:
    """Sections 1-4 of the paper as printed, with our defaults for what it leaves open; parameters are the model's."""
    config, levels = model.config, []
    for feature_map, mapping in zip(batch["feature_maps"], model.visual_mappings, strict=True):
        x = F.interpolate(feature_map, size=(config.grid_size,) * 2, mode="bilinear", align_corners=False)
        for layer in mapping.layers:
            x = F.leaky_relu(F.conv2d(x, layer.weight[:, :, None, None], layer.bias), config.negative_slope)
        levels.append(normalize(x.flatten(2).transpose(1, 2)))
    v = torch.stack(levels, dim=2)  # (B, N, L, D)
    mask = batch["attention_mask"]
    s, sbar = model.embed_text(batch["input_ids"], mask, mask)  # (B, T, D), (B, D)
    h = torch.einsum("btd,cnld->bctnl", s, v).clamp(min=0)
    a = normalize(torch.einsum("bctnl,cnld->bctld", h, v))
    scores = torch.einsum("bctld,btd->bctl", a, s).amax(dim=-1)
    words = (torch.exp(config.gamma_1 * scores) * mask[:, None]).sum(dim=-1).log() / config.gamma_1  # (B, B)
    h = torch.einsum("bd,cnld->bcnl", sbar, v).clamp(min=0)
    a = normalize(torch.einsum("bcnl,cnld->bcld", h, v))
    sentences = torch.einsum("bcld,bd->bcl", a, sbar).amax(dim=-1)
    loss = model.regulariser()
    for logits in (config.gamma_2 * words, config.gamma_2 * sentences):
        loss = loss - (logits.log_softmax(dim=0).diagonal() + logits.log_softmax(dim=1).diagonal()).mean()
    return loss


def run_worker(variant: str, sizes: dict[str, int], steps: int, chunk: int | None, keep: bool, bf16: bool) -> dict:
    if keep:
        keep_freed_memory()
    model, batch = make_model(sizes, chunk), make_batch(sizes)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    losses, seconds = [], []
    for _ in range(steps + 1):  # the first one warms up
        started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = literal_loss(model, batch) if variant == "literal" else model(**batch, return_loss=True).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - started)
        losses.append(loss.item())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"seconds": min(seconds[1:]), "peak_gib": peak / 2**20, "loss": losses[0]}


def measure(
    variant: str, sizes: dict[str, int], chunk: int | None = None, keep: bool = True, bf16: bool = False
) -> dict:
    call = {"variant": variant, "sizes": sizes, "steps": 3, "chunk": chunk, "keep": keep, "bf16": bf16}
    command = [sys.executable, __file__, "--worker", json.dumps(call)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def compare_variants(sizes: dict[str, int], rounds: int) -> None:
    """Every variant beside the literal step, medians of the rounds."""
    variants: dict[str, dict] = {
        "literal": {"variant": "literal"},
        "ours": {"variant": "ours"},
        f"ours, {max(1, sizes['B'] // 4)} images at a time": {"variant": "ours", "chunk": max(1, sizes["B"] // 4)},
        "literal, without keep_freed_memory": {"variant": "literal", "keep": False},
        "ours, without keep_freed_memory": {"variant": "ours", "keep": False},
        "literal, bf16 autocast": {"variant": "literal", "bf16": True},
        "ours, bf16 autocast (as the recipes train)": {"variant": "ours", "bf16": True},
    }
    results: dict[str, list[dict]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, settings in variants.items():
            results[name].append(measure(sizes=sizes, **settings))
    median = {name: {key: statistics.median(r[key] for r in rows) for key in rows[0]} for name, rows in results.items()}
    first = median["literal"]
    print("| step | seconds | times faster | peak, GiB | share of the peak | loss | loss - literal |")
    print("|---|---|---|---|---|---|---|")
    for name, row in median.items():
        faster, share = first["seconds"] / row["seconds"], row["peak_gib"] / max(first["peak_gib"], 1e-9)
        print(
            f"| {name} | {row['seconds']:.2f} | {faster:.2f} | {row['peak_gib']:.2f} | {share:.2f} "
            f"| {row['loss']:.6f} | {row['loss'] - first['loss']:+.1e} |",
            flush=True,
        )


def compare_sizes(paper: dict[str, int], rounds: int) -> None:
    """How the cost grows: half of each of B, M (a quarter of N) and D, and all of them."""
    print("\n| B | N | D | ours, s | literal, s | times faster | ours, GiB | literal, GiB |")
    print("|---|---|---|---|---|---|---|---|")
    for change in ({"B": paper["B"] // 2}, {"M": paper["M"] // 2}, {"D": paper["D"] // 2}, {}):
        sizes, rows = paper | change, {"ours": [], "literal": []}
        for _ in range(rounds):
            for variant, measured in rows.items():
                measured.append(measure(variant, sizes))
        (a, b) = ({key: statistics.median(r[key] for r in part) for key in part[0]} for part in rows.values())
        print(
            f"| {sizes['B']} | {sizes['M'] ** 2} | {sizes['D']} | {a['seconds']:.2f} | {b['seconds']:.2f} "
            f"| {b['seconds'] / a['seconds']:.2f} | {a['peak_gib']:.2f} | {b['peak_gib']:.2f} |",
            flush=True,
        )


def ground_one_photo(rounds: int) -> None:
    """Milliseconds from a photo to its groundings; MobileNetV2 with four levels, random weights."""
    from PIL import Image
    from transformers import MobileNetV2Config, pipeline

    from hf_grounding import MultiLevelGroundingProcessor
    from hf_grounding.processing.image_processing_multilevel import MultiLevelGroundingImageProcessorPil
    from hf_grounding.processing.words import train_word_tokenizer

    sentence = "[a man] in [a red shirt] rides [a brown horse]"
    tokenizer = train_word_tokenizer([sentence.replace("[", "").replace("]", "")])
    config = MultiLevelGroundingConfig(
        backbone_config=MobileNetV2Config(),
        backbone_levels=[11, 14, 15, 16],
        level_channels=[96, 160, 320, 1280],
        grid_size=14,
        hidden_size=384,
        visual_hidden_sizes=[384, 384],
        word_embedding_size=100,
        vocab_size=len(tokenizer),
    )
    image_processor = MultiLevelGroundingImageProcessorPil(size={"height": 448, "width": 448})
    processor = MultiLevelGroundingProcessor(image_processor, tokenizer, grid_size=14)
    ground = pipeline("phrase-grounding", model=MultiLevelGroundingModel(config), processor=processor)
    photo = Image.effect_noise((500, 375), 80).convert("RGB")
    times = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        ground(photo, sentence)
        times.append(1000 * (time.perf_counter() - started))
    median = statistics.median(times[1:])
    print(f"one photo of 500 x 375, three phrases, end to end: median {median:.0f} ms of {rounds}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="small sizes")
    parser.add_argument("--rounds", type=int, default=2, help="processes of each variant")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(run_worker(**json.loads(args.worker))))
        return
    paper = {"B": 4, "T": 6, "M": 6, "L": 4, "D": 64} if args.smoke else PAPER
    print(
        f"matrix products: {product_rate(torch.float32):.0f} GFLOP/s fp32, "
        f"{product_rate(torch.bfloat16):.0f} GFLOP/s bf16\n"
    )
    compare_variants(paper, args.rounds)
    compare_sizes(paper, rounds=1)
    print()
    ground_one_photo(rounds=3 if args.smoke else 20)


if __name__ == "__main__":
    main()
