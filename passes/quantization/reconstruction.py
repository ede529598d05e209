"""Reconstruction: rounding and scales of a unit are fitted so that it does what the unquantized unit did.

A unit is whatever is fitted together: a layer, a transformer block (BRECQ, arXiv 2102.05426), or everything that makes temporal features
(TFMQ-DM, arXiv 2311.16503). It is a function; this module knows nothing about graphs.

    loss = (|Y - Y'|^2 + inner * sum over layers |Y_l - Y_l'|^2) / (the same at the start) + rounding_weight * 1e6 * mean(1 - |2h - 1|^beta)

The first term is relative, unlike the published ones, so that one `rounding_weight` serves outputs of any size: activations of transformers
differ by factors of thousands between blocks. The factor 1e6 makes the published weight, 0.01, a good one (measured: linears of 256 inputs,
INT4 and E2M1; the result changes little between 1e5 and 1e7, below 1e4 a tenth or more of the weights stays undecided). `inner` is EDA-DM's
fine-grained reconstruction (arXiv 2401.04585), `drop` is QDrop (arXiv 2203.05740): each number of an activation stays real with that
probability while fitting.

For the first fifth of the iterations rounding is free; then beta falls from 20 to 2. Activation scales are learned as scale * exp(u): the
gradient is LSQ's (arXiv 1902.08153), scales stay positive, and one learning rate serves all of them.

What was fitted is compared with the start on all samples, rounding hard and nothing dropped; if it is not better, the start is returned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch.nn import functional

from dexport.passes.quantization.adaround import SoftRounding, soft_rounding, undecided
from dexport.passes.quantization.recipe import ReconstructionSpec
from dexport.passes.quantization.weights import QuantizedWeight, WeightGrid, dequantize, encode

_WARM_UP = 0.2
_BETA = (20.0, 2.0)
_PRESSURE = 1e6
"""On the regulariser; see the module."""


@dataclass(frozen=True)
class Trial:
    """What a unit computes with.

    Attributes:
        weights: layer -> real weight, float32.
        scales: name -> activation scale.
        mixed: (exact, rounded) -> what goes on: every rounded activation is passed through it, so that QDrop can keep some exact.
    """

    weights: Mapping[str, torch.Tensor]
    scales: Mapping[str, torch.Tensor]
    mixed: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Outputs:
    """What a unit computes: its output [S, ...] and, where wanted, the outputs of layers inside it, [S, ...]."""

    output: torch.Tensor
    inner: Mapping[str, torch.Tensor] = field(default_factory=dict)


Unit = Callable[[Mapping[str, torch.Tensor], Trial], Outputs]
"""(a batch of inputs, weights and scales) -> outputs, differentiable in both."""


@dataclass(frozen=True)
class Reconstructed:
    """What was fitted.

    Attributes:
        weights: layer -> codes.
        scales: activation scales.
        before, after: mean squared error of the unit's output at the start and with these.
        improved: False if fitting was worse than the start, which this then is.
    """

    weights: Mapping[str, QuantizedWeight]
    scales: Mapping[str, torch.Tensor]
    before: float
    after: float
    improved: bool


@dataclass(frozen=True)
class Fit:
    """What to fit.

    Attributes:
        unit: the function.
        weights: layer -> real weight and the grid it is rounded to.
        scales: name -> activation scale; learned if the spec says so.
        inputs: name -> [S, ...]; what the quantized model feeds the unit.
        targets: what the unquantized unit made of the unquantized model's inputs, [S, ...].
    """

    unit: Unit
    weights: Mapping[str, tuple[torch.Tensor, WeightGrid]]
    inputs: Mapping[str, torch.Tensor]
    targets: Outputs
    scales: Mapping[str, torch.Tensor] = field(default_factory=dict)
    scale_rate: float = 1e-3
    """Learning rate of the scales' exponents."""


