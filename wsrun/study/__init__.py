"""What experiments share: options, session, ablations, benchmark, selection, controls, shards.

One question each is asked in experiments/; no formula and no model code lives here.
"""
