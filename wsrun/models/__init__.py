"""Models: loading, chat rendering to tokens, generation, and hooks on layers.

No data files, no adapters, no steering and no scoring live here.
"""
