"""Generators that are trained beside the student and give its batches; one file per method."""

from emptyset.registry import import_folder

import_folder(__name__, list(__path__))
