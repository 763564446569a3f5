"""Models as files: loaded they compute the same bytes, and files that do not fit are refused with a reason."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import sympy
import torch
from torch import nn
from torch.nn.utils import parametrize

import tngraph as tg
from tngraph.errors import ModelError
from tngraph.language.families import FAMILIES, Family
from tngraph.language.families.weight import Rank, Weight
from tngraph.layers import Conv2d, Generated, Linear, replace, share
from tngraph.plans.saving import digest

pytestmark = pytest.mark.filterwarnings("ignore::tngraph.GrowthWarning")  # the layers here are small
OPTIONS: dict[str, dict[str, Any]] = {"graph": {"edges": ((1, 2),)}, "adtn": {"layers": 2}, "mpo": {"bond": 3}}
SPEC = """network square { size batch; size D = 3; input x[batch, i:8]; param a[i, r:D]; param b[r, o:8]
  y[batch, o] = relu(x * a * b); output y[batch, o] }"""


class Net(nn.Module):
    """A model with convolutions, a batch norm, an embedding tied to the head, and a layer in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, 8)
        self.conv = nn.Conv2d(4, 8, 3, padding=1, groups=2)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.norm = nn.BatchNorm2d(8)
        self.one = nn.Linear(8, 8)
        self.two = self.one
        self.head = nn.Linear(8, 16, bias=False)
        self.head.weight = self.embed.weight
        self.body = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.up(self.norm(self.conv(x))).mean((2, 3)) @ self.embed.weight[:4]
        return self.head(self.body(self.two(self.one(h))))


def replaced() -> Net:
    torch.manual_seed(1)
    model = Net()
    replace(model, {"conv": "cp", "up": "tucker", "one": "mpo", "body.0": {"family": "low_rank", "rank": 2}})
    return model.eval()


def again(model: nn.Module, base: nn.Module, folder: Path) -> nn.Module:
    tg.save(model, folder)
    return tg.load_model(folder, base)


def same(model: nn.Module, other: nn.Module, x: torch.Tensor) -> None:
    with torch.no_grad():
        assert torch.equal(model(x), other(x))
    state, loaded = model.state_dict(), other.state_dict()
    assert list(state) == list(loaded)
    assert all(torch.equal(state[name], loaded[name]) for name in state)


def test_a_model_is_loaded_into_an_ordinary_one_and_into_a_replaced_one(tmp_path):
    model, x = replaced(), torch.randn(2, 4, 4, 4)
    for base in (Net(), replaced()):
        loaded = again(model, base.eval(), tmp_path / "model")
        assert loaded is base
        same(model, loaded, x)
        assert loaded.one is loaded.two
        assert loaded.head.weight is loaded.embed.weight
        assert str(loaded.one) == str(model.one)
        assert [name for name, _ in loaded.named_parameters()] == [name for name, _ in model.named_parameters()]


