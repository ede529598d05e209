"""Rotation of channels by a random-sign Hadamard matrix, for any size that has a constructible one.

    x' = x R    W' = W R    R = diag(signs) H / sqrt(n)    so that x' W'^T = x W^T

H is the Kronecker product of a small Hadamard matrix of order o and Sylvester's of order 2^k, n = o * 2^k, so that the product costs
n * (o + 2^k) multiplications per row instead of n^2: two small matrix products around a reshape. Small orders come from Paley's two
constructions (Paley, "On orthogonal matrices", 1933): q + 1 for primes q = 3 mod 4, and 2 (q + 1) for primes q = 1 mod 4.

The signs stand before H. After it they would flip whole outputs, which changes nothing for a symmetric grid; before it they keep channels
that agree from adding up in the first output. (ViDiT-Q, arXiv 2406.02540, writes them after.)

Notation: n channels, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import fx

from dexport.passes.graph import call_node, value

aten = torch.ops.aten
LARGEST = 256
"""Largest order of the small matrix: a larger one would cost more than the linear that it prepares."""


@cache
def _small(order: int) -> torch.Tensor | None:
    """A Hadamard matrix of an order that is 1 or a Paley order, float32 [o, o]; None for other orders."""
    if order == 1:
        return torch.ones(1, 1)
    if _is_prime(order - 1) and order % 4 == 0:
        return _paley_first(order - 1)
    q = order // 2 - 1
    return _paley_second(q) if order % 4 == 0 and q % 4 == 1 and _is_prime(q) else None


def hadamard_factors(n: int) -> tuple[torch.Tensor, int]:
    """The smallest o with n = o * 2^k for which a Hadamard matrix is known.

    Returns:
        The matrix, +-1, float32 [o, o], and k.

    Raises:
        ValueError: there is none with o up to `LARGEST`.
    """
    if n < 1:
        raise ValueError(f"{n} channels cannot be rotated")
    k = (n & -n).bit_length() - 1
    for power in range(k, -1, -1):
        order = n >> power
        if order > LARGEST:
            break
        if (small := _small(order)) is not None:
            return small, power
    raise ValueError(
        f"no Hadamard matrix is known for {n} channels: {n} = {n >> k} * 2^{k}, and no o up to {LARGEST} of Paley's orders fits"
    )


def random_signs(n: int, seed: int) -> torch.Tensor:
    """+-1, float32 [n], the same for the same seed."""
    bits = torch.randint(0, 2, (n,), generator=torch.Generator().manual_seed(seed))
    return (bits * 2 - 1).float()


def rotation_factors(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """H / sqrt(n) as two orthogonal matrices, float32 [o, o] and [2^k, 2^k]: their Kronecker product.

    Raises:
        ValueError: see `hadamard_factors`.
    """
    small, k = hadamard_factors(n)
    return small / small.shape[0] ** 0.5, _sylvester(k) / 2 ** (k / 2)


def rotate(x: torch.Tensor, signs: torch.Tensor) -> torch.Tensor:
    """x R, shape and dtype of x, [..., n]; computed in float32.

    Raises:
        ValueError: see `hadamard_factors`.
    """
    small, large = (factor.to(x.device) for factor in rotation_factors(x.shape[-1]))
    spread = torch.unflatten(x.float() * signs.to(x.device), -1, (small.shape[0], large.shape[0]))
    # (a (x) b) as a product: the small matrix acts on the slow axis, the large one on the fast axis.
    turned: torch.Tensor = small.T @ (spread @ large)
    return turned.flatten(-2).to(x.dtype)


def rotated_weight(weight: torch.Tensor, signs: torch.Tensor) -> torch.Tensor:
    """W R of a linear's weight [O, n]: its product with rotated activations is that of the originals.

    Raises:
        ValueError: the weight has a kernel, or see `hadamard_factors`.
    """
    if weight.dim() != 2:
        raise ValueError(f"only linears are rotated, not a weight {tuple(weight.shape)}")
    return rotate(weight, signs)


def rotation_nodes(nodes: fx.Graph, x: fx.Node, signs: torch.Tensor, constant: Callable[[str, torch.Tensor], fx.Node]) -> fx.Node:
    """`rotate` as plain operations of a graph, written at the graph's insertion point.

    Args:
        nodes: the graph.
        x: [..., n].
        signs: [n].
        constant: makes the node of a small constant, of a name, in the dtype of x.

    Raises:
        ValueError: see `hadamard_factors`.
    """
    *rows, n = value(x).shape
    rows = [-1, *rows[1:]] if rows else []  # the batch may have no fixed size
    small, large = rotation_factors(n)
    result = call_node(nodes, aten.mul.Tensor, x, constant("signs", signs))
    if small.shape[0] == 1:
        return call_node(nodes, aten.matmul.default, result, constant("hadamard_large", large))
    result = call_node(nodes, aten.reshape.default, result, [*rows, small.shape[0], large.shape[0]])
    if large.shape[0] > 1:
        result = call_node(nodes, aten.matmul.default, result, constant("hadamard_large", large))
    result = call_node(nodes, aten.matmul.default, constant("hadamard_small", small.T.contiguous()), result)
    return call_node(nodes, aten.reshape.default, result, [*rows, n])


def _sylvester(k: int) -> torch.Tensor:
    """[2^k, 2^k] of +-1; symmetric."""
    matrix = torch.ones(1, 1)
    for _ in range(k):
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), matrix)
    return matrix


def _paley_first(q: int) -> torch.Tensor:
    """I + S of order q + 1 for a prime q = 3 mod 4, S skew-symmetric with S S^T = q I."""
    matrix = torch.eye(q + 1)
    matrix[0, 1:] = 1
    matrix[1:, 0] = -1
    matrix[1:, 1:] += _jacobsthal(q)
    return matrix


def _paley_second(q: int) -> torch.Tensor:
    """C (x) [[1, 1], [1, -1]] + I (x) [[1, -1], [-1, -1]] of order 2 (q + 1) for a prime q = 1 mod 4, C symmetric with C C^T = q I."""
    conference = torch.zeros(q + 1, q + 1)
    conference[0, 1:] = conference[1:, 0] = 1
    conference[1:, 1:] = _jacobsthal(q)
    on = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    diagonal = torch.tensor([[1.0, -1.0], [-1.0, -1.0]])
    return torch.kron(conference, on) + torch.kron(torch.eye(q + 1), diagonal)


def _jacobsthal(q: int) -> torch.Tensor:
    """[q, q] of the Legendre symbols of i - j: 1 for squares mod q, -1 for others, 0 on the diagonal."""
    symbol = -torch.ones(q)
    symbol[torch.arange(1, q).square() % q] = 1
    symbol[0] = 0
    index = torch.arange(q)
    return symbol[(index[:, None] - index[None, :]) % q]


def _is_prime(q: int) -> bool:
    return q > 1 and all(q % divisor for divisor in range(2, int(q**0.5) + 1))
