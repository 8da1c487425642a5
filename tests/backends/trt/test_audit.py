"""What inspector, profiler and kernel trace say, and the verdict in words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quantkit.backends.trt.audit import Audit, examine, format_precision, kernel_precision, read_layers
from quantkit.errors import InputError
from quantkit.pipeline.tensorrt.audit import audit_file, read_inspection, read_times


def tensor(name: str, kind: str = "Row major linear FP32") -> dict:
    return {"Name": name, "Location": "Device", "Dimensions": [4, 16, 32], "Format/Datatype": kind}


def layer(name: str, kind: str, tactic: str = "", inputs=(), outputs=(), **more) -> dict:
    return {
        "Name": name,
        "LayerType": kind,
        "Inputs": list(inputs),
        "Outputs": list(outputs),
        "TacticName": tactic,
        **more,
    }


INT8 = "Thirty-two wide channel vectorized row major Int8 format"
HALF = "Row major linear FP16 format"
REGION = layer("{ForeignNode[embeddings.word...logits]}", "Myelin", inputs=[tensor("input_ids", "Row major Int32")])
GEMMS = [
    layer("Reformatting CopyNode for Input Tensor 0 to a", "Reformat", outputs=[tensor("a", INT8)]),
    layer("a", "CaskGemmConvolution", "sm80_xmma_gemm_i8i8_i8i32_f32_tn_n_tilesize128x128x64", [tensor("a", INT8)]),
    layer("b", "MatrixMultiply", "sm80_xmma_gemm_f16f16_f16f16_f16_tn_n_tilesize64x64x64", [tensor("a", HALF)]),
    layer("c", "CaskConvolution", "sm80_xmma_fprop_implicit_gemm_tf32tf32_tf32f32_f32_nhwckrsc", [tensor("c")]),
    layer("d", "fusion", "_gemm_mha_v2_0x68d19b", [tensor("d", HALF)], [tensor("e", HALF)]),
    layer("e", "PointWise", "generatedNativePointwise", [tensor("e", HALF)], [tensor("f", HALF)]),
]


@pytest.mark.parametrize(
    "name, expected",
    [
        ("sm80_xmma_gemm_i8i8_i8i32_f32_tn_n_tilesize128x128x64_stage3", "int8"),
        ("sm90_xmma_gemm_i8f32_i8i32_f32_tn_n_tilesize64x64x128_cgasize1x2x1", "int8"),
        ("sm90_xmma_gemm_f16f16_f16f32_f32_tn_n_tilesize64x64x64_warpgroupsize1x1x1", "fp16"),
        ("sm80_xmma_gemm_tf32tf32_tf32f32_f32_nn_n_tilesize32x32x32", "tf32"),
        ("sm80_xmma_gemm_bf16bf16_bf16f32_f32_tn_n", "bf16"),
        ("ampere_sgemm_128x64_tn", "fp32"),
        ("trt_ampere_h16816gemm_128x128_ldg8_stages_32x5_tn_v1", "fp16"),
        ("sm80_xmma_gemm_e4m3e4m3_e4m3f32_f32_tn_n", "fp8"),
        ("generatedNativePointwise", ""),
    ],
)
def test_kernels_tell_their_type(name: str, expected: str) -> None:
    assert kernel_precision(name) == expected


@pytest.mark.parametrize(
    "text, expected",
    [(INT8, "int8"), (HALF, "fp16"), ("Row major linear FP32", "fp32"), ("Row major Int32 format", "int32"), ("?", "")],
)
def test_formats_tell_their_type(text: str, expected: str) -> None:
    assert format_precision(text) == expected


def test_layers_are_read() -> None:
    layers = read_layers({"Layers": GEMMS}, {"a": 0.5, "unknown": 0.1})
    assert [x.gemm for x in layers] == [False, True, True, True, False, False, False]
    assert [x.precision for x in layers][:4] == ["int8", "int8", "fp16", "tf32"]
    assert layers[0].reformat
    assert layers[4].attention
    assert layers[1].ms == 0.5
    assert layers[-1].name == "unknown"
    assert layers[-1].ms == 0.1


def test_an_engine_with_int8_in_it() -> None:
    times = {item["Name"]: 1.0 for item in GEMMS}
    found = examine({"Layers": GEMMS}, times, precision="int8", ranges="qdq")
    assert found.gemms == {"int8": 1, "fp16": 1, "tf32": 1}
    assert (found.int8_gemms, found.float_gemms) == (1, 2)
    assert found.total_ms == 6.0
    assert sum(found.time_share.values()) == pytest.approx(1)
    assert found.time_share["reformat"] == pytest.approx(1 / 6)
    assert found.reformats == 1
    assert found.fused_attention == 1
    assert found.regions == ()
    assert found.verdict[0] == "Matrix products: 1 in INT8, 1 in FP16, 1 in TF32."
    assert "Attention is fused in 1 kernel" in found.verdict[1]


@pytest.mark.parametrize("ranges, advice", [("cache", "use Q/DQ or --network api"), ("qdq", "use --network api")])
def test_an_int8_engine_whose_encoder_myelin_took(ranges: str, advice: str) -> None:
    found = examine({"Layers": [REGION]}, {REGION["Name"]: 0.3}, precision="int8", ranges=ranges)
    assert found.verdict[0] == f"Nothing in this engine is INT8: Myelin took the encoder; {advice}."
    assert found.regions == (REGION["Name"],)
    assert found.fused_attention is None
    assert found.time_share == {"region": 1.0}


def test_a_trace_looks_into_the_region() -> None:
    kernels = [
        ("sm80_xmma_gemm_i8i8_i8i32_f32_tn_n", 0.1),
        ("sm80_xmma_gemm_f16f16_f16f16_f16_tn_n", 0.2),
        ("_gemm_mha_v2_0x1234", 0.1),
        ("__myl_AddMeaSubMul_0x5678", 0.05),
        ("copyVectorizedKernel", 0.05),
    ]
    found = examine({"Layers": [REGION]}, {REGION["Name"]: 0.6}, precision="int8", ranges="qdq", kernels=kernels)
    assert found.gemms == {"int8": 1, "fp16": 1}
    assert found.fused_attention == 1
    assert found.regions == ()
    assert found.total_ms == pytest.approx(0.5)
    assert found.time_share["int8"] == pytest.approx(0.2)
    assert found.time_share["reformat"] == pytest.approx(0.1)
    assert len(found.kernels) == 5
    assert found.verdict[0].startswith("Matrix products: 1 in INT8, 1 in FP16")


def test_an_int8_engine_without_regions_and_without_int8() -> None:
    found = examine({"Layers": [GEMMS[2]]}, precision="int8+fp32", ranges="cache")
    assert found.verdict[0].startswith("Nothing in this engine is INT8: TensorRT chose float kernels")


def test_float_engines_are_not_blamed() -> None:
    found = examine({"Layers": [GEMMS[2]]}, precision="fp16")
    assert found.verdict[0] == "Matrix products: 1 in FP16."


def test_missing_scales_are_told() -> None:
    found = examine({"Layers": GEMMS}, precision="int8", ranges="cache", scales_used=["a"], scales_missing=["b", "c"])
    assert "2 tensors had no scale." in found.verdict
    assert found.as_json()["scales_missing"] == ["b", "c"]
    assert found.as_json()["scales_used"] == 1


@pytest.mark.parametrize("information", [{}, {"Layers": []}, {"Layers": ["just a name", 3, None]}, {"Layers": [{}]}])
def test_odd_information_does_not_break_it(information: dict) -> None:
    found = examine(information)
    json.dumps(found.as_json(layers=True))
    assert isinstance(found, Audit)


def test_an_inspector_s_file_needs_no_gpu(tmp_path: Path, cli) -> None:
    (tmp_path / "layers.json").write_text(json.dumps({"Layers": GEMMS}))
    (tmp_path / "times.json").write_text(json.dumps([{"count": 10}, {"name": "a", "averageMs": 0.5}]))
    found = audit_file(tmp_path / "layers.json", times=tmp_path / "times.json")
    assert found["gemms"] == {"int8": 1, "fp16": 1, "tf32": 1}
    assert found["total_ms"] == 0.5
    code, out, _ = cli("audit", tmp_path / "layers.json", "--layers")
    assert code == 0
    assert "Matrix products: 1 in INT8" in out


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"Layers": 3}'])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError):
        read_inspection(tmp_path / "x.json")


@pytest.mark.parametrize("text", ["3", '{"a": "b"}', '[{"name": "a"}]'])
def test_other_profiles_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError, match="is no profile"):
        read_times(tmp_path / "x.json")


RECORDED = json.loads((Path(__file__).parent / "recorded" / "h100_trt860_kernels.json").read_text())
"""Kernels of one inference of MiniLM-L6 (16 x 64 tokens), traced on an H100 with TensorRT 8.6.0."""


@pytest.mark.parametrize(
    "engine, precision, gemms, reformats",
    [
        ("onnx fp16", "fp16", {"fp16": 38}, 1),
        ("api tf32", "tf32", {"tf32": 36, "fp32": 2}, 0),
        # The 1 x 1 convolutions stand between changes of format.
        ("api fp32 convolution, elementwise norm", "fp32", {"fp32": 44}, 72),
    ],
)
def test_recorded_engines(engine: str, precision: str, gemms: dict, reformats: int) -> None:
    found = examine({"Layers": [REGION]}, precision=precision, kernels=[(n, ms) for n, ms in RECORDED[engine]])
    assert found.gemms == gemms
    assert found.reformats == reformats
    assert found.fused_attention == 0
    assert found.regions == ()
    assert "int8" not in found.time_share
    assert found.time_share[precision] > 0.5
    assert found.total_ms == pytest.approx(sum(ms for _, ms in RECORDED[engine]))
    assert found.verdict[1] == "Attention is not fused."


def test_recorded_kernels_under_an_int8_request_are_called_what_they_are() -> None:
    found = examine({"Layers": [REGION]}, precision="int8", ranges="cache", kernels=RECORDED["onnx fp16"])
    assert found.int8_gemms == 0
    assert found.verdict[0].startswith("Nothing in this engine is INT8")
