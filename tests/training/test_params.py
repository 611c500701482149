"""Parameters in files: they come back as they were, or an error says why not."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.backends import Backend
from topk_np.training import ParamsError, flatten, load_params, save_params, tree_map

dtypes = st.sampled_from(["float64", "float32", "float16", "bfloat16", "int64", "uint8", "bool"])
arrays = dtypes.flatmap(
    lambda name: hnp.arrays(np.uint8, hnp.array_shapes(min_dims=0, min_side=0, max_side=3)).map(
        lambda array: array.astype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
    )
)
params_trees = st.dictionaries(
    st.sampled_from("abc"), arrays | st.dictionaries(st.text("xyé "), arrays, max_size=2)
).map(lambda tree: {name: node for name, node in tree.items() if not isinstance(node, dict)} | {
    name: {inner or "_": leaf for inner, leaf in node.items()}
    for name, node in tree.items() if isinstance(node, dict) and node
}).filter(bool)  # fmt: skip


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("params") / "model.safetensors"


def small() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {"head": {"weight": rng.standard_normal((2, 3)), "bias": np.zeros(2, "float32")}}


@given(params=params_trees, metadata=st.dictionaries(st.text("ab\"'\\é"), st.text(max_size=5)))
def test_what_was_saved_comes_back(file: Path, params: Any, metadata: dict[str, str]) -> None:
    save_params(file, params, metadata=metadata)
    for like in (None, params):
        loaded, texts = load_params(file, like=like)
        assert texts == metadata
        flat, wanted = flatten(loaded), flatten(params)
        assert sorted(flat) == sorted(wanted)
        assert like is None or list(flat) == list(wanted)
        for name, array in wanted.items():
            assert flat[name].dtype == array.dtype
            assert flat[name].shape == array.shape
            assert flat[name].tobytes() == array.tobytes()
            assert flat[name].flags.writeable


def test_arrays_go_to_the_library_and_device_that_is_expected(xp: Backend, file: Path) -> None:
    params = tree_map(xp.asarray, small())
    save_params(file, params)
    loaded, _ = load_params(file, like=params)
    assert loaded["head"]["bias"].device == params["head"]["bias"].device
    assert xp.to_numpy(loaded["head"]["weight"]).tolist() == small()["head"]["weight"].tolist()


def test_a_flipped_bit_in_any_byte_is_noticed(file: Path) -> None:
    save_params(file, small(), metadata={"step": "3"})
    data = file.read_bytes()
    for place in range(len(data)):
        for bit in (0, 5):  # letters change their case with bit 5
            changed = bytearray(data)
            changed[place] ^= 1 << bit
            file.write_bytes(changed)
            with pytest.raises(ParamsError):
                load_params(file)


def test_a_file_cut_anywhere_or_too_long_is_noticed(file: Path) -> None:
    save_params(file, small())
    data = file.read_bytes()
    for other in (*(data[:length] for length in range(len(data))), data + b"0"):
        file.write_bytes(other)
        with pytest.raises(ParamsError, match="cut off, damaged or not a safe"):
            load_params(file)


def headed(header: Any, size: int = 8) -> bytes:
    """A file with a header of our own, and `size` bytes of data."""
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(size)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (headed({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}), "damaged"),
        (headed({"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}), "damaged"),
        (headed({"a": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}}), "damaged"),
        (headed({"a": {"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]}}), "F8_E4M3"),
        (headed({".a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}), "not be empty"),
        (b"\xff" * 8 + b"{}", "damaged"),
        (b"not a file of this kind", "damaged"),
    ],
)
def test_lying_headers_are_refused(file: Path, data: bytes, message: str) -> None:
    file.write_bytes(data)
    with pytest.raises(ParamsError, match=message):
        load_params(file)


def test_files_of_other_programs_are_read_and_ours_by_others(file: Path) -> None:
    safetensors.numpy.save_file({"a.b": np.ones(2)}, file, metadata={"format": "np"})
    loaded, metadata = load_params(file)
    assert loaded["a"]["b"].tolist() == [1, 1]
    assert metadata == {"format": "np"}
    save_params(file, small())
    assert safetensors.numpy.load_file(file)["head.bias"].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("like", "message"),
    [
        ({"head": {"weight": np.ones((2, 3))}}, "head.bias was not expected"),
        ({**small(), "tail": np.ones(1)}, "tail is missing"),
        ({"tail": {str(i): np.ones(1) for i in range(5)}}, "tail.0, tail.1, tail.2 and 2 more is"),
        (
            {"head": {"weight": np.ones((3, 2)), "bias": np.ones(2, "float32")}},
            r"head.weight must have shape \(3, 2\) and dtype float64, got \(2, 3\) and float64",
        ),
        ({"head": {"weight": np.ones((2, 3)), "bias": np.ones(2)}}, "head.bias must have shape"),
    ],
)
def test_what_was_not_expected_is_named(file: Path, like: Any, message: str) -> None:
    save_params(file, small())
    with pytest.raises(ParamsError, match=f"model.safetensors: {message}"):
        load_params(file, like=like)


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    file = tmp_path / "model.safetensors"
    save_params(file, small(), metadata={"step": "1"})

    def fails(*arguments: Any) -> None:
        raise OSError("no space left on the device")

    with monkeypatch.context() as patch:
        patch.setattr(os if failing == "fsync" else Path, failing, fails)
        with pytest.raises(OSError, match="no space left"):
            save_params(file, small(), metadata={"step": "2"})
    assert load_params(file)[1] == {"step": "1"}
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("params", "metadata", "error", "message"),
    [
        ({}, None, ValueError, "params must have at least one array, got none"),
        ({"a": [1.0]}, None, TypeError, r"params\['a'\]: argument 0 must be an array"),
        ({"a": np.ones(2, complex)}, None, ValueError, "must have one of the dtypes .* complex128"),
        ({"a": np.ones(2)}, {"step": 1}, TypeError, "metadata must be strings by strings"),
    ],
)
def test_what_cannot_be_saved_is_refused(
    tmp_path: Path, params: Any, metadata: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        save_params(tmp_path / "model.safetensors", params, metadata=metadata)
    assert list(tmp_path.iterdir()) == []
