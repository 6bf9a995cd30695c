"""Options: defaults, TOML files, command line, --help, and the values that are refused."""

from dataclasses import dataclass, field
from pathlib import Path
from runtime.options import check, option, parse, to_toml

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.io import InputError


@dataclass
class Options:
    name: str = option("plain", "a name")
    path: Path = option(Path("here"), "a path")
    # the numbers
    steps: int = option(10, "steps to take")
    lr: float = option(1e-3, "learning rate")
    decay: float | None = option(None, "weight decay, if any")
    on: bool = option(False, "a switch")
    files: list[str] = option([], "some files")
    sizes: list[int] = option([1, 2], "some sizes")
    weights: dict[str, float] = option({}, "mixture weights")
    source: dict[str, str] = option({"a": "x"}, "sources")
    plain: int = field(default=3, metadata={"help": "a field without the helper"})


def test_command_line_overrides_files_override_defaults(tmp_path):
    (tmp_path / "one.toml").write_text(
        'steps = 20\nlr = 1\nfiles = ["a", "b"]\n[weights]\nmath = 0.7\n'
    )
    (tmp_path / "two.toml").write_text("steps = 30\ndecay = 0.1\n")
    argv = [
        "--lr=2e-4",
        "--config",
        str(tmp_path / "one.toml"),
        f"--config={tmp_path / 'two.toml'}",
        "--on",
        "true",
    ]
    config = parse(
        Options, [*argv, "--sizes", "3,-4", "--source", "m=d/x=1,c=e", "--path", "p", "--plain=-5"]
    )
    assert config == Options(
        "plain",
        Path("p"),
        30,
        2e-4,
        0.1,
        True,
        ["a", "b"],
        [3, -4],
        {"math": 0.7},
        {"m": "d/x=1", "c": "e"},
        -5,
    )
    assert isinstance(parse(Options, ["--config", str(tmp_path / "one.toml")]).lr, float)
    assert parse(Options, ["--decay", "none", "--files="]) == Options()
    assert parse(Options, ["--on"]).on and parse(Options, ["--on", "--steps", "3"]) == Options(
        on=True, steps=3
    )
    assert parse(Options, []).sizes is not parse(Options, []).sizes


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--stpes", "3"], "--stpes: unknown option; did you mean --steps?"),
        (["--steps"], "--steps: no value given; write --steps value or --steps=value"),
        (
            ["--steps", "--on", "true"],
            "--steps: no value given; write --steps value or --steps=value",
        ),
        (["3"], "unexpected argument '3'; options are written --name value (--help lists them)"),
        (["--steps", "3.5"], "--steps 3.5: needs an integer"),
        (["--lr", "fast"], "--lr fast: needs a number"),
        (["--on", "1"], "--on 1: needs true or false"),
        (["--sizes", "1,x"], "--sizes 1,x: needs an integer"),
        (["--weights", "math"], "--weights math: needs name=value,name=value with every name once"),
        (
            ["--weights", "a=1,a=2"],
            "--weights a=1,a=2: needs name=value,name=value with every name once",
        ),
        (["--weights", "a=x"], "--weights a=x: needs a number"),
        (["--decay", ""], "--decay : needs a number"),
        (["--steps", "3", "--steps=4"], "--steps 4: --steps is given twice; give it once"),
    ],
)
def test_command_line_errors(argv, message):
    with pytest.raises(InputError) as error:
        parse(Options, argv)
    assert str(error.value) == message


@pytest.mark.parametrize(
    "text, message",
    [
        ("step = 3", "unknown key 'step'; did you mean steps?"),
        ("qqq = 3", "unknown key 'qqq'; --help lists the options"),
        ("steps = 3.0", "steps = 3.0: needs an integer"),
        ("steps = true", "steps = true: needs an integer"),
        ('steps = "3"', 'steps = "3": needs an integer'),
        ("lr = true", "lr = true: needs a number"),
        ('on = "true"', 'on = "true": needs true or false'),
        ("name = 3", "name = 3: needs a text in quotes"),
        ('files = "a"', 'files = "a": needs a list'),
        ("weights = [1]", "weights = [1]: needs a table of name = value"),
        ("steps = ", "not a TOML file: Invalid value (at end of document)"),
    ],
)
def test_file_errors(tmp_path, text, message):
    file = tmp_path / "bad.toml"
    file.write_text(text)
    with pytest.raises(InputError) as error:
        parse(Options, ["--config", str(file)])
    assert str(error.value) == f"{file}: {message}"


def test_missing_file():
    with pytest.raises(
        InputError, match="no.toml: cannot be read .*; give the path of a TOML file"
    ):
        parse(Options, ["--config", "no.toml"])


texts = st.text(st.characters(codec="utf-8"), max_size=8)
floats = st.floats(allow_nan=False, allow_infinity=False)
integers = st.integers(-(2**63) + 1, 2**63 - 1)


