"""The texts of a Jetson build kit: two bash scripts and a page for the person at the device."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from dexport.runtime.builders.tensorrt import memory_needed
from dexport.targets.target import Target
from dexport.targets.tensorrt import dotted

_GIB = 2**30


@dataclass(frozen=True)
class Engine:
    """One trtexec run: name of the engine, paths of its model and of the model's other files in the bundle, quoted flags."""

    name: str
    onnx: str
    data: tuple[str, ...]
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Library:
    """One run of nvcc: name of a plugin, paths of its sources in the bundle, quoted arguments."""

    plugin: str
    sources: tuple[str, ...]
    flags: tuple[str, ...]


_BUILD_HEAD = """\
#!/usr/bin/env bash
# Builds this bundle's TensorRT engines. Run it on the device: bash kit/build.sh
# It can be stopped and started again: engines that are newer than their model, and made of these very files by this very trtexec
# with these flags, are kept. Environment: TRTEXEC (path of trtexec), DEXPORT_SKIP_CHECKS=1 (build although kit/check.sh complains).
set -euo pipefail

cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
trtexec="${TRTEXEC:-$(command -v trtexec || echo /usr/src/tensorrt/bin/trtexec)}"

if [[ "${DEXPORT_SKIP_CHECKS:-0}" != 1 ]]; then
  TRTEXEC="$trtexec" bash kit/check.sh
fi
if [[ ! -x "$trtexec" ]]; then
  echo "trtexec: expected an executable file, got $trtexec; install TensorRT or set TRTEXEC" >&2
  exit 1
fi
mkdir -p engines
banner="$("$trtexec" --help 2>&1 || true)"
banner="${banner%%$'\\n'*}"
version="$(sed -n 's/.*TensorRT v\\([0-9]*\\).*/\\1/p' <<<"$banner")"

partial=""
trap '[[ -z "$partial" ]] || rm -f -- "$partial" "$partial.json"' EXIT

sources=() # of plugins
plugins=() # flags that load them

# hashes FILE...: sorted sha256, joined by commas.
hashes() {
  sha256sum -- "$@" | cut -c 1-64 | LC_ALL=C sort | paste -s -d , -
}

# split FILE... -- ARGUMENT...: the caller's files and arguments.
split() {
  files=()
  while [[ "$1" != -- ]]; do
    files+=("$1")
    shift
  done
  shift
  arguments=("$@")
}

# build NAME MODEL DATA... -- FLAG...: one engine, which appears under its name only when it is complete.
build() {
  local name="$1" model="$2" files arguments
  split "${@:2}"
  local engine="engines/$name.engine" stamp="engines/$name.made-by"
  local made_by
  made_by="TensorRT $version $(hashes "${sources[@]}" "${files[@]}") ${arguments[*]}"
  if [[ "$engine" -nt "$model" && -f "$stamp" && "$(cat -- "$stamp")" == "$made_by" ]]; then
    echo "$name: $engine is up to date"
    return
  fi
  echo "$name: building $engine from $model; the log goes to engines/$name.log"
  partial="$engine.partial"
  rm -f -- "$stamp"
  if ! "$trtexec" --onnx="$model" --saveEngine="$partial" --exportLayerInfo="$partial.json" \\
    --timingCacheFile=engines/timing.cache "${plugins[@]}" "${arguments[@]}" >"engines/$name.log" 2>&1; then
    tail -n 20 -- "engines/$name.log" >&2
    echo "$name: expected trtexec to build $model, got a failure; read engines/$name.log" >&2
    exit 1
  fi
  if [[ ! -s "$partial" ]]; then
    echo "$name: expected an engine from trtexec, got none; read engines/$name.log" >&2
    exit 1
  fi
  mv -f -- "$partial.json" "engines/$name.layers.json"
  mv -f -- "$partial" "$engine"
  printf '%s\\n' "$made_by" >"$stamp"
  partial=""
  echo "$name: done"
}
"""


