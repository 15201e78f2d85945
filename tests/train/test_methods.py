"""Each method against its definition, computed from the method's own parts by hand."""

import copy

import numpy as np
import pytest
import torch
from clsp.core import InputError
from clsp.train import METHODS, PretrainConfig, build_method, nt_xent
from clsp.train.methods.momentum import key_momentum
from clsp.train.methods.queue import Queue
from conftest import SMALL_METHOD
from torch.nn.functional import cross_entropy, normalize

BASE = {**SMALL_METHOD, "batch_size": 8, "queue_size": 16}
LABELS = torch.arange(8) % 3


def built(method: str, **changes):
    torch.manual_seed(0)
    return build_method(PretrainConfig(**{**BASE, "method": method, **changes})).train()


@pytest.fixture
def views():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(8, 3, 8, 8, generator=generator) for _ in range(3)]


@pytest.mark.parametrize("batch_norm", ["joint", "per_view"])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_synthetic_term_is_added_to_any_method_and_changes_nothing_else(
    method, batch_norm, views
):
    off = {"source": "none"}
    plain = built(method, batch_norm=batch_norm, synthetic=off)(views[:2], None, None, LABELS)
    with_term = built(method, batch_norm="per_view")(views[:2], views[2], None, LABELS)
    assert with_term.keys() - plain.keys() == {"synthetic"}
    if batch_norm == "per_view":  # the third pass draws dropout of its own, behind the base loss
        for name in plain:
            torch.testing.assert_close(plain[name], with_term[name])


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_trained_parameter_gets_a_gradient_and_no_key_encoder_does(method, views):
    found = built(method)
    sum(found(views[:2], views[2], None, LABELS).values()).backward()
    for name, parameter in found.named_parameters():
        assert (
            (parameter.grad is not None)
            == parameter.requires_grad
            == (not name.startswith("keys."))
        ), name


def test_mocov2plus_by_hand(views):
    method = built("mocov2plus", momentum_start=0.5, momentum_end=0.5)
    other = copy.deepcopy(method.backbone)
    with torch.no_grad():
        for parameter in method.backbone.parameters():
            parameter.add_(1.0)
    follower = dict(method.keys.copies[0].named_parameters())
    method.before_step(0, 10)
    for name, parameter in other.named_parameters():  # half-way between the old and the new weights
        torch.testing.assert_close(follower[name], parameter + 0.5)
    queues = method.queue1.embeddings_QD.double(), method.queue2.embeddings_QD.double()
    twin = copy.deepcopy(method)
    found = method(views[:2], None, None, LABELS)["contrastive"]
    q1, q2 = (normalize(twin.projector(twin.backbone(view)), dim=1).double() for view in views[:2])
    k1, k2 = (normalize(twin.keys(view), dim=1).double() for view in views[:2])

    def direction(q, k, queue):
        logits = (
            torch.stack([torch.stack([a @ b, *(queue @ a)]) for a, b in zip(q, k, strict=True)])
            / 0.2
        )
        return cross_entropy(logits, torch.zeros(8, dtype=torch.long))

    expected = (direction(q1, k2, queues[1]) + direction(q2, k1, queues[0])) / 2
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(method.queue1.embeddings_QD[:8], k1.float())
    torch.testing.assert_close(method.queue2.embeddings_QD[:8], k2.float())
    torch.testing.assert_close(method.queue1.embeddings_QD[8:], queues[0][8:].float())


def test_nnclr_by_hand(views):
    method = built("nnclr")
    queue, twin = method.queue.embeddings_QD.double(), copy.deepcopy(method)
    found = method(views[:2], None, None, LABELS)["contrastive"]
    y1, y2 = (twin.projector(twin.backbone(view)) for view in views[:2])
    p1, p2 = (normalize(twin.predictor(y), dim=1).double() for y in (y1, y2))
    n1, n2 = (queue[(normalize(y.double(), dim=1) @ queue.T).argmax(dim=1)] for y in (y1, y2))
    expected = (
        cross_entropy(n1 @ p2.T / 0.2, torch.arange(8))
        + cross_entropy(n2 @ p1.T / 0.2, torch.arange(8))
    ) / 2
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(method.queue.embeddings_QD[:8], normalize(y1, dim=1))


def test_all4one_finds_its_neighbours_by_the_momentum_encoder(views):
    method = built("all4one").eval()
    keys = [normalize(method.keys(view), dim=1) for view in views[:2]]
    queue, twin = method.queue.embeddings_QD, copy.deepcopy(method)
    found = method(views[:2], None, None, LABELS)
    y = [twin.projector(twin.backbone(view)) for view in views[:2]]
    near = [queue[(key @ queue.T).argsort(dim=1, descending=True)[:, :5]] for key in keys]
    p = [normalize(twin.predictor(part), dim=1) for part in y]
    own = torch.arange(8)
    neighbour = sum(cross_entropy(near[a][:, 0] @ p[1 - a].T / 0.2, own) for a in (0, 1)) / 2
    torch.testing.assert_close(found["neighbour"], 0.5 * neighbour)
    centroid = [normalize(twin.attention(part + twin.positions)[:, 0], dim=1) for part in near]
    shifted = [
        normalize(
            twin.attention(
                torch.cat([twin.centroid_predictor(y[a])[:, None], near[a][:, :4]], 1)
                + twin.positions
            )[:, 0],
            dim=1,
        )
        for a in (0, 1)
    ]
    contrast = sum(cross_entropy(centroid[a] @ shifted[1 - a].T / 0.1, own) for a in (0, 1)) / 2
    torch.testing.assert_close(found["centroid"], 0.5 * contrast)


