"""A dual encoder of a CNN and a bag of words, trained with InfoNCE."""

import zlib

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from prior_bench.encoders.image import ImageEncoder, image_input
from prior_bench.losses import info_nce
from prior_bench.method import ImageFeatures, Method, TextFeatures
from prior_bench.recipes import Recipe

WORDS = 512


class BowClip(Method):
    name, title, recipe_class, contrastive = "bow-clip", "Bag-of-words CLIP", Recipe, {"L_nce": 1}

    def __init__(self, recipe):
        super().__init__()
        self.recipe, self.image_input = recipe, image_input(recipe.image)
        self.image_encoder = ImageEncoder(recipe.image)
        self.image_head = nn.Linear(self.image_encoder.channels, recipe.width)
        self.text_encoder = nn.EmbeddingBag(WORDS, recipe.width, mode="mean")

    @classmethod
    def from_recipe(cls, recipe, texts=None, tokenizer=None):
        return cls(recipe)

    def encode_image(self, images):
        features = self.image_encoder(images)
        return ImageFeatures(F.normalize(self.image_head(features.mean(dim=(2, 3))).float(), dim=1), features)

    def encode_text(self, texts):
        bags = [[zlib.crc32(w.encode()) % WORDS for w in text.lower().split()] or [0] for text in texts]
        starts = torch.tensor(np.cumsum([0, *map(len, bags[:-1])]))
        ids = torch.tensor([i for bag in bags for i in bag])
        device = self.image_head.weight.device
        return TextFeatures(F.normalize(self.text_encoder(ids.to(device), starts.to(device)).float(), dim=1))

    def pyramid(self, images):
        return self.image_encoder.pyramid(images)

    @property
    def pyramid_channels(self):
        return self.image_encoder.pyramid_channels

    def view(self, study, rng):
        return {"image": study.images[rng.integers(len(study.images))], "text": study.report.text}

    def collate(self, samples):
        return {"image": torch.from_numpy(np.stack([s["image"] for s in samples])).unsqueeze(1),
                "text": [s["text"] for s in samples]}

    def losses(self, batch, progress):
        images = self.encode_image(self.normalise(batch["image"])).joint
        return {"L_nce": (1.0, info_nce(images, self.encode_text(batch["text"]).joint, 10.0))}