@settings(max_examples=50)
@given(
    st.builds(
        Options,
        name=texts,
        path=texts.filter(lambda t: "\0" not in t).map(Path),
        steps=integers,
        lr=floats,
        decay=st.none() | floats,
        on=st.booleans(),
        files=st.lists(texts, max_size=3),
        sizes=st.lists(integers, max_size=3),
        weights=st.dictionaries(texts, floats, max_size=3),
        source=st.dictionaries(texts, texts, max_size=3),
    )
)
def test_toml_round_trip(tmp_path_factory, config):
    file = tmp_path_factory.getbasetemp() / "round.toml"
    file.write_text(to_toml(config), encoding="utf-8", newline="")
    assert parse(Options, ["--config", str(file)]) == config


def test_help(capsys):
    with pytest.raises(SystemExit) as stop:
        parse(Options, ["--steps", "wrong", "--help"], "What it does.")
    text = capsys.readouterr().out
    assert not stop.value.code and text.startswith("What it does.")
    assert (
        text.index("a path [here]")
        < text.index("\nthe numbers\n")
        < text.index("steps to take [10]")
    )
    assert all(f"--{name} " in text for name in vars(Options()))
    assert "some sizes [1,2]" in text and "sources [a=x]" in text and "if any [none]" in text
    assert "--decay X|none" in text and "--weights NAME=X,.." in text and "--sizes N,.." in text


# ---------------------------------------------------------------------------------------------------------------------
# Values that a declaration refuses


@dataclass
class Limited:
    init: str = option("", "a model directory", required=True)
    lr: float = option(1e-3, "learning rate", least=0)
    beta2: float | None = option(None, "AdamW beta2", least=0, below=1)
    share: float = option(0.5, "a share", above=0, most=1)
    steps: int = option(10, "steps to take", least=1)
    loss: str = option("grpo", "kind of loss", choices=("grpo", "dapo", "none"))
    formats: list[str] = option(["cot"], "formats", choices=("cot", "pot"), required=True)
    sizes: list[int] = option([1], "sizes", least=1)
    weights: dict[str, float] = option({}, "weights", least=0)


def limited(*argv):
    return parse(Limited, ["--init=d", *argv])


def test_values_in_range_are_taken():
    given = limited("--lr=0", "--beta2=0", "--share=1", "--formats=pot,cot", "--weights=a=0")
    assert given == Limited("d", 0.0, 0.0, 1.0, formats=["pot", "cot"], weights={"a": 0.0})
    assert limited("--beta2=none").beta2 is None
    assert limited("--loss=none").loss == "none"
    assert parse(Limited, [], partial=True) == Limited()


@pytest.mark.parametrize(
    "given, message",
    [
        ("--lr=-1", "--lr -1: out of range; give a finite number at least 0"),
        ("--lr=nan", "--lr nan: out of range; give a finite number at least 0"),
        ("--lr=inf", "--lr inf: out of range; give a finite number at least 0"),
        ("--beta2=1", "--beta2 1: out of range; give a finite number at least 0 and below 1"),
        ("--share=0", "--share 0: out of range; give a finite number above 0 and at most 1"),
        ("--steps=0", "--steps 0: out of range; give an integer at least 1"),
        (
            "--steps=9999999999999999999",
            "--steps 9999999999999999999: too large; give an integer of at most 64 bits",
        ),
        ("--loss=ppo", "--loss ppo: unknown; choose grpo, dapo or none"),
        ("--formats=cot,tool", "--formats cot,tool: unknown; choose cot or pot"),
        ("--formats=", "--formats is needed: formats"),
        ("--sizes=3,0", "--sizes 3,0: out of range; give an integer at least 1"),
        (
            "--weights=a=1,b=inf",
            "--weights a=1,b=inf: out of range; give a finite number at least 0",
        ),
    ],
)
def test_values_out_of_range_are_refused(given, message):
    with pytest.raises(InputError) as error:
        limited(given)
    assert str(error.value) == message


def test_a_required_option_is_asked_for():
    with pytest.raises(InputError, match="--init is needed: a model directory"):
        parse(Limited, [])


def test_a_value_in_a_file_is_named_by_its_file(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text("lr = nan\n")
    with pytest.raises(InputError) as error:
        limited("--config", str(file))
    assert str(error.value) == f"{file}: lr = nan: out of range; give a finite number at least 0"
    assert limited("--config", str(file), "--lr=1").lr == 1  # the later value counts
    file.write_text(f"lr = 1{'0' * 400}\n")
    with pytest.raises(InputError, match="needs a number"):
        limited("--config", str(file))


def test_a_value_from_code_is_checked():
    check(Limited("d"))
    with pytest.raises(InputError, match="^--lr nan: out of range"):
        check(Limited("d", lr=float("nan")))
    with pytest.raises(TypeError, match="no limit"):
        option(1, "a number", max=3)


def test_help_shows_what_is_allowed(capsys):
    with pytest.raises(SystemExit):
        parse(Limited, ["--help"])
    text = capsys.readouterr().out
    assert "a model directory [needed]" in text and "steps to take [10; at least 1]" in text
    assert "kind of loss [grpo; grpo, dapo or none]" in text
    assert "AdamW beta2 [none; at least 0 and below 1]" in text
