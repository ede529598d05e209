"""The Jetson family: modules, their power modes, and the JetPack releases that run on them.

Every Jetson takes a build kit: TensorRT chooses kernels by timing them on the GPU, its engines are not portable between
machines, and there is no cross-compilation to these boards.
"""

from dataclasses import dataclass

from dexport.targets.rates import ORIN, THOR, VOLTA, Rates
from dexport.targets.source import Source
from dexport.targets.target import JetPack, PowerMode, Target
from dexport.targets.tensorrt import KIT_MINIMUM, OPSET_SOURCE, Version, last_opset

_NVPMODEL = Source("nvpmodel_p3701/p3767 .conf of Jetson Linux 36 (GPU MAX_FREQ, TPC_PG_MASK, EMC MAX_FREQ)", "read")
_SHEET = Source("module data sheet", "memory")
_PEAKS = Source("the clock that reproduces the data sheet's peak", "computed")
_BRIEF = Source("Jetson AGX Orin technical brief", "read")
_THOR_QUERY = Source("run-time query of a T5000, NVIDIA developer forum 356355", "read")
_CC = Source("NVIDIA's list of CUDA GPUs", "memory")
_ARCHIVE = Source("JetPack archive pages of developer.nvidia.com", "read")
_REPORTED = Source("version reports of deployed devices", "read")
_RESERVE = Source("8 GB Orin Nano: 7.4 GiB visible, 1.6 used headless, about 0.4 for the CUDA context; other boards alike", "memory")

JETPACKS: tuple[JetPack, ...] = (
    JetPack((5, 1, 6), "35.6.4", "11.4", (8, 5, 2), _ARCHIVE),
    JetPack((6, 0), "36.3.0", "12.2", (8, 6, 2), _REPORTED),
    JetPack((6, 1), "36.4.0", "12.6", (10, 3, 0), _REPORTED),
    JetPack((6, 2), "36.4.3", "12.6", (10, 3, 0), _REPORTED),
    JetPack((6, 2, 1), "36.4.4", "12.6", (10, 3, 0), Source("Jetson Linux release map; TensorRT unchanged since 6.2", "memory")),
    JetPack((6, 2, 2), "36.5.0", "12.6", (10, 3, 0), Source("Jetson Linux release map; TensorRT unchanged since 6.2", "memory")),
    JetPack((7, 0), "38.2.0", "13.0", (10, 13), Source("JetPack archive pages; the TensorRT version", "memory")),
    JetPack((7, 1), "38.4.0", "13.0", (10, 13, 3), _REPORTED),
    JetPack((7, 2), "39.2.0", "13.2", (10, 16, 2), _REPORTED),
    JetPack((7, 2, 1), "39.2.1", "13.2", (10, 16), Source("Jetson Linux release map; TensorRT unchanged since 7.2", "memory")),
    JetPack((7, 2, 2), "39.2.2", "13.2", (11, 4, 1), Source("TensorRT 11.4.1 migration guide for Jetson; L4T and CUDA", "memory")),
)
"""Oldest first. TensorRT 11.4 names only AGX Orin and Thor, hence the module lists below."""

_XAVIER: tuple[Version, ...] = ((5, 1, 6),)
_ORIN_SMALL: tuple[Version, ...] = ((5, 1, 6), (6, 0), (6, 1), (6, 2), (6, 2, 1), (6, 2, 2), (7, 2), (7, 2, 1))
_ORIN_AGX: tuple[Version, ...] = (*_ORIN_SMALL, (7, 2, 2))
_T5000: tuple[Version, ...] = ((7, 0), (7, 1), (7, 2), (7, 2, 1), (7, 2, 2))
_T4000: tuple[Version, ...] = _T5000[1:]

_SUPER_SINCE: Version = (6, 2)
"""From this JetPack on, Orin NX and Nano have faster "Super" modes."""


