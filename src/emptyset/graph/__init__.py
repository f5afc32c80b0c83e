"""The student's graph: capture, plans, the prepared student and its blocks."""

from emptyset.registry import import_folder

import_folder(__name__, __path__)