_BUILD_PLUGINS = """
# Plugins: sources of this kit, compiled for this GPU. Environment: NVCC (path of nvcc), TENSORRT_INCLUDE_DIR (TensorRT's headers).
nvcc="${NVCC:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)}"
headers="${TENSORRT_INCLUDE_DIR:-/usr/include/aarch64-linux-gnu}"
if [[ ! -x "$nvcc" ]]; then
  echo "nvcc: expected an executable file, got $nvcc; install cuda-nvcc or set NVCC" >&2
  exit 1
fi
if [[ ! -f "$headers/NvInferRuntime.h" ]]; then
  echo "TensorRT: expected NvInferRuntime.h in $headers, got none; install libnvinfer-headers-dev or set TENSORRT_INCLUDE_DIR" >&2
  exit 1
fi

# library PLUGIN SOURCE... -- ARGUMENT...: one library, which is loaded by all engines.
library() {
  local name="libdexport_$1" files arguments made_by
  split "${@:2}"
  local file="engines/$name.so" stamp="engines/$name.made-by"
  made_by="TensorRT $version $(hashes "${files[@]}") ${arguments[*]}"
  sources+=("${files[@]}")
  plugins+=("--dynamicPlugins=$file")
  if [[ -f "$file" && -f "$stamp" && "$(cat -- "$stamp")" == "$made_by" ]]; then
    echo "$name: $file is up to date"
    return
  fi
  echo "$name: compiling $file; the log goes to engines/$name.log"
  partial="$file.partial"
  rm -f -- "$stamp"
  if ! "$nvcc" "${arguments[@]}" -isystem "$headers" -o "$partial" >"engines/$name.log" 2>&1; then
    tail -n 20 -- "engines/$name.log" >&2
    echo "$name: expected nvcc to compile it, got a failure; read engines/$name.log" >&2
    exit 1
  fi
  mv -f -- "$partial" "$file"
  printf '%s\\n' "$made_by" >"$stamp"
  partial=""
}
"""


def build_script(engines: Sequence[Engine], libraries: Sequence[Library] = ()) -> str:
    """kit/build.sh."""
    parts = [_BUILD_HEAD, *([_BUILD_PLUGINS] if libraries else [])]
    for library in libraries:
        words = " ".join(("library", *map(shlex.quote, (library.plugin, *library.sources)), "--", *library.flags))
        parts.append(f"\n{words}\n")
    for engine in engines:
        lines = [" ".join(("build", *map(shlex.quote, (engine.name, engine.onnx, *engine.data)), "--")), *engine.flags]
        parts.append("\n" + " \\\n  ".join(lines) + "\n")
    parts.append('\necho "all engines are built"\n')
    return "".join(parts)


_CHECK = """\
#!/usr/bin/env bash
# Checks that this machine is the one the kit is for, and that there is room to build. Exit status 0 if so.
# Environment: TRTEXEC (path of trtexec).
set -euo pipefail

trtexec="${{TRTEXEC:-$(command -v trtexec || echo /usr/src/tensorrt/bin/trtexec)}}"
faults=0

fault() {{
  echo "FAULT $1" >&2
  faults=$((faults + 1))
}}

advise() {{
  echo "ADVICE $1"
}}

if [[ "$(uname -m)" != aarch64 ]]; then
  fault "machine: expected aarch64 ({name}), got $(uname -m); run this on the device"
fi

release=""
if [[ -r /etc/nv_tegra_release ]]; then
  release="$(sed -n 's/^# R\\([0-9]*\\) (release), REVISION: \\([0-9.]*\\).*/\\1.\\2/p' /etc/nv_tegra_release)"
fi
if [[ "${{release%%.*}}" != {l4t_major} ]]; then
  fault "Jetson Linux: expected {l4t} (JetPack {jetpack}), got ${{release:-none}}; flash JetPack {jetpack}"
fi

banner=""
if [[ -x "$trtexec" ]]; then
  banner="$("$trtexec" --help 2>&1 || true)"
else
  fault "trtexec: expected an executable file, got $trtexec; run: sudo apt-get install nvidia-jetpack"
fi
version="$(sed -n 's/.*TensorRT v\\([0-9]*\\).*/\\1/p' <<<"${{banner%%$'\\n'*}}")"
if [[ -n "$banner" && $((${{version:-0}} / 100)) != {tensorrt_code} ]]; then
  fault "TensorRT: expected {tensorrt}, got ${{version:-unknown}}; build a bundle for the JetPack of this device"
fi

available="$(awk '/^MemAvailable:/ {{print int($2 / 1024)}}' /proc/meminfo)"
if ((available < {memory_mib})); then
  fault "free memory: expected {memory_mib} MiB to build, got $available; stop the desktop or add swap (see kit/README.md)"
fi
disk="$(df -Pm . | awk 'NR == 2 {{print $4}}')"
if ((disk < {disk_mib})); then
  fault "free disk: expected {disk_mib} MiB for the engines, got $disk; free some"
fi

mode="$(nvpmodel -q 2>/dev/null | sed -n 's/^NV Power Mode: //p' || true)"
if [[ "${{mode#MODE_}}" != {mode} ]]; then
  advise "power mode: expected {mode}, got ${{mode:-unknown}}; kernels are chosen at its clocks: sudo nvpmodel -m {mode_number}"
fi
advise "fixed clocks make timings repeatable: sudo jetson_clocks"

if ((faults > 0)); then
  echo "$faults faults; nothing was changed" >&2
  exit 1
fi
echo "this machine can build the engines"
"""


