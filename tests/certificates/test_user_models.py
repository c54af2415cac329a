"""A certificate speaks of the model as it is now: hooks, settings, replaced methods, randomness."""

import types

import pytest
import torch
from torch import nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrizations

from popqorn_train import LpBall, UnsupportedModelError, bound, certify, logit_bounds
from popqorn_train.tracing.randomness import draws

LIMIT = 0.3


class Net(nn.Module):
    """A GRU between a front and a head, and what its forward does at the end."""

    def __init__(self, end=lambda self, z: z):
        super().__init__()
        self.front = nn.Linear(2, 3)
        self.rnn, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 3)
        self.end = end
        self.config = types.SimpleNamespace(inner=types.SimpleNamespace(limit=0.3))

    def forward(self, x):
        return self.end(self, self.head(self.rnn(self.front(x))[0][:, -1]))


class Shared(Net):
    """Reads its limit from the class."""

    limit = 0.3

    def forward(self, x):
        return super().forward(x).clamp(max=self.limit)


def make(kind=Net, *args):
    torch.manual_seed(0)
    return kind(*args).double().eval()


def inputs(batch=3):
    return torch.randn(batch, 4, 2, generator=torch.Generator().manual_seed(1)).double()


def bounds(model):
    return logit_bounds(model, inputs(), LpBall(0.2), method="crown-ibp")


def same(one, two):
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


# What is read from elsewhere, and how it is changed between two questions.


def _nested(model, value):
    model.config.inner.limit = value


def _of_class(model, value):
    Shared.limit = value


def _global(model, value):
    global LIMIT
    LIMIT = value


CELL = [0.3]


def _cell(model, value):
    CELL[0] = value


