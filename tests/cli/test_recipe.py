import re
import tomllib

import pytest
from clsp.cli.recipe import load_recipe, shipped_recipes
from clsp.core import InputError
from clsp.generate import SamplerConfig
from clsp.shards import DiffusionPlan, Plan, SourcePlan
from clsp.train import METHODS, build_method


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_resolves_and_survives_its_file(name, tmp_path):
    recipe = load_recipe(name)
    recipe.save(tmp_path / "resolved.toml")
    assert load_recipe(str(tmp_path / "resolved.toml")) == recipe


def test_overrides_are_toml_values_or_plain_strings():
    overrides = [
        "sampler.steps=20",
        "anchors.path=photos/mine",
        "pretrain.backbone_kwargs.channels=[8, 8]",
    ]
    recipe = load_recipe("digits", overrides)
    assert recipe.sampler.steps == 20 and recipe.anchors.path == "photos/mine"
    assert recipe.pretrain.backbone_kwargs["channels"] == [8, 8]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2", 2),
        ("0.5", 0.5),
        ("[0.1,0.9]", (0.1, 0.9)),
        ("[0, inf]", (0.0, float("inf"))),
        ("[-inf, 3]", (float("-inf"), 3.0)),
    ],
)
def test_what_is_kept_survives_the_file_with_its_type(tmp_path, text, value):
    scores = "pretrain.synthetic.scores=probe"
    recipe = load_recipe("digits", [scores, f"pretrain.synthetic.keep={text}"])
    recipe.save(tmp_path / "resolved.toml")
    again = load_recipe(str(tmp_path / "resolved.toml"))
    assert again == recipe
    assert again.pretrain.synthetic.keep == value
    assert type(again.pretrain.synthetic.keep) is type(value)


@pytest.mark.parametrize(
    "text", ["1.0", "0", "2.5", "-1", "true", "0.0", "[1]", "[3, 1]", "[nan, 1]", "best"]
)
def test_what_cannot_be_kept_is_said_in_one_line(text):
    scores = "pretrain.synthetic.scores=probe"
    with pytest.raises(InputError) as error:
        load_recipe("digits", [scores, f"pretrain.synthetic.keep={text}"])
    line = str(error.value)
    assert line.startswith("recipe digits: pretrain.synthetic.keep: found ")
    assert "a whole number >= 1 (the best of each anchor)" in line and "\n" not in line


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("pretrain.synthetic.keep=2", r"synthetic\.keep, .* need synthetic\.scores"),
        ("pretrain.synthetic.weight_map=rank", r"set synthetic\.weighted=true, too"),
        ("sampler.stepz=20", r"unknown key sampler\.stepz; the nearest is sampler\.steps"),
        ("smapler.steps=20", r"unknown key smapler; the nearest is sampler"),
        ("pretrain.synthetic.lambda=1", r"unknown key pretrain\.synthetic\.lambda"),
        ("shards.candidates=0", r"shards\.candidates = 0: .*greater than or equal to 1"),
        ("sampler.weight=1.5", r"sampler\.weight = 1\.5: .*less than or equal to 1"),
        ("sampler.weight=-0.1", r"sampler\.weight = -0\.1"),
        ("sampler.scheduler=unipc", r"unipc is deterministic; set sampler\.eta=0"),
        ("steps=20", "expected SECTION.KEY=VALUE"),
        ("sampler.steps", "expected SECTION.KEY=VALUE"),
    ],
)
def test_bad_overrides_say_what_to_do(override, message):
    with pytest.raises(InputError, match=message):
        load_recipe("cifar10", [override])


def test_unknown_recipes_and_broken_files_are_named(tmp_path):
    with pytest.raises(
        InputError,
        match="shipped are cifar10, cifar100, digits, folder-256, imagenet100, imagenet100-256, stl10",
    ):
        load_recipe("cifar11")
    (tmp_path / "x.toml").write_text("[anchors\n")
    with pytest.raises(InputError, match="is not TOML"):
        load_recipe(str(tmp_path / "x.toml"))


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("name", shipped_recipes())
def test_every_method_can_be_built_from_every_recipe(name, method):
    config = load_recipe(name, [f"pretrain.method={method}"]).pretrain
    assert config.method == method and isinstance(build_method(config), METHODS[method])


def test_settings_of_a_method_hold_for_it_alone_and_yield_to_overrides():
    moco = load_recipe("cifar10", ["pretrain.method=mocov2plus"]).pretrain
    assert (moco.batch_size, moco.lr, moco.synthetic.weight) == (512, 0.3, 0.5)
    assert moco.augment.solarise_probability == 0.2 and moco.augment.crop_scale == 0.08
    assert load_recipe("cifar10").pretrain.batch_size == 1024
    assert (
        load_recipe("cifar10", ["pretrain.lr=0.7", "pretrain.method=mocov2plus"]).pretrain.lr == 0.7
    )


def test_inline_tables_of_overrides_replace_and_dotted_keys_add():
    replaced = load_recipe("digits", ["pretrain.backbone_kwargs={norm_layer='groupnorm1'}"])
    assert replaced.pretrain.backbone_kwargs == {"norm_layer": "groupnorm1"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[methods.mocov2]\nlr = 0.1",
            r"\[methods.mocov2\] names no method; there are all4one, byol, mocov2plus",
        ),
        ("methods = 3", "methods is 3, expected a table"),
        ("pretrain = 3", "pretrain is 3, expected a table"),
        ("[methods.simclr]\nlearning_rate = 0.1", "unknown key pretrain.learning_rate"),
    ],
)
def test_methods_that_are_none_are_refused(tmp_path, text, message):
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(InputError, match=message):
        load_recipe(str(tmp_path / "r.toml"))


