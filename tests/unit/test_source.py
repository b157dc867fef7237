import subprocess
import sys

from lightning.pytorch.demos.boring_classes import BoringModel

from lamincli.source import _definition, find_source


def test_caller_is_the_source():
    source = find_source(BoringModel)
    assert source.path is not None
    assert source.path.name == "test_source.py"


def test_class_of_a_package_has_the_key_of_its_module():
    source = _definition(BoringModel)
    assert source.key == "pypackages/lightning/pytorch/demos/boring_classes.py"


def test_class_without_a_file_is_its_own_text():
    namespace: dict = {"__name__": "a_cell"}
    exec(compile("class InNotebook: pass", "<cell>", "exec"), namespace)
    source = _definition(namespace["InNotebook"])
    assert source.path is None
    assert source.key == "a_cell.InNotebook"
    assert "no source" in source.code


def test_script_is_the_source_and_launchers_are_not(tmp_path):
    (tmp_path / "train.py").write_text(
        "from lamincli.source import find_source\n"
        "def main():\n    print(find_source(int))\n"
        "if __name__ == '__main__':\n    main()\n"
    )
    for program, name in (
        ([sys.executable, "train.py"], "train.py"),
        ([sys.executable, "-m", "train"], "train.py"),
        ([sys.executable, "-c", "import train; train.main()"], "train.py"),
    ):
        done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert name in done.stdout, done.stderr
