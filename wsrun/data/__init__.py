"""What models are asked and trained on: items, personas, questions and pairs, neutral texts.

Readers and checks only; nothing here runs an evaluation or trains.
"""