@dataclass(frozen=True)
class Module:
    """One Jetson module before a JetPack and a power mode are chosen.

    Attributes:
        device: id.
        name: as the vendor calls it.
        sm: compute capability times ten.
        rates: arithmetic per clock and SM.
        memory_gib: the shared memory.
        l2_mib: GPU cache; None where no source says.
        jetpacks: versions that run on it, oldest first.
        modes: power modes, fastest first.
        super_modes: power modes from JetPack 6.2 on, where they differ.
        l2_source: origin of `l2_mib`.
    """

    device: str
    name: str
    sm: int
    rates: Rates
    memory_gib: float
    l2_mib: float
    jetpacks: tuple[Version, ...]
    modes: tuple[PowerMode, ...]
    super_modes: tuple[PowerMode, ...] = ()
    l2_source: Source = _SHEET

    def modes_of(self, jetpack: Version) -> tuple[PowerMode, ...]:
        """Power modes under this JetPack, fastest first."""
        return self.super_modes if self.super_modes and jetpack >= _SUPER_SINCE else self.modes

    def releases(self) -> tuple[JetPack, ...]:
        """JetPack releases that run on it, oldest first."""
        return tuple(item for item in JETPACKS if item.version in self.jetpacks)

    def default_release(self) -> JetPack:
        """The oldest release whose TensorRT dexport can build for; the newest one where there is none (Xavier)."""
        usable = [item for item in self.releases() if item.tensorrt >= KIT_MINIMUM]
        return usable[0] if usable else self.releases()[-1]

    def target(self, jetpack: JetPack, mode: PowerMode) -> Target:
        """The module under this JetPack in this power mode."""
        fastest = self.modes_of(jetpack.version)[0]
        suffix = "" if mode == fastest else f":{mode.name.lower()}"
        return Target(
            id=f"{self.device}{suffix}@{jetpack.name}",
            device=self.device,
            name=self.name,
            backend="tensorrt-kit",
            onnx_opset=last_opset(jetpack.tensorrt),
            default_precision="fp16",
            memory_reserve_gib=2.4,
            sm=self.sm,
            rates=self.rates,
            sm_count=mode.sm_count,
            clock_ghz=mode.clock_ghz,
            memory_gib=self.memory_gib,
            unified_memory=True,
            bandwidth_gb_s=mode.bandwidth_gb_s,
            l2_mib=self.l2_mib,
            power_mode=mode,
            jetpack=jetpack,
            tensorrt=jetpack.tensorrt,
            sources={
                "onnx_opset": OPSET_SOURCE,
                "memory_reserve_gib": _RESERVE,
                "sm": _CC,
                "sm_count": mode.source,
                "clock_ghz": mode.source,
                "bandwidth_gb_s": mode.source,
                "memory_gib": _SHEET,
                "l2_mib": self.l2_source,
            },
        )


def _capped(name: str, number: int, sm_count: int, clock_ghz: float, bandwidth_gb_s: float) -> PowerMode:
    """A mode whose limits stand in the nvpmodel configuration."""
    return PowerMode(name, number, sm_count, clock_ghz, bandwidth_gb_s, _NVPMODEL)


def _uncapped(name: str, number: int, sm_count: int, clock_ghz: float, bandwidth_gb_s: float) -> PowerMode:
    """A mode without limits, which runs at the data sheet's clocks."""
    return PowerMode(name, number, sm_count, clock_ghz, bandwidth_gb_s, _PEAKS)


