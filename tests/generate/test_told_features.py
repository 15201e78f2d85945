"""Models that are told the features of their anchors: a class for every anchor, whose embedding is its features."""

import json
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from clsp.core import InputError, WorkError
from clsp.generate import (
    DiffusionConfig,
    DiffusionModel,
    Sampler,
    SamplerConfig,
    estimate,
    load_diffusion,
    make_plan,
    settled_condition,
    train_diffusion,
)
from clsp.generate.example import make_example_model
from clsp.generate.told_features import ToldFeatures, class_rows, without_class_embedding
from clsp.generate.train_diffusion import _train_classes
from clsp.shards import AnchorsConfig, ImageSource, ShardsConfig
from diffusers import UNet2DModel
from processes import run_ranks
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors
from small_diffusion import (
    PIXELS,
    TOLD,
    UNREADABLE,
    WEIGHTS,
    crash_before_step,
    pixels,
    tars_by_processes,
    train_and_keep_rows,
)
from waits import DEVICE, needs_pretended_device


@pytest.fixture(scope="module")
def told(digits, tmp_path_factory) -> Path:
    """The folder of a model that was told the pixels of 40 digits."""
    return train_diffusion(digits, TOLD, tmp_path_factory.mktemp("told"), encoder=PIXELS)


def rows(folder: Path) -> np.ndarray:
    """Return the class embedding of a U-Net, read by diffusers alone."""
    unet = UNet2DModel.from_pretrained(folder / "unet")
    assert isinstance(unet.class_embedding, torch.nn.Embedding)
    return unet.class_embedding.weight.detach().numpy()


def test_the_class_embedding_is_the_features_and_training_leaves_it_alone(digits, told):
    found_NE = rows(told)
    assert found_NE.shape == (41, 128)
    assert not found_NE[-1].any()

    # Angles between images stay what they are in the standardised features, but for the random directions' error
    features_NF = pixels(digits).astype(np.float64)
    varies_F = features_NF.std(axis=0) > 0
    centred_NF = (features_NF - features_NF.mean(axis=0))[:, varies_F]
    standard_NF = centred_NF / features_NF.std(axis=0)[varies_F]
    cosines = []
    for vectors in (standard_NF, found_NE[:-1]):
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        cosines.append((unit @ unit.T)[np.triu_indices(40, 1)])
    assert np.abs(cosines[0] - cosines[1]).mean() < 1.5 / np.sqrt(128)
    assert np.corrcoef(*cosines)[0, 1] > 0.9

    # As large as a new embedding's
    assert found_NE[:-1].std() == pytest.approx(1, abs=0.1)


def test_every_anchor_has_its_own_class_and_the_plan_says_whose_features(digits, told):
    model = load_diffusion(str(told), 8)
    assert model.condition is not None
    assert model.condition.classes_of(list(digits)) == list(range(40))
    assert (model.condition.kind, model.condition.classes, model.condition.null) == (
        "features",
        40,
        40,
    )

    plan = make_plan(digits, model, SamplerConfig(), ShardsConfig())
    recorded = json.loads(plan.to_bytes())["diffusion"]["condition"]
    assert (recorded["kind"], recorded["encoder"], recorded["encoder_digest"]) == (
        "features",
        "pixels",
        "11",
    )
    assert plan.diffusion.text == ", given the anchors' features of pixels"

    # Other anchors have none
    with pytest.raises(InputError, match="anchor train_00000050 has no pseudo-class"):
        model.condition.classes_of([ImageSource(AnchorsConfig(limit=60))[50]])
    with pytest.raises(InputError, match=r"has features of its anchors.*condition=features"):
        settled_condition(model.condition, DiffusionConfig(condition="labels"), "model")


def test_what_the_unet_predicts_depends_on_the_features(told):
    unet = UNet2DModel.from_pretrained(told / "unet").eval()
    x_BCHW = torch.randn(1, 3, 8, 8).repeat(3, 1, 1, 1)
    with torch.inference_mode():
        first, same, other = unet(x_BCHW, 500, class_labels=torch.tensor([0, 0, 1])).sample

    torch.testing.assert_close(first, same)
    assert not torch.allclose(first, other)


