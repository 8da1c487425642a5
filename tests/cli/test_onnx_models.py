"""Models that come as ONNX: our own graph with free or fixed shapes, and other architectures by way of torch."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from torch_like import TorchLike


@pytest.fixture
def options(tiny_bert_dir, tiny_glue_dir, tmp_path):
    return [
        *("--tokenizer", tiny_bert_dir, "--task", "sst2", "--data", tiny_glue_dir, "--calib-samples", 24),
        *("--batch", 8, "--seq-len", 24, "--precision", "fp32,int8", "--out", tmp_path / "out", "--json"),
    ]


@pytest.mark.parametrize("shape", [(None, None), (8, 24)], ids=["free", "fixed"])
def test_our_own_graph_as_a_file_gives_the_same_figures(cli, options, tiny_bert_dir, tmp_path, shape):
    import onnx

    from quantkit.network.model import load_model

    network = load_model(tiny_bert_dir)
    onnx.save(network.fixed(*shape) if shape[0] else network.proto, tmp_path / "model.onnx")
    code, out, err = cli("run", tmp_path / "model.onnx", *options)
    assert code == 0, err
    ours = json.loads(cli("run", tiny_bert_dir, *options)[1])
    theirs = json.loads(out)
    for mine, other in zip(ours["engines"], theirs["engines"], strict=True):
        assert mine["metrics"] == other["metrics"]
    assert theirs["engines"][1]["int8_ops"] == 16


def test_a_fixed_shape_that_does_not_fit_is_refused(cli, options, tiny_bert_dir, tmp_path):
    import onnx

    from quantkit.network.model import load_model

    onnx.save(load_model(tiny_bert_dir).fixed(4, 16), tmp_path / "model.onnx")
    code, _, err = cli("run", tmp_path / "model.onnx", *options)
    assert code == 2
    assert "Ask for 4" in err


@pytest.mark.parametrize("hides", [-np.inf, np.finfo(np.float32).min], ids=["infinity", "lowest"])
def test_masks_as_torch_exports_them(cli, tiny_bert_dir, tiny_glue_dir, tmp_path, monkeypatch, hides):
    """transformers' attention hides padding by -inf (SDPA, TorchScript exporter) or float32's lowest number."""
    import onnx

    monkeypatch.chdir(tmp_path)
    onnx.save(TorchLike(1, vocabulary=200, hides=float(hides)).model(), "model.onnx")
    data = ["--tokenizer", tiny_bert_dir, "--task", "sst2", "--data", tiny_glue_dir, "--calib-samples", 12]
    data += ["--batch", 2, "--seq-len", 8]
    code, _, err = cli("calibrate", "model.onnx", *data, "--out", "tables")
    assert code == 0, err
    entries = json.loads((tmp_path / "tables" / "minmax.json").read_text())["entries"]
    apart = [name for name, entry in entries.items() if "mask logits set apart" in entry.get("reason", "")]
    assert bool(apart) == np.isinf(hides)
    code, out, err = cli("run", "model.onnx", *data, "--limit", 8, "--precision", "fp32,int8", "--out", "out", "--json")
    assert code == 0, err
    assert json.loads(out)["engines"][1]["int8_ops"] == 8
    assert cli("migrate", "tables/entropy.cache", "model.onnx", "-o", "q.onnx")[0] == 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["Roberta", "DistilBert"])
def test_another_architecture_by_way_of_torch(cli, options, tmp_path, family):
    pytest.importorskip("torch")
    import transformers

    sizes = {
        "Roberta": {
            **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
            "type_vocab_size": 1,
        },
        "DistilBert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64},
    }
    config = getattr(transformers, f"{family}Config")(vocab_size=300, max_position_embeddings=80, **sizes[family])
    getattr(transformers, f"{family}ForSequenceClassification")(config).save_pretrained(tmp_path / "hf")
    code, out, err = cli("export", tmp_path / "hf", "--out", tmp_path / "model.onnx", "--json")
    assert code == 0, err
    assert json.loads(out[out.index("{") :])["labels"] == 2
    code, out, err = cli("run", tmp_path / "model.onnx", *options)
    assert code == 0, err
    assert json.loads(out)["engines"][1]["int8_ops"] >= 12


def test_export_without_torch_says_what_to_install(cli, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    code, _, err = cli("export", tmp_path, "--out", tmp_path / "model.onnx")
    assert code == 2
    assert "quantkit[export]" in err
