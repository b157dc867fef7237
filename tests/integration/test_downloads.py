"""Artifacts of remote storages and of other instances, on this machine: once, whole, and as registered."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from servers import S3_ENVIRONMENT, create_instance, postgres_server, s3_server
from tests_models import FileData

from lamincli.errors import LaminReferenceError
from lamincli.references import References
from lamincli.registry import download

TEXT = "a,b\n1,{}\n"  # of its own in every test, for lamindb knows a content it has seen


@pytest.fixture
def log(tmp_path):
    """Give the calls that the server answered with a file's content."""
    path = tmp_path / "calls.log"
    path.touch()

    def gets(name):
        lines = path.read_text().splitlines()
        return [line for line in lines if line.startswith("GET") and line.endswith(name)]

    gets.path = str(path)
    return gets


@pytest.fixture
def stored(ln, project):
    """Store a file and a folder in the storage that is the default by then."""

    def store():
        (project / "cells.csv").write_text(TEXT.format(project.name))
        (project / "folder" / "deep").mkdir(parents=True)
        (project / "folder" / "deep" / "one.txt").write_text(f"one {project.name}")
        (project / "folder" / "two.txt").write_text("two two")
        file = ln.Artifact("cells.csv", key=f"{project.name}/cells.csv").save()
        folder = ln.Artifact("folder", key=f"{project.name}/folder").save()
        return file, folder

    return store


def test_file_and_folder_are_downloaded_once(train, s3, stored, log, last_run, project):
    s3(log=log.path)
    file, folder = stored()
    words = [f"--data.file=lamin:artifact/{file.uid}",
             f"--data.files.one=lamin:artifact/{folder.uid}/deep/one.txt",
             f"--data.files.all=lamin:artifact/{folder.uid}"]  # fmt: skip
    for _ in range(2):
        cli = train("fit", *words, datamodule_class=FileData)
        assert Path(cli.datamodule.file).read_text() == TEXT.format(project.name)
        assert Path(cli.datamodule.file).name == "cells.csv"
        assert Path(cli.datamodule.files["one"]).read_text() == f"one {project.name}"
        everything = Path(cli.datamodule.files["all"])
        assert (everything / "two.txt").read_text() == "two two"
        assert (everything / "deep" / "one.txt").read_text() == f"one {project.name}"
        assert {file, folder} <= set(last_run().input_artifacts.all())
    assert len(log(f"{file.uid}.csv")) == 1
    assert len(log("deep/one.txt")) == 1
    assert len(log("two.txt")) == 1


def test_warm_cache_asks_no_storage(s3, stored, log):
    s3(log=log.path)
    file, folder = stored()
    references = [f"lamin:artifact/{file.uid}", f"lamin:artifact/{folder.uid}"]
    paths = [References().local_path(text) for text in references]
    before = Path(log.path).read_text()
    assert [References().local_path(text) for text in references] == paths
    assert Path(log.path).read_text() == before


def test_download_that_is_cut_is_retried(s3, ln, project, log):
    s3(cut_downloads_every=2, log=log.path)
    content = os.urandom(3_000_000)
    files = []
    for n in range(3):
        Path(f"data-{n}.bin").write_bytes(content + bytes([n]))
        files.append(ln.Artifact(f"data-{n}.bin", key=f"{project.name}/data-{n}.bin").save())
    for n, file in enumerate(files):
        path = Path(References().local_path(f"lamin:artifact/{file.uid}"))
        assert path.read_bytes() == content + bytes([n])
        assert [p.name for p in path.parent.iterdir()] == [path.name]  # nothing half-done is left


def test_download_that_was_killed_leaves_nothing_that_counts(s3, stored, log):
    s3(log=log.path)
    _, folder = stored()
    path = Path(References().local_path(f"lamin:artifact/{folder.uid}"))
    (path / "two.txt").write_text("tw")  # as if the process had died here
    (path.parent / f".{path.name}.complete").unlink()
    assert References().local_path(f"lamin:artifact/{folder.uid}") == str(path)
    assert (path / "two.txt").read_text() == "two two"


def test_part_that_a_killed_process_has_left_goes(s3, stored, ln):
    s3()
    file, _ = stored()
    parts = Path(ln.setup.settings.cache_dir) / "lamin-train" / "parts"
    (parts / "part-of-a-killed-process").mkdir(parents=True)
    (parts / "part-of-a-killed-process" / "cells.csv").write_text("a,")
    References().local_path(f"lamin:artifact/{file.uid}")
    assert not parts.exists()