def check_script(target: Target, weight_bytes: Sequence[int]) -> str:
    """kit/check.sh; `weight_bytes` are the sizes of the models' weights."""
    assert target.jetpack is not None and target.tensorrt is not None and target.power_mode is not None
    mode = target.power_mode
    return _CHECK.format(
        name=target.name,
        l4t=target.jetpack.l4t,
        l4t_major=target.jetpack.l4t.split(".")[0],
        jetpack=dotted(target.jetpack.version),
        tensorrt=dotted(target.tensorrt[:2]),
        tensorrt_code=target.tensorrt[0] * 100 + target.tensorrt[1],
        memory_mib=_memory_mib(weight_bytes),
        disk_mib=_disk_mib(weight_bytes),
        mode=shlex.quote(mode.name),
        mode_number=mode.number,
    )


def _memory_mib(weight_bytes: Sequence[int]) -> int:
    return memory_needed(max(weight_bytes, default=0)) >> 20


def _disk_mib(weight_bytes: Sequence[int]) -> int:
    return 256 + int(1.2 * sum(weight_bytes) / _GIB * 1024)


_README = """\
# Build kit for {name}

This bundle holds models as ONNX files. TensorRT turns them into engines, which are made for one kind of board and one
version of TensorRT, so this last step happens on the device. Where dexport is installed there, one command does it all, tests the
result and writes a finished bundle: `dexport finalize KIT.dxb` on the device, or `dexport finalize KIT.dxb --ssh USER@DEVICE` from the
desk. The rest of this page is for a device without dexport.

| | |
|---|---|
| device | {name} (SM {capability}) |
| JetPack | {jetpack} (Jetson Linux {l4t}, CUDA {cuda}) |
| TensorRT | {tensorrt} |
| power mode | {mode} |

1. Copy the whole bundle folder to the device; a `.dxb` is a zip: `unzip KIT.dxb -d FOLDER`.
2. Set the power mode in which it will run: `sudo nvpmodel -m {mode_number}`, then `sudo jetson_clocks`.
3. `bash kit/check.sh` says whether this machine fits and has room. It changes nothing.
4. `bash kit/build.sh` builds the engines into `engines/`. It can take long. Interrupt it and start it again
   as you like: finished engines are kept, and an unfinished one never carries its final name.
5. Copy `engines/` back and run `dexport finalize KIT.dxb --engines engines` where dexport is: it writes the finished bundle.

| engine | model | profiles |
|---|---|---|
{rows}

Beside each engine lie `NAME.layers.json` (the kernels that TensorRT chose; look there when the speed disappoints) and
`NAME.log`. `engines/timing.cache` makes a rebuild quicker; it belongs to this board and version.

When something fails:

- **Killed without a message**: memory ran out. Stop the desktop (`sudo systemctl isolate multi-user.target`), add swap, try again.
- **Another JetPack**: engines of one JetPack do not load under another. Build a new bundle, `--target {device}@jetpack-...`.
- **trtexec not found**: `sudo apt-get install nvidia-jetpack`, or set `TRTEXEC=/path/to/trtexec`.
"""


_README_PLUGINS = """
`plugins/` holds the sources of operators that TensorRT lacks. `build.sh` compiles them with nvcc (package `cuda-nvcc`, and
`libnvinfer-headers-dev` for TensorRT's headers) into `engines/libdexport_*.so`, which have to be loaded before the engines.
"""


def readme(target: Target, engines: Sequence[Engine], *, plugins: bool = False) -> str:
    """kit/README.md."""
    assert target.jetpack is not None and target.tensorrt is not None and target.power_mode is not None
    rows = [f"| `engines/{item.name}.engine` | `{item.onnx}` | {_profiles(item)} |" for item in engines]
    text = _README.format(
        name=target.name,
        device=target.device,
        capability=target.compute_capability,
        jetpack=dotted(target.jetpack.version),
        l4t=target.jetpack.l4t,
        cuda=target.jetpack.cuda,
        tensorrt=dotted(target.tensorrt),
        mode=target.power_mode.name,
        mode_number=target.power_mode.number,
        rows="\n".join(rows),
    )
    return text + (_README_PLUGINS if plugins else "")


def _profiles(engine: Engine) -> str:
    usual = [flag.strip("'").removeprefix("--optShapes=") for flag in engine.flags if "--optShapes=" in flag]
    return "; ".join(f"`{text}`" for text in usual) or "fixed sizes"
