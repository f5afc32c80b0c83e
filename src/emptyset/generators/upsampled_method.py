"""A method on GDFQ's network: what GDFQ, AdaSG, AdaDFQ and TexQ share; they differ in the loss."""

from dataclasses import asdict

from emptyset.generators.backbones import form_of, upsampling_backbone
from emptyset.generators.class_mixture import SingleClasses
from emptyset.generators.conditions import Condition, NoiseAlone, ScaledEmbedding
from emptyset.generators.generator import Generator
from emptyset.generators.groundwork import Groundwork
from emptyset.generators.judged import Term
from emptyset.generators.method import GeneratorMethod
from emptyset.generators.settings import UpsampledGeneratorConfig
from emptyset.inversion.labels import class_count
from emptyset.teachers.teacher import Teacher


def upsampled_method(
    name: str,
    teacher: Teacher,
    config: UpsampledGeneratorConfig,
    terms: tuple[Term, ...],
    *,
    groundwork: Groundwork | None = None,
) -> GeneratorMethod:
    """The parts of a method whose every image shows one class.

    Args:
        name: Of the method, as registered.
        teacher: Tells size and number of classes.
        config: Settings.
        terms: The loss.
        groundwork: Done before the first lesson.

    Raises:
        UnsupportedModelError: If the teacher is no classifier.
    """
    classes, shape = class_count(teacher, name), teacher.input.shape
    form = form_of(shape, config.backbone)

    def build() -> Generator:
        condition: Condition = (
            ScaledEmbedding(classes, config.latent)
            if form == "cifar"
            else NoiseAlone(config.latent)
        )
        backbone = upsampling_backbone(
            shape, classes, form=form, latent=config.latent, widths=config.widths
        )
        return Generator(condition, backbone, classes)

    return GeneratorMethod(
        name=name,
        build=build,
        sampler=SingleClasses(classes),
        terms=terms,
        config=config,
        settings=asdict(config),
        groundwork=groundwork,
    )
