"""What people read: tables on disk, console output, figures, verdict tables, the joined page.

Nothing here loads a model or scores.
"""
