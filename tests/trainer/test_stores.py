"""A folder and a real S3 server keep the same promises."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from finetune_trainer.credentials import Credentials, Role
from finetune_trainer.errors import ConfigurationError, RunError
from finetune_trainer.publish.file_store import FileStore
from finetune_trainer.publish.store import Store, StoredObject, open_store
from support.s3_server import S3Server


@pytest.fixture(params=["file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "file":
        return FileStore(tmp_path / "store")
    server: S3Server = request.getfixturevalue("s3")
    bucket = request.getfixturevalue("bucket")
    return open_store(f"s3://{bucket}/a/prefix", server.credentials(), server.storage)


def test_what_is_put_is_got(store: Store, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "deep" / "target"
    source.write_bytes(b"from a file")
    store.put_file("x/one", source)
    assert store.put_bytes("x/two", b"from memory") is True
    store.get_file("x/one", target)
    assert target.read_bytes() == b"from a file"
    assert store.get_bytes("x/two") == b"from memory"
    assert store.list("") == [StoredObject("x/one", 11), StoredObject("x/two", 11)]


def test_prefixes_are_prefixes_of_strings_not_folders(store: Store) -> None:
    for key in ("a/1", "a/2", "ab/1", "b"):
        store.put_bytes(key, b"-")
    assert [o.key for o in store.list("a")] == ["a/1", "a/2", "ab/1"]
    assert [o.key for o in store.list("a/")] == ["a/1", "a/2"]
    assert store.list("nothing/") == []


def test_what_is_missing_is_none_and_deleting_it_is_no_error(store: Store, tmp_path: Path) -> None:
    assert store.get_bytes("nothing") is None
    with pytest.raises(FileNotFoundError):
        store.get_file("nothing", tmp_path / "target")
    store.put_bytes("a/b/c", b"-")
    store.delete(["a/b/c", "nothing"])
    store.delete([])
    assert store.list("") == []


def test_a_later_object_replaces_an_earlier_one_unless_told_not_to(store: Store) -> None:
    store.put_bytes("key", b"first")
    assert store.put_bytes("key", b"second") is True
    assert store.put_bytes("key", b"third", if_none_match=True) is False
    assert store.get_bytes("key") == b"second"


def test_of_many_that_claim_a_key_at_once_one_gets_it(store: Store) -> None:
    start = threading.Barrier(8)
    won: list[int] = []

    def claim(number: int) -> None:
        start.wait()
        if store.put_bytes("claim", str(number).encode(), if_none_match=True):
            won.append(number)

    threads = [threading.Thread(target=claim, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert store.get_bytes("claim") == str(won[0]).encode()


def test_a_file_of_several_parts_arrives_whole(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    store = open_store(f"s3://{bucket}", s3.credentials(), s3.storage)
    large = tmp_path / "large"
    large.write_bytes(os.urandom(40 << 20))  # above the threshold of multipart uploads
    store.put_file("large", large)
    assert store.list("") == [StoredObject("large", 40 << 20)]
    store.get_file("large", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == large.read_bytes()


def test_an_upload_that_never_ended_is_told_of_and_removed(store: Store, s3: S3Server, tmp_path: Path) -> None:
    """What a killed process leaves: a multipart upload in S3, a file under another name in a folder."""
    store.put_bytes("a/whole", b"-")
    if isinstance(store, FileStore):
        (store.root / "a/b").mkdir()
        (store.root / "a/b/.finetune-part-weights.safetensors-x7_k2m9q").write_bytes(b"half of it")
    else:
        bucket, _, prefix = store.uri_of("a/b/").removeprefix("s3://").partition("/")
        upload = {"Bucket": bucket, "Key": f"{prefix}weights.safetensors"}
        upload["UploadId"] = s3.client().create_multipart_upload(**upload)["UploadId"]
        s3.client().upload_part(**upload, PartNumber=1, Body=b"half of it")
    assert [upload.key for upload in store.unfinished("a/")] == ["a/b/weights.safetensors"]
    assert store.unfinished("b") == []
    assert [o.key for o in store.list("")] == ["a/whole"]

    found = store.unfinished("a/b/")
    store.abort(found)
    store.abort(found)  # as when two do it at once
    assert store.unfinished("") == []
    assert [o.key for o in store.list("")] == ["a/whole"]


def test_the_clock_of_the_store_tells_what_came_later(store: Store) -> None:
    store.put_bytes("first", b"-")
    store.put_bytes("second", b"-")
    first, second = (o.modified for o in store.list(""))
    assert 0 < first <= second


def test_a_folder_that_cannot_be_written_names_the_field(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigurationError, match=r"^spec.output.uri is file://.*cannot be written .*choose a folder"):
        FileStore(tmp_path / "file" / "results").put_bytes("key", b"-")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"AWS_SECRET_ACCESS_KEY": "wrong"},
            "does not accept spec.output.secretRef.name s3-credentials for s3://{bucket} (SignatureDoesNotMatch); "
            "correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in it",
        ),
        ({"AWS_ACCESS_KEY_ID": "nobody"}, "UserNotFound); correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in it"),
        (
            {"AWS_SECRET_ACCESS_KEY": ""},
            "spec.output.secretRef.name is s3-credentials, but that Secret does not exist in the job's namespace or "
            "has no key AWS_SECRET_ACCESS_KEY; create it with these keys",
        ),
    ],
)
def test_bad_credentials_are_told_by_field_and_remedy(
    s3: S3Server, bucket: str, changed: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        open_store(f"s3://{bucket}", s3.credentials(**{"secret_key": "x", **changed}), s3.storage).put_bytes("k", b"-")
    assert message.format(bucket=bucket) in str(caught.value)


def test_a_missing_bucket_is_told_by_field_and_remedy(s3: S3Server) -> None:
    store = open_store("s3://no-such-bucket/prefix", s3.credentials(), s3.storage)
    for action in (lambda: store.put_bytes("k", b"-"), lambda: store.get_bytes("k"), lambda: store.list("")):
        with pytest.raises(ConfigurationError) as caught:
            action()
        assert str(caught.value) == (
            f"spec.output.uri is s3://no-such-bucket/prefix, but {s3.endpoint} has no bucket no-such-bucket; "
            "create the bucket or correct the name"
        )


def test_a_server_that_does_not_answer_may_answer_later(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune_trainer.patience.PATIENCE_SECONDS", 0)
    nobody = s3.storage.model_copy(update={"endpoint": "http://127.0.0.1:1"})
    with pytest.raises(RunError, match=r"cannot be reached .*check spec.dataset.storage.endpoint") as caught:
        open_store("s3://pictures", s3.credentials(Role.DATASET), nobody).list("")
    assert caught.value.exit_code == 1


def test_credentials_hide_their_values(s3: S3Server) -> None:
    assert "the-secret" not in repr(s3.credentials())
    assert repr(Credentials(Role.OUTPUT)) == "Credentials(role=<Role.OUTPUT: 'output'>, secret_name=None, ambient=True)"


def test_a_denied_access_says_what_to_allow(s3: S3Server) -> None:
    for role, actions in ((Role.OUTPUT, "list, read, write and delete"), (Role.DATASET, "list and read")):
        error = s3.location("s3://models/x", s3.credentials(role)).refusal("AccessDenied", "PutObject")
        assert isinstance(error, ConfigurationError)
        assert str(error) == (
            f"{s3.endpoint} denies {role.field}.secretRef.name s3-credentials access to s3://models/x (AccessDenied); "
            f"allow it to {actions} there, or name another Secret"
        )
