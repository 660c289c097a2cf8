"""What a training step costs beside its bare encoders: time and memory as ratios that another machine has, too.

The reference loop runs the image and the text encoder forwards and backwards on the same batch, step by step in turn
with the method's own step. Of each the least time counts: what disturbs a machine only adds. On a CPU it is the
processor's time of this process, as other programs may hold the processor in every round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter, process_time
from typing import TYPE_CHECKING, Any

import torch

from prior_bench.method import Batch, Method

if TYPE_CHECKING:
    from prior_bench.engine.precision import Precision

ROUNDS = 12
LAST = 0.99  # share of the training that is done: all loss terms are on


def cost(method: Method, batch: Batch, precision: Precision, rounds: int = ROUNDS) -> dict[str, float]:
    """{"time": ratio, "memory": ratio} of a training step to its bare encoders, forward and backward.

    Args:
        method: on its device, with `image_encoder` and `text_encoder`.
        batch: collated, on the device.
    """
    method.train()
    parts: Any = method
    images = method.normalise(batch["image"]).contiguous(memory_format=torch.channels_last)

    def step() -> torch.Tensor:
        with precision.cast():
            terms = method(batch, LAST)
        return sum_of([weight * value for weight, value in terms.values()])

    def encoders() -> torch.Tensor:
        with precision.cast():
            outputs = parts.image_encoder(images), parts.text_encoder(batch["ids"], batch["mask"])
        return sum_of([out.float().square().mean() for out in outputs])

    memory = kept_bytes(method, step) / kept_bytes(method, encoders)
    least = [float("inf"), float("inf")]
    for _ in range(rounds):
        for place, loop in enumerate((step, encoders)):
            least[place] = min(least[place], _seconds(method, loop, precision.device))
    return {"time": least[0] / least[1], "memory": memory}


def sum_of(values: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack([value.float() for value in values]).sum()


def _seconds(method: Method, loop: Callable[[], torch.Tensor], device: torch.device) -> float:
    """Of one forward and backward pass."""
    start = _now(device)
    loop().backward()
    seconds = _now(device) - start
    method.zero_grad()
    return seconds


def _now(device: torch.device) -> float:
    if device.type == "cpu":
        return process_time()
    torch.cuda.synchronize(device)
    return perf_counter()


def kept_bytes(method: Method, loop: Callable[[], torch.Tensor]) -> int:
    """Bytes that a forward pass keeps for its backward pass, parameters aside: the same whatever else the machine does,
    and what the peak of a training step is made of."""
    own = {parameter.untyped_storage().data_ptr() for parameter in method.parameters()}
    kept: dict[int, int] = {}  # the graph holds them all until the end, so no address comes twice

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        total = loop()
    del total
    return sum(kept.values())
