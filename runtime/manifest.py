"""The manifest of a bundle: what `manifest.json` says, as frozen dataclasses, checked against its JSON Schema.

The fields of the dataclasses are the keys of the JSON, one to one. `manifest_from_json` trusts nothing: after it, every
path is a plain relative one, every file that is named anywhere is listed in `files` with its hash and size, and no two
paths can become one on any file system. Writer and reader share it.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jsonschema

from dexport.errors import UserError
from dexport.runtime.schema_check import check_schema, check_version, schema_named
from dexport.runtime.strict_json import parse_json, shown

SCHEMA = 1
MANIFEST_NAME = "manifest.json"
MAX_MANIFEST_BYTES = 4 << 20  # parsed, at most some 100 MB; real ones have a few hundred kilobytes
KIT = "-kit"
NATIVE_FORMATS = frozenset({"tensorrt", "tensorrt-rtx"})
NATIVE_SUFFIXES = (".so", ".dll", ".dylib", ".plan", ".engine", ".cubin", ".ptx", ".cu")

_REBUILD = "get the bundle again or rebuild it"

JsonObject = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Model:
    """Where the bundle comes from: pipeline class, the name it was given by, one sha256 over the model's files."""

    class_name: str
    name: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Port:
    """One input or output of a component; a dimension is a number or a symbol such as "batch" or "rows"."""

    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One compiled form of a component.

    Attributes:
        size: [height, width] in pixels it is made for, None where the component does not depend on it.
        artifact: the file a backend loads first; one of `files`.
        format: "openvino", "onnx", "tensorrt-rtx" or "tensorrt"; with "-kit" behind it ("openvino-kit", "tensorrt-kit") the ONNX files from
            which `dexport finalize` makes that form on the device.
        files: every file the backend needs, the artifact included.
        native: machine code is inside, which only runs when the user trusts it.
        kernels: number of kernels by kind, as the compiler chose them; of a kit, what they are asked to compute in.
        profiles: ranges of the inputs with symbolic dimensions, see `builders.builder.profiles_of`.
    """

    size: tuple[int, int] | None
    artifact: str
    format: str
    files: tuple[str, ...]
    native: bool = False
    kernels: JsonObject | None = None
    profiles: JsonObject | None = None

    @property
    def is_kit(self) -> bool:
        """Whether it is still to be built."""
        return self.format.endswith(KIT)


@dataclass(frozen=True, kw_only=True)
class Component:
    """One network of the pipeline; `islands` names what stays in float32, `note` is for `dexport inspect`."""

    inputs: dict[str, Port]
    outputs: dict[str, Port]
    variants: tuple[Variant, ...]
    parameters: int
    weight_bytes: int
    precision: str
    islands: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Plugin:
    """An operation of dexport's own that engines need TensorRT to have.

    Attributes:
        name: of the operation, a folder of dexport/plugins.
        files: the library; in a kit the sources from which `dexport finalize` compiles it.
        sm: compute capability times ten that the library is for; None in a kit.
        tensorrt: version that it was compiled for, "10.3.0"; None in a kit.
    """

    name: str
    files: tuple[str, ...]
    sm: int | None = None
    tensorrt: str | None = None


@dataclass(frozen=True, kw_only=True)
class ProgramEntry:
    """One sampling program and the request it answers; `guided` ones carry an unconditional and a conditional half."""

    file: str
    tables: str | None
    scheduler: str
    steps: int
    size: tuple[int, int]
    start_step: int = 0
    guided: bool = False


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """What a file of the bundle must be."""

    sha256: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class RequestBuffer:
    """A buffer that the request fills beside token ids, one value per row.

    `source` "class": the class label, `negative` in unconditional rows; "parameter": the value of that request parameter;
    "given": 1 where the user gave a prompt for the row, 0 where the default stands in.
    """

    buffer: str
    source: str
    parameter: str | None
    negative: float


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """How the pipeline guides: "classifier-free" (off at a scale of at most 1), "embedded" or "none", and its default scale."""

    kind: str
    default: float


@dataclass(frozen=True, kw_only=True)
class Golden:
    """Inputs and expected outputs (safetensors) of one component, or of the whole where `component` is "pipeline"."""

    inputs: str
    outputs: str
    component: str
    tolerance: float


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The whole manifest. `text`, `config`, `hoisting`, `recipe` and `quality` stay plain JSON objects."""

    schema: int = SCHEMA
    dexport: str
    created: str
    model: Model
    family: str
    target: str
    backend: str
    precision: str
    recipe: JsonObject | None = None
    config: JsonObject
    components: dict[str, Component]
    text: tuple[JsonObject, ...] = ()
    requests: tuple[RequestBuffer, ...] = ()
    batch: int = 1
    guidance: Guidance = Guidance(kind="none", default=1.0)
    frames_per_second: int | None = None
    sizes: tuple[tuple[int, int], ...]
    frames: int | None = None
    programs: tuple[ProgramEntry, ...] = ()
    hoisting: JsonObject = field(default_factory=dict)
    files: dict[str, FileEntry] = field(default_factory=dict)
    golden: tuple[Golden, ...] = ()
    quality: JsonObject | None = None
    report: str | None = None
    plugins: tuple[Plugin, ...] = ()

    @property
    def is_kit(self) -> bool:
        """Whether engines are still to be built where the bundle will run."""
        return any(variant.is_kit for component in self.components.values() for variant in component.variants)

    def digest(self) -> str:
        """sha256 (hexadecimal) of everything but the time of creation: the same content has the same digest."""
        document = dataclasses.asdict(self)
        del document["created"]
        return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def native_files(self) -> frozenset[str]:
        """Paths that hold machine code, by what they are rather than by what the manifest says of them alone."""
        of_variants = {
            path for component in self.components.values() for variant in component.variants if variant.native for path in variant.files
        }
        of_plugins = {path for plugin in self.plugins for path in plugin.files}
        return frozenset(of_variants | of_plugins | {path for path in self.files if path.lower().endswith(NATIVE_SUFFIXES)})


