"""Outputs of several processes, brought together so that a metric of them has the digits of one process."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any


def gather_by_id(ids: Sequence[Hashable], values: Sequence[Any], order: Sequence[Hashable]) -> list[Any]:
    r"""Values of all processes in the order of the data set, on every process.

    A sampler that shares a data set out to processes repeats some examples to make the shares equal; of those only the
    first is kept. So gather the outputs, not the scores, and compute metrics on what this returns.

        >>> captions = gather_by_id(my_image_ids, my_captions, order=dataset["image_id"])
        >>> compute_caption_metrics(captions, dataset["captions"])

    Args:
        ids, values: Of this process's examples. Values are sent by pickle, so they are best plain text and numbers.
        order: The ids of the whole data set.

    Raises:
        ValueError: If ids and values differ in number, or an id of `order` is in no process.
    """
    from accelerate.utils import gather_object

    if len(ids) != len(values):
        raise ValueError(f"Got {len(ids)} ids for {len(values)} values; give one for each.")
    gathered: dict[Hashable, Any] = {}
    for key, value in gather_object(list(zip(ids, values, strict=True))):
        gathered.setdefault(key, value)
    missing = [key for key in order if key not in gathered]
    if missing:
        raise ValueError(f"No process has a value for {len(missing)} examples, such as {missing[:5]}.")
    return [gathered[key] for key in order]
