"""A tiny dataset with every kind of target, drawn from a generator: bright shapes that labels, boxes and reports name.

For the tests of tasks and engine; import it through the `toy` fixture of conftest.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import ClassVar

import numpy as np
from PIL import Image

from prior_bench.data.dataset import Boxes, Dataset, LabelTable, Prompts
from prior_bench.types import Budget, DenseBudget, FinetuneBudget, ImageRecord, Report, Study, Target

SHAPES = ("disc", "bar", "cross")
PLACES = ("upper", "middle", "lower")
PATIENTS = {"train": 72, "validation": 12, "test": 24}  # 10 % of the training patients are just enough for the protocol


class ToyDataset(Dataset):
    """Studies of 108 patients at 64 px (every ninth patient has two). Some labels are missing, some pixels ignored."""

    name = "toy"
    title = "Toy shapes"
    needs_root = False
    targets: ClassVar[Mapping[str, Target]] = {
        "findings": Target("findings", "multilabel", SHAPES, prompts=True),
        "place": Target("place", "exclusive", PLACES, prompts=True),
        "disc": Target("disc", "mask", ("disc",)),
        "shapes": Target("shapes", "boxes", SHAPES),
        "reports": Target("reports", "report"),
    }
    budget = Budget(
        segmentation=DenseBudget(size=64, channels=16, batch=4, steps=4, validations=2),
        detection=DenseBudget(size=64, channels=16, batch=4, steps=4, validations=2),
        finetune=FinetuneBudget(batch=8, min_steps=4, epochs=1, validations=2, subset_seeds=(0,)),
        subset_seeds=(0, 1),
    )
    size = 64
    seed = 0

    def fingerprint(self) -> object:
        return {"seed": self.seed, "size": self.size, "patients": PATIENTS}

    @cached_property
    def _drawn(self) -> dict[str, dict]:
        """Per image id: pixels, which shapes, their boxes, the place of the marker, and the split and group."""
        drawn, number = {}, 0
        for split, patients in PATIENTS.items():
            for patient in range(patients):
                for visit in range(2 if patient % 9 == 0 else 1):
                    rng = np.random.default_rng([self.seed, number])
                    drawn[f"toy-{number:03d}"] = self._draw(rng) | {"split": split, "group": f"{split}-{patient}",
                                                                    "visit": visit}
                    number += 1
        return drawn

    def _draw(self, rng: np.random.Generator) -> dict:
        s = self.size
        y, x = np.mgrid[:s, :s] + 0.5
        pixels = 60 + 10 * rng.standard_normal((s, s))
        has = rng.random(3) < (0.5, 0.4, 0.3)
        boxes, masks = [], []
        for shape in range(3):
            r = rng.uniform(0.1, 0.16) * s
            cx, cy = (0.3 * s, 0.3 * s) if shape == 0 else (0.7 * s, 0.35 * s) if shape == 1 else (0.4 * s, 0.75 * s)
            cx, cy = cx + rng.uniform(-3, 3), cy + rng.uniform(-3, 3)
            dx, dy = np.abs(x - cx), np.abs(y - cy)
            inside = [np.hypot(dx, dy) < r, (dx < r) & (dy < r / 3),
                      (np.minimum(dx, dy) < r / 3) & (np.maximum(dx, dy) < r)][shape]
            half = (r, r / 3 if shape == 1 else r)
            masks.append(inside & has[shape])
            boxes.append([cx - half[0], cy - half[1], cx + half[0], cy + half[1]])
            pixels[masks[-1]] += 90
        place = int(rng.integers(3))
        pixels[int((0.1 + 0.35 * place) * s):][:4, -8:] += 120
        return {"pixels": pixels.clip(0, 255).astype(np.uint8), "has": has, "boxes": np.array(boxes, np.float32),
                "disc": masks[0].astype(np.uint8), "place": place, "missing": rng.random(3) < 0.05}

    def load_studies(self) -> Sequence[Study]:
        return [Study(f"study-{id}", d["group"], d["split"], (ImageRecord(id, view="PA"),), self._report(d))
                for id, d in self._drawn.items()]

    def _report(self, d: dict) -> Report:
        findings = [f"There is a {s}." if has else f"No {s} is seen." for s, has in zip(SHAPES, d["has"], strict=True)]
        impression = f"The marker is in the {PLACES[d['place']]} part."
        return Report({"impression": impression, "findings": " ".join(findings)}, (impression, *findings))

    def load_labels(self, target: str) -> LabelTable:
        ids = tuple(self._drawn)
        if target == "place":
            return LabelTable(ids, PLACES, np.eye(3, dtype=np.float32)[[d["place"] for d in self._drawn.values()]])
        values = np.array([d["has"] for d in self._drawn.values()], np.float32)
        values[np.array([d["missing"] for d in self._drawn.values()])] = np.nan
        return LabelTable(ids, SHAPES, values)

    def load_ids(self, target: str) -> Sequence[str]:
        return list(self._drawn)

    def load_mask(self, target: str, image_id: str) -> np.ndarray:
        mask = self._drawn[image_id]["disc"].copy()
        if int(image_id[-3:]) % 10 == 0:
            mask[:4] = 255
        return mask

    def load_boxes(self, target: str, image_id: str) -> Boxes:
        d = self._drawn[image_id]
        return Boxes(d["boxes"][d["has"]], np.flatnonzero(d["has"]))

    def prompts(self, target: str) -> Mapping[str, Prompts]:
        if target == "place":
            return {p: Prompts((f"The marker is in the {p} part.",)) for p in PLACES}
        return {s: Prompts((f"There is a {s}.",), (f"No {s} is seen.",)) for s in SHAPES}

    def read_image(self, record: ImageRecord) -> Image.Image:
        return Image.fromarray(self._drawn[record.id]["pixels"])
