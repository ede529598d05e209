"""The targets as plain data, for people (`dexport targets`) and for scripts (`dexport targets --json`)."""

from dataclasses import dataclass

from dexport.targets.catalogue import all_targets
from dexport.targets.formats import Backend
from dexport.targets.target import Target
from dexport.targets.tensorrt import dotted

_NEEDS: dict[Backend, str] = {
    "openvino": "any machine with dexport[export,openvino]",
    "onnxruntime-cpu": "any machine with dexport[export]",
    "onnxruntime-cuda": "any machine with dexport[export]; to run, dexport[onnxruntime-gpu] and an NVIDIA GPU",
    "tensorrt-rtx": "any x86-64 or arm64 machine with dexport[export,rtx]; no GPU",
    "tensorrt-kit": "any machine with dexport[export] writes the kit; the engines are built on the device by `dexport finalize`",
}


@dataclass(frozen=True)
class Row:
    """One line of the table; field names are the keys in JSON.

    Attributes:
        id: what to give to ``--target``.
        name: as the vendor calls it.
        backend: what runs the bundle.
        memory_gib: all memory; None where it is the machine's own.
        memory_available_gib: what a bundle may use of it.
        bandwidth_gb_s: of that memory.
        compute_capability: "8.7"; empty without a fixed GPU.
        peak_tops: dense 1e12 operations per second per format that the GPU multiplies natively; empty where unknown.
        formats: number formats it takes.
        default_precision: of ``--precision``.
        runtime: version of TensorRT and JetPack, where fixed.
        power_mode: nvpmodel setting that the numbers belong to.
        buildable: whether dexport can build for it.
        needs: what is needed to build for it, or why it cannot be.
        sources: field name to where its number comes from and how far to trust it.
    """

    id: str
    name: str
    backend: Backend
    memory_gib: float | None
    memory_available_gib: float | None
    bandwidth_gb_s: float | None
    compute_capability: str
    peak_tops: dict[str, float]
    formats: tuple[str, ...]
    default_precision: str
    runtime: str
    power_mode: str
    buildable: bool
    needs: str
    sources: dict[str, str]


def rows() -> tuple[Row, ...]:
    """One row per device, in the order of the catalogue."""
    return tuple(row(target) for target in all_targets())


def row(target: Target) -> Row:
    """The line of one target, which may be one that `find` made with a power mode and a JetPack."""
    peaks = {name: target.peak_tops(name) for name in target.formats}
    available = target.memory_available_gib
    return Row(
        id=target.id,
        name=target.name,
        backend=target.backend,
        memory_gib=target.memory_gib,
        memory_available_gib=None if available is None else round(available, 1),
        bandwidth_gb_s=target.bandwidth_gb_s,
        compute_capability=target.compute_capability,
        peak_tops={name: round(peak, 1) for name, peak in peaks.items() if peak},
        formats=target.formats,
        default_precision=target.default_precision,
        runtime=_runtime(target),
        power_mode=target.power_mode.name if target.power_mode else "",
        buildable=bool(target.buildable),
        needs=_NEEDS[target.backend] if target.buildable else f"cannot be built: {target.buildable.reason}",
        sources={name: str(source) for name, source in target.sources.items()},
    )


def _runtime(target: Target) -> str:
    if target.jetpack is None or target.tensorrt is None:
        return ""
    return f"JetPack {dotted(target.jetpack.version)}, TensorRT {dotted(target.tensorrt)}"
