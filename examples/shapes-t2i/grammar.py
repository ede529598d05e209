"""The language of the pictures: which prompts exist, what they mean, and which are kept from training.

One object: ``a small red circle at the top left``. Two objects: ``a red circle left of a large blue square``.
A size or a place that the prompt leaves out is free. 28 words in all.
"""

import itertools
import random
import re
from dataclasses import dataclass

SIZES = ("small", "large")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "cyan", "black")
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")
PLACES = ("top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right")
RELATIONS = ("left of", "right of", "above", "below")

# The longest sentence has 10 words; the tokenizer adds an end token. Masked padding changes nothing, so training pads to this
# and a pipeline to whatever its max_sequence_length says.
MOST_TOKENS = 12

# Every (colour, shape, place) gives three prompts: small, large and no size. 171 of the 432 are kept from training, 513 prompts.
HELD_OUT_TRIPLES = 171
HELD_OUT_TWO_PERCENT = 10


@dataclass(frozen=True)
class Thing:
    """One object as a prompt names it; ``size`` is None where the prompt does not say."""

    colour: str
    shape: str
    size: str | None = None

    def words(self) -> str:
        """Return the noun phrase with its article."""
        adjectives = f"{self.size} {self.colour}" if self.size else self.colour
        return f"{'an' if adjectives[0] in 'aeiou' else 'a'} {adjectives} {self.shape}"


@dataclass(frozen=True)
class Prompt:
    """One thing with an optional place, or two things of different colours with a relation."""

    things: tuple[Thing, ...]
    place: str | None = None
    relation: str | None = None

    def text(self) -> str:
        """Return the sentence."""
        if self.relation:
            return f"{self.things[0].words()} {self.relation} {self.things[1].words()}"
        return self.things[0].words() + (f" at the {self.place}" if self.place else "")


def words() -> tuple[str, ...]:
    """Return every word of the grammar, sorted."""
    groups = (("a", "an", "at", "the"), SIZES, COLOURS, SHAPES, PLACES, RELATIONS)
    return tuple(sorted({word for group in groups for entry in group for word in entry.split()}))


_THING = rf"an? (?:({'|'.join(SIZES)}) )?({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
# "top left" has to be tried before "top".
_PLACE = "|".join(sorted(PLACES, key=len, reverse=True))
_PROMPT = re.compile(rf"{_THING}(?: at the ({_PLACE})| ({'|'.join(RELATIONS)}) {_THING})?")


def parse(text: str) -> Prompt:
    """Read a prompt of the grammar; upper case and extra white space are ignored.

    Raises:
        ValueError: the text is not a sentence of the grammar.
    """
    match = _PROMPT.fullmatch(" ".join(text.lower().split()))
    if match is None:
        raise ValueError(f"not a sentence of the grammar: {text!r}; expected for example 'a small red circle at the top left'")
    size, colour, shape, place, relation, size2, colour2, shape2 = match.groups()
    first = Thing(colour, shape, size)
    return Prompt((first, Thing(colour2, shape2, size2)), None, relation) if relation else Prompt((first,), place)


def held_out_triples() -> frozenset[tuple[str, str, str]]:
    """Return the (colour, shape, place) combinations that no training picture shows alone."""
    triples = list(itertools.product(COLOURS, SHAPES, PLACES))
    random.Random("shapes-t2i one").shuffle(triples)
    return frozenset(triples[:HELD_OUT_TRIPLES])


def is_held_out_pair(first: Thing, relation: str, second: Thing) -> bool:
    """Tell whether this pair in this relation, of whatever sizes, is kept from training."""
    key = f"shapes-t2i two {first.colour} {first.shape} {relation} {second.colour} {second.shape}"
    return random.Random(key).randrange(100) < HELD_OUT_TWO_PERCENT


def one_object_prompts(held_out: bool) -> list[str]:
    """Return every one-object prompt with a place, of the held-out part or of the training part, in a fixed random order."""
    kept = held_out_triples()
    prompts = [
        Prompt((Thing(colour, shape, size),), place).text()
        for colour, shape, place in itertools.product(COLOURS, SHAPES, PLACES)
        if ((colour, shape, place) in kept) == held_out
        for size in (*SIZES, None)
    ]
    random.Random("shapes-t2i order").shuffle(prompts)
    return prompts


def random_pair(rng: random.Random, held_out: bool) -> Prompt:
    """Draw a two-object prompt of the held-out part or of the training part."""
    while True:
        colours = rng.sample(COLOURS, 2)
        first, second = (Thing(colour, rng.choice(SHAPES), rng.choice((*SIZES, None))) for colour in colours)
        relation = rng.choice(RELATIONS)
        if is_held_out_pair(first, relation, second) == held_out:
            return Prompt((first, second), None, relation)


def random_single(rng: random.Random) -> Prompt:
    """Draw a one-object training prompt with a place."""
    kept = held_out_triples()
    while True:
        colour, shape, place = rng.choice(COLOURS), rng.choice(SHAPES), rng.choice(PLACES)
        if (colour, shape, place) not in kept:
            return Prompt((Thing(colour, shape, rng.choice((*SIZES, None))),), place)
