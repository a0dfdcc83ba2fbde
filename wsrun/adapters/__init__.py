"""PEFT adapters: configurations and recipes, training, and extraction with its proof.

The formulas of the families live in wscore.families.
"""
