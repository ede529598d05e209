"""Draw what a prompt says: 64x64 anti-aliased shapes on a plain background."""

import random
from dataclasses import dataclass

import numpy as np
from grammar import PLACES, SIZES, Prompt
from PIL import Image, ImageDraw

SIDE = 64
BACKGROUND = (236, 236, 236)
PALETTE = {
    "red": (214, 36, 36),
    "green": (36, 160, 64),
    "blue": (40, 76, 214),
    "yellow": (244, 212, 44),
    "purple": (140, 44, 168),
    "orange": (244, 128, 28),
    "cyan": (44, 192, 212),
    "black": (28, 28, 28),
}
HALF_SIDES = {"small": (6.0, 7.5), "large": (11.0, 13.0)}
ANCHORS = {place: (16 + 16 * (i % 3), 16 + 16 * (i // 3)) for i, place in enumerate(PLACES)}
JITTER = 2.5
_SUPERSAMPLING = 4


@dataclass(frozen=True)
class Figure:
    """One shape in a picture; centre and half side in pixels, colour in RGB."""

    shape: str
    colour: tuple[int, int, int]
    x: float
    y: float
    half: float


def arrange(prompt: Prompt, rng: random.Random) -> tuple[list[Figure], str | None]:
    """Choose what the prompt leaves open. Returns the figures and, for one object, the place that it got."""
    place = None
    if prompt.relation:
        # The two centres lie on the columns (rows) 16 and 48; across, each wanders on its own.
        ends = (16, 48) if prompt.relation in ("left of", "above") else (48, 16)
        along = [(end, 32 + rng.uniform(-9, 9)) for end in ends]
        centres = along if prompt.relation in ("left of", "right of") else [(y, x) for x, y in along]
    else:
        place = prompt.place or rng.choice(PLACES)
        centres = [ANCHORS[place]]
    figures = []
    for thing, (x, y) in zip(prompt.things, centres, strict=True):
        half = rng.uniform(*HALF_SIDES[thing.size or rng.choice(SIZES)])
        figures.append(Figure(thing.shape, PALETTE[thing.colour], x + rng.uniform(-JITTER, JITTER), y + rng.uniform(-JITTER, JITTER), half))
    return figures, place


def draw(figures: list[Figure]) -> np.ndarray:
    """Draw figures, the first at the back. Returns a picture, uint8, [64, 64, 3]."""
    canvas = Image.new("RGB", (SIDE * _SUPERSAMPLING,) * 2, BACKGROUND)
    for figure in figures:
        mask = coverage(figure.shape, figure.x * _SUPERSAMPLING, figure.y * _SUPERSAMPLING, figure.half * _SUPERSAMPLING, canvas.size)
        canvas.paste(figure.colour, mask=mask)
    return np.asarray(canvas.reduce(_SUPERSAMPLING))


def coverage(shape: str, x: float, y: float, half: float, size: tuple[int, int]) -> Image.Image:
    """Return a mask of ``size`` (mode L, 0 or 255) with one shape whose centre is (x, y), in pixels of the mask."""
    mask = Image.new("L", size, 0)
    pen = ImageDraw.Draw(mask)
    left, top, right, bottom = x - half, y - half, x + half, y + half
    if shape in ("circle", "ring"):
        pen.ellipse((left, top, right, bottom), fill=255)
    if shape == "ring":
        pen.ellipse((x - half / 2, y - half / 2, x + half / 2, y + half / 2), fill=0)
    if shape == "square":
        pen.rectangle((left, top, right, bottom), fill=255)
    if shape == "triangle":
        pen.polygon([(x, top), (right, bottom), (left, bottom)], fill=255)
    if shape == "diamond":
        pen.polygon([(x, top), (right, y), (x, bottom), (left, y)], fill=255)
    if shape == "cross":
        arm = half * 0.36
        pen.rectangle((x - arm, top, x + arm, bottom), fill=255)
        pen.rectangle((left, y - arm, right, y + arm), fill=255)
    return mask
