"""Units: pieces of a graph that are fitted together, as spans of its nodes.

    layer        one site
    half-block   the sites that share "transformer_blocks.3.attn1": one branch of a block
    block        the sites that share the innermost numbered module, "transformer_blocks.3", "down_blocks.0.resnets.1" (BRECQ, Q-Diffusion)

A unit is a run of neighbouring sites with one such name. Its span is what depends on its sites, from the first site to the last, and on to
where the fewest values leave it: of a residual block that is the sum with the shortcut. Everything that the span reads from outside is an
input, also what is computed between its sites without them.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass

import torch
from torch import fx

from dexport.passes.dependence import NOTHING, Kinds, dependence, is_size
from dexport.passes.graph import BATCH, Graph, Kind, dims, is_tensor, value
from dexport.passes.quantization.sites import Site, sites

GRANULARITIES = ("layer", "half-block", "block")
_BLOCK = re.compile(r"(.*(?:blocks|layers|resnets|attentions)\.\d+)(\.[^.]+)?")


@dataclass(frozen=True)
class Span:
    """A unit.

    Attributes:
        name: what its sites share; of a single site its name.
        sites: in graph order, those that stay unquantized included.
        nodes: what is computed, in graph order.
        inputs: tensors with a row per picture that are read from outside; neither weights nor constants.
        outputs: tensors that are read outside.
        reason: why it cannot be fitted; "" if it can.
    """

    name: str
    sites: tuple[Site, ...]
    nodes: tuple[fx.Node, ...]
    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]
    reason: str = ""


def unit_name(site: str, granularity: str) -> str:
    """The name of the unit that a site belongs to.

    Raises:
        ValueError: no such granularity.
    """
    if granularity not in GRANULARITIES:
        raise ValueError(f"'{granularity}' is no unit; there are {', '.join(GRANULARITIES)}")
    match = _BLOCK.match(site)
    if granularity == "layer" or match is None:
        return site
    return match[1] if granularity == "block" else match[1] + (match[2] or "")


def spans(graph: Graph, granularity: str, wanted: Set[str]) -> tuple[Span, ...]:
    """The units that hold a wanted site, in graph order.

    Raises:
        ValueError: no such granularity.
    """
    order = {node: position for position, node in enumerate(graph.module.graph.nodes)}
    by_name = {node.name: node for node in order}
    kinds = dependence(graph)
    found, listed = [], sites(graph)
    heads = {site.node for site in listed}
    for name, run in itertools.groupby(listed, lambda site: unit_name(site.name, granularity)):
        members = tuple(run)
        if any(site.name in wanted for site in members):
            single = members[0].name if len(members) == 1 else name
            found.append(_span(single, members, list(order), [by_name[site.node] for site in members], heads, kinds))
    return tuple(found)


def _span(
    name: str, members: tuple[Site, ...], order: Sequence[fx.Node], own: Sequence[fx.Node], heads: Set[str], kinds: dict[fx.Node, Kinds]
) -> Span:
    first, last = order.index(own[0]), order.index(own[-1])
    best = _depending(own, order[first : last + 1], set())
    if len(own) > 1:
        until = next(i for i in range(last + 1, len(order)) if order[i].name in heads or order[i].op == "output")
        best = _extended(own, best, order[last + 1 : until])
    nodes = tuple(node for node in order if node in best)
    outputs = tuple(sorted(_leaving(best), key=order.index))
    inputs = tuple(sorted(_entering(best, kinds), key=order.index))
    return Span(name, members, nodes, inputs, outputs, _refusal([n for n in inputs + outputs if Kind.LATENT in kinds[n]]))


def _extended(own: Sequence[fx.Node], base: set[fx.Node], behind: Sequence[fx.Node]) -> set[fx.Node]:
    """On to where the fewest values leave, and through pointwise operations that alone read the last one."""
    best = base
    for end in range(1, len(behind) + 1):
        longer = _depending(own, behind[:end], base)
        if len(_leaving(longer)) < len(_leaving(best)):
            best = longer
    while len(leaving := _leaving(best)) == 1:
        users = [user for user in next(iter(leaving)).users if not is_size(user)]
        if len(users) > 1 or users[0] not in behind or torch.Tag.pointwise not in getattr(users[0].target, "tags", ()):
            break
        best = best | {users[0]}
    return best


def _depending(own: Sequence[fx.Node], candidates: Sequence[fx.Node], known: Set[fx.Node]) -> set[fx.Node]:
    """Those of the candidates that depend on the unit's sites, and what is known already; lists are taken with their elements."""
    found = set(known)
    for node in candidates:
        if not is_size(node) and (node in own or any(source in found for source in node.all_input_nodes)):
            found.add(node)
            if not is_tensor(node):
                found.update(node.users)
    return found


def _leaving(nodes: Set[fx.Node]) -> set[fx.Node]:
    return {node for node in nodes if any(user not in nodes and not is_size(user) for user in node.users)}


def _entering(nodes: Set[fx.Node], kinds: dict[fx.Node, Kinds]) -> Iterator[fx.Node]:
    """Outside values that depend on what enters the graph."""
    return (s for s in {s for node in nodes for s in node.all_input_nodes} if s not in nodes and not is_size(s) and kinds[s] != NOTHING)


def _refusal(crossing: Sequence[fx.Node]) -> str:
    """Why the values at the border cannot be held a row per picture."""
    for node in crossing:
        if not is_tensor(node):
            return f"the list {node.name} crosses its border"
        if not has_rows(node):
            return f"{node.name} at its border has no row per picture"
    return ""


def has_rows(node: fx.Node) -> bool:
    """Whether a tensor has a row per picture."""
    return dims(value(node))[:1] == (BATCH,)
