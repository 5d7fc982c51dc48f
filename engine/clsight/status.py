"""How far a run is, seen from outside: from its shards, its events and its lock; loads no torch."""

import dataclasses
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from clsight import events, lock, shards, store, tables
from clsight import plan as plans
from clsight.dataset import bad_documents
from clsight.plan import Plan

WINDOW = 300.0
"""Seconds over which a rate is taken."""


@dataclass(frozen=True)
class Progress:
    """A model's documents and shards; `rate` in documents a second, None where it is not known."""

    documents: int
    """Extracted in complete shards, or in the one that is at work."""
    extracted: int
    scored: int
    rate: float | None


@dataclass(frozen=True)
class Status:
    """How far a run is."""

    run: str
    state: str
    """"complete", "running" (a process is at it), or "stopped" before its end."""
    stage: str | None
    """What is at work: "documents", a model's name, or "statistics"; None where nothing is."""
    n_rows: int | None
    """Rows of the dataset; None until all are read."""
    n_shards: int
    bad_documents: int | None
    """Rows that no model can use."""
    models: dict[str, Progress]
    retried: int
    """Documents that were computed again in float32."""
    failed: int
    """Documents that a model has no answer for (numbers that are not finite, want of memory);
    `bad_documents` names them."""
    rate: float | None
    """Documents a second of what is at work."""
    seconds_left: float | None
    """Until all models are extracted, at each one's own rate, or else the present one."""
    holder: str | None
    """Which process is at work."""
    last: str | None
    """What was said last."""
    last_seconds_ago: float | None

    @property
    def exit_code(self) -> int:
        """For schedulers: 0 complete, 3 running, 1 stopped before its end."""
        return {"complete": 0, "running": 3}.get(self.state, 1)


def status(run: Path) -> Status:
    """How far a run is.

    Raises:
        UsageError: the folder is no run.
    """
    plan, said = plans.load(run), list(events.read(run))
    now, session = datetime.now(UTC), _session(said)
    rates = {stage: _rate(session, stage) for stage in (*plan.models, "documents", "statistics")}
    running = lock.is_held(run)
    stage = _at_work(session) if running else None
    models = {model: _progress(run, plan, model, session if running else [], rates[model])
              for model in plan.models}
    last = next((e for e in reversed(said) if e["event"] != "progress"), None)
    return Status(
        run=store.place(run), state="running" if running else _state(run, plan), stage=stage,
        n_rows=plan.n_rows, n_shards=plan.n_shards,
        bad_documents=_n_bad(run, said) if plan.n_rows else None,
        models=models, retried=_rows(said, "retried"), failed=_rows(said, "failed"),
        rate=rates.get(stage) if stage else None,
        seconds_left=_seconds_left(plan, models, rates.get(stage or "")) if running else None,
        holder=lock.holder(run) if running else None,
        last=str(last["message"]) if last else None,
        last_seconds_ago=(now - _time(said[-1])).total_seconds() if said else None,
    )


def as_dict(found: Status) -> dict[str, Any]:
    """For JSON."""
    return dataclasses.asdict(found)


def lines(found: Status) -> list[str]:
    """For the screen."""
    what = {"complete": "complete", "running": f"running ({found.holder})",
            "stopped": "not complete; run the same command to go on"}[found.state]
    shown = [f"{found.run}: {what}"]
    if found.n_rows is None:
        shown.append("documents: not all are read yet")
    else:
        shown.append(f"documents: {found.n_rows:,} rows in {found.n_shards} shards, "
                     f"{found.bad_documents or 0:,} left out")
    shown += [
        f"{name}: {model.documents:,} documents; shards extracted {model.extracted}, scored "
        f"{model.scored} of {found.n_shards}{_speed(model.rate)}"
        for name, model in found.models.items()
    ]
    if found.state == "running":
        left = "not known yet" if found.seconds_left is None else _duration(found.seconds_left)
        shown.append(f"at work: {found.stage or 'starting'}{_speed(found.rate)}; left until all is "
                     f"extracted: {left}")
    shown.append(f"computed again in float32: {found.retried:,}; failed: {found.failed:,}")
    if found.state != "complete" and found.last is not None:
        ago = _duration(found.last_seconds_ago or 0)
        shown.append(f"last said: {found.last} (last sign of life {ago} ago)")
    return shown


