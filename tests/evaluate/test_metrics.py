import numpy as np
import pytest
from clsp.evaluate.metrics import accuracy_with_interval
from scipy.stats import binomtest


@pytest.mark.parametrize(("hits", "count"), [(0, 10), (7, 10), (340, 359), (50, 50)])
def test_the_interval_is_wilsons(hits, count):
    expected = binomtest(hits, count).proportion_ci(0.95, "wilson")
    found = accuracy_with_interval("top1", np.arange(count) < hits)
    assert found["top1"] == pytest.approx(100 * hits / count)
    assert found["top1_interval"] == pytest.approx([100 * expected.low, 100 * expected.high])