_AGX_64 = (
    _uncapped("MAXN", 0, 16, 1.3, 204.8),
    _capped("50W", 3, 16, 0.816, 204.8),
    _capped("30W", 2, 8, 0.612, 204.8),
    _capped("15W", 1, 6, 0.408, 136.5),
)
_AGX_32 = (
    _uncapped("MAXN", 0, 14, 0.930, 204.8),
    _capped("40W", 3, 14, 0.816, 204.8),
    _capped("30W", 2, 8, 0.612, 204.8),
    _capped("15W", 1, 6, 0.408, 136.5),
)
_NX_LOW = (_capped("15W", 2, 4, 0.612, 102.4), _capped("10W", 1, 4, 0.612, 68.3))
_NX_16 = (_uncapped("MAXN", 0, 8, 0.918, 102.4), _capped("25W", 3, 8, 0.408, 102.4), *_NX_LOW)
_NX_8 = (_uncapped("MAXN", 0, 8, 0.765, 102.4), _capped("20W", 3, 8, 0.408, 102.4), *_NX_LOW)
_NX_SUPER = (_uncapped("MAXN_SUPER", 0, 8, 1.173, 102.4), _capped("40W", 4, 8, 1.173, 102.4))
_NANO_8 = (_uncapped("15W", 0, 8, 0.625, 68.3), _capped("7W", 1, 4, 0.408, 68.3))
_NANO_8_SUPER = (_uncapped("MAXN_SUPER", 2, 8, 1.02, 102.4), _capped("25W", 1, 8, 0.918, 102.4), _capped("15W", 0, 8, 0.612, 68.3))
_NANO_4 = (_uncapped("10W", 0, 4, 0.625, 34.1), _capped("7W_AI", 1, 4, 0.408, 34.1), _capped("7W_CPU", 2, 4, 0.306, 34.1))
_NANO_4_SUPER = (_uncapped("MAXN_SUPER", 2, 4, 1.02, 51.2), _capped("25W", 1, 4, 1.02, 51.2), _capped("10W", 0, 4, 0.612, 34.1))
_T5000_MODES = (PowerMode("MAXN", 0, 20, 1.575, 273.0, Source(f"{_THOR_QUERY.text}; clock from the data sheet's peak", "computed")),)
_T4000_MODES = (PowerMode("MAXN", 0, 12, 1.53, 273.0, _SHEET),)
_AGX_XAVIER = (PowerMode("MAXN", 0, 8, 1.377, 136.5, _SHEET),)
_NX_XAVIER = (PowerMode("20W_6CORE", 8, 6, 1.1, 59.7, _SHEET),)

MODULES: tuple[Module, ...] = (
    Module("jetson-orin", "Jetson AGX Orin 64GB", 87, ORIN, 64, 4, _ORIN_AGX, _AGX_64, l2_source=_BRIEF),
    Module("jetson-orin-32gb", "Jetson AGX Orin 32GB", 87, ORIN, 32, 4, _ORIN_AGX, _AGX_32),
    Module("jetson-orin-nx-16gb", "Jetson Orin NX 16GB", 87, ORIN, 16, 2, _ORIN_SMALL, _NX_16, (*_NX_SUPER, *_NX_16[1:])),
    Module("jetson-orin-nx-8gb", "Jetson Orin NX 8GB", 87, ORIN, 8, 2, _ORIN_SMALL, _NX_8, (*_NX_SUPER, *_NX_8[1:])),
    Module("jetson-orin-nano-8gb", "Jetson Orin Nano 8GB", 87, ORIN, 8, 2, _ORIN_SMALL, _NANO_8, _NANO_8_SUPER),
    Module("jetson-orin-nano-4gb", "Jetson Orin Nano 4GB", 87, ORIN, 4, 2, _ORIN_SMALL, _NANO_4, _NANO_4_SUPER),
    Module("jetson-thor", "Jetson Thor T5000", 110, THOR, 128, 32, _T5000, _T5000_MODES, l2_source=_THOR_QUERY),
    Module("jetson-thor-t4000", "Jetson Thor T4000", 110, THOR, 64, 32, _T4000, _T4000_MODES),
    Module("jetson-xavier", "Jetson AGX Xavier 32GB", 72, VOLTA, 32, 0.5, _XAVIER, _AGX_XAVIER),
    Module("jetson-xavier-64gb", "Jetson AGX Xavier 64GB", 72, VOLTA, 64, 0.5, _XAVIER, _AGX_XAVIER),
    Module("jetson-xavier-nx-8gb", "Jetson Xavier NX 8GB", 72, VOLTA, 8, 0.5, _XAVIER, _NX_XAVIER),
    Module("jetson-xavier-nx-16gb", "Jetson Xavier NX 16GB", 72, VOLTA, 16, 0.5, _XAVIER, _NX_XAVIER),
)
