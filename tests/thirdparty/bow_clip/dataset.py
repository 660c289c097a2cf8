"""Stripes: images with bright stripes, whose reports say in which direction they run."""

import numpy as np
from PIL import Image

from prior_bench.data.dataset import Dataset
from prior_bench.types import Budget, DenseBudget, ImageRecord, Report, Study, Target

KINDS = ("horizontal", "vertical")


class Stripes(Dataset):
    name, title, needs_root = "stripes", "Stripes", False
    targets = {"reports": Target("reports", "report")}  # noqa: RUF012
    budget = Budget(DenseBudget(64, 16, 4, 4), DenseBudget(64, 16, 4, 4))

    def fingerprint(self):
        return {"studies": 120}

    def load_studies(self):
        found = []
        for i in range(120):
            sentence = f"The stripes are {KINDS[i % 2]} in film {i}."
            split = "train" if i < 80 else "validation" if i < 90 else "test"
            report = Report({"findings": sentence}, (sentence,))
            found.append(Study(f"s{i}", f"p{i}", split, (ImageRecord(f"s{i}"),), report))
        return found

    def load_ids(self, target):
        return [study.id for study in self.load_studies()]

    def read_image(self, record):
        i = int(record.id[1:])
        rng = np.random.default_rng(i)
        wave = 128 + 90 * np.sin(np.arange(64) * rng.uniform(0.6, 1.2) + rng.uniform(0, 6))
        image = np.broadcast_to(wave[:, None] if i % 2 == 0 else wave, (64, 64)) + rng.normal(0, 8, (64, 64))
        return Image.fromarray(image.clip(0, 255).astype(np.uint8))
