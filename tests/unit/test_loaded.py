"""What Python has loaded is known, or said not to be, although files change meanwhile."""

import importlib
import linecache
import marshal
import os
import runpy
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from lamincli import loaded
from lamincli.loaded import CHANGED, UNKNOWN
from lamincli.source import _source_of, hashes_of_modules

TEXT = "RATE = 0.1\n\n\ndef rate():\n    return RATE * 2\n\n\nclass Model:\n    def size(self):\n        return 3\n"


@pytest.fixture
def module(project, monkeypatch):
    """Import a module of the project, of some text."""
    monkeypatch.syspath_prepend(project)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    made = []

    def make(text=TEXT, keep=False):
        name = f"mine_{len(made)}_{time.monotonic_ns()}"
        path = project / f"{name}.py"
        path.write_text(text)
        importlib.invalidate_caches()
        found = importlib.import_module(name)
        made.append(name)
        if keep:
            loaded.keep()
        look = lambda: loaded.source(name, path)  # noqa: E731
        return SimpleNamespace(name=name, path=path, module=found, look=look)

    yield make
    for name in made:
        sys.modules.pop(name, None)


def test_unchanged_module_is_what_was_loaded(module):
    found = module()
    assert found.look() == loaded.Loaded(found.path, TEXT.encode())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("RATE = 0.1", "RATE = 0.2"),  # of the same size, within the same second
        ("RATE = 0.1", "RATE = 0.1\nMORE = 1"),
        ("return 3", "return 4"),
        ("RATE * 2", "RATE * 2.0"),
        ("RATE = 0.1", "RATE = ("),  # half-written
    ],
)
@pytest.mark.parametrize("writes", [True, False])
def test_change_after_the_import_is_found(module, monkeypatch, old, new, writes):
    monkeypatch.setattr(sys, "dont_write_bytecode", not writes)
    found = module()
    assert bool(list((found.path.parent / "__pycache__").glob(f"{found.name}*"))) == writes
    changed = TEXT.replace(old, new)
    found.path.write_text(changed)
    is_in_function, is_broken = "R" not in old or "*" in old, new.endswith("(")
    is_certain = writes or is_in_function or is_broken
    doubt = CHANGED if is_certain else UNKNOWN
    assert found.look() == loaded.Loaded(found.path, changed.encode(), doubt)


def test_what_was_kept_outlives_changes_and_removal(module):
    found = module(keep=True)
    found.path.write_text("something = 'else'\n")
    assert found.look().text == TEXT
    assert not found.look().doubt
    found.path.unlink()
    assert loaded.is_known(found.name, found.path)
    assert found.look().text == TEXT


def test_module_that_is_loaded_anew_is_looked_at_anew(module):
    found = module(keep=True)
    changed = TEXT.replace("return 3", "return 30")
    found.path.write_text(changed)
    importlib.reload(found.module)
    assert found.look() == loaded.Loaded(found.path, changed.encode())


def test_comments_are_no_change_of_what_runs(module):
    found = module()
    found.path.write_text(f"# mine\n{TEXT}")
    assert not found.look().doubt


def test_byte_code_that_another_process_has_written_since_is_no_evidence(module):
    found = module()
    changed = TEXT.replace("return 3", "return 4")
    found.path.write_text(changed)
    other = subprocess.run(
        [sys.executable, "-c", f"import {found.name}"], cwd=found.path.parent, check=False
    )
    assert other.returncode == 0
    assert found.look().doubt == loaded.CHANGED


def test_byte_code_of_an_earlier_text_is_no_evidence_where_none_is_written(module, monkeypatch):
    found = module()
    cached = Path(found.module.__spec__.cached)
    stale = cached.read_bytes()
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    found.path.write_text(changed := TEXT.replace("RATE = 0.1", "RATE = 0.25"))
    cached.write_bytes(stale)
    importlib.reload(found.module)
    monkeypatch.setattr(loaded, "_process_began_s", lambda: time.time() + 0.5)  # just before that
    assert found.look() == loaded.Loaded(found.path, changed.encode())


def test_file_that_nobody_has_touched_since_the_start_needs_no_comparing(module, monkeypatch):
    found = module()
    monkeypatch.setattr(loaded, "_process_began_s", lambda: time.time() + 60)
    monkeypatch.setattr(loaded, "_compile", lambda *_: pytest.fail("it was compiled"))
    assert not found.look().doubt


