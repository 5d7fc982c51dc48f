"""The whole way without anything from outside: generated reviews and two tiny classifiers.

In the classifiers' training one planted word went with each label; in the demo's reviews the words
say nothing, so that the models err where they stand. The main job finds them as it would find any
word: this module knows them only to count how many were found.
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from clsight import shards
from clsight.demo.reviews import PLANTED, reviews
from clsight.errors import listed

__all__ = ["PLANTED", "models", "verdict", "write_reviews"]


def write_reviews(path: Path, documents: int, seed: int) -> Path:
    """Write generated reviews (columns text, label) as Parquet; the seed fixes every byte.

    Returns the file's path, which is `path` with the suffix .parquet.
    """
    written = reviews(documents, seed)
    table = pa.table({
        "text": [review.text for review in written],
        "label": pa.array([review.label for review in written], pa.int64()),
    })
    target = path.with_suffix(".parquet")
    target.parent.mkdir(parents=True, exist_ok=True)
    with shards.replaced(target) as temporary:
        pq.write_table(table, temporary)
    return target


def models() -> dict[str, str]:
    """Name -> folder of the package's classifiers."""
    folder = Path(__file__).parent / "models"
    return {name: str(folder / name) for name in ("bert", "roberta")}


def verdict(run: Path) -> str:
    """How many of the planted words each model over-attends, by score, and what else it names."""
    import clsight

    found = clsight.open(run).sql("over_attended")
    lines = []
    for model in models():
        forms = found.filter(model=model)
        named = [form for form in PLANTED if form in forms["form"]]
        others = sorted(set(forms["form"]) - set(PLANTED))
        scores = {
            score: len(set(part["form"]) & set(PLANTED))
            for (score,), part in forms.group_by("score", maintain_order=True)
        }
        by_score = ", ".join(f"{score} {count}" for score, count in scores.items()) or "no score"
        lines.append(f"{model}: {len(named)} of {len(PLANTED)} planted words found "
                     f"({by_score}); other words: {listed(others)}")
    return "\n".join(lines)
