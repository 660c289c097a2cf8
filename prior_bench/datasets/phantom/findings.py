"""Findings of the phantom: which diseases an examination shows, where and how strongly, and how each one is drawn.

A finding has a side, a place, an extent (severity) and a contrast, keeps its shape from one examination of a patient to
the next, and yields its mask. Findings may overlap and may be faint.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from prior_bench.datasets.phantom.anatomy import CM, RIBS, SIDES, Disease, Thorax
from prior_bench.datasets.phantom.canvas import Array, smoothstep, texture

KINDS = ("cardiomegaly", "effusion", "pneumothorax", "consolidation", "edema", "atelectasis", "nodule", "fracture")

# places as reports name them: (side, depth in the lung from..to, share of the way from mediastinum to chest wall)
LOBES = {
    "right upper lobe": ("right", (0.20, 0.40), (0.35, 0.75)),
    "right middle lobe": ("right", (0.62, 0.75), (0.20, 0.50)),
    "right lower lobe": ("right", (0.78, 0.92), (0.45, 0.80)),
    "left upper lobe": ("left", (0.20, 0.42), (0.35, 0.75)),
    "lingula": ("left", (0.60, 0.74), (0.50, 0.75)),
    "left lower lobe": ("left", (0.78, 0.92), (0.55, 0.85)),
}
ZONES = {
    f"{side} {zone} lung zone": (side, depth, (0.25, 0.85) if side == "right" or zone != "lower" else (0.55, 0.85))
    for side in SIDES
    for zone, depth in {"upper": (0.16, 0.34), "mid": (0.42, 0.58), "lower": (0.68, 0.86)}.items()
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding. `extent` 0..1 gives the severity in thirds; `change` compares with the prior examination."""

    kind: str
    side: str  # "left", "right" or "" where it has none
    place: str  # a lobe, a zone, a rib; "" where it has none
    extent: float
    faint: bool
    seed: int  # of its shape
    change: str = ""  # "", "new", "increased", "decreased", "unchanged"

    @property
    def severity(self) -> int:
        """0 mild, 1 moderate, 2 severe."""
        return min(int(self.extent * 3), 2)

    @property
    def contrast(self) -> float:
        return 0.6 if self.faint else 1.0

    @property
    def rng(self) -> np.random.Generator:
        return np.random.default_rng(self.seed)

    @property
    def diameter(self) -> float:
        """Diameter of a nodule in centimetres."""
        return round(1.6 + 1.4 * self.extent, 1)


# ------------------------------------------------------------------------------------------ occurrence


def draw_finding(kind: str, rng: np.random.Generator, side: str = "") -> Finding:
    """A finding of this kind at a random place."""
    faint = bool(rng.random() < {"cardiomegaly": 0.0, "pneumothorax": 0.2}.get(kind, 0.25))
    side = side or str(rng.choice(list(SIDES)))
    place = ""
    if kind == "consolidation":
        place = str(rng.choice([p for p, (s, *_) in LOBES.items() if s == side]))
    elif kind == "nodule":
        place = str(rng.choice([p for p, (s, *_) in ZONES.items() if s == side]))
    elif kind == "fracture":
        place = "clavicle" if rng.random() < 0.25 else f"{rng.integers(3, 8)} rib"
    elif kind in {"cardiomegaly", "edema"}:
        side = ""
    return Finding(kind, side, place, float(rng.uniform(0, 1)), faint, int(rng.integers(1 << 31)))


def draw_findings(rng: np.random.Generator, rate: float = 1.0) -> list[Finding]:
    """The findings of a first examination. Heart failure and trauma make some of them come together."""
    failure, trauma = rng.random() < 0.11, rng.random() < 0.05
    chance = {
        "cardiomegaly": 0.10,
        "effusion": 0.10,
        "pneumothorax": 0.09,
        "consolidation": 0.14,
        "edema": 0.05,
        "atelectasis": 0.10,
        "nodule": 0.12,
        "fracture": 0.10,
    }
    if failure:
        chance |= {"cardiomegaly": 0.75, "effusion": 0.6, "edema": 0.65}
    if trauma:
        chance |= {"pneumothorax": 0.5, "fracture": 0.6}
    found: list[Finding] = []
    for kind in KINDS:
        p = chance[kind] + (0.2 if kind == "atelectasis" and any(f.kind == "effusion" for f in found) else 0.0)
        if rng.random() < p * rate:
            found += draw_kind(kind, rng)
    return found


