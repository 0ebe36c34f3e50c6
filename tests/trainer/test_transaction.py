"""Results are visible all at once or not at all, whatever dies in between."""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path

import pytest
from finetune_api import RunIdentity
from finetune_trainer.errors import ConfigurationError, RunError
from finetune_trainer.local_run import load_run
from finetune_trainer.publish.attempts import AttemptRecord, record_key
from finetune_trainer.publish.file_store import FileStore
from finetune_trainer.publish.manifest import Manifest, ManifestInput, ManifestTraining, library_versions
from finetune_trainer.publish.store import Store, Unfinished, open_store
from finetune_trainer.publish.transaction import Transaction
from support.s3_server import S3Server

ROOT = Path(__file__).parents[2]
DIGEST = "d" * 64


@pytest.fixture(params=["file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "file":
        return FileStore(tmp_path / "store")
    server: S3Server = request.getfixturevalue("s3")
    return open_store(f"s3://{request.getfixturevalue('bucket')}/out/", server.credentials(), server.storage)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    (folder / "lora").mkdir(parents=True)
    (folder / "lora" / "weights.safetensors").write_bytes(b"weights")
    (folder / "report.html").write_bytes(b"<html>")
    (folder / "run.json").write_text('{"identity": {"uid": "run-1"}}')
    return folder


def publish(store: Store, results: Path, attempt: str, uid: str = "run-1", digest: str = DIGEST) -> Manifest:
    transaction = Transaction(store, uid, digest, attempt)
    files = transaction.upload(results, lambda done, total: None)
    return transaction.commit(manifest_of(uid, digest, attempt, files)).manifest


def manifest_of(uid: str, digest: str, attempt: str, files: tuple) -> Manifest:
    run = load_run(ROOT / "examples/local.yaml")
    return Manifest(
        run=RunIdentity(name="figure", namespace="team", uid=uid),
        run_sha256=digest,
        attempt=attempt,
        created="2030-01-01T00:00:00+00:00",
        base_model=ManifestInput(uri=run.base_model.uri, revision="sha256:0"),
        dataset=ManifestInput(uri=run.dataset.uri, revision="sha256:0", files=5),
        training=ManifestTraining(steps=350, loss=0.1, device="cpu"),
        weights=(f"attempts/{attempt}/lora/weights.safetensors",),
        files=files,
        libraries=library_versions(),
        settings=run.model_dump(mode="json", by_alias=True, exclude_none=True),
    )


def test_the_manifest_names_every_file_with_size_and_digest(store: Store, results: Path) -> None:
    manifest = publish(store, results, "pod-1")
    assert json.loads(store.get_bytes("manifest.json")) == json.loads(manifest.to_bytes())
    for file in manifest.files:
        data = store.get_bytes(file.path)
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file.size, file.sha256)
    assert {f.path for f in manifest.files} == {
        f"attempts/pod-1/{name}" for name in ("lora/weights.safetensors", "report.html", "run.json")
    }


def test_a_crash_before_the_manifest_publishes_nothing(store: Store, results: Path) -> None:
    crashed = Transaction(store, "run-1", DIGEST, "pod-1")
    crashed.upload(results, lambda done, total: None)
    assert crashed.published() is None
    assert store.get_bytes("manifest.json") is None

    assert publish(store, results, "pod-2").attempt == "pod-2"


def say(store: Store, attempt: str, ended: bool, uid: str = "run-1") -> None:
    record = AttemptRecord(run_uid=uid, attempt=attempt, started="then", ended="later" if ended else None)
    store.put_bytes(record_key(attempt), record.to_bytes())


def folders(store: Store) -> set[str]:
    """Whose files are there, records aside."""
    return {o.key.split("/")[1] for o in store.list("attempts/") if o.key.count("/") > 1}


def test_two_attempts_that_overlap_leave_only_what_is_published(store: Store, results: Path) -> None:
    """One on a node that the cluster lost goes on working, while its successor publishes."""
    for attempt, ended, uid in (("ended", True, "run-1"), ("lost", False, "run-1"), ("theirs", True, "run-2")):
        say(store, attempt, ended, uid)
        Transaction(store, uid, DIGEST, attempt).upload(results, lambda done, total: None)
        store.put_bytes(f"checkpoints/{uid}/00000004-{attempt}/weights.safetensors", b"half a checkpoint")
    store.put_bytes("attempts/unknown/weights", b"-")
    say(store, "pod-2", ended=False)

    successor = Transaction(store, "run-1", DIGEST, "pod-2")
    successor.tidy(None)
    assert folders(store) == {"lost", "theirs", "unknown"}
    assert [o.key.split("/")[2] for o in store.list("checkpoints/run-1/")] == ["00000004-lost"]
    files = successor.upload(results, lambda done, total: None)
    published = successor.commit(manifest_of("run-1", DIGEST, "pod-2", files))
    successor.tidy(published)
    assert folders(store) == {"pod-2", "theirs", "unknown"}
    assert store.list("checkpoints/run-1/") == []

    late = Transaction(store, "run-1", DIGEST, "lost")
    say(store, "lost", ended=False)
    files = late.upload(results, lambda done, total: None)
    store.put_bytes("checkpoints/run-1/00000009-lost/weights.safetensors", b"-")
    found = late.commit(manifest_of("run-1", DIGEST, "lost", files))
    assert found == published
    late.tidy(found)
    assert folders(store) == {"pod-2", "theirs", "unknown"}
    assert [o.key.split("/")[1] for o in store.list("checkpoints/")] == ["run-2"]
    assert all(store.get_bytes(file.path) is not None for file in published.manifest.files)


def test_a_store_that_lets_nobody_look_for_uploads_is_tidied_all_the_same(tmp_path: Path, results: Path) -> None:
    class Denying(FileStore):
        def unfinished(self, prefix: str) -> list[Unfinished]:
            raise ConfigurationError("access denied")

    store = Denying(tmp_path / "store")
    say(store, "pod-1", ended=True)
    Transaction(store, "run-1", DIGEST, "pod-1").upload(results, lambda done, total: None)
    Transaction(store, "run-1", DIGEST, "pod-2").tidy(None)
    assert folders(store) == set()


def test_of_two_pods_that_finish_at_once_one_publishes_and_both_succeed(store: Store, results: Path) -> None:
    start = threading.Barrier(2)
    won: list[str] = []

    def finish(attempt: str) -> None:
        transaction = Transaction(store, "run-1", DIGEST, attempt)
        files = transaction.upload(results, lambda done, total: None)
        start.wait()
        won.append(transaction.commit(manifest_of("run-1", DIGEST, attempt, files)).manifest.attempt)

    threads = [threading.Thread(target=finish, args=(pod,)) for pod in ("pod-1", "pod-2")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 2
    assert len(set(won)) == 1


def test_an_attempt_that_comes_late_finds_the_results(store: Store, results: Path) -> None:
    publish(store, results, "pod-1")
    published = Transaction(store, "run-1", DIGEST, "pod-2").published()
    assert published is not None
    assert published.manifest.attempt == "pod-1"
    assert published.sha256 == hashlib.sha256(store.get_bytes("manifest.json")).hexdigest()


def test_the_place_of_another_run_is_refused_before_training_and_after(store: Store, results: Path) -> None:
    publish(store, results, "pod-1", uid="run-0")
    message = r"^spec.output.uri is in use by team/figure: .*manifest.json names .*run-0; choose another prefix"
    with pytest.raises(ConfigurationError, match=message):
        Transaction(store, "run-1", DIGEST, "pod-2").published()
    with pytest.raises(ConfigurationError, match=message):
        publish(store, results, "pod-2", uid="run-1")


def test_the_same_run_with_other_settings_is_refused(store: Store, results: Path) -> None:
    publish(store, results, "pod-1")
    with pytest.raises(ConfigurationError, match=r"made with other settings .*--overwrite$"):
        Transaction(store, "run-1", "e" * 64, "pod-2").published()


def test_a_manifest_of_somebody_else_is_never_replaced(store: Store, results: Path) -> None:
    store.put_bytes("manifest.json", b'{"name": "a web app"}')
    with pytest.raises(ConfigurationError, match=r"not one of ours; choose another place$"):
        publish(store, results, "pod-1")
    assert store.get_bytes("manifest.json") == b'{"name": "a web app"}'


def test_a_file_that_did_not_arrive_whole_ends_the_attempt(tmp_path: Path, results: Path) -> None:
    class Forgetful(FileStore):
        """A disk that is full and does not say so."""

        def put_file(self, key: str, path: Path) -> None:
            self.put_bytes(key, path.read_bytes()[:3])

    with pytest.raises(RunError, match=r"has 3 bytes after the upload instead of \d+; nothing was published"):
        publish(Forgetful(tmp_path / "store"), results, "pod-1")


def test_clearing_removes_what_is_published(store: Store, results: Path) -> None:
    publish(store, results, "pod-1")
    Transaction(store, "run-1", DIGEST, "pod-2").clear()
    assert store.list("") == []


def test_the_probe_leaves_nothing(store: Store) -> None:
    Transaction(store, "run-1", DIGEST, "pod-1").check_writable()
    assert store.list("") == []
