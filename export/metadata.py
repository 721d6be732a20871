"""Our metadata inside an ONNX file: one JSON text under one key of `metadata_props`. Needs onnx, not torch."""

from onnx import ModelProto, helper

from mtmamba.metadata import METADATA_KEY, ModelMetadata


def read_metadata(model: ModelProto, source: str) -> ModelMetadata:
    """What the file says of itself; `source` names it in errors. Raises MtmError where it is not an mtmamba export."""
    text = next((prop.value for prop in model.metadata_props if prop.key == METADATA_KEY), None)
    return ModelMetadata.from_json(text, source)


def write_metadata(model: ModelProto, metadata: ModelMetadata) -> None:
    """Put `metadata` into the model, in place of all other properties."""
    del model.metadata_props[:]
    helper.set_model_props(model, {METADATA_KEY: metadata.to_json()})
