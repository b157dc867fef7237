"""What differs between a run and its reproduction. Pure: no database, and no torch."""

import csv
import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from difflib import unified_diff
from pathlib import Path
from typing import Any

from lamincli import console
from lamincli.comparing import State as State
from lamincli.comparing import checkpoints as checkpoints
from lamincli.comparing import is_same as is_same
from lamincli.comparing import leaves as leaves
from lamincli.source import DOUBTS

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
        also = f" and {console.counted(len(others), 'module')} beside it" if others else ""
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
    """Likewise, of the fit in a text; a last line that was torn is left out."""
    return [row for row, stage in read_stages(text) if stage == "fit"]


def read_stages(text: str) -> list[tuple[Row, str]]:
    """Return all rows of a history, each with its stage; earlier versions kept those of fit."""
    rows = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1]))
    return [((int(r["step"]), r["name"], float(r["value"])), r.get("stage") or "fit") for r in rows]


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


def shows_training(rows: Iterable[Row]) -> bool:
    """Tell whether equal metrics are evidence that two trainings were the same.

    A constant is logged alike by any training, and so are epochs and schedules of learning rates.
    """
    values: dict[str, set[str]] = {}
    for _, name, value in rows:
        if name not in ("epoch", "step") and not name.startswith("lr-"):
            values.setdefault(name, set()).add(repr(value))
    return any(len(distinct) > 1 for distinct in values.values())


def _numbered(rows: Iterable[Row]) -> dict[tuple[int, str, int], float]:
    """Index rows by step, name, and which of several of these it is."""
    found: dict[tuple[int, str, int], float] = {}
    seen: dict[tuple[int, str], int] = {}
    for step, name, value in rows:
        nth = seen[step, name] = seen.get((step, name), -1) + 1
        found[step, name, nth] = value
    return found


def shortened(facts: list[str]) -> list[str]:
    """Return the first facts, and how many there are beyond them."""
    rest = len(facts) - _LISTED
    return [*facts[:_LISTED], f"… and {rest} more"] if rest > 0 else facts
