"""The field reference is what the models say."""

from pathlib import Path

from finetune_api.reference import rendered

ROOT = Path(__file__).parents[2]


def test_committed_reference_is_up_to_date() -> None:
    for path, content in rendered((ROOT / "README.md").read_text()).items():
        assert (ROOT / path).read_text() == content, f"{path} is stale: run `make generate`"
