"""What is to be built of a kit: one task per different engine, however many sizes share it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from importlib import metadata
from pathlib import PurePosixPath

from dexport.errors import Failure, UserError
from dexport.runtime.builders.builder import Builder, profiles_of
from dexport.runtime.builders.openvino import OpenVinoBuilder
from dexport.runtime.builders.tensorrt import tensorrt_builder
from dexport.runtime.device import Device
from dexport.runtime.engines import compile_cache
from dexport.runtime.finalize.plugins import source_hashes
from dexport.runtime.finalize.precision import Product, asked_of
from dexport.runtime.finalize.work import key_of
from dexport.runtime.manifest import Manifest, Variant
from dexport.targets.catalogue import find


@dataclass(frozen=True)
class Task:
    """One engine to build.

    Attributes:
        name: of its files.
        key: of what and how it is made; the same for variants that differ in nothing that a compiler sees.
        files: of the model in the kit, the ONNX file first.
        options: for the builder.
        asked: what its products are asked to compute in.
        bytes: size of the model with its weights.
    """

    name: str
    key: str
    files: tuple[str, ...]
    options: tuple[str, ...]
    asked: tuple[Product, ...]
    bytes: int


def builder_for(manifest: Manifest, device: Device) -> Builder:
    """What builds the engines of a kit on this machine.

    Raises:
        UserError: the bundle is finished, its target is not known here, or the builder's package is not installed.
    """
    formats = sorted({variant.format for component in manifest.components.values() for variant in component.variants if variant.is_kit})
    match formats:
        case ["openvino-kit"]:
            return OpenVinoBuilder()
        case ["tensorrt-kit"]:
            return tensorrt_builder(find(manifest.target), device, compile_cache().parent / "timing")
        case []:
            fix = "use it as it is; `dexport build` makes kits for Jetsons, and with --kit"
            raise UserError("finalize", expected="a build kit", got="a finished bundle", fix=fix)
        case _:
            raise Failure("finalize", expected="a kit for one backend", got=" and ".join(formats), fix="rebuild the kit")


def tasks_of(manifest: Manifest, builder: Builder) -> dict[str, Task]:
    """Key -> task, in the order of the manifest."""
    variants: dict[str, Variant] = {}
    for variant in kit_variants(manifest):
        variants.setdefault(key_of_variant(manifest, variant, builder), variant)
    stems = {key: PurePosixPath(variant.artifact).stem for key, variant in variants.items()}
    shared = {stem for stem, count in Counter(stems.values()).items() if count > 1}
    return {
        key: Task(
            name=f"{stems[key]}-{key[:8]}" if stems[key] in shared else stems[key],
            key=key,
            files=(variant.artifact, *(file for file in variant.files if file != variant.artifact)),
            options=builder.options(profiles_of(variant)),
            asked=tuple(asked_of(variant.kernels)),
            bytes=sum(manifest.files[file].bytes for file in variant.files),
        )
        for key, variant in variants.items()
    }


def kit_variants(manifest: Manifest) -> list[Variant]:
    """The variants that are still to be built."""
    return [variant for component in manifest.components.values() for variant in component.variants if variant.is_kit]


def key_of_variant(manifest: Manifest, variant: Variant, builder: Builder) -> str:
    """Key of the task that builds a variant; dexport's version is in it, for its builders may change."""
    hashes = [*(manifest.files[file].sha256 for file in variant.files), *source_hashes(manifest)]
    return key_of(metadata.version("dexport"), variant.format, hashes, list(builder.options(profiles_of(variant))), dict(builder.tools))
