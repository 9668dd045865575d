"""Exporters: a vector as a file of another engine, proved equal before it is kept."""

from steerkit.exporters.base import Comparison, Exporter, ExportReport
from steerkit.exporters.folded import Folded
from steerkit.exporters.gguf import Gguf
from steerkit.exporters.peft import Peft

__all__ = ["Comparison", "ExportReport", "Exporter", "Folded", "Gguf", "Peft"]
