"""What goes on inside trained weights: do the losses fall, are prototypes used, do sentences point to their findings?

Nothing here enters a leaderboard: it is for people who ask why a method is good or bad. `diagnose` writes
`diagnosis.json` and the pictures `curves.png`, `use.png` and `pointing.png`, as far as the method and the dataset have
what they need.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prior_bench import figures
from prior_bench.data.dataset import Dataset, Phrase
from prior_bench.data.geometry import Geometry
from prior_bench.data.images import ImageStore
from prior_bench.engine.pretrain import terms
from prior_bench.method import Method
from prior_bench.metrics.pointing import pointing
from prior_bench.statistics import Bootstrap, group_draws, interval

BATCH = 32
EXAMPLES = 6
_ENDS = 0.02  # share of a run that its first and last values are means over

Report = Callable[[str], None]


def diagnose(method: Method, rows: Sequence[Mapping[str, float]], dataset: Dataset, output: Path, images: Path,
             report: Report = lambda text: None) -> dict[str, Any]:
    """Everything that can be said of a method, on the test split of a dataset; `diagnosis.json`'s content.

    Args:
        method: on its device, in eval mode.
        rows: of the log of its pre-training; none where it is not at hand.
        output: an existing folder for the pictures.
        images: folder of the image store.
        report: called with a line when a part begins.
    """
    found: dict[str, Any] = {}
    if rows:
        figures.draw_losses(rows, output / "curves.png")
        found["curves"] = curves(rows)
    studies = [study for study in dataset.studies if study.split == "test" and study.report and study.report.sentences]
    phrases = [phrase for phrase in dataset.load_phrases("test") if phrase.image in dataset.records]
    ids = sorted({study.images[0].id for study in studies} | {phrase.image for phrase in phrases})
    if not ids or not method.has_text:
        return found
    report(f"{len(studies)} test reports, {len(phrases)} sentences with a mask")
    store = ImageStore.open(dataset, ids, method.image_input, images)
    pairs = [(study.images[0].id, study.report.text) for study in studies if study.report]
    if weights := _over(method.prototype_use, method, store, pairs):
        figures.draw_use({name: rows.mean(axis=0) for name, rows in weights.items()}, output / "use.png")
        found["use"] = {name: use(rows) for name, rows in weights.items()}
    if maps := _over(method.sentence_maps, method, store, [(phrase.image, phrase.sentence) for phrase in phrases]):
        masks = np.stack([Geometry(phrase.mask.shape, method.image_input).mask(phrase.mask) for phrase in phrases])
        groups = [dataset.group_of(phrase.image) for phrase in phrases]
        kinds = [phrase.finding for phrase in phrases]
        found["pointing"] = {name: pointing_game(own, masks, kinds, groups) for name, own in maps.items()}
        examples = {name: _examples(phrases, store, own, masks) for name, own in maps.items()}
        figures.draw_maps(examples, output / "pointing.png")
    return found


def curves(rows: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Of each term: its first step, and the means over the first and the last 2 % of the run."""
    few = max(1, round(_ENDS * len(rows)))
    found = {}
    for name in terms(rows):
        own = [row for row in rows if name in row]
        found[name] = {"from_step": own[0]["step"], "first": float(np.mean([row[name] for row in own[:few]])),
                       "last": float(np.mean([row[name] for row in own[-few:]]))}
    return found


def use(weights: np.ndarray) -> dict[str, Any]:
    """How K prototypes are used, from the weights (N, K) of each item over them; rows sum to 1.

    `entropy` is that of the mean weights over log K: 1 where all are used alike, 0 where one takes everything
    (collapse). `entropy_of_one`, the mean over items of each one's own, is 1 where nothing tells the prototypes apart;
    then `entropy` says nothing. `first_choices` is the share of prototypes that some item weighs most.
    """
    count = weights.shape[1]
    return {"items": len(weights), "prototypes": count, "entropy": float(_entropy(weights.mean(axis=0))),
            "entropy_of_one": float(_entropy(weights).mean()),
            "first_choices": len(np.unique(weights.argmax(axis=1))) / count,
            "mean_weights": weights.mean(axis=0).tolist()}


def pointing_game(maps: np.ndarray, masks: np.ndarray, kinds: Sequence[str],
                  groups: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`metrics.pointing` over all sentences and by finding: hits with the 95 % interval over patients.

    Args: maps (N, h, w); masks (N, S, S); kinds: the finding of each; groups: the leak group of each.
    `chance` is the share of the image that masks cover, `habit` what the maps of other sentences reach, `reachable` the
    share of masks that hold the centre of any of the map's cells.
    """
    hits, habit, reachable = pointing(maps, masks)
    chance = (masks == 1).mean(axis=(1, 2))
    draws = group_draws(groups)
    found = {}
    for kind in ("all", *sorted(set(kinds))):
        own = np.array([kind in {"all", k} for k in kinds])
        replicates = Bootstrap(groups, draws).mean(np.where(own, hits, np.nan))
        found[kind] = {"sentences": int(own.sum()), "hits": float(hits[own].mean()), "interval": interval(replicates),
                       "chance": float(chance[own].mean()), "habit": float(habit[own].mean()),
                       "reachable": float(reachable[own].mean())}
    return found


def _entropy(p: np.ndarray) -> np.ndarray:
    """Entropy of distributions (..., K) over its largest value, log K."""
    logs = np.log(p, where=p > 0, out=np.zeros_like(p))
    return -(p * logs).sum(axis=-1) / math.log(p.shape[-1])


def _over(hook: Callable[[Tensor, Sequence[str]], dict[str, Tensor] | None], method: Method, store: ImageStore,
          pairs: Sequence[tuple[str, str]]) -> dict[str, np.ndarray]:
    """A hook of the method over pairs of image id and text, in batches; nothing where the method has no such hook."""
    parts: dict[str, list[np.ndarray]] = {}
    with torch.inference_mode():
        for images, texts in _batches(method, store, pairs):
            found = hook(images, texts)
            if found is None:
                return {}
            for name, values in found.items():
                parts.setdefault(name, []).append(values.float().cpu().numpy())
    return {name: np.concatenate(own) for name, own in parts.items()}


def _batches(method: Method, store: ImageStore,
             pairs: Sequence[tuple[str, str]]) -> Iterator[tuple[Tensor, list[str]]]:
    device = next(method.parameters()).device
    for start in range(0, len(pairs), BATCH):
        ids, texts = zip(*pairs[start : start + BATCH], strict=True)
        images = torch.from_numpy(store.get(ids)).unsqueeze(1).to(device)
        yield method.normalise(images), list(texts)


def _examples(phrases: Sequence[Phrase], store: ImageStore, maps: np.ndarray,
              masks: np.ndarray) -> list[figures.Example]:
    """Sentences drawn at random, of different findings as far as there are, the same for every method."""
    order = np.random.default_rng(0).permutation(len(phrases))
    first = {phrases[i].finding: i for i in order[::-1]}
    chosen = [*first.values(), *(i for i in order if i not in first.values())][:EXAMPLES]
    hits, _, _ = pointing(maps[chosen], masks[chosen])
    verdicts = ["hit" if hit == 1 else "miss" if hit == 0 else f"{hit:.0%} of a tie" for hit in hits]
    return [figures.Example(store.get([phrases[i].image])[0], maps[i], masks[i], f"{verdict}: {phrases[i].sentence}")
            for i, verdict in zip(chosen, verdicts, strict=True)]
