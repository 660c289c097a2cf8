"""Reference `encoder`: an image encoder with weights from a file, whatever released checkpoint they lie in.

    prior-bench run --method encoder --recipe resnet50 --set image.weights=FILE

`prior-bench weights inspect FILE` says which layout the file has and which recipe fits it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Self

from prior_bench.encoders.alone import EncoderOnly
from prior_bench.errors import UserError
from prior_bench.recipes import Recipe


class Encoder(EncoderOnly):
    name = "encoder"
    title = "Image encoder from a file"

    @classmethod
    def from_recipe(cls, recipe: Recipe, texts: Iterable[str] | None = None, tokenizer: Path | None = None) -> Self:
        if recipe.image.weights == "random":
            raise UserError("the method 'encoder' evaluates the weights of a file, and none is given",
                            where="image.weights", fix="give --set image.weights=FILE")
        return super().from_recipe(recipe, texts, tokenizer)
