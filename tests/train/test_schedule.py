import math

import pytest
from clsp.train import PretrainConfig, SyntheticConfig, learning_rate, synthetic_weight

CONFIG = PretrainConfig(epochs=100, warmup_epochs=10, warmup_lr=0.001, lr=0.5)


def test_linear_warm_up_then_cosine_to_zero():
    rates = [learning_rate(step, 4, CONFIG) for step in range(401)]
    assert rates[0] == 0.001 and rates[40] == 0.5
    assert rates[20] == pytest.approx((0.001 + 0.5) / 2)
    assert rates[40 + 90] == pytest.approx(0.25 * (1 + math.cos(math.pi / 4)))
    assert rates[400] == pytest.approx(0.0, abs=1e-12)
    assert max(rates) == 0.5


def test_lambda_rises_linearly_and_stays():
    config = CONFIG.model_copy(update={"synthetic": SyntheticConfig(weight=0.8, warmup=2)})
    assert [synthetic_weight(step, 4, config) for step in (0, 4, 8, 100)] == [0.0, 0.4, 0.8, 0.8]
    assert synthetic_weight(0, 4, CONFIG) == 1.0
