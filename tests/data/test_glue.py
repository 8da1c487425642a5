"""The task table, and loading from folders in the GLUE layout and from files of any kind."""

import json
from pathlib import Path

import numpy as np
import pytest

from quantkit.data.glue import TASKS, Examples, get_task, load_examples
from quantkit.errors import DataError, InputError, UnknownNameError

GLUE = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")

OFFICIAL_HEADERS = {
    "SST-2": "sentence\tlabel",
    "MRPC": "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String",
    "STS-B": "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
    "QQP": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
    "MNLI": "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse"
    "\tsentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label",
    "QNLI": "index\tquestion\tsentence\tlabel",
    "RTE": "index\tsentence1\tsentence2\tlabel",
    "WNLI": "index\tsentence1\tsentence2\tlabel",
}

FIRST, SECOND = 'The "first text', "and the second."


def put(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def official_row(folder: str, label: str) -> str:
    """One row of a task's official TSV, with the given label."""
    cells = []
    for column in OFFICIAL_HEADERS[folder].split("\t"):
        text = {"sentence2": SECOND, "question2": SECOND, "#2 String": SECOND}.get(column)
        if column in ("sentence", "sentence1", "question", "question1", "#1 String"):
            text = SECOND if (folder, column) == ("QNLI", "sentence") else FIRST
        if column in ("label", "score", "Quality", "gold_label", "is_duplicate"):
            text = label
        cells.append(text or "x")
    return "\t".join(cells)


def test_the_table_holds_the_nine_tasks_and_the_demo():
    assert set(TASKS) == {*GLUE, "rotten_tomatoes"}
    for name, task in TASKS.items():
        assert task.name == name
        assert len(task.text_columns) == len(task.tsv_text_columns) in (1, 2)
        assert task.metrics and set(task.metrics) <= {"accuracy", "f1", "matthews", "pearson", "spearman"}
        assert {"train", "eval"} <= set(task.splits)
        assert task.num_labels == (3 if name == "mnli" else 1 if name == "stsb" else 2)
        assert task.regression == (name == "stsb")
        assert bool(task.hub_config) == (name != "rotten_tomatoes")
    assert TASKS["mnli"].eval_splits == ("eval", "eval_mismatched")


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("SST-2", "sst2"),
        ("sst-2", "sst2"),
        ("sst_2", "sst2"),
        ("STS-B", "stsb"),
        ("CoLA", "cola"),
        (" mnli ", "mnli"),
        ("Rotten-Tomatoes", "rotten_tomatoes"),
    ],
)
def test_tasks_are_known_by_other_spellings(spelling, name):
    assert get_task(spelling).name == name
    assert spelling in TASKS


def test_unknown_tasks_and_splits_say_what_there_is():
    with pytest.raises(UnknownNameError, match=r"no task 'sts2'.*Did you mean"):
        get_task("sts2")
    assert "imdb" not in TASKS and 3 not in TASKS
    with pytest.raises(UnknownNameError, match="no split of SST-2 'test'; known: eval, train"):
        load_examples("sst2", "test", "nowhere")
    with pytest.raises(UnknownNameError, match="no split of SST-2 'mismatched'"):
        get_task("sst2").split_name("mismatched")


@pytest.mark.parametrize("folder", OFFICIAL_HEADERS)
def test_every_official_layout_is_read(tmp_path, folder):
    task = get_task(folder)
    labels = {"STS-B": "3.250", "MNLI": "contradiction", "QNLI": "not_entailment", "RTE": "not_entailment"}
    text = f"{OFFICIAL_HEADERS[folder]}\n{official_row(folder, labels.get(folder, '1'))}\n"
    for split in task.splits.values():
        put(tmp_path / folder / split.file, text)
    for data in (tmp_path, tmp_path / folder, tmp_path / folder / task.splits["train"].file):
        for split in task.splits:
            examples = load_examples(folder, split, data)
            assert examples.texts == ((FIRST, SECOND)[: len(task.text_columns)],)
            assert examples.labels.dtype == (np.float32 if folder == "STS-B" else np.int64)
            assert examples.labels.tolist() == [{"STS-B": 3.25, "MNLI": 2}.get(folder, 1)]
            assert examples.split == split


