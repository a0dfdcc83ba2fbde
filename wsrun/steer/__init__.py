"""Interventions: what steering does to a model, by weights, activations or prompts.

How directions and constructed changes are measured lives here; scoring and doses do not.
"""
