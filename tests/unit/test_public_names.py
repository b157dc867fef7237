"""What users may import, and what importing it costs."""

import ast
import subprocess
import sys
from dataclasses import fields
from inspect import Parameter, signature
from pathlib import Path

import pytest

import lamincli

PACKAGE = Path(lamincli.__file__).parent


def test_public_names():
    assert lamincli.__all__ == [
        "ArtifactEvent",
        "ArtifactObserver",
        "ArtifactPath",
        "ArtifactRemovedEvent",
        "ArtifactSavedEvent",
        "Checkpoint",
        "LaminLightningCLI",
        "SaveConfigCallback",
        "save_lightning_features",
    ]
    assert all(getattr(lamincli, name) is not None for name in lamincli.__all__)
    assert (PACKAGE / "py.typed").exists()
    with pytest.raises(AttributeError, match="no attribute 'Nope'"):
        _ = lamincli.Nope


def imported_by(code: str) -> set[str]:
    code += "; import sys; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return {name.split(".")[0] for name in done.stdout.splitlines()}


@pytest.mark.parametrize(
    "code",
    [
        "import lamincli",
        "from lamincli.main import main; main(['--version'])",
        "from lamincli.main import main; main(['--help'])",
        "from lamincli.main import main\ntry: main([])\nexcept SystemExit: pass\nimport sys",
        "import lamincli.options, lamincli.redaction, lamincli.log, lamincli.errors",
    ],
)
def test_looking_costs_no_heavy_import(code):
    assert not imported_by(code) & {"torch", "lightning", "lamindb", "django", "jsonargparse"}


@pytest.mark.parametrize("module", ["lamincli.tracking", "lamincli.commands.doctor"])
def test_commands_need_no_torch(module):
    assert "torch" not in imported_by(f"import {module}")


def test_help_needs_no_lamindb():
    code = "from lamincli.main import main\ntry: main(['fit', '--help'])\nexcept SystemExit: pass"
    assert "lamindb" not in imported_by(code + "\nimport sys")


# Imports run one way: each room may import those before it.
ROOMS = [
    ["errors", "options", "redaction", "features", "process", "loaded", "log", "hub", "console"],
    ["source", "endings", "order", "comparing"],
    ["folders"],
    [
        "hardware",
        "differences",
        "early",
        "recipe",
        "checkpoint_file",
        "keys",
        "parser",
        "plain_config",
        "ranks",
        "remote_file",
        "slurm",
        "taken_out",
    ],
    ["instance", "events", "spool"],
    ["offline", "memory", "originals"],
    ["registry"],
    ["publisher", "references"],
    ["resume", "connection", "closing", "rebuilding", "loading"],
    ["tracking"],
    ["callbacks", "commands", "demo"],
    ["cli"],
    ["main"],
    ["__main__"],
]


def test_rooms_import_one_way():
    level = {room: index for index, rooms in enumerate(ROOMS) for room in rooms}
    for file in PACKAGE.rglob("*.py"):
        room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        assert room in level, f"{room} has no place in ROOMS"
        for node in ast.walk(ast.parse(file.read_text())):
            names = (
                [node.module]
                if isinstance(node, ast.ImportFrom) and node.module
                else [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else []
            )
            for name in names:
                parts = name.split(".")
                if parts[0] != "lamincli" or len(parts) == 1 or parts[1] == room:
                    continue
                assert level[parts[1]] <= level[room], f"{file.name} imports {name}"


def test_checkpoint_options_are_the_arguments_of_the_callback():
    from lightning.pytorch.callbacks import ModelCheckpoint

    from lamincli.options import CheckpointOptions, LaminOptions

    options = {field.name: field.default for field in fields(CheckpointOptions)}
    ours = defaults(lamincli.Checkpoint)
    lamin = {field.name for field in fields(LaminOptions)}
    assert options == {name: default for name, default in ours.items() if name not in lamin}
    stock = defaults(ModelCheckpoint)
    assert stock == {k: v for k, v in options.items() if k in stock}, "a new Lightning argument?"


def defaults(kind):
    parameters = list(signature(kind.__init__).parameters.values())[1:]
    return {p.name: None if p.default is Parameter.empty else p.default for p in parameters}
