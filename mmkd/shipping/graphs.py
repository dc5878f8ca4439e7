"""Graphs: a student's towers [B, L] -> [B, D] -> lists [B, k] to ONNX, and held to torch.

``encoder.onnx`` is the towers' query, ``topk.onnx`` goes on to the best items. What a service would
have to know of the network is in the graphs: too long a history is cut there, seen items and those
that are not allowed are left out there.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mmkd.errors import MmkdError, RunError
from mmkd.student import Retrieval

if TYPE_CHECKING:
    from onnx import ModelProto
    from onnxruntime import InferenceSession

OPSET = 18
_EXTERNAL_BYTES = 1 << 30  # from here on weights lie beside the graph: protobuf ends at 2 GiB
_SMALL_BYTES = 1 << 10  # below it they stay in the graph


def encoder_graph(towers: Retrieval) -> "ModelProto":
    """``history`` [batch, length] int64 to ``query`` [batch, D] float32.

    Raises:
        MmkdError: ``mmkd[onnx]`` is not installed.
        RunError: The backbone does something that ONNX has no word for.
    """
    onnx = _onnx()
    # of one or two positions torch would make a constant of the length, so they are always all
    fixed = towers.length is not None and towers.length < 3
    length = cast(int, towers.length) if fixed else min(towers.length or 8, 8)
    example = torch.zeros(2, length, dtype=torch.int64)
    example[:, -1] = 1
    sizes: dict[int, Any] = {0: torch.export.Dim("batch", min=1)}
    if not fixed:
        sizes[1] = torch.export.Dim("length", min=1, max=towers.length)
    body = _exported(towers, example, {"history": sizes}, "latest", "query")
    front = _front(towers.length, padded=fixed)
    whole: ModelProto = onnx.compose.merge_models(front, body, io_map=[("latest", "latest")])
    return whole


def topk_graph(towers: Retrieval, encoder: "ModelProto") -> "ModelProto":
    """What `encoder_graph` gave and the rest: to ``items`` and ``scores``, both [batch, k].

    Inputs beside ``history``: ``seen`` [batch, any] int64, rows to leave out, 0 for none;
    ``allowed`` [I+1] bool by row; ``k`` [1] int64, 1 to I+1. A list that ends early is filled with
    item 0 and score -inf.
    """
    onnx = _onnx()
    scores = _products(towers.vectors) if towers.dot else _mixture(towers)
    whole = onnx.compose.merge_models(encoder, scores, io_map=[("query", "query")])
    tail = _tail(towers.item_count)
    joint = [("all_scores", "all_scores")]
    found: ModelProto = onnx.compose.merge_models(whole, tail, io_map=joint)
    return found


def session(model: "ModelProto | Path", *, threads: int) -> "InferenceSession":
    """A graph, or a file of one, as onnxruntime runs it on the CPU."""
    runtime = _runtime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    found: InferenceSession = runtime.InferenceSession(
        source, options, providers=["CPUExecutionProvider"]
    )
    return found


def run(graph: "InferenceSession", **inputs: NDArray[Any]) -> list[NDArray[Any]]:
    """A graph's outputs."""
    return [np.asarray(found) for found in graph.run(None, inputs)]


def save_graph(model: "ModelProto", path: Path, *, external_bytes: int = _EXTERNAL_BYTES) -> None:
    """Write a graph; large weights go to a file of their own beside it, named ``path``.data."""
    onnx = _onnx()
    size = sum(len(weight.raw_data) for weight in model.graph.initializer)
    onnx.save_model(
        model,
        str(path),
        save_as_external_data=size >= external_bytes,
        location=f"{path.name}.data",
        size_threshold=_SMALL_BYTES,
    )
    onnx.checker.check_model(str(path))


def shapes(graph: "InferenceSession") -> dict[str, dict[str, Any]]:
    """Inputs and outputs of a graph by name: their types, and shapes with names for what varies."""
    return {
        kind: {one.name: {"type": one.type, "shape": list(one.shape)} for one in found}
        for kind, found in (("inputs", graph.get_inputs()), ("outputs", graph.get_outputs()))
    }


def versions() -> dict[str, str]:
    """Of what makes and runs graphs."""
    return {"onnx": _onnx().__version__, "onnxruntime": _runtime().__version__}


