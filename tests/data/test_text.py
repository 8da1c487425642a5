"""The file readers: what each format takes, and that what cannot be read names file and line."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quantkit.data.text import find_columns, missing_columns, open_table, read_lines, read_sentences, text_cell
from quantkit.errors import DataError


def put(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def rows(path: Path, *names: str, **options) -> list:
    return list(open_table(path, **options).select(names))


def test_tsv_takes_unbalanced_quotation_marks_as_text(tmp_path):
    path = put(tmp_path, "a.tsv", 'sentence\tlabel\nhe said "go\t1\n"x""\t0\n')
    assert rows(path, "sentence", "label") == [(2, ['he said "go', "1"]), (3, ['"x""', "0"])]


def test_tsv_gives_columns_in_the_order_asked_for(tmp_path):
    path = put(tmp_path, "a.tsv", "a\tb\tc\n1\t2\t3\n")
    assert rows(path, "c", "a") == [(2, ["3", "1"])]


def test_tsv_with_byte_order_mark_crlf_and_empty_last_lines(tmp_path):
    path = put(tmp_path, "a.tsv", "\ufeffsentence\tlabel\r\ngood\t1\r\n\r\n\n")
    table = open_table(path)
    assert table.columns == ("sentence", "label")
    assert list(table.select(["sentence", "label"])) == [(2, ["good", "1"])]


@pytest.mark.parametrize("separator", ["\u2028", "\x85", "\x0b", "\x0c", "\x1c"])
def test_only_line_feeds_end_a_line(tmp_path, separator):
    path = put(tmp_path, "a.tsv", f"sentence\tlabel\none{separator}two\t1\n")
    assert rows(path, "sentence") == [(2, [f"one{separator}two"])]


@pytest.mark.parametrize("row", ["only one cell", "a\t1\textra", ""])
def test_tsv_row_with_the_wrong_number_of_cells_names_its_line(tmp_path, row):
    path = put(tmp_path, "a.tsv", f"sentence\tlabel\nfine\t1\n{row}\nfine\t0\n")
    with pytest.raises(DataError, match=r"a\.tsv:3: the row has \d columns where 2"):
        rows(path, "sentence")


def test_broken_rows_are_collected_where_the_caller_wants_them(tmp_path):
    path = put(tmp_path, "a.tsv", "a\tb\n1\t2\nbroken\n3\t4\n")
    broken = []
    assert rows(path, "a", broken=broken) == [(2, ["1"]), (4, ["3"])]
    assert broken == [3]


def test_headerless_names_are_used_only_where_the_first_line_is_no_header(tmp_path):
    names = ("source", "label", "mark", "sentence")
    bare = put(tmp_path, "bare.tsv", "gj04\t1\t\tA sentence.\n")
    assert rows(bare, "sentence", headerless=names) == [(1, ["A sentence."])]
    headed = put(tmp_path, "headed.tsv", "source\tlabel\tmark\tsentence\ngj04\t1\t\tA sentence.\n")
    assert rows(headed, "sentence", headerless=names) == [(2, ["A sentence."])]
    other = put(tmp_path, "other.tsv", "sentence\tlabel\nA sentence.\t1\n")
    assert rows(other, "sentence", headerless=names) == [(2, ["A sentence."])]


@pytest.mark.parametrize("name", ["a.tsv", "a.csv", "a.jsonl", "a.txt"])
def test_invalid_utf8_names_its_line(tmp_path, name):
    path = put(tmp_path, name, b'{"text": "x"}\n{"text": "y"}\nbad \xff byte\n')
    read = read_sentences if name == "a.txt" else open_table
    with pytest.raises(DataError, match=r":3: byte 0xff is not valid UTF-8"):
        read(path)


@pytest.mark.parametrize("name", ["a.tsv", "a.csv", "a.jsonl", "a.txt"])
@pytest.mark.parametrize("content", ["", "\n\n", "\ufeff"])
def test_an_empty_file_is_said_to_be_empty(tmp_path, name, content):
    path = put(tmp_path, name, content)
    read = read_sentences if name == "a.txt" else open_table
    with pytest.raises(DataError, match="is empty"):
        read(path)


def test_csv_quoting_holds_commas_quotation_marks_and_line_ends(tmp_path):
    path = put(tmp_path, "a.csv", 'text,label\n"one, ""two""\nthree",1\nplain,0\n')
    assert rows(path, "text", "label") == [(2, ['one, "two"\nthree', "1"]), (4, ["plain", "0"])]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('text,label\nfine,1\n"never closed,0\nmore,1\n', 3),
        ('text,label\nfine,1\n"a" b,0\n', 3),
        ("text,label\nfine,1\none,two,three\n", 3),
        ("text,label\nfine,1\none\n", 3),
        ("text,label\nfine,1\n" + "x" * 140_000 + ",1\n", 3),
    ],
)
def test_csv_row_that_cannot_be_read_names_its_line(tmp_path, content, line):
    path = put(tmp_path, "a.csv", content)
    with pytest.raises(DataError, match=rf"a\.csv:{line}: "):
        rows(path, "text")


def test_json_lines(tmp_path):
    path = put(tmp_path, "a.jsonl", '{"text": "a\\nb", "label": 1, "extra": {}}\n\n{"label": 0, "text": "c"}\n')
    assert rows(path, "text", "label") == [(1, ["a\nb", 1]), (3, ["c", 0])]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "x"', "not JSON"),
        ("[1, 2]", "holds a JSON list"),
        ('{"sentence": "x"}', "has no 'text'; it has sentence"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_json_line_that_cannot_be_read_names_its_line(tmp_path, line, message):
    path = put(tmp_path, "a.jsonl", '{"text": "fine"}\n' + line + "\n")
    with pytest.raises(DataError, match=rf"a\.jsonl:2: .*{message}"):
        rows(path, "text")


def test_parquet_reads_the_columns_asked_for(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"id": [7, 8], "text": ["a", None], "label": [0, 1]}), path)
    table = open_table(path)
    assert table.columns == ("id", "text", "label")
    assert list(table.select(["label", "text"])) == [(1, [0, "a"]), (2, [1, None])]
    assert table.where(2) == f"{path}, row 2"


@pytest.mark.parametrize("content", [b"", b"PAR1 and then nothing", b"text\n" * 9])
def test_damaged_parquet_is_a_data_error(tmp_path, content):
    pytest.importorskip("pyarrow")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        open_table(put(tmp_path, "a.parquet", content))


def test_parquet_text_that_is_not_utf8_names_its_row(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": ["first", "s\xe9cond", "third"]}), path, compression=None)
    path.write_bytes(path.read_bytes().replace("\xe9".encode(), b"\xff\xff"))
    with pytest.raises(DataError, match=r"a\.parquet, row 2: the text is not valid UTF-8"):
        rows(path, "text")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), ending=st.sampled_from(["tsv", "csv", "jsonl", "parquet"]))
def test_damaged_bytes_are_read_or_refused_and_nothing_else(tmp_path, data, ending):
    content = bytearray(sample_of(tmp_path, ending))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = put(tmp_path, f"damaged.{ending}", bytes(content))
    try:
        table = open_table(path)
        assert all(len(cells) == len(table.columns) for _, cells in table.select(table.columns))
    except DataError as error:
        assert path.name in error.message


def sample_of(folder: Path, ending: str) -> bytes:
    """A small valid file of each format."""
    if ending == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        table = pyarrow.table({"text": ["good film", "bad film"], "label": [1, 0]})
        parquet.write_table(table, folder / "good.parquet", compression=None)
        return (folder / "good.parquet").read_bytes()
    return {
        "tsv": b'text\tlabel\ngood "film\t1\nbad film\t0\n',
        "csv": b'text,label\n"good, film",1\nbad film,0\n',
        "jsonl": b'{"text": "good film", "label": 1}\n{"text": "bad film", "label": 0}\n',
    }[ending]


def test_missing_file_and_unknown_ending(tmp_path):
    with pytest.raises(DataError, match="There is no file or folder"):
        open_table(tmp_path / "none.tsv")
    with pytest.raises(DataError, match=r"'\.xlsx' is not known.*\.tsv, \.csv"):
        open_table(put(tmp_path, "a.xlsx", "x"))
    with pytest.raises(DataError, match="no ending"):
        open_table(put(tmp_path, "noending", "x"))


def test_a_column_that_appears_twice_is_refused_when_it_is_wanted(tmp_path):
    path = put(tmp_path, "a.tsv", "text\tlabel\ttext\na\t1\tb\n")
    assert rows(path, "label") == [(2, ["1"])]
    with pytest.raises(DataError, match="'text' appears 2 times"):
        rows(path, "text")


def test_sentences_lose_outer_blanks_and_empty_lines(tmp_path):
    assert read_sentences(put(tmp_path, "a.txt", "  one two \r\n\n\t\nthree\n")) == ["one two", "three"]


@pytest.mark.parametrize(("value", "found"), [(None, "is missing"), (3, "holds int 3"), (["a"], "holds list")])
def test_a_cell_that_is_no_text_is_refused(tmp_path, value, found):
    table = open_table(put(tmp_path, "a.jsonl", '{"text": 1}'))
    with pytest.raises(DataError, match=rf"a\.jsonl:1: column 'text' {found}"):
        text_cell(table, 1, "text", value)


def test_half_a_surrogate_pair_is_refused(tmp_path):
    path = put(tmp_path, "a.jsonl", '{"text": "\\ud800 x"}\n')
    table = open_table(path)
    ((position, (cell,)),) = table.select(["text"])
    with pytest.raises(DataError, match=r"a\.jsonl:1: .*surrogate"):
        text_cell(table, position, "text", cell)


def test_columns_named_by_the_user_must_be_there(tmp_path):
    table = open_table(put(tmp_path, "a.csv", "Review,Stars\nx,1\n"))
    assert find_columns(table, ["Stars"], [("label",)], "the label") == ("Stars",)
    with pytest.raises(DataError, match=r"no column 'review' for the text; it has 'Review', 'Stars'.*Did you mean Rev"):
        find_columns(table, ["review"], [], "the text")


def test_usual_columns_are_found_in_order_and_in_any_case(tmp_path):
    table = open_table(put(tmp_path, "a.csv", "TEXT,Sentence\nx,y\n"))
    assert find_columns(table, [], [("sentence",), ("text",)], "the text") == ("Sentence",)
    assert find_columns(table, [], [("a", "sentence"), ("text",)], "the text") == ("TEXT",)
    assert find_columns(table, [], [("a",)], "the text") == ()
    error = missing_columns(table, "the label", [("label",), ("score",)], "--label-column")
    assert "it has 'TEXT', 'Sentence'; tried: label; score" in str(error)
    assert "--label-column" in error.hint


# Python 3.10 cannot write a NUL as CSV.
CELL = st.text(st.characters(exclude_characters="\0\t\n\r\ufeff", exclude_categories=["Cs"]), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(CELL, CELL), min_size=1, max_size=8))
def test_every_format_gives_back_what_was_written(tmp_path, cells):
    import csv

    written = [(f"<{a}>", f"<{b}>") for a, b in cells]  # brackets: no line is blank
    with (tmp_path / "a.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("a", "b"), *written])
    put(tmp_path, "a.tsv", "".join(f"{a}\t{b}\n" for a, b in [("a", "b"), *written]))
    put(tmp_path, "a.jsonl", "".join(json.dumps({"a": a, "b": b}) + "\n" for a, b in written))
    for name in ("a.csv", "a.tsv", "a.jsonl"):
        assert [tuple(row) for _, row in rows(tmp_path / name, "a", "b")] == written
    put(tmp_path, "a.txt", "".join(f"{a}\n" for a, _ in written))
    assert read_lines(tmp_path / "a.txt") == [a for a, _ in written]
