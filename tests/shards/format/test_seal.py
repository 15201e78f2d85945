import hashlib
import json

import numpy as np
from clsp.core import canonical_json
from clsp.shards import read_manifest, seal_if_complete, verify_set
from clsp.shards.format.layout import commit_path
from clsp.shards.format.plan import read_plan
from clsp.shards.reading.scores import add_scores


def test_the_set_id_is_the_hash_of_the_manifest_and_it_names_every_file(shard_set):
    manifest = read_manifest(shard_set)
    assert manifest.set_id == hashlib.sha256((shard_set / "manifest.json").read_bytes()).hexdigest()
    present = {
        path.relative_to(shard_set).as_posix() for path in shard_set.rglob("*") if path.is_file()
    }
    assert set(manifest.files) == present - {"manifest.json"}
    for name, entry in manifest.files.items():
        content = (shard_set / name).read_bytes()
        assert (entry.bytes, entry.sha256) == (len(content), hashlib.sha256(content).hexdigest())


def test_sealing_again_gives_the_same_bytes(make_set, tmp_path):
    root = make_set(tmp_path / "set")
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    (root / "manifest.json").unlink()
    (root / "layer-000.parquet").unlink()
    assert seal_if_complete(root, read_plan(root)) == read_manifest(root).set_id
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


def test_an_incomplete_set_is_not_sealed(make_set, tmp_path):
    root = make_set(tmp_path / "set")
    (root / "manifest.json").unlink()
    commit_path(root, 0, 1).unlink()
    assert seal_if_complete(root, read_plan(root)) is None
    assert not (root / "manifest.json").exists()


def test_provenance_tells_source_model_and_sampler(shard_set):
    provenance = json.loads((shard_set / "manifest.json").read_text())["provenance"]
    assert (
        provenance["source"]["name"] == "digits" and provenance["source"]["licence"] == "cc-by-4.0"
    )
    assert provenance["sampler"]["weight"] == 0.1 and len(provenance["diffusion"]["digest"]) == 64


def test_what_a_later_version_put_into_the_manifest_stays(make_set, tmp_path):
    root = make_set(tmp_path / "set")
    path = root / "manifest.json"
    content = json.loads(path.read_text())
    content |= {"schema_version": "1.7", "later": [1, 2]}
    content["layers"][0]["note"], content["provenance"]["site"] = "x", "y"
    path.write_bytes(canonical_json(content))
    add_scores(
        root, "probe", [f"train_{index:08d}" for index in range(40)], {"cosine": np.zeros((40, 3))}
    )
    after = json.loads(path.read_text())
    assert after["files"].pop("scores/probe.parquet") and verify_set(root, deep=True) == []
    assert after == content
