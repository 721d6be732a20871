"""Model configurations and presets. Imports no torch, so that runtimes can read a configuration."""

from dataclasses import asdict, dataclass, fields
from typing import Any

from mtmamba.errors import MtmError
from mtmamba.tasks import Task, dataset, tasks_of

VARIANTS = ("mtmamba", "mtmamba++")
"""MTMamba (ECCV 2024) and MTMamba++ (TPAMI 2025)."""

CROSS_TASK = ("learned", "own", "shared", "none")
"""What the third block of a decoder stage does. learned: the paper's cross-task block. own, shared: MTMamba's with its gate
fixed to 0 (the task's own feature alone) or 1 (the shared feature alone), paper Table 6. none: no such block (STM only)."""


LARGEST = {
    "embed_dim": 1024,
    "depths": 64,
    "num_heads": 256,
    "window_size": 64,
    "input_size": 16384,
    "output_scale": 8,
    "d_state": 64,
    "expand": 8,
}
"""Largest value of every whole number of a configuration, far beyond what anybody trains."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything that decides an MTMamba model's tensors and its numbers. Travels inside checkpoints and exports.

    dataset: which dataset's tasks (`mtmamba.tasks.DATASETS`); tasks: names of them, in the order of the concatenation.
    embed_dim: C, channels of the finest encoder level. depths, num_heads, window_size: Swin's, four levels.
    d_state: N, state size of the scan. expand: inner channels D = expand * C. drop_path_encoder, drop_path_decoder:
    largest stochastic-depth rates. input_size: (height, width) in pixels the model is trained for; others work too.
    variant: one of `VARIANTS`. cross_task: one of `CROSS_TASK`.
    """

    dataset: str
    tasks: tuple[str, ...]
    embed_dim: int
    depths: tuple[int, int, int, int]
    num_heads: tuple[int, int, int, int]
    window_size: int
    input_size: tuple[int, int]
    output_scale: int = 1
    d_state: int = 16
    expand: int = 2
    drop_path_encoder: float = 0.3
    drop_path_decoder: float = 0.2
    variant: str = "mtmamba"
    cross_task: str = "learned"

    def __post_init__(self) -> None:
        if not isinstance(self.tasks, tuple):
            raise MtmError(f"tasks must be a list of names, found {self.tasks!r}")
        self.task_list  # noqa: B018  raises for a dataset or a task that does not exist
        self._check_numbers()
        if len(self.depths) != 4 or len(self.num_heads) != 4:
            raise MtmError(f"expected four depths and four num_heads, found {self.depths} and {self.num_heads}")
        for level, heads in enumerate(self.num_heads):
            if heads < 1 or (self.embed_dim << level) % heads:
                raise MtmError(f"level {level}: {self.embed_dim << level} channels cannot be split over {heads} heads")
        if len(self.input_size) != 2:
            raise MtmError(f"input_size must be (height, width) in pixels, found {self.input_size}")
        if self.variant not in VARIANTS:
            raise MtmError(f"unknown variant {self.variant!r}; known: {', '.join(VARIANTS)}")
        modes = CROSS_TASK if self.variant == "mtmamba" else ("learned", "none")
        if self.cross_task not in modes:
            raise MtmError(
                f"cross_task {self.cross_task!r} is none of {', '.join(modes)}, which the variant {self.variant} knows"
            )

    def _check_numbers(self) -> None:
        """Types and ranges: a configuration may come from a damaged file, and must not make a model of any size."""
        for name, most in LARGEST.items():
            value = getattr(self, name)
            numbers = value if isinstance(value, tuple) else (value,)
            for number in numbers:
                if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= most:
                    raise MtmError(f"{name} must be whole and from 1 to {most}, found {value!r}")
        for name in ("drop_path_encoder", "drop_path_decoder"):
            rate = getattr(self, name)
            if not isinstance(rate, (int, float)) or not 0 <= rate < 1:
                raise MtmError(f"{name} must be at least 0 and below 1, found {rate!r}")

    @property
    def task_list(self) -> tuple[Task, ...]:
        """The registry's Task of every name in `tasks`, in order."""
        return tasks_of(self.dataset, self.tasks)

    @property
    def level_channels(self) -> tuple[int, int, int, int]:
        """Channels of the encoder levels at 1/4, 1/8, 1/16, 1/32: C, 2C, 4C, 8C."""
        C = self.embed_dim
        return C, 2 * C, 4 * C, 8 * C

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict; `from_dict` reads it back."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ModelConfig":
        """Read `to_dict`'s dict. Raises MtmError naming unknown or missing keys and wrong types."""
        if not isinstance(values, dict):
            raise MtmError(f"expected a model configuration (a dict), found {type(values).__name__}")
        known = {field.name: field for field in fields(cls)}
        unknown = sorted(str(key) for key in set(values) - set(known))
        if unknown:
            raise MtmError(
                f"unknown keys in the model configuration: {', '.join(unknown)}; this version of mtmamba knows "
                f"{', '.join(known)}"
            )
        given: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        try:
            return cls(**given)
        except TypeError as error:
            raise MtmError(f"incomplete or ill-typed model configuration: {error}") from error


ENCODERS: dict[str, dict[str, Any]] = {
    # About a million parameters with its decoder: demos and tests.
    "nano": {"embed_dim": 12, "expand": 1, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 8), "window_size": 7},
    # Liu et al., "Swin Transformer", ICCV 2021, section 3.3; window 12 for Base and Large pretrained at 384.
    "swin-tiny": {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24), "window_size": 7},
    "swin-small": {"embed_dim": 96, "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24), "window_size": 7},
    "swin-base": {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32), "window_size": 12},
    "swin-large": {"embed_dim": 192, "depths": (2, 2, 18, 2), "num_heads": (6, 12, 24, 48), "window_size": 12},
}


def preset(
    dataset_name: str,
    encoder: str = "swin-large",
    tasks: tuple[str, ...] | None = None,
    variant: str = "mtmamba",
    cross_task: str = "learned",
) -> ModelConfig:
    """The configuration for a dataset (`nyudv2`, `pascal-context`, `cityscapes`, `synthetic`) and an encoder
    (`nano`, `swin-tiny`, `swin-small`, `swin-base`, `swin-large`), with all of the dataset's tasks unless `tasks` names some.
    variant, cross_task: of `VARIANTS` and `CROSS_TASK`.

    Raises MtmError for a name that does not exist.
    """
    if encoder not in ENCODERS:
        raise MtmError(f"unknown encoder {encoder!r}; known: {', '.join(ENCODERS)}")
    data = dataset(dataset_name)
    names = tuple(task.name for task in tasks_of(dataset_name, tasks))
    # Small models trained from scratch are hurt by stochastic depth.
    rates: dict[str, Any] = {"drop_path_encoder": 0.0, "drop_path_decoder": 0.0} if encoder == "nano" else {}
    return ModelConfig(
        dataset=dataset_name,
        tasks=names,
        input_size=data.input_size,
        output_scale=data.output_scale,
        variant=variant,
        cross_task=cross_task,
        **ENCODERS[encoder],
        **rates,
    )
