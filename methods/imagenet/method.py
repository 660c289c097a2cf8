"""Reference row `imagenet`: the track's image encoder with timm's ImageNet weights, from which most methods start.

The recipes fetch them from the hub; `--set image.weights=FILE` takes a local file in their place.
"""

from __future__ import annotations

from prior_bench.encoders.alone import EncoderOnly


class Imagenet(EncoderOnly):
    name = "imagenet"
    title = "ImageNet weights"
