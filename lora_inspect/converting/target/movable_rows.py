"""Whether rows can stand where a layer of another layout has them, told by shapes."""

from lora_inspect.algorithms.record import Algorithm, Shapes
from lora_inspect.converting.target.target_layout import Destination
from lora_inspect.maths.dora import INPUT


def are_movable(algorithm: Algorithm, shapes: Shapes) -> bool:
    """Whether each factor has the rows of the change, or is what one with rows is multiplied by, without a kernel."""
    products = {role: other for role, other in algorithm.rows.items() if other}
    has_kernel = any(len(shapes[role]) > 2 for pair in products.items() for role in pair if role in shapes)
    return not has_kernel and shapes.keys() <= algorithm.rows.keys() | set(products.values())


def are_magnitudes_movable(destination: Destination) -> bool:
    """Whether the magnitudes of its sources are one of its layer: of outputs, of all rows, spelled alike.

    One of inputs is over all rows, so that only a layer of the same rows in another order keeps it.
    """
    rows = destination.rows
    own = [(c, source.runs) for source in destination.sources for c in source.module.contributions]
    bearing = [(c.magnitude, c.shape[0], runs) for c, runs in own if c.magnitude]
    if rows is None or not bearing:
        return True
    if any(magnitude.axis == INPUT for magnitude, _, _ in bearing):
        return len(bearing) == 1 and bearing[0][1] == rows
    covered = sum(runs.rows if runs else rows for _, _, runs in bearing)
    is_alike = len({magnitude.spelling for magnitude, _, _ in bearing}) == 1
    return is_alike and covered == rows and len(bearing) == sum(c.algorithm.decomposes for c, _ in own)
