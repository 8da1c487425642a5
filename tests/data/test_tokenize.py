"""The tokenizer: the same ids as transformers gives, without importing it, within the model's limits."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from quantkit.data.tokenize import encode, load_tokenizer
from quantkit.errors import InputError, ModelError

TEXTS = [
    ("The movie was good.",),
    ("a dull film, and very long!", "The ending was never clever?"),
    ("Ünïcode, CAPITALS\tand 東京 \u200b x", "[MASK] [SEP] ##ing"),
    ("zzzqqq " * 3,),
]


def reference(folder, texts, **options):
    """What transformers' AutoTokenizer makes of the texts."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    return [tokenizer(*row, **options) for row in texts]


@pytest.mark.parametrize("fixture", ["tiny_bert_dir", "demo_model_dir"])
@pytest.mark.parametrize("max_length", [64, 9])
def test_ids_are_those_of_transformers(request, fixture, max_length):
    folder = request.getfixturevalue(fixture)
    encoded = encode(load_tokenizer(folder), TEXTS, max_length)
    for i, expected in enumerate(reference(folder, TEXTS, truncation=True, max_length=max_length)):
        assert encoded.input_ids[i].tolist() == expected["input_ids"]
        assert encoded.type_ids[i].tolist() == expected["token_type_ids"]
        assert encoded.input_ids[i].dtype == encoded.type_ids[i].dtype == np.int64


@pytest.mark.shared
def test_a_whole_task_is_tokenized_as_transformers_does(shared_dir, demo_model_dir):
    from quantkit.data.glue import load_examples

    texts = load_examples("mrpc", "eval", shared_dir / "glue").texts
    encoded = encode(load_tokenizer(demo_model_dir), texts, 48)
    expected = reference(demo_model_dir, texts, truncation=True, max_length=48)
    assert [ids.tolist() for ids in encoded.input_ids] == [row["input_ids"] for row in expected]
    full = reference(demo_model_dir, texts)
    assert encoded.truncated == sum(len(row["input_ids"]) > 48 for row in full) > 0


def test_truncation_is_counted_and_ends_with_the_separator(tiny_bert_dir):
    tokenizer = load_tokenizer(tiny_bert_dir)
    texts = [("good",), ("bad " * 30,), ("a film " * 9, "dull " * 3)]
    encoded = encode(tokenizer, texts, 16)
    assert encoded.truncated == 2 and encoded.max_length == 16
    assert encoded.lengths.tolist() == [3, 16, 16]
    separator = tokenizer.backend.token_to_id("[SEP]")
    assert all(ids[-1] == separator for ids in encoded.input_ids)
    assert encoded.type_ids[2].tolist().count(1) == 4  # the shorter half is whole: 3 words and [SEP]
    again = encode(tokenizer, texts)
    assert again.truncated == 0 and again.lengths.tolist() == [3, 32, 24]


def test_the_models_limit_caps_max_length(tiny_bert_dir, demo_model_dir):
    tokenizer = load_tokenizer(tiny_bert_dir)
    assert tokenizer.max_length == 64
    encoded = encode(tokenizer, [("good " * 100,)], 512)
    assert encoded.max_length == 64 and encoded.lengths.tolist() == [64] and encoded.truncated == 1
    assert load_tokenizer(demo_model_dir).max_length == 512


def test_the_smaller_of_both_limits_counts_and_no_limit_is_none(tiny_bert_dir, tmp_path):
    folder = shutil.copytree(tiny_bert_dir, tmp_path / "model")
    change(folder / "tokenizer_config.json", model_max_length=10**30)
    assert load_tokenizer(folder).max_length == 64
    change(folder / "tokenizer_config.json", model_max_length=40)
    assert load_tokenizer(folder).max_length == 40


