"""What differs between a run and its reproduction. Pure: no database; torch only for checkpoints.

A NaN equals a NaN here: two trainings that diverge alike are alike.
"""

import csv
import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from difflib import unified_diff
from pathlib import Path
from typing import Any, Literal

from lamincli.errors import first_line
from lamincli.source import DOUBTS

State = Literal["identical", "differs", "unknown"]

_DIFF_LINES = 40
_LISTED = 12


@dataclass
class Finding:
    """What was found about one subject.

    Args:
        subject: ``code``, ``config``, ``data``, ``environment``, ``hardware`` or ``results``.
        state: ``unknown`` where the record does not have what it takes to tell.
        facts: Lines for people, the first one in short.
        commands: Purpose and command lines that help, to be pasted.
    """

    subject: str
    state: State
    facts: list[str] = field(default_factory=list)
    commands: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the finding as JSON."""
        return asdict(self)


def code(
    original: str | None,
    here: str | None,
    name: str,
    modules: Mapping[str, str],
    modules_here: Mapping[str, str],
) -> Finding:
    """Compare source texts, and show the first lines of their difference.

    Args:
        original: The recorded source.
        here: The source that has run now.
        name: Its key.
        modules: Hashes of the project's modules by their paths, as recorded.
        modules_here: The same, as they are now.
    """
    if original is None or here is None:
        return Finding("code", "unknown", [f"the source of {name} is not recorded"])
    others = {p for p in {*modules} & {*modules_here} if not f"/{name}".endswith(f"/{p}")}
    unsure = sorted(p for p in {*modules, *modules_here} if _is_unsure(p, modules, modules_here))
    changed = sorted(p for p in others - {*unsure} if modules[p] != modules_here[p])
    facts = [f"{path} is another than it was; only its hash is recorded" for path in changed]
    open_ = [f"{path} was touched after it was loaded; what ran is not known" for path in unsure]
    if original == here:
        if facts:
            return Finding("code", "differs", [f"{name} is the same", *facts, *open_])
        if open_:
            return Finding("code", "unknown", open_)
        also = f" and {len(others)} module{'s' * (len(others) > 1)} beside it" if others else ""
        return Finding("code", "identical", [f"{name}{also}"])
    lines = list(
        unified_diff(
            original.splitlines(),
            here.splitlines(),
            fromfile=f"{name} as recorded",
            tofile=f"{name} here",
            lineterm="",
        )
    )
    rest = [f"… {len(lines) - _DIFF_LINES} more lines"] if len(lines) > _DIFF_LINES else []
    return Finding("code", "differs", [name, *lines[:_DIFF_LINES], *rest, *facts, *open_])


def _is_unsure(path: str, *hashes: Mapping[str, str]) -> bool:
    return any(one.get(path) in DOUBTS for one in hashes)


def values(subject: str, original: Any, here: Any, same: str = "") -> Finding:
    """Compare nested values, and name each that differs."""
    if original is None or here is None:
        whose = "run" if original is None else "reproduction"
        return Finding(subject, "unknown", [f"the {subject} of the {whose} is not recorded"])
    facts = []
    before, after = dict(leaves(original)), dict(leaves(here))
    for key in [*before, *(key for key in after if key not in before)]:
        if key not in before:
            facts.append(f"{key}: not there, here {after[key]!r}")
        elif key not in after:
            facts.append(f"{key}: was {before[key]!r}, here not there")
        elif not is_same(before[key], after[key]):
            facts.append(f"{key}: was {before[key]!r}, here {after[key]!r}")
    if not facts:
        return Finding(subject, "identical", [same] if same else [])
    return Finding(subject, "differs", shortened(facts))


def packages(original: str | None, here: str | None) -> Finding:
    """Compare two texts of ``pip freeze``."""
    if original is None or here is None:
        return Finding("environment", "unknown", ["the requirements of the run are not recorded"])
    before, after = requirements(original), requirements(here)
    facts = []
    for name in sorted({*before, *after}):
        was, now = before.get(name), after.get(name)
        if was != now:
            facts.append(f"{name}: was {was or 'not there'}, here {now or 'not there'}")
    if not facts:
        return Finding("environment", "identical", [f"{len(before)} packages"])
    return Finding("environment", "differs", shortened(facts))


def requirements(text: str) -> dict[str, str]:
    """Return the packages of a text of ``pip freeze``, by normalised name.

    An editable install is known by what is installed, not by where it lies.
    """
    found = {}
    for raw in text.splitlines():
        line = raw.strip()
        if egg := re.search(r"#egg=([\w.-]+)", line):
            version = re.match(r"-e\s+(.*)#", line)
            found[_normal(egg[1])] = version[1] if version else line
        elif named := re.match(r"([\w.-]+)\s*(?:==|@)\s*(.+)", line):
            found[_normal(named[1])] = named[2]
        elif line.startswith("-e "):
            found[line[3:]] = "editable"
    return found


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


# -- results ---------------------------------------------------------------------------------------

Row = tuple[int, str, float]


def read_history(path: Path) -> list[Row]:
    """Read what was logged: step, name and value, in order."""
    return read_rows(path.read_text(encoding="utf-8"))


def read_rows(text: str) -> list[Row]:
    """Likewise, of a text; a last line that was torn is left out."""
    rows = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1]))
    return [(int(r["step"]), r["name"], float(r["value"])) for r in rows]


def parting(original: Iterable[Row], here: Iterable[Row]) -> dict[str, tuple[int, Any, Any]]:
    """Find where metrics part.

    Args:
        original: What the run has logged.
        here: What its reproduction has logged.

    Returns:
        By name, in the order of their parting: the first step at which the values differ, with
        both; `None` stands for a value that was not logged.
    """
    before, after = _numbered(original), _numbered(here)
    found: dict[str, tuple[int, Any, Any]] = {}
    keys = [*before, *(key for key in after if key not in before)]
    for step, name, nth in sorted(keys, key=lambda key: key[0]):
        was, now = before.get((step, name, nth)), after.get((step, name, nth))
        if name not in found and not is_same(was, now):
            found[name] = (step, was, now)
    return found


def _numbered(rows: Iterable[Row]) -> dict[tuple[int, str, int], float]:
    """Index rows by step, name, and which of several of these it is."""
    found: dict[tuple[int, str, int], float] = {}
    seen: dict[tuple[int, str], int] = {}
    for step, name, value in rows:
        nth = seen[step, name] = seen.get((step, name), -1) + 1
        found[step, name, nth] = value
    return found


def checkpoints(original: Path, here: Path) -> tuple[State, list[str]]:
    """Compare the weights, the optimizers and the schedulers of two checkpoints bit for bit.

    They are read with weights_only, so that nothing in them runs, and mapped rather than copied.
    """
    import torch

    sections = ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step")
    try:
        before, after = (
            torch.load(path, weights_only=True, map_location="cpu", mmap=True)
            for path in (original, here)
        )
    except Exception as error:  # an old format, a folder, or more than weights in it
        return "unknown", [f"the checkpoints cannot be compared: {first_line(error)}"]
    steps = [content.get("global_step") for content in (before, after)]
    if steps[0] != steps[1]:
        facts = [f"the last checkpoints are of different steps: was {steps[0]}, here {steps[1]}"]
        return "differs", facts
    facts = []
    for section in sections:
        a, b = dict(leaves(before.get(section))), dict(leaves(after.get(section)))
        differing = [key for key in {**a, **b} if not is_same(a.get(key), b.get(key))]
        if differing:
            label = section.replace("_", " ")
            number = f"{len(differing)} of {len({**a, **b})} values differ" if a or b else ""
            facts.append(f"{label}: {number}, first {differing[0]}{_distance(a, b, differing)}")
    if facts:
        return "differs", facts
    compared = {section: before.get(section) for section in sections}
    tensors = sum(1 for _, value in leaves(compared) if isinstance(value, torch.Tensor))
    return "identical", [f"the last checkpoint is the same bit for bit ({tensors} tensors)"]


def _distance(a: Mapping[str, Any], b: Mapping[str, Any], keys: list[str]) -> str:
    """Say how far apart the tensors are at most."""
    largest = 0.0
    for key in keys:
        x: Any = a.get(key)
        y: Any = b.get(key)
        if not (hasattr(x, "shape") and hasattr(y, "shape")) or x.shape != y.shape:
            continue
        if x.numel():
            largest = max(largest, (x.double() - y.double()).abs().max().item())
    return f", by {largest:.3g} at most" if largest else ""


def is_same(a: Any, b: Any) -> bool:
    """Tell whether two values are the same; tensors bit for bit, and NaN equals NaN."""
    if hasattr(a, "dtype") and hasattr(b, "dtype"):
        return _is_same_tensor(a, b)
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b):
        return True
    return type(a) is type(b) and bool(a == b)


def _is_same_tensor(a: Any, b: Any) -> bool:
    import torch

    if a.dtype != b.dtype or a.shape != b.shape or a.layout != b.layout:
        return False
    if a.numel() == 0 or a.layout != torch.strided:
        return bool(torch.equal(a, b))
    bits = [t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (a, b)]
    if torch.equal(*bits):
        return True
    if not (a.is_floating_point() or a.is_complex()) or not torch.equal(a.isnan(), b.isnan()):
        return False
    return _is_same_tensor(a[~a.isnan()], b[~b.isnan()]) if bool(a.isnan().any()) else False


def leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of a nested value, with their dotted keys."""
    if isinstance(value, Mapping) and value:
        for name, item in value.items():
            yield from leaves(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, (list, tuple)) and value:
        for index, item in enumerate(value):
            yield from leaves(item, f"{key}[{index}]")
    elif key or not isinstance(value, (Mapping, list, tuple)):
        yield key, value


def shortened(facts: list[str]) -> list[str]:
    """Return the first facts, and how many there are beyond them."""
    rest = len(facts) - _LISTED
    return [*facts[:_LISTED], f"… and {rest} more"] if rest > 0 else facts
