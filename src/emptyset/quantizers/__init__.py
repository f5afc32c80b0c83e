"""Fake quantizers, one per published formula, and the integer codes they stand for."""
