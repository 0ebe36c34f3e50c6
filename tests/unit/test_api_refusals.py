"""What is refused on a laptop: the same table that the API server is asked in tests/contract/test_admission.py."""

import pytest
from bad_specs import BAD_SPECS, GOOD, Bad
from finetune_api import FineTuneJob
from pydantic import ValidationError


def test_the_spec_that_the_table_spoils_is_good() -> None:
    assert FineTuneJob.model_validate(GOOD).spec.method.name == "lora"


@pytest.mark.parametrize("bad", [b for b in BAD_SPECS if not b.cluster_only], ids=lambda b: b.id)
def test_refused_with_the_words_a_person_needs(bad: Bad) -> None:
    with pytest.raises(ValidationError) as refused:
        FineTuneJob.model_validate(bad.object())
    assert (bad.laptop_says or bad.says) in str(refused.value)
