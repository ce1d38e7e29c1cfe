"""Settings: every problem is reported at once, every file in configs/ resolves to its golden text."""

import json
import re
from pathlib import Path

import pytest

from empathax.config import Config, default_config, from_config_dict, to_dict
from empathax.config.fields import flat
from empathax.config.flags import load_config, load_sweep
from empathax.errors import ConfigError

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.py"))


def test_defaults_round_trip():
    assert from_config_dict(default_config()) == Config()


def test_every_problem_in_one_message():
    source = default_config().to_dict()
    source["seed"] = "one"
    source["sft"]["optimizer"] = "adam"
    source["dpo"]["betta"] = 0.1
    source["data"]["eval_fraction"] = 2
    source["stages"] = ("sft", "dpo")
    with pytest.raises(ConfigError) as caught:
        from_config_dict(source)
    message = str(caught.value)
    assert "4 problems" in message
    assert "seed = 'one' is str: expected int" in message
    assert "sft.optimizer = 'adam'" in message
    assert "did you mean 'adamw'" in message
    assert "unknown key dpo.betta; did you mean dpo.beta?" in message
    assert "data.eval_fraction = 2.0: expected a value in [0.0, 0.9]" in message


def test_stages_may_be_a_list_with_commas():
    assert from_config_dict({"stages": "dpo"}).stages == ("dpo",)
    assert from_config_dict({"stages": ("sft,dpo",)}).stages == ("sft", "dpo")


def test_stop_tokens_stay_as_they_are_written():
    assert from_config_dict({"eval": {"stop_tokens": ("\n", "a, b", " ")}}).eval.stop_tokens == ("\n", "a, b", " ")
    assert from_config_dict({"eval": {"stop_tokens": "a, b"}}).eval.stop_tokens == ("a, b",)
    with pytest.raises(ConfigError, match=r"eval.stop_tokens = \(5,\): expected a tuple"):
        from_config_dict({"eval": {"stop_tokens": (5,)}})


@pytest.mark.parametrize("stages", [(), ("rlhf",), ("sft", "sft")])
def test_stages_are_checked(stages):
    with pytest.raises(ConfigError, match="stages"):
        from_config_dict({"stages": stages})


def test_mesh_leaves_one_axis_open_at_most():
    with pytest.raises(ConfigError, match="at most one"):
        from_config_dict({"mesh": {"data": -1, "fsdp": -1}})


def test_flags_override_the_file():
    argv = [f"--config={ROOT}/configs/demo.py", "--config.sft.learning_rate=1", "--config.stages=dpo", "--workdir=w"]
    config, rest = load_config(argv)
    assert config.sft.learning_rate == 1.0
    assert config.stages == ("dpo",)
    assert rest == ["--workdir=w"]


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        ([], "no --config=FILE"),
        (["--config=absent.py"], "absent.py"),
        (
            [f"--config={ROOT}/configs/demo.py", "--config.sft.learning_rat=1"],
            "used: unknown key sft.learning_rat; did you mean sft.learning_rate?",
        ),
        (
            [f"--config={ROOT}/configs/demo.py", "--config.sft.lr=1"],
            "unknown key sft.lr; did you mean sft.learning_rate?",
        ),
        ([f"--config={ROOT}/configs/demo.py", "--config.sft.epochs=1"], "did you mean sft.num_epochs?"),
        ([f"--config={ROOT}/configs/demo.py", "--config.optimizer=lion"], "did you mean sft.optimizer?"),
        (
            [f"--config={ROOT}/configs/demo.py", "--config.nothing.like=1"],
            "unknown key nothing.like; see config/options",
        ),
        (
            [f"--config={ROOT}/configs/demo.py", "--config.data.chat_template_kwargs.a=1"],
            "give data.chat_template_kwargs as a whole, in JSON",
        ),
        ([f"--config={ROOT}/configs/demo.py", "--config.sft.learning_rate=fast"], "could not convert"),
    ],
)
def test_bad_flags_are_config_errors(argv, reason):
    with pytest.raises(ConfigError, match=re.escape(reason)):
        load_config(argv)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_equals_its_golden_text(path):
    """To accept a change: `python tests/golden/write.py`, then read the diff."""
    config, _ = load_config([f"--config={path}"])
    golden = json.loads((ROOT / "tests" / "golden" / f"{path.stem}.json").read_text())
    assert flat(json.loads(json.dumps(to_dict(config)))) == flat(golden)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_docstring_says_how_to_run_it(path):
    text = path.read_text()
    assert all(word in text for word in ("Command:", "Hardware:", "Expected:"))
    assert "@@" not in text


