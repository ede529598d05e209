"""Device primitives do what the PTX ISA says, emulated and on a GPU; and the emulation finds the mistakes that it says it finds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.plugins.cuda_kernels import KernelLibrary, compiled, emulated

SOURCE = Path(__file__).parent / "primitive_kernels.cu"
LANES = torch.arange(32)


@pytest.fixture(scope="module")
def emulation(tmp_path_factory: pytest.TempPathFactory) -> KernelLibrary:
    return emulated(SOURCE, tmp_path_factory.mktemp("primitives"))


@pytest.fixture(scope="module", params=["emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
def kernels(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> KernelLibrary:
    if request.param == "emulated":
        return request.getfixturevalue("emulation")
    return compiled(SOURCE, tmp_path_factory.mktemp("primitives"))


def _numbers(kind: str, *shape: int) -> torch.Tensor:
    """Random numbers whose products are exact in the sums of `kind`."""
    generator = torch.Generator().manual_seed(len(kind) + shape[0])
    if kind.startswith("s"):
        most = 2 ** (int(kind[1:]) - 1)
        return torch.randint(-most, most, shape, generator=generator)
    return torch.randint(-64, 65, shape, generator=generator) / 16


def _registers(elements: torch.Tensor, kind: str) -> torch.Tensor:
    """Registers of 32 bits from elements [..., n], the first element in the lowest bits."""
    if kind == "s4":
        codes = (elements & 15) << (4 * torch.arange(8))
        return torch.where(codes.sum(-1) >= 2**31, codes.sum(-1) - 2**32, codes.sum(-1)).to(torch.int32)
    dtype = {"f16": torch.float16, "bf16": torch.bfloat16, "s8": torch.int8}[kind]
    return elements.to(dtype).contiguous().view(torch.int32).squeeze(-1)


@pytest.mark.parametrize(("kind", "inner"), [("f16", 16), ("bf16", 16), ("s8", 32), ("s4", 64)])
def test_mma_multiplies_fragments_as_documented(kernels: KernelLibrary, kind: str, inner: int) -> None:
    """The layouts here are written down from the tables of the PTX ISA, element by element, not from the emulation's formula."""
    a, b, c = _numbers(kind, 16, inner), _numbers(kind, inner, 8), _numbers("s8", 16, 8)
    per = inner // 8
    group, lane = LANES // 4, LANES % 4
    i = torch.arange(4 * per)
    # "row = groupID for 0 <= i < per || 2 per <= i < 3 per, else groupID + 8; col = threadID * per + i % per, + 4 per for i >= 2 per".
    rows = group[:, None] + 8 * ((i // per) % 2 == 1)
    columns = lane[:, None] * per + i % per + 4 * per * (i >= 2 * per)
    fragments_a = _registers(a[rows, columns].unflatten(1, (4, per)), kind)
    i = torch.arange(2 * per)
    fragments_b = _registers(b[lane[:, None] * per + i % per + 4 * per * (i >= per), group[:, None]].unflatten(1, (2, per)), kind)
    i = torch.arange(4)
    where = (group[:, None] + 8 * (i >= 2), lane[:, None] * 2 + i % 2)
    sums = c[where].to(torch.int32 if kind.startswith("s") else torch.float32).to(kernels.device)
    kernels.run(f"multiply_{kind}", fragments_a.to(kernels.device), fragments_b.to(kernels.device), sums)
    assert torch.equal(sums.cpu().double(), (a.double() @ b.double() + c)[where])


@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix_gives_lanes_the_documented_elements(kernels: KernelLibrary, transposed: bool) -> None:
    """Lane i holds of every matrix elements 2 (i % 4) and the next one of row i / 4; of the transposed matrix with .trans."""
    values = torch.arange(4 * 64, dtype=torch.int16).reshape(4, 8, 8)
    found = torch.zeros(32, 4, 2, dtype=torch.int16, device=kernels.device)
    kernels.run(f"load_x4{'_trans' if transposed else ''}", values.to(kernels.device), found)
    seen = values.transpose(1, 2) if transposed else values
    assert torch.equal(found.cpu(), seen.reshape(4, 32, 2).transpose(0, 1))


@pytest.mark.parametrize("valid", [0, 2, 7, 16])
def test_copies_fill_with_zeros(kernels: KernelLibrary, valid: int) -> None:
    values = torch.arange(1, 513, dtype=torch.int16).view(torch.uint8)[:512].reshape(32, 16) | 1
    found = torch.full((32, 16), 9, dtype=torch.uint8, device=kernels.device)
    kernels.run("copy_bytes", values.to(kernels.device), found, valid)
    assert torch.equal(found.cpu(), torch.where(torch.arange(16) < valid, values, 0))


@pytest.mark.parametrize(("kind", "dtype"), [("f16", torch.float16), ("bf16", torch.bfloat16)])
def test_numbers_are_rounded_as_pytorch_rounds(kernels: KernelLibrary, kind: str, dtype: torch.dtype) -> None:
    every = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16).view(dtype).float()
    every = every[every.isfinite()]
    # Numbers of the format, those half-way to the next, those a little beside, and what is too large or too small.
    between = every * (1 + 2**-9 if dtype is torch.bfloat16 else 1 + 2**-12)
    edges = torch.tensor([65504.0, 65519.9, 65520.0, 1e-8, 3e-8, torch.inf])
    some = torch.cat([every[::31], between[::11], between[::13] * (1 + 2**-20), edges])
    given = torch.cat([some, some.new_zeros(-len(some) % 64)])
    found = torch.zeros(len(given) // 2, 4, device=kernels.device)
    kernels.run(f"convert_{kind}", given.to(kernels.device), found, len(given) // 64)
    assert torch.equal(found[:, :2].cpu().flatten(), given.to(dtype).float())
    wanted = torch.exp2(given[::2])
    normal = wanted >= torch.finfo(torch.float32).tiny
    torch.testing.assert_close(found[:, 2].cpu()[normal], wanted[normal], rtol=3e-7, atol=0)
    assert torch.equal(found[:, 3].cpu(), torch.arange(len(found)).reshape(-1, 32).sum(1).repeat_interleave(32).float())


def _pass_on(emulation: KernelLibrary, mistake: int) -> tuple[int, bool]:
    """The launcher's code, and whether the result is right."""
    values, found = torch.arange(96 * 4.0).reshape(96, 4), torch.zeros(96)
    code = emulation.call("pass_values_on", values, found, mistake)
    return code, torch.equal(found, values[:, 0].roll(-32))


def test_a_right_kernel_is_right_in_every_order(emulation: KernelLibrary) -> None:
    for seed in range(5):
        emulation.seed(seed)
        assert _pass_on(emulation, 0) == (0, True)


@pytest.mark.parametrize(("mistake", "name"), [(1, "no barrier"), (3, "no wait"), (7, "reads what nobody wrote")])
def test_finds_wrong_results(emulation: KernelLibrary, mistake: int, name: str) -> None:
    for seed in range(3):
        emulation.seed(seed)
        assert _pass_on(emulation, mistake)[1] is False, name


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (2, "a thread waits for ever at sync_block"),
        (4, "a thread wrote outside of shared memory"),
        (5, "threads that meet are at s"),
        (6, "not aligned to 16 bytes"),
    ],
)
def test_says_what_a_kernel_does_wrong(emulation: KernelLibrary, mistake: int, message: str) -> None:
    emulation.seed(mistake)
    assert _pass_on(emulation, mistake)[0] == 719
    assert message in emulation.error()


def test_has_the_shared_memory_of_the_smallest_gpu(emulation: KernelLibrary) -> None:
    values, found = torch.zeros(96, 4), torch.zeros(96)
    assert emulation.call("take_memory", values, found, 99 * 1024) == 0
    assert emulation.call("take_memory", values, found, 99 * 1024 + 16) == 1
    assert "no GPU starts a kernel of this size" in emulation.error()
