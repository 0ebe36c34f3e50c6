"""What the trainer's tests share: a tiny model and its pictures, and an S3 server, each made once."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from finetune_trainer.families import Family, load_family
from support.s3_server import S3Server, s3_server
from support.samples import make_shapes
from support.tiny_sd import build_tiny_sd
from support.training import make_pictures

# cuBLAS looks for it once, when it starts; it says nothing about whether algorithms are deterministic
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Sums over so few numbers are rounded the same way each time, and no thread waits for another."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_sd(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def family(tiny_sd: Path) -> Family:
    """For one file: techniques are installed into it."""
    return load_family(tiny_sd, torch.device("cpu"))


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of several shapes."""
    return make_shapes(tmp_path_factory.mktemp("shapes"))


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server."""
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def bucket(s3: S3Server) -> str:
    """A bucket of one's own."""
    return s3.bucket(f"test-{uuid.uuid4().hex[:12]}")
