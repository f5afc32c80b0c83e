"""AutoReCon: GDFQ's losses with a generator that an architecture search found.

Paper: Zhu et al., "AutoReCon: Neural Architecture Search-based Reconstruction for Data-free
    Compression", IJCAI 2021, arXiv:2105.12151.
Idea: a third of the noise enters before each of three cells of searched upsamplings, convolutions
    and cross links; labels enter through class-conditional BatchNorm.
Needs: a teacher with BatchNorm layers and at least 2 classes.
Differs from source: the final cells are those in the code released with AIT; the search is not
    repeated. A cross link "none", there a tensor times zero, is left out.
"""

from dataclasses import asdict, dataclass

from emptyset.generators.autorecon_cells import WIDTH
from emptyset.generators.backbones import AUTO, CELL_CHOICES, autorecon_backbone
from emptyset.generators.class_mixture import SingleClasses
from emptyset.generators.conditions import NoiseAlone
from emptyset.generators.generator import Generator
from emptyset.generators.method import GeneratorMethod
from emptyset.generators.published_terms import gdfq_terms
from emptyset.generators.settings import LabelledGeneratorConfig
from emptyset.generators.source_maker import SourceMaker
from emptyset.inversion.labels import class_count
from emptyset.inversion.setting_checks import require_choice, require_positive
from emptyset.registry import sources
from emptyset.teachers.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class AutoReConConfig(LabelledGeneratorConfig):
    """Settings of AutoReCon. Defaults are those of the code released with AIT.

    Attributes:
        cells: Whose search: ``cifar10``, ``cifar100``, ``resnet18``, ``resnet50``, ``mobilenetv2``;
            ``auto``: by size of the image and number of classes.
        latent: Length of the noise, at least 3.
        width: Channels everywhere.
    """

    cells: str = AUTO
    latent: int = 100
    width: int = WIDTH

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice(self, "cells", CELL_CHOICES)
        require_positive(self, "width")
        if self.latent < 3:
            raise ValueError(f"'latent' is cut into three, so at least 3. Got {self.latent}.")

    @classmethod
    def smallest(cls) -> "AutoReConConfig":
        """Settings that finish in a blink; the contract tests run these."""
        return cls(latent=7, width=4)


@sources.register(
    "autorecon",
    AutoReConConfig,
    sentence="GDFQ's losses with a generator whose cells an architecture search found.",
    source="AutoReCon, Zhu et al. 2021, arXiv:2105.12151; cells as in the code of AIT",
)
@dataclass(frozen=True)
class AutoReCon(SourceMaker):
    """See the module docstring."""

    config: AutoReConConfig

    def method(self, teacher: Teacher) -> GeneratorMethod:
        """The parts."""
        config, classes = self.config, class_count(teacher, "autorecon")

        def build() -> Generator:
            backbone = autorecon_backbone(
                teacher.input.shape, classes,
                cells=config.cells, latent=config.latent, width=config.width,
            )  # fmt: skip
            return Generator(NoiseAlone(config.latent), backbone, classes)

        return GeneratorMethod(
            name="autorecon",
            build=build,
            sampler=SingleClasses(classes),
            terms=gdfq_terms(config),
            config=config,
            settings=asdict(config),
        )
