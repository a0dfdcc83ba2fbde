"""Scoring: the sweep over variants, its two engines, batching, stored results and doses.

What is scored comes from wsrun.data, what is changed from wsrun.steer; wsrun.report writes tables.
"""
