"""Shows range estimators what BatchNorm tells of every activation, in place of images."""

from collections.abc import Mapping

from emptyset.errors import UnsupportedModelError
from emptyset.graph.activation_statistics import activation_statistics
from emptyset.graph.operators import name_of
from emptyset.graph.student import Student
from emptyset.ranges.clipped_normal import ClippedNormal
from emptyset.ranges.estimator import RangeEstimator
from emptyset.ranges.min_max import MinMaxEstimator

# Quantiles per channel: they reach to 3.3 deviations, which is where a search looks.
POINTS = 1024


def require_batch_norm(student: Student, method: str) -> None:
    """Refuse a network of which nothing is known.

    Raises:
        UnsupportedModelError: If the network has no BatchNorm with stored statistics.
    """
    if not student.teacher.stored_batch_norms():
        raise UnsupportedModelError(
            f"{method}: without images, only BatchNorm tells what the activations look like, and "
            f"{student.teacher.name} has no BatchNorm2d layer with stored statistics. Give a few "
            "images: --images DIR."
        )


def observe_statistics(
    student: Student, estimators: Mapping[str, RangeEstimator], deviations: float
) -> None:
    """Let every estimator see its tensor as the BatchNorms describe it.

    An estimator of minimum and maximum sees ``mean ∓ deviations · deviation`` of every channel,
    clipped where the network clips; every other one sees the quantiles of every channel.

    Args:
        student: Prepared.
        estimators: By name of the quantizer.
        deviations: How many standard deviations count.

    Raises:
        UnsupportedModelError: If a tensor is not known; the message names what it is behind.
    """
    require_batch_norm(student, "calibrate")
    known = activation_statistics(student)
    names = {id(quantizer): name for name, quantizer in student.quantizers.items()}
    unknown: dict[str, str] = {}
    for node in student.program.graph.nodes:
        if node.op != "call_module":
            continue
        name = names.get(id(student.program.get_submodule(str(node.target))), "")
        if name not in estimators:
            continue
        if node.args[0] in known:
            _show(estimators[name], known[node.args[0]], deviations)
        else:
            unknown[name] = name_of(node.args[0]) or str(node.args[0])
    if unknown:
        name, operator = next(iter(unknown.items()))
        raise UnsupportedModelError(
            f"calibrate: BatchNorm does not tell the range of {len(unknown)} of {len(estimators)} "
            f"tensors (first: '{name}', which '{operator}' computes). Give a few images: "
            "--images DIR."
        )


def _show(estimator: RangeEstimator, variable: ClippedNormal, deviations: float) -> None:
    if isinstance(estimator, MinMaxEstimator):
        for end in variable.reach(deviations):
            estimator.update(end.float())
    else:
        estimator.update(variable.points(POINTS).float())
