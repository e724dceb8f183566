"""One dataclass, one command line: precedence, types, and one clear line for every mistake."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from llm.config import ConfigError, config_from_args, listing, option, run_command, to_yaml
from llm.runs import open_run
from llm.train import TrainConfig


@dataclass(frozen=True)
class Example:
    """An example."""

    steps: int = option(3, "How many.")
    rate: float = option(0.5, "How fast.")
    kind: str = option("a", "Which.", ("a", "b"))
    mask: bool = option(True, "Whether.")
    folders: tuple[str, ...] = listing("Where.")


def parse(*argv: str) -> Example:
    return config_from_args(Example, list(argv), "example")


def test_the_command_line_wins_over_the_file_and_the_file_over_the_defaults(tmp_path: Path):
    path = tmp_path / "c.yaml"
    path.write_text("steps: 7\nrate: 2\nmask: false\n")
    assert parse("--config", str(path), "--steps", "9") == Example(steps=9, rate=2.0, kind="a", mask=False)
    assert parse("--no-mask") == Example(mask=False)


def test_a_config_written_as_yaml_reads_back_equal(tmp_path: Path):
    config = TrainConfig(steps=4, lora=True, learning_rate=2e-5, method="grpo")
    path = tmp_path / "c.yaml"
    path.write_text(to_yaml(config))
    assert config_from_args(TrainConfig, ["--config", str(path)], "llm.train") == config


def test_words_follow_one_flag_and_are_a_list_in_yaml(tmp_path: Path):
    path = tmp_path / "c.yaml"
    path.write_text(to_yaml(Example(folders=("a", "b c"))))
    assert parse("--config", str(path)).folders == ("a", "b c")
    assert parse("--folders", "x", "y", "--steps", "9") == Example(steps=9, folders=("x", "y"))
    assert parse("--config", str(path), "--folders", "x").folders == ("x",)
    assert parse().folders == ()


@pytest.mark.parametrize(
    ("argv", "file", "words"),
    [
        (["--kind", "c"], None, ["unknown kind 'c'", "a, b"]),
        (["--steps", "many"], None, ["steps must be a int", "'many'"]),
        (["--stepz", "1"], None, ["--stepz", "--help"]),
        (["--config", "nowhere.yaml"], None, ["nowhere.yaml", "give the path"]),
        ([], "stepz: 1", ["unknown field 'stepz'", "did you mean steps?"]),
        ([], "steps: [1]", ["steps must be a int"]),
        ([], "steps: 1.5", ["steps must be a int"]),
        ([], "mask: maybe", ["mask must be true or false"]),
        (["--folders"], None, ["--folders", "at least one"]),
        ([], "folders: a b", ["folders must be a list of words", "'a b'"]),
        ([], "folders: [1]", ["folders must be a list of words"]),
        ([], "a: [", ["not valid YAML"]),
        ([], "just words", ["field: value"]),
    ],
)
def test_a_mistake_gets_one_line_that_says_what_to_do(argv, file, words, tmp_path: Path):
    if file is not None:
        (tmp_path / "c.yaml").write_text(file)
        argv = ["--config", str(tmp_path / "c.yaml")]
    with pytest.raises(ConfigError) as caught:
        parse(*argv)
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words)


def test_help_explains_every_field(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        config_from_args(TrainConfig, ["--help"], "llm.train")
    shown = " ".join(capsys.readouterr().out.split())
    for field in dataclasses.fields(TrainConfig):
        assert "--" + field.name.replace("_", "-") in shown
        assert len(field.metadata["help"]) > 10
        assert field.metadata["help"].split()[0] in shown


TRAINING_CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*-srpo.yaml"))


@pytest.mark.parametrize("path", TRAINING_CONFIGS, ids=lambda p: p.name)
def test_every_shipped_config_is_a_train_config(path):
    names = {f.name for f in dataclasses.fields(TrainConfig)}
    assert set(yaml.safe_load(path.read_text())) <= names


def test_a_run_from_before_a_field_existed_is_resumed_with_that_fields_default(tmp_path: Path):
    folder = open_run(Example(), tmp_path / "run", resume=False).path
    (folder / "config.yaml").write_text("steps: 3\nrate: 0.5\nkind: a\n", encoding="utf-8")  # before `mask`
    assert open_run(Example(), folder, resume=True).path == folder
    with pytest.raises(ConfigError, match="was run with mask=True, not False"):
        open_run(Example(mask=False), folder, resume=True)


@dataclass(frozen=True)
class Resumable:
    """An example that can go on."""

    resume: bool = option(False, "Go on.")


@dataclass(frozen=True)
class Placed(Resumable):
    """An example that finds itself a folder."""

    output: str = option("", "Folder.")


@pytest.mark.parametrize(
    ("cls", "advice"),
    [(Example, "run it again"), (Resumable, "with --resume to go on"), (Placed, "--output with the run folder named")],
)
def test_an_interrupt_says_how_to_go_on_and_exits_with_130(cls, advice, monkeypatch, capsys):
    def interrupted(config: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sys.argv", ["example"])
    with pytest.raises(SystemExit) as stop:
        run_command(interrupted, cls, "example")
    assert stop.value.code == 130 and advice in capsys.readouterr().err
