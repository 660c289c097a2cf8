"""Reference row `random`: the recipe's image encoder, untrained. The floor that pre-training must beat."""

from __future__ import annotations

from prior_bench.encoders.alone import EncoderOnly


class Random(EncoderOnly):
    name = "random"
    title = "Random weights"
