"""Several candidates a step, through set, loader, views and loss."""

import pytest
import torch
from clsp.core import InputError
from clsp.core.run_name import RunName
from clsp.shards import BatchOrder, PairDataset, ShardSet
from clsp.train import PretrainConfig, SyntheticConfig, alignment, build_method, check_run, pretrain
from clsp.train.build import pair_loader
from clsp.train.inputs import InputMaker
from clsp.train.synthetic_term import synthetic_term
from clsp.train.views import Views
from conftest import SMALL_METHOD
from pydantic import ValidationError
from torch.nn.functional import normalize

BASE = {**SMALL_METHOD, "epochs": 1, "batch_size": 16, "workers": 0}
DEVICE = torch.device("cpu")


def config(synthetic=None, **changes) -> PretrainConfig:
    return PretrainConfig(**{**BASE, **changes}, synthetic=synthetic or {})


def order(shards: ShardSet) -> BatchOrder:
    return BatchOrder(shards.shard_sizes, shards.plan.digest, 0, 16)


@pytest.fixture(scope="module")
def shards(shard_set):
    return ShardSet(shard_set)


# What reaches the loss


@pytest.mark.parametrize("source", ["shards", "augmentation"])
def test_every_third_view_has_a_stream_of_its_own_and_the_first_is_as_before(shards, source):
    """View numbers go on: with two ordinary views the third ones are views 3, 4, … of candidates or of the anchors."""
    batch = PairDataset(shards, 0, count=3).__getitems__([(0, n) for n in range(16)])
    several, one = config({"source": source, "candidates": 3}), config({"source": source})
    views = Views(several, 8, DEVICE)
    found = InputMaker(several, views, DEVICE, 2, 3)(5, batch)
    assert found.third.shape == (16, 3, 3, 8, 8) and found.weights_B is None
    for place in range(3):
        images = batch.anchors_BCHW
        if source == "shards":
            images = batch.candidates_BCHW[:, place]
        expected = views(images, view=3 + place, step=5, rank=0)
        assert torch.equal(found.third[:, place], expected)

    old = PairDataset(shards, 0).__getitems__([(0, n) for n in range(16)])
    before = InputMaker(one, views, DEVICE, 2, 3)(5, old)
    assert torch.equal(before.third, found.third[:, 0])
    assert all(map(torch.equal, before.views, found.views))


def test_the_draw_of_the_probability_leaves_out_a_sample_with_all_its_candidates(shards):
    chosen = config({"candidates": 3, "probability": 0.5})
    maker = InputMaker(chosen, Views(chosen, 8, DEVICE), DEVICE, 2, 3)
    weights = torch.rand(1000, 3) + 0.1
    found = maker._weights(0, weights)
    stays = found[:, 0] > 0
    assert 0.4 < stays.double().mean() < 0.6
    assert torch.equal(found, torch.where(stays[:, None], weights, 0.0))

    # The same samples as with one candidate
    alone = InputMaker(config({"probability": 0.5}), maker.views, DEVICE, 2, 3)
    assert torch.equal(alone._weights(0, torch.ones(1000)) > 0, stays)


def test_the_paper_s_loss_of_several_is_the_mean_and_of_one_what_it_was():
    generator = torch.Generator().manual_seed(0)
    views = list(torch.randn(2, 8, 5, generator=generator))
    thirds = list(torch.randn(3, 8, 5, generator=generator))
    weights = torch.rand(8, 3, generator=generator)
    z1 = normalize(views[0], dim=1)
    chosen = config({"candidates": 3})
    expected = torch.zeros(())
    for place in range(3):
        distances = 2 - 2 * torch.cosine_similarity(views[0], thirds[place])
        expected += (distances * weights[:, place]).sum() / 24
    torch.testing.assert_close(synthetic_term(chosen, views, thirds, weights), expected)

    one = synthetic_term(config(), views, thirds[:1], weights[:, 0])
    assert torch.equal(one, alignment(z1, normalize(thirds[0], dim=1), weights[:, 0]))


