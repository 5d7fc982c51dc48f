"""Extraction beside whatever else runs these models on this hardware, in one process, interleaved.

Without attention: transformers' pipeline and its fused attention, ONNX Runtime and OpenVINO, the
last three over length-sorted batches of 32, tokenised beforehand. With attention: the question's
function (a text at a time, tokenised twice) and `output_attentions=True` in batches of 32. clsight:
batches as `clsight run` makes them, up to the Arrow lists of rows and contributions.

BERT-base and RoBERTa-base have random weights, on which speed does not depend. Slow systems run
over fewer documents, every fourth by length (THIN), and are compared by documents a second.

    python benchmarks/extraction.py --model bert-base --input reviews [-o RESULT.json]
"""

import argparse
import copy
import json
import statistics
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import transformers
from result_file import SHARED, finish, hardware, peaks

from clsight import memory
from clsight.attention import Wanted, prepare
from clsight.batches import tokenise
from clsight.calibrate import DEFAULT
from clsight.clock import Clock
from clsight.extractor import Documents, Extractor, count_operations
from clsight.models import IMPLEMENTATION, Classifier
from clsight.results import collect

BATCH = 32
THIN = {"question": 4, "attentions float32": 4, "attentions bfloat16": 4, "pipeline": 4}
INPUTS = {
    "reviews": ("rotten_tomatoes/unseen.parquet", 512, 256),
    "fixed 128": ("movie_reviews/data.parquet", 128, 64),
    "long 512": ("movie_reviews/data.parquet", 512, 32),
}
"""input -> (file, most pieces, documents)"""
SHAPES = {"bert-base": (transformers.BertConfig, "bert-rt"),
          "roberta-base": (transformers.RobertaConfig, "roberta-rt")}
"""model with random weights -> (configuration, whose tokenizer it has)"""