def manifest_to_json(manifest: Manifest) -> bytes:
    """The bytes of `manifest.json`; what the schema or the cross-checks refuse is refused here too."""
    data = (json.dumps(dataclasses.asdict(manifest), indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
    manifest_from_json(data, MANIFEST_NAME)
    return data


def manifest_from_json(data: bytes, where: str) -> Manifest:
    """Reads a manifest from its bytes.

    Args:
        data: content of `manifest.json`, from anywhere.
        where: what to call it in errors.

    Raises:
        UserError: not JSON, not this schema, a newer schema, or paths and names that do not fit together.
    """
    document = parse_json(data, where, max_bytes=MAX_MANIFEST_BYTES)
    check_version(document, "bundle", SCHEMA, where)
    check_schema(document, "manifest", where)
    manifest = _manifest(document)
    check_collisions([*manifest.files, MANIFEST_NAME], where)
    _check_references(manifest, where)
    return manifest


def check_path(path: str, where: str) -> str:
    """Returns `path` if it is a plain relative path by the schema's rule, else raises UserError."""
    rule = schema_named("manifest")["$defs"]["path"]
    if not jsonschema.Draft202012Validator(rule).is_valid(path):
        raise UserError(where, expected=rule["description"], got=f"'{shown(path)}'", fix=_REBUILD)
    return path


def check_collisions(paths: Iterable[str], where: str) -> None:
    """Refuses paths that are one and the same where case does not count, and files that are also folders."""
    spelling: dict[str, str] = {}
    for path in sorted(paths):
        parts = path.split("/")
        for end in range(1, len(parts) + 1):
            prefix = "/".join(parts[:end])
            kind = prefix if end == len(parts) else prefix + "/"
            other = spelling.setdefault(prefix.casefold(), kind)
            if other != kind:
                got = f"'{shown(other)}' and '{shown(kind)}'"
                raise UserError(where, expected="file names that differ by more than case", got=got, fix=_REBUILD)


def _check_references(manifest: Manifest, where: str) -> None:
    """Every path that is named is a file of the bundle, and the parts of a variant agree with each other."""
    named: list[tuple[str, str | None]] = [("report", manifest.report)]
    for name, component in manifest.components.items():
        for index, variant in enumerate(component.variants):
            place = f"components.{name}.variants.{index}"
            named += [(place, path) for path in variant.files]
            if variant.artifact not in variant.files:
                _refuse(where, place, f"the artifact {variant.artifact!r} among its files", f"{len(variant.files)} other files")
            if not variant.native and variant.format in NATIVE_FORMATS:
                _refuse(where, place, f"native true for the format {variant.format}", "native false")
    for index, plugin in enumerate(manifest.plugins):
        place = f"plugins.{index}"
        named += [(place, path) for path in plugin.files]
        if (plugin.sm is None) != (plugin.tensorrt is None) or (plugin.sm is not None and len(plugin.files) != 1):
            _refuse(where, place, "sources alone, or one library with its sm and tensorrt", f"{len(plugin.files)} files")
    for index, program in enumerate(manifest.programs):
        named += [(f"programs.{index}", path) for path in (program.file, program.tables)]
    for index, golden in enumerate(manifest.golden):
        named += [(f"golden.{index}", path) for path in (golden.inputs, golden.outputs)]
        if golden.component != "pipeline" and golden.component not in manifest.components:
            _refuse(where, f"golden.{index}", "the name of a component or 'pipeline'", repr(golden.component))
    named += [(f"text.{index}", entry["tokenizer"]) for index, entry in enumerate(manifest.text)]
    for place, path in named:
        if path is not None and path not in manifest.files:
            _refuse(where, place, f"{path!r} listed under files", f"{len(manifest.files)} other files")


def _refuse(where: str, place: str, expected: str, got: str) -> None:
    raise UserError(f"{where}: {place}", expected=expected, got=got, fix=_REBUILD)


def _manifest(document: JsonObject) -> Manifest:
    return Manifest(
        **{
            **document,
            "model": Model(**document["model"]),
            "components": {name: _component(entry) for name, entry in document["components"].items()},
            "text": tuple(document["text"]),
            "requests": tuple(RequestBuffer(**entry) for entry in document["requests"]),
            "guidance": Guidance(**document["guidance"]),
            "sizes": tuple(_size(size) for size in document["sizes"]),
            "programs": tuple(ProgramEntry(**{**entry, "size": _size(entry["size"])}) for entry in document["programs"]),
            "files": {path: FileEntry(**entry) for path, entry in document["files"].items()},
            "golden": tuple(Golden(**entry) for entry in document["golden"]),
            "plugins": tuple(Plugin(**{**entry, "files": tuple(entry["files"])}) for entry in document.get("plugins", ())),
        }
    )


def _component(entry: JsonObject) -> Component:
    return Component(
        **{
            **entry,
            "inputs": _ports(entry["inputs"]),
            "outputs": _ports(entry["outputs"]),
            "variants": tuple(
                Variant(**{**variant, "size": variant["size"] and _size(variant["size"]), "files": tuple(variant["files"])})
                for variant in entry["variants"]
            ),
            "islands": tuple(entry["islands"]),
        }
    )


def _ports(entries: Mapping[str, JsonObject]) -> dict[str, Port]:
    return {name: Port(dtype=entry["dtype"], shape=tuple(entry["shape"])) for name, entry in entries.items()}


def _size(size: Iterable[int]) -> tuple[int, int]:
    height, width = size
    return height, width
