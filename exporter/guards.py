"""Guards of `build`: no bundle with NaN, black or flat pictures, or quality below what was asked for, is made in silence.

What is found is named: the component, the step, the first tensor that went bad, and the layer it belongs to.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from dexport.errors import Failure, UserError
from dexport.exporter.quality import Quality
from dexport.exporter.torch_pipeline import Run, TorchPipeline
from dexport.passes.quantization.sites import kind_of, site_name

Array = npt.NDArray[Any]

FLAT_LEVELS = 1.0
"""Standard deviation, in levels of 255, below which a picture shows nothing."""
_FLAT_LATENT = 1e-6
_WIDER = "keep that layer in higher precision (--skip), or build with a wider --precision"


@dataclass(frozen=True)
class BadTensor:
    """The first tensor that went bad.

    Attributes:
        step: iteration of the sampling loop; 0 outside the loop.
        node: name of the node in the component's graph that gave it.
        site: the nearest layer with a weight, at the node or before it; None if there is none.
        nan, infinite, size: numbers that are NaN, that are infinite, and all.
    """

    component: str
    step: int
    node: str
    site: str | None
    nan: int
    infinite: int
    size: int


class BadOutput(Failure):
    """A run that made nothing of use; `bad` names the tensor where that can be told."""

    def __init__(self, where: str, *, expected: str, got: str, fix: str, bad: BadTensor | None = None) -> None:
        super().__init__(where, expected=expected, got=got, fix=fix)
        self.bad = bad


def checked_run(
    pipeline: TorchPipeline,
    conditions: Sequence[str] | Sequence[int],
    seeds: Sequence[int],
    *,
    guidance: float | None = None,
    reference: Run | None = None,
) -> Run:
    """Runs a pipeline and refuses what is of no use.

    Args:
        reference: the same run of the unquantized pipeline, which may legally be flat.

    Raises:
        BadOutput: NaN or infinities, named; latents or pictures without content.
    """
    try:
        run = pipeline.run(conditions, seeds, guidance=guidance, watch=_Search().watch)
    except _Found as found:
        raise _bad_numbers(found.bad) from None
    try:
        check_output(run, reference)
    except BadOutput as flat:
        bad = find_bad(pipeline, conditions, seeds, guidance=guidance, anywhere=True)
        if bad is None:
            raise
        raise _bad_numbers(bad, f", and {flat.got}") from flat
    return run


def find_bad(
    pipeline: TorchPipeline,
    conditions: Sequence[str] | Sequence[int],
    seeds: Sequence[int],
    *,
    guidance: float | None = None,
    anywhere: bool = False,
) -> BadTensor | None:
    """The first bad tensor of a run, None if there is none.

    Args:
        anywhere: the first tensor with NaN or +inf, whatever becomes of it. Else only what reaches the output of its component
            counts: infinities inside may be clamped, and masks of attention are infinite on purpose.
    """
    try:
        pipeline.run(conditions, seeds, guidance=guidance, watch=_Search(anywhere).watch)
    except _Found as found:
        return found.bad
    return None


def check_output(run: Run, reference: Run | None = None) -> None:
    """Refuses latents and pictures without content, unless the reference has none either.

    Raises:
        BadOutput: naming the step, or the picture and its colour.
    """
    flat = np.std(run.latents.astype(np.float64), axis=tuple(range(2, run.latents.ndim))) < _FLAT_LATENT
    if reference is not None:
        flat &= ~(np.std(reference.latents.astype(np.float64), axis=tuple(range(2, run.latents.ndim))) < _FLAT_LATENT)
    if flat.any():
        step, picture = (int(index) for index in np.argwhere(flat)[0])
        got = f"one value everywhere in picture {picture}"
        raise BadOutput(f"denoiser, step {step}", expected="latents with content", got=got, fix="keep more layers in higher precision")
    blank = _is_flat(run.pictures)
    if reference is not None:
        blank &= ~_is_flat(reference.pictures)
    if blank.any():
        picture = int(np.argmax(blank))
        colour = run.pictures[picture].reshape(-1, 3).mean(axis=0).round().astype(int).tolist()
        name = "black" if max(colour) <= FLAT_LEVELS else f"flat, about the colour {colour}"
        got = f"picture {picture} is {name} ({int(blank.sum())} of {len(blank)} pictures are like that)"
        raise BadOutput("vae_decoder", expected="pictures with content", got=got, fix="keep more layers in higher precision")


def require_quality(quality: Quality, min_psnr: float | None, min_score: float | None) -> None:
    """Refuses quality below what was asked for; None asks for nothing.

    Args:
        min_psnr: least median PSNR in dB.
        min_score: least mean score of the candidate.

    Raises:
        UserError: a score is asked for and nobody gave a scorer.
        Failure: with the figures.
    """
    if min_psnr is not None and quality.psnr.median < min_psnr:
        got = f"{quality.psnr.median:.2f} dB (a tenth of the pictures are below {quality.psnr.p10:.2f})"
        fix = "choose a recipe with more bits, or lower --min-psnr"
        raise Failure("--min-psnr", expected=f"a median PSNR of at least {min_psnr:g} dB", got=got, fix=fix)
    if min_score is None:
        return
    if quality.score is None:
        raise UserError("--min-score", expected="a scorer", got="none", fix="give --scorer FILE.py:FUNCTION")
    if quality.score.candidate < min_score:
        score = quality.score
        got = f"{score.candidate:.4f} (the unquantized model: {score.reference:.4f}, over {score.pictures} pictures)"
        fix = "choose a recipe with more bits, or lower --min-score"
        raise Failure("--min-score", expected=f"a mean score of at least {min_score:g}", got=got, fix=fix)


def _is_flat(pictures: Array) -> Array:
    """bool [n]: the pixels of a picture, or of all frames of a video, hardly differ in any channel."""
    levels = pictures.reshape(len(pictures), -1, 3).astype(np.float64)
    flat: Array = np.std(levels, axis=1).max(axis=1) < FLAT_LEVELS
    return flat


def _bad_numbers(bad: BadTensor, consequence: str = "") -> BadOutput:
    site = f", layer {bad.site}" if bad.site is not None else ""
    got = f"{bad.nan} NaN and {bad.infinite} infinite of {bad.size}{consequence}"
    return BadOutput(f"{bad.component}, step {bad.step}, node {bad.node}{site}", expected="finite numbers", got=got, fix=_WIDER, bad=bad)


class _Found(Exception):
    """Ends a run where it has been found out; no error."""

    def __init__(self, bad: BadTensor) -> None:
        super().__init__("found")
        self.bad = bad


@dataclass(frozen=True)
class _Seen:
    """Bad numbers in the value of a node; `order` counts the nodes that ran."""

    order: int
    nan: int
    positive: int
    negative: int
    size: int


class _Search:
    """Remembers which nodes hold bad numbers until some reach an output, then walks back to where they began."""

    def __init__(self, anywhere: bool = False) -> None:
        self._anywhere = anywhere
        self._bad: dict[fx.Node, _Seen] = {}
        self._whole: set[fx.Node] = set()  # nodes whose values are integers or truth values
        self._order = 0

    def watch(self, component: str, step: int, node: fx.Node, value: Any) -> None:
        self._order += 1
        tensors = list(_tensors(value))
        (self._whole.discard if any(t.is_floating_point() for t in tensors) else self._whole.add)(node)
        seen = self._look(tensors)
        if seen is None:
            self._bad.pop(node, None)  # it may have been bad in an earlier call
        else:
            self._bad[node] = seen
        origin = None
        if node.op == "output" and (reached := self._behind(node)):
            origin = self._origin(reached)
        elif self._anywhere and seen is not None and seen.nan + seen.positive:
            origin = node
        if origin is not None:
            first = self._bad[origin]
            raise _Found(BadTensor(component, step, origin.name, _site(origin), first.nan, first.positive + first.negative, first.size))

    def _look(self, tensors: Sequence[torch.Tensor]) -> _Seen | None:
        floats = [t if t.dtype.itemsize > 1 else t.float() for t in tensors if t.is_floating_point()]
        if all(bool(torch.isfinite(t).all()) for t in floats):
            return None
        nan, positive, negative = (sum(int(count(t).sum()) for t in floats) for count in (torch.isnan, torch.isposinf, torch.isneginf))
        return _Seen(self._order, nan, positive, negative, sum(t.numel() for t in floats))

    def _behind(self, node: fx.Node) -> list[fx.Node]:
        """The bad nodes that a node reads; those before a cast to integers too, which makes a number of a NaN."""
        found: list[fx.Node] = []
        for given in node.all_input_nodes:
            if given in self._bad:
                found.append(given)
            elif given in self._whole:
                found += self._behind(given)
        return found

    def _origin(self, reached: Sequence[fx.Node]) -> fx.Node:
        """The first of the bad nodes before `reached` whose inputs are good; one with NaN or +inf before one with -inf only.

        A mask holds -inf on purpose: it is named only where nothing else went bad.
        """
        starts, known, stack = [], set(reached), list(reached)
        while stack:
            node = stack.pop()
            behind = [n for n in node.all_input_nodes if n in self._bad]
            if not behind:
                starts.append(node)
            fresh = [n for n in behind if n not in known]
            known.update(fresh)
            stack += fresh
        return min(starts, key=lambda node: (self._bad[node].nan + self._bad[node].positive == 0, self._bad[node].order))


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _site(node: fx.Node) -> str | None:
    """The site of a node, or of the nearest node before it that has one."""
    reached, level = {node}, [node]
    while level:
        for candidate in level:
            if (candidate.op != "get_attr" or candidate is node) and (name := _own_site(candidate)) is not None:
                return name
        level = [n for n in dict.fromkeys(i for c in level for i in c.all_input_nodes) if n not in reached]
        reached.update(level)
    return None


def _own_site(node: fx.Node) -> str | None:
    """The site of a node, or the one that a weight belongs to."""
    if node.op == "get_attr":
        return next((name for user in node.users if (name := _own_site(user)) is not None), site_name(str(node.target)))
    marked = node.meta.get("site")
    if marked is not None:
        return str(marked)
    weight = node.args[1] if kind_of(node) is not None else None
    return site_name(str(weight.target)) if isinstance(weight, fx.Node) and weight.op == "get_attr" else None
