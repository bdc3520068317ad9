"""The numpy reader against what the engine writes and unpacks, and against broken files."""
import json
import shutil
import subprocess

import numpy as np
import pytest

import quantry
from conftest import ROOT
from quantry import reader
from quantry.safetensors import File, FormatError, bf16_to_float32, float32_to_bf16, write_file

CALIBRATION = {"text": {"path": str(ROOT / "examples/text/calibration.txt")}, "samples": 4, "sequence_length": 64}

METHODS = {
    "rtn-2": {"rtn": {"grid": {"bits": 2, "group_size": -1}}},
    "rtn-3": {"rtn": {"grid": {"bits": 3, "group_size": 4}}},
    "rtn-4-symmetric": {"rtn": {"grid": {"bits": 4, "group_size": -1, "symmetric": True}}},
    "rtn-8": {"rtn": {"grid": {"bits": 8, "group_size": 2}}},
    "ptq161": {"ptq161": {"epochs": 1}},
}


@pytest.fixture(scope="session", params=METHODS)
def artifact(request, engine, tmp_path_factory):
    """(quantry folder, the same folder unpacked by the engine)."""
    folder = tmp_path_factory.mktemp(request.param)
    job = {"model_dir": str(ROOT / "examples/stories260k"), "output_dir": str(folder / "out"),
           "checkpoint_dir": str(folder / "checkpoint"), "method": METHODS[request.param],
           "calibration": CALIBRATION, "outputs": [{"format": "OUTPUT_FORMAT_QUANTRY"}], "threads": 1}
    (folder / "job.json").write_text(json.dumps(job))
    done = subprocess.run([engine, "run", "--job", folder / "job.json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    packed = folder / "out" / "quantry"
    subprocess.run([engine, "unpack", "--input", packed, "--output", folder / "dense"], check=True)
    return packed, folder / "dense"


def test_every_tensor_equals_the_engines(artifact):
    packed, dense = artifact
    container = reader.Container(packed)
    unpacked = File(dense / "model.safetensors")
    seen = set()
    for name, array in container.dense_tensors():
        wanted = unpacked.read(name)
        if name.removesuffix(".weight") in container.linears:
            assert wanted.dtype == "BF16"
            np.testing.assert_array_equal(float32_to_bf16(array), wanted.array, err_msg=name)
        else:
            np.testing.assert_array_equal(array, wanted.to_float32(), err_msg=name)
        seen.add(name)
    assert seen == set(unpacked.names())


def test_summary(artifact, capsys):
    packed, _ = artifact
    assert reader.main([str(packed), "--linears"]) == 0
    text = capsys.readouterr().out
    assert "model.layers.4.mlp.down_proj: " in text
    summary = reader.Container(packed).summary()
    assert summary["linears"] in ({"grid": 35}, {"mixed-binary": 35})
    assert summary["bytes"] == (packed / "model.quantry.safetensors").stat().st_size
    assert 1.6 < summary["linear_bits_per_weight"] < 21


def test_bits_agree_with_the_manifest(artifact):
    packed, _ = artifact
    manifest = json.loads((packed.parent / "manifest.json").read_text())
    # Rows filled up to whole words or bytes take a little more than the formula.
    stated = manifest["bits"]["linears"]
    summary = reader.Container(packed).summary()
    assert stated <= summary["linear_bits_per_weight"] < stated * 1.1
    if "mixed-binary" in summary["linears"]:  # bytes are its layout, and its layout's figure counts them
        assert manifest["outputs"][0]["bits_per_weight"] == pytest.approx(summary["linear_bits_per_weight"], rel=1e-12)


def packed_rows(linear, module):
    """(tensor, bits of a row that mean something) of what a linear packs row by row."""
    rows, columns = linear["shape"]
    if "salient" not in linear:
        return [(f"{module}.codes", columns * linear["bits"])]
    count = linear["salient"]
    return [(f"{module}.signs", columns - count), (linear["mask"], columns), (f"{module}.salient_codes", 4 * count),
            (f"{module}.salient_zeros", 4 * rows)]


def fill_spare_bits(data):
    """Sets every bit beyond a row's own; how many there were."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    spare = 0
    for module, linear in json.loads(header["__metadata__"]["quantry"])["linears"].items():
        for name, used in packed_rows(linear, module):
            begin, end = (start + offset for offset in header[name]["data_offsets"])
            width = (end - begin) // (1 if name.endswith((".mask", "_zeros")) else header[name]["shape"][0])
            for row in range(begin, end, width):
                for bit in range(used, 8 * width):
                    data[row + bit // 8] |= 1 << bit % 8
                    spare += 1
    return spare


def test_bits_that_fill_up_rows_never_matter(artifact, tmp_path):
    packed, _ = artifact
    wanted = dict(reader.Container(packed).dense_tensors())
    folder = tmp_path / "copy"
    shutil.copytree(packed, folder)
    path = folder / "model.quantry.safetensors"
    data = bytearray(path.read_bytes())
    spare = fill_spare_bits(data)
    if spare == 0:
        assert "rtn-8" in str(packed), "8-bit rows of whole words alone have none"
    path.write_bytes(data)
    for name, array in reader.Container(folder, check=False).dense_tensors():
        np.testing.assert_array_equal(array, wanted[name], err_msg=name)


@pytest.mark.parametrize("damage, message", [
    (lambda data: data[:5], "header"),
    (lambda data: (1 << 60).to_bytes(8, "little") + data[8:], "header"),
    (lambda data: data[:8] + b"x" + data[9:], "JSON"),
    (lambda data: data[:len(data) // 2], "offsets"),
    (lambda data: data.replace(b"quantry.container.v", b"quantry.container.w"), "schema"),
])
def test_broken_files_are_refused(artifact, tmp_path, damage, message):
    folder = tmp_path / "copy"
    shutil.copytree(artifact[0], folder)
    path = folder / "model.quantry.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(FormatError, match=message):
        for _ in reader.Container(folder).dense_tensors():
            pass
    assert reader.main([str(folder), "--linears"]) == 1


@pytest.mark.parametrize("data, message", [
    (b"", "wanted a header, got a file of 0 bytes"), (b"[]", "no JSON object"), (b"{\"__metadata__\": 3}", "no JSON object"),
    (b"{\"a\": []}", "a needs dtype"), (b"{\"a\": {\"dtype\": \"F32\", \"shape\": [-1, -1], \"data_offsets\": [0, 4]}}", "a needs dtype"),
    (b"{\"a\": {\"dtype\": \"F32\", \"shape\": [1], \"data_offsets\": [0]}}", "a needs dtype")])
def test_headers_that_are_none(tmp_path, capsys, data, message):
    path = tmp_path / "model.quantry.safetensors"
    path.write_bytes(len(data).to_bytes(8, "little") + data if data else data)
    with pytest.raises(FormatError, match=message):
        File(path)
    assert reader.main([str(tmp_path)]) == 1 and message in capsys.readouterr().err


GRID_LINEAR = {"bits": 4, "group_size": -1, "symmetric": True, "shape": [2, 8]}
MIXED_LINEAR = {"kind": "mixed-binary", "shape": [2, 8], "salient": 1, "mask": "m.mask"}


def write_container(folder, linear=GRID_LINEAR, schema=None, text=None, scale=1.0):
    """A container of one linear, a row of words for each of its two rows, of the schema its kind has; `text` in place of its
    description."""
    folder.mkdir(exist_ok=True)
    schema = schema or (reader.MIXED_SCHEMA if "salient" in linear or "mask" in linear else reader.GRID_SCHEMA)
    described = text if text is not None else json.dumps({"schema": schema, "linears": {"m": linear}})
    write_file(folder / "model.quantry.safetensors",
               {"m.codes": ("I32", (2, 1)), "m.scales": ("F16", (2, 1))},
               [("m.codes", np.zeros((2, 1), np.int32)), ("m.scales", np.full((2, 1), scale, np.float16))],
               {"quantry": described})
    return folder


def read_all(folder):
    container = reader.Container(folder)
    container.summary()
    return dict(container.dense_tensors())


def test_a_small_container_reads(tmp_path):
    weight = read_all(write_container(tmp_path / "c"))["m.weight"]
    np.testing.assert_array_equal(weight, np.full((2, 8), -8.0, np.float32))


@pytest.mark.parametrize("text", ["{torn", "3", "[]", "null", "{}", json.dumps({"schema": ["quantry.container.v1"]}),
                                  json.dumps({"schema": reader.GRID_SCHEMA}),
                                  json.dumps({"schema": reader.GRID_SCHEMA, "linears": []}),
                                  json.dumps({"schema": reader.GRID_SCHEMA, "linears": {"m": 7}}), "[" * 200_000])
def test_metadata_that_describes_nothing(tmp_path, text):
    with pytest.raises(FormatError, match="model.quantry.safetensors"):
        read_all(write_container(tmp_path / "c", text=text))
    assert reader.main([str(tmp_path / "c"), "--linears"]) == 1


@pytest.mark.parametrize("linear", [
    *({key: value for key, value in of.items() if key != lost} for of in (GRID_LINEAR, MIXED_LINEAR) for lost in of
      if lost != "kind"),
    *({**GRID_LINEAR, **change} for change in (
        {"bits": "4"}, {"bits": 0}, {"bits": 9}, {"bits": None}, {"group_size": 0}, {"group_size": 2.5}, {"symmetric": 1},
        {"shape": 16}, {"shape": [2]}, {"shape": [2, 8, 1]}, {"shape": [2, -8]}, {"shape": ["2", 8]}, {"shape": [0, 8]},
        {"shape": [2, 1 << 70]}, {"kind": "other"}, {"kind": []})),
    *({**MIXED_LINEAR, **change} for change in ({"salient": 9}, {"salient": -1}, {"salient": "1"}, {"mask": 3})),
])
def test_linears_described_in_part(tmp_path, linear):
    with pytest.raises(FormatError):
        read_all(write_container(tmp_path / "c", linear))


@pytest.mark.parametrize("schema, linear", [(reader.MIXED_SCHEMA, GRID_LINEAR), (reader.MIXED_SCHEMA, {**GRID_LINEAR, "kind": "grid"}),
                                            (reader.GRID_SCHEMA, MIXED_LINEAR)])
def test_linears_of_another_kind_than_the_schema_has(tmp_path, schema, linear):
    """As the engine: v1 has grids alone, v2 none."""
    with pytest.raises(FormatError, match=f"needs the shape and what kind {reader.KINDS[schema]} has"):
        read_all(write_container(tmp_path / "c", linear, schema=schema))


def test_linears_whose_tensors_are_not_there(tmp_path):
    for linear in ({**GRID_LINEAR, "symmetric": False}, {**GRID_LINEAR, "group_size": 3}, MIXED_LINEAR):
        with pytest.raises(FormatError):
            read_all(write_container(tmp_path / "c", linear))


@pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf])
def test_scales_that_are_not_finite(tmp_path, scale):
    with pytest.raises(FormatError, match="m.scales holds NaN or infinity"):
        read_all(write_container(tmp_path / "c", scale=scale))


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"\0", lambda data: data[:-12]])
def test_data_that_ends_elsewhere_than_the_offsets(tmp_path, change):
    path = write_container(tmp_path / "c") / "model.quantry.safetensors"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(FormatError, match="offsets of its tensors end at 12"):
        File(path)


@pytest.mark.parametrize("index", ["{torn", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"m": 3}}',
                                   '{"weight_map": {"m": "a/b"}}', '{"weight_map": {"m": "a\\u0000"}}', '{"weight_map": {}}'])
def test_an_index_that_is_none(tmp_path, index):
    folder = write_container(tmp_path / "c")
    (folder / "model.quantry.safetensors.index.json").write_text(index)
    (folder / "model.quantry.safetensors").unlink()
    with pytest.raises(FormatError, match="index.json|describes its linears"):
        reader.Container(folder)


def test_the_same_tensors_twice(tmp_path):
    folder = write_container(tmp_path / "c")
    (folder / "model.quantry.safetensors.index.json").write_text('{"weight_map": {"m": "other.safetensors"}}')
    with pytest.raises(FormatError, match="holds the same tensors twice"):
        reader.Container(folder)


@pytest.mark.parametrize("files", [{}, {"files": None}, {"files": [3]}, {"files": [{"path": "quantry/a"}]},
                                   {"files": [{"path": 3, "sha256": "0"}]}, {"files": [{"path": "a\0", "sha256": "0"}]}])
def test_a_manifest_without_its_files(tmp_path, files):
    folder = write_container(tmp_path / "quantry")
    (tmp_path / "manifest.json").write_text(json.dumps({"schema": "quantry.manifest.v1", **files}))
    with pytest.raises(FormatError, match="manifest.json"):
        reader.Container(folder)


def test_metadata_and_shapes_that_no_file_has(tmp_path):
    path = tmp_path / "a.safetensors"
    write_file(path, {"a": ("F32", (0, 4))}, [("a", np.zeros((0, 4), np.float32))], {"format": "pt"})
    whole = path.read_bytes()
    assert File(path).read("a").array.shape == (0, 4)
    path.write_bytes(whole.replace(b'"pt"', b"3   "))
    with pytest.raises(FormatError, match="metadata must be texts"):
        File(path)
    wide = json.dumps({"a": {"dtype": "F32", "shape": [0, 1 << 80], "data_offsets": [0, 0]}}).encode()
    path.write_bytes(len(wide).to_bytes(8, "little") + wide)
    with pytest.raises(FormatError, match="a has the shape"):
        File(path).read("a")


def test_a_manifest_of_something_else(artifact, tmp_path, capsys):
    shutil.copytree(artifact[0], tmp_path / "quantry")
    (tmp_path / "manifest.json").write_text('{"name": "a web app", "icons": []}')
    assert reader.Container(tmp_path / "quantry").linears
    (tmp_path / "manifest.json").write_text("{torn")
    assert reader.main([str(tmp_path / "quantry")]) == 1 and "is not JSON" in capsys.readouterr().err


def test_the_folder_of_an_artifact(artifact, capsys):
    """One above the container's: the error names that one."""
    packed, _ = artifact
    for call in (quantry.load_dense, reader.Container):
        with pytest.raises(FileNotFoundError) as caught:
            call(packed.parent)
        assert str(caught.value) == (f"wanted the folder of a quantry container, with model.quantry.safetensors, got that of an "
                                     f"artifact, {packed.parent}; give one of its outputs: {packed}")
    assert reader.main([str(packed.parent)]) == 1 and str(packed) in capsys.readouterr().err


@pytest.mark.parametrize("names, message", [
    ([], r"got \S*/a$"), (["no-folder"], "got .*/a/no-folder, which is no folder"),
    (["manifest.json"], "got that of an artifact, .*, whose outputs are none; submit with formats=\"quantry\""),
    (["manifest.json", "dense/config.json", "report/blocks.json"], "whose outputs are dense; submit with")])
def test_folders_without_a_container(tmp_path, names, message):
    folder = tmp_path / "a"
    folder.mkdir()
    for name in names if names != ["no-folder"] else ():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    with pytest.raises(FileNotFoundError, match=message):
        reader.Container(folder / "no-folder" if names == ["no-folder"] else folder)


def test_a_container_pulled_without_its_other_files(artifact, tmp_path):
    """pull(path="quantry/model.quantry.safetensors")"""
    (tmp_path / "quantry").mkdir()
    shutil.copy(artifact[0].parent / "manifest.json", tmp_path)
    shutil.copy(artifact[0] / "model.quantry.safetensors", tmp_path / "quantry")
    assert reader.Container(tmp_path / "quantry").linears


def test_unused_bits_are_not_read():
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 8, (3, 11), np.uint8)
    bits = ((codes[:, :, None] >> np.arange(3)) & 1).reshape(3, 33).astype(np.uint8)
    for filling in (0, 1):
        stream = np.concatenate([bits, np.full((3, 31), filling, np.uint8)], axis=1)
        words = np.packbits(stream, axis=1, bitorder="little").view("<i4")
        np.testing.assert_array_equal(reader.unpack_stream(words, 11, 3), codes)
    np.testing.assert_array_equal(reader.unpack_nibbles(np.array([[0x21, 0xF3]], np.uint8), 3), [[1, 2, 3]])
    np.testing.assert_array_equal(reader.unpack_bits(np.array([[0b11111101]], np.uint8), 3), [[1, 0, 1]])


def test_golden_streams():
    words = np.array([[0x88FAC688, 0xC688FAC6, 0xFAC688FA]], np.uint32).view(np.int32)
    np.testing.assert_array_equal(reader.unpack_stream(words, 32, 3)[0], np.arange(32) % 8)


def test_bf16_rounds_half_to_even():
    values = np.array([1.0, 1.00390625, 1.01171875, -3.0e-39, 65504.0], np.float32)
    assert float32_to_bf16(values).tolist()[:3] == [0x3F80, 0x3F80, 0x3F82]
    np.testing.assert_array_equal(bf16_to_float32(float32_to_bf16(values[:1])), values[:1])


def test_a_flipped_bit_is_noticed_and_its_file_named(artifact, tmp_path):
    copy = tmp_path / "artifact"
    shutil.copytree(artifact[0].parent, copy)
    weights = copy / "quantry" / "model.quantry.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 4
    weights.write_bytes(data)
    with pytest.raises(FormatError, match="model.quantry.safetensors is not what its manifest lists"):
        reader.Container(copy / "quantry")
    reader.Container(copy / "quantry", check=False)
