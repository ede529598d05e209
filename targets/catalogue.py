"""All targets, and how a name that a user types becomes one."""

import difflib
import re

from dexport.errors import UserError
from dexport.targets.host import HOSTS
from dexport.targets.jetson import JETPACKS, MODULES, Module
from dexport.targets.rtx import DATACENTRE, RTX
from dexport.targets.target import JetPack, PowerMode, Target
from dexport.targets.tensorrt import dotted

_NAME = re.compile(r"(?P<device>[a-z0-9-]+)(:(?P<mode>[a-z0-9_]+))?(@jetpack-(?P<jetpack>[0-9]+(\.[0-9]+){0,2}))?")

_FIXED: dict[str, Target] = {target.device: target for target in (*HOSTS, *RTX, *DATACENTRE)}
_MODULES: dict[str, Module] = {module.device: module for module in MODULES}
_LISTED = "`dexport targets` lists all"


def all_targets() -> tuple[Target, ...]:
    """One target per device, each Jetson with its default JetPack and fastest power mode."""
    jetsons = tuple(_jetson(module, None, None) for module in MODULES)
    return (*HOSTS, *jetsons, *RTX, *DATACENTRE)


def find(name: str) -> Target:
    """The target that a name means: ``device[:power-mode][@jetpack-version]``, in any case.

    Only Jetsons have a power mode (as ``nvpmodel -q`` prints it; default: the fastest) and a JetPack (default: the oldest
    whose TensorRT dexport can build for, 6.1 for Orin, 7.0 for Thor T5000, 7.1 for Thor T4000). The answer may be a target
    that dexport only describes; `Target.require_buildable` refuses it.

    Raises:
        UserError: if the device, its JetPack or its power mode does not exist, with the nearest that do.
    """
    match = _NAME.fullmatch(name.strip().lower())
    devices = (*_FIXED, *_MODULES)
    if match is None or match["device"] not in devices:
        wanted = match["device"] if match else name.lower()
        near = difflib.get_close_matches(wanted, devices, n=3, cutoff=0.5)
        fix = f"did you mean {' or '.join(near)}? {_LISTED}" if near else f"choose one: {_LISTED}"
        raise UserError(f"target {name!r}", expected="a known device, as device[:power-mode][@jetpack-version]", got=repr(name), fix=fix)
    if match["device"] in _FIXED:
        if match["mode"] or match["jetpack"]:
            raise UserError(
                f"target {name!r}",
                expected="no power mode and no JetPack, which only Jetsons have",
                got=repr(name),
                fix=f"write {match['device']}",
            )
        return _FIXED[match["device"]]
    return _jetson(_MODULES[match["device"]], match["mode"], match["jetpack"])


def _jetson(module: Module, mode: str | None, jetpack: str | None) -> Target:
    release = module.default_release() if jetpack is None else _release(module, jetpack)
    return module.target(release, _mode(module, release, mode))


def _release(module: Module, version: str) -> JetPack:
    wanted = tuple(int(part) for part in version.split("."))
    for release in module.releases():
        if release.version == wanted:
            return release
    legal = ", ".join(dotted(release.version) for release in module.releases())
    exists = any(release.version == wanted for release in JETPACKS)
    got = f"JetPack {version}, which does not run on it" if exists else f"JetPack {version}, which dexport does not know"
    raise UserError(
        f"target {module.device}", expected=f"a JetPack of {module.name} ({legal})", got=got, fix="choose one of these versions"
    )


def _mode(module: Module, release: JetPack, name: str | None) -> PowerMode:
    modes = module.modes_of(release.version)
    if name is None:
        return modes[0]
    for mode in modes:
        if mode.name.lower() == name:
            return mode
    legal = ", ".join(mode.name.lower() for mode in modes)
    raise UserError(
        f"target {module.device}",
        expected=f"a power mode that {module.name} has under JetPack {dotted(release.version)} ({legal})",
        got=name,
        fix="choose one of these modes" + (", or JetPack 6.2 or newer for the Super modes" if module.super_modes else ""),
    )