def draw_kind(kind: str, rng: np.random.Generator) -> list[Finding]:
    """One finding of a kind, or two: both sides, or two nodules or consolidations in different places."""
    first = draw_finding(kind, rng)
    pair = {"effusion": 0.4, "atelectasis": 0.3, "consolidation": 0.25, "nodule": 0.25}.get(kind, 0.0)
    if rng.random() >= pair:
        return [first]
    other = next(s for s in SIDES if s != first.side)
    return [first, draw_finding(kind, rng, side=other)]


def evolve(findings: list[Finding], rng: np.random.Generator) -> tuple[list[Finding], list[Finding]]:
    """The findings of the next examination, and those that are gone."""
    lasting = {"fracture": 1.0, "nodule": 0.97, "cardiomegaly": 0.95}
    stays = [f for f in findings if rng.random() < lasting.get(f.kind, 0.75)]
    gone = [f for f in findings if f not in stays]
    now = []
    for f in stays:
        step = 0.0 if f.kind == "fracture" else float(rng.choice([0.0, 0.3, -0.3], p=[0.5, 0.25, 0.25]))
        extent = float(np.clip(f.extent + step, 0.0, 0.999))
        moved = extent - f.extent
        change = "unchanged" if abs(moved) < 0.1 else "increased" if moved > 0 else "decreased"
        now.append(replace(f, extent=extent if change != "unchanged" else f.extent, change=change))
    kinds = {f.kind for f in findings}
    now += [replace(f, change="new") for f in draw_findings(rng, rate=0.4) if f.kind not in kinds]
    return sorted(now, key=lambda f: KINDS.index(f.kind)), gone


def visible(findings: list[Finding]) -> list[Finding]:
    """The findings without those that a larger effusion hides: at the base of its lung fluid covers everything."""
    drowned = {f.side for f in findings if f.kind == "effusion" and f.extent > 0.4}
    low = ("lower", "middle", "lingula", "6 rib", "7 rib")
    return [
        f
        for f in findings
        if f.side not in drowned
        or f.kind in {"effusion", "pneumothorax"}
        or (f.kind != "atelectasis" and not any(word in f.place for word in low))
    ]


def shape(findings: list[Finding]) -> Disease:
    """What the findings do to the thorax as a whole."""
    heart, raised, push, congestion, fractures = None, [0.0, 0.0], 0.0, 0.0, []
    for f in findings:
        i = 0 if f.side == "right" else 1
        if f.kind == "cardiomegaly":
            heart = 0.515 + 0.115 * f.extent
        elif f.kind == "atelectasis":
            raised[i] += 0.05 * max(f.extent - 0.3, 0)
        elif f.kind == "edema":
            congestion = 0.2 + 0.6 * f.extent
        elif f.kind in {"pneumothorax", "effusion"}:
            push -= SIDES[f.side] * 0.05 * max(f.extent - 0.66, 0)
        elif f.kind == "fracture":
            rng = f.rng
            slip = (0.010 + 0.022 * f.extent) * float(rng.choice([-1, 1]))
            if f.place == "clavicle":
                fractures.append((f.side, 0, float(rng.uniform(0.4, 0.65)), abs(slip)))
            else:
                fractures.append((f.side, rib_number(f), float(rng.uniform(0.5, 0.85)), slip))
    return Disease(heart, (raised[0], raised[1]), push, congestion, tuple(fractures))


def rib_number(finding: Finding) -> int:
    number = int(finding.place.split()[0])
    assert number in RIBS
    return number


# --------------------------------------------------------------------------------------------- drawing


def draw(thorax: Thorax, finding: Finding) -> Array:
    """Draw one finding into the layers of `thorax`; returns its mask (size, size) bool, never empty."""
    cover = DRAW[finding.kind](thorax, finding)
    mask = cover >= 0.5
    if not mask.any():  # thinner than a pixel: the pixel that it covers most
        mask = cover >= cover.max()
    return mask


