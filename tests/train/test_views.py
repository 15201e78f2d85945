import torch
from clsp.train import AugmentConfig, PretrainConfig, Views
from clsp.train.views import build_augmentation

IMAGES = torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def views(**changes) -> Views:
    return Views(PretrainConfig(**changes), 16, torch.device("cpu"))


def test_a_view_depends_on_seed_step_rank_and_number_alone():
    make = views()
    first = make(IMAGES, 1, 5, 0)
    make(IMAGES, 3, 5, 0)  # another view in between changes nothing
    assert torch.equal(make(IMAGES, 1, 5, 0), first)
    others = [make(IMAGES, 2, 5, 0), make(IMAGES, 1, 6, 0), make(IMAGES, 1, 5, 1), views(seed=1)(IMAGES, 1, 5, 0)]
    assert all(not torch.equal(other, first) for other in others)


def test_parameters_are_drawn_per_image():
    same = IMAGES[:1].repeat(64, 1, 1, 1)
    made = views()(same, 1, 0, 0)
    assert len({tuple(image.flatten()[:9].tolist()) for image in made}) > 32


def test_normalisation():
    config = AugmentConfig(
        crop_scale=1.0, flip=False, brightness=0, contrast=0, saturation=0, hue=0, grey_probability=0
    )
    flat = torch.full((2, 3, 16, 16), 51, dtype=torch.uint8)
    made = views(augment=config, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 1.0))(flat, 1, 0, 0)
    expected = (0.2 - torch.tensor([0.1, 0.2, 0.3])) / torch.tensor([0.5, 0.25, 1.0])
    torch.testing.assert_close(made, expected[None, :, None, None].expand_as(made))


def varying(channel_means: torch.Tensor) -> bool:
    return bool(channel_means.std(dim=0).max() > 1e-3)


def test_each_setting_switches_its_operation():
    """On flat grey images only brightness shows in the level, on half-black ones only crop and flip in the place."""
    off = {"crop_scale": 1.0, "flip": False, "brightness": 0, "contrast": 0, "saturation": 0, "hue": 0}
    flat = torch.full((64, 3, 16, 16), 0.4)
    half = torch.zeros(64, 3, 16, 16)
    half[..., :8] = 1.0

    def made(images, **on):
        torch.manual_seed(0)
        return build_augmentation(AugmentConfig(**{**off, "grey_probability": 0.0, **on}), 16)(images)

    assert not varying(made(flat).mean(dim=(2, 3))) and varying(made(flat, brightness=0.4).mean(dim=(2, 3)))
    flipped = made(half, flip=True)[..., 0].mean(dim=(1, 2)) < 0.5
    assert 16 < flipped.sum() < 48
    assert varying(made(half, crop_scale=0.1).mean(dim=(2, 3))) and not varying(made(half).mean(dim=(2, 3)))
    red = torch.zeros(64, 3, 16, 16)
    red[:, 0] = 1.0
    grey = made(red, grey_probability=0.5)
    assert 16 < (grey[:, 0, 0, 0] < 0.5).sum() < 48 and torch.equal(made(red), red)
    brighter = made(flat, brightness=0.4, jitter_probability=0.5).mean(dim=(1, 2, 3))
    assert 16 < ((brighter - 0.4).abs() < 1e-6).sum() < 48
