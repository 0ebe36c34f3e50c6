"""A new word is learned where a caption has it as the text encoder reads it; which crops a pass shows."""

import pytest
from finetune_trainer.data.caption_files import Captioned
from finetune_trainer.errors import DataError
from finetune_trainer.training.making_samples import check_words, items_of


@pytest.mark.parametrize(
    ("captions", "held", "missing"),
    [
        (["a photo of SKS", "a <dog>"], (), None),
        (["a sksy", "a <dog>"], (), "sks"),
        (["a dog", "two dogs"], (), "sks, <dog>"),
        (["a sks and a <dog>", "a dog"], (0,), "sks, <dog>"),
        (["a dog", None], (), None),
        (["a dog", None], (1,), "sks, <dog>"),
    ],
)
def test_a_word_that_is_read_nowhere_is_refused(
    captions: list[str | None], held: tuple[int, ...], missing: str | None
) -> None:
    """None is called by the prompt or the templates, which have all of the words."""
    given = [Captioned(caption) for caption in captions]
    check_words([], given, held)
    if missing is None:
        check_words(["sks", "<dog>"], given, held)
        return
    with pytest.raises(DataError, match=f"no caption has {missing}, and so nothing would be learned") as refused:
        check_words(["sks", "<dog>"], given, held)
    assert refused.value.exit_code == 65


def test_a_pass_shows_each_crop_as_often_as_it_is_repeated_and_none_that_is_held_out() -> None:
    captions = [Captioned("a", 2), Captioned("b", 5), Captioned("c", 1)]
    assert items_of(captions, 2, {1}) == [0, 0, 1, 1, 4, 5]
