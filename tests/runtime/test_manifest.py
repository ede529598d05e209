import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest

from dexport.errors import UserError
from dexport.runtime.manifest import MAX_MANIFEST_BYTES, SCHEMA, Plugin, check_collisions, check_path, manifest_from_json, manifest_to_json
from tests.runtime.sample_bundle import LOOP, PLAN, complete_manifest, edited_manifest

Edit = Callable[[dict[str, Any]], object]


def _variant(document: dict[str, Any]) -> dict[str, Any]:
    variant: dict[str, Any] = document["components"]["loop"]["variants"][0]
    return variant


def _plugin(**changes: Any) -> dict[str, Any]:
    return {"name": "lowrank_linear", "files": [PLAN], "sm": 87, "tensorrt": "10.3.0", **changes}


def test_a_manifest_survives_json() -> None:
    manifest = complete_manifest()
    assert manifest_from_json(manifest_to_json(manifest), "manifest.json") == manifest
    library = Plugin(name="lowrank_linear", files=("plugins/x.so",), sm=87, tensorrt="10.3.0")
    sources = Plugin(name="lowrank_linear", files=(LOOP, "plugins/x.so"))
    for plugin in (library, sources):
        files = manifest.files | {"plugins/x.so": manifest.files[PLAN]}
        with_one = dataclasses.replace(manifest, files=files, plugins=(plugin,))
        assert manifest_from_json(manifest_to_json(with_one), "manifest.json") == with_one


def test_a_manifest_from_before_there_were_plugins_is_read() -> None:
    assert manifest_from_json(edited_manifest(lambda d: d.pop("plugins")), "manifest.json") == complete_manifest()


def test_the_digest_depends_on_all_but_the_time() -> None:
    manifest = complete_manifest()
    assert dataclasses.replace(manifest, created="2027-01-01T00:00:00Z").digest() == manifest.digest()
    assert dataclasses.replace(manifest, precision="fp32").digest() != manifest.digest()


def test_native_files_are_those_of_native_variants_and_those_named_like_code() -> None:
    manifest = complete_manifest()
    assert manifest.native_files() == {PLAN}
    files = manifest.files | {"plugins/evil.SO": manifest.files[PLAN]}
    assert dataclasses.replace(manifest, files=files).native_files() == {PLAN, "plugins/evil.SO"}
    sources = Plugin(name="lowrank_linear", files=(LOOP,))
    assert dataclasses.replace(manifest, plugins=(sources,)).native_files() == {PLAN, LOOP}  # code is what will be compiled, too


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d.pop("target"), "manifest.json: expected the key 'target', got none"),
        (lambda d: d.update(extra=1), r"manifest.json: expected only the keys schema, .*, got the key 'extra'"),
        (lambda d: d.update(schema=0), "manifest.json: schema: expected 1, got 0"),
        (lambda d: d.update(schema="1"), "manifest.json: schema: expected JSON of type integer, got '1'"),
        (lambda d: d.update(schema=True), "manifest.json: schema: expected JSON of type integer, got True"),
        (lambda d: d.update(config=[]), "manifest.json: config: expected JSON of type object, got a list of 0"),
        (lambda d: d.update(recipe=3), "manifest.json: recipe: expected JSON of type object or null, got 3"),
        (lambda d: d.update(sizes=[[64]]), r"sizes.0: expected \[height, width\] in pixels, got a list of 1"),
        (lambda d: d.update(sizes=[]), "sizes: expected at least 1 items, got a list of 0"),
        (lambda d: d.update(family="a\nb"), r"family: expected a name of letters.*, got 'a\\nb'"),
        (lambda d: d["model"].update(sha256="0" * 64 + "\n"), "model.sha256: expected 64 lower-case hexadecimal digits|maxLength"),
        (lambda d: _variant(d).update(format="exe"), r"loop.variants.0.format: expected one of openvino, onnx, .*, got 'exe'"),
        (lambda d: _variant(d).update(profiles={}), "loop.variants.0.profiles: expected ranges of input shapes, or null, got an object"),
        (lambda d: _variant(d).update(profiles={"ranges": [{"x": [[1], [0], [1]]}]}), "profiles: expected ranges of input shapes, or null"),
        (lambda d: _variant(d).update(artifact="../x"), r"loop.variants.0.artifact: expected a plain relative path .*, got '../x'"),
        (lambda d: _variant(d).update(files=["graphs/loop.bin"]), f"expected the artifact '{LOOP}' among its files, got 1 other files"),
        (lambda d: _variant(d)["files"].append("no.bin"), "components.loop.variants.0: expected 'no.bin' listed under files, got 9 other"),
        (lambda d: _variant(d).update(format="tensorrt"), "expected native true for the format tensorrt, got native false"),
        (lambda d: d["components"]["loop"]["inputs"]["x"].update(dtype="object"), "inputs.x.dtype: expected one of bool, .*, got 'object'"),
        (lambda d: d["components"]["loop"]["inputs"]["x"].update(shape=[0]), "x.shape.0: expected a dimension: .*, got 0"),
        (lambda d: d["components"]["loop"]["inputs"]["x"].update(shape=[1.0]), "x.shape.0: expected a dimension: .*, got 1.0"),
        (lambda d: d["programs"][0].update(file="no.json"), "programs.0: expected 'no.json' listed under files"),
        (lambda d: d["programs"][0].update(steps=0), "programs.0.steps: expected a number from 1, got 0"),
        (lambda d: d["golden"][0].update(component="x"), "golden.0: expected the name of a component or 'pipeline', got 'x'"),
        (lambda d: d["golden"][0].update(outputs="no"), "golden.0: expected 'no' listed under files"),
        (lambda d: d["text"][0].update(tokenizer="no"), "text.0: expected 'no' listed under files"),
        (lambda d: d["text"][0].update(lower=True), "text.0: expected only the keys name, .*, got the key 'lower'"),
        (lambda d: d.update(plugins=[_plugin(files=["no.so"])]), "plugins.0: expected 'no.so' listed under files"),
        (lambda d: d.update(plugins=[_plugin(files=["../x.so"])]), r"plugins.0.files.0: expected a plain relative path .*, got '../x.so'"),
        (lambda d: d.update(plugins=[_plugin(files=["/tmp/x.so"])]), "plugins.0.files.0: expected a plain relative path"),
        (lambda d: d.update(plugins=[_plugin(files=[PLAN, LOOP])]), "plugins.0: expected sources alone, or one library with its sm"),
        (lambda d: d.update(plugins=[_plugin(sm=None)]), "plugins.0: expected sources alone, or one library with its sm and tensorrt"),
        (lambda d: d.update(plugins=[_plugin(name="a/../b")]), "plugins.0.name: expected lower-case letters, digits and _, got 'a/../b'"),
        (lambda d: d.update(plugins=[_plugin(sm=8)]), "plugins.0.sm: expected a number from 80, got 8"),
        (lambda d: d.update(plugins=[_plugin(tensorrt="ten")]), "plugins.0.tensorrt: expected a version such as 10.3.0"),
        (lambda d: d.update(plugins=[_plugin(url="x")]), "plugins.0: expected only the keys name, .*, got the key 'url'"),
        (lambda d: d.update(report="no.html"), "report: expected 'no.html' listed under files"),
        (lambda d: d["files"][LOOP].update(bytes=-1), "bytes: expected a number from 0, got -1"),
        (lambda d: d["files"][LOOP].update(bytes=1 << 60), "bytes: expected a number up to 9007199254740991, got 1152921504606846976"),
        (lambda d: d["files"].update({"GRAPHS/loop.onnx": d["files"][LOOP]}), "expected file names that differ by more than case, got 'G"),
        (lambda d: d["files"].update({"graphs": d["files"][LOOP]}), "expected file names that differ by more than case, got 'graphs' and"),
        (lambda d: d["files"].update({"Manifest.json": d["files"][LOOP]}), "differ by more than case, got 'Manifest.json' and 'manifest.j"),
    ],
)
def test_a_wrong_manifest_is_refused_naming_the_place(edit: Edit, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        manifest_from_json(edited_manifest(edit), "manifest.json")
    assert str(caught.value).endswith("get the bundle again or rebuild it") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../x",
        "a/../x",
        "a//b",
        "a/",
        "./a",
        "a\\b",
        "..\\b",
        "C:/x",
        "C:x",
        "a\n",
        "a\0",
        "a b",
        ".hidden",
        "a/.b",
        "a.",
        "é",
        "",
    ]
    + ["~/x", "x" * 241, "\\\\host\\share", "file:///x", "a/b./c", "*/_ORT_MEM_ADDR_/*"],
)
def test_a_path_that_could_lead_elsewhere_is_refused(path: str) -> None:
    def rename(document: dict[str, Any]) -> None:
        document["files"][path] = {"sha256": "0" * 64, "bytes": 0}

    for read in (lambda: check_path(path, "a.dxb"), lambda: manifest_from_json(edited_manifest(rename), "a.dxb")):
        with pytest.raises(
            UserError, match=r"a.dxb(?:: files)?: expected a plain relative path such as 'graphs/vae.onnx'.*; get the bundle"
        ):
            read()