@pytest.mark.parametrize("batch_norm", ["joint", "per_view"])
@pytest.mark.parametrize("loss", ["alignment", "mean_target", "multi_positive", "robust"])
def test_samples_without_candidates_leave_the_term_to_the_others(loss, batch_norm):
    """Another candidate in their places changes neither the losses nor any gradient."""
    changes = {"norm_layer": "groupnorm1"}
    networks = {**SMALL_METHOD["backbone_kwargs"], **changes}
    chosen = config(
        {"candidates": 2, "loss": loss}, batch_norm=batch_norm, backbone_kwargs=networks
    )
    generator = torch.Generator().manual_seed(0)
    views = list(torch.randn(2, 6, 3, 8, 8, generator=generator))
    third = torch.randn(6, 2, 3, 8, 8, generator=generator)
    weights = torch.ones(6, 2)
    weights[1] = 0.0
    weights[4] = torch.tensor([2.0, 0.0])
    other = torch.where(weights[:, :, None, None, None] > 0, third, -third)

    found = []
    for images in (third, other):
        torch.manual_seed(0)
        method = build_method(chosen)
        losses = method(views, images, weights, torch.full((6,), -1))
        losses["synthetic"].backward()
        gradient = method.projector[0].weight.grad
        found.append((losses["synthetic"].detach(), gradient))
        assert gradient.abs().max() > 0
    torch.testing.assert_close(found[0], found[1])


# Settings


def test_more_candidates_than_the_set_has_are_refused_in_one_line(shards):
    with pytest.raises(InputError, match=r"4 different .*synthetic.candidates.* has 3") as error:
        pair_loader(shards, config({"candidates": 4}), order(shards))
    assert "\n" not in str(error.value)
    for source in ("augmentation", "none"):  # which draw no candidate
        loader = pair_loader(shards, config({"candidates": 4, "source": source}), order(shards))
        assert loader.dataset.count == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"candidates": 2, "source": "inflation"}, "are of third views, and inflation has none"),
        ({"loss": "robust", "source": "inflation"}, "are of third views, and inflation has none"),
        ({"robust_q": 0.5}, "are of synthetic.loss = robust, and it is alignment"),
        ({"candidates": 0}, "greater than or equal to 1"),
        ({"loss": "robust", "robust_q": 0.0}, "greater than 0"),
    ],
)
def test_settings_without_a_use_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        SyntheticConfig(**settings)


def test_new_settings_are_recorded_only_where_they_are_not_the_old_behaviour():
    new = {"candidates", "loss", "robust_q", "robust_lambda"}
    assert not new & SyntheticConfig().recorded().keys()
    assert "label" not in PretrainConfig().recorded()
    assert PretrainConfig(label="m4").recorded()["label"] == "m4"
    chosen = SyntheticConfig(candidates=4, loss="robust", robust_q=0.5)
    assert chosen.recorded().keys() & new == {"candidates", "loss", "robust_q"}
    found = SyntheticConfig.from_record(chosen.recorded())
    assert (found.candidates, found.loss, found.robust_q) == (4, "robust", 0.5)


@pytest.mark.parametrize(
    ("label", "name"),
    [("", "simclr+shards"), ("m4", "simclr+shards@m4"), ("q0.5_a-b", "simclr+shards@q0.5_a-b")],
)
def test_a_label_is_part_of_the_name(label, name):
    found = config(label=label).run_name
    assert found == name and str(RunName.parse(name)) == name
    assert RunName.parse(name).label == label and RunName.parse(name).source == "shards"


@pytest.mark.parametrize("label", ["a b", "a/b", "a@b", "a+b"])
def test_labels_that_would_not_do_in_a_path_are_refused(label):
    with pytest.raises(ValidationError, match="label"):
        config(label=label)


def test_runs_of_several_candidates_train_and_are_other_runs(shards, tmp_path):
    digests = set()
    for loss in ("alignment", "mean_target", "multi_positive", "robust"):
        chosen = config({"candidates": 2, "loss": loss}, label=loss)
        backbone = pretrain(shards, chosen, tmp_path / loss)
        digests.add((backbone / "model.safetensors").read_bytes())
    assert len(digests) == 4
    with pytest.raises(InputError, match=r"synthetic.candidates: None there, 3 here"):
        pretrain(shards, config(), tmp_path / "one")
        check_run(shards, config({"candidates": 3}), tmp_path / "one")
