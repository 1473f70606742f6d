"""A learned tissue mask: an ONNX model run over the overview, window by window.

The model has one input, float32 [N, 3, H, W], RGB from 0 to 1 at `index.tissue.mpp`, and one output,
float32 [N, 1, H, W] or [N, H, W], the probability of tissue of each pixel. N and the sides may be free;
a side that is fixed is the side of the windows.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from eosin.errors import MissingDependency, UserError
from eosin.storage import read_object

Floats = npt.NDArray[np.float32]
_WINDOW_PX = 512
_SMALLEST_WINDOW_PX, _LARGEST_WINDOW_PX = 32, 4096
_CONTRACT = (
    "a tissue model takes float32 [N, 3, H, W] (RGB, 0 to 1) and gives float32 [N, 1, H, W] or [N, H, W]"
)


def load_model_bytes(uri: str) -> bytes:
    """The model at `uri`; empty where none is named. Raises `UserError` where there is none."""
    absent = f"no tissue model at {uri}"
    return read_object(uri, absent=absent, hint="check index.tissue.onnx") if uri else b""


def model_digest(data: bytes) -> str:
    """SHA-256 of a model; empty for none. Part of every row's version."""
    return hashlib.sha256(data).hexdigest() if data else ""


@dataclass(frozen=True)
class TissueModel:
    """A model that keeps the contract. Thread-safe: ONNX Runtime's `run` is."""

    uri: str
    session: Any
    input_name: str
    height_px: int
    width_px: int

    def probability(self, pixels: npt.NDArray[np.uint8]) -> Floats:
        """[h, w] of a picture [h, w, 3] RGB. Each window sees a margin around what is taken from it."""
        height, width = pixels.shape[:2]
        margin_y, margin_x = self.height_px // 8, self.width_px // 8
        step_y, step_x = self.height_px - 2 * margin_y, self.width_px - 2 * margin_x
        found = np.zeros((height, width), np.float32)
        for y, x, window in self._windows(pixels, (margin_y, margin_x), (step_y, step_x)):
            inside = self._run(window)[margin_y : margin_y + step_y, margin_x : margin_x + step_x]
            h, w = min(step_y, height - y), min(step_x, width - x)
            found[y : y + h, x : x + w] = inside[:h, :w]
        return found

    def _windows(
        self, pixels: npt.NDArray[np.uint8], margin: tuple[int, int], step: tuple[int, int]
    ) -> Iterator[tuple[int, int, npt.NDArray[np.uint8]]]:
        """Windows by the place their middle begins; white beyond the picture."""
        height, width = pixels.shape[:2]
        for y in range(0, height, step[0]):
            for x in range(0, width, step[1]):
                window = np.full((self.height_px, self.width_px, 3), 255, np.uint8)
                y0, x0 = max(0, y - margin[0]), max(0, x - margin[1])
                part = pixels[y0 : y - margin[0] + self.height_px, x0 : x - margin[1] + self.width_px]
                at_y, at_x = y0 - (y - margin[0]), x0 - (x - margin[1])
                window[at_y : at_y + part.shape[0], at_x : at_x + part.shape[1]] = part
                yield y, x, window

    def _run(self, window: npt.NDArray[np.uint8]) -> Floats:
        batch = np.ascontiguousarray(window.transpose(2, 0, 1)[None], np.float32) / np.float32(255)
        try:
            found = np.asarray(self.session.run(None, {self.input_name: batch})[0])
        except Exception as error:  # ONNX Runtime raises exceptions of its own for what a model does
            raise UserError(
                f"the tissue model {self.uri} fails on {list(batch.shape)}: {_one_line(error)}",
                hint=_CONTRACT,
            ) from error
        wanted = (self.height_px, self.width_px)
        if found.dtype != np.float32 or found.shape not in ((1, 1, *wanted), (1, *wanted)):
            raise UserError(
                f"the tissue model {self.uri} gives {found.dtype} {list(found.shape)} for an input of "
                f"{list(batch.shape)}",
                hint=_CONTRACT,
            )
        values: Floats = found.reshape(wanted)
        if not (np.isfinite(values).all() and values.min() >= -1e-3 and values.max() <= 1 + 1e-3):
            raise UserError(
                f"the tissue model {self.uri} gives {values.min():.4g} to {values.max():.4g}, which are no "
                "probabilities",
                hint="end the model with a sigmoid; " + _CONTRACT,
            )
        return values


def load_tissue_model(uri: str, data: bytes) -> TissueModel | None:
    """The model in `data`, tried on one white window; None where `data` is empty.

    Raises `UserError` naming the shape where it does not keep the contract, `MissingDependency` where
    ONNX Runtime is absent.
    """
    if not data:
        return None
    session = _session(uri, data)
    inputs = session.get_inputs()
    shape = list(inputs[0].shape) if inputs else []
    if len(inputs) != 1 or inputs[0].type != "tensor(float)" or len(shape) != 4 or shape[1] not in (3, None):
        named = "; ".join(f"{each.name}: {each.type} {list(each.shape)}" for each in inputs)
        raise UserError(f"the tissue model {uri} takes {named or 'no input'}", hint=_CONTRACT)
    model = TissueModel(uri, session, inputs[0].name, _side(uri, shape, 2), _side(uri, shape, 3))
    model.probability(np.full((model.height_px, model.width_px, 3), 255, np.uint8))
    return model


def _session(uri: str, data: bytes) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependency("onnxruntime", "onnx") from error
    options = onnxruntime.SessionOptions()
    # Several slides are in flight: threads of each would only wait for one another.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise UserError(
            f"{uri} is no model that ONNX Runtime can load: {_one_line(error)}", hint=_CONTRACT
        ) from error


def _side(uri: str, shape: list[Any], axis: int) -> int:
    """The side of the windows: the model's, or one of our own where it takes any."""
    side = shape[axis]
    if not isinstance(side, int):
        return _WINDOW_PX
    if not _SMALLEST_WINDOW_PX <= side <= _LARGEST_WINDOW_PX:
        raise UserError(
            f"the tissue model {uri} takes {shape}: sides must be free or of {_SMALLEST_WINDOW_PX} to "
            f"{_LARGEST_WINDOW_PX} px",
            hint=_CONTRACT,
        )
    return side


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
