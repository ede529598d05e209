"""Names become targets, and impossible names are refused with what would have been right."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dexport.errors import UserError
from dexport.targets.catalogue import all_targets, find
from dexport.targets.jetson import JETPACKS, MODULES


def test_ids_are_unique_and_find_their_own_target() -> None:
    targets = all_targets()
    assert len({target.id for target in targets}) == len(targets)
    for target in targets:
        assert find(target.id) == target
        assert find(target.device.upper()) == target


def test_the_default_jetpack_is_the_oldest_that_has_strong_typing() -> None:
    assert find("jetson-orin").id == "jetson-orin@jetpack-6.1"
    assert find("jetson-orin").tensorrt == (10, 3, 0)
    assert find("jetson-orin-nano-8gb").id == "jetson-orin-nano-8gb@jetpack-6.1"
    assert find("jetson-thor").id == "jetson-thor@jetpack-7.0"
    assert find("jetson-thor-t4000").id == "jetson-thor-t4000@jetpack-7.1"


def test_opset_follows_the_jetpack() -> None:
    assert find("jetson-orin@jetpack-6.2").onnx_opset == 20
    assert find("jetson-orin@jetpack-7.2").onnx_opset == 24


def test_super_modes_come_with_jetpack_6_2() -> None:
    old, new = find("jetson-orin-nano-8gb@jetpack-6.1"), find("jetson-orin-nano-8gb@jetpack-6.2")
    assert (old.power_mode and old.power_mode.name, old.clock_ghz, old.bandwidth_gb_s) == ("15W", 0.625, 68.3)
    assert (new.power_mode and new.power_mode.name, new.clock_ghz, new.bandwidth_gb_s) == ("MAXN_SUPER", 1.02, 102.4)


def test_power_mode_changes_clock_and_number_of_sms() -> None:
    slow = find("jetson-orin:15w@jetpack-6.2")
    assert slow.id == "jetson-orin:15w@jetpack-6.2"
    assert (slow.sm_count, slow.clock_ghz, slow.bandwidth_gb_s) == (6, 0.408, 136.5)
    assert find("jetson-orin:maxn@jetpack-6.2").id == "jetson-orin@jetpack-6.2"


def test_every_module_mode_and_jetpack_makes_a_consistent_target() -> None:
    for module in MODULES:
        for release in module.releases():
            for mode in module.modes_of(release.version):
                target = module.target(release, mode)
                assert find(target.id) == target
    assert [item.version for item in JETPACKS] == sorted(item.version for item in JETPACKS)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("jetson-orn", ["target 'jetson-orn'", "expected a known device", "did you mean jetson-orin", "`dexport targets` lists all"]),
        ("rtx4090", ["did you mean rtx-4090"]),
        ("toaster", ["target 'toaster'", "`dexport targets` lists all"]),
        ("jetson-orin@6.2", ["device[:power-mode][@jetpack-version]"]),
        ("rtx-4090@jetpack-6.2", ["expected no power mode and no JetPack, which only Jetsons have", "write rtx-4090"]),
        ("cpu:15w", ["which only Jetsons have", "write cpu"]),
        (
            "jetson-orin@jetpack-7.0",
            [
                "target jetson-orin: expected a JetPack of Jetson AGX Orin 64GB (5.1.6, 6.0, 6.1,",
                "got JetPack 7.0, which does not run on it",
            ],
        ),
        ("jetson-orin@jetpack-6.9", ["got JetPack 6.9, which dexport does not know"]),
        ("jetson-orin-nano-8gb@jetpack-7.2.2", ["which does not run on it"]),
        ("jetson-thor-t4000@jetpack-7.0", ["expected a JetPack of Jetson Thor T4000 (7.1,"]),
        ("jetson-orin:99w", ["expected a power mode that Jetson AGX Orin 64GB has under JetPack 6.1 (maxn, 50w, 30w, 15w), got 99w"]),
        ("jetson-orin-nano-8gb:25w", ["(15w, 7w), got 25w", "or JetPack 6.2 or newer for the Super modes"]),
    ],
)
def test_unknown_names_are_refused_with_what_exists(name: str, parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        find(name)
    for part in parts:
        assert part in str(caught.value)


@given(st.text(max_size=40))
def test_any_text_is_a_target_or_a_user_error(name: str) -> None:
    try:
        assert find(name).device in name.lower()
    except UserError as error:
        assert error.fix