def test_start_of_this_process_is_known_by_the_present_clock():
    seconds = float(Path(f"/proc/{os.getpid()}").stat().st_ctime)
    assert loaded._process_began_s() == pytest.approx(seconds, abs=5)


# -- a script that is being run --------------------------------------------------------------------

SCRIPT = """
import sys
from pathlib import Path
from lamincli import loaded
RATE = 0.1
before(Path(__file__))
Path(__file__).write_text(Path(__file__).read_text().replace("RATE = 0.1", "RATE = 0.2"))
found = loaded.source(__name__, Path(__file__))
"""


@pytest.fixture
def run(project):
    script = project / "train.py"
    script.write_text(SCRIPT)

    def run(before=lambda path: None):
        name = f"script_{time.monotonic_ns()}"
        return runpy.run_path(str(script), {"before": before}, run_name=name)["found"]

    return run


def test_script_that_is_changed_while_it_runs_is_told(run):
    assert run() == loaded.Loaded(Path("train.py").resolve(), SCRIPT.replace("RATE = 0.1", "RATE = 0.2").encode(), loaded.CHANGED)  # fmt: skip


def test_text_that_python_has_shown_before_is_recovered(run):
    found = run(lambda path: linecache.getline(str(path), 1))
    assert (found.text, found.doubt) == (SCRIPT, "")


def test_text_that_git_has_is_recovered(run, project):
    me = ["-c", "user.name=me", "-c", "user.email=me@here"]
    for words in (["init", "-q"], ["add", "train.py"], [*me, "commit", "-qm", "first"]):
        subprocess.run(["git", *words], cwd=project, check=True)
    linecache.clearcache()
    found = run()
    assert (found.text, found.doubt) == (SCRIPT, "")


def test_text_that_git_has_and_is_another_is_not_taken(run, project):
    me = ["-c", "user.name=me", "-c", "user.email=me@here"]
    (project / "train.py").write_text(SCRIPT.replace("0.1", "0.7"))
    for words in (["init", "-q"], ["add", "train.py"], [*me, "commit", "-qm", "first"]):
        subprocess.run(["git", *words], cwd=project, check=True)
    (project / "train.py").write_text(SCRIPT)
    linecache.clearcache()
    assert run().doubt == loaded.CHANGED


# -- what the record says --------------------------------------------------------------------------


def test_source_that_is_not_known_says_so(module):
    found = module()
    found.path.write_text(changed := TEXT.replace("return 3", "return 4"))
    source = _source_of(found.name, found.path)
    assert source.doubt == CHANGED
    assert source.code.startswith("# lamin-train: this file was changed after Python loaded it.")
    assert source.code.endswith(changed)
    compile(source.code, "it", "exec")


def test_hash_of_a_changed_module_is_not_claimed(module):
    same, changed, kept = module(), module(), module()
    changed.path.write_text("RATE = 7\n")
    hashes = hashes_of_modules()
    kept.path.write_text("RATE = 8\n")
    assert hashes[changed.path.name] == CHANGED
    assert hashes[same.path.name] == hashes[kept.path.name] != CHANGED
    assert hashes_of_modules() == hashes, "also of a run that begins later in this process"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("x = 1", "x = 1  # one", True),
        ("x = 1", "x = True", False),
        ("x = 1", "x = 1.0", False),
        ("x = 0.0", "x = -0.0", False),
        ("x in {1, 2}", "x in {1, 3}", False),
        ("def f(a): pass", "def f(b): pass", False),
        ("def f(a, *, b=1): pass", "def f(a, *, b=2): pass", False),
        ("f = lambda: (1, ('a', 2))", "f = lambda: (1, ('a', 2))", True),
        ("f = lambda: (1, ('a', 2))", "f = lambda: (1, ('a', 3))", False),
    ],
)
def test_codes_are_compared_in_what_they_do(one, other, same):
    codes = [compile(text, "file", "exec") for text in (one, other)]
    assert loaded.is_same_code(*codes) is same
    assert loaded.is_same_code(marshal.loads(marshal.dumps(codes[0])), codes[0])