def test_a_new_process_computes_the_same_bytes(tmp_path):
    model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))
    replace(model, {"0": {"family": "mpo", "bond": 4, "sizes": {"batch": 5}}}, fit=True)
    x = torch.randn(5, 64)
    tg.save(model, tmp_path)
    torch.save({"x": x, "y": model(x)}, tmp_path / "io.pt")
    code = (
        "import sys, torch, tngraph as tg\nfrom torch import nn\n"
        "base = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))\n"
        "io = torch.load(sys.argv[1] + '/io.pt')\n"
        "assert torch.equal(tg.load_model(sys.argv[1], base)(io['x']), io['y'])"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


def test_the_files_are_as_large_as_the_params(tmp_path):
    model = replaced()
    tg.save(model, tmp_path)
    params = sum(parameter.numel() for parameter in model.parameters()) * 4
    assert params < sum(path.stat().st_size for path in tmp_path.iterdir()) < params + 100_000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors", "recipe.json"]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_saved(name, tmp_path):
    model = nn.Sequential(nn.Linear(16, 16))
    replace(model, name, **OPTIONS.get(name, {}))
    same(model, again(model, nn.Sequential(nn.Linear(16, 16)), tmp_path), torch.randn(3, 16))


def test_compiled_networks_are_saved_with_their_sizes(tmp_path):
    compiled = tg.compile(tg.parse(SPEC), {"D": 5}, dtype=torch.float64)
    model = nn.Sequential(compiled, nn.Linear(8, 2, dtype=torch.float64))
    base = nn.Sequential(nn.Identity(), nn.Linear(8, 2, dtype=torch.float64))
    same(model, again(model, base, tmp_path), torch.randn(3, 8, dtype=torch.float64))


def test_a_layer_alone_is_a_model(tmp_path):
    layer = Conv2d(4, 6, 3, family="cp", padding="same", padding_mode="reflect", modes=((5,), (7,)))
    loaded = again(layer, nn.Conv2d(4, 6, 3, padding="same", padding_mode="reflect"), tmp_path)
    same(layer, loaded, torch.randn(2, 4, 5, 5))


def test_a_layer_for_serving_and_one_at_a_batch_are_saved_as_they_are(tmp_path):
    layer, x = Linear(16, 16, family="mpo", bond=4), torch.randn(3, 16)
    for model in (nn.Sequential(layer.fold()), nn.Sequential(layer.at(batch=3))):
        loaded = again(model, nn.Sequential(nn.Linear(16, 16)), tmp_path)
        same(model, loaded, x)
        assert loaded[0].plan == model[0].plan
        assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in model.parameters()]


def generated(**options: Any) -> nn.Module:
    model = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 8))
    if options.get("residual"):
        model[0].weight.requires_grad_(False)
    parametrize.register_parametrization(model[0], "weight", Generated.like(model[0].weight, **options))
    return model


@pytest.mark.parametrize(
    "options",
    [{"family": "adtn"}, {"family": "low_rank", "rank": 2, "residual": True}, {"family": "quanta", "residual": True}],
)
def test_generated_weights_are_saved(options, tmp_path):
    model = generated(**options)
    for base in (nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 8)), generated(family="mpo")):
        loaded = again(model, base, tmp_path)
        same(model, loaded, torch.randn(3, 16))
        frozen = [parameter.requires_grad for parameter in model.parameters()]
        assert [parameter.requires_grad for parameter in loaded.parameters()] == frozen


def test_a_shared_generator_is_saved_once(tmp_path):
    def plain() -> nn.Sequential:
        return nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4))

    model, other = plain(), plain()
    share(model, ("4", "0"), "adtn", layers=2)
    share(other, ("0", "4"), "mpo")
    for base in (plain(), other):
        loaded = again(model, base, tmp_path)
        same(model, loaded, torch.randn(3, 16))
        loaded[4].parametrizations.weight[0].generator.parametrizations.vector[0].reset_parameters()
        assert not torch.equal(loaded[0].weight, model[0].weight)


def test_types_modes_and_frozen_params_come_back(tmp_path):
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).to(torch.bfloat16).eval()
    replace(model, {"0": "low_rank"}, rank=2)
    model[0].network.requires_grad_(False)
    base = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).to(torch.bfloat16)
    loaded = again(model, base, tmp_path)
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in model.parameters()]
    assert loaded[0].training
    assert loaded[0].weight.dtype == torch.bfloat16


def test_params_that_were_tied_are_tied_again(tmp_path):
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    replace(model, "low_rank", rank=2)
    model[1].network.load_state_dict(model[0].network.state_dict())
    for name, parameter in list(model[0].network.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        setattr(model[1].network.get_submodule(owner), leaf, parameter)
    loaded = again(model, nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), tmp_path)
    assert sum(p.numel() for p in loaded.parameters()) == sum(p.numel() for p in model.parameters())
    same(model, loaded, torch.randn(2, 8))


def test_a_plan_of_another_network_is_refused():
    layer = Linear(16, 16, family="mpo", bond=4)
    assert Linear(16, 16, family="mpo", bond=4, plan=layer.plan).plan is layer.plan
    with pytest.raises(tg.PlanError, match="the plan is one of another network, mpo"):
        Linear(16, 16, family="mpo", bond=2, plan=layer.plan)


# What is not saved


