"""Tests of all units, block by block, and the tables that come of them.

`found` gives what a test says of a block: arrays whose last axis is the block's units, unless said
otherwise. `tables` takes what was found in all blocks, in order, and makes rows of it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from clsight import comparisons, statistics, tables
from clsight.bootstrap import Resampled
from clsight.comparisons import Part
from clsight.masses import Mass
from clsight.permutations import Permutations
from clsight.replicates import Strata
from clsight.statistics import Moments, Options
from clsight.units import Units

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Block:
    """Some units: their masses by each model, and what resamples say of them."""

    units: slice
    masses: list[Mass]
    resampled: Resampled
    freedom: list[Floats]
    """Of each model, how far its resampled variances can be relied on."""


@dataclass(frozen=True)
class Names:
    """What rows of the tables are called."""

    units: Units
    scores: tuple[str, ...]

    def table(self, schema: pa.Schema, names: dict[str, str], columns: dict[str, Any]) -> pa.Table:
        """A row per score and unit; columns are [S, U] or [U]; nan is null."""
        n_scores, n_units = len(self.scores), len(self.units)
        made: dict[str, Any] = {
            name: pa.repeat(value, n_scores * n_units) for name, value in names.items()}
        made["score"] = pa.array(np.repeat(self.scores, n_units), pa.string())
        unit = pa.array(np.tile(np.arange(n_units), n_scores))
        for name in ("kind", "form"):
            made[name] = self.units.table[name].combine_chunks().take(unit)
        for field_ in schema:
            if field_.name not in made:
                values = columns.get(field_.name, np.full((n_scores, n_units), np.nan))
                flat = np.broadcast_to(values, (n_scores, n_units)).ravel()
                made[field_.name] = pa.array(flat, from_pandas=True)
        return pa.table(made).select(schema.names).cast(schema)


Found = dict[str, npt.NDArray[Any]]


def together(found: Iterable[Found]) -> Found:
    """Arrays of several as one: those of the i-th are called `i.NAME`."""
    return {f"{i}.{name}": array for i, own in enumerate(found) for name, array in own.items()}


def numbered(found: Found, i: int) -> Found:
    """Those of the i-th, by their own names."""
    prefix = f"{i}."
    return {name.removeprefix(prefix): array for name, array in found.items()
            if name.startswith(prefix)}


def _joined(found: list[Found], name: str) -> npt.NDArray[Any]:
    return np.concatenate([block[name] for block in found], axis=-1)


@dataclass(frozen=True)
class WordTests:
    """The test of the design for one model."""

    names: Names
    model: str
    index: int
    strata: Strata
    moments: Moments
    permutations: Permutations
    options: Options

    def found(self, block: Block) -> Found:
        """Test the units of a block; "extremes" is [2, R, S, permutations] over all of them."""
        mass, resampled = block.masses[self.index], block.resampled
        p, permuted = statistics.one_sided(
            self.moments, mass, block.units, self.permutations, self.options.max_skewness)
        found = {
            "p": p, "permuted": permuted, "consistency": resampled.consistency[:, self.index],
            "intervals": np.moveaxis(resampled.intervals[self.index], 1, -1),
        }
        if self.options.max_t:
            found["extremes"] = self.permutations.extremes(
                mass, self.moments.variance[..., block.units])
        return found

    def tables(self, found: list[Found]) -> dict[str, pa.Table]:
        """Rows of `tested_words`."""
        error = self.strata.error
        figures = statistics.describe(self.moments, int(error.sum()), int((~error).sum()))
        figures |= statistics.tested(
            self.moments, *(_joined(found, name) for name in ("p", "consistency", "intervals")))
        figures["detectable_ratio"] = statistics.detectable(self.moments, self.options.max_q)
        if self.options.max_t:
            extremes = np.stack([block["extremes"] for block in found])
            figures["p_max_t"], figures["p_max_t_under"] = statistics.max_t(
                self.moments.z, np.stack([extremes[:, 0].max(0), extremes[:, 1].min(0)]))
        p_from = np.where(_joined(found, "permuted"), "permutations", "moments")
        columns = figures | {"n_documents": self.moments.n_documents,
                             "n_errors": self.moments.n_errors, "p_from": p_from}
        return {"tested_words": self.names.table(
            tables.tested_words(), {"model": self.model}, columns)}


@dataclass(frozen=True)
class PairTests:
    """Two models on the same documents."""

    names: Names
    models: tuple[str, str]
    indices: tuple[int, int]
    moments: tuple[Moments, Moments]
    strata: tuple[Strata, Strata]
    discordant: Part
    options: Options

    def found(self, block: Block) -> Found:
        """Compare the units of a block."""
        one, other = self.indices
        own, others = block.masses[one], block.masses[other]
        difference = self.discordant.mass(Mass(own.offsets, own.document, own.x - others.x))
        found: Found = self._paired(difference)
        found["n_both_errors"] = comparisons.both_errors(own, *self.strata)
        ratios = [statistics.adjusted(moments)[:, block.units] for moments in self.moments]
        chosen = np.ix_([one, other], [one, other])
        found["z_difference"] = np.stack([
            statistics.difference(ratios[0][score], ratios[1][score], covariance[:, *chosen])
            for score, covariance in enumerate(block.resampled.covariance)])
        found |= {"adjusted_ratio": ratios[0], "other_adjusted_ratio": ratios[1]}
        freedom = np.minimum(block.freedom[one], block.freedom[other])
        found["p_difference"] = statistics.two_sided(found["z_difference"], freedom)
        return found

    def _paired(self, difference: Mass) -> Found:
        strata = self.discordant.permutations.strata
        moments = comparisons.moments(difference, strata)
        p, _ = statistics.one_sided(moments, difference, slice(None), self.discordant.permutations,
                                    self.options.max_skewness)
        n, wrong = moments.n_documents, moments.n_errors
        few = n < self.options.min_documents
        with np.errstate(divide="ignore", invalid="ignore"):
            gaps = {"gap_wrong": moments.in_errors[0] / wrong,
                    "gap_right": (moments.total - moments.in_errors)[0] / (n - wrong)}
        return gaps | {
            "n_discordant": n, "n_wrong": wrong,
            "z_paired": np.where(few, np.nan, moments.z[0]),
            "p_paired": np.where(few, np.nan, np.minimum(1, 2 * p[:, 0].min(axis=0))),
        }

    def tables(self, found: list[Found]) -> dict[str, pa.Table]:
        """Rows of `model_pairs`."""
        columns = {name: _joined(found, name) for name in found[0]}
        names = dict(zip(("model", "other"), self.models, strict=True))
        return {"model_pairs": self.names.table(tables.model_pairs(), names, columns)}


@dataclass(frozen=True)
class SliceTests:
    """The test within each value of a column, for one model."""

    names: Names
    model: str
    index: int
    parts: list[Part]
    options: Options

    def found(self, block: Block) -> Found:
        """Test the units of a block in each slice that enough documents hold them in."""
        found, moments_of = [], []
        for part in self.parts:
            mass = part.mass(block.masses[self.index])
            moments = comparisons.moments(mass, part.permutations.strata)
            found.append(self._slice(part, mass, moments))
            moments_of.append(moments)
        chi, p = comparisons.agreement(moments_of, self.options.min_documents)
        return together(found) | {"chi_squared": chi, "p": p}

    def _slice(self, part: Part, mass: Mass, moments: Moments) -> Found:
        p, _ = statistics.one_sided(moments, mass, slice(None), part.permutations,
                                    self.options.max_skewness)
        error = part.permutations.strata.error
        described = statistics.describe(moments, int(error.sum()), int((~error).sum()))
        return {
            "n_documents": moments.n_documents, "n_errors": moments.n_errors,
            "mass_ratio": described["mass_ratio"], "adjusted_ratio": described["adjusted_ratio"],
            "z": statistics.weaker(moments.z), "p": p[0].max(axis=0), "p_under": p[1].max(axis=0),
        }

    def tables(self, found: list[Found]) -> dict[str, pa.Table]:
        """Rows of `tested_slices` and `slice_heterogeneity`."""
        rows = []
        for i, part in enumerate(self.parts):
            own = [numbered(block, i) for block in found]
            columns = {name: _joined(own, name) for name in own[0]}
            table = self.names.table(tables.tested_slices(),
                                     {"model": self.model, "slice": part.name}, columns)
            enough = table["n_documents"].to_numpy() >= self.options.min_documents
            rows.append(table.filter(pa.array(enough)))
        columns = {name: _joined(found, name) for name in ("chi_squared", "p")}
        table = self.names.table(tables.slice_heterogeneity(), {"model": self.model}, columns)
        return {"tested_slices": pa.concat_tables(rows),
                "slice_heterogeneity": table.filter(table["chi_squared"].is_valid())}


@dataclass(frozen=True)
class Heterogeneity:
    """All models on the same documents."""

    names: Names
    moments: list[Moments]

    def found(self, block: Block) -> Found:
        """Compare the units of a block."""
        ratios = np.stack([statistics.adjusted(own)[:, block.units] for own in self.moments])
        freedom = np.min(block.freedom, axis=0)
        found = [statistics.heterogeneity(ratios[:, score], covariance, freedom[score])
                 for score, covariance in enumerate(block.resampled.covariance)]
        return {"chi_squared": np.stack([chi for chi, _ in found]),
                "p": np.stack([p for _, p in found])}

    def tables(self, found: list[Found]) -> dict[str, pa.Table]:
        """Rows of `model_heterogeneity`."""
        columns = {name: _joined(found, name) for name in ("chi_squared", "p")}
        return {"model_heterogeneity": self.names.table(tables.model_heterogeneity(), {}, columns)}
