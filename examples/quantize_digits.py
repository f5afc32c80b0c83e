"""The whole way by hand: from a trained network to a proved integer file, and what was lost.

Run: python examples/quantize_digits.py [COUNT [STEPS]]
Differs from the paper (ZeroQ): 25 steps on a cosine schedule instead of 500 with a plateau.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import emptyset
from emptyset.teachers.embedded import held_out_images_path

WIDTHS = ("w8a8", "w4a8", "w4a4")


def main(count: int = 256, steps: int = 25) -> None:
    teacher = emptyset.load("embedded:digits-resnet")
    images = emptyset.synthesize(
        teacher, "zeroq", count=count, seed=0, steps=steps, schedule="cosine", clip=True
    )
    scans = emptyset.images_from(held_out_images_path(), teacher)
    for bits in WIDTHS:
        student = emptyset.prepare(teacher, bits, plan="integer")
        emptyset.refine(student, images, "calibrate")
        with TemporaryDirectory() as folder:
            artefact = emptyset.export(student, Path(folder) / "model.onnx")
            certificate = emptyset.certify(artefact.path, student, images)
            found = emptyset.measure(artefact.path, teacher, scans)
        assert found.teacher is not None
        assert found.quantized is not None
        print(
            f"{bits}: top-1 {found.quantized.top1:.2%} (float {found.teacher.top1:.2%}), "
            f"{artefact.size_bytes / 1000:.0f} kB, certificate "
            f"{'holds' if certificate.holds else 'FAILS'}"
        )


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
