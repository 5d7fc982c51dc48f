"""The main job against the function that the question starts from, in one run of one script.

The function: one text at a time, attention of the last layer averaged over heads, the text
tokenised twice (once for the tensors, once for the axis labels), without the plot. Weights in
float32, which on CPUs is faster than the float16 of the checkpoints; no gradients. clsight: the
whole command in a process of its own, from process start to the tables, into a fresh folder. The
two alternate; the result file has every time.

    python benchmarks/question.py DATA --text text --label label --model NAME=PATH … [--rounds 3]
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq
import torch
import transformers
from result_file import finish, hardware


def attention_of_question(text, model, tokenizer):
    """The question's matrix: pieces and the head-averaged attention of the last layer."""
    inputs = tokenizer(text, return_tensors="pt", truncation=True)
    with torch.no_grad():
        outputs = model(**inputs, output_attentions=True)
    attention = outputs.attentions[-1].mean(dim=1)[0]
    pieces = tokenizer.convert_ids_to_tokens(tokenizer(text, truncation=True)["input_ids"])
    return pieces, attention.numpy()


def time_question(texts, path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        path, attn_implementation="eager", dtype=torch.float32
    ).eval()
    attention_of_question(texts[0], model, tokenizer)
    started = time.perf_counter()
    for text in texts:
        attention_of_question(text, model, tokenizer)
    return time.perf_counter() - started


def time_clsight(arguments):
    with tempfile.TemporaryDirectory() as folder:
        models = [part for model in arguments.model for part in ("--model", model)]
        command = [sys.executable, "-m", "clsight.cli", "run", arguments.data, *models,
                   "--text", arguments.text, "--label", arguments.label, "-o", f"{folder}/run"]
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        return time.perf_counter() - started


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--text", default="text")
    parser.add_argument("--label", default="label")
    parser.add_argument("--model", action="append", required=True, metavar="NAME=PATH")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    models = dict(model.split("=", 1) for model in arguments.model)
    texts = pq.read_table(arguments.data, columns=[arguments.text])[arguments.text].to_pylist()
    first = time_clsight(arguments)
    rounds = []
    for _ in range(arguments.rounds):
        question = {name: time_question(texts, path) for name, path in models.items()}
        rounds.append({"question_s": question, "clsight_s": time_clsight(arguments)})
        rounds[-1]["ratio"] = sum(question.values()) / rounds[-1]["clsight_s"]
        print(json.dumps(rounds[-1]), file=sys.stderr)
    ratios = [one["ratio"] for one in rounds]
    result = {
        "benchmark": "question",
        "documents": len(texts),
        "models": list(models),
        "ratio_median": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "clsight_first_call_s": first,
        "rounds": rounds,
        **hardware(),
    }
    finish(result, arguments.output)


if __name__ == "__main__":
    main()