def test_four_processes_download_once(s3, ln, project, log):
    s3(log=log.path)
    Path("data.bin").write_bytes(os.urandom(2_000_000))
    file = ln.Artifact("data.bin", key=f"{project.name}/data.bin").save()
    code = (
        "import sys; from lamincli.instance import connect; connect(sys.argv[1]);"
        "from lamincli.references import References; print(References().local_path(sys.argv[2]))"
    )
    words = [ln.setup.settings.instance.slug, f"lamin:artifact/{file.uid}"]
    processes = [
        subprocess.Popen([sys.executable, "-c", code, *words], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    paths = {process.communicate(timeout=120)[0].splitlines()[-1] for process in processes}
    assert [process.returncode for process in processes] == [0] * 4
    assert len(paths) == 1
    assert Path(paths.pop()).stat().st_size == 2_000_000
    assert len(log(f"{file.uid}.bin")) == 1


def test_content_that_is_not_what_was_registered_is_refused(s3, stored, train, capsys, ln):
    import boto3

    url = s3()
    file, _ = stored()
    client = boto3.client("s3", endpoint_url=url)
    (item,) = [o for o in client.list_objects(Bucket="bucket")["Contents"]
               if o["Key"].endswith(f"{file.uid}.csv")]  # fmt: skip
    client.put_object(Bucket="bucket", Key=item["Key"], Body=b"a,b\n1,3\n")
    before = ln.Run.objects.count()
    with pytest.raises(SystemExit) as ended:
        train("fit", f"--data.file=lamin:artifact/{file.uid}", datamodule_class=FileData)
    assert ended.value.code == 2
    assert "Something wrote over it" in capsys.readouterr().err
    client.delete_object(Bucket="bucket", Key=item["Key"])
    with pytest.raises(LaminReferenceError, match="is not there"):
        References().local_path(f"lamin:artifact/{file.uid}")
    assert ln.Run.objects.count() == before


def test_storage_that_is_not_mounted(stored, ln):
    file, _ = stored()
    Path(file.path).unlink()
    with pytest.raises(LaminReferenceError, match="Is it mounted"):
        References().local_path(f"lamin:artifact/{file.uid}")


def test_paths_of_the_database_stay_in_the_cache(s3, stored, ln):
    s3()
    file, folder = stored()
    cache = Path(ln.setup.settings.cache_dir).resolve()
    for key in ("../../../etc/passwd", "a/..", "/etc/passwd", "x\\..\\y", ""):
        ln.Artifact.objects.filter(id=file.id).update(key=key)
        path = download.fetch(ln.Artifact.objects.get(id=file.id))
        assert path.resolve().is_relative_to(cache / "lamin-train" / file.uid)
    with pytest.raises(LaminReferenceError):
        download.fetch(folder, "../../../../etc/passwd")


# -- other instances ------------------------------------------------------------------------------


OTHER = """
import lamindb as ln
from pathlib import Path
Path("theirs.csv").write_text("x\\n1\\n")
print("UID", ln.Artifact("theirs.csv", key="theirs.csv").save().uid)
"""


@pytest.fixture
def other(tmp_path_factory, monkeypatch):
    """Make another local instance, with an artifact; gives its name and the uid."""
    folder = tmp_path_factory.mktemp("other")
    monkeypatch.chdir(folder)
    name = f"other{folder.name.replace('_', '')}"
    create_instance(name, str(folder / "lamindb"))
    done = subprocess.run([sys.executable, "-c", OTHER], cwd=folder, capture_output=True, text=True,
                          check=True, env={k: v for k, v in os.environ.items()
                                           if k != "LAMIN_CURRENT_INSTANCE"})  # fmt: skip
    return f"anonymous/{name}", done.stdout.split("UID ")[1].split()[0]


def test_another_instance_is_read_without_switching(other, train, ln, project, monkeypatch):
    slug, uid = other
    monkeypatch.chdir(project)
    here = ln.setup.settings.instance.slug
    for reference in (f"lamin://{slug}/artifact/{uid}", f"lamin://{slug}/artifact/key/theirs.csv"):
        cli = train("fit", f"--data.file={reference}", datamodule_class=FileData)
        assert Path(cli.datamodule.file).read_text() == "x\n1\n"
        assert ln.setup.settings.instance.slug == here
        run = cli.lamin_run  # not the newest one, which is lamindb's transfer
        run.refresh_from_db()
        assert "theirs.csv" in {a.key for a in run.input_artifacts.all()}
        assert run.status == "completed"
        assert run.extra_data["lamin_train"]["references"] == {reference: uid}
        config = Path(cli._config_saver.local_path).read_text()
        assert f"file: lamin://{slug}/artifact/{uid}" in config


def test_instance_that_does_not_exist(ln, other, project, monkeypatch):
    monkeypatch.chdir(project)
    with pytest.raises(LaminReferenceError, match="Did you mean anonymous/other"):
        References().resolve(f"lamin://{other[0]}x/artifact/{other[1]}")


# -- PostgreSQL and S3, two ranks -----------------------------------------------------------------

FIT = ["fit", "--model=tests_models.TinyModel", "--data=tests_models.FileData",
       "--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]  # fmt: skip


TRAIN = """
import json
import os
import shutil
from lamincli.instance import connect
connect(None)
import lamindb as ln
ln.Storage(root=os.environ["STORAGE"]).save()
ln.settings.storage = os.environ["STORAGE"]
from lamincli import LaminLightningCLI
if __name__ == "__main__":
    LaminLightningCLI()
"""


def test_two_ranks_on_postgres_and_s3(project, shell, log):
    Path("train.py").write_text(TRAIN)
    with postgres_server() as server, s3_server(log=log.path) as url:
        storage = {**S3_ENVIRONMENT, "STORAGE": f"s3://bucket/root?endpoint_url={url}"}
        create_instance("ranks", "store", server.create_database("ranks"))
        first = shell(*FIT, "--trainer.max_epochs=1", "--checkpoint.monitor=val_loss",
                      program=[sys.executable, "train.py"], **storage)  # fmt: skip
        assert first.returncode == 0, first.stderr
        second = shell(
            *FIT, "--trainer.max_epochs=2", "--ckpt_path=lamin:run/latest/best",
            "--trainer.devices=2", "--trainer.strategy=ddp", timeout_s=240,
            program=[sys.executable, "-m", "torch.distributed.run", "--standalone",
                     "--nproc_per_node=2", "train.py"],
            **storage,
        )  # fmt: skip
        assert second.returncode == 0, second.stderr
        one, two = read_runs()
        ((uid, key),) = one["outputs"]
        assert len(log(f"{uid}.ckpt")) == 1  # one download for both ranks
        assert [one["status"], two["status"]] == ["completed"] * 2
        assert key in two["inputs"]


def read_runs():

    code = (
        "import json, lamindb as ln; print('RUNS' + json.dumps([dict(status=r.status, "
        "inputs=[a.key for a in r.input_artifacts.all()], "
        "outputs=[(a.uid, a.key) for a in r.output_artifacts.filter(kind='model')]) for r in ln.Run.objects.order_by('id')]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env={**os.environ, **S3_ENVIRONMENT})  # fmt: skip
    return json.loads(done.stdout.split("RUNS")[1])


def test_resume_predict_and_reproduce_on_postgres_and_s3(project, shell):
    Path("train.py").write_text(TRAIN)
    script = [sys.executable, "train.py"]
    noisy = ["--model=tests_models.NoisyModel", "--data=tests_models.NoisyData",
             "--seed_everything=3", "--trainer.max_epochs=3", "--checkpoint.monitor=val_loss",
             "--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]  # fmt: skip
    with postgres_server() as server, s3_server() as url:
        storage = {**S3_ENVIRONMENT, "STORAGE": f"s3://bucket/root?endpoint_url={url}"}
        create_instance("whole", "store", server.create_database("whole"))
        assert shell("fit", *noisy, program=script, STOP_AT="9", **storage).returncode == 1
        shutil.rmtree("lightning_logs")  # so that the checkpoint comes out of the bucket
        for words in (["fit", "--lamin.resume=latest"],
                      ["predict", "--config=lamin:run/latest/config",
                       "--ckpt_path=lamin:run/latest/best"]):  # fmt: skip
            done = shell(*words, program=script, **storage)
            assert done.returncode == 0, done.stderr
        done = shell("reproduce", "latest", "--json=report.json", **storage)
        assert done.returncode == 0, done.stdout + done.stderr
        resumed, predicted, reproduced = read_runs()
        assert [run["status"] for run in (resumed, predicted, reproduced)] == ["completed"] * 3
        assert resumed["outputs"][0][1] in predicted["inputs"]
        assert json.loads(Path("report.json").read_text())["identical"] is True
