"""A registry of a million runs: no statement of a start, a look-up or an end reads all of them."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from lamincli import process, resume
from lamincli.references import References
from lamincli.tracking import close_gone_runs

TABLES = re.compile(r'"(lamindb_(?:run|artifact|jsonvalue|artifactjsonvalue|runjsonvalue))"')
COARSE = {"branch_id", "space_id", "kind", "is_latest", "created_by_id", "storage_id", "otype"}
"""Columns of few values: to search by their index alone reads the table, or much of it."""


@contextmanager
def whole_tables() -> Iterator[list[str]]:
    """Collect the statements for which SQLite reads a table that grows with the runs, row by row.

    An index, that of the ids too, may be read in its order, up to a limit. That of `branch_id`, a filter that lamindb adds
    to every query, is taken away: SQLite prefers it for want of statistics, see the guide on scaling.
    """
    from django.db import connection

    asked: list[tuple[str, Any]] = []
    found: list[str] = []

    def note(execute, sql, params, many, context):
        if re.match("SELECT|UPDATE|DELETE|WITH", sql.lstrip()):
            asked.append((sql, params))
        return execute(sql, params, many, context)

    with connection.execute_wrapper(note):
        yield found
    assert asked
    with connection.cursor() as cursor:
        for sql, params in asked:
            names = {*TABLES.findall(sql), *re.findall(TABLES.pattern + r" (?:AS )?(\w+)", sql)}
            aliases = {name if isinstance(name, str) else name[1] for name in names}
            plain = re.sub(r'("\w+"\."branch_id")', r"+\1", sql.partition(" FROM ")[2])
            sql = sql.partition(" FROM ")[0] + (f" FROM {plain}" if plain else "")
            cursor.execute(f"EXPLAIN QUERY PLAN {sql}", params)
            steps = [step for *_, step in cursor.fetchall()]
            is_in_order = "LIMIT" in sql and not any("FOR ORDER BY" in step for step in steps)
            for step in steps:
                how = re.match(r"(SCAN|SEARCH) (\w+)(?: USING [^(]*\((.*)\))?", step)
                if how is None or how[2] not in aliases:
                    continue
                columns = set(re.findall(r"(\w+)[=<>]", how[3] or ""))
                is_read_in_order = how[1] == "SCAN" and "ORDER BY" in sql and is_in_order
                if columns <= COARSE and not is_read_in_order:
                    found.append(f"{step}: {sql}")


@pytest.fixture
def run(train, last_run, monkeypatch):
    """Train as a job of SLURM that is started again."""
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_JOB_NAME", "interactive")  # or Lightning makes ranks of it
    train("fit", "--checkpoint.monitor=val_loss")
    return last_run()


@pytest.mark.parametrize("what", ["best", "last", "config", "report", "hparams"])
def test_references_read_no_whole_table(run, what):
    with whole_tables() as found:
        for word in ("latest", run.uid):
            References().local_path(f"lamin:run/{word}/{what}")
    assert not found


def test_key_reads_no_whole_table(run):
    key = run.output_artifacts.filter(kind="model").first().key
    with whole_tables() as found:
        References().local_path(f"lamin:artifact/key/{key}")
    assert not found


def test_job_finds_its_run_by_an_index(run, monkeypatch):
    from lamindb.base.types import RUN_STATUS_TO_CODE

    # As a process that is started again, and has trained nothing yet.
    monkeypatch.setattr(process, "_fits_ended", run.extra_data["lamin_train"]["fit_number"])
    assert (run.reference, run.reference_type) == ("slurm::4711", "slurm")
    run._status_code = RUN_STATUS_TO_CODE["aborted"]
    run.save()
    with whole_tables() as found:
        resumed = resume.find("auto", "", of_folder=False)
    assert resumed is not None
    assert resumed.run == run
    assert not found


def test_runs_that_are_gone_are_found_by_an_index(run):
    with whole_tables() as found:
        close_gone_runs()
    assert not found


def test_training_reads_no_whole_table(run, train):
    with whole_tables() as found:
        train("fit", "--lamin.publish=inline", "--checkpoint.monitor=val_loss")
    assert not found
