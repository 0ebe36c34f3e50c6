"""A boto3 client for one role, and its errors in words that name the field and the remedy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import boto3

# boto3 wraps failed transfers in these, with the ClientError as context
from boto3.exceptions import Boto3Error
from botocore.client import BaseClient
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
)
from finetune_api.storage import Storage

from finetune_trainer.credentials import Credentials, Role
from finetune_trainer.errors import ConfigurationError, RunError

BAD_KEYS = {
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "InvalidToken",
    "ExpiredToken",
    "AuthorizationHeaderMalformed",
    "InvalidClientTokenId",
    "XAdminUserNotFound",  # versitygw
}
DENIED = {"AccessDenied", "403", "Forbidden", "AllAccessDisabled", "AccountProblem"}
MISSING_BUCKET = {"NoSuchBucket", "InvalidBucketName"}


@dataclass(frozen=True)
class S3Location:
    """A place in an S3-compatible store, and whose it is."""

    uri: str
    bucket: str
    prefix: str
    """Empty, or ends with a slash."""
    credentials: Credentials
    storage: Storage

    @classmethod
    def parse(cls, uri: str, credentials: Credentials, storage: Storage | None) -> S3Location:
        parts = urlsplit(uri)
        prefix = parts.path.strip("/")
        return cls(uri, parts.netloc, f"{prefix}/" if prefix else "", credentials, storage or Storage())

    @property
    def field(self) -> str:
        return self.credentials.role.field

    @property
    def server(self) -> str:
        return self.storage.endpoint or "AWS S3"

    def client(self) -> BaseClient:
        """A client in a session of its own. Raises ConfigurationError when the Secret lacks a key."""
        self.credentials.require("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        values = self.credentials.values
        session = boto3.session.Session(
            aws_access_key_id=values.get("AWS_ACCESS_KEY_ID"),
            aws_secret_access_key=values.get("AWS_SECRET_ACCESS_KEY"),
            aws_session_token=values.get("AWS_SESSION_TOKEN"),
        )
        config = Config(
            retries={"mode": "standard", "total_max_attempts": 5},
            connect_timeout=5,
            read_timeout=60,
            # Buckets of other servers rarely have host names of their own.
            s3={"addressing_style": "path" if self.storage.endpoint else "auto"},
        )
        region = self.storage.region or session.region_name or "us-east-1"
        return session.client("s3", endpoint_url=self.storage.endpoint, region_name=region, config=config)

    @contextmanager
    def errors_explained(self) -> Iterator[None]:
        """Turns what boto3 raises into a RunError in the words of the spec."""
        try:
            yield
        except (BotoCoreError, ClientError, Boto3Error) as error:
            raise self._explained(error) from error

    def _explained(self, error: Exception) -> RunError:
        cause = error if isinstance(error, ClientError) else (error.__context__ or error)
        if isinstance(cause, NoCredentialsError | PartialCredentialsError | CredentialRetrievalError):
            return ConfigurationError(
                f"{self.field}.uri is {self.uri}, but there are no credentials for it; "
                f"set {self.field}.secretRef.name, or on your own machine AWS_PROFILE or AWS_ACCESS_KEY_ID"
            )
        if not isinstance(cause, ClientError):
            return RunError(
                f"{self.server} cannot be reached for {self.uri} ({type(error).__name__}); if it stays so, check "
                f"{self.field}.storage.endpoint"
            )
        return self.refusal(str(cause.response.get("Error", {}).get("Code", "")), cause.operation_name)

    def refusal(self, code: str, operation: str) -> RunError:
        """What an error code of the server means to the user."""
        secret = self.credentials.secret_name
        where = f"{self.field}.secretRef.name {secret}" if secret else "the credentials of your environment"
        if code in MISSING_BUCKET:
            return ConfigurationError(
                f"{self.field}.uri is {self.uri}, but {self.server} has no bucket {self.bucket}; "
                "create the bucket or correct the name"
            )
        if code in BAD_KEYS:
            return ConfigurationError(
                f"{self.server} does not accept {where} for {self.uri} ({code}); correct AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY in it"
            )
        if code in DENIED:
            return ConfigurationError(
                f"{self.server} denies {where} access to {self.uri} ({code}); allow it to {self._actions} there, "
                "or name another Secret"
            )
        return RunError(f"{self.server} failed on {self.uri}: {code} in {operation}")

    @property
    def _actions(self) -> str:
        return "list, read, write and delete" if self.credentials.role is Role.OUTPUT else "list and read"
