"""A small ONNX file with the inputs and the output of CosyVoice's published tokenizer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from cslm.tokenizer.cosyvoice import FILE

REACH = 20
"""Units to either side that the network hears."""


def network(
    folder: Path,
    batch: int | str = 1,
    strides: tuple[int, int] = (2, 2),
    units: int = 4096,
    bins: int = 128,
    masked: bool = True,
    reach: int = REACH,
) -> Path:
    """Write a local network into `folder`: masked convolutions, and the code that is most alike.

    As in the published file it subsamples by two convolutions of three frames, and gives (1, batch, time).
    """
    rng = np.random.default_rng(1)
    codebook = rng.normal(size=(units, 8, 1))
    constants = {
        "first": rng.normal(size=(8, bins, 3)).astype(np.float32) / 20,
        "second": rng.normal(size=(8, 8, 3)).astype(np.float32),
        "bias": rng.normal(size=8).astype(np.float32),
        "context": rng.normal(size=(8, 1, 2 * reach + 1)).astype(np.float32),
        "codebook": (codebook / np.linalg.norm(codebook, axis=1, keepdims=True)).astype(np.float32),
        **{name: np.array(value, np.int64) for name, value in (("0", 0), ("1", 1), ("2", 2))},
        **{name: np.array(value, np.int64) for name, value in (("[0]", [0]), ("[1, 2]", [1, 2]))},
    }
    nodes = [helper.make_node("Cast", ["feats_length"], ["length0"], to=TensorProto.INT64)]

    def node(kind: str, inputs: list[str], output: str, **attributes: object) -> None:
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))

    def mask(x: str, level: int) -> str:
        """Zero what lies behind the length."""
        if not masked:
            return x
        node("Shape", [x], f"shape{level}")
        node("Gather", [f"shape{level}", "2"], f"time{level}")
        node("Range", ["0", f"time{level}", "1"], f"at{level}")
        node("Unsqueeze", [f"length{level}", "[1, 2]"], f"column{level}")
        node("Less", [f"at{level}", f"column{level}"], f"inside{level}")
        node("Cast", [f"inside{level}"], f"mask{level}", to=TensorProto.FLOAT)
        node("Mul", [x, f"mask{level}"], f"masked{level}")
        return f"masked{level}"

    def subsample(x: str, kernel: str, level: int) -> str:
        stride = strides[level]
        node("Conv", [mask(x, level), kernel, "bias"], f"conv{level}", pads=[1, 1], strides=[stride])
        node("Tanh", [f"conv{level}"], f"tanh{level}")
        if stride == 2:
            node("Add", [f"length{level}", "1"], f"more{level}")
            node("Div", [f"more{level}", "2"], f"length{level + 1}")
        else:
            node("Identity", [f"length{level}"], f"length{level + 1}")
        return f"tanh{level}"

    x = subsample(subsample("feats", "first", 0), "second", 1)
    node("Conv", [mask(x, 2), "context"], "state", pads=[reach, reach], group=8)
    node("Conv", ["state", "codebook"], "scores")
    node("ArgMax", ["scores"], "best", axis=1, keepdims=0)
    node("Unsqueeze", ["best", "[0]"], "indices")
    graph = helper.make_graph(
        nodes,
        "speech_tokenizer",
        [
            helper.make_tensor_value_info("feats", TensorProto.FLOAT, [batch, bins, "time"]),
            helper.make_tensor_value_info("feats_length", TensorProto.INT32, [batch]),
        ],
        [helper.make_tensor_value_info("indices", TensorProto.INT64, [1, batch, "units"])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / FILE)
    return folder