def _fill(thorax: Thorax, cover: Array, density: float) -> None:
    """Replace lung air by fluid under `cover` (0..1)."""
    thorax.air = thorax.air * (1 - density * cover)


def _cardiomegaly(thorax: Thorax, finding: Finding) -> Array:
    return thorax.heart  # enlarged by `shape` already


def _effusion(thorax: Thorax, finding: Finding) -> Array:
    """Fluid from the costophrenic angle upwards with a meniscus that climbs the chest wall."""
    f, side = thorax.frame, finding.side
    a, t = thorax.from_midline(side), thorax.depth(side)
    top = thorax.base(side) + thorax.patient.dome * 0.75 - (0.008 + 0.29 * finding.extent**1.5)
    across = np.clip((a - 0.05) / (thorax.patient.width - 0.05), 0, 1)
    surface = top + (0.03 + 0.06 * finding.extent) * (1 - across**2) - 0.05 * smoothstep((across - 0.80) / 0.2)
    cover = f.edge(f.y - surface, 0.02) * thorax.lung[side]
    _fill(thorax, cover, 0.95 * (0.7 if finding.faint else 1))
    deep = smoothstep((f.y - surface) / 0.15)
    thorax.water = thorax.water + cover * (0.04 + 0.06 * deep) * finding.contrast
    return cover * (t > 0)


def _pneumothorax(thorax: Thorax, finding: Finding) -> Array:
    """Air outside a collapsed lung: no vessels, a thin pleural line; widest at the apex."""
    f, side = thorax.frame, finding.side
    a, t = thorax.from_midline(side), thorax.depth(side)
    width = 0.022 + 0.12 * finding.extent
    drop = 1.3 * width / (thorax.base(side) - thorax.patient.apex)
    lower = (t - drop) / (1 - drop)  # depth in the lung that is left
    gap = width * (1.0 - (1 - 0.4 * finding.extent) * smoothstep((t - 0.1) / (0.5 + 0.5 * finding.extent)))
    inside = np.minimum(thorax.wall(lower) - gap - a, a - thorax.inner(lower) + 0.005)  # positive in that lung
    free = f.edge(-inside, 0.0)
    cover = free * thorax.lung[side] * (1 - thorax.mediastinum)
    thorax.water = thorax.water * (1 - cover)
    thorax.air = np.maximum(thorax.air, cover * np.minimum(thorax.air + 0.20, 1.1))
    collapsed = thorax.lung[side] * (1 - free)
    _fill(thorax, collapsed, 0.30 * finding.extent)
    line = np.exp(-((inside / 0.005) ** 2)) * thorax.lung[side] * (1 - thorax.mediastinum)
    thorax.water = thorax.water + 0.09 * finding.contrast * line
    return cover


def _blob(thorax: Thorax, centre: tuple[float, float], radius: tuple[float, float], seed: int, rough: float) -> Array:
    """A soft, ragged region: distance from its centre in radii, disturbed by noise; 1 at the middle, 0 outside."""
    f = thorax.frame
    distance = np.hypot((f.x - centre[0]) / radius[0], (f.y - centre[1]) / radius[1])
    ragged = distance + rough * texture(np.random.default_rng(seed), f.size, 7, 2)
    return smoothstep((1.25 - ragged) / 0.6)


def _consolidation(thorax: Thorax, finding: Finding) -> Array:
    """Alveoli filled: a ragged dense patch inside one lobe, with darker airways in it."""
    side, depth, across = LOBES[finding.place]
    rng = finding.rng
    centre = thorax.point(side, rng.uniform(*depth), rng.uniform(*across))
    size = 0.05 + 0.06 * finding.extent
    blob = _blob(thorax, centre, (size * rng.uniform(0.85, 1.2), size), int(rng.integers(1 << 31)), 0.32)
    cover = blob * thorax.lung[side] * (1 - 0.9 * thorax.mediastinum)
    patchy = 0.85 + 0.15 * texture(rng, thorax.frame.size, 20, 2)
    _fill(thorax, np.clip(cover * patchy, 0, 1), (0.60 + 0.30 * finding.extent) * finding.contrast)
    return np.maximum(cover, 1e-3 * blob)


