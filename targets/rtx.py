"""GPUs that TensorRT-RTX compiles for (GeForce RTX, RTX workstation, GB10), and data-centre GPUs as references.

TensorRT-RTX builds for any of its compute capabilities on a machine without a GPU; the kernels are finished on the device
when a bundle first runs.
"""

from collections.abc import Mapping
from types import MappingProxyType

from dexport.targets.rates import ADA, ADA_PRO, AMPERE, AMPERE_PRO, BLACKWELL, BLACKWELL_PRO, GA100, GB100, HOPPER, TURING, Rates
from dexport.targets.source import Source
from dexport.targets.target import Target
from dexport.targets.tensorrt import RTX_OPSET

_SHEET = Source("vendor's architecture whitepaper or data sheet", "memory")
_CC = Source("NVIDIA's list of CUDA GPUs", "memory")
_RESERVE = Source("desktop and CUDA context", "memory")
_OPSET = Source("opset 23 operators built with tensorrt_rtx 1.7.1", "measured")
_FROM_PEAK = Source("the clock that reproduces the vendor's dense tensor-core peak", "computed")
_PLAYBOOK = Source("NVIDIA dgx-spark-playbooks, cutile-kernels", "read")


def _gpu(
    device: str,
    name: str,
    sm: int,
    rates: Rates,
    *,
    sm_count: int,
    clock_ghz: float,
    memory_gib: float,
    bandwidth_gb_s: float,
    l2_mib: float,
    power_w: float,
    unified_memory: bool = False,
    sources: Mapping[str, Source] = MappingProxyType({}),
) -> Target:
    given = ("sm_count", "clock_ghz", "memory_gib", "bandwidth_gb_s", "l2_mib", "power_w")
    return Target(
        id=device,
        device=device,
        name=name,
        backend="tensorrt-rtx",
        onnx_opset=RTX_OPSET,
        default_precision="fp16",
        memory_reserve_gib=3.0 if unified_memory else 1.0,
        sm=sm,
        rates=rates,
        sm_count=sm_count,
        clock_ghz=clock_ghz,
        memory_gib=memory_gib,
        unified_memory=unified_memory,
        bandwidth_gb_s=bandwidth_gb_s,
        l2_mib=l2_mib,
        power_w=power_w,
        sources={"sm": _CC, "onnx_opset": _OPSET, "memory_reserve_gib": _RESERVE, **dict.fromkeys(given, _SHEET), **sources},
    )


