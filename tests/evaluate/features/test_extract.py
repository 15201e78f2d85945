import numpy as np
import pytest
import torch
from clsp.core import InputError
from clsp.evaluate import check_labels, extract, labelled_sets, load_encoder
from clsp.evaluate.config import LinearEvalConfig
from clsp.shards import AnchorsConfig, ImageSource
from clsp.train import PretrainConfig, build_backbone
from clsp.train.backbone import save_backbone
from pictures import colours, parquet, put
from PIL import Image


def test_features_are_the_backbones_in_eval_mode_on_normalised_images(tmp_path, digits):
    config = PretrainConfig(
        backbone_kwargs={"channels": [8, 8, 8, 8], "layers": [1, 1, 1, 1]},
        mean=(0.2, 0.3, 0.4),
        std=(0.5, 0.6, 0.7),
    )
    torch.manual_seed(0)
    model = build_backbone(config)
    model(torch.randn(64, 3, 8, 8))  # running statistics other than the initial ones
    save_backbone(model, config, 8, tmp_path)
    found = extract(load_encoder(tmp_path, "no"), digits, flips=True)
    for row in (0, 39):
        image = digits[row].image.transpose(2, 0, 1) / 255
        image = torch.from_numpy(
            (image - np.array(config.mean)[:, None, None]) / np.array(config.std)[:, None, None]
        ).float()
        with torch.no_grad():
            expected = model.eval()(torch.stack([image, image.flip(-1)]))
        torch.testing.assert_close(found.plain_NF[row], expected[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found.flipped_NF[row], expected[1], atol=1e-5, rtol=1e-4)
    assert np.array_equal(found.labels_N.numpy(), digits.labels())


def test_training_images_are_the_anchors_and_test_images_the_other_split():
    train, test = labelled_sets(AnchorsConfig(limit=5), LinearEvalConfig(), 8)
    assert (len(train), len(test)) == (
        1438,
        359,
    )  # anchors.limit bounds the shard set, not the evaluation
    assert len(ImageSource(AnchorsConfig(limit=5))) == 5


def test_one_file_has_no_test_split(tmp_path):
    (tmp_path / "train.parquet").touch()
    with pytest.raises(InputError, match=r"linear_eval\.test_path"):
        labelled_sets(AnchorsConfig(path=str(tmp_path / "train.parquet")), LinearEvalConfig(), 8)


def test_classes_are_numbered_alike_by_their_names(tmp_path):
    """Also where a split lacks one, for who evaluates without all of them."""
    for split, words in (("train", ["a", "b", "c"]), ("test", ["c", "a"])):
        parquet(tmp_path / f"{split}.parquet", colours(len(words)), label=words)
    anchors = AnchorsConfig(path=str(tmp_path))
    train, test = labelled_sets(anchors, LinearEvalConfig(), 8)
    assert (train.labels().tolist(), test.labels().tolist()) == ([0, 1, 2], [2, 0])

    parquet(tmp_path / "test.parquet", colours(1), label=["d"])
    with pytest.raises(InputError, match="class 'd', which is not among a, b, c"):
        labelled_sets(anchors, LinearEvalConfig(), 8)


def test_test_images_of_16_bits_are_scaled_as_the_training_images(tmp_path):
    """Darker ones would be brightened otherwise."""
    for split, largest in (("train", 4095), ("test", 1000)):
        for number in range(2):
            grey = Image.fromarray(np.full((8, 8), largest, np.uint16))
            put(tmp_path / split / f"{number}.png", grey)
    train, test = labelled_sets(AnchorsConfig(path=str(tmp_path)), LinearEvalConfig(), 8)
    assert train[0].image.max() == 255 and test[0].image.max() == 1000 >> 4


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ([0, 2], [0], "every class of 0 … 2"),
        ([0, 1], [0, 5], r"\[5\] do not occur"),
        ([0, 1, 2], [0, 2], r"lack the classes \[1\]"),
    ],
)
def test_labels_that_do_not_fit_are_refused(train, test, message):
    with pytest.raises(InputError, match=message):
        check_labels(np.array(train), np.array(test))
    assert check_labels(np.array([0, 1, 2]), np.array([0]), complete=False) == 3
