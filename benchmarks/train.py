"""Fine-tune a small classifier on a part of a dataset; the rest is left to be asked about.

Starts from a checkpoint with a head of its own size; texts that occur more than once are left out.

    python benchmarks/train.py DATA.parquet CHECKPOINT -o FOLDER [--train 3000] [--unseen 6000]

Writes FOLDER/model and FOLDER/unseen.parquet (text, label).
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import polars as pl
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

BATCH, EPOCHS, RATE, SEED = 32, 3, 5e-5, 0


def parts(data, n_train, n_unseen):
    """Rows to train on, and others, both drawn with a seed."""
    table = pl.read_parquet(data, columns=["text", "label"]).unique("text", keep="none",
                                                                    maintain_order=True)
    table = table.filter(pl.col("text").str.strip_chars() != "").sample(
        fraction=1, shuffle=True, seed=SEED)
    return table[:n_train], table[n_train : n_train + n_unseen]


def train(model, tokenizer, table):
    """Some epochs of AdamW with a rate that falls to 0."""
    texts, labels = table["text"].to_list(), torch.tensor(table["label"].to_numpy())
    steps = EPOCHS * -(-len(texts) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, steps)
    random = np.random.default_rng(SEED)
    model.train()
    for epoch in range(EPOCHS):
        total = 0.0
        for rows in np.array_split(random.permutation(len(texts)), steps // EPOCHS):
            given = tokenizer([texts[i] for i in rows], padding=True, truncation=True,
                              max_length=128, return_tensors="pt")
            loss = model(**given, labels=labels[rows]).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * len(rows)
        print(f"epoch {epoch}: loss {total / len(texts):.3f}", file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("checkpoint")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--train", type=int, default=3000)
    parser.add_argument("--unseen", type=int, default=6000)
    arguments = parser.parse_args()
    torch.manual_seed(SEED)
    model = AutoModelForSequenceClassification.from_pretrained(
        arguments.checkpoint, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(arguments.checkpoint)
    seen, unseen = parts(arguments.data, arguments.train, arguments.unseen)
    train(model, tokenizer, seen)
    model.save_pretrained(arguments.output / "model")
    tokenizer.save_pretrained(arguments.output / "model")
    unseen.write_parquet(arguments.output / "unseen.parquet")


if __name__ == "__main__":
    main()
