"""PyTorch: the reference. The only file of the runtime that imports torch, and only when it is chosen."""

import time
from pathlib import Path

from mtmamba.errors import MtmError
from mtmamba.metadata import ModelMetadata
from mtmamba.runtime.backends.base import Array, Backend

try:
    import torch

    from mtmamba.checkpoint import load_checkpoint
except ImportError as error:
    raise MtmError(
        f"backend torch: expected PyTorch and timm, found none or a broken one ({error}); install them with "
        "pip install 'mtmamba[model]', or use an exported .onnx file"
    ) from error


class TorchBackend(Backend):
    """A checkpoint (.pth, .pt, .tar) at `input_size` (default: the size it was trained for), batch 1, in float32, on
    CUDA where there is one."""

    name = "torch"

    def __init__(self, model: Path, input_size: tuple[int, int] | None = None, device: int = 0) -> None:
        self._device = torch.device("cuda", device) if torch.cuda.is_available() else torch.device("cpu")
        self._model = load_checkpoint(model).to(self._device).eval()
        config = self._model.config
        metadata = ModelMetadata(
            config=config,
            input_size=input_size or config.input_size,
            batch=1,
            versions={"torch": torch.__version__},
        )
        where = torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else "CPU"
        super().__init__(model, metadata, where)

    def _execute(self, images: Array) -> dict[str, Array]:
        # A reference in full FP32: cuDNN would round convolutions' inputs to TF32.
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            tensor = torch.from_numpy(images).to(self._device)
            self._synchronise()
            start = time.perf_counter()
            outputs = self._model(tensor)
            self._synchronise()
            self.engine_ms = (time.perf_counter() - start) * 1e3
            return {name: output.float().cpu().numpy() for name, output in outputs.items()}

    def _synchronise(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
