"""Networks as files that run without this package: torch.export's ``.pt2`` and ONNX, each checked after writing."""
