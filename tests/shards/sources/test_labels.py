"""Class numbers of what a column holds."""

import pytest
from clsp.core import InputError
from clsp.shards.sources.labels import classes_of, label_column


def told(values):
    found = classes_of(values, "kind", "table")
    return found.labels, found.names


@pytest.mark.parametrize(
    ("values", "labels", "names"),
    [
        ([3, 0, 7], [3, 0, 7], None),
        ([2.0, 0.0, None], [2, 0, None], None),
        ([True, False, None], [1, 0, None], ("false", "true")),
        (["dog", " cat", "", "dog "], [1, 0, None, 1], ("cat", "dog")),
        (["10", "9", "10"], [1, 0, 1], ("9", "10")),
        (["b10", "b9"], [0, 1], ("b10", "b9")),
    ],
)
def test_numbers_words_and_truth_values(values, labels, names):
    assert told(values) == (labels, names)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([None, "", float("nan")], "is empty"),
        ([0.5, 1.0], "holds '0.5'"),
        (["cat", 3], "holds 'cat'"),
        ([[1, 2], [3]], r"holds '\[1, 2\]'"),
        ([f"a photo of {number}" for number in range(300)], "300 different texts for 300 images"),
    ],
)
def test_what_is_no_class_is_refused_with_the_name_of_the_column(values, message):
    with pytest.raises(InputError, match=f"column 'kind' of table .*{message}|'kind'.*{message}"):
        classes_of(values, "kind", "table")


def test_the_column_of_the_classes():
    assert label_column(["image", "text", "Label"], "", "x") == "Label"
    assert label_column(["category", "class"], "", "x") == "class"
    assert label_column(["text", "kind"], "", "x") is None
    assert label_column(["text", "kind"], "kind", "x") == "kind"
    with pytest.raises(InputError, match="no column 'sort'; it has text, kind"):
        label_column(["text", "kind"], "sort", "x")