def test_mnli_has_two_evaluation_splits(tmp_path):
    for kind, label in (("matched", "entailment"), ("mismatched", "neutral")):
        put(tmp_path / "MNLI" / f"dev_{kind}.tsv", f"{OFFICIAL_HEADERS['MNLI']}\n{official_row('MNLI', label)}\n")
    assert load_examples("mnli", "dev", tmp_path).labels.tolist() == [0]
    assert load_examples("mnli", "validation_mismatched", tmp_path).labels.tolist() == [1]
    with pytest.raises(DataError, match=r"holds neither MNLI/train\.tsv nor train\.tsv; it holds MNLI"):
        load_examples("mnli", "train", tmp_path)


def test_cola_has_no_header(tmp_path):
    put(tmp_path / "CoLA" / "dev.tsv", "gj04\t1\t\tThey left.\nclc95\t0\t*\tThey leaved\n")
    examples = load_examples("cola", "eval", tmp_path)
    assert examples.texts == (("They left.",), ("They leaved",))
    assert examples.labels.tolist() == [1, 0]


def test_qqp_leaves_its_known_broken_rows_out_and_counts_them(tmp_path):
    row = official_row("QQP", "0")
    put(tmp_path / "QQP" / "train.tsv", f"{OFFICIAL_HEADERS['QQP']}\n{row}\n17\t3\tcut off by a line end\n{row}\n")
    examples = load_examples("qqp", "train", tmp_path)
    assert (len(examples), examples.skipped) == (2, 1)


def test_a_broken_row_of_another_task_names_file_and_line(tmp_path):
    path = put(tmp_path / "SST-2" / "dev.tsv", "sentence\tlabel\nfine\t1\nno label\n")
    with pytest.raises(DataError) as caught:
        load_examples("sst2", "eval", tmp_path)
    assert f"{path}:3: the row has 1 columns where 2 were expected" in caught.value.message


@pytest.mark.parametrize("label", ["2", "-1", "", "maybe", "nan", "0.5", "1e400", "True"])
def test_an_unknown_label_names_file_and_line(tmp_path, label):
    path = put(tmp_path / "dev.tsv", f"sentence\tlabel\nfine\t1\nbad\t{label}\n")
    with pytest.raises(DataError) as caught:
        load_examples("sst2", "eval", path)
    assert f"{path}:3: label '{label}' is not one of SST-2's: 0 negative, 1 positive" in caught.value.message
    assert "--label-column" in caught.value.hint


@pytest.mark.parametrize("score", ["nan", "inf", "-0.1", "5.01", "high", ""])
def test_a_score_must_be_a_number_in_range(tmp_path, score):
    path = put(tmp_path / "dev.tsv", f"sentence1\tsentence2\tscore\na\tb\t{score}\n")
    with pytest.raises(DataError, match=rf"dev\.tsv:2: score '{score}' is not a number from 0 to 5"):
        load_examples("stsb", "eval", path)


def test_labels_may_be_names_or_numbers_in_any_format(tmp_path):
    values = ["Entailment", "not entailment", "not-entailment", 0, 1, 1.0, "0"]
    lines = [json.dumps({"premise": "a", "hypothesis": "b", "label": value}) for value in values]
    examples = load_examples("rte", "eval", put(tmp_path / "rows.jsonl", "\n".join(lines)))
    assert examples.labels.tolist() == [0, 1, 1, 0, 1, 1, 0]
    path = put(tmp_path / "bad.jsonl", lines[0] + '\n{"premise": "a", "hypothesis": "b", "label": true}')
    with pytest.raises(DataError, match=r"bad\.jsonl:2: label True"):
        load_examples("rte", "eval", path)


def test_columns_of_a_file_may_be_named(tmp_path):
    path = put(tmp_path / "own.csv", 'id,Review,Stars,label\n7,"Good, really",positive,9\n8,Bad,negative,9\n')
    examples = load_examples("sst2", "eval", path, text_columns=["Review"], label_column="Stars")
    assert examples.texts == (("Good, really",), ("Bad",))
    assert examples.labels.tolist() == [1, 0]
    assert examples.source == str(path)
    with pytest.raises(DataError, match="no column 'stars' for the label; it has 'id', 'Review', 'Stars', 'label'"):
        load_examples("sst2", "eval", path, label_column="stars")
    with pytest.raises(DataError, match="RTE has 2 texts a row, and 1 columns were named: Review"):
        load_examples("rte", "eval", path, text_columns=["Review"])
    with pytest.raises(
        DataError, match=r"no column for the text: it has 'id', 'Review'.*tried: sentence1 and sentence2"
    ):
        load_examples("rte", "eval", path)