@pytest.mark.parametrize(
    ("crash", "encoder"),
    [
        pytest.param(1, PIXELS, id="before the first checkpoint, so features are extracted again"),
        pytest.param(3, UNREADABLE, id="behind it, so they are not"),
    ],
)
def test_an_interrupted_training_ends_with_the_same_weights(
    digits, told, tmp_path, monkeypatch, crash, encoder
):
    crash_before_step(monkeypatch, crash)
    with pytest.raises(KeyError):
        train_diffusion(digits, TOLD, tmp_path, encoder=PIXELS)

    monkeypatch.undo()
    train_diffusion(digits, TOLD, tmp_path, encoder=encoder)
    assert (tmp_path / WEIGHTS).read_bytes() == (told / WEIGHTS).read_bytes()


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_sets_are_equal_for_any_number_of_processes(told, digits, tmp_path, guidance):
    model = load_diffusion(str(told), 8)
    config = SamplerConfig(steps=2, micro_batch=8, guidance=guidance)
    found = tars_by_processes(model, digits, config, tmp_path)
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 5


def test_an_encoder_is_needed():
    with pytest.raises(ValueError, match="condition = features needs cluster_encoder, whose"):
        DiffusionConfig(condition="features")


ALL = torch.arange(40)
"""The classes of the anchors."""


def test_only_the_directions_in_which_anchors_differ_most_are_told(told):
    rows_NE = rows(told)
    found_NE = ToldFeatures(torch.from_numpy(rows_NE), directions=5)(ALL).numpy()

    # As scikit-learn has them
    pca = PCA(5).fit(rows_NE[:-1])
    expected_NE = pca.inverse_transform(pca.transform(rows_NE[:-1]))
    np.testing.assert_allclose(found_NE, expected_NE, atol=1e-4)


