"""Detectron2's evaluator in C++, which needs its compiled extension."""

from __future__ import annotations

from detectron2.evaluation.fast_eval_api import COCOeval_opt

__all__ = ["COCOeval_opt"]