def _edema(thorax: Thorax, finding: Finding) -> Array:
    """Perihilar haze on both sides and short horizontal lines at the bases (Kerley B)."""
    f, cover = thorax.frame, thorax.frame.blank()
    rng = finding.rng
    for side, sign in SIDES.items():
        reach = 0.12 + 0.09 * finding.extent
        wing = _blob(
            thorax,
            (sign * 0.10, thorax.patient.hilum + 0.06),
            (reach, 0.17 + 0.08 * finding.extent),
            finding.seed,
            0.15,
        )
        cover = np.maximum(cover, wing * thorax.lung[side] * (1 - thorax.mediastinum))
        lines = f.blank()
        for _ in range(5):
            x, y = thorax.point(side, rng.uniform(0.75, 0.95), 0.97)
            f.stroke(lines, [(x, y), (x - sign * 0.03, y + 0.004)], 0.004, 1.0)
        thorax.water = thorax.water + 0.07 * lines * finding.contrast * thorax.lung[side]
    _fill(thorax, cover, (0.18 + 0.34 * finding.extent) * finding.contrast)
    return cover


def _atelectasis(thorax: Thorax, finding: Finding) -> Array:
    """Collapsed lung at a base: one to three oblique bands, with a wedge above the diaphragm if extensive."""
    f, side, rng = thorax.frame, finding.side, finding.rng
    sign, cover = SIDES[side], thorax.frame.blank()
    for _ in range(1 + finding.severity):
        x, y = thorax.point(
            side, rng.uniform(0.74, 0.93), rng.uniform(0.55, 0.8) if side == "left" else rng.uniform(0.4, 0.7)
        )
        length, slope = rng.uniform(0.05, 0.08) + 0.03 * finding.extent, rng.uniform(-0.5, 0.3)
        f.stroke(
            cover,
            [(x - sign * length, y - slope * length), (x, y + 0.004), (x + sign * length, y + slope * length)],
            0.016 + 0.012 * finding.extent,
        )
    if finding.severity == 2:
        x, y = thorax.point(side, 0.98, 0.35)
        cover = np.maximum(cover, _blob(thorax, (x, y), (0.09, 0.045), finding.seed, 0.1))
    cover = cover * thorax.lung[side] * (1 - 0.8 * thorax.mediastinum)
    _fill(thorax, cover, 0.55 * finding.contrast)
    thorax.water = thorax.water + 0.08 * cover * finding.contrast
    return cover


def _nodule(thorax: Thorax, finding: Finding) -> Array:
    """A round, fairly sharp density."""
    side, depth, across = ZONES[finding.place]
    rng = finding.rng
    x, y = thorax.point(side, rng.uniform(*depth), rng.uniform(*across))
    radius = finding.diameter * CM / 2
    cover = thorax.frame.ellipse(x, y, radius * 1.08, radius / 1.08, rng.uniform(0, 3), 0.004)
    thorax.water = thorax.water + 0.34 * cover * finding.contrast
    return cover


def _fracture(thorax: Thorax, finding: Finding) -> Array:
    """The break itself is drawn with the skeleton (`shape`); here its callus and its mask."""
    side, number, place, slip = next(b for b in shape([finding]).fractures)
    if number == 0:
        x, y = thorax.clavicle(side, place)
    else:
        y = 0.5
        for _ in range(8):  # the height of the rib and the width of the chest there depend on each other
            a = place * float(thorax.wall(max(float(thorax.height(y, side)), 0.02)) + 0.012)
            y = float(thorax.rib(side, number, place))
        x = SIDES[side] * a
    callus = thorax.frame.ellipse(x, y + slip / 2, 0.038, 0.022, blur=0.01)
    thorax.water = thorax.water + 0.28 * callus * finding.contrast
    return thorax.frame.ellipse(x, y + slip / 2, 0.035, 0.03)


DRAW = {
    "cardiomegaly": _cardiomegaly,
    "effusion": _effusion,
    "pneumothorax": _pneumothorax,
    "consolidation": _consolidation,
    "edema": _edema,
    "atelectasis": _atelectasis,
    "nodule": _nodule,
    "fracture": _fracture,
}
