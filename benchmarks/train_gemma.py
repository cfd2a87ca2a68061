"""A small Gemma (norms of weight + 1, gated GELU, a tied embedding), trained in minutes: train_gemma.py OUT TOKENIZER.

TOKENIZER is a checkpoint whose tokenizer it takes. The text is the Python source of the packages beside PyTorch, files
in an order drawn by their paths; every twentieth is left out of training, and of those the first 700,000 characters are
OUT/held_out.txt. The model, in bfloat16, is OUT/published, and OUT/original what a study converts it to. Says how many
tokens it saw and its loss on the text left out. Then

    python benchmarks/frontier.py OUT/original OUT/held_out.txt --name source --width 1024 --beside awq_clip_gptq_shared
"""

import argparse
import hashlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "workflow_scripts"))

from quant.models.conversion.convert import convert

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WIDTH = 1024  # tokens of a sequence
HELD_OUT = 20  # one file of so many
HELD_OUT_CHARACTERS = 700_000
SMALLEST, LARGEST = 1_000, 200_000  # characters of a file
WARM_UP, DECAY = 100, 0.1  # steps of it; AdamW's
JUDGED = 16  # sequences of a loss


def sources(folder: Path, characters: int) -> tuple[list[str], str]:
    """Texts to train on, so many characters at most, and the text held out."""
    paths = [path.relative_to(folder).as_posix() for path in folder.rglob("*.py")]
    drawn = sorted(paths, key=lambda path: hashlib.sha256(path.encode()).hexdigest())
    texts: list[str] = []
    held_out: list[str] = []
    for i, path in enumerate(drawn):
        text = (folder / path).read_text(encoding="utf-8", errors="replace")
        if not SMALLEST <= len(text) <= LARGEST:
            continue
        if i % HELD_OUT == 0:
            held_out.append(text)
        elif (characters := characters - len(text)) < 0:
            break
        else:
            texts.append(text)
    return texts, "\n\n".join(held_out)[:HELD_OUT_CHARACTERS]


def sequences_of(tokenizer: Any, texts: list[str]) -> Tensor:
    """Their tokens, an end between texts, as rows [n, WIDTH + 1] that share an end."""
    end = tokenizer.eos_token_id
    found = tokenizer(texts, verbose=False, return_attention_mask=False)["input_ids"]
    ids = torch.tensor([token for each in found for token in (*each, end)])
    return ids.unfold(0, WIDTH + 1, WIDTH)


def batches(rows: Tensor, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Of rows in an order drawn anew each time that they have all been seen."""
    while True:
        for part in torch.randperm(len(rows), generator=generator).split(batch):
            if len(part) == min(batch, len(rows)):
                yield rows[part]


def loss_of(model: "PreTrainedModel", rows: Tensor) -> Tensor:
    """Mean over tokens, nats."""
    logits = model(input_ids=rows[:, :-1], use_cache=False).logits.flatten(0, 1).float()
    return nn.functional.cross_entropy(logits, rows[:, 1:].flatten())


def train(
    model: "PreTrainedModel", rows: Tensor, held_out: Tensor, seconds: float, batch: int, rate: float, where: str
) -> dict[str, float]:
    """For so many seconds, by AdamW: a warm-up, then a cosine over the time; float32 weights, products in bfloat16."""
    wide = [p for p in model.parameters() if p.ndim > 1]
    narrow = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": wide, "weight_decay": DECAY}, {"params": narrow, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), fused=where == "cuda")
    begun, steps = time.perf_counter(), 0
    for part in batches(rows, batch, torch.Generator().manual_seed(0)):
        share = (time.perf_counter() - begun) / seconds
        if share >= 1:
            break
        now = rate * min(1.0, (steps + 1) / WARM_UP) * (0.05 + 0.475 * (1 + torch.cos(torch.tensor(torch.pi * share))))
        for group in optimizer.param_groups:
            group["lr"] = float(now)
        with torch.autocast(where, torch.bfloat16):
            loss = loss_of(model, part.to(where))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if steps % 200 == 0:
            print(f"step {steps}, {time.perf_counter() - begun:.0f} s: loss {loss.item():.3f}", flush=True)
        steps += 1
    with torch.no_grad(), torch.autocast(where, torch.bfloat16):
        losses = [loss_of(model, row[None].to(where)).item() for row in held_out[:JUDGED]]
    return {"steps": steps, "tokens": steps * batch * WIDTH, "held-out loss": sum(losses) / len(losses)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--seconds", type=float, default=150)
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=384, help="a multiple of 192")
    parser.add_argument("--batch", type=int, default=16, help="sequences")
    parser.add_argument("--characters", type=int, default=80_000_000)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    options = parser.parse_args()
    from transformers import AutoTokenizer, GemmaConfig, GemmaForCausalLM

    begun, where = time.perf_counter(), "cuda" if torch.cuda.is_available() else "cpu"
    texts, held_out = sources(Path(torch.__file__).parents[1], options.characters)
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    rows, kept = sequences_of(tokenizer, texts), sequences_of(tokenizer, [held_out])
    print(f"{rows.numel():,} tokens of {len(texts)} files, {time.perf_counter() - begun:.1f} s", flush=True)
    torch.manual_seed(0)
    config = GemmaConfig(
        vocab_size=len(tokenizer),
        hidden_size=options.hidden,
        intermediate_size=4 * options.hidden,
        num_hidden_layers=options.blocks,
        num_attention_heads=options.hidden // 64,
        num_key_value_heads=options.hidden // 192,
        head_dim=64,
        max_position_embeddings=2 * WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = GemmaForCausalLM(config).to(where)
    found = train(model, rows, kept, options.seconds, options.batch, options.rate, where)
    count = sum(p.numel() for p in model.parameters())
    print(f"{count:,} weights: " + ", ".join(f"{key} {value:g}" for key, value in found.items()), flush=True)
    published = options.out / "published"
    model.to("cpu", torch.bfloat16).save_pretrained(published)
    tokenizer.save_pretrained(published)
    (options.out / "held_out.txt").write_text(held_out, encoding="utf-8")
    convert({"directory": str(published)}, options.out / "original/checkpoint", options.out / "original/convert.json")


if __name__ == "__main__":
    main()