def kept(run: Path) -> str:
    """What a run that ends now leaves to those that go on, in one clause."""
    if not any(store.exists(run / name) for name in plans.FILES):
        return "nothing is kept yet"
    plan = plans.load(run)
    if plan.n_rows is None:
        return "the documents were not all read, and are read again"
    made = [f"{len(shards.done(run / model / 'attention'))} of {plan.n_shards} shards of {model}"
            for model in plan.models]
    return f"kept: {plan.n_rows:,} documents, {', '.join(made)}"


def _state(run: Path, plan: Plan) -> str:
    made = all(shards.done(run / model / kind) >= set(plan.shard_names())
               for model in plan.models for kind in (*shards.MADE, "sums"))
    whole = plan.n_rows is not None and made and store.exists(run / tables.DATABASE)
    return "complete" if whole else "stopped"


def _session(said: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The events since the last start; of processes that have a part each, since each one's."""
    last = {e.get("part"): i for i, e in enumerate(said) if e["event"] == "started"}
    whole = last.pop(None, -1)
    later = {part: i for part, i in last.items() if i > whole}
    if not later:
        return said[whole:] if whole >= 0 else []
    return [e for i, e in enumerate(said) if i >= later.get(e.get("part"), len(said))]


def _at_work(session: list[dict[str, Any]]) -> str | None:
    return next((e["stage"] for e in reversed(session) if e["event"] == "progress"), None)


def _progress(
    run: Path, plan: Plan, model: str, session: list[dict[str, Any]], rate: float | None
) -> Progress:
    extracted = shards.done(run / model / "attention")
    last = shards.name(plan.n_shards - 1)
    short = plan.n_shards * plan.shard_size - (plan.n_rows or 0) if last in extracted else 0
    in_shards = len(extracted) * plan.shard_size - short
    said = max((e["done"] for e in _of(session, model)), default=0)
    return Progress(documents=max(in_shards, said), extracted=len(extracted),
                    scored=len(shards.done(run / model / "scores")), rate=rate)


def _of(session: list[dict[str, Any]], stage: str) -> list[dict[str, Any]]:
    return [e for e in session if e["event"] == "progress" and e.get("stage") == stage]


def _rate(session: list[dict[str, Any]], stage: str) -> float | None:
    """Documents a second of a stage in its last minutes; None where it was hardly seen."""
    by_part: dict[str, list[dict[str, Any]]] = {}
    for found in _of(session, stage):
        by_part.setdefault(found.get("part", ""), []).append(found)
    rates = [rate for rate in map(_rate_of, by_part.values()) if rate is not None]
    return sum(rates) if rates else None


def _rate_of(found: list[dict[str, Any]]) -> float | None:
    last = found[-1]
    first = next(e for e in found if (_time(last) - _time(e)).total_seconds() <= WINDOW)
    seconds = (_time(last) - _time(first)).total_seconds()
    return (last["done"] - first["done"]) / seconds if seconds > 0 else None


def _seconds_left(plan: Plan, models: dict[str, Progress], present: float | None) -> float | None:
    if plan.n_rows is None:
        return None
    seconds = 0.0
    for model in models.values():
        left = max(0, plan.n_rows - model.documents)
        rate = model.rate or present
        if left and not rate:
            return None
        seconds += left / rate if left and rate else 0
    return seconds


def _n_bad(run: Path, said: list[dict[str, Any]]) -> int:
    """As the log has it; else the documents are read."""
    told = [e["n_bad"] for e in said if e["event"] == "documents" and "n_bad" in e]
    return int(told[-1]) if told else bad_documents(run / "documents").num_rows


def _rows(said: list[dict[str, Any]], kind: str) -> int:
    """Documents of which an event tells; one that was extracted twice counts once."""
    return len({(e.get("model"), row) for e in said if e["event"] == kind
                for row in e.get("rows", [])})


def _time(said: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(said["time"])


def _speed(rate: float | None) -> str:
    return "" if rate is None else f", {rate:,.0f} documents/s"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else (
        f"{minutes} min {rest} s" if minutes else f"{rest} s")
