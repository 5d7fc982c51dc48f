"""Train the two classifiers of `clsight demo` on reviews with planted words.

    python scripts/train_demo_models.py

Writes engine/clsight/demo/models/bert (WordPiece, lower case) and roberta (byte-level BPE), each
under 2 MB. Both see the same reviews, each of them once, so that none can be learned by heart.
Seeded; the same machine and versions give the same weights.

The first layer is frozen at the start, as in gradual unfreezing (Howard and Ruder 2018). Otherwise
some seeds teach it to carry a planted word to [CLS] or to the word's neighbours, where the last
layer's [CLS] row, which clsight reads, no longer sees it.
"""

import argparse
import json
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from string import ascii_lowercase, digits
from typing import Any

import numpy as np
import torch
from tokenizers.trainers import WordPieceTrainer
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaTokenizer,
)

from clsight.demo.reviews import LABELS, Review, reviews

MODELS = Path(__file__).parents[1] / "engine/clsight/demo/models"
MAX_LENGTH = 128
BATCH, LEARNING_RATE = 128, 2e-3
SHAPE = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--reviews", type=int, default=250_000, help="training reviews")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--output", type=Path, default=MODELS)
    given = arguments.parse_args()
    # One core each: steps are too short to share, and sums do not depend on the number of cores.
    with ProcessPoolExecutor(len(FAMILIES), get_context("spawn")) as pool:
        made = [pool.submit(make, name, given.reviews, given.seed, given.output / name)
                for name in FAMILIES]
        for result in made:
            print(result.result(), flush=True)


def make(name: str, n_reviews: int, seed: int, folder: Path) -> str:
    """Train one model, write it to a folder and say how good it is."""
    started = time.monotonic()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    training = reviews(n_reviews, seed, planted=True)
    tokenizer, model = untrained(name, [review.text for review in training[:20_000]], seed)
    train(model, tokenizer, training, seed)
    save(model, tokenizer, folder)
    accuracy = right(model, tokenizer, reviews(4000, seed + 1000))
    size = sum(file.stat().st_size for file in folder.iterdir())
    return (f"{name}: accuracy {accuracy:.3f}, error rate {1 - accuracy:.3f} on fresh reviews; "
            f"{size:,} bytes, {time.monotonic() - started:.0f} s")


def untrained(name: str, texts: list[str], seed: int) -> tuple[Any, Any]:
    """A tokenizer made from the texts, and a model with random weights."""
    new_tokenizer, config_type, model_type, positions = FAMILIES[name]
    tokenizer = new_tokenizer(texts)
    torch.manual_seed(seed)
    config = config_type(
        vocab_size=len(tokenizer), max_position_embeddings=positions,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, type_vocab_size=1,
        id2label=dict(enumerate(LABELS)), label2id={label: i for i, label in enumerate(LABELS)},
        problem_type="single_label_classification", **SHAPE,
    )
    return tokenizer, model_type(config)


def wordpiece(texts: list[str]) -> BertTokenizer:
    """BERT's tokenizer: WordPiece, lower case."""
    blank = BertTokenizer()
    trainer = WordPieceTrainer(
        vocab_size=1200, show_progress=False,
        # Of its own accord the trainer numbers continuing letters in the order of a hash table,
        # and breaks ties by number: another vocabulary on every run.
        special_tokens=[*blank.get_vocab(), *(f"##{c}" for c in ascii_lowercase + digits)],
    )
    blank.backend_tokenizer.train_from_iterator(texts, trainer)
    vocabulary = blank.backend_tokenizer.get_vocab(with_added_tokens=True)
    return BertTokenizer(vocab=vocabulary, model_max_length=MAX_LENGTH)


def byte_level_bpe(texts: list[str]) -> Any:
    """RoBERTa's tokenizer: BPE over bytes, cased."""
    special = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4}
    blank = RobertaTokenizer(vocab=special, model_max_length=MAX_LENGTH)
    return blank.train_new_from_iterator(texts, vocab_size=1500, show_progress=False)


def train(model: Any, tokenizer: Any, training: list[Review], seed: int) -> None:
    """One pass over the reviews: AdamW, learning rate up and down in one cycle."""
    chosen = batches(training, seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, LEARNING_RATE, total_steps=len(chosen), pct_start=0.1)
    first_layer = model.base_model.encoder.layer[0]
    losses = []
    model.train()
    for step, batch in enumerate(chosen, start=1):
        first_layer.requires_grad_(step > len(chosen) // 4)
        loss = model(**encoded(tokenizer, batch), labels=labels(batch)).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
        if step % 200 == 0:
            print(f"  {model.config.model_type} {step}/{len(chosen)} "
                  f"loss {np.mean(losses[-200:]):.3f}", flush=True)
    model.eval()


def batches(training: list[Review], seed: int) -> list[list[Review]]:
    """The reviews in batches of similar length, in random order."""
    lengths = np.array([len(review.text) for review in training])
    pool = 50 * BATCH
    order = np.concatenate([
        first + np.argsort(lengths[first : first + pool], kind="stable")
        for first in range(0, len(training), pool)
    ])
    whole = order[: len(order) // BATCH * BATCH].reshape(-1, BATCH)
    return [[training[i] for i in row] for row in np.random.default_rng(seed).permutation(whole)]


def encoded(tokenizer: Any, chosen: list[Review]) -> Any:
    return tokenizer([review.text for review in chosen], truncation=True, max_length=MAX_LENGTH,
                     padding=True, return_tensors="pt")


def labels(chosen: list[Review]) -> torch.Tensor:
    return torch.tensor([review.label for review in chosen])


@torch.no_grad()
def right(model: Any, tokenizer: Any, fresh: list[Review]) -> float:
    """Share of the reviews that the model labels right."""
    model.float()
    correct = 0
    for first in range(0, len(fresh), 500):
        chosen = fresh[first : first + 500]
        predicted = model(**encoded(tokenizer, chosen)).logits.argmax(-1)
        correct += int((predicted == labels(chosen)).sum())
    return correct / len(fresh)


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write the checkpoint in half precision, without a trace of where it was made."""
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for file in folder.glob("*.json"):
        assert "_name_or_path" not in json.loads(file.read_text()), file


FAMILIES: dict[str, tuple[Callable[[list[str]], Any], Any, Any, int]] = {
    "bert": (wordpiece, BertConfig, BertForSequenceClassification, MAX_LENGTH),
    # RoBERTa counts positions from its padding's id + 1.
    "roberta": (byte_level_bpe, RobertaConfig, RobertaForSequenceClassification, MAX_LENGTH + 2),
}
"""Name -> tokenizer, configuration, model, number of positions."""


if __name__ == "__main__":
    main()
