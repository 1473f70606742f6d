"""Tiny ONNX models, written field by field: protocol buffers are simple, and the `onnx` package is large."""

import struct
from collections.abc import Sequence

FLOAT, UINT8 = 1, 2
Side = int | str


def color_model(
    weights: Sequence[float], bias: float, *, shape: Sequence[Side] = ("n", 3, "h", "w"),
    sigmoid: bool = True, kind: int = FLOAT, stride: int = 1, channels_out: int = 1,
) -> bytes:  # fmt: skip
    """Sigmoid of a weighted sum of each pixel's channels (a 1 × 1 convolution)."""
    num_in = len(weights)
    nodes = [_node("Conv", ["x", "w", "b"], ["y"], {"kernel_shape": [1, 1], "strides": [stride, stride]})]
    if sigmoid:
        nodes.append(_node("Sigmoid", ["y"], ["p"], {}))
    out = "p" if sigmoid else "y"
    values = struct.pack(f"<{num_in * channels_out}f", *[*weights] * channels_out)
    graph = b"".join(
        [
            *(_bytes(1, node) for node in nodes),
            _text(2, "g"),
            _bytes(5, _tensor("w", [channels_out, num_in, 1, 1], values)),
            _bytes(5, _tensor("b", [channels_out], struct.pack(f"<{channels_out}f", *[bias] * channels_out))),
            _bytes(11, _value("x", shape, kind)),
            _bytes(12, _value(out, ("n", channels_out, "oh", "ow"), FLOAT)),
        ]
    )
    return _number(1, 8) + _bytes(8, _text(1, "") + _number(2, 13)) + _bytes(7, graph)


def _node(
    operator: str, inputs: Sequence[str], outputs: Sequence[str], attributes: dict[str, list[int]]
) -> bytes:
    data = b"".join(_text(1, name) for name in inputs) + b"".join(_text(2, name) for name in outputs)
    data += _text(4, operator)
    for name, values in attributes.items():
        attribute = _text(1, name) + b"".join(_number(8, value) for value in values) + _number(20, 7)
        data += _bytes(5, attribute)
    return data


def _tensor(name: str, dims: Sequence[int], raw: bytes) -> bytes:
    return b"".join(_number(1, each) for each in dims) + _number(2, FLOAT) + _text(8, name) + _bytes(9, raw)


def _value(name: str, shape: Sequence[Side], kind: int) -> bytes:
    dims = b"".join(
        _bytes(1, _number(1, each) if isinstance(each, int) else _text(2, each)) for each in shape
    )
    return _text(1, name) + _bytes(2, _bytes(1, _number(1, kind) + _bytes(2, dims)))


def _varint(value: int) -> bytes:
    data = bytearray()
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*data, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _text(field: int, text: str) -> bytes:
    return _bytes(field, text.encode())
