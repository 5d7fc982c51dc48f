"""Shards through models: sizes of batches, memory that runs out, and processes that tokenise."""

import dataclasses
import time
from functools import partial

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from clsight import attention, calibrate, extract, heads
from clsight.batches import batch_of
from clsight.clock import STAGES, Clock
from clsight.executors.jobs import Job, Place
from clsight.executors.local import Local
from clsight.extract import Worker
from clsight.extractor import count_operations, open_extractor
from clsight.results import collect
from small_models import eager_model, opened_model

FLOATS = ("attention", "contribution", "logits")


def close(table, other):
    """The same rows; values alike but for the order in which sums are made."""
    assert table.drop(FLOATS).schema == other.drop(FLOATS).schema
    for name in FLOATS:
        one, two = (t[name].combine_chunks() for t in (table, other))
        np.testing.assert_array_equal(one.offsets, two.offsets)
        np.testing.assert_allclose(one.flatten(), two.flatten(), rtol=1e-4, atol=1e-6)
    assert table["row"] == other["row"]
    assert table["predicted"] == other["predicted"]


@pytest.fixture
def opened(small_run, tmp_path):
    """The demo's BERT with the documents of the small run's first shard."""
    def open_(tokens_per_batch):
        extractor = open_extractor("bert", small_run.plan, tmp_path, "cpu", tokens_per_batch)
        return extractor, extractor.read(small_run.folder / "documents" / "00000.parquet")

    return open_


def stored(small_run, model="bert"):
    return pq.read_table(small_run.folder / model / "attention" / "00000.parquet")


def out_of_memory_above(n_pieces, monkeypatch, error=None):
    """A device with room for batches of n pieces; returns what is tried: (pieces, fitted)."""
    whole, tried = attention.forward, []

    def forward(classifier, ids, positions, groups, *rest):
        tried.append((len(ids), sum(documents for _, documents, _ in groups), len(ids) <= n_pieces))
        if len(ids) > n_pieces:
            raise error or torch.OutOfMemoryError("CUDA out of memory")
        return whole(classifier, ids, positions, groups, *rest)

    monkeypatch.setattr(attention, "forward", forward)
    return tried


@pytest.mark.parametrize("error", [
    torch.OutOfMemoryError("CUDA out of memory"), MemoryError(),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
], ids=["cuda", "python", "cpu", "driver", "cublas"])
def test_a_batch_that_does_not_fit_is_split(small_run, opened, monkeypatch, error):
    extractor, documents = opened(4096)
    tried = out_of_memory_above(300, monkeypatch, error)
    done = []
    table = extractor.table(documents, extractor.attend(documents, done.append))
    assert sum(n for n, _, fitted in tried if fitted) == documents.pieces.lengths.sum()
    assert sum(done) == len(documents.rows)
    close(table, stored(small_run))


def test_what_did_not_fit_once_is_not_tried_again(small_run, opened, monkeypatch, caplog):
    caplog.set_level("INFO", "clsight")
    extractor, documents = opened(None)
    tried = out_of_memory_above(300, monkeypatch)
    # As a run does: sizes are measured first; then come shards, here two.
    extractor = extractor.calibrated(documents, 10**6)
    assert tried
    for _ in range(2):
        table = extractor.table(documents, extractor.attend(documents, lambda _: None))
        close(table, stored(small_run))
    failed = [n for n, _, fitted in tried if not fitted]
    assert failed
    for place, (n, _, _) in enumerate(tried):
        assert all(n < before for before, _, fitted in tried[:place] if not fitted)
    said = [record for record in caplog.records if getattr(record, "event", "") == "split"]
    assert [record.fields["n_pieces"] for record in said] == failed
    assert f"bert: batches of {failed[0]:,} pieces or more are split" in said[0].message


def test_a_document_that_does_not_fit_alone_is_flagged(small_run, opened, monkeypatch):
    extractor, documents = opened(4096)
    lengths = documents.pieces.lengths
    longest = lengths == lengths.max()
    tried = out_of_memory_above(lengths.max() - 1, monkeypatch)
    table = extractor.table(documents, extractor.attend(documents, lambda _: None))
    assert table["problem"].is_valid().to_pylist() == longest.tolist()
    assert set(table["problem"].to_pylist()) == {
        None, f"not enough memory on cpu for its {lengths.max()} pieces"}
    alone = [n for n, documents, fitted in tried if documents == 1 and not fitted]
    assert len(alone) == longest.sum()
    answered = table.filter(table["problem"].is_null())
    close(answered, stored(small_run).filter(table["problem"].is_null().combine_chunks()))


def test_documents_alone_are_tried_whatever_did_not_fit_together(opened, monkeypatch):
    """What a batch of many did not find room for may be there for one."""
    extractor, documents = opened(4096)
    extractor.room.too_many = int(documents.pieces.lengths.min())
    tried = out_of_memory_above(4096, monkeypatch)
    table = extractor.table(documents, extractor.attend(documents, lambda _: None))
    assert table["problem"].null_count == len(table)
    assert all(documents == 1 for _, documents, _ in tried)


