"""SteeringVector: a value with algebra and a file format."""

from steerkit.vectors.files import CONFIG_FILE, FORMAT_VERSION, TENSOR_FILE
from steerkit.vectors.value import SteeringVector, VectorMetadata

__all__ = ["CONFIG_FILE", "FORMAT_VERSION", "TENSOR_FILE", "SteeringVector", "VectorMetadata"]
