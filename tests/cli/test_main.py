import os
import signal
import subprocess
import sys

import pytest
from clsp.cli.main import COMMANDS, STOPPED, LazyGroup, root, run
from PIL import Image


def leaves(group, path=()):
    for name in group.list_commands(None):
        command = group.get_command(None, name)
        if isinstance(command, LazyGroup):
            yield from leaves(command, (*path, name))
        else:
            yield (*path, name), command


@pytest.mark.parametrize("arguments", [["--help"], ["shards", "--help"], ["diffusion", "--help"]])
def test_help_imports_no_torch_and_is_quick(arguments):
    code = (
        "import sys; from clsp.cli.main import run; code = run(sys.argv[1:]); "
        "heavy = {'torch', 'diffusers', 'timm', 'kornia', 'datasets', 'webdataset', 'pandas'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    assert "Commands:" in found.stdout


def test_help_answers_in_half_a_second_of_processor_time():  # the wall clock of a shared machine proves nothing
    before = os.times()
    subprocess.run([sys.executable, "-m", "clsp.cli", "--help"], check=True, capture_output=True)
    after = os.times()
    used = (
        after.children_user - before.children_user + after.children_system - before.children_system
    )
    assert used < 0.5


@pytest.mark.parametrize(
    ("path", "command"), [pytest.param(*leaf, id=" ".join(leaf[0])) for leaf in leaves(root)]
)
def test_every_command_has_help_and_an_example(path, command):
    assert command.help and command.epilog.startswith("Example: clsp " + " ".join(path))


def test_the_table_says_what_the_commands_say():
    for path, command in leaves(root):
        entry = COMMANDS
        for name in path:
            entry = entry[name]
        said = entry[1].rstrip(".").split(":")[0].split(",")[0]
        assert command.help.replace("\n", " ").startswith(said)


def test_wrong_usage_is_one_line_and_exit_code_2(clsp):
    for arguments in (["shard"], ["shards", "make"], ["shards", "verify", "--deeep", "x"]):
        found = clsp(*arguments)
        assert found.returncode == 2 and len(found.stderr.strip().splitlines()) == 1, found.stderr


def test_a_stop_inside_of_a_guarded_decoding_is_no_damaged_image(tmp_path, monkeypatch, capsys):
    """The signal's exception comes anywhere, also where a library or we catch every `Exception`."""
    folder = tmp_path / "images" / "train"
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "one.png")
    original = Image.open

    def stopped(*arguments, **options):
        monkeypatch.setattr(Image, "open", original)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Image, "open", stopped)
    command = ["diffusion", "train", "--recipe", "digits", "--out", str(tmp_path / "out")]
    assert run([*command, "--set", f"anchors.path={folder.parent}"]) == STOPPED
    assert "resumable" in capsys.readouterr().err
