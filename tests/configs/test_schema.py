"""The schema of training configurations: what is refused, and in which words; recipes over base; the round trip."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

from configs.schema import BASES, SyncNetConfig, TrainConfig, dump_config, load_config
from utils.errors import UserError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
BASE = CONFIGS / "base.yaml"
RECIPES = sorted(path for path in CONFIGS.glob("*.yaml") if not path.name.startswith("base"))


def recipe(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def given(line: str) -> tuple[str, object]:
    """Name and value of a recipe's line; loss weights as they are after merging."""
    ((name, value),) = yaml.safe_load(line).items()
    if name == "loss_weights" and isinstance(value, dict):
        value = yaml.safe_load(BASE.read_text())["loss_weights"] | value
    return name, value


def refusal(path: Path, **overrides: object) -> str:
    with pytest.raises(UserError) as caught:
        load_config(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert "--config" in message
    assert str(path) in message
    return message


def test_an_empty_recipe_is_base(tmp_path):
    assert asdict(load_config(recipe(tmp_path, ""))) == yaml.safe_load(BASE.read_text())


def test_a_recipe_goes_over_base_and_overrides_over_both(tmp_path):
    path = recipe(tmp_path, "batch_size: 3\nmax_steps: 7\n")
    base = yaml.safe_load(BASE.read_text())
    found = asdict(load_config(path, {"max_steps": 9, "init_from": None}))
    assert found == base | {"batch_size": 3, "max_steps": 9}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_loads(path):
    kind = SyncNetConfig if path.name.startswith("syncnet") else TrainConfig
    stated, resolved = yaml.safe_load(path.read_text()), asdict(load_config(path, kind=kind))
    weights = stated.pop("loss_weights", {})
    assert {name: resolved[name] for name in stated} == stated
    assert resolved.get("loss_weights", {}).items() >= weights.items()


def test_loss_weights_merge_one_by_one(tmp_path):
    base = yaml.safe_load(BASE.read_text())["loss_weights"]
    assert load_config(recipe(tmp_path, "loss_weights: {pixel: 7}")).loss_weights == base | {"pixel": 7}


def test_round_trip(tmp_path):
    config = replace(
        load_config(recipe(tmp_path, "")),
        learning_rate=1.2345678901234567e-5,
        adam_betas=[0.5, 0.9990000001],
        init_from="a: folder/mit Ümlaut #1.safetensors",
        precision="fp32",
        channels_last=False,
        max_steps=12345,
    )
    assert load_config(recipe(tmp_path, dump_config(config))) == config


def test_whole_numbers_serve_as_numbers(tmp_path):
    config = load_config(recipe(tmp_path, "learning_rate: 1\nadam_betas: [0, 0.9]\n"))
    assert (config.learning_rate, config.adam_betas) == (1.0, [0, 0.9])
    assert type(config.learning_rate) is float


@pytest.mark.parametrize("text", ["bach_size: 4", "1: 2", "lossweights: {pixel: 1.0}"])
def test_unknown_keys_are_named(tmp_path, text):
    assert f"unknown keys: ['{text.split(':')[0]}']" in refusal(recipe(tmp_path, text))


def test_missing_keys_are_named(tmp_path, monkeypatch):
    base = yaml.safe_load(BASE.read_text())
    del base["warmup_steps"]
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    monkeypatch.setitem(BASES, TrainConfig, tmp_path / "base.yaml")
    assert "missing keys: ['warmup_steps']" in refusal(recipe(tmp_path, "batch_size: 4"))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("batch_size: 4.0", "int"),
        ("batch_size: many", "int"),
        ("batch_size: true", "int"),
        ("batch_size: null", "int"),
        ("learning_rate: 1e-4", "float"),  # without a point YAML reads words
        ("learning_rate: true", "float"),
        ("channels_last: 1", "bool"),
        ("precision: 16", "str"),
        ("init_from: 3", "str | None"),
        ("adam_betas: 0.9", "list[float]"),
        ("adam_betas: [0.9, high]", "list[float]"),
        ("adam_betas: [0.9, true]", "list[float]"),
        ("loss_weights: 1.0", "dict[str, float]"),
        ("loss_weights: {perceptual: ten}", "dict[str, float]"),
    ],
)
def test_wrong_types_are_refused(tmp_path, line, expected):
    name, value = given(line)
    assert f"{name}: expected {expected}, found {value!r}" in refusal(recipe(tmp_path, line))


@pytest.mark.parametrize(
    "line",
    [
        "mouth_size: 0",
        "mouth_size: 48",
        "mouth_size: -64",
        "num_references: 0",
        "audio_features: mfcc",
        "generator: gan",
        "deformation: folding",
        "batch_size: 0",
        "max_steps: 0",
        "max_steps: -1",
        "seed: -1",
        "learning_rate: 0.0",
        "learning_rate: -1.0e-4",
        "learning_rate: .nan",
        "learning_rate: .inf",
        "warmup_steps: -1",
        "adam_betas: [0.9]",
        "adam_betas: [0.9, 1.0]",
        "adam_betas: [-0.1, 0.9]",
        "loss_weights: {charm: 1.0}",
        "loss_weights: {pixel: -1.0}",
        "loss_weights: {pixel: .nan}",
        "loss_weights: {perceptual: 0.0}",  # nothing to learn at first
        "adversarial_start: -1",
        "precision: fp16",
        "log_every: 0",
        "validate_every: 0",
        "image_every: -5",
        "save_every: 0",
        "val_frames: 0",
    ],
)
def test_values_out_of_range_are_refused(tmp_path, line):
    name, value = given(line)
    message = refusal(recipe(tmp_path, line))
    assert f": {name}: expected " in message
    assert f"found {value!r}" in message


