"""Read colour, shape, size and place of every object in a picture, and score the picture against its prompt.

Plain image analysis, nothing learned: foreground by distance from the background, objects by connected components, colour by the
nearest palette entry, shape by overlap with drawn templates of the object's own extent.
"""

import itertools
import math
from dataclasses import dataclass

import grammar
import numpy as np
import render

# Distance from the background in RGB (0..441) from which a pixel is foreground; about half of the palest colour's distance.
FOREGROUND = 60.0
# Components of fewer pixels are specks, not objects; the smallest object has 30.
SMALLEST = 12
# Half sides: small objects have up to 7.5 pixels, large ones 11 and more.
SMALL_BELOW = 9.25


@dataclass(frozen=True)
class Found:
    """One object in a picture; centre of its bounding box and half side in pixels."""

    colour: str
    shape: str
    x: float
    y: float
    half: float

    @property
    def size(self) -> str:
        """The size's word."""
        return "small" if self.half < SMALL_BELOW else "large"

    @property
    def place(self) -> str:
        """The word for the nearest of the nine places."""
        return min(render.ANCHORS, key=lambda place: math.dist(render.ANCHORS[place], (self.x, self.y)))


def detect(picture: np.ndarray) -> list[Found]:
    """Return the objects of a picture, uint8 [64, 64, 3], the largest first.

    Raises:
        ValueError: the picture has another shape or dtype.
    """
    expected = (render.SIDE, render.SIDE, 3)
    if picture.shape != expected or picture.dtype != np.uint8:
        raise ValueError(f"expected a uint8 picture of shape {expected}, got {picture.dtype} {picture.shape}")
    pixels = picture.astype(np.float64)
    distance = np.linalg.norm(pixels - render.BACKGROUND, axis=2)
    found = []
    for inside in _components(distance > FOREGROUND):
        if inside.sum() >= SMALLEST:
            rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
            box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
            found.append((int(inside.sum()), _read(pixels[box], distance[box], inside[box], box)))
    return [item for _, item in sorted(found, key=lambda entry: -entry[0])]


def _components(mask: np.ndarray) -> list[np.ndarray]:
    """Return one mask per 8-connected component: every pixel takes the largest number around it until nothing changes."""
    height, width = mask.shape
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        padded = np.pad(labels, 1)
        around = [padded[y : y + height, x : x + width] for y in range(3) for x in range(3)]
        spread = np.where(mask, np.max(around, axis=0), 0)
        if np.array_equal(spread, labels):
            return [labels == number for number in np.unique(labels[mask])]
        labels = spread


def _read(pixels: np.ndarray, distance: np.ndarray, inside: np.ndarray, box: tuple[slice, slice]) -> Found:
    """Read one object from its bounding box."""
    # The half of the pixels that is farthest from the background lies inside the object, away from blended edges.
    core = inside & (distance >= np.median(distance[inside]))
    colour = np.median(pixels[core], axis=0)
    name = min(render.PALETTE, key=lambda entry: math.dist(render.PALETTE[entry], colour))
    # How much of each pixel the object covers, from how far its colour has moved from the background; its sums along the
    # axes give the extent with less than a pixel of error.
    full = float(np.linalg.norm(colour - render.BACKGROUND))
    cover = np.where(inside, np.clip(distance / full, 0, 1), 0)
    rows, columns = box
    half = max(rows.stop - rows.start, columns.stop - columns.start) / 2
    x, y = (columns.start + columns.stop) / 2, (rows.start + rows.stop) / 2
    shape = max(grammar.SHAPES, key=lambda entry: _overlap(entry, cover))
    return Found(name, shape, x, y, half)


def _overlap(shape: str, cover: np.ndarray) -> float:
    """Return the best intersection over union of ``cover`` with templates of a shape, over small changes of extent and centre."""
    height, width = cover.shape
    best = 0.0
    for shrink, dx, dy in itertools.product((0.0, 0.4, 0.8), (-0.3, 0.0, 0.3), (-0.3, 0.0, 0.3)):
        template = _template(shape, height, width, max(height, width) / 2 - shrink, dx, dy)
        best = max(best, float(np.minimum(template, cover).sum() / np.maximum(template, cover).sum()))
    return best


def _template(shape: str, height: int, width: int, half: float, dx: float, dy: float) -> np.ndarray:
    """Draw a shape into a box of height x width pixels, anti-aliased, values 0..1."""
    fine = 4
    mask = render.coverage(shape, (width / 2 + dx) * fine, (height / 2 + dy) * fine, half * fine, (width * fine, height * fine))
    return np.asarray(mask.reduce(fine), dtype=np.float64) / 255


def attributes(prompt: grammar.Prompt, found: list[Found]) -> dict[str, bool]:
    """Return which attributes that the prompt names are right in the picture, by name.

    Objects beyond those that the prompt names are ignored, the smallest first. Two objects are matched in the order that makes most right.
    """
    if not prompt.relation:
        return _thing_attributes(prompt.things[0], found[0] if found else None, prompt.place)
    pair: list[Found | None] = [*found[:2], None, None][:2]
    return max((_pair_attributes(prompt, first, second) for first, second in (pair, pair[::-1])), key=lambda right: sum(right.values()))


def _pair_attributes(prompt: grammar.Prompt, first: Found | None, second: Found | None) -> dict[str, bool]:
    right = {}
    for which, thing, seen in zip(("first", "second"), prompt.things, (first, second), strict=True):
        right |= {f"{which} {name}": value for name, value in _thing_attributes(thing, seen, None).items()}
    right["relation"] = bool(first and second) and _relation(first, second) == prompt.relation
    return right


def _thing_attributes(thing: grammar.Thing, seen: Found | None, place: str | None) -> dict[str, bool]:
    named = {"colour": thing.colour, "shape": thing.shape, "size": thing.size, "place": place}
    return {name: seen is not None and getattr(seen, name) == value for name, value in named.items() if value}


def _relation(first: Found, second: Found) -> str:
    """Say how the first object lies to the second, along the axis on which they are farther apart."""
    dx, dy = first.x - second.x, first.y - second.y
    if abs(dx) >= abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


def score(prompt: str, picture: np.ndarray) -> float:
    """Return the fraction of the prompt's attributes that a picture, uint8 [64, 64, 3], shows.

    Raises:
        ValueError: the prompt is no sentence of the grammar, or the picture has another shape or dtype.
    """
    right = attributes(grammar.parse(prompt), detect(picture))
    return sum(right.values()) / len(right)
