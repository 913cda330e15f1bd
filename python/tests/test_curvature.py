"""Calibrator and surgeon for callers, without a coordinator: factors against what they must be, paths and updates against
the formulas in numpy."""

from __future__ import annotations

import os
import pathlib
import subprocess
from collections.abc import Iterator

import blake3
import grpc
import numpy as np
import numpy.typing as npt
import pytest

from llm_surgeon import SurgeonError, curvature, run_spec
from llm_surgeon.curvature import Array, BlockFactors, Calibrator, Surgeon, read_tensors
from llm_surgeon.v1 import calibrator_service_pb2, run_pb2, surgeon_service_pb2

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAMS = pathlib.Path(os.environ["LLM_SURGEON_PROGRAMS"])
MODEL = os.environ["LLM_SURGEON_TEST_MODEL"]

Wide = npt.NDArray[np.float64]


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A calibrator and a surgeon that work alone."""
    folder = tmp_path_factory.mktemp("alone")
    running, targets = [], {}
    for name in ("calibrator", "surgeon"):
        targets[name] = f"unix://{folder}/{name}.sock"
        words: list[str | pathlib.Path] = [PROGRAMS / name, "--standalone", "--listen", targets[name], "--device", "cpu", "--threads", "1"]
        with open(folder / f"{name}.log", "wb") as log:
            running.append(subprocess.Popen(words, stderr=log))
    yield targets
    for service in running:
        service.terminate()
    assert [service.wait(20) for service in running] == [0, 0]


def spec(samples: int = 8) -> run_pb2.RunSpec:
    return run_spec(MODEL, [str(ROOT / "testdata/text/calibration")], samples=samples, seq_len=128)


@pytest.fixture(scope="module")
def swept(services: dict[str, str]) -> dict[int, BlockFactors]:
    with Calibrator(services["calibrator"]) as calibrator:
        blocks = {factors.block: factors for factors in calibrator.curvature(spec())}
        assert calibrator.result is not None and calibrator.result.loss_sum > 0
    return blocks


def test_a_model_says_which_layers_have_curvature(services: dict[str, str]) -> None:
    with Calibrator(services["calibrator"]) as calibrator:
        loaded = calibrator.load(spec())
    block = loaded.model.blocks[0]
    assert {layer.layer.rsplit(".", 1)[1] for layer in block.layers if layer.curvature} == {"o_proj", "down_proj"}
    assert loaded.data.samples == 8 and loaded.data.seq_len == 128


def test_factors_are_symmetric_not_negative_and_complete(services: dict[str, str], swept: dict[int, BlockFactors]) -> None:
    with Calibrator(services["calibrator"]) as calibrator:
        model = calibrator.load(spec()).model
    assert sorted(swept, reverse=True) == list(swept), "the last block first"
    for description in model.blocks:
        factors = swept[description.block]
        assert factors.tokens == 8 * 128
        for layer in description.layers:
            if not layer.curvature:
                continue
            for matrix, size in ((factors.inputs[layer.layer], layer.columns), (factors.gradients[layer.layer], layer.rows)):
                assert matrix.shape == (size, size)
                assert np.array_equal(matrix, matrix.T)
                values = np.linalg.eigvalsh(matrix.astype(np.float64))
                assert values[0] > -1e-5 * values[-1] and values[-1] > 0


def test_parts_of_the_samples_add_up(services: dict[str, str], swept: dict[int, BlockFactors]) -> None:
    with Calibrator(services["calibrator"]) as calibrator:
        last = max(swept)
        parts = [list(calibrator.curvature(spec(), first_sample=first, samples=4, blocks=[last]))[0] for first in (0, 4)]
    whole = read_tensors(swept[last].file)
    for name, sums in whole.items():
        added = sum(read_tensors(part.file)[name] for part in parts)
        assert np.allclose(added, sums, rtol=1e-4, atol=1e-5 * float(np.abs(sums).max())), name


def test_the_same_text_gives_the_same_bytes(services: dict[str, str], swept: dict[int, BlockFactors]) -> None:
    with Calibrator(services["calibrator"]) as calibrator:
        again = {factors.block: factors for factors in calibrator.curvature(spec())}
    assert {block: factors.file for block, factors in again.items()} == {b: f.file for b, f in swept.items()}


def test_a_sweep_ends_with_its_caller_and_frees_the_calibrator(services: dict[str, str]) -> None:
    with Calibrator(services["calibrator"]) as calibrator:
        left = calibrator.curvature(spec())
        next(left)
        with Calibrator(services["calibrator"]) as second, pytest.raises(SurgeonError) as refused:
            next(second.curvature(spec()))
        assert refused.value.reason == "BUSY"
        left.close()  # type: ignore[attr-defined]
        assert next(calibrator.curvature(spec())).tokens == 8 * 128


def weight(layer: str) -> Wide:
    """Returns a layer's weights from the model's file, which has them as 16-bit floats."""
    file = (pathlib.Path(MODEL) / "model.safetensors").read_bytes()
    header, start = curvature._header(file)
    entry = header[layer + ".weight"]
    first, end = entry["data_offsets"]
    assert entry["dtype"] == "F16"
    found: Wide = np.frombuffer(file, "<f2", (end - first) // 2, start + first).reshape(entry["shape"]).astype(np.float64)
    return found


def damped(matrix: Array, share: float) -> Wide:
    wide = matrix.astype(np.float64)
    found: Wide = wide + share * np.diag(np.diag(wide))
    return found


def test_paths_and_updates_are_those_of_the_formulas(services: dict[str, str], swept: dict[int, BlockFactors]) -> None:
    asked = spec()
    layer = "model.layers.1.mlp.down_proj"
    factors = swept[1]
    w = weight(layer)
    a, g = damped(factors.inputs[layer], asked.damping_a), damped(factors.gradients[layer], asked.damping_g)
    a_inverse = np.linalg.inv(a)
    with Surgeon(services["surgeon"]) as surgeon:
        surgeon.upload("mine", factors)
        surgeon.upload("mine", factors)  # once more is the same
        assert surgeon.finalize("mine", asked, 1).tokens == 8 * 128
        path = surgeon.paths("mine", asked, 1)[layer]
        # ½ w_cᵀ G w_c / [A⁻¹]_cc, the least first; then jointly: ½ tr(W_Qᵀ G W_Q ([A⁻¹]_QQ)⁻¹).
        single = 0.5 * np.einsum("rc,rs,sc->c", w, g, w) / np.diag(a_inverse)
        assert path.steps[0].unit == int(single.argmin())
        assert path.steps[0].cost == pytest.approx(float(single.min()), rel=1e-3)
        removed = [step.unit for step in path.steps[:5]]
        inner = np.linalg.inv(a_inverse[np.ix_(removed, removed)])
        joint = 0.5 * np.trace(w[:, removed].T @ g @ w[:, removed] @ inner)
        assert sum(step.cost for step in path.steps[:5]) == pytest.approx(float(joint), rel=1e-3)
        new = surgeon.cut("mine", asked, 1, {layer: 5})[layer]
        assert new.predicted == pytest.approx(float(joint), rel=1e-3)
        expected = w - w[:, removed] @ inner @ a_inverse[removed, :]
        assert list(new.state.kept) == [unit for unit in range(w.shape[1]) if unit not in removed]
        assert np.allclose(new.weight, expected[:, list(new.state.kept)], rtol=1e-3, atol=1e-4)
        surgeon.drop("mine")
        with pytest.raises(SurgeonError) as gone:
            surgeon.finalize("mine", asked, 1)
        assert gone.value.reason == "MESSAGE_INVALID"


def test_an_upload_goes_on_where_it_broke(
    services: dict[str, str], swept: dict[int, BlockFactors], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(curvature, "CHUNK", 4096)
    factors = swept[0]
    digest = blake3.blake3(factors.file).hexdigest()
    announced = calibrator_service_pb2.FactorHeader(block=0, bytes=len(factors.file), blake3=digest)
    header = surgeon_service_pb2.UploadHeader(run="broken", factors=announced)
    parts = list(curvature._upload(header, factors.file))
    assert len(parts) > 5
    with Surgeon(services["surgeon"]) as surgeon:
        upload = surgeon._stub.UploadFactors
        damaged = surgeon_service_pb2.UploadFactorsRequest()
        damaged.CopyFrom(parts[4])
        damaged.chunk.payload = b"x" * len(damaged.chunk.payload)
        with pytest.raises(grpc.RpcError) as refused:
            upload(iter([*parts[:4], damaged]))
        assert refused.value.code() == grpc.StatusCode.DATA_LOSS
        answer = upload(iter(parts[:1]))
        assert (answer.received, answer.complete) == (3 * 4096, False), "what was good is kept"
        surgeon.upload("broken", factors)
        assert surgeon.finalize("broken", spec(), 0).tokens == 8 * 128
        with pytest.raises(SurgeonError) as another:
            surgeon.upload("broken", BlockFactors(0, factors.file[:-4] + bytes(4)))
        assert another.value.reason == "OBJECT_EXISTS"
        surgeon.drop("broken")


def test_bad_requests_say_what_is_wrong(services: dict[str, str], swept: dict[int, BlockFactors]) -> None:
    bad = spec()
    bad.model = "/nowhere"
    with Calibrator(services["calibrator"]) as calibrator:
        with pytest.raises(SurgeonError) as refused:
            list(calibrator.curvature(bad))
        assert refused.value.reason == "MODEL_INVALID" and "/nowhere" in refused.value.message
        with pytest.raises(SurgeonError) as refused:
            list(calibrator.curvature(spec(), blocks=[99]))
        assert "99" in refused.value.message
        with pytest.raises(SurgeonError) as refused:
            list(calibrator.curvature(spec(samples=1_000_000)))
        assert refused.value.reason == "DATA_INVALID"
    with Surgeon(services["surgeon"]) as surgeon:
        surgeon.upload("wrong", BlockFactors(1, swept[0].file))
        with pytest.raises(SurgeonError) as refused:
            surgeon.finalize("wrong", spec(), 1)
        assert refused.value.reason == "MESSAGE_INVALID" and "factors" in refused.value.violations
        surgeon.upload("fine", swept[1])
        with pytest.raises(SurgeonError) as refused:
            surgeon.cut("fine", spec(), 1, {"model.layers.1.mlp.down_proj": 10**6})
        assert "cuts[0].steps" in refused.value.violations
        for run in ("wrong", "fine"):
            surgeon.drop(run)