def test_settings_of_the_default_method_hold_where_none_is_named(tmp_path):
    (tmp_path / "r.toml").write_text("[methods.simclr]\nlr = 0.123")
    assert load_recipe(str(tmp_path / "r.toml")).pretrain.lr == 0.123
    with pytest.raises(InputError, match="pretrain.method"):
        load_recipe("digits", ['pretrain.method=["a"]'])


def test_a_resolved_recipe_that_chose_precision_by_the_machine_is_read_as_float32(tmp_path):
    (tmp_path / "older.toml").write_text(
        '[linear_eval]\nprecision = "auto"\n[transfer]\nprecision = "auto"\n'
    )
    recipe = load_recipe(str(tmp_path / "older.toml"))
    assert (recipe.linear_eval.precision, recipe.transfer.precision) == ("no", "no")


def test_a_resolved_recipe_has_an_autoencoder_only_where_one_is_set(tmp_path):
    """So that versions from before there was that section read it, and find what they wrote."""
    assert "autoencoder" not in tomllib.loads(load_recipe("digits").content.decode())
    recipe = load_recipe("digits", ["autoencoder.latent_channels=3"])
    recipe.save(tmp_path / "resolved.toml")
    assert load_recipe(str(tmp_path / "resolved.toml")) == recipe
    assert recipe.autoencoder.latent_channels == 3


PAPERS = ("cifar10", "cifar100")


@pytest.mark.parametrize("name", PAPERS)
def test_the_papers_recipes_make_the_plans_of_versions_before_there_was_clipping(name):
    """The sampler as such a version wrote it into plan.json, and the digest that it gave."""
    recorded = {"scheduler": "ddim", "steps": 100, "eta": 0.1, "weight": 0.1, "share_anchor": False}
    recorded |= {"seed": 0, "micro_batch": 256, "dtype": "float32", "compile": False, "threads": 1}
    recipe = load_recipe(name)
    assert recipe.sampler.recorded() == recorded
    assert SamplerConfig.from_record(recorded) == recipe.sampler
    plan = Plan(
        source=SourcePlan(
            name="cifar10",
            split="train",
            licence="",
            count=50000,
            size=32,
            resize="crop",
            digest="00",
        ),
        diffusion=DiffusionPlan(origin="google/ddpm-cifar10-32", digest="11"),
        sampler=recipe.sampler.recorded(),
        shards=recipe.shards,
    )
    assert plan.digest == "24beb05574f3bcb56c03b6b914764d1bd147ffdd9a87427940f8ce7dad7350ea"


@pytest.mark.parametrize("name", [name for name in shipped_recipes() if name not in PAPERS])
def test_other_recipes_clip(name):
    assert load_recipe(name).sampler.clip


@pytest.mark.parametrize("name", PAPERS)
def test_the_papers_diffusion_model_is_recorded_without_later_keys(name):
    later = {"lr_schedule", "snr_gamma", "ema_warmup"}
    assert not later & set(load_recipe(name).diffusion.recorded())
    settings = [
        "diffusion.lr_schedule=cosine",
        "diffusion.snr_gamma=5",
        "diffusion.ema_warmup=true",
    ]
    assert later <= set(load_recipe(name, settings).diffusion.recorded())


def test_a_byte_order_mark_is_no_part_of_a_recipe(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[sampler]\nsteps = 7\n", encoding="utf-8-sig")
    assert load_recipe(str(path)).sampler.steps == 7


@pytest.mark.parametrize(
    ("encoding", "named"), [("utf-16", "UTF-16"), ("latin-1", r"not UTF-8 \(byte 5\)")]
)
def test_a_recipe_in_another_encoding_is_refused(tmp_path, encoding, named):
    path = tmp_path / "mine.toml"
    path.write_text("# gewölbt, größer: £\n", encoding=encoding)
    with pytest.raises(InputError, match=f"mine.toml is {named}; TOML is UTF-8: save it as UTF-8"):
        load_recipe(str(path))


@pytest.mark.parametrize("text", ["2024", "1e3", "2024-05-01", "true", "007", "nan"])
def test_a_number_or_date_given_for_a_text_is_one(text):
    recipe = load_recipe("digits", [f"anchors.path={text}", f"linear_eval.test_path={text}"])
    assert (recipe.anchors.path, recipe.linear_eval.test_path) == (text, text)
    with pytest.raises(InputError, match=r"recipe digits: sampler.steps = 1000.5"):
        load_recipe("digits", [f"anchors.path={text}", "sampler.steps=1000.5"])


def test_a_profile_is_named_behind_the_recipe(tmp_path):
    assert load_recipe("cifar10:minutes") == load_recipe("cifar10", profile="minutes")
    assert load_recipe("cifar10:minutes").anchors.limit == 2000

    own = tmp_path / "own.toml"
    own.write_text("[profiles.small.anchors]\nlimit = 7\n", encoding="utf-8")
    assert load_recipe(f"{own}:small").anchors.limit == 7
    assert load_recipe(str(own)).anchors.limit == 0

    # A file whose name has a colon is that file
    odd = tmp_path / "own.toml:small"
    odd.write_text("[anchors]\nlimit = 8\n", encoding="utf-8")
    assert load_recipe(str(odd)).anchors.limit == 8


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar10:week", "profile week: recipe cifar10 has profiles paper, hour, minutes"),
        ("digits:week", "recipe digits has no profiles"),
        ("nothing:week", "--recipe nothing:week: no such file or shipped recipe"),
    ],
)
def test_profiles_that_are_not_there(name, message):
    with pytest.raises(InputError, match=re.escape(message)):
        load_recipe(name)