class _Scores(nn.Module):
    """Queries to the scores [B, I+1] of all rows, padding's -inf."""

    def __init__(self, towers: Retrieval) -> None:
        super().__init__()
        self.towers = towers

    def forward(self, query: Tensor) -> Tensor:
        return nn.functional.pad(self.towers.scores(query), (1, 0), value=-float("inf"))


def _mixture(towers: Retrieval) -> "ModelProto":
    """``query`` to ``all_scores`` of networks whose probabilities are added."""
    example = torch.zeros(2, towers.vectors.shape[1])
    sizes = {"query": {0: torch.export.Dim("batch", min=1)}}
    model = _exported(_Scores(towers), example, sizes, "query", "all_scores")
    prefixed = _onnx().compose.add_prefix(
        model, "scores_", rename_inputs=False, rename_outputs=False
    )
    return cast("ModelProto", prefixed)


def _products(vectors: Tensor) -> "ModelProto":
    """``query`` to ``all_scores``, its products with the vectors; padding's -inf."""
    onnx = _onnx()
    items, width = vectors.shape
    model = _parsed(
        f"""products (float[batch, {width}] query) => (float[batch, {items + 1}] all_scores) {{
            products = Gemm<transB = 1>(query, vectors)
            one_before = Constant<value_ints = [0, 1, 0, 0]>()
            no_score = Constant<value_float = -inf>()
            all_scores = Pad(products, one_before, no_score)
        }}"""
    )
    weight = onnx.numpy_helper.from_array(vectors.numpy(), "vectors")
    model.graph.initializer.append(weight)
    return model


def _exported(
    module: nn.Module,
    example: Tensor,
    sizes: dict[str, Any],
    given: str,
    wanted: str,
) -> "ModelProto":
    try:
        with _quietly(), torch.no_grad():
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                input_names=[given],
                output_names=[wanted],
                dynamic_shapes=sizes,
                opset_version=OPSET,
                verbose=False,
            )
    # torch.export and the exporter each raise their own kinds, of any operator that they lack
    except Exception as error:
        told = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise RunError(
            f"the network cannot be written as ONNX ({told[:200]}); a backbone of mmkd's own can, "
            "or leave out --onnx"
        ) from error
    assert program is not None
    return program.model_proto


def _front(length: int | None, *, padded: bool) -> "ModelProto":
    """Histories to their latest items; padded to all that are read where a graph has fixed ones."""
    last = -(length or 2**31)
    steps = "whole = Identity(history)"
    if padded:
        steps = f"more = Constant<value_ints = [0, {length}, 0, 0]>()\n whole = Pad(history, more)"
    return _parsed(
        f"""front (int64[batch, length] history) => (int64[batch, latest_length] latest) {{
            {steps}
            start = Constant<value_ints = [{last}]>()
            stop = Constant<value_ints = [{2**62}]>()
            axis = Constant<value_ints = [1]>()
            latest = Slice(whole, start, stop, axis)
        }}"""
    )


def _tail(items: int) -> "ModelProto":
    """Scores of all rows to the best of those that are open."""
    return _parsed(
        f"""tail (
            float[batch, {items + 1}] all_scores,
            int64[batch, seen_count] seen, bool[{items + 1}] allowed, int64[1] k
        ) => (int64[batch, list] items, float[batch, list] scores) {{
            none = Constant<value_float = -inf>()
            zero = Constant<value_int = 0>()
            may = Where(allowed, all_scores, none)
            many = Shape(seen)
            barred = Expand(none, many)
            open = ScatterElements<axis = 1>(may, seen, barred)
            scores, place = TopK<axis = 1, largest = 1, sorted = 1>(open, k)
            ended = Equal(scores, none)
            items = Where(ended, zero, place)
        }}"""
    )


def _parsed(text: str) -> "ModelProto":
    onnx = _onnx()
    graph = onnx.parser.parse_graph(text)
    return cast(
        "ModelProto",
        onnx.helper.make_model(
            graph,
            ir_version=10,
            opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ),
    )


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without what the exporter tells of its own steps and of versions that do not matter here."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _onnx() -> Any:
    try:
        import onnx
        import onnx.compose
        import onnx.parser
        import onnxscript  # noqa: F401 - what torch.onnx writes graphs with
    except ImportError:
        raise MmkdError(
            "onnx or onnxscript is not installed; run: pip install 'mmkd[onnx]'"
        ) from None
    return onnx


def _runtime() -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise MmkdError("onnxruntime is not installed; run: pip install 'mmkd[onnx]'") from None
    return onnxruntime
