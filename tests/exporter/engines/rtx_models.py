"""Small real ONNX models for the TensorRT-RTX tests."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

WIDTH, HEADS, TOKENS = 128, 2, 64
_RNG = np.random.default_rng(0)


def _weights(*shape: int) -> np.ndarray:
    return (_RNG.standard_normal(shape) * 0.05).astype(np.float16)


def write(path: Path, graph: str, tensors: Mapping[str, np.ndarray] = {}, *, opset: int = 20) -> Path:
    """Writes a model given as ONNX text, with initializers."""
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": {opset}, "nobody": 1]>\n{textwrap.dedent(graph)}')
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in tensors.items())
    onnx.save(model, path)
    return path


def _linear(name: str, x: str, y: str, *, quantized: str | None) -> str:
    """A MatMul with bias; `quantized` names the activation scale of an INT8 spelling (weight int8 with DQ)."""
    if quantized is None:
        return f"{y}_0 = MatMul({x}, {name}_w)\n{y} = Add({y}_0, {name}_b)\n"
    return f"""{y}_q = QuantizeLinear({x}, {quantized}, point)
        {y}_x = DequantizeLinear({y}_q, {quantized}, point)
        {y}_w = DequantizeLinear<axis=1>({name}_i, {name}_s, {name}_z)
        {y}_0 = MatMul({y}_x, {y}_w)
        {y} = Add({y}_0, {name}_b)
        """


def block(path: Path, *, batch: str = "2", quantized: str | None = None) -> Path:
    """A transformer block in fp16: LayerNorm, q/k/v, attention, projection, LayerNorm, MLP with GELU; 6 linears.

    Args:
        path: where to write it.
        batch: a number, or a name for a free size.
        quantized: None for fp16; "constant" for INT8 with constant scales; "input" for the same with the scale as an input.
    """
    scale = {None: None, "constant": "scale", "input": "given"}[quantized]
    tensors = {
        "one": np.ones(WIDTH, np.float16),
        "nil": np.zeros(WIDTH, np.float16),
        "heads": np.array([0, TOKENS, HEADS, WIDTH // HEADS]),
        "flat": np.array([0, TOKENS, WIDTH]),
        "root": np.array((WIDTH // HEADS) ** -0.25, np.float16),
        "scale": np.array(0.02, np.float16),
        "point": np.array(0, np.int8),
    }
    for name, wide, tall in [("q", 1, 1), ("k", 1, 1), ("v", 1, 1), ("o", 1, 1), ("up", 1, 4), ("down", 4, 1)]:
        weight = _weights(wide * WIDTH, tall * WIDTH)
        step = (np.abs(weight).max(0) / 127).astype(np.float16)
        tensors |= {f"{name}_b": _weights(tall * WIDTH)}
        if scale is None:
            tensors |= {f"{name}_w": weight}
        else:
            quantum = np.clip(np.round(weight / step), -127, 127).astype(np.int8)
            tensors |= {f"{name}_i": quantum, f"{name}_s": step, f"{name}_z": np.zeros(tall * WIDTH, np.int8)}

    def linear(name: str, x: str, y: str) -> str:
        return _linear(name, x, y, quantized=scale)

    inputs = f"float16[{batch},{TOKENS},{WIDTH}] x" + (", float16 given" if quantized == "input" else "")
    parts = "".join(
        f"{linear(n, 'normed', f'{n}1')}{n}2 = Reshape<allowzero=0>({n}1, heads)\n{n}3 = Transpose<perm=[{perm}]>({n}2)\n"
        for n, perm in [("q", "0,2,1,3"), ("k", "0,2,3,1"), ("v", "0,2,1,3")]
    )
    graph = f"""block ({inputs}) => (float16[{batch},{TOKENS},{WIDTH}] y) {{
        normed = LayerNormalization<axis=-1>(x, one, nil)
        {parts}
        q4 = Mul(q3, root)
        k4 = Mul(k3, root)
        scores = MatMul(q4, k4)
        weights = Softmax<axis=-1>(scores)
        mixed = MatMul(weights, v3)
        mixed1 = Transpose<perm=[0,2,1,3]>(mixed)
        mixed2 = Reshape(mixed1, flat)
        {linear("o", "mixed2", "projected")}
        x1 = Add(x, projected)
        normed1 = LayerNormalization<axis=-1>(x1, one, nil)
        {linear("up", "normed1", "wide")}
        active = Gelu<approximate="tanh">(wide)
        {linear("down", "active", "narrow")}
        y = Add(x1, narrow)
    }}"""
    used = {name: value for name, value in tensors.items() if name in graph}
    return write(path, graph, used)
