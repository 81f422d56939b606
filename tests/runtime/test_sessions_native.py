"""The native engine: what it computes, that batches do not matter, and what it refuses."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from math import erfc, sqrt
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from crossforge.profiles import BundleError, EngineError, ExecutionProvider, ProviderUnavailableError
from crossforge.runtime.sessions.native import NativeSession
from crossforge.runtime.sessions.native.encoder_file import Encoder, read_encoder, write_encoder
from crossforge.runtime.sessions.native.library import (
    SCALAR,
    build_library,
    find_library,
    kernels_here,
    load_library,
)
from support.encoders import ATTEND_IN_CODES, compute, gelu, make_batch, make_encoder, make_shape

Logits = NDArray[np.floating[Any]]
TOLERANCE = 0.02
"""A value on the edge of two codes may be rounded either way; logits spread over several units."""


@pytest.fixture(params=["avx512_vnni", "avx2", SCALAR])
def kernels(request: pytest.FixtureRequest, native_library: Path) -> str:
    """Each kind of kernel that this processor runs; the others have tests of their own (test_native_kernels.py)."""
    return require(str(request.param), native_library)


def require(kernels: str, library: Path) -> str:
    if kernels not in kernels_here(load_library(library)):
        pytest.skip(f"this processor does not run {kernels}")
    return kernels


def assert_same_steps(logits: Logits, expected: Logits, *, least: float = 0.75, most: float = 0.2) -> None:
    """All but a few pairs agree; in those a value on the edge of two codes was rounded the other way."""
    difference = np.abs(logits - expected)
    assert (difference < TOLERANCE).mean() > least
    assert difference.max() < most


def open_encoder(encoder: Encoder, folder: Path, library: Path, *, kernels: str | None = None) -> NativeSession:
    path = folder / "encoder.safetensors"
    write_encoder(encoder, path)
    return NativeSession(path, labels=encoder.shape.labels, library=library, kernels=kernels)


def test_gelu_is_exact_to_a_small_part_of_the_step_that_it_is_rounded_to(native_library: Path) -> None:
    x = np.linspace(-12, 12, 240_001)
    exact = np.asarray([value * erfc(-value / sqrt(2)) / 2 for value in x])
    assert np.abs(gelu(x, native_library) - exact).max() < 2e-4 < 0.03 * 0.17 / 24


@pytest.mark.parametrize("heads", [2, 4], ids=["heads of 64", "heads of 32"])
def test_logits_are_those_of_the_same_arithmetic_in_numpy(
    tmp_path: Path, native_library: Path, kernels: str, heads: int
) -> None:
    encoder = make_encoder(make_shape(hidden=128, heads=heads, intermediate=192, labels=3))
    batch = make_batch([1, 2, 5, 16, 17, 31, 40, 64, 67, 140], encoder.shape)
    expected = compute(encoder, batch, native_library, kernels)
    session = open_encoder(encoder, tmp_path, native_library, kernels=kernels)
    logits = session.run(batch)
    assert np.ptp(expected, axis=0).min() > 50 * TOLERANCE
    assert_same_steps(logits, expected)


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(1, 130), min_size=10, max_size=14),
    panels=st.integers(1, 3),
    wide=st.integers(1, 3),
    width=st.sampled_from([32, 64]),
    layers=st.integers(1, 2),
)
def test_vector_kernels_agree_with_plain_steps_for_any_shape(
    tmp_path: Path, native_library: Path, lengths: list[int], panels: int, wide: int, width: int, layers: int
) -> None:
    hidden = 64 * panels
    encoder = make_encoder(make_shape(hidden=hidden, heads=hidden // width, intermediate=64 * wide, layers=layers))
    batch = make_batch(lengths, encoder.shape)
    logits = {
        name: open_encoder(encoder, tmp_path, native_library, kernels=name).run(batch)
        for name in kernels_here(load_library(native_library))
    }
    for name in logits.keys() - {SCALAR}:
        same_steps = compute(encoder, batch, native_library, name) if name in ATTEND_IN_CODES else logits[SCALAR]
        assert_same_steps(logits[name], same_steps, least=0.45, most=0.5)


def test_a_pair_scores_the_same_bit_for_bit_in_any_batch(tmp_path: Path, native_library: Path, kernels: str) -> None:
    encoder = make_encoder(make_shape(layers=2))
    session = open_encoder(encoder, tmp_path, native_library, kernels=kernels)
    lengths = [3, 130, 7, 64, 18, 99, 33, 1, 150, 90, 120, 110, 6]
    together = session.run(make_batch(lengths, encoder.shape))
    alone = [session.run(make_batch([length], encoder.shape))[0] for length in lengths]
    np.testing.assert_array_equal(together, np.stack(alone))
    np.testing.assert_array_equal(session.run(make_batch(lengths[::-1], encoder.shape)), together[::-1])


def test_padding_does_not_change_a_bit(tmp_path: Path, native_library: Path, kernels: str) -> None:
    encoder = make_encoder()
    session = open_encoder(encoder, tmp_path, native_library, kernels=kernels)
    narrow, wide = (make_batch([9, 20], encoder.shape, padded_to=width) for width in (20, 70))
    np.testing.assert_array_equal(session.run(narrow), session.run(wide))


def test_threads_share_a_session(tmp_path: Path, native_library: Path, kernels: str) -> None:
    encoder = make_encoder()
    session = open_encoder(encoder, tmp_path, native_library, kernels=kernels)
    batches = [make_batch([length, length + 1], encoder.shape) for length in range(1, 60)]
    expected = [session.run(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(session.run, batches))
    for answer, reference in zip(answers, expected, strict=True):
        np.testing.assert_array_equal(answer, reference)


def test_positions_of_a_roberta_begin_behind_its_padding_id(tmp_path: Path, native_library: Path, kernels: str) -> None:
    encoder = make_encoder(make_shape(padding_id=1, segments=1))
    batch = make_batch([5, 33], encoder.shape)
    session = open_encoder(encoder, tmp_path, native_library, kernels=kernels)
    assert session.input_names == ("input_ids", "attention_mask")
    np.testing.assert_allclose(session.run(batch), compute(encoder, batch, native_library, kernels), atol=TOLERANCE)


def test_a_padding_token_inside_a_robertas_text_takes_no_position(
    tmp_path: Path, native_library: Path, kernels: str
) -> None:
    shape = make_shape(padding_id=1, segments=1, layers=1)
    session = open_encoder(make_encoder(shape), tmp_path, native_library, kernels=kernels)
    batch = make_batch([6], shape)
    batch["input_ids"][0, 2] = shape.padding_id
    # transformers numbers the tokens that are not padding, and gives padding the position of its id
    tensors = dict(make_encoder(shape).tensors)
    tensors["positions"] = tensors["positions"].copy()
    tensors["positions"][2:8] = tensors["positions"][[2, 3, 1, 4, 5, 6]]
    expected = compute(Encoder(shape=shape, tensors=tensors), batch, native_library, kernels)
    np.testing.assert_allclose(session.run(batch), expected, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("input_ids", 50, "outside the vocabulary"),
        ("input_ids", -1, "outside the vocabulary"),
        ("token_type_ids", 2, "outside the model's segments"),
        ("attention_mask", 2, "not ones followed by zeros"),
        ("attention_mask", 0, "not ones followed by zeros"),
    ],
)
def test_inputs_that_are_no_pairs_are_refused(
    tmp_path: Path, native_library: Path, name: str, value: int, message: str
) -> None:
    encoder = make_encoder()
    session = open_encoder(encoder, tmp_path, native_library, kernels=SCALAR)
    batch = make_batch([4, 9], encoder.shape)
    batch[name][1, 3] = value
    with pytest.raises(EngineError, match=message):
        session.run(batch)


def test_an_empty_pair_is_refused(tmp_path: Path, native_library: Path) -> None:
    encoder = make_encoder()
    batch = make_batch([4, 9], encoder.shape)
    batch["attention_mask"][0] = 0
    with pytest.raises(EngineError, match="no token"):
        open_encoder(encoder, tmp_path, native_library, kernels=SCALAR).run(batch)


def test_a_pair_longer_than_the_positions_is_refused(tmp_path: Path, native_library: Path) -> None:
    encoder = make_encoder(make_shape(positions=8))
    with pytest.raises(EngineError, match="longer than the model has positions"):
        open_encoder(encoder, tmp_path, native_library, kernels=SCALAR).run(make_batch([9], encoder.shape))


def test_a_batch_without_pairs_has_no_logits(tmp_path: Path, native_library: Path) -> None:
    encoder = make_encoder(make_shape(labels=2))
    empty = {name: np.zeros((0, 5), np.int64) for name in ("input_ids", "attention_mask", "token_type_ids")}
    assert open_encoder(encoder, tmp_path, native_library, kernels=SCALAR).run(empty).shape == (0, 2)


def test_a_closed_session_runs_nothing_and_closes_twice(tmp_path: Path, native_library: Path) -> None:
    encoder = make_encoder()
    session = open_encoder(encoder, tmp_path, native_library, kernels=SCALAR)
    session.close()
    session.close()
    with pytest.raises(EngineError, match="closed"):
        session.run(make_batch([4], encoder.shape))


def test_closing_waits_for_the_batch_that_runs(tmp_path: Path, native_library: Path) -> None:
    encoder = make_encoder(make_shape(hidden=256, heads=8, intermediate=512))
    session = open_encoder(encoder, tmp_path, native_library, kernels=SCALAR)
    batch = make_batch([150] * 8, encoder.shape)
    begun = Event()

    def run() -> np.ndarray:
        begun.set()
        return session.run(batch)

    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(run)
        begun.wait()
        session.close()
        try:
            assert np.isfinite(answer.result()).all()
        except EngineError as error:  # it was closed before the batch got in
            assert "closed" in str(error)  # noqa: PT017


def test_an_encoder_with_other_labels_is_refused(tmp_path: Path, native_library: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    write_encoder(make_encoder(), path)
    with pytest.raises(BundleError, match="3 labels"):
        NativeSession(path, labels=3, library=native_library, kernels=SCALAR)


def test_an_encoder_file_comes_back_as_it_was_written(tmp_path: Path) -> None:
    encoder = make_encoder()
    write_encoder(encoder, tmp_path / "file")
    read = read_encoder(tmp_path / "file")
    assert read.shape == encoder.shape
    assert {name: tensor.tobytes() for name, tensor in read.tensors.items()} == {
        name: tensor.tobytes() for name, tensor in encoder.tensors.items()
    }


def test_safetensors_reads_an_encoder_file(tmp_path: Path) -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    encoder = make_encoder()
    write_encoder(encoder, tmp_path / "file")
    loaded = numpy.load_file(tmp_path / "file")
    np.testing.assert_array_equal(loaded["layers.1.query.weight"], encoder.tensors["layers.1.query.weight"])


def rewrite_shape(path: Path, **changes: object) -> None:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"]["shape"] = json.dumps(json.loads(header["__metadata__"]["shape"]) | changes)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


@pytest.mark.parametrize(
    "changes",
    [
        {"vocabulary": 51},
        {"layers": 3},
        {"hidden": 96},
        {"heads": 4},
        {"labels": 0},
        {"positions": 2**40},
        {"epsilon": "0"},
        {"padding_id": -2},
        {"surprise": 1},
    ],
    ids=str,
)
def test_a_file_whose_shape_does_not_fit_its_tensors_is_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    path = tmp_path / "file"
    write_encoder(make_encoder(), path)
    rewrite_shape(path, **changes)
    with pytest.raises(BundleError, match="not a file of the native engine"):
        read_encoder(path)


@pytest.mark.parametrize("size", [0, 7, 100, 5000])
def test_a_file_that_was_cut_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    write_encoder(make_encoder(), path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(BundleError, match="not a file of the native engine"):
        read_encoder(path)


def test_a_tensor_of_another_shape_is_not_written(tmp_path: Path) -> None:
    encoder = make_encoder()
    tensors = {**encoder.tensors, "words": encoder.tensors["words"][1:]}
    with pytest.raises(ValueError, match="words is int8"):
        write_encoder(Encoder(shape=encoder.shape, tensors=tensors), tmp_path / "file")


def test_without_the_library_a_session_says_how_to_build_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert find_library() is None
    with pytest.raises(ProviderUnavailableError, match="crossforge native"):
        NativeSession(tmp_path / "encoder.safetensors")


def test_a_library_that_cannot_be_loaded_is_an_engine_error(tmp_path: Path) -> None:
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"no library")
    with pytest.raises(EngineError, match="cannot load the native engine"):
        NativeSession(tmp_path / "encoder.safetensors", library=broken)


def test_without_a_compiler_building_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ProviderUnavailableError, match="no compiler 'no-such-compiler'"):
        build_library(tmp_path, compiler="no-such-compiler")


def test_a_compiler_that_fails_leaves_no_library(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="does not compile"):
        build_library(tmp_path, compiler="false")
    assert list(tmp_path.iterdir()) == []


def test_it_says_that_it_is_the_native_provider(tmp_path: Path, native_library: Path) -> None:
    session = open_encoder(make_encoder(), tmp_path, native_library, kernels=SCALAR)
    assert session.provider is ExecutionProvider.NATIVE
