"""Every deliberate error of emptyset, as a tree.

EmptysetError
├── RecipeError            a recipe, an option or a setting is wrong            exit 2
│   └── BitsError          a bit width such as `w4` or `w0a4`                   exit 2
├── UnknownNameError       a method, teacher, plan or recipe that does not exist  exit 2
├── MissingExtraError      an optional dependency is not installed              exit 2
├── TeacherError           weights or a factory that do not give a usable teacher  exit 2
│   ├── CaptureError       `torch.export` cannot capture the network            exit 2
│   └── UnsupportedModelError  the network lacks what the method needs          exit 2
├── ImagesError            images, labels or counts that cannot be used         exit 2
├── NotCalibratedError     a quantizer is used before it has a range            exit 2
├── RunFolderError         the output folder cannot be used                     exit 5
├── CertificateError       the file does not compute what was simulated         exit 3
└── CollapseError          the student lost more than the user allows           exit 4

Each message says where, what was expected, what came and what to do. `exit_code` is what the
command line returns for it.
"""


class EmptysetError(Exception):
    """Base class of every error that emptyset raises on purpose."""

    exit_code = 2


class RecipeError(EmptysetError, ValueError):
    """A recipe, an option or a setting is wrong."""


class BitsError(RecipeError):
    """A bit width cannot be read, or is out of range."""


class UnknownNameError(EmptysetError, LookupError):
    """No method, teacher, plan or recipe has this name."""

    def __str__(self) -> str:
        # LookupError subclasses may quote their message; users should see it as written.
        return str(self.args[0]) if self.args else ""


class MissingExtraError(EmptysetError, ImportError):
    """An optional dependency is not installed."""


class TeacherError(EmptysetError, ValueError):
    """The weights or the factory do not give a usable teacher."""


class CaptureError(TeacherError):
    """`torch.export` cannot capture the network."""


class UnsupportedModelError(TeacherError):
    """The network lacks what the chosen method needs."""


class ImagesError(EmptysetError, ValueError):
    """Images, labels or their number cannot be used."""


class NotCalibratedError(EmptysetError, RuntimeError):
    """A quantizer is used before it has a range."""


class RunFolderError(EmptysetError, OSError):
    """The output folder cannot be used."""

    exit_code = 5


class CertificateError(EmptysetError, RuntimeError):
    """The exported file does not compute what was simulated."""

    exit_code = 3


class CollapseError(EmptysetError, RuntimeError):
    """The student lost more than the user allows."""

    exit_code = 4
