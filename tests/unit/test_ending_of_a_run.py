"""What a run says of its end follows from what its trainer did, not from how the process ended."""

import signal

import pytest

from lamincli.endings import Call, Ending, Happened, ending
from lamincli.errors import UsageError

NEVER = None


def done(stage="fit", batches=4):
    return Call(stage, batches, is_over=True)


def broken(error, stage="fit", batches=2):
    call = Call(stage, batches)
    call.interrupt(error)
    return call


def interrupt_in_disguise():
    error = SystemExit(1)  # what Lightning makes of Ctrl-C
    error.__context__ = KeyboardInterrupt()
    return error


BOOM, EXIT = ValueError("boom\nin line 2"), SystemExit(0)
NOTHING = "nothing was trained: its trainer was not called"


@pytest.mark.parametrize(
    ("stage", "calls", "error", "status", "reason", "code"),
    [
        # it did what it was asked for
        ("fit", [done()], None, "completed", "", 0),
        ("test", [done("test")], None, "completed", "", 0),
        (None, [done(), done("test")], None, "completed", "", 0),
        (None, [done("validate"), done("predict")], None, "completed", "", 0),
        ("fit", [done()], EXIT, "completed", "", 0),
        ("fit", [done(batches=None)], None, "completed", "", 0),
        ("fit", NEVER, None, "completed", "", 0),  # a trainer of which there is no account
        # an error ended the program
        ("fit", [broken(BOOM)], BOOM, "errored", "ValueError: boom", 1),
        ("fit", [done()], BOOM, "errored", "ValueError: boom", 1),
        ("fit", [], UsageError("--x: no"), "errored", "UsageError: --x: no", 2),
        ("fit", [broken(SystemExit(3))], SystemExit(3), "errored", "sys.exit(3)", 3),
        ("fit", [done()], SystemExit("not good"), "errored", "sys.exit('not good')", 1),
        ("fit", [], KeyboardInterrupt(), "aborted", "KeyboardInterrupt", 130),
        ("fit", [], interrupt_in_disguise(), "aborted", "KeyboardInterrupt", 130),
        # the program ended well, and the training did not
        ("fit", [broken(EXIT)], EXIT, "aborted", "fit was ended by sys.exit(0)", 0),
        ("fit", [broken(SystemExit(None))], SystemExit(), "aborted", "fit was ended by sys.exit(None)", 0),
        ("fit", [broken(BOOM)], None, "errored", "fit was ended by ValueError: boom, which the program caught", 1),
        (None, [broken(BOOM)], None, "errored", "fit was ended by ValueError: boom, which the program caught", 1),
        (None, [broken(BOOM)], EXIT, "errored", "fit was ended by ValueError: boom", 0),
        (None, [broken(KeyboardInterrupt())], None, "aborted", "fit was ended by KeyboardInterrupt, which the program caught", 0),
        ("test", [broken(BOOM, "test")], None, "errored", "test was ended by ValueError: boom, which the program caught", 1),
        ("fit", [broken(None)], None, "errored", "fit was ended by an error, which the program caught", 1),
        # several calls: the training counts, and the last one of it
        (None, [broken(BOOM), done("test")], None, "errored", "fit was ended by ValueError: boom, which the program caught", 1),
        (None, [broken(MemoryError()), done()], None, "completed", "", 0),
        (None, [done(), broken(BOOM)], None, "errored", "fit was ended by ValueError: boom, which the program caught", 1),
        (None, [done(), broken(BOOM, "test")], None, "completed", "test was ended by ValueError: boom", 0),
        (None, [done(), broken(BOOM, "test")], BOOM, "errored", "ValueError: boom", 1),
        (None, [done(batches=0), done()], None, "completed", "", 0),
        # nothing was done
        ("fit", [], None, "aborted", NOTHING, 0),
        ("fit", [], EXIT, "aborted", NOTHING, 0),
        ("fit", [done("validate")], None, "aborted", NOTHING, 0),
        (None, [], None, "aborted", "nothing was trained or evaluated: its trainer was not called", 0),
        ("test", [], None, "aborted", "nothing was evaluated: its trainer was not called", 0),
        ("predict", [], None, "aborted", "nothing was predicted: its trainer was not called", 0),
        (None, [Call("fit", 1)], None, "aborted", "fit was still going on when the run was closed", 0),
    ],
)  # fmt: skip
def test_status_tells_what_happened_to_the_training(stage, calls, error, status, reason, code):
    assert ending(Happened(stage, calls, error)) == Ending(status, reason, code)


def test_signal_is_named_and_has_its_exit_code():
    happened = Happened("fit", [broken(SystemExit(143))], SystemExit(143), signal.SIGTERM)
    assert ending(happened) == Ending("aborted", "stopped by SIGTERM", 143)


@pytest.mark.parametrize(
    ("stage", "calls", "reason"),
    [
        ("fit", [done(batches=0)], "nothing was trained: no batch was run"),
        ("validate", [done("validate", 0)], "nothing was evaluated: no batch was run"),
        (None, [done(batches=0), done("test")], "nothing was trained: no batch was run"),
    ],
)
def test_run_without_a_batch_is_completed_and_idle(stage, calls, reason):
    assert ending(Happened(stage, calls)) == Ending("completed", reason, is_idle=True)


def test_reason_for_nothing_is_given_where_it_is_known():
    found = ending(
        Happened("fit", [done(batches=0)], no_work="it has reached trainer.max_epochs 0")
    )
    assert found.reason == "nothing was trained: it has reached trainer.max_epochs 0"


def test_reason_is_a_short_line_without_secrets():
    found = ending(Happened("fit", [], RuntimeError("x" * 1000)))
    assert len(found.reason) == 300
    url = f"{'x' * 270} https://me:hunter2secret@host/path"  # cut within the secret, it would stay
    found = ending(Happened("fit", [], RuntimeError(url)))
    assert "hunter2" not in found.reason


def test_caught_error_holds_no_secret_either():
    call = broken(ValueError("cannot log in at https://me:hunter2secret@host/x"))
    assert "hunter2" not in ending(Happened("fit", [call])).reason
