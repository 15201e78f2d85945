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


def test_the_chain_has_what_the_recipe_asks_for():
    full = build_augmentation(AugmentConfig(), 16)
    names = [type(step).__name__ for step in full.children()]
    assert names == ["RandomResizedCrop", "ColorJitter", "RandomGrayscale", "RandomHorizontalFlip"]
    assert len(build_augmentation(AugmentConfig(flip=False, grey_probability=0), 16)) == 2
