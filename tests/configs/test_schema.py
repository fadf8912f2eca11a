"""schema: recipes over the base file, errors that name file and key, former names of keys, the round trip."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

from configs.schema import BASES, RENAMED, SyncNetConfig, TrainConfig, dump_config, load_config
from tests.support.training import write_recipe
from training.run import check_run_dir
from utils.errors import ConfigError, ParameterError, UserError

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
BASE = CONFIGS / "base.yaml"
RECIPES = sorted(CONFIGS.glob("*/*.yaml"))
OLD_RUNS = sorted((ROOT / "results" / "small").glob("*.yaml"))  # some with former names of keys


def given(line: str) -> tuple[str, object]:
    """Name and value in a line of a recipe; loss weights are merged with those of the base file."""
    ((name, value),) = yaml.safe_load(line).items()
    if name == "loss_weights" and isinstance(value, dict):
        value = yaml.safe_load(BASE.read_text())["loss_weights"] | value
    return name, value


def error_message(path: Path) -> str:
    """The message of the error for an invalid recipe."""
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.path == path  # from which the command adds the flag
    assert message.startswith(f"{path}: ")
    return message


def test_empty_recipe_is_the_base(tmp_path):
    assert asdict(load_config(write_recipe(tmp_path, ""))) == yaml.safe_load(BASE.read_text())


def test_recipe_overrides_base_and_is_overridden(tmp_path):
    path = write_recipe(tmp_path, "batch_size: 3\nmax_steps: 7\n")
    base = yaml.safe_load(BASE.read_text())
    config = asdict(load_config(path, {"max_steps": 9, "init_from": None}))
    assert config == base | {"batch_size": 3, "max_steps": 9}


def test_there_are_recipes():
    assert {path.parent.name for path in RECIPES} == {"paper", "stages", "ablations", "baselines", "bundled"}
    assert len(RECIPES) >= 24


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_loads(path):
    kind = SyncNetConfig if path.name.startswith("syncnet") else TrainConfig
    stated, resolved = yaml.safe_load(path.read_text()), asdict(load_config(path, kind=kind))
    weights = stated.pop("loss_weights", {})
    assert {name: resolved[name] for name in stated} == stated
    assert resolved.get("loss_weights", {}).items() >= weights.items()


def test_loss_weights_are_merged_one_by_one(tmp_path):
    base = yaml.safe_load(BASE.read_text())["loss_weights"]
    assert load_config(write_recipe(tmp_path, "loss_weights: {pixel: 7}")).loss_weights == base | {"pixel": 7}


def test_round_trip(tmp_path):
    config = replace(
        load_config(write_recipe(tmp_path, "")),
        learning_rate=1.2345678901234567e-5,
        adam_betas=[0.5, 0.9990000001],
        init_from="a: folder/mit Ümlaut #1.safetensors",
        precision="fp32",
        channels_last=False,
        max_steps=12345,
    )
    assert load_config(write_recipe(tmp_path, dump_config(config))) == config


def test_integers_are_accepted_as_floats(tmp_path):
    config = load_config(write_recipe(tmp_path, "learning_rate: 1\nadam_betas: [0, 0.9]\n"))
    assert (config.learning_rate, config.adam_betas) == (1.0, [0, 0.9])
    assert type(config.learning_rate) is float


@pytest.mark.parametrize("text", ["bach_size: 4", "1: 2", "lossweights: {pixel: 1.0}"])
def test_unknown_keys_are_named(tmp_path, text):
    assert f"unknown keys: ['{text.split(':')[0]}']" in error_message(write_recipe(tmp_path, text))


def test_missing_keys_are_named(tmp_path, monkeypatch):
    base = yaml.safe_load(BASE.read_text())
    del base["warmup_steps"]
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    monkeypatch.setitem(BASES, TrainConfig, tmp_path / "base.yaml")
    assert "missing keys: ['warmup_steps']" in error_message(write_recipe(tmp_path, "batch_size: 4"))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("batch_size: 4.5", "a whole number"),
        ("batch_size: 45e-1", "a whole number"),
        ("batch_size: .inf", "a whole number"),
        ("batch_size: many", "a whole number"),
        ("batch_size: true", "a whole number"),
        ("batch_size: null", "a whole number"),
        ("learning_rate: 1e-", "a number"),
        ("learning_rate: '1e-4'", "a number"),  # quoted
        ("learning_rate: true", "a number"),
        ("channels_last: 1", "true or false"),
        ("precision: 16", "a word"),
        ("init_from: 3", "a path or null"),
        ("adam_betas: 0.9", "a list of numbers"),
        ("adam_betas: [0.9, high]", "a list of numbers"),
        ("adam_betas: [0.9, true]", "a list of numbers"),
        ("loss_weights: 1.0", "a number for each name"),
        ("loss_weights: {perceptual: ten}", "a number for each name"),
    ],
)
def test_wrong_types_are_refused(tmp_path, line, expected):
    message = error_message(write_recipe(tmp_path, line))
    assert f"{line.split(':')[0]}: expected {expected}, found " in message


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E-4", 1e-4),
        ("1.e-4", 1e-4),
        ("1.0e-4", 1e-4),
        (".1e-3", 1e-4),
        ("+1e-4", 1e-4),
        ("1e0", 1.0),
        ("2e+1", 20.0),
        ("1", 1.0),
    ],
)
def test_numbers_with_an_exponent(tmp_path, text, value):
    recipe = f"learning_rate: {text}\nadam_betas: [5e-1, 9e-1]\nloss_weights:\n  pixel: {text}\n  sync: 0e0\n"
    config = load_config(write_recipe(tmp_path, recipe))
    assert (config.learning_rate, config.loss_weights["pixel"]) == (value, value)
    assert type(config.learning_rate) is float and config.adam_betas == [0.5, 0.9]
    syncnet = f"learning_rate: {text}\nweight_decay: {text}\ncontrast_weight: {text}"
    config = load_config(write_recipe(tmp_path, syncnet), kind=SyncNetConfig)
    assert (config.learning_rate, config.weight_decay, config.contrast_weight) == (value,) * 3


@pytest.mark.parametrize("text", ["1e5", "1E5", "1.0e+5", "100000", "100_000", "100000.0"])
def test_whole_numbers_with_an_exponent(tmp_path, text):
    config = load_config(write_recipe(tmp_path, f"max_steps: {text}\nseed: 0e0"))
    assert (config.max_steps, config.seed) == (100_000, 0)
    assert type(config.max_steps) is type(config.seed) is int


@pytest.mark.parametrize("name", ["speaker_sampling_exponent", "weight_decay"])
@pytest.mark.parametrize("value", [".nan", ".inf"])
def test_numbers_must_be_finite(tmp_path, name, value):
    path = write_recipe(tmp_path, f"{name}: {value}")
    with pytest.raises(ConfigError, match=f"{name}: expected (a finite number|0 or more), found "):
        load_config(path, kind=SyncNetConfig)


@pytest.mark.parametrize(
    "line",
    [
        "mouth_size: 0",
        "mouth_size: 48",
        "mouth_size: -64",
        "num_references: 0",
        "audio_features: mfcc",
        "audio_encoder: folded",
        "frozen: [teeth]",
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
        "loss_weights: {perceptual: 0.0}",  # no loss at the start
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
    message = error_message(write_recipe(tmp_path, line))
    assert f": {name}: expected " in message
    assert f"found {value!r}" in message


def test_crops_too_small_for_the_discriminator_are_refused(tmp_path):
    without_discriminator = "mouth_size: 32\nloss_weights: {pixel: 1.0, perceptual: 10.0, adversarial: 0.0}"
    assert load_config(write_recipe(tmp_path, without_discriminator)).mouth_size == 32
    assert "mouth_size: expected at least 64" in error_message(write_recipe(tmp_path, "mouth_size: 32"))


def test_conflicting_values_are_refused(tmp_path):
    clip = "syncnet: some.safetensors\nloss_weights: {sync: 0.1, clip_adversarial: 1.0}\n"
    assert load_config(write_recipe(tmp_path, clip + "clip_length: 5")).clip_length == 5
    assert "5 with the clip discriminator or the sync loss, found 3" in error_message(
        write_recipe(tmp_path, clip + "clip_length: 3")
    )
    assert "syncnet: expected a checkpoint" in error_message(
        write_recipe(tmp_path, "clip_length: 5\nloss_weights: {sync: 0.1}")
    )
    # the base file sets the value at fault, but the recipe sets the one that it conflicts with
    assert "num_references: expected 1 with wav2lip_96, found 5" in error_message(
        write_recipe(tmp_path, "generator: wav2lip_96")
    )
    wav2lip = "generator: wav2lip_192\nnum_references: 1\naudio_features: mel\n"
    assert load_config(write_recipe(tmp_path, wav2lip)).generator == "wav2lip_192"
    assert "num_references: expected 1 with wav2lip_192, found 5" in error_message(
        write_recipe(tmp_path, wav2lip + "num_references: 5")
    )
    assert "inpainting: expected True with" in error_message(write_recipe(tmp_path, wav2lip + "inpainting: false"))
    assert "generator: expected one of dinet, wav2lip_96, " in error_message(
        write_recipe(tmp_path, "generator: wav2lip")
    )
    assert "sync_target: expected one or real" in error_message(write_recipe(tmp_path, "sync_target: two"))


def test_each_recipe_overrides_those_before(tmp_path):
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("batch_size: 20\nmax_steps: 7\nloss_weights: {pixel: 3.0, lips: 2.0}")
    second.write_text("max_steps: 9\nloss_weights: {lips: 5.0}")
    config = load_config([first, second], {"seed": 4})
    assert (config.batch_size, config.max_steps, config.seed) == (20, 9, 4)
    assert config.loss_weights == load_config(first).loss_weights | {"lips": 5.0}


@pytest.mark.parametrize(
    ("first_text", "second_text", "at_fault", "message"),
    [
        ("loss_weights: 3", "loss_weights: {lips: 5.0}", 0, "loss_weights: expected"),
        ("batch_size: 3", "depth: 9", 1, r"unknown keys: \['depth'\]"),
        ("batch_size: 0", "max_steps: 9", 0, "batch_size: expected 1 or more, found 0"),
        ("batch_size: 3", "batch_size: 0", 1, "batch_size: expected 1 or more, found 0"),
        ("batch_size: 3", "loss_weights: {sync: 0.1}\nclip_length: 5", 1, "syncnet: expected a checkpoint"),
    ],
)
def test_the_recipe_at_fault_is_named(tmp_path, first_text, second_text, at_fault, message):
    paths = [tmp_path / "first.yaml", tmp_path / "second.yaml"]
    for path, text in zip(paths, (first_text, second_text), strict=True):
        path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(paths)
    assert caught.value.path == paths[at_fault]


# --- former names of keys -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old_text", "new_text", "kind"),
    [
        ("person_power: 0.4\nfrozen_norms: true", "speaker_sampling_exponent: 0.4\nfreeze_bn: true", TrainConfig),
        ("person_power: 2\nwrong_sounds: 3", "speaker_sampling_exponent: 2\nnum_negatives: 3", SyncNetConfig),
    ],
)
def test_former_names_of_keys(tmp_path, old_text, new_text, kind):
    config = load_config(write_recipe(tmp_path, old_text), kind=kind)
    assert config == load_config(write_recipe(tmp_path, new_text), kind=kind)
    assert config != load_config(write_recipe(tmp_path, ""), kind=kind)


@pytest.mark.parametrize("kind", [TrainConfig, SyncNetConfig])
def test_an_old_run_can_be_resumed(tmp_path, kind):
    """Resuming compares the config.yaml of the run with the given configuration."""
    config = load_config(write_recipe(tmp_path, "speaker_sampling_exponent: 0.3"), kind=kind)
    names = {new: old for old, new in RENAMED.items()}
    old = {names.get(name, name): value for name, value in asdict(config).items()}
    assert "person_power" in old and "speaker_sampling_exponent" not in old
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(old))
    (tmp_path / "state.pt").touch()
    assert load_config(tmp_path / "config.yaml", kind=kind) == config
    check_run_dir(tmp_path, config, resume=True)
    with pytest.raises(UserError, match="seed"):
        check_run_dir(tmp_path, replace(config, seed=7), resume=True)


@pytest.mark.parametrize("path", OLD_RUNS, ids=lambda path: path.name)
def test_configs_of_the_published_runs_load(path):
    stated, base = (yaml.safe_load(file.read_text()) for file in (path, BASE))
    # keys that were added since have the values of the base
    assert asdict(load_config(path)) == base | {RENAMED.get(name, name): value for name, value in stated.items()}


@pytest.mark.parametrize("old", ["person_power", "frozen_norms"])
def test_former_and_present_name_together_are_refused(tmp_path, old):
    value = yaml.safe_load(BASE.read_text())[RENAMED[old]]
    text = yaml.safe_dump({old: value, RENAMED[old]: value})
    assert f"{old} is the former name of {RENAMED[old]}" in error_message(write_recipe(tmp_path, text))


def test_former_name_of_a_key_of_the_other_schema_is_unknown(tmp_path):
    assert "unknown keys: ['wrong_sounds']" in error_message(write_recipe(tmp_path, "wrong_sounds: 4"))


def test_removed_key_is_accepted_with_the_value_that_had_no_effect(tmp_path):
    path = write_recipe(tmp_path, "audio_learning_rate_factor: 1.0\nseed: 3")
    assert load_config(path) == load_config(write_recipe(tmp_path, "seed: 3"))
    message = error_message(write_recipe(tmp_path, "audio_learning_rate_factor: 0.3\nseed: 3"))
    assert "audio_learning_rate_factor is gone; start a new run from the weights of this one (init_from)" in message
    with pytest.raises(ConfigError, match="unknown keys"):
        load_config(write_recipe(tmp_path, "audio_learning_rate_factor: 1.0"), kind=SyncNetConfig)


# --- the recipes of this repository -------------------------------------------------------------------------


SIZES = [CONFIGS / "stages" / f"frame_{size}.yaml" for size in (32, 64, 128, 256)]


@pytest.mark.parametrize(
    ("name", "differences"),
    [
        ("ablations/without_deformation", {"deformation": "adain"}),
        ("ablations/without_inpainting", {"inpainting": False}),
        ("ablations/attention", {"deformation": "attention"}),
        ("ablations/flow", {"deformation": "flow"}),
        *(
            (
                f"baselines/wav2lip_{size}",
                {"generator": f"wav2lip_{size}", "num_references": 1, "audio_features": "mel"},
            )
            for size in (96, 192, 384)
        ),
    ],
)
def test_ablations_and_baselines_have_no_other_differences(name, differences):
    for size in SIZES:
        config, other = load_config(size), load_config([size, CONFIGS / f"{name}.yaml"])
        assert replace(config, **differences) == other != config


def test_syncnet_recipes(tmp_path):
    config = load_config(write_recipe(tmp_path, "batch_size: 7"), kind=SyncNetConfig)
    assert (config.batch_size, config.negative_gap) == (7, 5)
    path = tmp_path / "again.yaml"
    path.write_text(dump_config(config))
    assert load_config(path, kind=SyncNetConfig) == config
    with pytest.raises(ConfigError, match=r"unknown keys: .'clip_length'"):
        load_config(write_recipe(tmp_path, "clip_length: 5"), kind=SyncNetConfig)
    for line, expected in (("negative_gap: 0", "1 or more"), ("weight_decay: -0.1", "0 or more")):
        with pytest.raises(ConfigError, match=f"{line.split(':')[0]}: expected {expected}"):
            load_config(write_recipe(tmp_path, line), kind=SyncNetConfig)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"max_steps": -5}, "^expected 1 or more, found -5"),
        ({"max_steps": "many"}, "^expected a whole number, found 'many'"),
        ({"depth": 9}, "^not a key of TrainConfig"),
        ({"clip_length": 3}, "^expected 5 with the clip discriminator"),
    ],
)
def test_overrides_are_checked(tmp_path, overrides, message):
    path = write_recipe(tmp_path, "clip_length: 5\nloss_weights: {clip_adversarial: 1.0}")
    with pytest.raises(ParameterError, match=message) as caught:
        load_config(path, overrides)
    assert caught.value.parameter == next(iter(overrides))


@pytest.mark.parametrize("content", [b"batch_size: [1", b"a: b: c", b"\xff\xfe\x00batch", b"\tbatch_size: 1"])
def test_invalid_yaml_is_refused(tmp_path, content):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    assert "not valid YAML" in error_message(path)


@pytest.mark.parametrize(("text", "found"), [("- batch_size", "list"), ("just words", "str"), ("3", "int")])
def test_yaml_without_keys_is_refused(tmp_path, text, found):
    assert f"found {found}" in error_message(write_recipe(tmp_path, text))


def test_unreadable_files_are_refused(tmp_path):
    assert "No such file" in error_message(tmp_path / "absent.yaml")
    assert "directory" in error_message(tmp_path)
