"""TensorRT for RTX compiles an engine's kernels for the GPU at hand when it is first run. What it compiled is kept in the
cache folder, so that the second run starts at once. The full TensorRT has done so while building."""

import logging
import re
from pathlib import Path
from typing import Any

from mtmamba.cache import cache_dir
from mtmamba.errors import MtmError
from mtmamba.files import atomic_path
from mtmamba.runtime.trt import TensorRT

logger = logging.getLogger(__name__)


class Kernels:
    """Makes an engine's execution contexts."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def context(self) -> Any:
        """A new execution context; None where TensorRT cannot make one."""
        return self._engine.create_execution_context()

    def close(self) -> None:
        """Keep what was compiled, and let go of the engine."""
        self._engine = None


class CachedKernels(Kernels):
    """With TensorRT for RTX's runtime cache, in the file `path`. A file that does not fit this GPU or driver is made again."""

    def __init__(self, engine: Any, path: Path) -> None:
        super().__init__(engine)
        self._path = path
        self._config = engine.create_runtime_config()
        self._cache = self._config.create_runtime_cache()
        self._known = path.read_bytes() if path.is_file() else b""
        if self._known and not self._cache.deserialize(self._known):
            logger.info("%s: not for this GPU and driver, or damaged; it is made again", path)
        self._config.set_runtime_cache(self._cache)

    def context(self) -> Any:
        return self._engine.create_execution_context(self._config)

    def close(self) -> None:
        if self._engine is None:
            return
        compiled = bytes(self._cache.serialize())
        self._cache = self._config = None
        super().close()
        if compiled != self._known:
            try:
                with atomic_path(self._path) as temporary:
                    temporary.write_bytes(compiled)
            except MtmError as error:  # a run that went well does not fail for it
                logger.info("the compiled kernels are not kept: %s", error)


def open_kernels(trt: TensorRT, engine: Any, engine_sha256: str, device: str) -> Kernels:
    """For an engine on a GPU of that name."""
    if trt.flavour != "tensorrt-rtx" or not hasattr(engine, "create_runtime_config"):
        return Kernels(engine)
    name = re.sub(r"[^A-Za-z0-9.]+", "-", f"{engine_sha256[:32]} {trt.version} {device}")
    return CachedKernels(engine, cache_dir("rtx-kernels") / f"{name}.bin")
