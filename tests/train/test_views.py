import numpy as np
import pytest
import torch
from clsp.train import AugmentConfig, PretrainConfig, Views
from clsp.train.views import build_augmentation
from PIL import Image
from torchvision.transforms import functional

ADJUST = {
    "brightness": functional.adjust_brightness,
    "contrast": functional.adjust_contrast,
    "saturation": functional.adjust_saturation,
}

IMAGES = torch.randint(
    0, 256, (6, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)


def views(**changes) -> Views:
    return Views(PretrainConfig(**changes), 16, torch.device("cpu"))


def test_a_view_depends_on_seed_step_rank_and_number_alone():
    make = views()
    first = make(IMAGES, 1, 5, 0)
    make(IMAGES, 3, 5, 0)  # another view in between changes nothing
    assert torch.equal(make(IMAGES, 1, 5, 0), first)
    others = [
        make(IMAGES, 2, 5, 0),
        make(IMAGES, 1, 6, 0),
        make(IMAGES, 1, 5, 1),
        views(seed=1)(IMAGES, 1, 5, 0),
    ]
    assert all(not torch.equal(other, first) for other in others)


def test_parameters_are_drawn_per_image():
    same = IMAGES[:1].repeat(64, 1, 1, 1)
    made = views()(same, 1, 0, 0)
    assert len({tuple(image.flatten()[:9].tolist()) for image in made}) > 32


def test_normalisation():
    config = AugmentConfig(
        crop_scale=1.0,
        flip=False,
        brightness=0,
        contrast=0,
        saturation=0,
        hue=0,
        grey_probability=0,
    )
    flat = torch.full((2, 3, 16, 16), 51, dtype=torch.uint8)
    made = views(augment=config, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 1.0))(flat, 1, 0, 0)
    expected = (0.2 - torch.tensor([0.1, 0.2, 0.3])) / torch.tensor([0.5, 0.25, 1.0])
    torch.testing.assert_close(made, expected[None, :, None, None].expand_as(made))


def varying(channel_means: torch.Tensor) -> bool:
    return bool(channel_means.std(dim=0).max() > 1e-3)


def test_each_setting_switches_its_operation():
    """On flat grey images only brightness shows in the level, on half-black ones only crop and flip in the place."""
    off = {
        "crop_scale": 1.0,
        "flip": False,
        "brightness": 0,
        "contrast": 0,
        "saturation": 0,
        "hue": 0,
    }
    flat = torch.full((64, 3, 16, 16), 0.4)
    half = torch.zeros(64, 3, 16, 16)
    half[..., :8] = 1.0

    def made(images, **on):
        torch.manual_seed(0)
        return build_augmentation(AugmentConfig(**{**off, "grey_probability": 0.0, **on}), 16)(
            images
        )

    assert not varying(made(flat).mean(dim=(2, 3))) and varying(
        made(flat, brightness=0.4).mean(dim=(2, 3))
    )
    flipped = made(half, flip=True)[..., 0].mean(dim=(1, 2)) < 0.5
    assert 16 < flipped.sum() < 48
    assert varying(made(half, crop_scale=0.1).mean(dim=(2, 3))) and not varying(
        made(half).mean(dim=(2, 3))
    )
    red = torch.zeros(64, 3, 16, 16)
    red[:, 0] = 1.0
    grey = made(red, grey_probability=0.5)
    assert 16 < (grey[:, 0, 0, 0] < 0.5).sum() < 48 and torch.equal(made(red), red)
    brighter = made(flat, brightness=0.4, jitter_probability=0.5).mean(dim=(1, 2, 3))
    assert 16 < ((brighter - 0.4).abs() < 1e-6).sum() < 48


PICTURES = [
    Image.fromarray(coarse).resize((32, 32), Image.Resampling.BICUBIC)
    for coarse in np.random.default_rng(0).integers(0, 256, (8, 6, 6, 3), dtype=np.uint8)
]
PLAIN = {
    "brightness": 0.0,
    "contrast": 0.0,
    "saturation": 0.0,
    "hue": 0.0,
    "grey_probability": 0.0,
    "flip": False,
}


def differences(operation: torch.nn.Module, by_pil) -> torch.Tensor:
    """Grey levels between an operation on the batch and torchvision's on each picture."""
    expected = torch.stack([functional.to_tensor(by_pil(picture)) for picture in PICTURES])
    return (
        255
        * (
            operation(torch.stack([functional.to_tensor(picture) for picture in PICTURES]))
            - expected
        ).abs()
    )


def only(**on) -> torch.nn.Module:
    """The part of the chain behind the crop, with one operation switched on."""
    chain = build_augmentation(AugmentConfig(**{**PLAIN, "jitter_probability": 1.0, **on}), 32)
    return torch.nn.Sequential(*list(chain)[1:])


@pytest.mark.parametrize("factor", [0.6, 0.9, 1.4])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_colour_operations_are_pils(name, factor):
    (jitter,) = only(**{name: 0.4})
    parameters = jitter.forward_parameters((8, 3, 32, 32))
    parameters[f"{name}_factor"] = torch.full((8,), factor)
    found = differences(
        lambda batch: jitter(batch, params=parameters), lambda p: ADJUST[name](p, factor)
    )
    assert found.max() < 1.5


@pytest.mark.parametrize("shift", [-0.1, 0.1])
def test_hue_is_pils_but_for_pils_rounding(shift):
    (jitter,) = only(hue=0.1)
    parameters = jitter.forward_parameters((8, 3, 32, 32))
    parameters["hue_factor"] = torch.full((8,), shift)
    found = differences(
        lambda batch: jitter(batch, params=parameters), lambda p: functional.adjust_hue(p, shift)
    )
    assert found.max() < 13 and found.mean() < 1.1


@pytest.mark.parametrize(
    ("on", "by_pil"),
    [
        ({"grey_probability": 1.0}, lambda p: functional.rgb_to_grayscale(p, 3)),
        ({"solarise_probability": 1.0}, lambda p: functional.solarize(p, 128)),
    ],
    ids=["grey", "solarise"],
)
def test_other_operations_are_pils(on, by_pil):
    assert differences(only(**on), by_pil).max() < 1.5


def test_blur_and_flip_are_pils():
    (blur,) = only(blur_probability=1.0)
    parameters = blur.forward_parameters((8, 3, 32, 32))
    parameters["sigma"] = torch.full((8,), 1.0)
    found = differences(
        lambda batch: blur(batch, params=parameters),
        lambda p: functional.gaussian_blur(p, [3, 3], [1.0, 1.0]),
    )
    assert found.max() < 1.5
    (flip,) = only(flip=True)
    torch.manual_seed(0)
    found = differences(flip, functional.hflip).flatten(1).max(1).values
    flipped = flip._params["batch_prob"].bool()
    assert flipped.any() and torch.equal(found == 0, flipped)


@pytest.mark.parametrize(("batched", "most", "mean"), [(False, 1.5, 0.5), (True, 16.0, 4.0)])
def test_crops_are_pils(batched, most, mean):
    crop = build_augmentation(AugmentConfig(**PLAIN), 32, batched)[0]
    torch.manual_seed(0)
    found = crop(torch.stack([functional.to_tensor(picture) for picture in PICTURES]))
    for picture, image, corners in zip(
        PICTURES, found, crop._params["src"].int().tolist(), strict=True
    ):
        (left, top), _, (right, bottom), _ = corners
        box = (top, left, bottom - top + 1, right - left + 1)
        expected = functional.to_tensor(functional.resized_crop(picture, *box, [32, 32]))
        difference = 255 * (image - expected).abs()
        assert difference.max() < most and difference.mean() < mean
