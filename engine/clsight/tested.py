"""Tests of all units, block by block, and the tables that come of them."""

from dataclasses import dataclass, field
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


@dataclass
class WordTests:
    """The test of the design for one model."""

    names: Names
    model: str
    index: int
    strata: Strata
    moments: Moments
    permutations: Permutations
    options: Options
    p: list[Floats] = field(default_factory=list)
    permuted: list[npt.NDArray[np.bool_]] = field(default_factory=list)
    resampled: list[Resampled] = field(default_factory=list)
    extremes: Floats | None = None

    def add(self, block: Block) -> None:
        """Test the units of a block."""
        mass = block.masses[self.index]
        p, permuted = statistics.one_sided(
            self.moments, mass, block.units, self.permutations, self.options.max_skewness)
        self.p.append(p)
        self.permuted.append(permuted)
        self.resampled.append(block.resampled)
        if self.options.max_t:
            own = self.permutations.extremes(mass, self.moments.variance[..., block.units])
            before = own if self.extremes is None else self.extremes
            self.extremes = np.stack([np.maximum(own[0], before[0]),
                                      np.minimum(own[1], before[1])])

    def tables(self) -> dict[str, pa.Table]:
        """Rows of `tested_words`."""
        error = self.strata.error
        figures = statistics.describe(self.moments, int(error.sum()), int((~error).sum()))
        figures |= statistics.tested(
            self.moments, np.concatenate(self.p, axis=-1), self.resampled, self.index)
        figures["detectable_ratio"] = statistics.detectable(self.moments, self.options.max_q)
        if self.extremes is not None:
            figures["p_max_t"], figures["p_max_t_under"] = statistics.max_t(
                self.moments.z, self.extremes)
        p_from = np.where(np.concatenate(self.permuted), "permutations", "moments")
        columns = figures | {"n_documents": self.moments.n_documents,
                             "n_errors": self.moments.n_errors, "p_from": p_from}
        return {"tested_words": self.names.table(
            tables.tested_words(), {"model": self.model}, columns)}


@dataclass
class PairTests:
    """Two models on the same documents."""

    names: Names
    models: tuple[str, str]
    indices: tuple[int, int]
    moments: tuple[Moments, Moments]
    strata: tuple[Strata, Strata]
    discordant: Part
    options: Options
    blocks: list[dict[str, Floats]] = field(default_factory=list)

    def add(self, block: Block) -> None:
        """Compare the units of a block."""
        one, other = self.indices
        own, others = block.masses[one], block.masses[other]
        difference = self.discordant.mass(Mass(own.offsets, own.document, own.x - others.x))
        found: dict[str, Any] = self._paired(difference)
        found["n_both_errors"] = comparisons.both_errors(own, *self.strata)
        ratios = [statistics.adjusted(moments)[:, block.units] for moments in self.moments]
        chosen = np.ix_([one, other], [one, other])
        found["z_difference"] = np.stack([
            statistics.difference(ratios[0][score], ratios[1][score], covariance[:, *chosen])
            for score, covariance in enumerate(block.resampled.covariance)])
        found |= {"adjusted_ratio": ratios[0], "other_adjusted_ratio": ratios[1]}
        freedom = np.minimum(block.freedom[one], block.freedom[other])
        found["p_difference"] = statistics.two_sided(found["z_difference"], freedom)
        self.blocks.append(found)

    def _paired(self, difference: Mass) -> dict[str, Floats]:
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

    def tables(self) -> dict[str, pa.Table]:
        """Rows of `model_pairs`."""
        columns: dict[str, Any] = {name: np.concatenate([b[name] for b in self.blocks], axis=-1)
                                   for name in self.blocks[0]}
        names = dict(zip(("model", "other"), self.models, strict=True))
        return {"model_pairs": self.names.table(tables.model_pairs(), names, columns)}


@dataclass
class SliceTests:
    """The test within each value of a column, for one model."""

    names: Names
    model: str
    index: int
    parts: list[Part]
    options: Options
    blocks: list[dict[str, Any]] = field(default_factory=list)

    def add(self, block: Block) -> None:
        """Test the units of a block in each slice that enough documents hold them in."""
        found: dict[str, Any] = {}
        moments_of = []
        for part in self.parts:
            mass = part.mass(block.masses[self.index])
            moments = comparisons.moments(mass, part.permutations.strata)
            found[part.name] = self._slice(part, mass, moments)
            moments_of.append(moments)
        found["agreement"] = comparisons.agreement(moments_of, self.options.min_documents)
        self.blocks.append(found)

    def _slice(self, part: Part, mass: Mass, moments: Moments) -> dict[str, Floats]:
        p, _ = statistics.one_sided(moments, mass, slice(None), part.permutations,
                                    self.options.max_skewness)
        error = part.permutations.strata.error
        described = statistics.describe(moments, int(error.sum()), int((~error).sum()))
        return {
            "n_documents": moments.n_documents, "n_errors": moments.n_errors,
            "mass_ratio": described["mass_ratio"], "adjusted_ratio": described["adjusted_ratio"],
            "z": statistics.weaker(moments.z), "p": p[0].max(axis=0), "p_under": p[1].max(axis=0),
        }

    def tables(self) -> dict[str, pa.Table]:
        """Rows of `tested_slices` and `slice_heterogeneity`."""
        rows = []
        for part in self.parts:
            columns = {name: np.concatenate([b[part.name][name] for b in self.blocks], axis=-1)
                       for name in self.blocks[0][part.name]}
            table = self.names.table(tables.tested_slices(),
                                     {"model": self.model, "slice": part.name}, columns)
            enough = table["n_documents"].to_numpy() >= self.options.min_documents
            rows.append(table.filter(pa.array(enough)))
        chi, p = (np.concatenate([b["agreement"][i] for b in self.blocks], axis=-1)
                  for i in range(2))
        table = self.names.table(tables.slice_heterogeneity(), {"model": self.model},
                                 {"chi_squared": chi, "p": p})
        return {"tested_slices": pa.concat_tables(rows),
                "slice_heterogeneity": table.filter(table["chi_squared"].is_valid())}


@dataclass
class Heterogeneity:
    """All models on the same documents."""

    names: Names
    moments: list[Moments]
    blocks: list[tuple[Floats, Floats]] = field(default_factory=list)

    def add(self, block: Block) -> None:
        """Compare the units of a block."""
        ratios = np.stack([statistics.adjusted(own)[:, block.units] for own in self.moments])
        freedom = np.min(block.freedom, axis=0)
        found = [statistics.heterogeneity(ratios[:, score], covariance, freedom[score])
                 for score, covariance in enumerate(block.resampled.covariance)]
        self.blocks.append((np.stack([chi for chi, _ in found]), np.stack([p for _, p in found])))

    def tables(self) -> dict[str, pa.Table]:
        """Rows of `model_heterogeneity`."""
        chi, p = (np.concatenate([block[i] for block in self.blocks], axis=-1) for i in range(2))
        return {"model_heterogeneity": self.names.table(
            tables.model_heterogeneity(), {}, {"chi_squared": chi, "p": p})}
