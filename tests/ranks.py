"""One rank of a two-process run, started by test_losses.py: InfoNCE of two linear encoders under DDP.

Arguments: rank, file to meet at, file with the inputs, file to write to.
"""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from torch import Tensor, nn

from prior_bench.losses import info_nce


class TwoEncoders(nn.Module):
    def __init__(self):
        super().__init__()
        self.image, self.text = nn.Linear(5, 3), nn.Linear(4, 3)
        self.scale = nn.Parameter(torch.tensor(2.0))
        for number, parameter in enumerate(self.parameters()):
            nn.init.normal_(parameter, generator=torch.Generator().manual_seed(number))

    def forward(self, images: Tensor, texts: Tensor) -> Tensor:
        a, b = (nn.functional.normalize(x, dim=-1) for x in (self.image(images), self.text(texts)))
        return info_nce(a, b, self.scale.exp())


def main(rank: int, meeting: str, inputs: str, output: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    model = nn.parallel.DistributedDataParallel(TwoEncoders())
    found = []
    for batch in torch.load(inputs, weights_only=True):
        model.zero_grad()
        loss = model(*batch[rank])
        loss.backward()
        value = loss.detach().clone()
        dist.all_reduce(value)
        found.append({"loss": value / 2, **{n: p.grad.clone() for n, p in model.module.named_parameters()}})
    if rank == 0:
        torch.save(found, output)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
