"""What one deployment target is and can do: frozen data plus the questions one can ask of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType

from dexport.errors import UserError
from dexport.targets.formats import FORMATS, PLUGINS, PRECISIONS, Backend, Support, support
from dexport.targets.rates import Rates
from dexport.targets.source import Source
from dexport.targets.tensorrt import KIT_MINIMUM, RTX_COMPUTE_CAPABILITIES, Version, dotted


@dataclass(frozen=True)
class PowerMode:
    """One nvpmodel setting of a Jetson, and what the GPU is in it.

    Attributes:
        name: as ``nvpmodel -q`` prints it, without the ``MODE_`` that some releases put before it.
        number: for ``nvpmodel -m``.
        sm_count: SMs that are not power-gated.
        clock_ghz: highest GPU clock.
        bandwidth_gb_s: memory bandwidth at the mode's memory clock, in 1e9 bytes per second.
        source: where the four come from.
    """

    name: str
    number: int
    sm_count: int
    clock_ghz: float
    bandwidth_gb_s: float
    source: Source


@dataclass(frozen=True)
class JetPack:
    """One release of NVIDIA's software for Jetson, which fixes the versions of everything below dexport.

    Attributes:
        version: as ``apt show nvidia-jetpack`` says, (6, 2).
        l4t: first Jetson Linux release of it.
        cuda: toolkit version.
        tensorrt: version whose engines it runs.
        source: where the three come from.
    """

    version: Version
    l4t: str
    cuda: str
    tensorrt: Version
    source: Source

    @property
    def name(self) -> str:
        """The part of a target's id after the at sign: "jetpack-6.2"."""
        return f"jetpack-{dotted(self.version)}"


