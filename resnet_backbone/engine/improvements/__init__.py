"""The improvements of the paper's Table 9 at test time: box refinement, multi-scale testing and the ensemble.

Written once for both engines, on what a detector of two stages can do (``two_stage``).
"""
