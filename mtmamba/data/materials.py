"""Random materials: colours as interiors have them, and textures that vary enough that a net has to look at shape."""

import colorsys

import numpy as np

from mtmamba.data.geometry import CHECKER, NOISE, PLAIN, PLANKS, SPOTS, STRIPES, Builder, Colour3, Material


def tint(rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]) -> Colour3:
    """A random hue with saturation and value from these ranges, as RGB 0..1."""
    return colorsys.hsv_to_rgb(rng.random(), rng.uniform(*saturation), rng.uniform(*value))


def wood_colour(rng: np.random.Generator) -> Colour3:
    return colorsys.hsv_to_rgb(rng.uniform(0.04, 0.11), rng.uniform(0.25, 0.75), rng.uniform(0.2, 0.85))


def near(rng: np.random.Generator, colour: Colour3, spread: float) -> Colour3:
    """A colour not far from this one."""
    factor = 1 + rng.uniform(-spread, spread)
    red, green, blue = (float(np.clip(channel * factor, 0.02, 0.98)) for channel in colour)
    return red, green, blue


def _material(
    rng: np.random.Generator, colour: Colour3, other: Colour3, pattern: int, scale: float, gloss: float
) -> Material:
    phase = (float(rng.random()), float(rng.random()))
    return Material(colour=colour, other=other, pattern=pattern, scale=scale, phase=phase, gloss=gloss)


def wall_paint(b: Builder) -> int:
    rng = b.rng
    colour = tint(rng, (0.0, 0.45), (0.45, 0.95)) if rng.random() < 0.85 else tint(rng, (0.2, 0.7), (0.25, 0.8))
    pattern = int(rng.choice([PLAIN, NOISE, STRIPES, SPOTS], p=[0.45, 0.35, 0.12, 0.08]))
    return b.add(_material(rng, colour, near(rng, colour, 0.2), pattern, rng.uniform(1, 6), 0.0))


def floor_cover(b: Builder) -> int:
    rng = b.rng
    pattern = int(rng.choice([PLANKS, CHECKER, NOISE, PLAIN], p=[0.45, 0.2, 0.25, 0.1]))
    colour = wood_colour(rng) if pattern == PLANKS and rng.random() < 0.8 else tint(rng, (0.0, 0.5), (0.15, 0.8))
    return b.add(_material(rng, colour, near(rng, colour, 0.35), pattern, rng.uniform(2, 6), rng.uniform(0, 0.4)))


def ceiling_paint(b: Builder) -> int:
    rng = b.rng
    colour = tint(rng, (0.0, 0.15), (0.7, 0.98))
    pattern = PLAIN if rng.random() < 0.7 else CHECKER
    return b.add(_material(rng, colour, near(rng, colour, 0.05), pattern, rng.uniform(1, 3), 0.0))


def surface(b: Builder) -> int:
    """Furniture: wood, paint or anything."""
    rng = b.rng
    kind = rng.random()
    if kind < 0.45:
        colour = wood_colour(rng)
        return b.add(
            _material(rng, colour, near(rng, colour, 0.3), int(rng.choice([PLANKS, NOISE])), rng.uniform(4, 14), 0.15)
        )
    colour = tint(rng, (0.0, 0.25), (0.1, 0.95)) if kind < 0.75 else tint(rng, (0.3, 0.9), (0.2, 0.9))
    return b.add(
        _material(rng, colour, near(rng, colour, 0.15), int(rng.choice([PLAIN, NOISE])), rng.uniform(2, 8), 0.3)
    )


def cloth(b: Builder) -> int:
    """Fabrics: any colour, often with a pattern."""
    rng = b.rng
    colour = tint(rng, (0.05, 0.8), (0.1, 0.95))
    other = tint(rng, (0.05, 0.8), (0.1, 0.95)) if rng.random() < 0.4 else near(rng, colour, 0.25)
    pattern = int(rng.choice([PLAIN, NOISE, STRIPES, CHECKER, SPOTS], p=[0.3, 0.3, 0.18, 0.12, 0.1]))
    return b.add(_material(rng, colour, other, pattern, rng.uniform(4, 16), 0.0))


def print_(b: Builder) -> int:
    """Pictures, book covers, packaging: two unlike colours."""
    rng = b.rng
    pattern = int(rng.choice([NOISE, STRIPES, CHECKER, SPOTS, PLAIN]))
    return b.add(
        _material(
            rng, tint(rng, (0.1, 0.9), (0.1, 1.0)), tint(rng, (0.1, 0.9), (0.1, 1.0)), pattern, rng.uniform(3, 15), 0.1
        )
    )


def metal(b: Builder) -> int:
    colour = tint(b.rng, (0.0, 0.1), (0.05, 0.8))
    return b.add(_material(b.rng, colour, colour, PLAIN, 1.0, 0.7))


def dark_glass(b: Builder) -> int:
    colour = tint(b.rng, (0.0, 0.3), (0.02, 0.12))
    return b.add(_material(b.rng, colour, colour, PLAIN, 1.0, 0.9))


def skin(b: Builder) -> int:
    rng = b.rng
    colour = colorsys.hsv_to_rgb(rng.uniform(0.03, 0.08), rng.uniform(0.3, 0.65), rng.uniform(0.25, 0.95))
    return b.add(_material(rng, colour, near(rng, colour, 0.1), NOISE, 8.0, 0.1))


def hair(b: Builder) -> int:
    rng = b.rng
    colour = colorsys.hsv_to_rgb(rng.uniform(0.02, 0.12), rng.uniform(0.1, 0.7), rng.uniform(0.03, 0.6))
    return b.add(_material(rng, colour, near(rng, colour, 0.3), NOISE, 20.0, 0.2))


def leaves(b: Builder) -> int:
    rng = b.rng
    colour = colorsys.hsv_to_rgb(rng.uniform(0.2, 0.4), rng.uniform(0.4, 0.9), rng.uniform(0.15, 0.6))
    return b.add(_material(rng, colour, near(rng, colour, 0.6), NOISE, 15.0, 0.1))


def glowing(b: Builder, strength: tuple[float, float]) -> int:
    """Window panes and lamp shades."""
    rng = b.rng
    colour = tint(rng, (0.0, 0.3), (0.7, 1.0))
    phase = (float(rng.random()), float(rng.random()))
    other = near(rng, colour, 0.4)
    return b.add(
        Material(colour=colour, other=other, pattern=NOISE, scale=1.0, phase=phase, glow=rng.uniform(*strength))
    )