@dataclass(frozen=True)
class _Parameters:
    """What is learned: V of every weight, u of every scale."""

    rounding: Mapping[str, SoftRounding]
    v: Mapping[str, torch.Tensor]
    u: Mapping[str, torch.Tensor]

    def trial(self, fit: Fit, mixed: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Trial:
        weights = {name: soft.weight(self.v[name]) for name, soft in self.rounding.items()}
        return Trial(weights, {name: scale * self.u[name].exp() if name in self.u else scale for name, scale in fit.scales.items()}, mixed)

    def undecided(self, beta: float) -> torch.Tensor:
        total = sum((undecided(soft.up(self.v[name]), beta) for name, soft in self.rounding.items()), torch.zeros(()))
        return total / sum(v.numel() for v in self.v.values())


def reconstruct(fit: Fit, spec: ReconstructionSpec, generator: torch.Generator) -> Reconstructed:
    """Fits a unit. Same inputs and a generator in the same state give the same result.

    Args:
        fit: what to fit.
        spec: iterations, batch, learning rate and so on; `unit` is the caller's business.
        generator: on the CPU; draws batches and dropped numbers.

    Raises:
        ValueError: nothing to fit, no samples, or inputs and targets of different length.
    """
    samples = _samples(fit)
    start = {name: encode(weight, grid) for name, (weight, grid) in fit.weights.items()}
    before, base = _error(fit, start, fit.scales, spec)
    if base == 0:
        return Reconstructed(start, fit.scales, before, before, False)
    rounding = {name: soft_rounding(weight, grid, spec.scale_aware) for name, (weight, grid) in fit.weights.items()}
    learned = fit.scales if spec.activations else {}
    parameters = _Parameters(
        rounding,
        {name: soft.start.clone().requires_grad_() for name, soft in rounding.items()},
        {name: torch.zeros_like(scale).requires_grad_() for name, scale in learned.items()},
    )
    _descend(fit, spec, parameters, base, samples, generator)
    with torch.no_grad():
        weights = {name: soft.hard(parameters.v[name]) for name, soft in rounding.items()}
        scales = {name: scale * parameters.u[name].exp() if name in parameters.u else scale for name, scale in fit.scales.items()}
    after, _ = _error(fit, weights, scales, spec)
    if not after < before:
        return Reconstructed(start, fit.scales, before, before, False)
    return Reconstructed(weights, scales, before, after, True)


def reconstruct_linear(
    weight: torch.Tensor,
    grid: WeightGrid,
    rows: torch.Tensor,
    spec: ReconstructionSpec,
    generator: torch.Generator,
    activations: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> Reconstructed:
    """AdaRound of one linear, its only weight being called "weight".

    Args:
        weight: [O, I].
        rows: what enters it, [R, I].
        activations: how the quantized product sees rows; None: as they are.
    """

    def unit(inputs: Mapping[str, torch.Tensor], trial: Trial) -> Outputs:
        x = inputs["rows"]
        seen = x if activations is None else trial.mixed(x, activations(x))
        return Outputs(functional.linear(seen, trial.weights["weight"]))

    targets = Outputs(functional.linear(rows.float(), weight.float()))
    return reconstruct(Fit(unit, {"weight": (weight, grid)}, {"rows": rows.float()}, targets), spec, generator)


def _samples(fit: Fit) -> int:
    count = fit.targets.output.shape[0]
    lengths = {t.shape[0] for t in (*fit.inputs.values(), *fit.targets.inner.values())}
    if not fit.weights:
        raise ValueError("a unit without weights has nothing to fit")
    if not count or lengths != {count}:
        raise ValueError(f"expected as many inputs as targets, at least one; got {sorted(lengths)} and {count}")
    return count


def _descend(fit: Fit, spec: ReconstructionSpec, parameters: _Parameters, base: float, samples: int, generator: torch.Generator) -> None:
    """Changes `parameters` in place."""
    groups = [{"params": list(parameters.v.values()), "lr": spec.learning_rate}]
    if parameters.u:
        groups.append({"params": list(parameters.u.values()), "lr": fit.scale_rate})
    optimizer = torch.optim.Adam(groups)
    device = fit.targets.output.device

    def mixed(exact: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
        if not spec.drop:
            return rounded
        return torch.where((torch.rand(exact.shape, generator=generator) < spec.drop).to(device), exact, rounded)

    for iteration in range(spec.iterations):
        index = torch.randint(samples, (min(spec.batch, samples),), generator=generator).to(device)
        loss = _loss(fit, index, parameters.trial(fit, mixed), spec.inner)[1] / base
        if (beta := _beta(iteration, spec.iterations)) is not None:
            loss = loss + spec.rounding_weight * _PRESSURE * parameters.undecided(beta)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def _beta(iteration: int, iterations: int) -> float | None:
    """None while rounding is free."""
    part = (iteration / iterations - _WARM_UP) / (1 - _WARM_UP)
    return None if part < 0 else _BETA[0] + (_BETA[1] - _BETA[0]) * part


def _loss(fit: Fit, index: torch.Tensor, trial: Trial, inner: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean squared error of the unit's output, and with those of its layers, [] and []."""
    found = fit.unit({name: tensor[index] for name, tensor in fit.inputs.items()}, trial)
    own = (found.output - fit.targets.output[index]).square().mean()
    if not inner:
        return own, own
    layers = [(found.inner[name] - target[index]).square().mean() for name, target in fit.targets.inner.items()]
    return own, own + inner * sum(layers, torch.zeros_like(own))


@torch.no_grad()
def _error(
    fit: Fit, weights: Mapping[str, QuantizedWeight], scales: Mapping[str, torch.Tensor], spec: ReconstructionSpec
) -> tuple[float, float]:
    """`_loss` over all samples with hard rounding and nothing dropped."""
    trial = Trial({name: dequantize(weight) for name, weight in weights.items()}, scales, lambda exact, rounded: rounded)
    count, own, whole = fit.targets.output.shape[0], 0.0, 0.0
    for index in torch.split(torch.arange(count, device=fit.targets.output.device), spec.batch):
        one, both = _loss(fit, index, trial, spec.inner)
        own += float(one) * len(index) / count
        whole += float(both) * len(index) / count
    return own, whole