@dataclass(frozen=True)
class Target:
    """A device (or "this machine's processor") with the software that runs a bundle on it.

    The unit of every number is in its field's name; where it comes from is in `sources` under the same name. A number that
    depends on the machine at hand (all of them for ``cpu``) is None.

    Attributes:
        id: complete name, "jetson-orin:30w@jetpack-6.2"; the parts that have their default may be left out when asking.
        device: the id without power mode and JetPack.
        name: as the vendor calls the device.
        backend: what runs the model.
        sm: compute capability times ten.
        rates: arithmetic per clock and SM.
        sm_count: SMs that run in this power mode.
        clock_ghz: GPU boost clock in this power mode.
        memory_gib: memory a GPU can address, in 2**30 bytes: graphics memory, or the shared pool where `unified_memory`.
        memory_reserve_gib: what the system and the CUDA context keep of it.
        unified_memory: True where processor and GPU share one memory.
        bandwidth_gb_s: of that memory, in 1e9 bytes per second.
        l2_mib: second-level cache of the GPU, in 2**20 bytes.
        power_w: board or module power limit; None where the power mode says it.
        power_mode: the nvpmodel setting to which the numbers belong.
        jetpack: which JetPack the engines are for.
        tensorrt: version of TensorRT that builds and runs the engines, where it is fixed.
        onnx_opset: highest ONNX opset to emit.
        default_precision: used when the user does not say.
        sources: origin of each number.
    """

    id: str
    device: str
    name: str
    backend: Backend
    onnx_opset: int
    default_precision: str
    memory_reserve_gib: float
    sources: Mapping[str, Source] = field(repr=False)
    sm: int | None = None
    rates: Rates | None = None
    sm_count: int | None = None
    clock_ghz: float | None = None
    memory_gib: float | None = None
    unified_memory: bool = False
    bandwidth_gb_s: float | None = None
    l2_mib: float | None = None
    power_w: float | None = None
    power_mode: PowerMode | None = None
    jetpack: JetPack | None = None
    tensorrt: Version | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "sources", MappingProxyType(dict(self.sources)))
        self._check_sources()
        self._check_device()
        if self.default_precision not in self.precisions:
            raise ValueError(f"{self.id}: default_precision expected one of {self.precisions}, got {self.default_precision!r}")

    def _check_sources(self) -> None:
        for name in self.numbers():
            if name not in self.sources:
                raise ValueError(f"{self.id}: {name} has a value but no source")
        for name in self.sources:
            if name not in self.numbers():
                raise ValueError(f"{self.id}: a source is given for {name}, which has no value")

    def _check_device(self) -> None:
        gpu = (self.sm, self.rates, self.sm_count, self.clock_ghz, self.memory_gib, self.bandwidth_gb_s)
        if len({part is None for part in gpu}) != 1:
            raise ValueError(f"{self.id}: a GPU is described by sm, rates, sm_count, clock_ghz, memory_gib and bandwidth_gb_s together")
        if (self.backend == "tensorrt-kit") != (self.jetpack is not None):
            raise ValueError(f"{self.id}: build kits and JetPack belong together, got {self.backend} and {self.jetpack}")
        if self.jetpack is not None and self.tensorrt != self.jetpack.tensorrt:
            raise ValueError(f"{self.id}: {self.jetpack.name} has TensorRT {self.jetpack.tensorrt}, got {self.tensorrt}")
        mode = self.power_mode
        if mode is not None and (mode.sm_count, mode.clock_ghz, mode.bandwidth_gb_s) != (
            self.sm_count,
            self.clock_ghz,
            self.bandwidth_gb_s,
        ):
            raise ValueError(f"{self.id}: sm_count, clock_ghz and bandwidth_gb_s differ from those of power mode {mode.name}")
        if self.memory_gib is not None and not 0 < self.memory_reserve_gib < self.memory_gib:
            raise ValueError(f"{self.id}: memory_reserve_gib expected within 0 to {self.memory_gib}, got {self.memory_reserve_gib}")

    def numbers(self) -> dict[str, float]:
        """Every number that has a value, by field name; booleans are not numbers."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, int | float) and not isinstance(value, bool)}

    def supports(self, format: str) -> Support:
        """Whether models can be quantized to, or built in, this number format here.

        Raises:
            UserError: if the format is not one of ``FORMATS``.
        """
        if format not in FORMATS:
            raise UserError(f"format {format!r}", expected=f"one of {', '.join(FORMATS)}", got=repr(format), fix="choose one of these")
        return support(format, backend=self.backend, sm=self.sm, version=self.tensorrt)

    @property
    def formats(self) -> tuple[str, ...]:
        """The formats that this target has."""
        return tuple(name for name in FORMATS if self.supports(name))

    @property
    def precisions(self) -> tuple[str, ...]:
        """Legal values of ``--precision``."""
        return tuple(name for name in PRECISIONS if self.supports(name))

    @property
    def plugins(self) -> tuple[str, ...]:
        """Folders of dexport's plugins that its engines can be built with."""
        return PLUGINS.get(self.backend, ()) if self.supports("int4") else ()

    @property
    def buildable(self) -> Support:
        """Whether dexport can build for this target at all."""
        if self.backend == "tensorrt-kit" and self.tensorrt is not None and self.tensorrt < KIT_MINIMUM:
            return Support(False, f"TensorRT {dotted(self.tensorrt)} has no strongly typed networks, no INT4 and no version 3 plugins")
        if self.backend == "tensorrt-rtx" and self.sm not in RTX_COMPUTE_CAPABILITIES:
            return Support(False, f"TensorRT-RTX has no SM {self.compute_capability}")
        return Support(True, "")

    def require_buildable(self) -> None:
        """Refuse a target that dexport knows but cannot build for.

        Raises:
            UserError: with the reason and what to use instead.
        """
        answer = self.buildable
        if answer:
            return
        if self.backend == "tensorrt-kit":
            expected, fix = f"TensorRT {dotted(KIT_MINIMUM)} or newer", "use a Jetson with JetPack 6.1 or newer"
        else:
            expected, fix = (
                "a GPU that TensorRT-RTX compiles for (SM 7.5, 8.0, 8.6, 8.9, 12.0, 12.1)",
                "use --target onnxruntime-cuda there",
            )
        raise UserError(f"target {self.id}", expected=expected, got=f"{self.name}: {answer.reason}", fix=fix)

    def require(self, format: str) -> None:
        """Refuse a number format that this target lacks, before any work is done.

        Raises:
            UserError: with the formats it has and the reason.
        """
        answer = self.supports(format)
        if answer:
            return
        what = f"SM {self.compute_capability}" if self.sm is not None else self.backend
        runtime = f" with TensorRT {dotted(self.tensorrt)}" if self.tensorrt is not None else ""
        raise UserError(
            self.id,
            expected=f"a format that {what}{runtime} has ({', '.join(self.formats)})",
            got=f"{format} ({answer.reason})",
            fix=f"choose one of the formats it has, for example {self.default_precision}",
        )

    @property
    def compute_capability(self) -> str:
        """As NVIDIA writes it: "8.7"; empty without a GPU."""
        return "" if self.sm is None else f"{self.sm // 10}.{self.sm % 10}"

    @property
    def memory_available_gib(self) -> float | None:
        """What a bundle may use."""
        return None if self.memory_gib is None else self.memory_gib - self.memory_reserve_gib

    def peak_tops(self, format: str, *, fast: bool = False) -> float | None:
        """Dense peak in 1e12 operations per second (one multiply-add is two), SMs x clock x rate.

        Args:
            format: what the matrix units multiply; ``int4-weights`` are multiplied as fp16.
            fast: accumulate fp16 and fp8 in fp16 where that is quicker, at the price of accuracy.

        Returns:
            None where the device is not known, 0.0 where the hardware lacks the format.
        """
        if self.rates is None or self.sm_count is None or self.clock_ghz is None:
            return None
        rates = self.rates
        per_clock = {
            "fp32": rates.fp32,
            "fp16": rates.fp16_fast if fast else rates.fp16,
            "bf16": rates.fp16 if self.supports("bf16") else 0,
            "int8": rates.int8,
            "int4-weights": rates.fp16,
            "int4": rates.int4,
            "fp8": rates.fp8_fast if fast else rates.fp8,
            "nvfp4": rates.fp4,
        }[format]
        return self.sm_count * self.clock_ghz * per_clock / 1000