@pytest.mark.parametrize("path", ["a", "engines/loop-1024x1024.plan", "weights/a.b/c_d.bin", "x@1/y+z=1", "_/_"])
def test_plain_paths_pass(path: str) -> None:
    assert check_path(path, "a.dxb") == path


def test_names_may_share_folders_but_not_their_spelling() -> None:
    check_collisions(["a/b", "a/c", "d"], "x")
    with pytest.raises(UserError, match=r"x: expected file names that differ by more than case, got 'A/' and 'a/'"):
        check_collisions(["a/b", "A/c"], "x")


def test_a_newer_schema_says_which_dexport_reads_it() -> None:
    data = edited_manifest(lambda document: document.update(schema=SCHEMA + 1, dexport="9.1.0", news=True))
    message = "expected bundle schema 1 or older, got schema 2, written by dexport 9.1.0; install dexport 9.1.0 or newer to read it"
    with pytest.raises(UserError, match=message):
        manifest_from_json(data, "manifest.json")


@pytest.mark.parametrize("data", [b"[]", b"null", b"3", b'"x"', b"{}"])
def test_other_json_is_no_manifest(data: bytes) -> None:
    with pytest.raises(UserError, match=r"manifest.json: expected (JSON of type object|the key 'schema')"):
        manifest_from_json(data, "manifest.json")


def test_a_huge_manifest_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(UserError, match=f"expected at most {MAX_MANIFEST_BYTES} bytes of JSON, got {MAX_MANIFEST_BYTES + 1} bytes"):
        manifest_from_json(b" " * (MAX_MANIFEST_BYTES + 1), "manifest.json")


def test_what_cannot_be_read_is_not_written() -> None:
    with pytest.raises(UserError, match=r"family: expected a name"):
        manifest_to_json(dataclasses.replace(complete_manifest(), family="no such name"))


def test_the_manifest_is_plain_json() -> None:
    document = json.loads(manifest_to_json(complete_manifest()))
    assert document["model"]["class_name"] == "PixArtAlphaPipeline" and document["sizes"] == [[64, 64]]
