"""The engine below every method that changes images until a frozen teacher finds them familiar.

A method is an objective (a loss of what the teacher saw), a canvas (what is optimised), an update
rule and a schedule; ``engine.py`` runs them.
"""
