"""What a bundle says of its quantization: the recipe and the bit map in the manifest, the quality, and the report that a person reads."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from dexport.exporter.build_recipe import QuantizedBuild
from dexport.exporter.modelopt_checkpoint import ModeloptCheckpoint
from dexport.exporter.options import BuildOptions
from dexport.exporter.plan import Plan
from dexport.exporter.quality import quality_to_json
from dexport.exporter.quantization import Layer, QuantizedSplit, recipe_document
from dexport.exporter.report.data import ByteChange, Remark, ReportData, SiteBits
from dexport.exporter.report.page import PAGE_NAME, write_report
from dexport.exporter.split import Split
from dexport.exporter.workload import Workload
from dexport.runtime.manifest import Manifest
from dexport.runtime.program import Program
from dexport.runtime.workload import estimate
from dexport.targets.latency import estimable
from dexport.targets.target import Target

FOLDER = "report"
_PACKAGES = ("dexport", "torch", "diffusers", "onnx", "onnxruntime", "openvino", "tensorrt-rtx")
_KEPT_BITS = 16


def with_report(manifest: Manifest, decided: Plan, before: Split, quantized: QuantizedBuild, program: Program, folder: Path) -> Manifest:
    """The manifest with recipe and quality, and the report written into the folder of the bundle.

    Args:
        program: that makes a picture by default, for its time.
    """
    first = quantized.sizes[0]
    document = recipe_document(quantized.effective, first)
    document["repaired"] = list(quantized.repaired)
    if (checkpoint := quantized.effective.checkpoint) is not None:
        document |= {"computed at build": list(_computed(checkpoint, first)), "not taken over": list(checkpoint.unread)}
    quality = quantized.judged.quality
    write_report(report_data(manifest, decided, before, quantized, program), folder / FOLDER)
    return replace(
        manifest,
        recipe=document,
        quality=None if quality is None else quality_to_json(quality),
        report=f"{FOLDER}/{PAGE_NAME}",
    )


def report_data(manifest: Manifest, decided: Plan, before: Split, quantized: QuantizedBuild, program: Program) -> ReportData:
    """Everything that the report shows."""
    first, judged = quantized.sizes[0], quantized.judged
    recipe = quantized.effective.recipe
    notes = [judged.note] if judged.note else []
    if quantized.repaired:
        notes.append(f"Kept in {decided.precision} because the pictures needed it: {', '.join(quantized.repaired)}.")
    if (checkpoint := quantized.effective.checkpoint) is not None:
        computed = {"Not quantized, because only their results are stored": _computed(checkpoint, first)}
        unread = {"Not taken over, because only linears and convolutions are quantized here": checkpoint.unread}
        notes += [f"{reason}: {', '.join(names)}." for reason, names in (computed | unread).items() if names]
    known = estimable(decided.target)
    if not known:
        notes.append(f"Time was not estimated: {known.reason}.")
    return ReportData(
        title=f"{Path(decided.options.model).name}, {recipe.name}, {decided.target.id}",
        reference=f"the pipeline in {decided.precision}",
        candidate=f"recipe {recipe.name}: {recipe.summary.rstrip('.')}",
        created=manifest.created,
        notes=tuple(notes),
        quality=judged.quality,
        pairs=judged.pairs,
        bit_map=bit_maps(first),
        skipped=tuple(_remarks(first, kept=True)),
        degraded=(
            *(Remark(d.section, "", f"{d.asked} became {d.built}: {d.reason}") for d in quantized.effective.degraded),
            *_remarks(first, kept=False),
        ),
        weight_bytes=_weight_bytes(manifest, before),
        kernels=_kernels(manifest),
        latency_ms=_latency(first.split, program, decided.target),
        command=_command(decided),
        settings=manifest.config,
        versions={name: version for name in _PACKAGES if (version := _version(name)) is not None},
    )


def _latency(split: Split, program: Program, target: Target) -> dict[str, float]:
    """Component -> milliseconds in a picture; empty where the device's speed is not known."""
    workload = Workload(split)
    found = estimate(program, workload.shapes, workload.weights(), workload.loads(program, 1), target, 1)
    return {part.name: part.milliseconds for part in found.parts if part.milliseconds is not None}


def _computed(checkpoint: ModeloptCheckpoint, quantized: QuantizedSplit) -> tuple[str, ...]:
    """Layers of a checkpoint that are computed when the bundle is built."""
    return checkpoint.absent(layer.site for layer in quantized.layers)


def bit_maps(quantized: QuantizedSplit) -> Mapping[str, Mapping[str, SiteBits]]:
    """Component -> site -> bits, in the order of the graphs; attention has no weights whose bits could be shown."""
    found: dict[str, dict[str, SiteBits]] = {}
    for layer in (layer for layer in quantized.layers if layer.parameters):
        found.setdefault(layer.component, {})[layer.site] = SiteBits(
            weights=layer.weights,
            weight_bits=layer.bits,
            activations=layer.activations,
            mode=layer.mode,
            parameters=layer.parameters,
        )
    return found


def _remarks(quantized: QuantizedSplit, *, kept: bool) -> list[Remark]:
    """Layers with a note: those that were kept, or those that got something else."""
    return [Remark(layer.component, layer.site, layer.note) for layer in quantized.layers if layer.note and _is_kept(layer) == kept]


def _is_kept(layer: Layer) -> bool:
    return layer.bits >= _KEPT_BITS and not layer.activations


def _weight_bytes(manifest: Manifest, before: Split) -> Mapping[str, ByteChange]:
    """Bytes of the weights of every component, in the precision of the build and as they are now."""
    sizes = {graph.name: sum(w.nbytes for w in graph.used_weights().values()) for graph in before.graphs()}
    return {n: ByteChange(sizes[n], c.weight_bytes) for n, c in manifest.components.items() if sizes.get(n)}


def _kernels(manifest: Manifest) -> dict[str, dict[str, int]]:
    """Component -> kind -> number of kernels, of the first profile of the first size, where the compiler says so."""
    found = {}
    for name, component in manifest.components.items():
        kernels: dict[str, Any] = component.variants[0].kernels or {}
        if programs := kernels.get("programs"):
            counts = {f"{kind} {p}": n for kind, key in _KINDS.items() for p, n in programs[0][key].items()}
            found[name] = counts | {"other": programs[0]["conversions"] + programs[0]["others"]}
    return found


_KINDS = {"GEMM": "gemms", "attention": "attentions", "convolution": "convolutions"}


def _command(decided: Plan) -> str:
    """What to type to get this again."""
    options = decided.options
    settings = [f"--set {key}={shlex.quote(_flat(value))}" for key, value in options.to_config().items() if _worth(key, value)]
    return " ".join(["dexport build", shlex.quote(options.model), "--target", options.target, *settings])


def _worth(key: str, value: Any) -> bool:
    """Whether an option says something: other than its default."""
    return key not in ("model", "target") and value != BuildOptions(model="", target="").to_config()[key]


def _flat(value: Any) -> str:
    if isinstance(value, Mapping):
        return ",".join(f"{key}={item}" for key, item in value.items())
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