# Columns: SMs, boost clock, memory, bandwidth, L2, power limit.
# fmt: off
RTX: tuple[Target, ...] = (
    _gpu("rtx-2060", "GeForce RTX 2060", 75, TURING,
         sm_count=30, clock_ghz=1.680, memory_gib=6, bandwidth_gb_s=336, l2_mib=3, power_w=160),
    _gpu("rtx-2080-ti", "GeForce RTX 2080 Ti", 75, TURING,
         sm_count=68, clock_ghz=1.545, memory_gib=11, bandwidth_gb_s=616, l2_mib=5.5, power_w=250),
    _gpu("rtx-3060", "GeForce RTX 3060 12GB", 86, AMPERE,
         sm_count=28, clock_ghz=1.777, memory_gib=12, bandwidth_gb_s=360, l2_mib=3, power_w=170),
    _gpu("rtx-3080", "GeForce RTX 3080 10GB", 86, AMPERE,
         sm_count=68, clock_ghz=1.710, memory_gib=10, bandwidth_gb_s=760, l2_mib=5, power_w=320),
    _gpu("rtx-3090", "GeForce RTX 3090", 86, AMPERE,
         sm_count=82, clock_ghz=1.695, memory_gib=24, bandwidth_gb_s=936, l2_mib=6, power_w=350),
    _gpu("rtx-a6000", "RTX A6000", 86, AMPERE_PRO,
         sm_count=84, clock_ghz=1.800, memory_gib=48, bandwidth_gb_s=768, l2_mib=6, power_w=300),
    _gpu("rtx-4060", "GeForce RTX 4060", 89, ADA,
         sm_count=24, clock_ghz=2.460, memory_gib=8, bandwidth_gb_s=272, l2_mib=24, power_w=115),
    _gpu("rtx-4070", "GeForce RTX 4070", 89, ADA,
         sm_count=46, clock_ghz=2.475, memory_gib=12, bandwidth_gb_s=504, l2_mib=36, power_w=200),
    _gpu("rtx-4080", "GeForce RTX 4080", 89, ADA,
         sm_count=76, clock_ghz=2.505, memory_gib=16, bandwidth_gb_s=717, l2_mib=64, power_w=320),
    _gpu("rtx-4090", "GeForce RTX 4090", 89, ADA,
         sm_count=128, clock_ghz=2.520, memory_gib=24, bandwidth_gb_s=1008, l2_mib=72, power_w=450),
    _gpu("rtx-4090-laptop", "GeForce RTX 4090 Laptop", 89, ADA,
         sm_count=76, clock_ghz=2.040, memory_gib=16, bandwidth_gb_s=576, l2_mib=64, power_w=150),
    _gpu("rtx-6000-ada", "RTX 6000 Ada", 89, ADA_PRO,
         sm_count=142, clock_ghz=2.505, memory_gib=48, bandwidth_gb_s=960, l2_mib=96, power_w=300),
    _gpu("rtx-5070", "GeForce RTX 5070", 120, BLACKWELL,
         sm_count=48, clock_ghz=2.512, memory_gib=12, bandwidth_gb_s=672, l2_mib=48, power_w=250),
    _gpu("rtx-5080", "GeForce RTX 5080", 120, BLACKWELL,
         sm_count=84, clock_ghz=2.617, memory_gib=16, bandwidth_gb_s=960, l2_mib=64, power_w=360),
    _gpu("rtx-5090", "GeForce RTX 5090", 120, BLACKWELL,
         sm_count=170, clock_ghz=2.407, memory_gib=32, bandwidth_gb_s=1792, l2_mib=96, power_w=575),
    _gpu("rtx-pro-6000", "RTX PRO 6000 Blackwell", 120, BLACKWELL_PRO,
         sm_count=188, clock_ghz=2.617, memory_gib=96, bandwidth_gb_s=1792, l2_mib=128, power_w=600),
    _gpu("dgx-spark", "DGX Spark (GB10)", 121, BLACKWELL_PRO, unified_memory=True,
         sources={"sm_count": _PLAYBOOK, "bandwidth_gb_s": _PLAYBOOK},
         sm_count=48, clock_ghz=2.42, memory_gib=128, bandwidth_gb_s=273, l2_mib=24, power_w=140),
)

DATACENTRE: tuple[Target, ...] = (
    _gpu("a100", "A100 SXM 80GB", 80, GA100,
         sm_count=108, clock_ghz=1.410, memory_gib=80, bandwidth_gb_s=2040, l2_mib=40, power_w=400),
    _gpu("h100", "H100 SXM", 90, HOPPER, sources={"clock_ghz": _FROM_PEAK},
         sm_count=132, clock_ghz=1.830, memory_gib=80, bandwidth_gb_s=3350, l2_mib=50, power_w=700),
    _gpu("h200", "H200 SXM", 90, HOPPER, sources={"clock_ghz": _FROM_PEAK},
         sm_count=132, clock_ghz=1.830, memory_gib=141, bandwidth_gb_s=4800, l2_mib=50, power_w=700),
    _gpu("b200", "B200", 100, GB100, sources={"clock_ghz": _FROM_PEAK},
         sm_count=148, clock_ghz=1.856, memory_gib=180, bandwidth_gb_s=8000, l2_mib=126, power_w=1000),
)
# fmt: on