@dataclass(frozen=True)
class Case:
    """A model's weights, and the documents, by falling length."""

    name: str
    tokenizer: object
    texts: list[str]
    ids: list[np.ndarray]
    max_length: int

    def model(self, attention, dtype=torch.float32):
        """The classifier with one of transformers' attention functions."""
        kind = transformers.AutoModelForSequenceClassification
        if self.name in SHAPES:
            torch.manual_seed(0)
            config = SHAPES[self.name][0](num_labels=2, max_position_embeddings=514)
            model = kind.from_config(copy.deepcopy(config), attn_implementation=attention)
        else:
            model = kind.from_pretrained(SHARED / "models" / self.name,
                                         attn_implementation=attention)
        model.set_attn_implementation(attention)
        return model.to(dtype).eval().requires_grad_(False)

    def thinned(self, factor):
        """Every `factor`-th document by length."""
        some = slice(factor // 2, None, factor)
        return Case(self.name, self.tokenizer, self.texts[some], self.ids[some], self.max_length)

    def padded(self):
        """Length-sorted batches of ids and mask."""
        for first in range(0, len(self.ids), BATCH):
            some = self.ids[first : first + BATCH]
            ids = np.zeros((len(some), len(some[0])), dtype=np.int64)
            mask = np.zeros_like(ids)
            for row, one in enumerate(some):
                ids[row, : len(one)], mask[row, : len(one)] = one, 1
            yield ids, mask


def opened(model, name, max_length, n_documents):
    """A case on the shared data."""
    file, longest, default = INPUTS[name]
    texts = pq.read_table(SHARED / "data" / file, columns=["text"])["text"].to_pylist()
    chosen = np.random.default_rng(0).permutation(len(texts))[: n_documents or default]
    folder = SHARED / "models" / (SHAPES[model][1] if model in SHAPES else model)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    longest = min(longest, max_length)
    pieces = tokenise(tokenizer, [texts[i] for i in chosen], longest)
    ids = np.split(pieces.ids.astype(np.int64), pieces.offsets[1:-1])
    order = np.argsort(-pieces.lengths, kind="stable")
    return Case(model, tokenizer, [texts[chosen[i]] for i in order], [ids[i] for i in order],
                longest)


def question(case):
    """The function that the question starts from, without its plot."""
    model = case.model("eager")
    cut = {"truncation": True, "max_length": case.max_length}

    def run():
        for text in case.texts:
            inputs = case.tokenizer(text, return_tensors="pt", **cut)
            with torch.no_grad():
                outputs = model(**inputs, output_attentions=True)
            outputs.attentions[-1].mean(dim=1)[0].numpy()
            case.tokenizer.convert_ids_to_tokens(case.tokenizer(text, **cut)["input_ids"])

    return run


def attentions(dtype):
    """Batches with all attention matrices, of which the [CLS] row of the last layer is kept."""
    def system(case):
        model, shuffled = case.model("eager", dtype), np.random.default_rng(1)
        order = shuffled.permutation(len(case.ids))

        def run():
            for first in range(0, len(order), BATCH):
                some = sorted(order[first : first + BATCH])
                batch = Case(case.name, None, [], [case.ids[i] for i in some], 0)
                ids, mask = map(torch.from_numpy, next(batch.padded()))
                with torch.inference_mode():
                    outputs = model(input_ids=ids, attention_mask=mask, output_attentions=True)
                    outputs.attentions[-1][:, :, 0].float().numpy()

        return run

    return system


def pipeline(case):
    """transformers' pipeline, batches of 32 in the order of the dataset."""
    classify = transformers.pipeline(
        "text-classification", model=case.model("sdpa"), tokenizer=case.tokenizer, device="cpu",
    )
    texts = [case.texts[i] for i in np.random.default_rng(1).permutation(len(case.texts))]
    return lambda: classify(texts, batch_size=BATCH, truncation=True, max_length=case.max_length)


def plain(dtype):
    """transformers' fused attention, nothing returned but logits."""
    def system(case):
        model = case.model("sdpa", dtype)

        def run():
            with torch.inference_mode():
                for ids, mask in (map(torch.from_numpy, batch) for batch in case.padded()):
                    model(input_ids=ids, attention_mask=mask)

        return run

    return system


class Logits(torch.nn.Module):
    """What engines are given: ids and mask to logits."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask):
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits


EXAMPLE = (torch.randint(5, 1000, (4, 20)), torch.ones(4, 20, dtype=torch.int64))


def onnxruntime(int8):
    """ONNX Runtime in float32, or with weights and products in 8 bits."""
    def system(case):
        import onnxruntime
        from onnxruntime.quantization import quantize_dynamic

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "model.onnx")
            sizes = {0: torch.export.Dim("batch", min=1, max=4096),
                     1: torch.export.Dim("length", min=2, max=512)}
            torch.onnx.export(
                Logits(case.model("sdpa")), EXAMPLE, path, dynamo=True, verbose=False,
                input_names=["input_ids", "attention_mask"], output_names=["logits"],
                dynamic_shapes={"input_ids": sizes, "attention_mask": sizes},
            )
            if int8:
                quantize_dynamic(path, path := Path(folder, "int8.onnx"))
            session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

        def run():
            for ids, mask in case.padded():
                session.run(None, {"input_ids": ids, "attention_mask": mask})

        return run

    return system


def openvino(precision):
    """OpenVINO in one stream over all cores, which for batches is its fastest mode here."""
    def system(case):
        import openvino

        model = openvino.convert_model(Logits(case.model("sdpa")), example_input=EXAMPLE)
        compiled = openvino.Core().compile_model(
            model, "CPU", {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
        )

        def run():
            for batch in case.padded():
                compiled(batch)

        return run

    return system


def clsight(dtype, all_layers=False):
    """Rows, logits and contributions of every document, as lists in Arrow."""
    def system(case):
        extractor, documents = ready(case, dtype, all_layers)

        def run():
            results = extractor.attend(documents, lambda _: None)
            collect(results, ("logits", "attention", "contribution"))

        return run

    return system


def ready(case, dtype, all_layers=False, clock=None):
    """An extractor with its documents, as `clsight run` has them."""
    model = case.model(IMPLEMENTATION, dtype)
    classifier = prepare(Classifier.of(model, case.tokenizer, case.max_length))
    last = classifier.n_layers - 1
    wanted = Wanted(tuple(range(last + 1)) if all_layers else (last,))
    extractor = Extractor(case.name, None, classifier, wanted, "predicted", False,
                          dtype != torch.float32, clock or Clock(), DEFAULT["cpu"], None)
    pieces = tokenise(case.tokenizer, case.texts, case.max_length)
    return extractor, Documents(None, pieces, None)


def operations(case):
    """Operations that clsight does for the documents: matrix products and attention."""
    clock = Clock(detailed=True)
    extractor, documents = ready(case, torch.float32, clock=clock)
    count_operations(extractor.classifier, clock)
    extractor.attend(documents, lambda _: None)
    return clock.operations


SYSTEMS = {
    "clsight bfloat16": clsight(torch.bfloat16),
    "clsight float32": clsight(torch.float32),
    "clsight bfloat16, all layers": clsight(torch.bfloat16, all_layers=True),
    "question": question,
    "attentions float32": attentions(torch.float32),
    "attentions bfloat16": attentions(torch.bfloat16),
    "pipeline": pipeline,
    "plain float32": plain(torch.float32),
    "plain bfloat16": plain(torch.bfloat16),
    "onnxruntime float32": onnxruntime(int8=False),
    "onnxruntime int8": onnxruntime(int8=True),
    "openvino float32": openvino("f32"),
    "openvino bfloat16": openvino("bf16"),
}


def measure(case, names, rounds):
    """Documents a second of each system in each round, and the hardware's peaks beside."""
    systems = {}
    for name in names:
        thinned = case.thinned(THIN.get(name, 1))
        systems[name] = SYSTEMS[name](thinned), len(thinned.ids)
        systems[name][0]()  # the first pass compiles, allocates and reads
        print(f"{name} is ready", file=sys.stderr)
    rates, limits, order = {name: [] for name in systems}, [], np.random.default_rng(2)
    for _ in range(rounds):
        limits.append(peaks())
        # In another order each time, for what ran before leaves its traces in caches and clocks.
        for name in order.permutation(list(systems)):
            run, documents = systems[name]
            started = time.perf_counter()
            run()
            rates[name].append(documents / (time.perf_counter() - started))
        print({name: round(rate[-1], 1) for name, rate in rates.items()}, file=sys.stderr)
    return rates, limits


def spread(values):
    """Median, least and greatest."""
    return [statistics.median(values), min(values), max(values)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="bert-base",
                        choices=[*SHAPES, "minilm-rt", "bert-rt", "roberta-rt"])
    parser.add_argument("--input", default="reviews", choices=INPUTS)
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=SYSTEMS)
    parser.add_argument("--documents", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("-o", "--output", type=Path, help="result file; cases are added to it")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    memory.bound()
    longest = 512 if arguments.model in SHAPES else 128 if arguments.model != "minilm-rt" else 256
    case = opened(arguments.model, arguments.input, longest, arguments.documents)
    rates, limits = measure(case, arguments.systems, arguments.rounds)
    useful = operations(case) / len(case.ids)
    pieces = [len(one) for one in case.ids]
    result = {
        "documents": len(pieces), "pieces": sum(pieces), "rounds": arguments.rounds,
        "documents_per_second": {name: spread(rate) for name, rate in rates.items()},
        "ratio": {
            ours: {name: spread(np.divide(rates[ours], rate).tolist())
                   for name, rate in rates.items() if name != ours}
            for ours in rates if ours.startswith("clsight")
        },
        "operations_per_document": useful,
        "share_of_peak": {
            name: spread([useful * rate / limit[f"matrix_{name.split()[1]}"]
                          for rate, limit in zip(rates[name], limits, strict=True)])
            for name in ("clsight bfloat16", "clsight float32") if name in rates
        },
        "peaks": limits,
    }
    cases = {}
    if arguments.output and arguments.output.exists():
        cases = json.loads(arguments.output.read_text())["cases"]
    cases[f"{arguments.model}, {arguments.input}"] = result | hardware()
    finish({"benchmark": "extraction", "cases": cases}, arguments.output)


if __name__ == "__main__":
    main()
