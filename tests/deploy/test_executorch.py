import pytest
import timm
import torch

from patnet import InputError, fuse
from patnet.deploy import prepare
from patnet.deploy.backend import ExportInfo, Request
from patnet.deploy.executorch import DECOMPOSITIONS, ExecuTorch, _rewrite


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("patnet_t0", {}),
        ("patnet_t0", {"sf_norm_position": "after", "position_method": "none"}),
        ("patnet_t0", {"position_mode": "contextual"}),
        ("fasternet_t0", {}),
        ("convnext_atto", {}),
    ],
)
def test_the_rewritten_network_is_the_network_without_what_xnnpack_lacks(model, options):
    torch.manual_seed(0)
    network = fuse(timm.create_model(model, num_classes=5, **options))
    x = torch.randn(2, 3, 64, 96)
    program = torch.export.export(_rewrite(network, x), (x,), strict=False).run_decompositions(DECOMPOSITIONS)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), network(x), rtol=1e-4, atol=1e-5)
    left = {str(node.target).removeprefix("aten.") for node in program.graph.nodes if node.op == "call_function"}
    lacks = {"split_with_sizes.default", "unbind.int", "linalg_vector_norm.default", "index_select.default"}
    assert not left & lacks if "position_mode" not in options else left & lacks <= {"index_select.default"}


def test_a_program_is_one_delegate(tmp_path, model, images):
    pytest.importorskip("executorch")
    from executorch.exir._serialize._program import deserialize_pte_binary

    info = ExportInfo(backend="executorch", batch_size=2, img_size=(64, 64))
    ExecuTorch().write(fuse(model), tmp_path / "net.pte", Request(info, images(2)))
    program = deserialize_pte_binary((tmp_path / "net.pte").read_bytes()).program
    (plan,) = (plan for plan in program.execution_plan if plan.name == "forward")
    assert [delegate.id for delegate in plan.delegates] == ["XnnpackBackend"]


def test_a_network_of_another_family_runs(images):
    pytest.importorskip("executorch")
    network = timm.create_model("resnet10t", num_classes=5).eval()
    run = prepare(network, images(2), backend="executorch", threads=1)
    with torch.no_grad():
        torch.testing.assert_close(run(images(2, seed=1)), network(images(2, seed=1)), rtol=1e-3, atol=1e-4)


def test_damaged_programs_and_images_of_another_shape_are_refused(tmp_path):
    pytest.importorskip("executorch")
    info = ExportInfo(backend="executorch", img_size=(32, 32))
    whole = tmp_path / "whole.pte"
    ExecuTorch().write(torch.nn.Conv2d(3, 2, 1).eval(), whole, Request(info, torch.rand(1, 3, 32, 32)))
    for content in (b"", b"no program", whole.read_bytes()[:-200]):
        (tmp_path / "damaged.pte").write_bytes(content)
        with pytest.raises(InputError, match=r"damaged.pte: ExecuTorch cannot load it: it is damaged"):
            ExecuTorch().load(tmp_path / "damaged.pte")
    run, _ = ExecuTorch().load(whole, threads=1)
    with pytest.raises(InputError, match=r"whole.pte: takes no images of shape 1x3x16x16"):
        run(torch.rand(1, 3, 16, 16))
