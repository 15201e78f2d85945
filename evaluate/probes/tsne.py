"""Map features into the plane, for the report."""

import numpy as np

from ...core import permutation
from ..features.extract import Features

POINTS = 1000


def feature_map(features: Features, points: int = POINTS) -> dict[str, list[float]]:
    """Map (at most) `points` images by t-SNE in cosine distance, always the same ones: `{x, y, label}` in lists.

    The coordinates are rounded to three digits. A handful of images gives an empty map.
    """
    from sklearn.manifold import TSNE

    chosen = np.sort(permutation(len(features.labels_N), "feature map")[:points])
    if len(chosen) < 5:
        return {"x": [], "y": [], "label": []}

    perplexity = min(30.0, (len(chosen) - 1) / 3)
    features_NF = features.plain_NF.numpy()[chosen]
    tsne = TSNE(init="pca", perplexity=perplexity, metric="cosine", random_state=0)
    places = tsne.fit_transform(features_NF).round(3)

    return {
        "x": places[:, 0].tolist(),
        "y": places[:, 1].tolist(),
        "label": features.labels_N[chosen].tolist(),
    }