SWEEP = """
from empathax.config import default_config


def get_config():
    return default_config()


def get_sweep():
    return {sweep}
"""


def _sweep(path, sweep, *flags):
    path.write_text(SWEEP.replace("{sweep}", sweep))
    return load_sweep([f"--config={path}", *flags])


def test_a_sweep_is_the_config_with_changes(tmp_path):
    sweep = "{'low': {'dpo.beta': 0.05, 'stages': ('dpo',)}, 'high': {'dpo.beta': 0.5}}"
    variations, rest = _sweep(tmp_path / "c.py", sweep, "--config.seed=4", "--workdir=w")
    assert rest == ["--workdir=w"]
    assert {name: (config.dpo.beta, config.stages, config.seed) for name, config in variations.items()} == {
        "low": (0.05, ("dpo",), 4),
        "high": (0.5, ("sft", "dpo"), 4),
    }


def test_a_config_without_a_sweep_is_one_run():
    path = f"{ROOT}/configs/demo.py"
    assert load_sweep([f"--config={path}"])[0] == {"": load_config([f"--config={path}"])[0]}


@pytest.mark.parametrize(
    ("sweep", "reason"),
    [
        ("['low']", "expected variations by name"),
        ("{}", "expected variations by name"),
        ("{'a/b': {}}", "expected variations by name"),
        ("{'low': {'dpo.betta': 1.0}}", "unknown key dpo.betta"),
        ("{'low': {'dpo.beta': 'much'}}", "variation 'low'"),
        ("{'low': {'dpo.beta': -1.0}}", "dpo.beta = -1.0"),
    ],
)
def test_a_sweep_that_cannot_be_used(tmp_path, sweep, reason):
    with pytest.raises(ConfigError, match=re.escape(reason)):
        _sweep(tmp_path / "c.py", sweep)


def test_no_choice_on_the_test_split():
    with pytest.raises(ConfigError, match=r"sft.best_metric = 'perplexity' chooses on the held-out data"):
        from_config_dict({"data": {"eval_split": "test"}, "sft": {"best_metric": "perplexity"}})


def test_every_number_has_a_range():
    """Whatever no 32 bits hold is refused where settings are read, for every setting."""
    for name, value in flat(to_dict(Config())).items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        strange = [10**18, 10**400] if isinstance(value, int) else [1e308, 10**400, float("inf"), float("nan")]
        for one in strange:
            values = default_config().to_dict()
            *blocks, last = name.split(".")
            (values[blocks[0]] if blocks else values)[last] = one
            with pytest.raises(ConfigError, match=re.escape(name)):
                from_config_dict(values)


@pytest.mark.parametrize("text", ["a\0b", "x" * 300, "/x" * 3000])
@pytest.mark.parametrize("name", ["model.path", "data.path", "data.eval_path", "lora.path", "compilation_cache"])
def test_paths_that_nothing_can_have(name, text):
    values = default_config().to_dict()
    *blocks, last = name.split(".")
    (values[blocks[0]] if blocks else values)[last] = text
    with pytest.raises(ConfigError, match=rf"{name} = .*expected a path"):
        from_config_dict(values)


