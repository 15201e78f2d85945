"""Write the dataset card, which the hub shows and which lets `datasets.load_dataset` read a set layer by layer."""

from typing import Any

from huggingface_hub import DatasetCardData

from .layout import layer_name
from .plan import Plan

TEMPLATE = """---
{header}
---

# Synthetic positives for {source}

{count:,} anchors of `{source}` (split `{split}`, {size}x{size} RGB), each with {candidates} synthetic positives: images
made by a diffusion model that keep the anchor's content and change its background
([CLSP, ECCV 2024](https://arxiv.org/abs/2408.16965)).

| layer | candidates | diffusion model | sampler | images |
|---|---|---|---|---|
{layers}

Plan `{plan}`{derived}.

## Reading

Every shard is a plain tar with the members {members} per record.

```python
import datasets
positives = datasets.load_dataset("PATH-OF-THIS-FOLDER", "layer-000", split="train")
```

```python
import webdataset
records = webdataset.WebDataset("layer-000/shard-000000.tar", shardshuffle=False).decode("pil")
```
"""


def card(plans: list[Plan]) -> bytes:
    """Return the bytes of `README.md` of a set whose layers have these plans."""
    plan = plans[0]
    layers = [layer_name(number) for number in range(len(plans))]
    header = DatasetCardData(
        license=plan.source.licence or None,
        pretty_name=f"Synthetic positives for {plan.source.name}",
        tags=["contrastive-learning", "synthetic-positives", "webdataset"],
        configs=[_config(name, layer) for name, layer in zip(layers, plans, strict=True)],
    )

    fields = plan.image_fields
    shown = [*fields[:2], "…", fields[-1], "json"]
    rows = [_layer_row(name, layer) for name, layer in zip(layers, plans, strict=True)]

    text = TEMPLATE.format(
        header=header.to_yaml(),
        source=plan.source.name,
        split=plan.source.split,
        count=plan.count,
        size=plan.source.size,
        candidates=plans[-1].end,
        layers="\n".join(rows),
        derived=f", made by `{plan.derived.operation}` from other sets" if plan.derived else "",
        plan=plan.digest,
        members=", ".join(f"`{{key}}.{field}`" for field in shown),
    )

    return text.encode()


def _config(name: str, plan: Plan) -> dict[str, Any]:
    """Describe a layer to `datasets`; it caches by this and the folder's name, so the plan's digest must be in it."""
    files = [{"split": "train", "path": f"{name}/*.tar"}]
    return {"config_name": name, "description": f"plan {plan.digest}", "data_files": files}


def _layer_row(name: str, plan: Plan) -> str:
    numbers = f"{plan.start}-{plan.end - 1}"
    model = (
        f"`{plan.diffusion.origin}` (digest `{plan.diffusion.digest[:16]}`){plan.diffusion.text}"
    )
    return f"| `{name}` | {numbers} | {model} | {plan.sampler_text} | {plan.codec.text} |"
