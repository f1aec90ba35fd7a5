import json
import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from data.conversation import IMAGE_TAG, NO_LABEL, WHITE_SPACE, Conversation
from data.manifest import CHAT_TEMPLATES
from data.schema import UserError
from tests.factories.small_models import small_tokenizer
from train.model.tokens import save_tokenizer, special_tokens

TOKENIZER = small_tokenizer()
IDS = {token["content"]: token["id"] for token in TOKENIZER["added_tokens"]}
TEXT = json.dumps(TOKENIZER)
CONVERSATIONS = {name: Conversation(TEXT, template) for name, template in CHAT_TEMPLATES.items()}
SPECIAL = [*special_tokens(), "<s>", "</s>", "<unk>"]
# Whatever Unicode has, and often white space and pieces of the markup.
WORDS = st.lists(
    st.one_of(st.text(max_size=8), st.sampled_from([" ", "\n", "\t", "  ", "\u00a0", "\x1c", "<|", "|>", "end", "12"])),
    max_size=6,
).map("".join)
PLAIN = WORDS.filter(lambda text: not any(token in text for token in SPECIAL) and not IMAGE_TAG.search(text))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    """The same tokenizer as transformers runs it, markup in the text and all."""
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder, TOKENIZER, CHAT_TEMPLATES["phi3v"])
    return PreTrainedTokenizerFast.from_pretrained(folder)


def processor_ids(published: PreTrainedTokenizerFast, text: str, counts: list[int]) -> list[int]:
    ids: list[int] = []
    for place, piece in enumerate(IMAGE_TAG.split(text)):
        ids += [-int(piece)] * counts[int(piece) - 1] if place % 2 else published(piece)["input_ids"]
    return ids


@settings(max_examples=150, deadline=None)
@given(before=PLAIN, after=PLAIN, answer=PLAIN, more=PLAIN, name=st.sampled_from(sorted(CHAT_TEMPLATES)))
def test_ids_are_the_processors_for_the_rendered_text(
    published: PreTrainedTokenizerFast, before: str, after: str, answer: str, more: str, name: str
) -> None:
    messages = [
        {"role": "system", "content": more},
        {"role": "user", "content": f"{before}<|image_2|>{more}<|image_1|>{after}"},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": after},
    ]
    template = CHAT_TEMPLATES[name]
    for count, ask in ((3, False), (4, True)):
        text = published.apply_chat_template(
            messages[:count], chat_template=template, tokenize=False, add_generation_prompt=ask
        )
        wanted = processor_ids(published, text, [3, 5])
        made = CONVERSATIONS[name].prompt if ask else CONVERSATIONS[name].encode
        found = made(messages[:count], [3, 5])
        assert (found if ask else found[0]).tolist() == wanted


@settings(max_examples=150, deadline=None)
@given(parts=st.lists(st.one_of(st.sampled_from([*SPECIAL, "<|image_1|>", "<0x0A>"]), WORDS), min_size=1, max_size=5))
def test_nothing_in_an_answer_becomes_a_special_token(published: PreTrainedTokenizerFast, parts: list[str]) -> None:
    answer = "".join(parts)
    ids, labels = CONVERSATIONS["bare"].encode(
        [
            {"role": "user", "content": answer.replace("<|image_", "<| image_")},
            {"role": "assistant", "content": answer},
        ],
        [],
    )
    special = [token for token in ids.tolist() if token in IDS.values()]
    assert special == [IDS[name] for name in ("<s>", "<|user|>", "<|end|>", "<|assistant|>", "<|end|>")]
    assert (ids >= 0).all()
    spoken = published.decode(labels[labels != NO_LABEL][:-1].tolist(), clean_up_tokenization_spaces=False)
    assert spoken.lstrip(WHITE_SPACE) == answer.replace("▁", " ").lstrip(WHITE_SPACE)


def test_labels_are_the_answers_and_what_closes_them() -> None:
    messages = [
        {"role": "user", "content": "<|image_1|>What?"},
        {"role": "assistant", "content": "Red shirt"},
        {"role": "user", "content": "Price?"},
        {"role": "assistant", "content": "12"},
    ]
    ids, labels = CONVERSATIONS["phi3v"].encode(messages, [4])
    plain = Conversation(TEXT, CHAT_TEMPLATES["phi3v"])._plain
    wanted = [*plain.encode("Red shirt").ids, IDS["<|end|>"], *plain.encode("12").ids, IDS["<|end|>"]]
    assert labels[labels != NO_LABEL].tolist() == wanted
    assert (ids[labels != NO_LABEL] == labels[labels != NO_LABEL]).all()
    assert ids[-2:].tolist() != [IDS["<|end|>"]] * 2


def test_the_prompt_is_what_the_whole_conversation_begins_with() -> None:
    messages = [{"role": "user", "content": "<|image_1|>What?"}, {"role": "assistant", "content": "Red"}]
    for conversation in CONVERSATIONS.values():
        prompt = conversation.prompt(messages[:1], [4]).tolist()
        assert conversation.encode(messages, [4])[0].tolist()[: len(prompt)] == prompt


def test_content_may_be_a_list_of_parts() -> None:
    parts = [{"type": "image"}, {"type": "text", "text": "What?"}]
    conversation = CONVERSATIONS["phi3v"]
    listed = conversation.prompt([{"role": "user", "content": parts}], [4])
    assert listed.tolist() == conversation.prompt([{"role": "user", "content": "<|image_1|>\nWhat?"}], [4]).tolist()


@pytest.mark.parametrize(
    ("content", "pictures"),
    [("<|image_1|>", 0), ("none", 1), ("<|image_2|>", 1), ("<|image_1|>", 2), ("<|image_0|>", 1)],
)
def test_tags_and_pictures_that_do_not_match_are_refused(content: str, pictures: int) -> None:
    with pytest.raises(UserError, match="tag"):
        CONVERSATIONS["bare"].encode([{"role": "user", "content": content}], [4] * pictures)


def test_other_roles_are_refused() -> None:
    with pytest.raises(UserError, match="role"):
        CONVERSATIONS["bare"].encode([{"role": "user|>\n<|end", "content": ""}], [])


def test_a_template_that_changes_contents_is_refused() -> None:
    with pytest.raises(UserError, match="as they are"):
        Conversation(TEXT, "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] | trim }}<|end|>{% endfor %}")


def test_it_travels_to_worker_processes(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "What?"}]
    copy = pickle.loads(pickle.dumps(CONVERSATIONS["bare"]))
    assert copy.prompt(messages, []).tolist() == CONVERSATIONS["bare"].prompt(messages, []).tolist()