def test_parquet_with_the_hubs_column_names(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "validation.parquet"
    parquet.write_table(
        pyarrow.table({"premise": ["a", "b"], "hypothesis": ["c", "d"], "label": [2, 0], "idx": [0, 1]}), path
    )
    examples = load_examples("mnli", "eval", path)
    assert examples.texts == (("a", "c"), ("b", "d"))
    assert examples.labels.tolist() == [2, 0]
    parquet.write_table(pyarrow.table({"sentence": ["a", None], "label": [1, 1]}), path)
    with pytest.raises(DataError, match=r"validation\.parquet, row 2: column 'sentence' is missing"):
        load_examples("sst2", "eval", path)


def test_plain_text_calibrates_and_does_not_evaluate(tmp_path):
    path = put(tmp_path / "mine.txt", "One sentence.\n\nAnother one.\n")
    examples = load_examples("rte", "train", path)
    assert examples.texts == (("One sentence.",), ("Another one.",))
    assert examples.labels is None
    with pytest.raises(DataError, match="holds no labels"):
        load_examples("sst2", "eval", path)


def test_labels_may_be_missing_for_calibration_only(tmp_path):
    path = put(tmp_path / "mine.csv", "text,stars\nGood,5\n")
    assert load_examples("sst2", "train", path).labels is None
    with pytest.raises(DataError, match="no column for the label: it has 'text', 'stars'"):
        load_examples("sst2", "eval", path)


@pytest.mark.parametrize("content", ["sentence\tlabel\n", "sentence\tlabel\n  \t1\n"])
def test_no_rows_and_empty_texts_are_refused(tmp_path, content):
    with pytest.raises(DataError, match=r"holds no rows|dev\.tsv:2: the text is empty"):
        load_examples("sst2", "eval", put(tmp_path / "dev.tsv", content))


def test_another_tasks_folder_is_not_taken_for_this_ones(tmp_path):
    put(tmp_path / "RTE" / "dev.tsv", f"{OFFICIAL_HEADERS['RTE']}\n{official_row('RTE', 'entailment')}\n")
    with pytest.raises(DataError, match="folder of RTE, and the task is WNLI"):
        load_examples("wnli", "eval", tmp_path / "RTE")


def test_columns_cannot_be_named_for_the_hub():
    with pytest.raises(InputError, match="for a file only"):
        load_examples("sst2", "eval", label_column="label")


def test_a_path_that_does_not_exist_says_so(tmp_path):
    with pytest.raises(DataError, match="There is no file or folder"):
        load_examples("sst2", "eval", tmp_path / "none")


def test_examples_are_checked_and_immutable():
    with pytest.raises(DataError, match="holds no rows"):
        Examples((), None, "nothing", "train")
    with pytest.raises(InputError, match="labels of shape"):
        Examples((("a",),), np.zeros(2, np.int64), "x", "train")
    examples = Examples((("a",), ("b",), ("c",)), np.array([1, 0, 1]), "x", "train")
    assert examples.take([2, 0]).texts == (("c",), ("a",))
    assert examples.take([2, 1]).labels.tolist() == [1, 0]
    assert len(examples.head(2)) == 2 and len(examples.head(9)) == 3
    with pytest.raises(ValueError, match="read-only"):
        examples.labels[0] = 0


@pytest.mark.shared
@pytest.mark.parametrize(
    ("task", "train", "evaluation", "positive"),
    [
        ("sst2", 67_349, 872, 444),
        ("cola", 8551, 1043, 721),
        ("mrpc", 3668, 408, 279),
        ("stsb", 5749, 1500, None),
        ("rte", 2490, 277, 131),
        ("wnli", 635, 71, 31),
        ("qnli", 10_475, 3000, None),
    ],
)
def test_glue_files_have_the_rows_they_should(shared_dir, task, train, evaluation, positive):
    assert len(load_examples(task, "train", shared_dir / "glue")) == train
    examples = load_examples(task, "eval", shared_dir / "glue")
    assert len(examples) == evaluation
    assert all(text for row in examples.texts for text in row)
    if positive is not None:
        assert int(examples.labels.sum()) == positive
    if task == "stsb":
        assert examples.labels.mean() == pytest.approx(2.3639, abs=1e-4)
    if task != "qnli":  # of which only a part stands there
        splits = get_task(task).splits
        assert (splits["train"].rows, splits["eval"].rows) == (train, evaluation)
