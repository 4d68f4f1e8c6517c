"""What this machine can do at most, for the benchmarks to say their share of it."""

import time

import torch


def product_rate(dtype: torch.dtype, device: str = "cpu") -> float:
    """GFLOP/s of a large matrix product: the best of ten."""
    inner = 4096 if device == "cuda" else 1024
    a, b = torch.randn(4096, inner, dtype=dtype, device=device), torch.randn(inner, 4096, dtype=dtype, device=device)
    times = []
    for _ in range(10):
        wait_for(device)
        started = time.perf_counter()
        a @ b
        wait_for(device)
        times.append(time.perf_counter() - started)
    return 2 * 4096 * inner * 4096 / min(times) / 1e9


def wait_for(device: str) -> None:
    """Until all that was begun on the device is done; on a CPU nothing is begun and left."""
    if device == "cuda":
        torch.cuda.synchronize()
