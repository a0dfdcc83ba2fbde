"""Lenses: how T6, T7 and T8 cut a delta into parts, and planted truths that test these cuts.

Nothing here scores or prints; the experiments and wsrun.study.ablation do.
"""
