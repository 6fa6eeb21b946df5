"""Tables of labels: what is read, and one clear line for whatever is wrong."""

import numpy as np
import pytest

from mrmfast.errors import UserError
from mrmfast.formats.labels import read_labels


def table(tmp_path, text, name="labels.csv"):
    path = tmp_path / name
    path.write_text(text)
    return path


def grades(path, **settings):
    return read_labels(path, **{"kind": "class", "columns": ["grade"], "identifier": "key", **settings})


@pytest.mark.parametrize("delimiter", ["\t", ",", ";", "|", " "])
def test_any_delimiter(tmp_path, delimiter):
    text = "key,age,grade\na,61,0\nb,58,1\nc,70,2\n\n".replace(",", delimiter)
    labels = grades(table(tmp_path, text))
    assert labels.names == ("0", "1", "2")
    assert labels.values.tolist() == [0, 1, 2] and labels.values.dtype == np.int64
    assert labels.rows == {"a": 0, "b": 1, "c": 2}


def test_quotes_marks_and_windows_line_ends(tmp_path):
    text = '\ufeffkey,grade,comment\r\n"a, left",1,"drusen, few"\r\n b ,0,\r\n'
    labels = grades(table(tmp_path, text))
    assert labels.rows == {"a, left": 0, "b": 1}
    assert labels.values.tolist() == [1, 0]


def test_class_names_are_sorted_or_as_listed(tmp_path):
    path = table(tmp_path, "key,grade\na,mild\nb,none\nc,severe\nd,mild\n")
    assert grades(path).names == ("mild", "severe")
    assert grades(path).values.tolist() == [0, -1, 1, 0]  # "none" is an empty cell, unless it is listed
    listed = grades(path, classes=["none", "mild", "severe"])
    assert listed.names == ("none", "mild", "severe") and listed.values.tolist() == [1, 0, 2, 1]


def test_whole_numbers_are_classes_by_value(tmp_path):
    assert grades(table(tmp_path, "key,grade\na,10\nb,9\nc,02\n" + "".join(f"x{n},{n}\n" for n in range(9)))).values[
        :3
    ].tolist() == [10, 9, 2]


def test_missing_values(tmp_path):
    path = table(tmp_path, "key,age,bmi\na,61,NA\nb,,\nc,-1.5e1,27.25\n")
    labels = read_labels(path, kind="values", columns=["bmi", "age"], identifier="key")
    assert labels.names == ("bmi", "age") and labels.values.dtype == np.float32
    expected = np.float32([[np.nan, 61], [np.nan, np.nan], [27.25, -15]])
    assert np.array_equal(labels.values, expected, equal_nan=True)
    assert labels.has_value().tolist() == [True, False, True]
    classes = grades(table(tmp_path, "key,grade\na,nan\nb,0\n", "other.csv"))
    assert classes.values.tolist() == [-1, 0] and classes.has_value().tolist() == [False, True]


def test_multi_hot(tmp_path):
    path = table(tmp_path, "ID\tDR\tMH\tCRVO\n1\t0\t1\t1\n2\t0\t0\t0\n3\t\t\t\n")
    labels = read_labels(path, kind="multi_hot", columns=["DR", "CRVO"], identifier="ID")
    assert labels.values[:2].tolist() == [[0, 1], [0, 0]]
    assert labels.has_value().tolist() == [True, True, False]


GOOD = "key,grade,age\na,0,50\nb,1,60\nc,2,70\n"


@pytest.mark.parametrize(
    ("text", "settings", "line"),
    [
        (GOOD, {"columns": ["level"]}, r"has no column 'level'; its columns are: key, grade, age$"),
        (GOOD, {"identifier": "eid"}, r"has no column 'eid'; its columns are: key, grade, age$"),
        (GOOD, {"columns": []}, r"data.labels.columns=\[\]: kind class takes one column$"),
        (GOOD, {"columns": ["grade", "age"]}, r"kind class takes one column$"),
        (GOOD, {"columns": ["age", "age"], "kind": "values"}, r"takes at least one column, each once$"),
        ("", {}, r"has no column 'key'; its columns are: none, the file is empty$"),
        ("key,grade\n", {}, r"holds no rows; give a table with a header"),
        ("key,grade,grade\na,0,1\n", {}, r"has column 'grade' twice; rename one of them$"),
        (GOOD + "b,1,60\n", {}, r"line 5: the same key as in line 3; keep one of the lines$"),
        (GOOD + "d,1\n", {}, r"line 5: has 2 cells, the header 3; correct the line$"),
        (GOOD + ",1,60\n", {}, r"line 5: column key is empty; name the row or remove it$"),
        (
            "key,grade\na,0\nb,3\nc,1\n",
            {},
            r"column 'grade' has class 3, but no row of class 2; if that is right, list all",
        ),
        ("key,grade\na,\nb,NaN\n", {}, r"column 'grade' is empty in every row; name another with data.labels.columns$"),
        (GOOD, {"classes": ["0", "1"]}, r"line 4: column 'grade' has a class that data.labels.classes does not list"),
        (GOOD, {"classes": ["0", "1", "1"]}, r"data.labels.classes=.*: names a class twice$"),
        ("key,age\na,old\n", {"kind": "values", "columns": ["age"]}, r"line 2: column 'age' is not a finite number"),
        ("key,age\na,inf\n", {"kind": "values", "columns": ["age"]}, r"line 2: column 'age' is not a finite number"),
        ("key,age\na,1e39\n", {"kind": "values", "columns": ["age"]}, r"line 2: column 'age' is not a finite number"),
        ("key,x,y\na,0,2\n", {"kind": "multi_hot", "columns": ["x", "y"]}, r"line 2: column 'y' is not 0 or 1"),
        ("key,x,y\na,0,\n", {"kind": "multi_hot", "columns": ["x", "y"]}, r"line 2: column 'y' is empty; write 0 or 1"),
    ],
)
def test_one_clear_line(tmp_path, text, settings, line):
    with pytest.raises(UserError, match=line) as raised:
        grades(table(tmp_path, text), **settings)
    assert "\n" not in str(raised.value)


def test_files_that_are_no_tables(tmp_path):
    with pytest.raises(UserError, match=r"nowhere.csv: cannot be read \(FileNotFoundError\); give a text file"):
        grades(tmp_path / "nowhere.csv")
    (tmp_path / "binary.csv").write_bytes(b"key,grade\na,\xf1\n")
    with pytest.raises(UserError, match=r"line 2: is not text in UTF-8; convert the file"):
        grades(tmp_path / "binary.csv")


def test_messages_name_no_participant(tmp_path):
    for text in ("key,grade\n1234567,0\n1234567,1\n", "key,grade\n1234567,0,1\n", "key,grade\n1234567,2\n"):
        with pytest.raises(UserError) as raised:
            grades(table(tmp_path, text))
        assert "1234567" not in str(raised.value)
