"""Selectors: they keep part of an image set, in the old order; one file per method."""

from emptyset.registry import import_folder

import_folder(__name__, list(__path__))
