"""How far llama.cpp on an exported file is from transformers on the checkpoint it was made of.

``export_max_kl`` is the largest KL(transformers in F32 ‖ llama.cpp) of any token, in nats, over
real text: of SmolLM2 (its GGUF file made a checkpoint and exported again) and of a tiny made model
of each shape that can be exported.

python benchmarks/compression_export.py [--tokens N] [--json FILE]
"""

from __future__ import annotations

import inspect
import sys
import tempfile
import textwrap
from importlib import import_module
from pathlib import Path

import numpy as np
from common import arguments, report, say

from tierwise.compression.dequantize import checkpoint_of
from tierwise.compression.export import export_gguf
from tierwise.compression.source import resolve_base
from tierwise.runtime.context import Context
from tierwise.runtime.llama import Model
from tierwise.runtime.resources import probe

ROOT = Path(__file__).resolve().parent.parent
FAMILIES = ("llama", "llama2", "smollm", "qwen2", "qwen3", "mistral")
PART = 256


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--tokens", type=int, default=1024, help="of prose, and as many of code")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests"))
    write_tiny_checkpoint = import_module("tiny_models").write_tiny_checkpoint

    texts = {
        "prose": (ROOT / "LICENSE").read_text(encoding="utf-8"),
        "code": inspect.getsource(textwrap),
    }
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        base = resolve_base("bundled:smollm2")
        checkpoint = checkpoint_of(base, folder)
        say("exporting SmolLM2")
        found["SmolLM2-135M"] = compared(checkpoint, folder / "again.gguf", texts, options.tokens)
        for family in FAMILIES:
            say(f"exporting a tiny {family}")
            tiny = write_tiny_checkpoint(folder / family, family=family)
            found[f"tiny {family}"] = compared(tiny, folder / f"{family}.gguf", texts, PART)
    largest = max(one["max"] for one in found.values())
    report({"export_max_kl": largest, "kl": found}, options.json)


def compared(
    checkpoint: Path, target: Path, texts: dict[str, str], tokens: int
) -> dict[str, float]:
    """Mean and largest KL over the first tokens of each text, read in parts of `PART` tokens."""
    import torch
    from transformers import AutoModelForCausalLM

    export_gguf(checkpoint, target)
    original = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    kls = []
    with Model(target) as model, torch.no_grad():
        length = min(PART, model.context_tokens)
        with Context(model, length, threads=probe().threads, all_logits=True) as context:
            for text in texts.values():
                ids = model.tokenize(text)[:tokens]
                for start in range(0, len(ids), length):
                    part = ids[start : start + length]
                    context.truncate(0)
                    context.decode(part, 0)
                    logits = np.array(context.batch_logits(len(part)))
                    wanted = original(torch.tensor([part])).logits[0].double().log_softmax(-1)
                    ours = torch.from_numpy(logits).double().log_softmax(-1)
                    kls.append((wanted.exp() * (wanted - ours)).sum(-1))
    kl = torch.cat(kls)
    return {"tokens": len(kl), "mean": float(kl.mean()), "max": float(kl.max())}


if __name__ == "__main__":
    main()