def test_as_many_directions_as_the_embedding_is_wide_change_nothing(told):
    rows_NE = torch.from_numpy(rows(told))
    torch.testing.assert_close(ToldFeatures(rows_NE, 1000)(ALL), rows_NE[:-1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("block", [7, 65_536])
@pytest.mark.parametrize("count", [1, 10, 39])
def test_the_mean_of_the_most_similar_other_anchors_is_told(told, monkeypatch, block, count):
    monkeypatch.setattr("clsp.generate.told_features.ROWS", block)
    rows_NE = rows(told)
    found_NE = ToldFeatures(torch.from_numpy(rows_NE), neighbours=count)(ALL).numpy()

    # As scikit-learn finds them, without the anchor itself
    nearest = NearestNeighbors(n_neighbors=count, metric="cosine").fit(rows_NE[:-1])
    mean_NE = rows_NE[nearest.kneighbors(return_distance=False)].mean(axis=1)
    lengths_N1 = np.linalg.norm(rows_NE[:-1], axis=1, keepdims=True)
    expected_NE = mean_NE / np.linalg.norm(mean_NE, axis=1, keepdims=True) * lengths_N1
    np.testing.assert_allclose(found_NE, expected_NE, atol=1e-4)


def test_the_mean_of_the_neighbours_is_told_along_few_directions_where_both_are_set(told):
    rows_NE = torch.from_numpy(rows(told))
    both_NE = ToldFeatures(rows_NE, directions=5, neighbours=10)(ALL)

    mean_NE = ToldFeatures(rows_NE, neighbours=10)(ALL).numpy()
    pca = PCA(5).fit(rows_NE[:-1])
    expected_NE = pca.inverse_transform(pca.transform(mean_NE))
    np.testing.assert_allclose(both_NE.numpy(), expected_NE, atol=1e-4)


def test_a_unet_that_takes_rows_predicts_what_it_predicts_of_their_classes(told):
    unet = load_diffusion(str(told), 8).unet.eval()
    x_BCHW = torch.randn(3, 3, 8, 8)
    classes_B = torch.tensor([5, 0, 40])
    with torch.inference_mode():
        expected = unet(x_BCHW, 500, class_labels=classes_B).sample
        rows_BE = class_rows(unet)[classes_B]
        found = without_class_embedding(unet)(x_BCHW, 500, class_labels=rows_BE).sample

    torch.testing.assert_close(found, expected, atol=0, rtol=0)


@pytest.mark.parametrize("setting", [{"told_directions": 2}, {"told_neighbours": 20}])
def test_what_is_told_makes_other_candidates_whatever_the_number_of_processes(
    told, digits, tmp_path, setting
):
    model = load_diffusion(str(told), 8)
    config = SamplerConfig(steps=2, micro_batch=8, guidance=50)
    other = config.model_copy(update=setting)

    found = tars_by_processes(model, digits, other, tmp_path / "other")
    assert found[0] == found[1] == found[2]
    assert found[0] != tars_by_processes(model, digits, config, tmp_path / "all")[0]


def made_by(
    model: DiffusionModel, digits: ImageSource, device: torch.device | str = "cpu", **settings
) -> np.ndarray:
    """Return two candidates each of four digits, as whole numbers with a sign."""
    assert model.condition is not None
    anchors = list(digits)[:4]
    images_BHWC = np.stack([anchor.image for anchor in anchors])
    keys = [anchor.key for anchor in anchors]
    classes = model.condition.classes_of(anchors)

    config = SamplerConfig.model_validate(
        {"steps": 4, "micro_batch": 4, "guidance": 50, **settings}
    )
    sampler = Sampler(model, config, device)
    return sampler(images_BHWC, keys, 2, classes=classes).astype(int)


def test_telling_all_directions_makes_the_candidates_of_the_anchors_own_features(told, digits):
    model = load_diffusion(str(told), 8)
    class_rows(model.unet).detach().mul_(100)  # after four steps of training it hardly heeds them
    own = made_by(model, digits)
    assert np.abs(made_by(model, digits, told_directions=1000) - own).max() <= 1
    assert np.abs(made_by(model, digits, told_directions=2) - own).max() > 1
    assert np.abs(made_by(model, digits, told_neighbours=20) - own).max() > 1


def test_the_features_stay_as_they_are_in_a_model_that_makes_candidates_in_bfloat16(told, digits):
    model = load_diffusion(str(told), 8)
    made_by(model, digits, dtype="bfloat16", told_neighbours=5)
    np.testing.assert_array_equal(class_rows(model.unet).detach().numpy(), rows(told))


@needs_pretended_device
def test_a_gpu_is_told_the_same(told, digits):
    settings = {"guidance": 2, "told_directions": 9, "told_neighbours": 7}
    on_cpu = made_by(load_diffusion(str(told), 8), digits, **settings)
    on_gpu = made_by(load_diffusion(str(told), 8), digits, DEVICE, **settings)
    assert np.abs(on_gpu - on_cpu).max() <= 1


@pytest.mark.parametrize("setting", [{}, {"told_directions": 2}, {"told_neighbours": 20}])
def test_the_cost_of_a_set_can_be_told_before(told, digits, setting):
    model = load_diffusion(str(told), 8)
    config = SamplerConfig(steps=2, micro_batch=8, guidance=2).model_copy(update=setting)
    plan = make_plan(digits, model, config, ShardsConfig(candidates=2, records=8))
    assert estimate(plan, digits, Sampler(model, config), seconds=0).seconds > 0


@pytest.mark.parametrize("key", ["told_directions", "told_neighbours"])
def test_other_features_of_a_model_that_is_told_none_are_refused(key):
    model = make_example_model(size=8)
    with pytest.raises(InputError, match=rf"sampler\.{key} is 3, and .* is not told features"):
        Sampler(model, SamplerConfig.model_validate({key: 3}))


def test_more_neighbours_than_there_are_other_anchors_are_refused(told):
    model = load_diffusion(str(told), 8)
    Sampler(model, SamplerConfig(told_neighbours=39))
    with pytest.raises(InputError, match=r"told_neighbours is 40, and .* of 39 other anchors"):
        Sampler(model, SamplerConfig(told_neighbours=40))


def test_a_process_does_not_wait_for_ever_for_the_classes_of_the_first(
    digits, tmp_path, monkeypatch
):
    monkeypatch.setattr("clsp.core.launch.WORK", timedelta(seconds=0.1))
    with pytest.raises(WorkError, match="classes of the anchors that another process was to make"):
        _train_classes(digits, TOLD, PIXELS, tmp_path, is_main_process=False)


@pytest.mark.slow
def test_other_processes_have_the_features_from_the_first(digits, told, tmp_path):
    run_ranks(2, train_and_keep_rows, tmp_path)
    for rank in range(2):
        np.testing.assert_array_equal(np.load(tmp_path / f"rows-{rank}.npy"), rows(told))
