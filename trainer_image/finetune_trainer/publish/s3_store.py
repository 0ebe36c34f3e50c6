"""An S3 prefix as a store, on AWS or any compatible server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import stamina
from boto3.s3.transfer import TransferConfig
from botocore.exceptions import ClientError

from finetune_trainer.errors import RunError
from finetune_trainer.patience import Life, patiently
from finetune_trainer.publish.store import StoredObject, Unfinished
from finetune_trainer.s3 import S3Location

# Parts of 16 MiB: small files go in one request, a full model of some GB in some hundred.
TRANSFER = TransferConfig(multipart_threshold=32 << 20, multipart_chunksize=16 << 20, max_concurrency=4)


class S3Store:
    """Objects below a prefix. The server checks each upload against a checksum that boto3 sends along."""

    def __init__(self, location: S3Location) -> None:
        self._location = location
        self._client = location.client()

    def uri_of(self, key: str) -> str:
        return f"s3://{self._location.bucket}/{self._location.prefix}{key}"

    def put_file(self, key: str, path: Path) -> None:
        def upload(life: Life) -> None:
            with self._location.errors_explained():
                self._client.upload_file(
                    str(path),
                    self._location.bucket,
                    self._key(key),
                    Config=TRANSFER,
                    Callback=life.moved,
                )

        patiently(upload)

    def put_bytes(self, key: str, data: bytes, if_none_match: bool = False) -> bool:
        def put(life: Life) -> bool:
            with self._location.errors_explained():
                if if_none_match:
                    return self._put_if_absent(key, data)
                self._client.put_object(Bucket=self._location.bucket, Key=self._key(key), Body=data)
                return True

        return patiently(put)

    @stamina.retry(on=lambda error: _code(error) == "ConditionalRequestConflict", attempts=5, timeout=30)
    def _put_if_absent(self, key: str, data: bytes) -> bool:
        try:
            self._client.put_object(Bucket=self._location.bucket, Key=self._key(key), Body=data, IfNoneMatch="*")
        except ClientError as error:
            if _code(error) in ("PreconditionFailed", "412"):
                return False
            raise
        return True

    def get_bytes(self, key: str) -> bytes | None:
        def get(life: Life) -> bytes | None:
            with self._location.errors_explained():
                try:
                    reply = self._client.get_object(Bucket=self._location.bucket, Key=self._key(key))
                except self._client.exceptions.NoSuchKey:
                    return None
                return reply["Body"].read()

        return patiently(get)

    def get_file(self, key: str, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)

        def download(life: Life) -> None:
            with self._location.errors_explained():
                try:
                    self._client.download_file(
                        self._location.bucket,
                        self._key(key),
                        str(path),
                        Config=TRANSFER,
                        Callback=life.moved,
                    )
                except ClientError as error:
                    if _code(error) in ("404", "NoSuchKey"):
                        raise FileNotFoundError(self.uri_of(key)) from error
                    raise

        patiently(download)

    def list(self, prefix: str) -> list[StoredObject]:
        def pages(life: Life) -> list[StoredObject]:
            return [
                StoredObject(self._relative(item["Key"]), item["Size"], item["LastModified"].timestamp())
                for page in self._pages("list_objects_v2", prefix)
                for item in page.get("Contents", [])
            ]

        # servers list in the order of the bytes, except directory buckets, which list in none
        return sorted(patiently(pages), key=lambda o: o.key)

    def delete(self, keys: Sequence[str]) -> None:
        def remove(life: Life) -> None:
            with self._location.errors_explained():
                for first in range(0, len(keys), 1000):
                    chunk = [{"Key": self._key(key)} for key in keys[first : first + 1000]]
                    request = {"Objects": chunk, "Quiet": True}
                    reply = self._client.delete_objects(Bucket=self._location.bucket, Delete=request)
                    for failed in reply.get("Errors", []):  # of single keys, in a reply that is otherwise fine
                        raise self._location.refusal(str(failed.get("Code", "")), "DeleteObjects")

        patiently(remove)

    def unfinished(self, prefix: str) -> list[Unfinished]:
        """Multipart uploads. MinIO tells of none by a prefix; it removes them by itself after a day."""
        try:
            return [
                Unfinished(self._relative(item["Key"]), item["UploadId"])
                for page in self._pages("list_multipart_uploads", prefix)
                for item in page.get("Uploads", [])
            ]
        except RunError as error:
            if _code(error.__cause__) in ("NotImplemented", "MethodNotAllowed"):
                return []  # nothing to be done on such a server
            raise

    def abort(self, uploads: Sequence[Unfinished]) -> None:
        for upload in uploads:
            with self._location.errors_explained():
                try:
                    self._client.abort_multipart_upload(
                        Bucket=self._location.bucket, Key=self._key(upload.key), UploadId=upload.handle
                    )
                except self._client.exceptions.NoSuchUpload:
                    continue

    def _pages(self, operation: str, prefix: str) -> list[dict[str, Any]]:
        with self._location.errors_explained():
            paginator = self._client.get_paginator(operation)
            return list(paginator.paginate(Bucket=self._location.bucket, Prefix=self._key(prefix)))

    def _key(self, key: str) -> str:
        return self._location.prefix + key

    def _relative(self, key: str) -> str:
        return key.removeprefix(self._location.prefix)


def _code(error: BaseException | None) -> str:
    return str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, ClientError) else ""
