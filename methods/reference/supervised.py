"""Reference row `supervised`: the recipe's image encoder, trained from scratch by the task on the cell's own target and
subset. What labels alone are worth at that fraction."""

from __future__ import annotations

from prior_bench.encoders.alone import EncoderOnly


class Supervised(EncoderOnly):
    name = "supervised"
    title = "Supervised from scratch"
    trains_on_target = True