def test_other_errors_are_not_taken_for_want_of_memory(opened, monkeypatch):
    extractor, documents = opened(4096)
    out_of_memory_above(0, monkeypatch, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        extractor.attend(documents, lambda _: None)


@pytest.mark.parametrize(("rates", "ahead", "expected"), [
    ({1024: 1, 2048: 2, 4096: 3, 8192: 4}, 10**9, 8192),
    ({1024: 9, 2048: 2, 4096: 3, 8192: 4}, 10**9, 1024),
    ({1024: 1, 2048: 3.1, 4096: 3, 8192: 1}, 10**9, 4096),
    ({1024: 9, 2048: 2, 4096: 3, 8192: 4}, 10**6, 4096),
], ids=["largest", "smallest", "within noise", "too little ahead"])
def test_the_fastest_budget_is_chosen_where_trying_pays(monkeypatch, rates, ahead, expected):
    lengths = np.random.default_rng(0).integers(5, 60, 4096)
    now = [0.0]

    def run(batch):
        tried = min(rates, key=lambda n: abs(n - batch.n_pieces))
        now[0] += batch.n_pieces / rates[tried]

    monkeypatch.setattr(calibrate.time, "perf_counter", lambda: now[0])
    assert calibrate.budget(lengths, ahead, "cpu", graph=False, run=run) == expected


def test_batches_are_tried_on_documents_of_typical_length():
    lengths = np.r_[np.full(500, 10), np.arange(11, 60), np.full(500, 300)]
    batch = calibrate.typical(lengths, 2000)
    assert abs(batch.n_pieces - 2000) <= 300
    assert len(set(batch.documents)) == len(batch.documents)
    of_one = calibrate.typical(np.array([7]), 2000)
    assert of_one.documents.tolist() == [0]


def test_processes_tokenise_as_a_thread_does(small_run, tmp_path, monkeypatch):
    monkeypatch.setattr(extract, "_tokenisers", lambda place: 2)
    jobs = [Job("roberta", name) for name in small_run.plan.shard_names()]
    (tmp_path / "documents").symlink_to(small_run.folder / "documents")
    make = partial(Worker, tmp_path, small_run.plan, {"roberta": 3}, None)
    assert [*Local([Place("cpu")]).run(make, jobs, lambda *_: None, Clock())] == jobs
    made = pq.read_table(tmp_path / "roberta" / "attention" / "00000.parquet")
    close(made, stored(small_run, "roberta"))


def test_rows_from_the_log_sum_exp_are_softmax_rows():
    rng, lengths = torch.Generator().manual_seed(0), (3, 1, 7, 7)
    cls = torch.tensor([0, 3, 4, 11])
    q, k = (torch.randn(2, 18, 5, generator=rng) for _ in range(2))
    logs, expected = torch.empty(2, 18), torch.empty(2, 18, dtype=torch.float64)
    for first, length in zip(cls.tolist(), lengths, strict=True):
        some = slice(first, first + length)
        scores = q[:, some].double() @ k[:, some].double().transpose(1, 2) * 0.4
        logs[:, some] = scores.logsumexp(-1).float()
        expected[:, some] = scores.softmax(-1)[:, 0]
    rows = heads.Heads((), 0.4, None).rows_from_logs(q, k, cls, logs)
    torch.testing.assert_close(rows.double(), expected, rtol=1e-5, atol=1e-6)


def test_half_precision_results_are_rounded_and_come_back_in_order(opened):
    extractor, documents = opened(100)
    exact = collect(extractor.attend(documents, lambda _: None), ("attention", "logits"))
    halved = dataclasses.replace(extractor, half=True)
    rounded = collect(halved.attend(documents, lambda _: None), ("attention", "logits"))
    half = exact["attention"].flatten().to_numpy().astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(rounded["attention"].flatten(), half)
    assert rounded["logits"] == exact["logits"]
    lengths = np.diff(exact["attention"].offsets)
    layers, n_heads = len(extractor.wanted.layers), extractor.plan.n_heads
    np.testing.assert_array_equal(lengths, documents.pieces.lengths * layers * n_heads)


def test_stages_of_a_thread_exclude_each_other():
    clock, started = Clock(), time.perf_counter()
    with clock.stage("forward"):
        time.sleep(0.02)
        with clock.stage("rows"):
            time.sleep(0.03)
    wall = time.perf_counter() - started
    assert clock.seconds["rows"] >= 0.03
    assert clock.seconds["forward"] >= 0.02
    assert sum(clock.seconds.values()) <= wall
    shown = clock.table(wall)
    assert {row["stage"] for row in shown} == {"forward", "rows", "other"}
    assert sum(row["seconds"] for row in shown) == pytest.approx(wall)
    assert {"forward", "rows"} <= set(STAGES)


def test_operations_of_a_model_whose_layers_are_not_known_are_counted():
    classifier, clock = opened_model("xlnet", eager_model("xlnet")), Clock(detailed=True)
    count_operations(classifier, clock)
    classifier.model(input_ids=torch.arange(5, 12)[None])
    assert clock.operations > 0


def test_operations_are_those_of_the_matrix_products():
    """By hand, for BERT of width d and feed-forward f: [CLS] alone in the last layer."""
    classifier, clock = opened_model("bert", eager_model("bert")), Clock(detailed=True)
    count_operations(classifier, clock)
    batch = batch_of(np.array([1, 0]), np.array([9, 30]))
    assert batch.n_pieces < attention.ROUNDED
    ids = torch.arange(5, 5 + batch.n_pieces)
    attention.forward(classifier, ids, ids - 5, batch.groups, attention.Wanted((2,)), clock=clock)
    d, f, pieces, documents, pairs = 24, 40, 39, 2, 9 * 9 + 30 * 30
    layer = 4 * d * d + 2 * d * f
    keys_and_values, rest, head = 2 * d * d, 2 * d * d + 2 * d * f, d * d + 3 * d
    products = 2 * layer * pieces + keys_and_values * pieces + (rest + head) * documents
    # What fills up the batch is not useful; what is read off [CLS] alone has no share in it.
    filled, by_document = attention.ROUNDED, 2 * (rest + head) * documents + 2 * 4 * d * pairs
    assert clock.operations - 2 * products == pytest.approx(
        2 * 4 * d * pairs, abs=by_document * (1 - pieces / filled))