def change(path, **values):
    """Sets fields of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(("texts", "least"), [([("good",)], 3), ([("good",), ("good", "bad")], 5)])
def test_max_length_must_leave_room_for_a_word(tiny_bert_dir, texts, least):
    tokenizer = load_tokenizer(tiny_bert_dir)
    assert encode(tokenizer, texts, least).lengths.max() == least
    with pytest.raises(InputError, match=f"need {least}"):
        encode(tokenizer, texts, least - 1)


@pytest.mark.parametrize("texts", [[], [()], [("a", "b", "c")]])
def test_rows_must_be_one_or_two_sentences(tiny_bert_dir, texts):
    with pytest.raises(InputError, match=r"no texts|one or two"):
        encode(load_tokenizer(tiny_bert_dir), texts)


def test_padding_and_truncation_baked_into_the_file_are_ignored(demo_model_dir):
    baked = json.loads((demo_model_dir / "tokenizer.json").read_text(encoding="utf-8"))
    assert baked["padding"]["strategy"] == {"Fixed": 128}
    encoded = encode(load_tokenizer(demo_model_dir), [("one two",), ("word " * 300,)])
    assert encoded.lengths.tolist() == [4, 302]
    assert encoded.pad_id == 0


def test_a_file_in_the_folder_stands_for_the_folder(tiny_bert_dir):
    assert load_tokenizer(tiny_bert_dir / "config.json").folder == tiny_bert_dir


def test_vocab_txt_alone_will_do(tiny_bert_dir, tmp_path, capfd):
    for name in ("vocab.txt", "config.json"):
        shutil.copy(tiny_bert_dir / name, tmp_path)
    encoded = encode(load_tokenizer(tmp_path), TEXTS, 32)
    expected = encode(load_tokenizer(tiny_bert_dir), TEXTS, 32)
    assert [ids.tolist() for ids in encoded.input_ids] == [ids.tolist() for ids in expected.input_ids]
    assert capfd.readouterr() == ("", "")


def test_tokenizer_config_wins_where_it_contradicts_tokenizer_json(tiny_bert_dir, tmp_path):
    folder = shutil.copytree(tiny_bert_dir, tmp_path / "model")
    change(folder / "tokenizer_config.json", do_lower_case=False)
    (upper,) = encode(load_tokenizer(folder), [("GOOD",)]).input_ids
    (lower,) = encode(load_tokenizer(tiny_bert_dir), [("GOOD",)]).input_ids
    assert upper.tolist() == reference(folder, [("GOOD",)])[0]["input_ids"] != lower.tolist()


def test_a_folder_without_tokenizer_says_what_is_missing(tiny_bert_dir, tmp_path):
    shutil.copy(tiny_bert_dir / "config.json", tmp_path)
    with pytest.raises(ModelError, match=r"holds no tokenizer: neither tokenizer\.json nor vocab\.txt") as caught:
        load_tokenizer(tmp_path)
    assert "Copy tokenizer.json" in caught.value.hint
    with pytest.raises(ModelError, match="There is no folder"):
        load_tokenizer(tmp_path / "none")


def test_a_tokenizer_without_its_unknown_word_is_refused_when_it_needs_it(tiny_bert_dir, tmp_path):
    shutil.copytree(tiny_bert_dir, tmp_path, dirs_exist_ok=True)
    value = json.loads((tmp_path / "tokenizer.json").read_text())
    value["model"]["unk_token"] = "[NOT THERE]"
    (tmp_path / "tokenizer.json").write_text(json.dumps(value))
    with pytest.raises(ModelError, match=r"cannot be used: WordPiece error: Missing"):
        encode(load_tokenizer(tmp_path), [("film \u4e16",)], 16)


@pytest.mark.parametrize(
    ("name", "content"),
    [("tokenizer.json", "{"), ("tokenizer.json", "{}"), ("config.json", "[]"), ("tokenizer_config.json", "{,}")],
)
def test_damaged_files_are_named(tiny_bert_dir, tmp_path, name, content):
    folder = shutil.copytree(tiny_bert_dir, tmp_path / "model")
    (folder / name).write_text(content)
    with pytest.raises(ModelError) as caught:
        load_tokenizer(folder)
    assert str(folder / name) in caught.value.message


def test_what_transformers_cannot_load_is_one_sentence(tmp_path):
    (tmp_path / "vocab.json").write_text("not JSON")
    (tmp_path / "config.json").write_text('{"model_type": "roberta"}')
    with pytest.raises(ModelError, match=r"cannot be loaded: [^\n]*$") as caught:
        load_tokenizer(tmp_path)
    assert "save_pretrained" in caught.value.hint


def test_a_tokenizer_of_another_model_is_noticed(tiny_bert_dir, tmp_path):
    folder = shutil.copytree(tiny_bert_dir, tmp_path / "model")
    change(folder / "config.json", vocab_size=20)
    with pytest.raises(ModelError, match=r"gives token id \d+, and config\.json says vocab_size 20"):
        encode(load_tokenizer(folder), [("the movie was good",)])
    change(folder / "config.json", vocab_size=500, type_vocab_size=1)
    assert len(encode(load_tokenizer(folder), [("good",)])) == 1
    with pytest.raises(ModelError, match="gives token type 1"):
        encode(load_tokenizer(folder), [("good", "bad")])


def test_the_padding_token_may_have_another_name_and_id(tiny_bert_dir, tmp_path):
    folder = shutil.copytree(tiny_bert_dir, tmp_path / "model")
    change(folder / "tokenizer_config.json", pad_token={"content": "[MASK]"})
    assert load_tokenizer(folder).pad_id == 4
    change(folder / "tokenizer_config.json", pad_token="<none>")
    change(folder / "config.json", pad_token_id=3)
    assert load_tokenizer(folder).pad_id == 3


def test_rows_can_be_taken_from_what_is_encoded(tiny_bert_dir):
    encoded = encode(load_tokenizer(tiny_bert_dir), [("good",), ("bad film",), ("dull",)])
    taken = encoded.take([1, 0])
    assert taken.lengths.tolist() == [4, 3] and len(taken) == 2
    assert taken.input_ids[1] is encoded.input_ids[0]


def test_neither_transformers_nor_torch_is_imported(tiny_bert_dir):
    code = (
        "import sys; from quantkit.data.tokenize import encode, load_tokenizer;"
        "light = 'tokenizers' not in sys.modules;"
        f"encode(load_tokenizer({str(tiny_bert_dir)!r}), [('good',)]);"
        "sys.exit(0 if light and not {'transformers', 'torch'} & set(sys.modules) else 1)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
