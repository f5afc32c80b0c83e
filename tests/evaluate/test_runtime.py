"""A file as a function."""

from pathlib import Path
from typing import Any

import pytest
import torch

from emptyset.errors import ImagesError, RunFolderError
from emptyset.evaluate.runtime import OnnxClassifier

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def write(path: Path) -> torch.Tensor:
    """A linear layer over flattened 2 × 3 × 4 images."""
    weight = torch.randn(24, 5, generator=torch.Generator().manual_seed(0))
    make = onnx.helper
    graph = make.make_graph(
        [make.make_node("Flatten", ["x"], ["f"]), make.make_node("MatMul", ["f", "w"], ["y"])],
        "g",
        [make.make_tensor_value_info("x", 1, ["batch", 2, 3, 4])],
        [make.make_tensor_value_info("y", 1, ["batch", 5])],
        [onnx.numpy_helper.from_array(weight.numpy(), "w")],
    )
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, path)
    return weight


def test_computes_what_the_file_says_for_any_batch(tmp_path: Path) -> None:
    weight = write(tmp_path / "m.onnx")
    predict = OnnxClassifier(tmp_path / "m.onnx")
    for count in (1, 6):
        images = torch.randn(count, 2, 3, 4, generator=torch.Generator().manual_seed(count))
        torch.testing.assert_close(
            predict(images.contiguous(memory_format=torch.channels_last)),
            images.flatten(1) @ weight, rtol=1e-4, atol=1e-5,
        )  # fmt: skip


def test_refuses_images_that_do_not_fit(tmp_path: Path) -> None:
    write(tmp_path / "m.onnx")
    with pytest.raises(ImagesError, match=r"takes images of shape.*Got \(1, 2, 3, 5\)"):
        OnnxClassifier(tmp_path / "m.onnx")(torch.zeros(1, 2, 3, 5))


def test_refuses_files_that_are_missing_or_no_network(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="no such file"):
        OnnxClassifier(tmp_path / "none.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"nothing of use")
    with pytest.raises(RunFolderError, match="cannot load it"):
        OnnxClassifier(tmp_path / "bad.onnx")


@pytest.mark.parametrize(("saturates", "entry"), [(True, "1"), (False, None)])
def test_products_are_exact_where_the_processors_are_not(
    saturates: bool, entry: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    write(tmp_path / "m.onnx")
    monkeypatch.setattr("emptyset.exporters.kernels.saturates", lambda: saturates)
    seen, whole = {}, onnxruntime.InferenceSession

    def session(path: str, options: Any, **others: Any) -> Any:
        try:
            seen["entry"] = options.get_session_config_entry("session.x64quantprecision")
        except RuntimeError:  # not set
            seen["entry"] = None
        return whole(path, options, **others)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    OnnxClassifier(tmp_path / "m.onnx")
    assert seen == {"entry": entry}
