"""Shares of an encoder layer's time, from recorded kernels and from made ones."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from quantkit.backends.trt.audit import examine, kernel_precision, of_kernel
from quantkit.backends.trt.shares import layer_shares, parts_of
from quantkit.errors import BackendError
from quantkit.report.stacked import stacked_bars

RECORDED = Path(__file__).parent / "recorded" / "h100_trt860_kernels.json"
NAMES = {
    "int8": "_ZN8quantkit12_GLOBAL__N_115quantkit_linearIaaLb1ELi64ELi32ELi8EEEv14CUtensorMap_stS2_NS0_8EpilogueE",
    "mixed": "_ZN8quantkit12_GLOBAL__N_115quantkit_linearIa6__halfLb0ELi64ELi32ELi8EEEv14CUtensorMap_stS2_",
    "fp16": "_ZN8quantkit12_GLOBAL__N_115quantkit_linearI6__halfS2_Lb0ELi64ELi32ELi8EEEv14CUtensorMap_st",
    "attention": "_ZN8quantkit12_GLOBAL__N_118quantkit_attentionIaaLi64EEEvNS_9AttentionE",
    "norm": "_ZN8quantkit12_GLOBAL__N_113quantkit_normI6__halfS2_Li3EEEvNS_4NormE",
}


def plugin_layer(scale: float = 1.0) -> list[tuple[str, float]]:
    """The seven kernels of a layer."""
    names = ("int8", "attention", "mixed", "norm", "int8", "mixed", "norm")
    return [(NAMES[name], scale * ms) for name, ms in zip(names, (3, 2, 1, 0.5, 4, 4, 0.5), strict=True)]


def test_a_network_of_plugins_is_counted_by_its_kernels() -> None:
    kernels = [(NAMES["norm"], 9.0), *plugin_layer(), *plugin_layer(3.0), (NAMES["fp16"], 7.0), ("other", 1.0)]
    found = layer_shares(kernels)
    assert (found.layers, found.fused) == (1, True)
    # From the first attention to the second: all of the first layer but its joint product, and that of the second.
    assert found.ms == {"gemm": 1 + 4 + 4 + 9, "attention": 2, "memory": 1}
    assert found.kernels == {"gemm": 4, "attention": 1, "memory": 2}
    assert sum(found.share(part) for part in found.ms) == pytest.approx(1)


def test_the_audit_knows_the_plugins_kernels() -> None:
    assert [kernel_precision(NAMES[name]) for name in ("int8", "mixed", "fp16")] == ["int8", "int8", "fp16"]
    plain = "void quantkit::quantkit_linear<signed char, __half, true, 64, 32, 8>(CUtensorMap_st)"
    assert kernel_precision(plain) == "int8" and of_kernel(plain, 1.0).gemm
    walk = NAMES["mixed"].replace("15quantkit_linearI", "20quantkit_linear_walkI")
    assert kernel_precision(walk) == "int8" and of_kernel(walk, 1.0).gemm
    assert of_kernel(NAMES["attention"], 1.0).attention and not of_kernel(NAMES["attention"], 1.0).gemm
    assert not of_kernel(NAMES["norm"], 1.0).gemm
    found = examine({}, precision="int8", kernels=[*plugin_layer(), (NAMES["fp16"], 1.0)])
    assert found.gemms == {"int8": 4, "fp16": 1} and found.fused_attention == 1


@pytest.mark.parametrize(
    "name, attention, gemm",
    [("onnx fp16", 3, 4), ("api tf32", 3, 4)],  # softmax and two products; joint product, output, feed-forward pair
)
def test_attention_that_is_not_fused_is_found_by_its_softmax(name: str, attention: int, gemm: int) -> None:
    kernels = [(str(n), float(ms)) for n, ms in json.loads(RECORDED.read_text())[name]]
    found = layer_shares(kernels)
    assert (found.layers, found.fused) == (5, False)
    assert found.kernels["attention"] == attention
    assert found.kernels["gemm"] == pytest.approx(gemm, abs=0.21)
    assert parts_of(kernels).count("attention") == 6 * attention


def test_one_layer_is_not_enough() -> None:
    with pytest.raises(BackendError, match="1 attentions are among the 7 kernels"):
        layer_shares(plugin_layer())
    with pytest.raises(BackendError, match="0 attentions are among the 0 kernels; two are needed"):
        layer_shares([])


def test_the_command_reads_traces(cli, tmp_path: Path) -> None:
    code, out, _ = cli("profile", "--from", RECORDED, "--out", tmp_path, "--json")
    assert code == 0
    rows = {row["name"]: row for row in json.loads(out)["rows"]}
    assert rows["onnx fp16"]["share"]["gemm"] == pytest.approx(0.64, abs=0.01)
    assert json.loads((tmp_path / "profile.json").read_text()) == json.loads(out)
    picture = ElementTree.fromstring((tmp_path / "profile.svg").read_text())
    assert len(picture.findall(".//{*}rect")) == 1 + 3 * 3 + 3
    code, out, _ = cli("profile", "--from", RECORDED)
    assert code == 0 and "published, 1024 tokens" in out and "49 %" in out
    (tmp_path / "inspection.json").write_text(json.dumps({"kernels": plugin_layer() * 3}))
    code, out, _ = cli("profile", "--from", tmp_path / "inspection.json", "--json")
    assert json.loads(out)["rows"][0]["layers"] == 2
    (tmp_path / "odd.json").write_text("[1, 2]")
    code, _, err = cli("profile", "--from", tmp_path / "odd.json")
    assert code == 2 and "holds no traced kernels" in err


@pytest.mark.parametrize(
    "arguments, says",
    [
        ((), "needs a model folder, or kernels"),
        (("x", "--from", RECORDED), "needs a model folder, or kernels"),
        (("x", "--seq-len", "short"), "'short' are no sequence lengths"),
        (("x", "-p", "int8"), "INT8 needs a calibration table"),
        (("x", "--batch", "0"), "cannot be profiled"),
    ],
)
def test_the_command_refuses(cli, arguments, says: str) -> None:
    code, _, err = cli("profile", *arguments)
    assert code == 2 and says in err


def test_rows_that_fail_carry_their_reason(fake_trt, tiny_bert_dir, cli) -> None:
    # The stand-in has no kernels to trace, and 64 positions.
    code, out, _ = cli("profile", tiny_bert_dir, "-p", "fp32", "--seq-len", "16,128", "--batch", "2", "--json")
    assert code == 0
    short, long = json.loads(out)["rows"]
    assert "0 attentions are among the 0 kernels" in short["reason"]
    assert "longer than the model's 64 positions" in long["reason"] or "128" in long["reason"]


def test_bars_are_as_long_as_their_values() -> None:
    picture = ElementTree.fromstring(
        stacked_bars("A & B", ["x", "y"], {"<one>": {"x": 1, "y": 3}, "two": {"x": 2}}, "ms")
    )
    rects = [r for r in picture.findall("{*}rect") if r.get("height") == "22"]
    widths = [float(r.get("width")) for r in rects]
    assert widths[1] == pytest.approx(3 * widths[0], rel=1e-2) and widths[2] == pytest.approx(2 * widths[0], rel=1e-2)
    assert widths[3] == 0
    assert "<one>" in [t.text for t in picture.findall("{*}text")]