def own(weight: Weight, rank: Rank = sympy.Integer(2)) -> Any:
    return FAMILIES["low_rank"].make(weight, rank)


def test_a_family_of_ones_own_is_not_saved(tmp_path):
    model = nn.Sequential(Linear(8, 8, family=Family(own, axes=1)))
    with pytest.raises(ModelError, match="0 cannot be saved: its family 'own' is a function of yours"):
        tg.save(model, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def unsaved(change: Callable[[nn.Module], object]) -> nn.Module:
    model = nn.Sequential(Linear(8, 8, family="low_rank", rank=2), nn.Linear(8, 8))
    change(model)
    return model


def decorate_core(model: nn.Module) -> None:
    name, _ = next(model[0].network.named_parameters())
    owner, _, leaf = name.rpartition(".")
    parametrize.register_parametrization(model[0].network.get_submodule(owner), leaf, nn.Identity())


class Extra(nn.Module):
    def get_extra_state(self) -> object:
        return {"anything": 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.append(nn.LazyLinear(3)), "2.weight has no size yet"),
        (lambda m: m[1].to("meta"), "1.weight is on the meta device"),
        (lambda m: m.append(Extra()), "2._extra_state is a dict, and files hold tensors alone"),
        (decorate_core, "0 cannot be saved: its tensors"),
        (lambda m: m[0].network.double(), "0 cannot be saved: its tensors"),
    ],
)
def test_what_files_cannot_hold_is_not_saved(change, message, tmp_path):
    with pytest.raises(ModelError, match=message):
        tg.save(unsaved(change), tmp_path)
    assert not list(tmp_path.iterdir())


def test_several_parametrisations_are_not_saved(tmp_path):
    model = generated(family="mpo")
    parametrize.register_parametrization(model[0], "weight", nn.Identity())
    with pytest.raises(ModelError, match=r"0\.weight cannot be saved: it has several parametrisations"):
        tg.save(model, tmp_path)


def test_a_save_that_fails_leaves_the_files_that_were_there(tmp_path, monkeypatch):
    model = replaced()
    tg.save(model, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(Path, "write_text", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(ModelError, match="cannot be written: no space left"):
        tg.save(Net(), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


# What is not loaded


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (lambda: nn.Sequential(), "the model has no layer '0', where a Linear of cores was saved"),
        (lambda: nn.Sequential(nn.Linear(8, 9)), "0 has out_features=9, and was saved with out_features=8"),
        (lambda: nn.Sequential(nn.Linear(8, 8, bias=False)), "0 has bias=False, and was saved with bias=True"),
        (lambda: nn.Sequential(nn.Conv1d(8, 8, 1)), "0 is a Conv1d, and a Linear was saved in its place"),
        (lambda: nn.Sequential(nn.Linear(8, 8)), "the files have '1.bias', and the model does not\n  1 more differ"),
        (
            lambda: nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4)),
            r"'1.weight' is \(4, 8\) float32 in the model, and \(8, 8\)",
        ),
        (lambda: nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).half(), "'1.weight' is .* float16 in the model, and"),
        (
            lambda: nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.PReLU()),
            "the model has '2.weight', and the files do",
        ),
        (lambda: nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).to("meta"), "0.weight is on the meta device"),
    ],
)
def test_a_model_that_does_not_fit_is_told_why_and_stays_as_it_is(base, message, tmp_path):
    tg.save(unsaved(lambda _: None), tmp_path)
    model = base()
    modules, state = list(model.modules()), model.state_dict()
    with pytest.raises(ModelError, match=message):
        tg.load_model(tmp_path, model)
    assert list(model.modules()) == modules
    assert list(model.state_dict()) == list(state)


def test_tensors_that_were_saved_apart_are_not_tied(tmp_path):
    model = nn.Sequential(nn.Embedding(8, 8), Linear(8, 8, family="low_rank"), nn.Linear(8, 8, bias=False))
    tg.save(model, tmp_path)
    base = nn.Sequential(nn.Embedding(8, 8), nn.Linear(8, 8), nn.Linear(8, 8, bias=False))
    base[2].weight = base[0].weight
    with pytest.raises(ModelError, match=r"the model ties '2\.weight' to '0\.weight', and they were saved apart"):
        tg.load_model(tmp_path, base)


