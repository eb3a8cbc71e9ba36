"""Inference: windows of proposals scored and aggregated, or images scored whole."""