def test_byol_by_hand(views):
    method = built("byol", momentum_start=0.5, momentum_end=0.9, projector_norm=True)
    before = copy.deepcopy(method)
    with torch.no_grad():
        for parameter in method.backbone.parameters():
            parameter.add_(1.0)
        for parameter in method.projector.parameters():
            parameter.sub_(2.0)

    # θ' ← m·θ' + (1 - m)·θ, with m half-way along the cosine from 0.5 to 0.9
    method.before_step(5, 10)
    kinds = zip((before.backbone, before.projector), method.keys.copies, (1.0, -2.0), strict=True)
    for old, follower, change in kinds:
        for name, parameter in old.named_parameters():
            moved = dict(follower.named_parameters())[name]
            torch.testing.assert_close(moved, parameter + 0.3 * change)

    # Both directions of 2 - 2·cos, the targets constant
    twin = copy.deepcopy(method)
    found = method(views[:2], None, None, LABELS)["regression"]
    p1, p2 = (twin.predictor(twin.projector(twin.backbone(view))) for view in views[:2])
    t1, t2 = (twin.keys(view) for view in views[:2])
    expected = 0.0
    for p, t in ((p1, t2), (p2, t1)):
        for one, other in zip(p.double(), t.double(), strict=True):
            expected += (2 - 2 * one @ other / one.norm() / other.norm()) / 8
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert not t1.requires_grad and not t2.requires_grad


def test_vicreg_by_hand(views):
    method = built("vicreg", invariance_weight=2.0, variance_weight=3.0, covariance_weight=5.0)
    twin = copy.deepcopy(method)
    found = method(views[:2], None, None, LABELS)
    y = [twin.projector(twin.backbone(view)).detach().double().numpy() for view in views[:2]]
    hinge = penalty = 0.0
    for view in y:
        hinge += np.mean(np.maximum(0, 1 - np.sqrt(view.var(axis=0, ddof=1) + 1e-4)))
        covariance = np.cov(view, rowvar=False)
        penalty += (np.sum(covariance**2) - np.sum(np.diag(covariance) ** 2)) / 8
    assert found["invariance"].item() == pytest.approx(2 * np.mean((y[0] - y[1]) ** 2), rel=1e-4)
    assert found["variance"].item() == pytest.approx(3 * hinge, rel=1e-4)
    assert found["covariance"].item() == pytest.approx(5 * penalty, rel=1e-4)


@pytest.mark.parametrize(("method", "layers"), [("byol", 2), ("vicreg", 3)])
def test_heads_are_those_of_solo_learn_with_no_norm_behind_the_last_layer(method, layers):
    found = built(method, projector_norm=True, projector_layers=layers)
    kinds = [type(layer).__name__ for layer in found.projector]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU"] * (layers - 1) + ["Linear"]


def test_simclr_takes_the_decoupled_loss_and_no_other_method_does(views):
    plain, decoupled = built("simclr"), built("simclr", decoupled=True)
    found = decoupled(views[:2], None, None, LABELS)["contrastive"]
    z1, z2 = (normalize(plain.projector(plain.backbone(view)), dim=1) for view in views[:2])
    torch.testing.assert_close(found, nt_xent(z1, z2, 0.2, decoupled=True))
    assert found != plain(views[:2], None, None, LABELS)["contrastive"]
    for method in set(METHODS) - {"simclr"}:
        with pytest.raises(InputError, match=f"option of simclr, and pretrain.method = {method}"):
            built(method, decoupled=True)
    assert "decoupled" not in PretrainConfig().recorded()


def test_the_queue_holds_the_last_embeddings_in_turn():
    queue = Queue(PretrainConfig(**BASE))
    batches = [normalize(torch.randn(8, 8), dim=1) for _ in range(3)]
    for batch in batches:
        queue.add(batch)
    torch.testing.assert_close(queue.embeddings_QD, torch.cat([batches[2], batches[1]]))
    assert int(queue.place) == 8


def test_the_momentum_goes_along_a_cosine():
    config = PretrainConfig(momentum_start=0.99, momentum_end=0.999)
    assert [key_momentum(step, 100, config) for step in (0, 50, 100)] == pytest.approx(
        [0.99, 0.9945, 0.999]
    )


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        (
            "mocov2plus",
            {"queue_size": 12},
            "queue_size is 12, expected a multiple of batch_size = 8",
        ),
        ("nnclr", {"queue_size": 4}, "queue_size is 4"),
        ("all4one", {"projector_out": 12}, "projector_out is 12, expected a multiple of 8"),
    ],
)
def test_settings_that_do_not_go_with_a_method_are_refused(method, changes, message):
    with pytest.raises(InputError, match=message):
        built(method, **changes)
