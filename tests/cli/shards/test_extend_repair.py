"""`extend` and `repair` against sets made in one go, and against damage."""

import shutil

import pytest
from clsp.shards import ShardSet, read_manifest, verify_set
from conftest import save_random_model

FIXED = ["anchors.limit=40", "shards.records=16", "sampler.steps=2", "sampler.micro_batch=8"]


@pytest.fixture
def made(clsp, model_folder, tmp_path):
    """A function that makes a set with K candidates by the command line."""

    def make(name, candidates, *more):
        settings = [
            f"--set={setting}" for setting in [*FIXED, f"shards.candidates={candidates}", *more]
        ]
        root = tmp_path / name
        found = clsp(
            "shards",
            "make",
            "--recipe=digits",
            "--out",
            root,
            "--diffusion",
            model_folder,
            *settings,
        )
        assert found.returncode == 0, found.stderr
        return root

    return make


def files(root):
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize(
    "include",
    [
        "shards.include_anchors=true",
        "shards.include_anchors=false",
        "shards.codec=jpeg-95",  # whose anchors are not those that the candidates were made of
    ],
)
def test_extended_equals_made_at_once(clsp, made, model_folder, tmp_path, include):
    small, large = made("small", 2, include), made("large", 4, include)
    before = files(small)
    for part in ("0/2", "1/2"):
        found = clsp(
            "shards", "extend", small, "--candidates=4", "--diffusion", model_folder, "--part", part
        )
        assert found.returncode == 0, found.stderr
    after = files(small)
    sealed = {"manifest.json", "README.md", "croissant.json"}
    assert {name: after[name] for name in before if name not in sealed} == {
        name: before[name] for name in before if name not in sealed
    }
    one, other = ShardSet(small), ShardSet(large)
    assert one.candidates == 4 and len(one.layers) == 2
    assert all(
        one.candidate_bytes(i, k) == other.candidate_bytes(i, k)
        for i in range(40)
        for k in range(4)
    )
    assert verify_set(small, deep=True) == []
    found = clsp("shards", "pack", small, "--out", tmp_path / "packed")
    assert found.returncode == 0 and [
        ShardSet(tmp_path / "packed").candidate_bytes(i, 3) for i in range(40)
    ] == [other.candidate_bytes(i, 3) for i in range(40)]
    tars = [
        [path.read_bytes() for path in sorted(root.glob("layer-000/*"))]
        for root in (tmp_path / "packed", large)
    ]
    assert tars[0] == tars[1]


def test_an_unfinished_layer_is_named_where_it_is_left_out(clsp, made, model_folder, tmp_path):
    root, extend = (
        made("set", 2),
        ("shards", "extend", tmp_path / "set", "--candidates=4", "--diffusion", model_folder),
    )
    assert clsp(*extend, "--part=0/2").returncode == 0
    commands = [
        ("verify", root),
        ("push", root, tmp_path / "copy"),
        ("pack", root, "--out", tmp_path / "packed"),
        ("subset", root, "--fraction=0.5", "--out", tmp_path / "half"),
        ("export", root, "--npy", tmp_path / "made.npy"),
    ]
    for command in commands:
        found = clsp("shards", *command)
        assert (
            found.returncode == 0
            and "unfinished layer (layer-001), which is left out" in found.stdout
        )
    assert (
        read_manifest(tmp_path / "copy").candidates
        == read_manifest(tmp_path / "packed").candidates
        == 2
    )
    assert clsp(*extend, "--part=1/2").returncode == 0
    assert "note:" not in clsp("shards", "verify", root).stdout


def test_extending_with_another_model_or_fewer_candidates_is_refused(
    clsp, made, model_folder, tmp_path
):
    root = made("set", 2)
    before = files(root)
    import torch

    other = save_random_model(tmp_path / "other", 8)
    weights = next(other.glob("unet/*.safetensors"))
    from safetensors.torch import load_file, save_file

    tensors = load_file(weights)
    tensors["conv_in.bias"] = tensors["conv_in.bias"] + torch.ones(1)
    save_file(tensors, weights, {"format": "pt"})
    found = clsp("shards", "extend", root, "--candidates=4", "--diffusion", other)
    assert (
        found.returncode == 2
        and "has the digest" in found.stderr
        and len(found.stderr.splitlines()) == 1
    )
    found = clsp("shards", "extend", root, "--candidates=1", "--diffusion", model_folder)
    assert found.returncode == 2 and "has 2 per anchor" in found.stderr
    (root / "layer-000" / "shard-000001.tar").unlink()
    found = clsp("shards", "repair", root, "--diffusion", other)
    assert found.returncode == 2 and "has the digest" in found.stderr
    del before["layer-000/shard-000001.tar"]
    assert files(root) == before


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["webp", "webp-90"])
def test_repair_makes_or_fetches_the_recorded_bytes(clsp, made, model_folder, tmp_path, codec):
    root = made("set", 2, f"shards.codec={codec}")
    clsp("shards", "extend", root, "--candidates=3", "--diffusion", model_folder)
    shutil.copytree(root, tmp_path / "copy")
    good = files(root)
    bad = [
        "layer-000/shard-000001.tar",
        "layer-001/shard-000002.tar",
        "layer-001.parquet",
        "README.md",
        "croissant.json",
    ]

    def damage(names):
        for name in names:
            content = bytearray(good[name])
            content[len(content) // 2] ^= 1
            (root / name).chmod(0o644)
            (root / name).write_bytes(content)
        (root / bad[0]).unlink()

    damage(bad)
    found = clsp("shards", "repair", root, "--diffusion", model_folder)
    assert found.returncode == 0 and "5 files repaired" in found.stdout, found.stderr
    assert files(root) == good
    everything = sorted(set(good) - {"manifest.json"})
    damage(everything)
    found = clsp("shards", "repair", root, "--diffusion", model_folder)
    assert found.returncode == 2 and "--from URL" in found.stderr
    found = clsp("shards", "repair", root, "--from", tmp_path / "copy")
    assert found.returncode == 0 and f"{len(everything)} files repaired" in found.stdout, (
        found.stderr
    )
    assert (
        files(root) == good and verify_set(root, deep=True, expect=read_manifest(root).set_id) == []
    )
    (tmp_path / "copy" / bad[0]).write_bytes(good[bad[1]])
    damage(bad[:1])
    before = files(root)
    found = clsp("shards", "repair", root, "--from", tmp_path / "copy")
    assert found.returncode == 1 and bad[0] in found.stderr and files(root) == before


def test_descriptions_that_this_version_would_write_otherwise_are_left(clsp, made, monkeypatch):
    root = made("set", 2)
    (root / "README.md").unlink()
    before = files(root)
    monkeypatch.setattr("clsp.shards.format.card.TEMPLATE", "another {header}")
    found = clsp("shards", "repair", root)
    assert found.returncode == 1 and "README.md: made again it has other bytes" in found.stderr
    assert files(root) == before


def test_a_shard_and_the_index_of_another_layer_are_repaired_together(clsp, made, model_folder):
    root = made("set", 2)
    assert (
        clsp("shards", "extend", root, "--candidates=3", "--diffusion", model_folder).returncode
        == 0
    )
    good = files(root)
    (root / "layer-000" / "shard-000000.tar").unlink()
    (root / "layer-001.parquet").write_bytes(good["layer-001.parquet"][:100])
    found = clsp("shards", "repair", root, "--diffusion", model_folder)
    assert found.returncode == 0 and files(root) == good, found.stderr
