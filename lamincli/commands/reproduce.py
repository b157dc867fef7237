"""``lamin-train reproduce``: train again from the record of a run alone, and say what differs."""

import argparse
import json
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lamincli import comparing, console, differences, order, recipe
from lamincli.comparing import State
from lamincli.connection import reached
from lamincli.differences import Finding
from lamincli.errors import LaminReferenceError, LaminTrainError, UsageError, first_line
from lamincli.features import DESCRIPTIONS
from lamincli.folders import Scratch
from lamincli.process import DECIDED_VARIABLE, RUN_UID_VARIABLE
from lamincli.redaction import REDACTED, redact, redacted_keys
from lamincli.references import References

DIFFERENT = 4
"""Exit code where the results differ."""
OPEN = 5
"""Exit code where nothing tells whether the results are identical."""

_NOT_INHERITED = (RUN_UID_VARIABLE, DECIDED_VARIABLE, "PL_GLOBAL_SEED")


def main(words: Sequence[str]) -> int:
    """Train again, and compare.

    Args:
        words: The words after ``reproduce``.

    Returns:
        0 if the results are identical, 4 if they differ, 5 if that cannot be told, 1 if the
        training failed, 2 if it cannot begin, 3 if it has left something unpublished, 128+N if
        signal N ended it.
    """
    parser = console.CommandParser(
        prog="lamin-train reproduce",
        usage="%(prog)s [options] RUN [--NAME VALUE of what was taken out of its config]",
        description="Train again from the record of a run alone (its code, config, data and seed), "
        "as a child run in a scratch folder, and report what differs: code, config, data, "
        "environment, hardware and results, with the first step at which metrics part. Start in "
        "the folder in which the run was started, so that relative paths hold. Exit code 0: the "
        "results are identical; 4: they differ; 5: that cannot be told, as where no checkpoint can "
        "be compared and only constants were logged.",
    )
    parser.add_argument("run", metavar="RUN", help="uid of a run, the beginning of one, or latest")
    parser.add_argument(
        "--code",
        choices=("installed", "recorded"),
        default="installed",
        help="run the code that is installed, and show how it differs from the recorded one; or "
        "run the source that LaminDB has, which executes what is stored there",
    )
    parser.add_argument("--instance", help="owner/name, or a folder for a local instance")
    parser.add_argument(
        "--keep",
        metavar="FOLDER",
        type=Path,
        help="keep what is trained, in a new folder; the default is a temporary one",
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the report here")
    options, rest = parser.parse_known_args(words)
    if unknown := [key for key in _given(rest) if "." not in key and key != "ckpt_path"]:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    try:
        _check_places(options)
        with reached(options.instance) as slug:
            return _reproduce(options, rest, slug)
    except LaminTrainError as error:
        console.fail(str(error))
        return error.exit_code


def _check_places(options: argparse.Namespace) -> None:
    mistakes = []
    keep: Path | None = options.keep
    if keep is not None and (keep.is_file() or (keep.is_dir() and any(keep.iterdir()))):
        mistakes.append(f"--keep {keep}: it is not empty. Name a new folder.")
    if options.json is not None and not options.json.absolute().parent.is_dir():
        mistakes.append(f"--json {options.json}: there is no folder {options.json.parent}.")
    if options.json is not None and options.json.is_dir():
        mistakes.append(f"--json {options.json}: it is a folder. Name a file.")
    if mistakes:
        raise UsageError.of(mistakes)


def _reproduce(options: argparse.Namespace, rest: list[str], slug: str) -> int:
    original = _find(options.run, slug)
    config = _config_given(original, rest, options.json)
    temporary = Scratch("reproduce") if options.keep is None else None
    scratch = Path(os.path.abspath(options.keep)) if temporary is None else temporary.path
    try:
        plan = _plan(original, config, scratch, recorded_code=options.code == "recorded")
        _prepare(original, plan, scratch, recorded_code=options.code == "recorded")
        console.say(f"reproducing run {original.uid} of {slug} in {scratch}")
        for note in plan.notes:
            console.warn(note)
        last_id = _last_id()
        pid, code = _train(plan)
        child = _child(original, pid, last_id)
        if child is None:
            console.fail(f"the training could not begin: it ended with exit code {code}.")
            return _failed(code)
        if code == 3:
            temporary = None
            console.fail(
                f"run {child.uid} is trained, but not all of it is in LaminDB yet, so it cannot be "
                f"compared. Publish it: lamin-train sync {scratch}"
            )
            return 3
        # A process may end well although its training did not.
        is_trained = code == 0 and child.status in ("completed", original.status)
        report = _compare(original, child, plan, is_trained)
        report.note()
        report.show(slug)
        if options.json is not None:
            options.json.write_text(json.dumps(report.to_dict(), indent=1) + "\n", encoding="utf-8")
        return report.exit_code if is_trained else _failed(code or 1)
    finally:
        if temporary is not None:
            temporary.remove()


def _failed(code: int) -> int:
    """Return our exit code for that of the child: signals are passed on, all else is 1."""
    if code < 0:
        return 128 - code
    return code if code > 128 else 1


# -- the record ------------------------------------------------------------------------------------


def _find(word: str, slug: str) -> Any:
    """Find the run, of those that can be trained again.

    Raises:
        UsageError: There is none, or it is no training that has ended.
    """
    import lamindb as ln

    from lamincli.references import find_run

    run = find_run(word, ln.Run.filter(), slug)
    record = _record(run)
    if not record:
        raise UsageError(
            f"run {run.uid} was not recorded by lamin-train: its config and stage are unknown."
        )
    if (stage := record.get("stage")) not in ("fit", None):
        raise UsageError(
            f"run {run.uid} is no training but a {stage}. Only a fit can be reproduced."
        )
    if run.status in ("started", "restarted"):
        raise UsageError(
            f"run {run.uid} has not ended. If its process is gone, close it: lamin-train doctor"
        )
    return run


def _record(run: Any) -> dict[str, Any]:
    from lamincli.features import EXTRA_DATA_KEY

    return dict((run.extra_data or {}).get(EXTRA_DATA_KEY) or {})


def _config_given(run: Any, rest: list[str], report: Path | None) -> dict[str, Any]:
    """Return the config that a run was given: from this machine, or completed by words.

    Args:
        run: The run.
        rest: The words that give what was taken out of the published copy.
        report: Where to write in JSON what is missing.

    Raises:
        UsageError: Something is missing, or a word gives something else.
    """
    path = _output(run, "config", References.config_path)
    if path is None:
        raise UsageError(f"run {run.uid} has published no config, so it cannot be reproduced.")
    config = dict(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    missing = redacted_keys(config)
    given = _given(rest)
    if unknown := [key for key in given if key not in missing]:
        raise UsageError(
            f"--{' --'.join(unknown)}: reproduce trains with the config of the run. Only what was "
            f"taken out of it can be given{': --' + ' --'.join(missing) if missing else ''}."
        )
    if left := [key for key in missing if key not in given]:
        if report is not None:
            report.write_text(
                json.dumps({"run": str(run.uid), "missing": left}, indent=1) + "\n",
                encoding="utf-8",
            )
        raise UsageError.of(
            [
                f"{key} was taken out of the published config of run {run.uid}, and what it was "
                f"given is not on this machine. Give it: --{key} VALUE"
                for key in left
            ]
        )
    for key, value in given.items():
        _put(config, key, value)
    return config


def _given(words: Sequence[str]) -> dict[str, str]:
    """Read words like ``--model.init_args.api_key VALUE``."""
    given = {}
    following = iter(words)
    for word in following:
        option, equals, value = word.partition("=")
        given[option.removeprefix("--")] = value if equals else next(following, "")
    return given


def _put(config: Any, key: str, value: str) -> None:
    """Put a value in the place of its key; the items of a list are numbered."""
    for name in range(len(config)) if isinstance(config, list) else list(config):
        if key == str(name):
            config[name] = value
        elif key.startswith(f"{name}.") and isinstance(config[name], (dict, list)):
            _put(config[name], key.removeprefix(f"{name}."), value)


def _plan(run: Any, config: dict[str, Any], scratch: Path, recorded_code: bool) -> recipe.Recipe:
    missing = [name for name in _record(run).get("files") or {} if not Path(name).exists()]
    if missing:
        raise UsageError(
            f"run {run.uid} has read {', '.join(missing)}, and there is no such file. Restore it; "
            "a relative path is one from the folder in which the run was started."
        )
    return recipe.plan(
        _record(run),
        uid=str(run.uid),
        transform_key=str(run.transform.key),
        source=run.transform.source_code,
        config=config,
        scratch=scratch,
        recorded_code=recorded_code,
    )


def _prepare(run: Any, plan: recipe.Recipe, scratch: Path, recorded_code: bool) -> None:
    scratch.mkdir(parents=True, exist_ok=True)
    recipe.write_config(plan.config, scratch / "config.yaml")
    if recorded_code:
        place = scratch / "code"
        target = recipe.write_code(
            str(run.transform.key), str(run.transform.source_code), plan.script_name, place
        )
        console.say(
            f"running the recorded source of {run.transform.key} ({target}); what it imports is "
            "what is installed"
        )


def _train(plan: recipe.Recipe) -> tuple[int, int]:
    """Run the training in a process of its own; returns its pid and its exit code."""
    inherited = {k: v for k, v in os.environ.items() if k not in _NOT_INHERITED}
    process = subprocess.Popen(plan.command, env={**inherited, **plan.environment})  # noqa: S603
    before = signal.signal(signal.SIGTERM, lambda signum, _: process.send_signal(signum))
    try:
        while True:
            try:
                return process.pid, process.wait()
            except KeyboardInterrupt:  # it reached the training too, which saves and ends
                continue
    finally:
        signal.signal(signal.SIGTERM, before)


def _last_id() -> int:
    """Return the id of the run that LaminDB has made last; a later one has a larger id."""
    import lamindb as ln

    return int(ln.Run.objects.order_by("-id").values_list("id", flat=True).first() or 0)


def _child(original: Any, pid: int, after_id: int) -> Any:
    import lamindb as ln

    from lamincli.features import EXTRA_DATA_KEY
    from lamincli.registry.outages import give_back_connections

    give_back_connections()  # hours may have passed
    made_by = {f"extra_data__{EXTRA_DATA_KEY}__process__pid": pid}
    children = ln.Run.objects.filter(initiated_by_run=original, id__gt=after_id, **made_by)
    return children.order_by("-id").first()


# -- comparing -------------------------------------------------------------------------------------


@dataclass
class Report:
    """What a reproduction has shown.

    Args:
        original: The run.
        child: Its reproduction.
        findings: What was found about each subject.
        parting: By metric, the first step at which it differs, with both values.
        is_trained: Whether the training came to its end.
    """

    original: Any
    child: Any
    findings: list[Finding]
    parting: dict[str, tuple[int, Any, Any]]
    is_trained: bool

    @property
    def differs(self) -> list[str]:
        """The subjects that differ."""
        return [finding.subject for finding in self.findings if finding.state == "differs"]

    @property
    def is_identical(self) -> bool | None:
        """Whether the results are; `None` if that cannot be told.

        Whatever else differs has not changed them.
        """
        states = [found.state for found in self.findings if found.subject == "results"]
        if not self.is_trained or states == ["differs"]:
            return False
        return True if states == ["identical"] else None

    @property
    def exit_code(self) -> int:
        """The exit code of the command."""
        return {True: 0, False: DIFFERENT, None: OPEN}[self.is_identical]

    @property
    def verdict(self) -> str:
        """The verdict, in words."""
        if not self.is_trained:
            return f"{self.child.status}, not compared to its end"
        words = {True: "identical", False: "different", None: "cannot be told"}
        return words[self.is_identical]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON."""
        from lamincli.features import as_json

        parting = {
            name: {"step": step, "was": was, "here": here}
            for name, (step, was, here) in self.parting.items()
        }
        content = {
            "run": str(self.original.uid),
            "reproduction": str(self.child.uid),
            "status": str(self.child.status),
            "verdict": self.verdict,
            "identical": self.is_identical,
            "differs": self.differs,
            "parting": parting,
            "findings": [finding.to_dict() for finding in self.findings],
        }
        return dict(as_json(content))

    def note(self) -> None:
        """Let the child say what it reproduces, and how well."""
        from lamincli.features import EXTRA_DATA_KEY

        self.child.refresh_from_db()
        extra = dict(self.child.extra_data or {})
        about = {
            "run": str(self.original.uid),
            "identical": self.is_identical,
            "differs": self.differs,
        }
        extra[EXTRA_DATA_KEY] = {**extra.get(EXTRA_DATA_KEY, {}), "reproduces": about}
        self.child.extra_data = extra
        self.child.save()

    def show(self, slug: str) -> None:
        """Print the report."""
        console.show_findings(
            f"run {self.child.uid} reproduces {self.original.uid}",
            self.verdict,
            slug,
            [
                (finding.subject, finding.state, finding.facts, finding.commands)
                for finding in self.findings
            ],
        )


def _compare(original: Any, child: Any, plan: recipe.Recipe, is_trained: bool) -> Report:
    was, here = _record(original), _record(child)
    parting: dict[str, tuple[int, Any, Any]] = {}
    findings = [
        differences.code(
            original.transform.source_code,
            child.transform.source_code,
            original.transform.key,
            was.get("modules", {}),
            here.get("modules", {}),
        ),
        _configs(plan.config, _config(child)),
        _data(original, child),
        _environment(original, child),
        differences.values("hardware", was.get("hardware"), here.get("hardware")),
    ]
    if is_trained:
        results, parting = _results(original, child)
        findings.append(results)
    return Report(original, child, findings, parting, is_trained)


def _config(run: Any) -> dict[str, Any] | None:
    path = _output(run, "config")
    return None if path is None else dict(yaml.safe_load(path.read_text(encoding="utf-8")) or {})


def _configs(given: dict[str, Any], here: dict[str, Any] | None) -> Finding:
    """Compare the config that was given with what its training has published, without secrets."""
    was = dict(differences.leaves(redact(given)))
    if here is not None:
        taken_out = {key for key, value in was.items() if REDACTED in str(value)}
        now = dict(differences.leaves(here))
        here = {key: was[key] if key in taken_out else value for key, value in now.items()}
    return differences.values("config", was, here)


def _output(
    run: Any, what: str, path_of: Callable[[References, str], str] = References.local_path
) -> Path | None:
    """Return the local path of what a run has published, if it has."""
    try:
        return Path(path_of(References(), f"lamin:run/{run.uid}/{what}"))
    except LaminReferenceError as error:
        if "has published no" in str(error):
            return None
        raise


def _data(original: Any, child: Any) -> Finding:
    """Compare the contents of the inputs: artifacts, and local files that the config names."""
    data = []
    for run in (original, child):
        inputs = {
            f"artifact {artifact.key or artifact.uid}": artifact.hash
            for artifact in run.input_artifacts.exclude(description=DESCRIPTIONS["config"])
        }
        files = _record(run).get("files")
        data.append((inputs, files))
    (inputs, files), (inputs_here, files_here) = data
    if files is not None and files_here is not None:
        inputs |= {f"file {name}": digest for name, digest in files.items()}
        inputs_here |= {f"file {name}": digest for name, digest in files_here.items()}
    if not inputs and not inputs_here:
        return Finding(
            "data", "unknown", ["no input is recorded; what the code reads by itself is not known"]
        )
    number = f"{console.counted(len(inputs), 'input')} of the same content"
    return differences.values("data", {**inputs}, {**inputs_here}, number)


def _environment(original: Any, child: Any) -> Finding:
    from lamincli.registry import download

    paths: list[Path | None] = []
    for run in (original, child):
        try:
            paths.append(download.fetch(run.environment) if run.environment_id else None)
        except LaminReferenceError:
            paths.append(None)
    was, here = (None if path is None else path.read_text(encoding="utf-8") for path in paths)
    finding = differences.packages(was, here)
    if finding.state == "differs" and paths[0] is not None:
        folder = f".venv-{original.uid[:8]}"
        finding.commands["build the recorded environment"] = (
            f"python -m venv {folder} && {folder}/bin/pip install -r {paths[0]}"
        )
    return finding


def _results(original: Any, child: Any) -> tuple[Finding, dict[str, tuple[int, Any, Any]]]:
    """Compare the metrics at every step, the last metrics, and the last checkpoint.

    A run that did not come to its end is compared as far as it came. Identical is what was seen to
    be: a checkpoint of the same content; or, where there is none to compare, metrics that only the
    same training logs.
    """
    was_completed = original.status == "completed"
    facts: list[str] = []
    rows, rows_here, what = _histories(original, child)
    parting: dict[str, tuple[int, Any, Any]] = {}
    do_differ = shows_training = False
    if rows is None or rows_here is None:
        facts.append("no history of the metrics is recorded")
    else:
        if not was_completed:
            last = max((step for step, _, _ in rows), default=-1)
            rows_here = [row for row in rows_here if row[0] <= last]
            facts.append(f"the run {original.status}; compared as far as step {last}")
        parting = differences.parting(rows, rows_here)
        do_differ, shows_training = bool(parting), differences.shows_training(rows)
        if parting:
            facts += _told(parting)
        elif rows:
            constant = "" if shows_training else ", none of which shows what was trained"
            facts.append(f"{len(rows)} {what}, all the same{constant}")
    if was_completed:
        last_was, last_here = ((r.extra_data or {}).get("metrics") for r in (original, child))
        final = differences.values("metrics", last_was or {}, last_here or {})
        if final.state == "differs":
            do_differ = True
            facts += [f"at the end, {fact}" for fact in final.facts]
    same, told = _checkpoints(original, child, is_last=was_completed)
    facts += told
    state: State = "unknown"
    if do_differ or same == "differs":
        state = "differs"
    elif same == "identical" or (same is None and shows_training):
        state = "identical"
    else:
        facts.append("nothing that could be compared tells whether the results are identical")
    return Finding("results", state, facts), parting


def _told(parting: dict[str, tuple[int, Any, Any]]) -> list[str]:
    lines = [
        f"{name}: was {was!r}, here {here!r}"
        if was is not None and here is not None
        else f"{name}: logged {'here' if was is None else 'in the run'} only"
        for name, (_, was, here) in parting.items()
    ]
    steps = [step for step, _, _ in parting.values()]
    told = [f"metrics part at step {steps[0]}: {lines[0]}"]
    told += [f"step {step}: {line}" for step, line in zip(steps[1:], lines[1:], strict=True)]
    return differences.shortened(told)


def _histories(
    original: Any, child: Any
) -> tuple[list[differences.Row] | None, list[differences.Row] | None, str]:
    paths = [_output(run, "history") for run in (original, child)]
    if paths[0] is not None and paths[1] is not None:
        rows = [differences.read_history(path) for path in paths if path is not None]
        return rows[0], rows[1], "logged values"
    # A run of an earlier version: what its checkpoints know.
    scores = [_scores(run) for run in (original, child)]
    return scores[0] or None, scores[1] or None, "scores of checkpoints"


def _scores(run: Any) -> list[differences.Row]:
    rows = []
    for artifact in run.output_artifacts.filter(kind="model").order_by("id"):
        notes = _notes(artifact)
        if notes.get("score") is not None and notes.get("monitor"):
            rows.append((int(notes["step"]), str(notes["monitor"]), float(notes["score"])))
    return rows


def _checkpoints(original: Any, child: Any, is_last: bool) -> tuple[State | None, list[str]]:
    """Compare the last checkpoint of a run with that of its reproduction.

    Args:
        original: The run.
        child: Its reproduction.
        is_last: Whether both came to their end; else the step of the run's last one is looked for.

    Returns:
        `None` where there is nothing to compare: neither has published any, or, of a run that was
        stopped, the reproduction has saved at other steps. And lines for people.
    """
    try:
        path = _output(original, "last")
        here = _output(child, "last") if is_last or path is None else _at_step_of(original, child)
    except LaminReferenceError as error:
        return "unknown", [f"the checkpoints cannot be compared: {first_line(error)}"]
    if path is not None and here is not None:
        return comparing.checkpoints(path, here)
    if path is None and here is None:
        return None, ["neither of the two has published a checkpoint"]
    if not is_last:
        return None, ["the reproduction has no checkpoint of the step at which the run ended"]
    return "unknown", ["only one of the two has published a checkpoint"]


def _at_step_of(original: Any, child: Any) -> Path | None:
    """Return the reproduction's checkpoint of the step at which the run has saved its last one."""
    from lamincli.registry import download

    saved = References().resolve(f"lamin:run/{original.uid}/last").artifact
    step = _notes(saved).get("step")
    found = [
        a for a in child.output_artifacts.filter(kind="model") if _notes(a).get("step") == step
    ]
    if step is None or not found:
        return None
    return download.fetch(max(found, key=lambda a: (order.of_notes(_notes(a)), a.id)))


def _notes(artifact: Any) -> dict[str, Any]:
    from lamincli.features import EXTRA_DATA_KEY

    return dict((artifact.extra_data or {}).get(EXTRA_DATA_KEY) or {})