def damaged(folder: Path, change: Callable[[Any], object]) -> None:
    """Change a recipe and the hash that its tensors carry."""
    fields = json.loads((folder / "recipe.json").read_text())
    change(fields)
    text = json.dumps(fields)
    (folder / "recipe.json").write_text(text)
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    safetensors.torch.save_file(tensors, folder / "model.safetensors", {"tngraph_recipe_sha256": digest(text)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.update(version=2), "the file has version 2, and this tngraph reads version 1"),
        (lambda f: f.update(format="x"), "the file is not the recipe of a model"),
        (lambda f: f.pop("ties"), "the field 'ties' is None, and not an object"),
        (lambda f: f.update(frozen=["a", 3]), "the field 'frozen' is not a list of different names"),
        (lambda f: f.update(ties={"0.bias": "b"}), "the files tie a tensor to 'b', which they do not have"),
        (lambda f: f.update(layers=[3]), "a layer is 3, and not an object"),
        (lambda f: f["layers"][0].update({"class": "os.system"}), "there is no class 'os.system' of layers"),
        (lambda f: f["layers"][0].update(at=[]), "a layer has no place"),
        (lambda f: f["layers"][0].update(at=["__class__"]), "the model has no layer '__class__'"),
        (lambda f: f["layers"][0].update(dtype="__loader__"), "there is no type '__loader__' of cores"),
        (lambda f: f["layers"][0].update(family="own"), "0 cannot be built: there is no family 'own'"),
        (lambda f: f["layers"][0]["options"].update(device="cuda"), "0 cannot be built: .*device"),
        (lambda f: f["layers"][0]["options"].update(rank=10**12), "0 cannot be built: "),
        (lambda f: f["layers"][0]["arguments"].update(evil=1), "0 has the arguments .*, and a Linear takes others"),
        (lambda f: f["layers"][0]["arguments"].update(in_features=10**9), "0 cannot be built: "),
        (lambda f: f["layers"][0].update(modes=[[8], ["8"]]), "the modes of 0 are not two lists of integers"),
        (lambda f: f["layers"][0].update(plan=7), "0 has plan 7, and there are 1"),
        (lambda f: f["layers"][0].update(sizes={"batch": "x"}), "a size of 0 is not an integer"),
        (lambda f: f["layers"][0].update(tensor="weight"), "0 has the arguments"),
        (lambda f: f["plans"][0].update(network="import os"), "plan 0: "),
        (lambda f: f["plans"].__setitem__(0, [[[]]]), "plan 0: "),
    ],
)
def test_a_hostile_recipe_is_refused(change, message, tmp_path):
    tg.save(unsaved(lambda _: None), tmp_path)
    damaged(tmp_path, change)
    with pytest.raises(ModelError, match=message):
        tg.load_model(tmp_path, nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)))


def test_files_that_are_none_are_refused(tmp_path):
    base = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    with pytest.raises(ModelError, match="no such file or directory\n  give a folder"):
        tg.load_model(tmp_path, base)
    tg.save(unsaved(lambda _: None), tmp_path)
    tensors, recipe = (tmp_path / "model.safetensors").read_bytes(), (tmp_path / "recipe.json").read_text()
    for content in (b"", tensors[:40], tensors[:-3], b"\xff" * 100):
        (tmp_path / "model.safetensors").write_bytes(content)
        with pytest.raises(ModelError, match=r"model\.safetensors is not a file of tensors: "):
            tg.load_model(tmp_path, base)
    (tmp_path / "model.safetensors").write_bytes(tensors)
    for content in ("", "[" * 10**5, "\x00", recipe[:-20]):
        (tmp_path / "recipe.json").write_text(content)
        with pytest.raises(ModelError, match=r"recipe\.json: the file is not JSON"):
            tg.load_model(tmp_path, base)
    (tmp_path / "recipe.json").write_text(recipe + " ")
    with pytest.raises(ModelError, match="are not of one save"):
        tg.load_model(tmp_path, base)
