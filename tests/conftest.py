"""What tests share: real data and models where they are, and small runs on the demo's models."""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from clsight import pipeline
from clsight.attention import prepare
from clsight.models import inspect, load

SHARED = Path(__file__).parents[2] / "shared"
DEMO = Path(pipeline.__file__).parent / "demo" / "models"
VALIDATED = {"sample": 12, "seed": 4, "steps": 20}
REAL_MODELS = ("bert-rt", "roberta-rt", "minilm-rt")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """What a test logged goes to another process, as UTF-8, which not every text here is."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode())
                       for name, text in report.sections]
    return report


def shared(*parts: str) -> Path:
    """A path in the folder of real data and models beside the project; skips where it is not."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"real data is not here: shared/{'/'.join(parts)}")
    return path


def real_reviews(n: int) -> pa.Table:
    """The first n // 2 negative and n // 2 positive unseen reviews."""
    table = pq.read_table(shared("data", "rotten_tomatoes", "unseen.parquet"))
    half = table.num_rows // 2
    return pa.concat_tables([table.slice(0, n // 2), table.slice(half, n // 2)])


def real_classifier(name: str, dtype: torch.dtype, layers: str = "all"):
    """A shared model prepared for extraction, and its plan."""
    plan = inspect(name, str(shared("models", name)), layers, [0, 1])
    return prepare(load(plan, dtype, "cpu")), plan


@pytest.fixture(scope="session")
def reviews(tmp_path_factory) -> Path:
    """600 generated reviews as Parquet."""
    from clsight import demo

    return demo.write_reviews(tmp_path_factory.mktemp("data") / "reviews", 600, 5)


@pytest.fixture(scope="session")
def small_run(tmp_path_factory, reviews) -> pipeline.Run:
    """A complete float32 run of the demo's models, all layers, over several shards."""
    return pipeline.run(
        str(reviews), text="text", label="label", models=demo_models(), dtype="float32",
        output=tmp_path_factory.mktemp("runs") / "small", layers="all", shard_size=256,
        options=pipeline.Options(min_documents=20),
    )


@pytest.fixture(scope="session")
def validated(tmp_path_factory, small_run) -> Path:
    """The folder of the same run, its scores validated on `VALIDATED`."""
    from clsight.validate import validate

    folder = shutil.copytree(small_run.folder, tmp_path_factory.mktemp("validated") / "run")
    validate(folder, **VALIDATED)
    return folder


def demo_models() -> dict[str, str]:
    """The package's own classifiers."""
    return {"bert": str(DEMO / "bert"), "roberta": str(DEMO / "roberta")}
