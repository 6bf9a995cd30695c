import argparse

import pytest

from data.io import (
    CommandParser,
    InputError,
    at_least,
    atomic_write,
    jsonl_files,
    read_jsonl,
    run_cli,
)


def parser():
    parser = CommandParser(prog="python -m data.example")
    parser.add_argument("--to", required=True)
    parser.add_argument("--workers", type=at_least(1), default=1)
    return parser


def test_options():
    assert parser().parse_args(["--to", "x"]) == argparse.Namespace(to="x", workers=1)
    assert parser().parse_args(["--to", "x", "--workers", "3"]).workers == 3


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--to", "x", "--workers", "0"], "--workers: '0' is not an integer of at least 1"),
        (["--to", "x", "--workers", "1.5"], "--workers: '1.5' is not an integer of at least 1"),
        (["--to", "x", "--workers", "9" * 30], "--workers: '9+' is not an integer"),
        (["--to", "x", "--to", "y"], "--to is given twice"),
        (["--to", "x", "--work", "3"], "unrecognized arguments: --work 3"),
        ([], "the following arguments are required: --to"),
    ],
)
def test_errors_of_a_command_line_are_one_line(arguments, message, capsys):
    with pytest.raises(InputError, match=message):
        parser().parse_args(arguments)
    with pytest.raises(SystemExit) as stop:
        run_cli(lambda: parser().parse_args(arguments))
    output = capsys.readouterr()
    assert stop.value.code == 2 and output.out == ""
    assert output.err.startswith("error: ") and output.err.count("\n") == 1


def test_a_file_that_the_system_refuses_is_named(tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as stop:
        run_cli(lambda: (tmp_path / "file" / "x").mkdir())
    message = f"error: {tmp_path}/file/x: Not a directory; give another path\n"
    assert stop.value.code == 2 and capsys.readouterr().err == message


def test_a_name_with_several_lines_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run_cli(lambda: list(read_jsonl(tmp_path / "no\nfile")))
    assert capsys.readouterr().err.count("\n") == 1


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyError), atomic_write(path) as file:
        file.write("half")
        raise KeyError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with atomic_write(path) as file:
        file.write("new")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_a_folder_without_jsonl_is_refused(tmp_path):
    (tmp_path / ".hidden.jsonl").touch()
    with pytest.raises(InputError, match="no .jsonl file in this folder"):
        list(jsonl_files([tmp_path]))
