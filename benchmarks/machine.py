"""What this machine can do at most, for the benchmarks to say their share of it."""

import time

import torch


def product_rate(dtype: torch.dtype) -> float:
    """GFLOP/s of a large matrix product: the best of ten."""
    a, b = torch.randn(4096, 1024, dtype=dtype), torch.randn(1024, 4096, dtype=dtype)
    times = []
    for _ in range(10):
        started = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - started)
    return 2 * 4096 * 1024 * 4096 / min(times) / 1e9
