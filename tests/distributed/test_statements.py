"""What a job asks of the database does not depend on how many ranks it has."""

import pytest
from servers import create_instance, postgres_server
from test_ranks import FIT, SHORT

RANKS = (1, 2, 4)


@pytest.fixture
def server(project):
    with postgres_server() as server:
        create_instance("ranks", "store", server.create_database("ranks"))
        yield server


def test_statements_and_connections_are_those_of_one_rank(server, shell, record):
    """In an instance that has the features and the transform already, as all but the first."""
    words = [*FIT, *SHORT, "--trainer.strategy=ddp", "--trainer.limit_train_batches=2",
             "--trainer.limit_val_batches=1"]  # fmt: skip
    shell(*words, "--trainer.devices=1", "--seed_everything=1")  # with other files
    counts = {}
    for ranks in RANKS:
        with server.counted("ranks") as counts[ranks]:
            done = shell(*words, f"--trainer.devices={ranks}", timeout_s=300)
        assert done.returncode == 0, done.stderr
    assert {run.status for run in record()} == {"completed"}
    assert len({tuple(count.items()) for count in counts.values()}) == 1, counts
    assert counts[1]["statements"] <= 200
    assert counts[1]["sessions"] <= 4, "one at a time: two before, one beside, one after training"
