"""`clsp pretrain`: the kNN accuracy that it measures meanwhile, and bf16 with and without a processor for it."""

import json

from clsp.core import sha256_file
from conftest import SMALL_NETWORKS, settings


def test_knn_is_measured_meanwhile_and_changes_nothing(clsp, shard_set, tmp_path, bf16):
    common = ("--recipe", "digits", *settings(SMALL_NETWORKS), "--set=linear_eval.train_limit=200")
    for name, epochs in (("plain", 0), ("probed", 1)):
        run = ("pretrain", *common, f"--set=pretrain.knn_epochs={epochs}", "--shards", shard_set)
        done = clsp(*run, "--out", tmp_path / name)
        assert done.returncode == 0, done.stderr
    logs = [
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("plain", "probed")
    ]
    assert ["knn" in row for row in logs[0] + logs[1]] == [False, False, True, True]
    assert [row["loss"] for row in logs[0]] == [row["loss"] for row in logs[1]]
    weights = [
        sha256_file(tmp_path / name / "backbone" / "model.safetensors")
        for name in ("plain", "probed")
    ]
    assert weights[0] == weights[1]
    evaluate = ("knn", *common, "--checkpoint", tmp_path / "probed", "--out", tmp_path / "probed")
    assert clsp(*evaluate).returncode == 0
    assert (
        logs[1][-1]["knn"]
        == json.loads((tmp_path / "probed" / "knn.json").read_text())["result"]["k20"]
    )


def test_bf16_where_it_is_emulated_is_said_and_done(
    clsp, shard_set, tmp_path, monkeypatch, forget_precision
):
    asked = [f"--set={key}.precision=bf16" for key in ("pretrain", "linear_eval")]
    common = ("--recipe", "digits", *settings({**SMALL_NETWORKS, "pretrain.epochs": 1}), *asked)
    common = (*common, "--set=linear_eval.train_limit=200")
    monkeypatch.setenv("CLSP_BF16", "no")
    run = tmp_path / "run"
    forget_precision()
    trained = clsp("pretrain", *common, "--shards", shard_set, "--out", run)
    assert (
        trained.returncode == 0 and "note: pretrain.precision asks for bfloat16" in trained.stdout
    )
    evaluated = clsp("knn", *common, "--checkpoint", run, "--out", run)
    assert (
        evaluated.returncode == 0
        and "note: linear_eval.precision asks for bfloat16" in evaluated.stdout
    )
    assert json.loads((run / "knn.json").read_text())["precision"] == "bf16"

    monkeypatch.setenv("CLSP_BF16", "yes")
    again = clsp("knn", *common, "--checkpoint", run, "--out", run)
    assert again.returncode == 0 and "note" not in again.stdout


def test_a_backbone_that_does_not_fit_leaves_the_folder_to_one_that_does(clsp, shard_set, tmp_path):
    values = {**SMALL_NETWORKS, "pretrain.epochs": 1, "pretrain.stem": "default"}
    values["pretrain.backbone"] = "vit_tiny_patch16_224"
    values["pretrain.backbone_kwargs"] = "{patch_size=4,depth=1,embed_dim=24}"
    common = ("pretrain", "--recipe", "digits", *settings(values), "--shards", shard_set)
    common = (*common, "--out", tmp_path / "run")

    refused = clsp(*common)
    advice = "--set pretrain.backbone_kwargs.img_size=8"
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stderr
    assert "vit_tiny_patch16_224 does not take images of 8 pixels" in refused.stderr
    assert refused.stderr.strip().endswith(advice)
    assert not (tmp_path / "run").exists()

    done = clsp(*common, *advice.split())
    assert done.returncode == 0, done.stderr