SETTINGS = {
    "nested object": (Net, (lambda self, z: z.clamp(max=self.config.inner.limit),), _nested),
    "class attribute": (Shared, (), _of_class),
    "global": (Net, (lambda self, z: z.clamp(max=LIMIT),), _global),
    "closure": (Net, (lambda self, z, cell=CELL: z.clamp(max=cell[0]),), _cell),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_is_read_anew_for_every_question(name):
    kind, args, change = SETTINGS[name]
    model = make(kind, *args)
    before = bounds(model)
    try:
        change(model, -0.2)
        after = bounds(model)
        assert (after.upper <= -0.2 + 1e-12).all()
        assert not same(before, after)
        change(model, 0.3)
        assert same(bounds(model), before)
    finally:
        change(model, 0.3)


def test_hooks_are_bounded_as_if_they_stood_in_forward():
    plain = make(Net, lambda self, z: (0.5 * z).clamp(max=0.1))
    model = make()
    first = bounds(model)
    model.head.register_forward_hook(lambda module, args, output: 0.5 * output)
    model.register_forward_hook(lambda module, args, output: output.clamp(max=0.1))
    assert not same(bounds(model), first)
    assert same(bounds(model), bounds(plain))


def test_hooks_before_forward_with_and_without_keywords():
    model = make()
    model.register_forward_pre_hook(lambda module, args: (args[0] + 0.1,))
    model.rnn.register_forward_pre_hook(
        lambda module, args, kwargs: ((2 * args[0],), kwargs), with_kwargs=True
    )

    class Twin(Net):
        def forward(self, x):
            return self.head(self.rnn(2 * self.front(x + 0.1))[0][:, -1])

    twin = make(Twin)
    for one, two in zip(bounds(model), bounds(twin), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


def _in_place(module, args, output):
    output.clamp_(max=0.3)


def _beyond_a_limit(module, args, output):
    return output if output.max() < 100 else -output


def _clamped(module, args, output):
    return output.clamp(max=0.3)


@pytest.mark.parametrize("where", ["head", "root"])
def test_hooks_that_write_are_bounded_as_what_they_compute(where):
    written, clamped = make(), make()
    for model, hook in ((written, _in_place), (clamped, _clamped)):
        (model if where == "root" else model.head).register_forward_hook(hook)
    for one, two in zip(bounds(written), bounds(clamped), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("where", ["head", "root"])
def test_hooks_that_depend_on_data_are_refused(where):
    model = make()
    assert bounds(model).lower.isfinite().all()
    (model if where == "root" else model.head).register_forward_hook(_beyond_a_limit)
    with pytest.raises(UnsupportedModelError, match=r"depends on the data.*test_user"):
        bounds(model)


def test_hooks_for_all_modules_are_refused():
    handle = torch_module.register_module_forward_hook(lambda module, args, output: None)
    try:
        with pytest.raises(UnsupportedModelError, match="registered for all modules"):
            bounds(make())
    finally:
        handle.remove()
    assert bounds(make()).lower.isfinite().all()


def test_hooks_inside_a_layer_that_is_bounded_as_a_whole_are_refused():
    model = make()
    parametrizations.weight_norm(model.head)
    assert bounds(model).lower.isfinite().all()
    model.head.parametrizations.weight[0].register_forward_hook(lambda module, args, out: 2 * out)
    with pytest.raises(UnsupportedModelError, match=r"'head.*hooks inside a layer"):
        bounds(model)


@pytest.mark.parametrize("where", ["root", "head", "front"])
@pytest.mark.parametrize("method", ["forward", "_call_impl"])
def test_methods_replaced_on_an_instance_are_refused(where, method):
    model = make()
    bounds(model)
    module = model if where == "root" else model.get_submodule(where)
    original = getattr(module, method)
    setattr(module, method, lambda *args: 2 * original(*args))
    with pytest.raises(UnsupportedModelError, match=f"a {method} of its own"):
        bounds(model)


def test_the_own_method_of_the_class_may_lie_on_an_instance():
    model, plain = make(), make()
    model.forward = model.forward
    assert same(bounds(model), bounds(plain))


def test_a_call_that_a_class_overrides_is_recorded():
    class Doubled(nn.Linear):
        def __call__(self, x):
            return 2 * super().__call__(x)

    class Twice(Net):
        def forward(self, x):
            return 2 * super().forward(x)

    model, twin = make(), make(Twice)
    head = Doubled(4, 3).double()
    head.load_state_dict(model.head.state_dict())
    model.head = head
    assert same(bounds(model), bounds(twin))


def _own_generator(self, z):
    generator = torch.Generator().manual_seed(0)
    return z + torch.rand((1, 3), generator=generator, dtype=z.dtype)


def _tiny(self, z):
    return z + 1e-12 * torch.rand_like(z)


RANDOM = {
    "locked dropout": lambda self, z: z * torch.bernoulli(torch.full((1, 3), 0.9)).to(z),
    "dropout that stays on": lambda self, z: nn.functional.dropout(z, 0.1, training=True),
    "own generator": _own_generator,
    "hardly seen": _tiny,
    "alpha dropout": lambda self, z: nn.functional.alpha_dropout(z, 0.1, training=True),
}


@pytest.mark.parametrize("name", RANDOM)
def test_random_numbers_in_eval_mode_are_refused_and_the_generator_stays(name):
    model = make(Net, RANDOM[name])
    state = torch.get_rng_state()
    with pytest.raises(UnsupportedModelError, match="draws random numbers in eval mode"):
        bounds(model)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("operation", "changes", "random"),
    [
        (torch.ops.aten._cudnn_rnn.default, {"dropout": 0.5, "train": False}, False),
        (torch.ops.aten._cudnn_rnn.default, {"dropout": 0.0, "train": True}, False),
        (torch.ops.aten._cudnn_rnn.default, {"dropout": 0.5, "train": True}, True),
        (torch.ops.aten._scaled_dot_product_flash_attention.default, {"dropout_p": 0.0}, False),
        (torch.ops.aten._scaled_dot_product_flash_attention.default, {"dropout_p": 0.1}, True),
        (torch.ops.aten.rand_like.default, {}, True),
    ],
)
def test_layers_of_cudnn_and_attention_draw_only_for_their_dropout(operation, changes, random):
    assert torch.Tag.nondeterministic_seeded in operation.tags
    names = [argument.name for argument in operation._schema.arguments]
    args = tuple(changes.get(name) for name in names)
    assert draws(operation, args, {}) == random
    assert draws(operation, (), changes) == random


def test_dropout_that_eval_mode_turns_off_is_no_randomness():
    model = make(Net, lambda self, z: nn.functional.dropout(z, 0.5, training=self.training))
    model.rnn = nn.GRU(3, 4, num_layers=2, dropout=0.5, batch_first=True).double().eval()
    assert bounds(model).lower.isfinite().all()


def _swallowed(self, z):
    try:
        if z.max() > 100:
            z = -z
    except Exception:
        pass
    return z


def _swallowed_number(self, z):
    try:
        z = z * float(z[0, 0] > 1e9)
    except BaseException:
        z = z + 0
    return z


@pytest.mark.parametrize("end", [_swallowed, _swallowed_number])
def test_an_error_that_user_code_swallows_is_raised_all_the_same(end):
    with pytest.raises(UnsupportedModelError, match=r"cannot be traced: .*test_user_models"):
        bounds(make(Net, end))


def test_weights_that_are_worked_out_raise_no_false_alarm():
    for dtype in (torch.float32, torch.float64):
        model = make()
        for layer in (model.front, model.head):
            parametrizations.weight_norm(layer)
        parametrizations.spectral_norm(model.head)
        model = model.to(dtype).eval()
        x, target = inputs().to(dtype), model(inputs().to(dtype)).argmax(1)
        assert certify(model, x, target, LpBall(1e-4)).certified.all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_raises_no_false_alarm(dtype):
    model = make().to(dtype)
    x = inputs().to(dtype)
    target = model(x).float().argmax(1)
    found = certify(model, x, target, LpBall(1e-3))
    assert found.numerics.startswith("float64 of")


def test_a_class_that_is_nearly_sure_raises_no_false_alarm():
    """In float32 its log-probability is 0, in float64 far below a unit of rounding."""

    class Sure(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = make().float()

        def forward(self, x):
            z = self.net(x)
            return torch.cat([z[:, :1], z[:, 1:2] + 30], 1).log_softmax(1)

    model, x = Sure().eval(), inputs().float()
    with torch.no_grad():
        target = model(x).argmax(1)
        assert (model(x).amax(1) == 0).any()
    assert certify(model, x, target, LpBall(1e-3)).certified.all()


HALVES = {
    "a cast": lambda x: x.to(torch.bfloat16).float(),
    "a sum": lambda x: x + x.sum(1, keepdim=True, dtype=torch.float16).float(),
    "a softmax": lambda x: x * x.softmax(1, dtype=torch.bfloat16).float(),
}


@pytest.mark.parametrize("name", HALVES)
def test_half_precision_of_a_part_is_refused(name):
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = make().float()

        def forward(self, x):
            return self.net(HALVES[name](x))

    model, x = Half().eval(), inputs().float()
    with pytest.raises(UnsupportedModelError, match="a cast to half precision"):
        certify(model, x, model(x).argmax(1), LpBall(1e-3))


def test_a_trace_serves_the_calls_of_one_question_only(monkeypatch):
    from popqorn_train.certificates import planning

    recorded, record = [], planning.record
    monkeypatch.setattr(planning, "record", lambda *a: recorded.append(1) or record(*a))
    model, x = make(), inputs()
    target = model(x).argmax(1)
    for count in (1, 2):
        certify(model.float(), x.float(), target, LpBall(0.01))  # float64 is a twin of the call
        assert len(recorded) == count
    assert bound(model).instance(x.float(), check=False).center.shape == x.shape
    assert len(recorded) == 2