def test_a_stage_without_steps():
    config = default_config()
    config.sft.num_epochs = 0.0
    with pytest.raises(ConfigError, match=r"sft.num_epochs = 0.0 and sft.max_steps = 0: a stage without steps"):
        from_config_dict(config)
    config.stages = ("dpo",)
    from_config_dict(config)
    config.stages, config.sft.max_steps = ("sft",), 1
    from_config_dict(config)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("def get_config():\n    return 1 / 0", r"c\.py:2: ZeroDivisionError: division by zero"),
        ("def get_config():\n    raise SystemExit('bye')", r"c\.py:2: SystemExit: bye"),
        ("def get_config():\n    return {}['x']", r"c\.py:2: KeyError: x"),
        ("import absent_module\n", r"c\.py:1: ModuleNotFoundError"),
        ("def get_config(:\n", r"c\.py:1: SyntaxError"),
        ("def get_config():\n    raise ValueError(chr(27) + 'a' * 5000)", r"c\.py:2: ValueError: \\x1ba+\.\.\.$"),
        ("def get_config():\n    return 5", "no attribute 'to_dict'"),
    ],
)
def test_a_config_file_that_raises(tmp_path, code, reason):
    path = tmp_path / "c.py"
    path.write_text(code)
    with pytest.raises(ConfigError, match=reason):
        load_config([f"--config={path}"])


@pytest.mark.parametrize("file", ["a\0b.py", "x" * 300 + ".py", "/dev/null", "."])
def test_config_files_that_are_none(file):
    with pytest.raises(ConfigError, match=r"--config=.*(cannot be a path|is no file)"):
        load_config([f"--config={file}"])


def test_a_value_of_5000_digits():
    with pytest.raises(ConfigError, match=r"sft\.max_steps") as caught:
        load_config([f"--config={ROOT}/configs/demo.py", "--config.sft.max_steps=" + "9" * 5000])
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("flags", "stages"),
    [
        (["--config.stages=sft", "--config.stages=dpo"], ("dpo",)),
        (["--config.stages=sft,dpo", "--config.stages=sft"], ("sft",)),
        (["--config.stages", "sft", "--config.stages", "dpo"], ("dpo",)),
        (["--config.stages=sft,dpo"], ("sft", "dpo")),
    ],
)
def test_of_a_flag_that_is_given_twice_the_last_holds(flags, stages):
    config, rest = load_config([f"--config={ROOT}/configs/demo.py", *flags, "--workdir=w"])
    assert config.stages == stages
    assert rest == ["--workdir=w"]


@pytest.mark.parametrize("value", ['{"enable_thinking": true}', "{'enable_thinking': True}"])
def test_names_and_values_on_the_command_line(value):
    config, _ = load_config([f"--config={ROOT}/configs/demo.py", f"--config.data.chat_template_kwargs={value}"])
    assert config.data.template_variables == {"enable_thinking": True}


def test_what_a_chat_template_is_told_is_checked():
    told = {"enable_thinking": True}
    assert from_config_dict({"data": {"chat_template_kwargs": told}}).data.template_variables == told
    for nothing in ({}, "", "{}", None):
        assert from_config_dict({"data": {"chat_template_kwargs": nothing}}).data.chat_template_kwargs == ""
    config = default_config()
    config.data.chat_template_kwargs = told
    assert from_config_dict(config).data.template_variables == told
    again = from_config_dict(to_dict(from_config_dict(config)))
    assert again == from_config_dict(config)
    assert flat(to_dict(again)).keys() == flat(to_dict(Config())).keys()
    for value in (4, "thinking", "[1]", (1, 2)):
        with pytest.raises(ConfigError, match=r"data.chat_template_kwargs = .*expected names and values"):
            from_config_dict({"data": {"chat_template_kwargs": value}})
    for value in ("tomorrow", "2024-13-01", ""):
        with pytest.raises(
            ConfigError, match=r"data.template_date = .*expected a day such as '2024-07-26', or 'today'"
        ):
            from_config_dict({"data": {"template_date": value}})
