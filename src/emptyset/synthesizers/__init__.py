"""Synthesizers: they make an image set from what a teacher knows; one file per method."""

from emptyset.registry import import_folder

import_folder(__name__, list(__path__))
