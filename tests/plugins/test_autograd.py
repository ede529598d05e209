"""The gradient of a custom operation is that of its reference."""

from __future__ import annotations

import torch

from dexport.plugins.autograd import differentiate_by_reference


def _reference(x: torch.Tensor, scale: torch.Tensor | None, codes: torch.Tensor, name: str, sizes: list[int]) -> torch.Tensor:
    assert name == "cube" and sizes == [1, 2]
    cubed = x**3 * codes
    return cubed if scale is None else cubed * scale


@torch.library.custom_op("dexport_test::cube", mutates_args=())
def _cube(x: torch.Tensor, scale: torch.Tensor | None, codes: torch.Tensor, name: str, sizes: list[int]) -> torch.Tensor:
    return _reference(x, scale, codes, name, sizes)


differentiate_by_reference("dexport_test::cube", _reference)


def test_every_floating_input_gets_its_gradient() -> None:
    x, scale = (torch.randn(4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    codes = torch.tensor([1, -2, 3, 0], dtype=torch.int8)
    result = _cube(x, scale, codes, "cube", [1, 2])
    result.backward(torch.arange(4.0, dtype=torch.float64))
    assert x.grad is not None and scale.grad is not None
    assert torch.allclose(x.grad, 3 * x.detach() ** 2 * codes * scale.detach() * torch.arange(4.0))
    assert torch.allclose(scale.grad, x.detach() ** 3 * codes * torch.arange(4.0))


def test_only_what_asks_gets_one() -> None:
    x, scale = torch.randn(4, requires_grad=True), torch.randn(4)
    codes = torch.ones(4, dtype=torch.int8)
    _cube(x, scale, codes, "cube", [1, 2]).sum().backward()
    assert x.grad is not None and torch.allclose(x.grad, 3 * x.detach() ** 2 * scale)
    x.grad = None
    _cube(x, None, codes, "cube", [1, 2]).sum().backward()
    assert x.grad is not None and torch.allclose(x.grad, 3 * x.detach() ** 2)


def test_gradients_pass_through_a_chain() -> None:
    x = torch.randn(4, requires_grad=True)
    codes = torch.ones(4, dtype=torch.int8)
    twice = _cube(_cube(x, None, codes, "cube", [1, 2]), None, codes, "cube", [1, 2])
    twice.sum().backward()
    assert x.grad is not None and torch.allclose(x.grad, 9 * x.detach() ** 8, rtol=1e-4)
