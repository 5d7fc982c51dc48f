"""Which words did each classifier look at too much when it was wrong?

    dataset     a labelled dataset, read in batches -> documents and their words, in shards
    plan        what goes in, frozen, with a fingerprint: the same call resumes the run
    models      a fine-tuned classifier, opened safely: checkpoints looks at its files, trial at its
                first answer; families says what it looks like
    batches     texts -> pieces, tokenised once -> packed batches of similar length, no padding
    attention   [CLS] attention rows and scores of pieces; general does so for other families
    extract     shards: tokenise | forward | write, overlapped -> MODEL/attention
    scores      rows and pieces -> one number per word and score -> MODEL/scores
    profiles    what heads look at and how scores agree -> MODEL/heads, MODEL/agreement
    masses      words, bigrams and groups (units) -> shares of documents, summed by strata
    statistics  which of them hold more in errors than in comparable correct documents, by
                permutations and bootstrap; comparisons does so across models and within slices
    build       all of this -> the run's database
    database    relations, named queries, free SQL
    status      how far a run is; verify says whether it is what was planned, and mends it

`run` does all of it, `open` reads what it left, `sql` asks; none of them needs the others' process.
Importing clsight loads neither torch nor any of the above.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from clsight.errors import ClsightError, UsageError

if TYPE_CHECKING:
    from clsight.pipeline import run
    from clsight.run_folder import Run
    from clsight.run_folder import open_run as open

__version__ = "0.1.0"
__all__ = ["ClsightError", "Run", "UsageError", "open", "run"]

_LAZY = {"Run": ("run_folder", "Run"), "open": ("run_folder", "open_run"),
         "run": ("pipeline", "run")}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'clsight' has no attribute {name!r}")
    module, public = _LAZY[name]
    return getattr(import_module(f"clsight.{module}"), public)
