"""Settings that the engine trains and predicts by, whatever the method and the dataset.

They lie apart from the code that uses them because `Task.settings`, which puts them into each cell's digest, is asked
while planning, and planning imports no torch. What a task hands to the engine (rates, schedules) is the task's own.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finetuning:
    """Training an encoder with a linear head on labels. `encoder_share` is that of the head's rate."""

    head_rate: float = 1e-3
    encoder_share: float = 0.1
    weight_decay: float = 0.05
    warmup: float = 0.05
    crop_area: tuple[float, float] = (0.8, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How far an image and its mask are changed at random; rotation in degrees to either side."""

    scale: tuple[float, float] = (0.9, 1.1)
    rotation: int = 10
    brightness: float = 0.1
    contrast: float = 0.1


FINETUNING, AUGMENTATION = Finetuning(), Augmentation()
ENCODER_RATE = 0.1  # of a dense head's rate, when the encoder is fine-tuned with it
THRESHOLD = 0.5  # from which probability on a pixel is foreground
# Segmentation's last layer starts from a foreground probability of 0.1 (as the prior of Lin et al. 2017) and weights of
# deviation 0.1: from mmseg's 0.5 and 0.01, logits did not leave the background behind in 120 steps, and Dice was 0.
PRIOR, LAST_STD = 0.1, 0.1
