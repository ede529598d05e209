"""The table of targets is complete and is plain data."""

import dataclasses
import json

from dexport.targets.catalogue import all_targets, find
from dexport.targets.table import row, rows


def test_one_row_per_device_and_it_is_json() -> None:
    table = rows()
    assert [item.id for item in table] == [target.id for target in all_targets()]
    text = json.dumps([dataclasses.asdict(item) for item in table])
    assert json.loads(text)[0]["id"] == "cpu"


def test_a_jetson_row() -> None:
    item = row(find("jetson-orin@jetpack-6.2"))
    assert (item.memory_gib, item.bandwidth_gb_s, item.compute_capability) == (64, 204.8, "8.7")
    assert item.runtime == "JetPack 6.2, TensorRT 10.3.0"
    assert item.power_mode == "MAXN"
    assert item.peak_tops["int8"] == 85.2
    assert "on the device" in item.needs
    assert item.sources["l2_mib"] == "Jetson AGX Orin technical brief [read]"


def test_rows_say_what_is_needed_or_why_not() -> None:
    needs = {item.id: item.needs for item in rows()}
    assert "no GPU" in needs["rtx-4090"]
    assert needs["h200"] == "cannot be built: TensorRT-RTX has no SM 9.0"
    assert not row(find("jetson-xavier")).buildable
