"""A person of primitives with the six body parts of `mtmamba.tasks.HUMAN_PARTS`: hands count as lower arms, feet as
lower legs, hair and neck as head."""

from dataclasses import dataclass

import numpy as np

from mtmamba.data import materials as m
from mtmamba.data.geometry import Array, Builder


@dataclass(frozen=True, kw_only=True)
class _Clothes:
    """Material numbers."""

    skin: int
    hair: int
    top: int
    bottom: int
    shoes: int
    sleeve: int  # of the lower arm
    shin: int  # of the lower leg


def _clothes(b: Builder) -> _Clothes:
    rng = b.rng
    skin, top, bottom = m.skin(b), m.cloth(b), m.cloth(b)
    return _Clothes(
        skin=skin, hair=m.hair(b), top=top, bottom=bottom, shoes=m.surface(b),
        sleeve=top if rng.random() < 0.55 else skin, shin=bottom if rng.random() < 0.75 else skin,
    )  # fmt: skip


def _direction(forward: float, out: float, side: float) -> Array:
    """Unit vector of a limb that hangs down, swung forward and out to its side by these angles (radians)."""
    return np.array([side * np.sin(out), np.sin(forward) * np.cos(out), -np.cos(forward) * np.cos(out)])


def person(b: Builder, height: float, seat: float | None = None) -> None:
    """Add a person `height` metres tall at the frame's origin, facing +y, sitting at height `seat` metres or
    standing."""
    rng = b.rng
    b.start("person")
    clothes, s, broad = _clothes(b), height / 1.75, rng.uniform(0.85, 1.25)
    legs = [_leg_angles(rng, seat is not None) for _ in range(2)]
    reach = max(0.44 * np.cos(upper) + 0.42 * np.cos(lower) for upper, lower, _ in legs) * s + 0.07 * s
    hip = reach if seat is None else seat + 0.11 * s
    for side, angles in zip((-1.0, 1.0), legs, strict=True):
        _leg(b, clothes, np.array([side * 0.09 * s * broad, 0.0, hip]), side, angles, s)
    lean = rng.uniform(-0.05, 0.2)
    up = np.array([0.0, np.sin(lean), np.cos(lean)])
    chest = np.array([0.0, 0.0, hip]) + up * 0.3 * s
    width = 0.36 * s * broad
    b.cushion(0.0, 0.0, hip - 0.08 * s, (0.8 * width, 0.22 * s, 0.3 * s), clothes.bottom, "torso")
    b.cushion(0.0, chest[1], hip + 0.08 * s, (width, 0.23 * s, 0.46 * s), clothes.top, "torso")
    neck = np.array([0.0, 0.0, hip]) + up * 0.52 * s
    head = neck + up * 0.17 * s
    b.limb(neck - up * 0.05 * s, neck + up * 0.08 * s, 0.05 * s, clothes.skin, "head")
    b.ball((head[0], head[1], head[2]), (0.078 * s, 0.1 * s, 0.12 * s), clothes.skin, "head")
    b.ball((0.0, head[1] - 0.02 * s, head[2] + 0.03 * s), (0.088 * s, 0.1 * s, 0.11 * s), clothes.hair, "head")
    for side in (-1.0, 1.0):
        shoulder = np.array([side * (width / 2 - 0.01), chest[1], hip + 0.48 * s])
        _arm(b, clothes, shoulder, side, s)


def _leg_angles(rng: np.random.Generator, sitting: bool) -> tuple[float, float, float]:
    """Forward swing of the upper and of the lower leg, and the swing out to the side."""
    if sitting:
        upper = rng.uniform(1.3, 1.55)
        return upper, rng.uniform(-0.2, 0.3), rng.uniform(0.0, 0.25)
    upper = rng.uniform(-0.3, 0.5) if rng.random() < 0.5 else rng.uniform(-0.06, 0.06)
    return upper, upper - rng.uniform(0.0, 0.4), rng.uniform(0.0, 0.12)


def _leg(b: Builder, clothes: _Clothes, hip: Array, side: float, angles: tuple[float, float, float], s: float) -> None:
    upper, lower, out = angles
    knee = hip + _direction(upper, out, side) * 0.44 * s
    ankle = knee + _direction(lower, 0.3 * out, side) * 0.42 * s
    b.limb(hip, knee, 0.078 * s, clothes.bottom, "upper leg")
    b.limb(knee, ankle, 0.055 * s, clothes.shin, "lower leg")
    b.cushion(
        ankle[0], ankle[1] + 0.06 * s, ankle[2] - 0.07 * s, (0.09 * s, 0.25 * s, 0.09 * s), clothes.shoes, "lower leg"
    )


def _arm(b: Builder, clothes: _Clothes, shoulder: Array, side: float, s: float) -> None:
    rng = b.rng
    swing = rng.uniform(-0.4, 0.4) if rng.random() < 0.6 else rng.uniform(0.4, 2.2)
    out = rng.uniform(0.05, 0.5)
    elbow = shoulder + _direction(swing, out, side) * 0.29 * s
    wrist = elbow + _direction(swing + rng.uniform(0.0, 1.8), rng.uniform(-0.4, out), side) * 0.26 * s
    b.ball((shoulder[0], shoulder[1], shoulder[2]), (0.07 * s, 0.07 * s, 0.07 * s), clothes.top, "upper arm")
    b.limb(shoulder, elbow, 0.052 * s, clothes.top, "upper arm")
    b.limb(elbow, wrist, 0.042 * s, clothes.sleeve, "lower arm")
    hand = wrist + (wrist - elbow) * 0.25
    b.ball((hand[0], hand[1], hand[2]), (0.045 * s, 0.05 * s, 0.06 * s), clothes.skin, "lower arm")
