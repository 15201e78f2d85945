"""Files that are not taken: up to 1 % of them are told, more stop a command, all are listed."""

import json

import pytest
from clsp.core import InputError
from clsp.shards.sources.left_out import check_left_out, write_left_out
from clsp.shards.sources.walk import LeftOut
from pictures import many, opened


def left_out(count: int, counts: bool = True) -> list[LeftOut]:
    return [LeftOut(f"{number}.png", "dangling link", counts) for number in range(count)]


@pytest.mark.parametrize(
    ("missed", "taken", "stops"),
    [(1, 99, False), (1, 98, True), (10, 990, False), (11, 989, True), (0, 1, False)],
)
def test_one_in_a_hundred(missed, taken, stops):
    if stops:
        with pytest.raises(InputError, match=f"{missed} of {missed + taken} images"):
            check_left_out(left_out(missed), taken, "photos", "fail")
    else:
        check_left_out(left_out(missed), taken, "photos", "fail")
    check_left_out(left_out(missed), taken, "photos", "skip")


def test_what_is_no_image_never_stops():
    check_left_out(left_out(1000, counts=False), 1, "photos", "fail")


def test_the_message_has_every_reason_and_a_file_of_each():
    files = [*left_out(3), LeftOut("x.heic", "HEIC needs a library", True)]
    with pytest.raises(InputError) as error:
        check_left_out(files, 4, "photos", "fail")
    told = str(error.value)
    assert "photos: 4 of 8" in told and "3 dangling link, such as 0.png" in told
    assert "1 HEIC needs a library, such as x.heic" in told and "anchors.on_error=skip" in told


def test_the_share_is_that_of_the_split_that_is_read(tmp_path):
    many(tmp_path, 99)
    (tmp_path / "z.png").symlink_to("gone.png")
    assert len(opened(tmp_path)) == 99
    (tmp_path / "00.png").unlink()
    with pytest.raises(InputError, match="1 of 99"):
        opened(tmp_path)


def test_the_list(tmp_path):
    files = [LeftOut("b.txt", "no image (.txt)", False), LeftOut("caf\udce9.png", "hidden", False)]
    write_left_out(tmp_path / "list.json", files, "photos")
    listed = json.loads((tmp_path / "list.json").read_text())
    assert listed == {
        "source": "photos",
        "counts": {"hidden": 1, "no image (.txt)": 1},
        "files": [
            {"file": "b.txt", "reason": "no image (.txt)"},
            {"file": "caf?.png", "reason": "hidden"},
        ],
    }
