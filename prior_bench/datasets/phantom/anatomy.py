"""Anatomy and exposure of the phantom: a patient, an examination, the thorax they give and the radiograph of it.

A radiograph shows the attenuation summed along the beam. `Thorax` therefore keeps additive layers (soft tissue, air,
bone, metal); findings change the layers (fluid replaces air), and `develop` turns the sum into grey values like film.
Patient's right is image left. The shapes are drawn by hand after textbook proportions, not fitted to any data.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import pi

import numpy as np

from prior_bench.datasets.phantom.canvas import Array, Frame, noise, smooth_max, smoothstep, texture

SIDES = {"right": -1, "left": 1}  # the sign of x
RIBS = range(1, 11)
LETTERS = {  # strokes in a unit square
    "L": (((0, 0), (0, 1), (0.6, 1)),),
    "R": (((0, 1), (0, 0), (0.5, 0.05), (0.6, 0.25), (0.5, 0.45), (0, 0.5)), ((0.25, 0.5), (0.6, 1))),
}
CM = 1 / 38.0  # one centimetre in thorax units: the image shows about 38 cm


@dataclass(frozen=True, slots=True)
class Patient:
    """What stays the same in all examinations of a person. Lengths are in thorax units."""

    width: float  # half the inner width of the rib cage
    apex: float  # height of the lung apices
    base: float  # right dome of the diaphragm in full inspiration
    dome: float  # depth of the costophrenic angle below the dome
    left_lower: float  # left dome below the right one
    heart: float  # cardiothoracic ratio without disease
    heart_angle: float
    knob: float  # radius of the aortic knob
    habitus: float  # 0 slender to 1 stout
    breasts: float  # 0 none
    bone: float  # density of the skeleton
    rib_gap: float
    rib_slope: float
    rib_width: float
    clavicle: float  # slope of the clavicles
    scoliosis: float
    hilum: float  # height of the hila
    markings: float  # strength of the vessels
    pacemaker: str  # "", "left" or "right"
    sternotomy: bool
    seed: int  # of the vessel tree


@dataclass(frozen=True, slots=True)
class Exam:
    """How one radiograph was taken."""

    view: str  # "PA" or "AP"
    tilt: float
    shift: tuple[float, float]
    zoom: float
    rotation: float  # of the patient: moves the mediastinum sideways
    inspiration: float  # 0 full to 1 poor
    magnification: float  # of the heart, which lies far from the detector in AP views
    exposure: float
    contrast: float
    noise: float
    marker: str  # "L", "R" or ""
    electrodes: bool
    catheter: str  # side of a central venous catheter, or ""
    tube: bool  # endotracheal and enteric tubes
    collimation: tuple[float, float, float, float]
    seed: int


def draw_patient(rng: np.random.Generator) -> Patient:
    u = rng.uniform
    return Patient(
        width=u(0.33, 0.385),
        apex=u(0.085, 0.125),
        base=u(0.71, 0.77),
        dome=u(0.07, 0.11),
        left_lower=u(0.0, 0.03),
        heart=u(0.39, 0.485),
        heart_angle=u(0.5, 0.8),
        knob=u(0.022, 0.04),
        habitus=u(),
        breasts=max(0.0, u(-1.0, 1.0)),
        bone=u(0.75, 1.25),
        rib_gap=u(0.058, 0.068),
        rib_slope=u(0.02, 0.08),
        rib_width=u(0.02, 0.027),
        clavicle=u(0.01, 0.09),
        scoliosis=u(-0.02, 0.02),
        hilum=u(0.41, 0.46),
        markings=u(0.6, 1.5),
        pacemaker=str(rng.choice(["", "left", "right"], p=[0.93, 0.06, 0.01])),
        sternotomy=bool(u() < 0.08),
        seed=int(rng.integers(1 << 31)),
    )


def draw_exam(rng: np.random.Generator, portable: float = 0.4) -> Exam:
    """An examination; `portable` is the probability of an AP film in bed, with its tubes, tilt and poor inspiration."""
    u = rng.uniform
    bed = bool(u() < portable)
    spread = 1.5 if bed else 1.0
    edges = rng.uniform(0, 0.05, 4) * (rng.random(4) < 0.25)
    return Exam(
        view="AP" if bed else "PA",
        tilt=float(np.clip(rng.normal(0, 0.025), -0.06, 0.06)) * spread,
        shift=(float(u(-0.035, 0.035)), float(u(-0.04, 0.03))),
        zoom=u(0.9, 1.1),
        rotation=float(np.clip(rng.normal(0, 0.012), -0.03, 0.03)) * spread,
        inspiration=u(0.1, 1.0) if bed else u(0.0, 0.6),
        magnification=u(1.0, 1.1) if bed else 1.0,
        exposure=rng.normal(0, 0.12) * spread,
        contrast=u(0.75, 1.2),
        noise=u(0.008, 0.022) * spread,
        marker=str(rng.choice(["L", "R", ""], p=[0.45, 0.35, 0.2])),
        electrodes=bool(bed and u() < 0.5),
        catheter=str(rng.choice(["right", "left"])) if bed and u() < 0.3 else "",
        tube=bool(bed and u() < 0.2),
        collimation=(edges[0], edges[1], edges[2], edges[3]),
        seed=int(rng.integers(1 << 31)),
    )


@dataclass(frozen=True, slots=True)
class Disease:
    """What findings do to the shape of the thorax before anything is drawn (see findings.shape)."""

    heart: float | None = None  # cardiothoracic ratio, if the heart is enlarged
    raised: tuple[float, float] = (0.0, 0.0)  # diaphragm of the right and left side
    push: float = 0.0  # of the mediastinum, towards positive x
    congestion: float = 0.0  # widens the vessels
    fractures: tuple[tuple[str, int, float, float], ...] = ()  # side, rib (0: clavicle), place along it, displacement


class Thorax:
    """The layers of one radiograph, all (size, size) float32 in a frame.

    `air` is lung air along the beam (0..1), `water` added fluid-like density, `bone`, `metal`; `lungs` and `heart` are
    the coverage of the anatomical fields. Findings draw into air and water; `develop` sums up.
    """

    def __init__(self, size: int, patient: Patient, exam: Exam, disease: Disease = Disease()):
        self.patient, self.exam, self.disease = patient, exam, disease
        self.frame = Frame(size, exam.tilt, exam.shift, exam.zoom)
        self.rng = np.random.default_rng([patient.seed, exam.seed])
        self.lung = {side: self._lung(sign) for side, sign in SIDES.items()}
        self.heart, self.mediastinum = self._heart_and_mediastinum()
        field = np.maximum(self.lung["right"], self.lung["left"])
        self.lungs = field * (1 - self.mediastinum)
        self.air = self._air(field)
        self.water = self._vessels() + 0.02 * texture(self.rng, size, 24, 2) * self.lungs
        self.bone = self._ribs() + self._clavicles() + self._spine() + self._scapulae()
        self.metal, self.plastic = self._devices()

    # -------------------------------------------------------------------------------------- geometry

    def base(self, side: str) -> float:
        """Height of the dome of the diaphragm."""
        p, i = self.patient, 0 if side == "right" else 1
        return p.base - 0.09 * self.exam.inspiration + p.left_lower * i - self.disease.raised[i]

    def height(self, y: Array | float, side: str) -> Array | float:
        """Depth within the lung: 0 at the apex, 1 at the dome."""
        return (y - self.patient.apex) / (self.base(side) - self.patient.apex)

    def wall(self, t: Array | float) -> Array:
        """Distance of the inner chest wall from the midline at depth t."""
        g = (1 - (1 - np.clip(np.asarray(t) / 0.75, 0, 1)) ** 2) ** 0.62
        return 0.13 + (self.patient.width - 0.13) * g

    def inner(self, t: Array | float) -> Array:
        """Distance of the mediastinal border from the midline at depth t."""
        return 0.13 - 0.085 * smoothstep(np.asarray(t) / 0.22) ** 0.5

    def diaphragm(self, a: Array | float, side: str) -> Array | float:
        """Height of the diaphragm at distance a from the midline."""
        bend = (a - 0.44 * self.patient.width) / (0.5 * self.patient.width)
        return self.base(side) + self.patient.dome * bend * bend

    def point(self, side: str, t: float, across: float) -> tuple[float, float]:
        """A point in a lung: depth t (0 apex, 1 dome), `across` from the mediastinum (0) to the wall (1)."""
        y = self.patient.apex + t * (self.base(side) - self.patient.apex)
        a = float(self.inner(t) + across * (self.wall(t) - self.inner(t)))
        return SIDES[side] * a, y

    def depth(self, side: str) -> Array:
        return np.asarray(self.height(self.frame.y, side))

    def from_midline(self, side: str) -> Array:
        return self.frame.x * SIDES[side]

    def _lung(self, sign: int) -> Array:
        side = "left" if sign > 0 else "right"
        t, a = self.depth(side), self.from_midline(side)
        below = np.minimum(self.diaphragm(a, side) - self.frame.y, self.frame.y - self.patient.apex)
        inside = np.minimum(np.minimum(self.wall(t) - a, a - self.inner(t)), below)
        return self.frame.edge(inside, blur=0.008)

    def midline(self, y: Array | float) -> Array:
        """x of the mediastinum's middle: rotation, push and scoliosis."""
        y = np.asarray(y)
        shift = self.exam.rotation + self.disease.push * smoothstep((y - 0.1) / 0.3)
        return np.asarray(shift + self.patient.scoliosis * np.sin(pi * y))

    def _heart_and_mediastinum(self) -> tuple[Array, Array]:
        """Coverage of the heart, and of the whole central shadow: heart, great vessels, aortic knob, in one contour."""
        p, f = self.patient, self.frame
        ratio = (self.disease.heart or p.heart) * self.exam.magnification
        half = ratio * p.width
        squat = 0.74 + 0.08 * self.exam.inspiration - 0.5 * max(ratio - 0.5, 0)
        c, s = np.cos(p.heart_angle), np.sin(p.heart_angle)
        long = half / np.hypot(c, squat * s)
        x, y = 0.32 * half + float(self.midline(0.6)), self.base("left") - 0.60 * long - 0.005
        heart = f.inside_ellipse(x, y, long, squat * long, p.heart_angle)
        from_middle = f.x - self.midline(f.y)
        column = 0.055 + 0.03 * smoothstep((0.22 - f.y) / 0.2) + 0.04 * smoothstep((f.y - 0.30) / 0.45)
        column = column * (1 - 0.25 * (from_middle < 0)) - np.abs(from_middle)
        knob = f.inside_ellipse(0.046 + float(self.midline(0.31)), 0.315, p.knob + 0.008, p.knob + 0.012)
        trunk = f.inside_ellipse(0.045 + float(self.midline(0.4)), 0.395, 0.035, 0.05)
        shadow = smooth_max(smooth_max(heart, column, 0.025), smooth_max(knob, trunk, 0.012), 0.012)
        return f.edge(heart, 0.008), f.edge(shadow, 0.008)

    # ---------------------------------------------------------------------------------------- layers

    def _air(self, field: Array) -> Array:
        """Lung air: less near the edges where the lung is thin, some behind heart and diaphragm."""
        f = self.frame
        thick = np.maximum(*(self.lung[s] * self._thickness(s) for s in SIDES))
        behind = (
            0.25
            * f.edge(self.patient.width * 0.85 - np.abs(f.x), 0.1)
            * f.edge(0.80 - f.y, 0.12)
            * f.edge(f.y - 0.2, 0.1)
        )
        return np.maximum(thick * (1 - 0.80 * self.mediastinum), behind * self.mediastinum)

    def _thickness(self, side: str) -> Array:
        t, a = self.depth(side), self.from_midline(side)
        lateral = smoothstep((self.wall(t) - a) / 0.09) * 0.28 + 0.72
        return lateral * (0.80 + 0.20 * smoothstep(t / 0.45))

    def _vessels(self) -> Array:
        """Branching vessels from the hila; congestion widens the upper ones."""
        rng, layer = np.random.default_rng(self.patient.seed), self.frame.blank()
        wide = 1 + 0.8 * self.disease.congestion
        for side, sign in SIDES.items():
            x, y = sign * 0.075 + float(self.midline(0.42)), self.patient.hilum + (0.02 if side == "right" else 0.0)
            self.frame.stroke(
                layer, [(x, y - 0.045), (x + sign * 0.012, y), (x + sign * 0.006, y + 0.07)], 0.032, 0.8, 0.022
            )
            for angle in np.linspace(-1.3, 1.4, 8) + rng.uniform(-0.15, 0.15, 8):
                self._branch(layer, rng, (x, y), sign, angle, rng.uniform(0.15, 0.25), 0.012 * wide, 3)
        return layer * self.patient.markings * np.maximum(self.lungs, 0.12) * (0.17 + 0.06 * self.disease.congestion)

    def _branch(
        self,
        layer: Array,
        rng: np.random.Generator,
        start: tuple[float, float],
        sign: int,
        angle: float,
        length: float,
        width: float,
        levels: int,
    ) -> None:
        bend, path, (x, y) = rng.normal(0, 0.25), [start], start
        for step in range(levels):
            direction = angle + bend * step
            x, y = x + sign * np.cos(direction) * length / levels, y + np.sin(direction) * length / levels
            path.append((x, y))
        self.frame.stroke(layer, path, width, 0.9, width * 0.5)
        if levels > 1:
            for node, turn in ((path[1], rng.uniform(0.2, 0.7)), (path[2], -rng.uniform(0.2, 0.7))):
                self._branch(layer, rng, node, sign, angle + turn, length * 0.65, width * 0.6, levels - 1)

    def rib(self, side: str, number: int, s: Array | float) -> Array | float:
        """Height of the posterior part of a rib at s: 0 at the spine, 1 at the chest wall."""
        start = 0.085 + self.patient.rib_gap * number
        droop = self.patient.rib_slope + 0.012 * number
        return start - 0.03 * np.sin(pi * np.asarray(s)) * (1 + 0.6 / number) + droop * s * s

    def _ribs(self) -> Array:
        """Posterior ribs with dense edges, and fainter, steeper anterior ribs."""
        layer = self.frame.blank()
        for side in SIDES:
            a = self.from_midline(side)
            reach = self.wall(np.maximum(self.depth(side), 0.02)) + 0.012
            s = np.minimum(np.maximum(a / reach, 0), 1)
            body = self.frame.edge(reach - a, 0.004) * (a > 0.012)
            ahead = body * self.frame.edge(a - 0.40 * reach, 0.03)  # where cartilage ends
            for number in RIBS:
                self._posterior_rib(layer, side, number, s, body)
                if 2 <= number <= 8:
                    self._anterior_rib(layer, side, number, s, ahead)
        return layer * (0.115 * self.patient.bone)

    def _posterior_rib(self, layer: Array, side: str, number: int, s: Array, body: Array) -> None:
        course = self.rib(side, number, np.linspace(0, 1, 17))
        rows = self.frame.rows(np.min(course) - 0.06, np.max(course) + 0.06)  # a fracture moves it 0.03 at most
        s = s[rows]
        height = self.rib(side, number, s)
        shade = body[rows] * (1.0 if number < 10 else 0.7)
        for broken_side, broken, place, slip in self.disease.fractures:
            if (broken_side, broken) == (side, number):
                height = height + slip * smoothstep((s - place) / 0.015 + 0.5)
                shade = shade * (1 - np.exp(-(((s - place) / 0.035) ** 2)))
        half = self.patient.rib_width * (0.45 if number < 9 else 0.4) * (1 - 0.25 * s)
        offset = np.abs(self.frame.y[rows] - height) * 0.95  # nearly across the slope
        profile = 0.65 + 0.5 * np.minimum(offset / half, 1) ** 2
        np.maximum(layer[rows], self.frame.edge(half - offset) * profile * shade, out=layer[rows])

    def _anterior_rib(self, layer: Array, side: str, number: int, s: Array, body: Array) -> None:
        end = float(self.rib(side, number, 1.0))
        rows = self.frame.rows(end - 0.03, end + 0.25 + 0.01 * number)
        height = end + 0.22 * (1 - s[rows]) ** 0.75 + 0.01 * number * (1 - s[rows])
        half = self.patient.rib_width * 0.55 * (1 - 0.25 * s[rows])
        cover = self.frame.edge(half - np.abs(self.frame.y[rows] - height) * 0.85, 0.004)
        np.maximum(layer[rows], 0.5 * cover * body[rows], out=layer[rows])

    def clavicle(self, side: str, s: float) -> tuple[float, float]:
        """Point of a clavicle at s: 0 at the sternum, 1 at the shoulder."""
        raised = 0.02 if self.exam.view == "AP" else 0.0
        y = 0.165 - raised - self.patient.clavicle * s - 0.018 * np.sin(2 * pi * s)
        return SIDES[side] * (0.035 + 0.33 * s) + float(self.midline(0.15)), float(y)

    def _clavicles(self) -> Array:
        layer = self.frame.blank()
        for side in SIDES:
            breaks = [(place, slip) for s, rib, place, slip in self.disease.fractures if s == side and rib == 0]
            cuts = [0.0, *(place for place, _ in breaks), 1.0]
            for part, (low, high) in enumerate(pairwise(cuts)):
                slip = breaks[part - 1][1] if part else 0.0
                low, high = low + 0.03 * (part > 0), high - 0.03 * (part < len(breaks))
                points = [self.clavicle(side, s) for s in np.linspace(low, high, 8)]
                self.frame.stroke(layer, [(x, y + 1.6 * slip) for x, y in points], 0.028, 1.0, 0.024)
        return layer * (0.16 * self.patient.bone)

    def _spine(self) -> Array:
        f, p = self.frame, self.patient
        x = f.x - p.scoliosis * np.sin(pi * f.y) - 0.3 * self.exam.rotation
        discs = 0.78 + 0.22 * np.cos(2 * pi * f.y / 0.052)
        column = f.edge(0.045 - np.abs(x), 0.008) * discs
        processes = 0.35 * f.ellipse(0, 0.5, 0.007, 0.6) * (np.cos(2 * pi * f.y / 0.052) > 0.2)
        return np.asarray((column + processes) * (0.085 * p.bone), np.float32)

    def _scapulae(self) -> Array:
        f = self.frame
        inward = 0.05 if self.exam.view == "AP" else 0.0
        layer = f.blank()
        for side, sign in SIDES.items():
            a = self.from_midline(side)
            x = self.patient.width + 0.045 - inward
            blade = (
                f.edge(a - x - 0.10 * np.abs(f.y - 0.30), 0.006) * f.edge(f.y - 0.13, 0.02) * f.edge(0.46 - f.y, 0.02)
            )
            layer = layer + 0.4 * blade
            f.stroke(layer, [(sign * (x + 0.025), 0.13), (sign * x, 0.30), (sign * (x + 0.03), 0.46)], 0.012, 0.7)
            layer = np.maximum(layer, f.ellipse(sign * (x + 0.10), 0.15, 0.055, 0.055, blur=0.01))  # humeral head
        return np.asarray(layer * (0.10 * self.patient.bone), np.float32)

    def _body(self) -> Array:
        """Soft tissue along the beam, 0 outside the body."""
        f, p = self.frame, self.patient
        a = np.abs(f.x)
        neck = 0.09 + 0.03 * p.habitus
        shoulder = (
            0.01 + 0.13 * smoothstep((a - neck) / 0.36) - 0.03 * p.habitus - 0.4 * smoothstep((neck + 0.02 - a) / 0.07)
        )
        flank = 0.47 + 0.06 * p.habitus - a + 0.10 * smoothstep((0.35 - f.y) / 0.2)
        body = f.edge(np.minimum(f.y - shoulder, flank), 0.02)
        thick = 0.80 + 0.12 * p.habitus + 0.10 * (1 - (f.x / 0.5) ** 2) - 0.16 * smoothstep((0.22 - f.y) / 0.25)
        rim = 0.10 * smoothstep((a - p.width + 0.02) / 0.06)
        return body * (thick + rim)

    def _abdomen(self) -> Array:
        f = self.frame
        below = [
            f.edge(f.y - self.diaphragm(self.from_midline(s), s), 0.01) * (self.from_midline(s) >= 0) for s in SIDES
        ]
        belly = below[0] + 0.92 * below[1]
        bubble = f.ellipse(0.17 + 0.02 * self.patient.scoliosis, self.base("left") + 0.075, 0.055, 0.032, 0.2, 0.02)
        return belly * 0.20 - 0.16 * bubble * belly

    def _breasts(self) -> Array:
        f, p, layer = self.frame, self.patient, self.frame.blank()
        if p.breasts > 0:
            for sign in SIDES.values():
                layer = layer + f.ellipse(sign * 0.21, 0.62, 0.15, 0.13 + 0.04 * p.habitus, blur=0.03)
        return layer * (0.10 * p.breasts)

    def _airways(self) -> Array:
        f, layer, x = self.frame, self.frame.blank(), float(self.midline(0.3))
        f.stroke(layer, [(x * 0.5, -0.05), (x + 0.004, 0.2), (x + 0.006, 0.36)], 0.034, 1.0, 0.030)
        f.stroke(layer, [(x + 0.006, 0.36), (x - 0.045, 0.43)], 0.022, 0.8, 0.018)
        f.stroke(layer, [(x + 0.006, 0.36), (x + 0.06, 0.43)], 0.020, 0.7, 0.014)
        return layer * 0.13

    def _devices(self) -> tuple[Array, Array]:
        """Metal and plastic: pacemaker, sternal wires, electrodes with leads, catheter, tubes."""
        f, p, e, m = self.frame, self.patient, self.exam, float(self.midline(0.4))
        metal, plastic = f.blank(), f.blank()
        if p.pacemaker:
            sign = SIDES[p.pacemaker]
            metal = np.maximum(metal, f.ellipse(sign * 0.27, 0.245, 0.042, 0.05, 0.3, 0.004))
            f.stroke(
                metal,
                [
                    (sign * 0.25, 0.2),
                    (sign * 0.14, 0.185),
                    (m - 0.03, 0.24),
                    (m - 0.04, 0.45),
                    (m - 0.01, 0.62),
                    (m + 0.11, 0.68),
                ],
                0.007,
                0.8,
            )
        if p.sternotomy:
            for y in np.arange(0.22, 0.62, 0.075):
                f.stroke(
                    metal,
                    [(m - 0.012, y), (m + 0.004, y - 0.008), (m + 0.014, y + 0.004), (m - 0.01, y + 0.006)],
                    0.005,
                    0.8,
                )
        if e.electrodes:
            for x, y in self.rng.uniform((-0.34, 0.2), (0.34, 0.72), (3, 2)):
                metal = np.maximum(metal, 0.8 * f.ellipse(x, y, 0.014, 0.014))
                f.stroke(plastic, [(x, y), (x * 1.1, y + 0.14), (x * 0.8 + 0.1, 1.05)], 0.006, 0.8)
        if e.catheter:
            sign = SIDES[e.catheter]
            f.stroke(
                plastic, [(sign * 0.13, -0.02), (sign * 0.10, 0.13), (m - 0.025, 0.26), (m - 0.035, 0.42)], 0.009, 0.9
            )
        if e.tube:
            f.stroke(plastic, [(m * 0.5, -0.05), (m + 0.002, 0.15), (m + 0.004, 0.29)], 0.011, 1.0)
            f.stroke(
                plastic, [(m + 0.014, -0.05), (m + 0.016, 0.3), (m + 0.02, 0.6), (0.06, 0.76), (0.13, 0.83)], 0.008, 1.0
            )
        return metal, plastic

    # ------------------------------------------------------------------------------------ the picture

    def develop(self) -> Array:
        """The radiograph (size, size) uint8: attenuation summed, film curve, scatter, grain, marker, collimation."""
        e, f = self.exam, self.frame
        body = self._body()
        inside = np.clip(body * 3, 0, 1)
        tissue = (
            body + 0.13 * self.mediastinum + self._abdomen() + self._breasts() + 0.03 * texture(self.rng, f.size, 5, 2)
        )
        beam = tissue - 0.54 * self.air + self.water - self._airways() + self.bone
        beam = beam * inside + 0.45 * self.metal + 0.11 * self.plastic
        beam = beam + e.exposure * 0.5 + 0.04 * noise(self.rng, f.size, 2)
        film = 1 / (1 + np.exp(-4.6 * e.contrast * (beam - 0.70)))
        grain = noise(self.rng, f.size, f.size) + 0.7 * noise(self.rng, f.size, f.size // 2)
        film = film + grain * e.noise * (0.5 + film)
        film = np.maximum(film, self._marker())
        left, right, top, bottom = (round(c * f.size) for c in e.collimation)
        framed = np.zeros_like(film)
        framed[top : f.size - bottom, left : f.size - right] = film[top : f.size - bottom, left : f.size - right]
        return np.clip(np.rint(framed * 255), 0, 255).astype(np.uint8)

    def _marker(self) -> Array:
        """A lead letter in the corner of its side."""
        layer = self.frame.blank()
        if self.exam.marker:
            side = 0.42 if self.exam.marker == "L" else -0.42
            x, y, h = side, 0.10, 0.045
            for path in LETTERS[self.exam.marker]:
                self.frame.stroke(layer, [(x + h * u, y + h * v) for u, v in path], 0.009, 0.95)
        return layer