def test_crops_too_small_for_the_discriminator_are_refused(tmp_path):
    without = "mouth_size: 32\nloss_weights: {pixel: 1.0, perceptual: 10.0, adversarial: 0.0}"
    assert load_config(recipe(tmp_path, without)).mouth_size == 32
    assert "mouth_size: expected at least 64" in refusal(recipe(tmp_path, "mouth_size: 32"))


def test_what_one_value_asks_of_another(tmp_path):
    clip = "syncnet: some.safetensors\nloss_weights: {sync: 0.1, clip_adversarial: 1.0}\n"
    assert load_config(recipe(tmp_path, clip + "clip_length: 5")).clip_length == 5
    assert "5 with the clip discriminator or the sync loss, found 3" in refusal(
        recipe(tmp_path, clip + "clip_length: 3")
    )
    assert "syncnet: expected a checkpoint" in refusal(
        recipe(tmp_path, "clip_length: 5\nloss_weights: {sync: 0.1}")
    )
    wav2lip = "generator: wav2lip_192\nnum_references: 1\naudio_features: mel\n"
    assert load_config(recipe(tmp_path, wav2lip)).generator == "wav2lip_192"
    assert "num_references: expected 1 with wav2lip_192, found 5" in refusal(
        recipe(tmp_path, wav2lip + "num_references: 5")
    )
    assert "inpainting: expected True with" in refusal(recipe(tmp_path, wav2lip + "inpainting: false"))
    assert "generator: expected one of dinet, wav2lip_96, " in refusal(recipe(tmp_path, "generator: wav2lip"))
    assert "sync_target: expected one or real" in refusal(recipe(tmp_path, "sync_target: two"))


def test_recipes_go_over_each_other(tmp_path):
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("batch_size: 20\nmax_steps: 7\nloss_weights: {pixel: 3.0, lips: 2.0}")
    second.write_text("max_steps: 9\nloss_weights: {lips: 5.0}")
    config = load_config([first, second], {"seed": 4})
    assert (config.batch_size, config.max_steps, config.seed) == (20, 9, 4)
    assert config.loss_weights == load_config(first).loss_weights | {"lips": 5.0}
    first.write_text("loss_weights: 3")
    with pytest.raises(UserError, match="loss_weights: expected"):
        load_config([first, second])
    second.write_text("depth: 9")
    with pytest.raises(UserError, match=r"first\.yaml .*second\.yaml: unknown keys: \['depth'\]"):
        load_config([first, second])


SIZES = [CONFIGS / f"frame_{size}.yaml" for size in (32, 64, 128, 256)]


@pytest.mark.parametrize(
    ("name", "differs"),
    [
        ("without_deformation", {"deformation": "adain"}),
        ("without_inpainting", {"inpainting": False}),
        ("attention", {"deformation": "attention"}),
        ("flow", {"deformation": "flow"}),
        *(
            (f"wav2lip_{size}", {"generator": f"wav2lip_{size}", "num_references": 1, "audio_features": "mel"})
            for size in (96, 192, 384)
        ),
    ],
)
def test_ablations_and_baselines_differ_in_nothing_else(name, differs):
    for size in SIZES:
        plain, other = load_config(size), load_config([size, CONFIGS / f"{name}.yaml"])
        assert replace(plain, **differs) == other != plain


def test_syncnet_recipes(tmp_path):
    config = load_config(recipe(tmp_path, "batch_size: 7"), kind=SyncNetConfig)
    assert (config.batch_size, config.negative_gap) == (7, 5)
    path = tmp_path / "again.yaml"
    path.write_text(dump_config(config))
    assert load_config(path, kind=SyncNetConfig) == config
    with pytest.raises(UserError, match=r"unknown keys: .'clip_length'"):
        load_config(recipe(tmp_path, "clip_length: 5"), kind=SyncNetConfig)
    with pytest.raises(UserError, match="negative_gap: expected 1 or more"):
        load_config(recipe(tmp_path, "negative_gap: 0"), kind=SyncNetConfig)


def test_overrides_are_checked_too(tmp_path):
    assert "max_steps: expected 1 or more, found -5" in refusal(recipe(tmp_path, ""), max_steps=-5)


@pytest.mark.parametrize("content", [b"batch_size: [1", b"a: b: c", b"\xff\xfe\x00batch", b"\tbatch_size: 1"])
def test_what_is_not_yaml_is_refused(tmp_path, content):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    assert "not YAML" in refusal(path)


@pytest.mark.parametrize(("text", "found"), [("- batch_size", "list"), ("just words", "str"), ("3", "int")])
def test_yaml_without_keys_is_refused(tmp_path, text, found):
    assert f"found {found}" in refusal(recipe(tmp_path, text))


def test_files_that_cannot_be_read_are_refused(tmp_path):
    assert "No such file" in refusal(tmp_path / "absent.yaml")
    assert "directory" in refusal(tmp_path)
