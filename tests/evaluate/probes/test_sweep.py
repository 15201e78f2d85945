import numpy as np
import pytest
import torch
from clsp.core import InputError, permutation
from clsp.evaluate import Features, LinearEvalConfig, evaluate_sweep
from clsp.evaluate.probes.sweep import train_heads
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression

CONFIG = LinearEvalConfig(protocol="sweep", epochs=8, batch_size=64, flip=False)


def features(count: int = 800, seed: int = 0) -> tuple[Features, Features]:
    x, y = make_classification(
        count, 12, n_informative=8, n_classes=7, n_clusters_per_class=1, random_state=seed
    )
    x, y = torch.from_numpy(x).float(), torch.from_numpy(y)
    return Features(x[:600], None, y[:600]), Features(x[600:], None, y[600:])


def test_every_head_takes_the_steps_it_would_take_alone():
    train, _ = features()
    settings = [(0.03, 0.0), (0.3, 1e-3), (1.0, 0.1)]
    together = train_heads(train, 7, settings, CONFIG)
    for head, setting in enumerate(settings):
        alone = train_heads(train, 7, [setting], CONFIG)
        torch.testing.assert_close(together[:, head], alone[:, 0], rtol=1e-4, atol=1e-5)


def test_a_head_is_torchs_sgd_with_momentum_weight_decay_and_a_cosine():
    train, _ = features()
    head = torch.nn.Linear(12, 7)
    optimizer = torch.optim.SGD(
        [{"params": [head.weight], "weight_decay": 1e-2}, {"params": [head.bias]}],
        lr=0.2,
        momentum=0.9,
    )
    start = train_heads(train, 7, [(1e-12, 0.0)], CONFIG.model_copy(update={"epochs": 1}))[:, 0]
    with torch.no_grad():
        head.weight.copy_(start[:-1].T)
        head.bias.copy_(start[-1])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=8 * 10)
    for epoch in range(8):
        for chosen in torch.from_numpy(permutation(600, 0, epoch, "sweep")).split(64):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(
                head(train.plain_NF[chosen]), train.labels_N[chosen]
            ).backward()
            optimizer.step()
            schedule.step()
    found = train_heads(train, 7, [(0.2, 1e-2)], CONFIG)[:, 0]
    torch.testing.assert_close(found[:-1].T, head.weight.detach(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found[-1], head.bias.detach(), rtol=1e-3, atol=1e-4)


def test_accuracy_is_that_of_logistic_regression():
    train, test = features()
    result = evaluate_sweep(train, test, 7, CONFIG.model_copy(update={"epochs": 40}))
    reference = LogisticRegression(max_iter=5000).fit(train.plain_NF, train.labels_N)
    assert result["top1"] == pytest.approx(
        100 * reference.score(test.plain_NF, test.labels_N), abs=3
    )
    assert result["chosen"]["heads"] == 40 and result["protocol"] == "sweep"


def test_test_labels_never_influence_what_is_chosen():
    train, test = features()
    shuffled = Features(test.plain_NF, None, test.labels_N[torch.randperm(len(test.labels_N))])
    real, other = (evaluate_sweep(train, one, 7, CONFIG) for one in (test, shuffled))
    assert real["chosen"] == other["chosen"]
    assert real["top1"] > other["top1"] + 20  # and it is the test set that was measured


def test_a_head_that_diverges_is_never_chosen():
    train, test = features()
    config = CONFIG.model_copy(update={"sweep_lr": (0.1, 1e30), "sweep_weight_decay": (0.0,)})
    assert evaluate_sweep(train, test, 7, config)["chosen"]["lr"] == 0.1


def test_a_channel_that_is_dead_on_train_does_no_harm():
    train, test = features()
    dead = [
        Features(
            torch.cat([one.plain_NF, torch.zeros(len(one.labels_N), 1)], 1), None, one.labels_N
        )
        for one in (train, test)
    ]
    dead[1].plain_NF[::2, -1] = 0.3
    plain, with_dead = evaluate_sweep(train, test, 7, CONFIG), evaluate_sweep(*dead, 7, CONFIG)
    assert with_dead["top1"] == pytest.approx(plain["top1"], abs=3)


def test_one_image_of_a_class_is_refused():
    train = Features(torch.randn(5, 3), None, torch.tensor([0, 0, 0, 0, 1]))
    with pytest.raises(InputError, match="class 1 has one training image"):
        evaluate_sweep(train, train, 2, CONFIG)


def test_a_tenth_of_every_class_is_held_out_always_the_same():
    from clsp.evaluate.features.extract import hold_out

    labels = np.repeat([0, 1, 2], [100, 40, 3])
    chosen = hold_out(labels, 0.1, "sweep validation")
    assert np.bincount(labels[chosen]).tolist() == [10, 4, 1]
    assert np.array_equal(chosen, hold_out(labels, 0.1, "sweep validation"))
