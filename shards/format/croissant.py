"""Write Croissant metadata: what a set is, its files and its indexes' columns, for the tools that read JSON-LD.

`mlcroissant.Dataset("SET/croissant.json").records("layer-000")` then gives the rows of a layer's index.
"""

from typing import Any

from ...core import canonical_json
from .plan import Plan

CONFORMS_TO = "http://mlcommons.org/croissant/1.0"
CITATION = (
    "@inproceedings{zeng2024clsp, title={Contrastive Learning with Synthetic Positives}, "
    "author={Zeng, Dewen and Wu, Yawen and Hu, Xinrong and Xu, Xiaowei and Shi, Yiyu}, "
    "booktitle={European Conference on Computer Vision (ECCV)}, year={2024}, eprint={2408.16965}, "
    "archivePrefix={arXiv}}"
)
KEYWORDS = [
    "contrastive learning",
    "diffusion models",
    "self-supervised learning",
    "synthetic positives",
]
COLUMNS = {
    "key": ("sc:Text", "The record's name; its members in the tar are KEY.ENDING."),
    "index": ("sc:Integer", "The position of the anchor in the source."),
    "label": ("sc:Integer", "The class number of the anchor, empty in sources without labels."),
    "shard": ("sc:Integer", "The number of the tar that holds the record."),
}
"""The columns of the index that are described: data type and meaning."""
TERMS = (
    "citeAs column equivalentProperty extract field fileObject fileProperty fileSet format includes isLiveDataset "
    "jsonPath key md5 parentField path recordSet references regex repeated replace samplingRate separator source "
    "subField transform"
)
CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "rai": "http://mlcommons.org/croissant/RAI/",
    "sc": "https://schema.org/",
    "conformsTo": "dct:conformsTo",
    **{term: f"cr:{term}" for term in TERMS.split()},
}
"""The context that Croissant 1.0 prescribes."""


def croissant(plan: Plan, layers: list[tuple[str, list[str], str]]) -> bytes:
    """Return the bytes of `croissant.json`: equal arguments give equal bytes, and more shards do not make it longer.

    Args:
        plan: that of layer 0.
        layers: for every layer its name, the member endings of its images in tar order, and the SHA-256 of its index.
    """
    source = plan.source
    distribution = []
    for name, fields, sha256 in layers:
        distribution += _files(name, fields, sha256)

    metadata: dict[str, Any] = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": CONFORMS_TO,
        "name": f"Synthetic positives for {source.name}",
        "description": (
            f"{plan.count} anchors of {source.name} (split {source.split}, {source.size}x{source.size} RGB) with "
            "synthetic positives: images made by a diffusion model that keep the anchor's content and change its "
            f"background. Plan {plan.digest}."
        ),
        "citeAs": CITATION,
        "keywords": KEYWORDS,
        "version": f"1.{len(layers) - 1}.0",  # a layer that is added is a minor release
        "distribution": distribution,
        "recordSet": [_record_set(name) for name, _, _ in layers],
    }

    if source.licence:
        metadata["license"] = source.licence

    return canonical_json(metadata)


def _files(name: str, fields: list[str], sha256: str) -> list[dict[str, Any]]:
    shown = fields if len(fields) <= 4 else [*fields[:2], "…", fields[-1]]
    endings = ", ".join([*shown, "json"])
    return [
        {
            "@type": "cr:FileObject",
            "@id": f"{name}.parquet",
            "name": f"{name}.parquet",
            "description": f"The index of {name}: one row per record.",
            "contentUrl": f"{name}.parquet",
            "encodingFormat": "application/x-parquet",
            "sha256": sha256,
        },
        {
            "@type": "cr:FileSet",
            "@id": f"{name}-tars",
            "name": f"{name}-tars",
            "description": (
                f"The shards of {name}: plain tars with, per record, KEY.ENDING for the endings {endings}."
            ),
            "includes": f"{name}/*.tar",
            "encodingFormat": "application/x-tar",
        },
    ]


def _record_set(name: str) -> dict[str, Any]:
    fields = []
    for column, (data_type, description) in COLUMNS.items():
        fields.append(
            {
                "@type": "cr:Field",
                "@id": f"{name}/{column}",
                "name": column,
                "description": description,
                "dataType": data_type,
                "source": {"fileObject": {"@id": f"{name}.parquet"}, "extract": {"column": column}},
            }
        )

    return {
        "@type": "cr:RecordSet",
        "@id": name,
        "name": name,
        "description": f"The records of {name}, from its index.",
        "key": {"@id": f"{name}/key"},
        "field": fields,
    }
