"""How much arithmetic one streaming multiprocessor (SM) does per clock, per class of GPU.

All rates are dense; one multiply-add counts as two operations. A GPU's peak is ``SMs x clock x rate``: peaks are computed from
this table, never copied from a data sheet, because vendors mix dense with sparse figures and fp16 with fp32 accumulation.
"""

import itertools
from dataclasses import dataclass

from dexport.targets.source import Source

_TABLE = Source("rate per clock per SM such that SMs x clock x rate gives the vendor's dense figure", "computed")


@dataclass(frozen=True)
class Rates:
    """Dense operations per clock per SM of one class of GPU; 0 where the hardware has no such instruction.

    Attributes:
        name: the class, as people call it.
        fp32: fused multiply-adds outside the tensor cores.
        fp16: fp16 or bf16 inputs with fp32 accumulation.
        fp16_fast: fp16 inputs with fp16 accumulation.
        fp8: fp8 inputs with fp32 accumulation.
        fp8_fast: fp8 inputs with fp16 accumulation.
        int8: int8 inputs with int32 accumulation.
        int4: int4 inputs on int4 hardware (from SM 9.0 on it is emulated, which counts as 0).
        fp4: block-scaled fp4 inputs (NVFP4, MXFP4).
        source: where the numbers come from.
    """

    name: str
    fp32: int
    fp16: int
    fp16_fast: int
    fp8: int = 0
    fp8_fast: int = 0
    int8: int = 0
    int4: int = 0
    fp4: int = 0
    source: Source = _TABLE

    def __post_init__(self) -> None:
        ordered = (self.fp32, self.fp16, self.fp16_fast, self.int8)
        if any(b < a for a, b in itertools.pairwise(ordered)) or self.fp8_fast < self.fp8:
            raise ValueError(f"Rates {self.name!r}: expected fp32 <= fp16 <= fp16_fast <= int8 and fp8 <= fp8_fast, got {self}")


VOLTA = Rates("Volta integrated (Xavier)", fp32=128, fp16=1024, fp16_fast=1024, int8=2048)
TURING = Rates("Turing GeForce", fp32=128, fp16=512, fp16_fast=1024, int8=2048, int4=4096)
GA100 = Rates("Ampere data centre", fp32=128, fp16=2048, fp16_fast=2048, int8=4096, int4=8192)
AMPERE = Rates("Ampere GeForce", fp32=256, fp16=512, fp16_fast=1024, int8=2048, int4=4096)
AMPERE_PRO = Rates("Ampere workstation", fp32=256, fp16=1024, fp16_fast=1024, int8=2048, int4=4096)
ORIN = Rates("Ampere integrated (Orin)", fp32=256, fp16=2048, fp16_fast=2048, int8=4096, int4=8192)
ADA = Rates("Ada GeForce", fp32=256, fp16=512, fp16_fast=1024, fp8=1024, fp8_fast=2048, int8=2048, int4=4096)
ADA_PRO = Rates("Ada workstation", fp32=256, fp16=1024, fp16_fast=1024, fp8=2048, fp8_fast=2048, int8=2048, int4=4096)
HOPPER = Rates("Hopper", fp32=256, fp16=4096, fp16_fast=4096, fp8=8192, fp8_fast=8192, int8=8192)
GB100 = Rates("Blackwell data centre", fp32=256, fp16=8192, fp16_fast=8192, fp8=16384, fp8_fast=16384, int8=16384, fp4=32768)
THOR = Rates("Blackwell integrated (Thor)", fp32=256, fp16=8192, fp16_fast=8192, fp8=16384, fp8_fast=16384, int8=16384, fp4=32768)
BLACKWELL = Rates("Blackwell GeForce", fp32=256, fp16=512, fp16_fast=1024, fp8=1024, fp8_fast=2048, int8=2048, fp4=4096)
BLACKWELL_PRO = Rates("Blackwell workstation", fp32=256, fp16=1024, fp16_fast=1024, fp8=2048, fp8_fast=2048, int8=2048, fp4=4096)
