"""What makes a prepared student better: calibration, later reconstruction and finetuning."""

from emptyset.registry import import_folder

import_folder(__name__, list(__path__))
