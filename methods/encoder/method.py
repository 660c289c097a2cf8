"""Reference `encoder`: an image encoder with weights from a file, whatever released checkpoint they lie in.

    prior-bench run --method encoder --recipe resnet50 --set image.weights=FILE

`prior-bench weights inspect FILE` says which layout the file has and which recipe fits it.
"""

from __future__ import annotations

from prior_bench.encoders.alone import EncoderOnly


class Encoder(EncoderOnly):
    name = "encoder"
    title = "Image encoder from a file"
