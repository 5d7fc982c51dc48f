"""How much each head of the last layer counts for a classifier's decision, from its weights alone.

The advice that clsight starts from: take the output neuron's weights, infer from them how much each
head counts, and average the heads with those weights.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from clsight import tables

if TYPE_CHECKING:
    from clsight.models import Classifier

WEIGHTINGS = ("uniform", "classifier", "projected")


def head_weights(classifier: "Classifier") -> npt.NDArray[np.float64]:
    """Weights [weighting, class, runner-up, head], each summing to 1 over heads.

    With u = (w_class - w_runner_up) W_dense, the effective weights of the class neuron against the
    runner-up's, linear in the [CLS] embedding (the activation between the two layers is left out):

    - uniform: 1 / heads;
    - classifier: the L1 norm of head h's slice of u, as if W_o were not there;
    - projected: the L1 norm of head h's slice of u W_o.

    A class against itself has the uniform weights, and so has every class where it is not known
    what the head is made of (families whose `dense` is None). A single logit is class 1's; class 0
    has the weights 0.
    """
    model, family = classifier.model, classifier.family
    n_heads = int(model.config.num_attention_heads)
    n_classes = max(2, int(model.config.num_labels))
    uniform = np.full((n_classes, n_classes, n_heads), 1 / n_heads)
    if family.dense is None or family.out is None:
        return np.stack([uniform] * len(WEIGHTINGS))
    classes = _weight(model, family.out)
    if len(classes) == 1:
        classes = np.concatenate([np.zeros_like(classes), classes])
    difference = classes[:, None] - classes[None, :]
    effective = difference @ _weight(model, family.dense)
    projected = effective @ classifier.output_projection.double().cpu().numpy()
    return np.stack([uniform, *(_l1_by_head(u, n_heads) for u in (effective, projected))])


def table(name: str, weights: npt.NDArray[np.float64]) -> pa.Table:
    """The weights of model `name` as `tables.head_weights`, without a class against itself."""
    index = np.indices(weights.shape).reshape(4, -1)
    index = index[:, index[1] != index[2]]
    columns = {
        "model": pa.repeat(name, index.shape[1]),
        "weighting": pa.array(WEIGHTINGS).take(pa.array(index[0])),
        "class": index[1],
        "runner_up": index[2],
        "head": index[3],
        "weight": weights[tuple(index)],
    }
    return pa.table(columns).cast(tables.head_weights())


def from_table(stored: pa.Table) -> npt.NDArray[np.float64]:
    """The inverse of `table`: weights [weighting, class, runner-up, head]."""
    index = [
        np.array([WEIGHTINGS.index(name) for name in stored["weighting"].to_pylist()]),
        *(stored[column].to_numpy() for column in ("class", "runner_up", "head")),
    ]
    shape = [int(values.max()) + 1 for values in index]
    weights = np.full(shape, 1 / shape[-1])
    weights[tuple(index)] = stored["weight"].to_numpy()
    return weights


def _weight(model: Any, module: str) -> npt.NDArray[np.float64]:
    weight: npt.NDArray[np.float64] = model.get_submodule(module).weight.double().cpu().numpy()
    return weight


def _l1_by_head(effective: npt.NDArray[np.float64], n_heads: int) -> npt.NDArray[np.float64]:
    """L1 norms [.., heads] of the heads' slices of vectors [.., heads * size], summing to 1."""
    slices = np.abs(effective).reshape(*effective.shape[:-1], n_heads, -1)
    norms: npt.NDArray[np.float64] = slices.sum(-1)
    total = norms.sum(-1, keepdims=True)
    return np.where(total > 0, norms / np.where(total > 0, total, 1), 1 / n_heads)
