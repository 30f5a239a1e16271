"""Feature visualization: every objective rises, transforms by nothing change nothing, the network stays as it is."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from test_lens_taps import LENGTH, MODELS, N_AXES, hooks_of, windows
from torch import nn
from torch.nn import functional as F

from harvis_utils.maximization import coordinates, objectives, transforms, visualization
from harvis_utils.networks import taps

pytestmark = pytest.mark.usefixtures("one_thread")

#: a layer of each network whose outputs are not rectified
LAYERS = {"sfhf": "norm_conv2", "one": "second", "two": "network.body.2"}
SENSORS = ((0, 1, 2),)
FREQUENCY = coordinates.in_frequency(LENGTH, 8.0)
some = settings(max_examples=10)


def model_of(name):
    torch.manual_seed(3)
    return MODELS[name]().eval()


def every_objective(layer, n_units):
    along = torch.linspace(-1, 1, n_units)
    power = objectives.mean_power(windows(50))
    return {
        "neuron": objectives.neuron(layer, 1),
        "neuron at a sample": objectives.neuron(layer, 1, time=3, axis=0),
        "a neuron per window": objectives.neuron(layer, [0, 1, 2, 3, 0]),
        "channel": objectives.channel(layer, 2),
        "channel, clipped": objectives.channel(layer, 2, at_most=50.0),
        "largest": objectives.largest(layer, 2),
        "unlikeliness": objectives.mahalanobis(np.diag(np.linspace(1, 2, LENGTH))),
        "layer": objectives.layer(layer),
        "direction": objectives.direction(layer, along),
        "class before softmax": objectives.class_score(1),
        "class after softmax": objectives.class_probability([0, 1, 2, 3, 0]),
        "spectrum": objectives.spectrum(power),
        "likeness": objectives.alike(layer),
        "blocks": objectives.in_blocks([(objectives.channel(layer, 0), 2), (objectives.class_score(2), 3)]),
        "sum": objectives.class_score(1) + 0.3 * objectives.channel(layer, 0) - 0.1 * objectives.spectrum(power),
    }


N_UNITS = {"sfhf": 6, "one": 6, "two": 4}


# -------------------------------------------------------------------------------------------------------- objectives


@pytest.mark.parametrize("name", MODELS)
def test_every_objective_rises_within_a_few_steps(name):
    model, kinds = model_of(name), every_objective(LAYERS[name], N_UNITS[name])
    if name == "sfhf":
        kinds["a rectified unit"] = objectives.channel("conv2", 1)
    for k, (kind, objective) in enumerate(kinds.items()):
        for space, signed in zip((coordinates.in_time(), FREQUENCY), ((1, -1), (-1, 1))[k % 2], strict=True):
            made = visualization.visualize(model, signed * objective, windows(), space, n_steps=5, step_size=0.005)
            assert made.history.shape == (5, len(made.steps)) and made.steps[0] == 0 and made.steps[-1] == 5
            assert (made.score > made.history[:, 0]).all(), (kind, signed)
            assert np.allclose(made.score, visualization.scores(model, signed * objective, made.signal), rtol=1e-5)
            assert not hooks_of(model)


@pytest.mark.parametrize("name", MODELS)
def test_objectives_are_what_they_say(name):
    model, x, layer = model_of(name), windows(), LAYERS[name]
    maps, scores = taps.maps_of(model, layer, x), model(x)
    n_time, along = maps.shape[3], torch.linspace(-1, 1, N_UNITS[name])
    found = {kind: objective(model, x) for kind, objective in every_objective(layer, N_UNITS[name]).items()}
    for i in range(len(x)):
        assert torch.isclose(found["neuron"][i], maps[i, 1, :, n_time // 2].mean())
        assert torch.isclose(found["neuron at a sample"][i], maps[i, 1, 0, 3])
        assert torch.isclose(found["a neuron per window"][i], maps[i, (0, 1, 2, 3, 0)[i], :, n_time // 2].mean())
        assert torch.isclose(found["channel"][i], maps[i, 2].mean())
        assert found["largest"][i] == maps[i, 2].max()
        cost = np.mean([one @ (np.linspace(1, 2, LENGTH) * one) for one in x[i].numpy()])
        assert float(found["unlikeliness"][i]) == pytest.approx(cost, rel=1e-5)
        assert torch.isclose(found["layer"][i], (maps[i] ** 2).mean())
        expected = sum(maps[i, u].mean() * along[u] for u in range(len(along))) / along.norm()
        assert torch.isclose(found["direction"][i], expected, atol=1e-6)
        assert torch.isclose(found["class after softmax"][i], scores[i].softmax(0)[(0, 1, 2, 3, 0)[i]])
        grams = [torch.einsum("uat,vat->uv", m, m).flatten() for m in maps]
        likeness = [F.cosine_similarity(grams[i], grams[j], dim=0) for j in range(len(x)) if j != i]
        assert torch.isclose(found["likeness"][i], torch.stack(likeness).mean(), atol=1e-5)
    assert torch.equal(found["class before softmax"], scores[:, 1])
    assert torch.allclose(found["blocks"][:2], maps[:2, 0].mean((1, 2))) and torch.equal(
        found["blocks"][2:], scores[2:, 2]
    )


def test_clipping_counts_outputs_up_to_the_limit_of_each_window():
    model, x = model_of("sfhf"), windows()
    maps, limit = taps.maps_of(model, "conv1", x)[:, 2], torch.tensor([0.1, 0.2, 0.3, 0.0, torch.inf])
    found = objectives.channel("conv1", 2, at_most=limit)(model, x)
    assert torch.allclose(found, torch.stack([m.clamp(max=t).mean() for m, t in zip(maps, limit, strict=True)]))
    assert torch.allclose(objectives.neuron("conv1", 2, 4, at_most=0.1)(model, x), maps[:, :, 4].clamp(max=0.1).mean(1))
    largest = objectives.largest("conv1", 2, at_most=limit)(model, x)
    assert torch.equal(largest, torch.minimum(maps.amax((1, 2)), limit)) and (largest[:4] == limit[:4]).any()


@some
@given(st.lists(st.floats(-3, 3, width=32), min_size=3, max_size=3), st.integers(0, 100))
def test_objectives_add_up(factors, seed):
    model, x = model_of("one"), windows(4, seed)
    parts = [objectives.class_score(1), objectives.channel("first", 2), objectives.layer("second")]
    a, b, c = (part(model, x) for part in parts)
    combined = factors[0] * parts[0] + parts[1] * factors[1] - factors[2] * parts[2]
    assert torch.allclose(combined(model, x), factors[0] * a + factors[1] * b - factors[2] * c, atol=1e-5)
    assert torch.allclose((-combined)(model, x), -combined(model, x))
    assert torch.equal((parts[0] * torch.tensor([1.0, 2.0, 0.0, -1.0]))(model, x), a * torch.tensor([1.0, 2, 0, -1]))


def test_objectives_describe_themselves_and_a_window_alone_is_like_no_other():
    alone, two = (objectives.alike("second")(model_of("one"), windows(n)) for n in (1, 2))
    assert alone == 0 and torch.isclose(two[0], two[1]) and two[0] > 0
    both = objectives.neuron("conv2", 5, axis=1) - 0.5 * objectives.class_score(3)
    assert both.name == "conv2 unit 5 at the middle sample of axis 1 - (0.5 * (class 3 before softmax))"
    assert (-objectives.layer("conv1")).name == "-(all of conv1)" and both.places == ("conv2",)
    with pytest.raises(TypeError):
        objectives.class_score(1) + 1
    with pytest.raises(TypeError):
        objectives.class_score(1) * objectives.class_score(2)


BAD = {
    "first has units 0 to 4, not 9": objectives.channel("first", 9),
    "first has axiss? 0 to 0, not 2": objectives.channel("first", 1, axis=2),
    "first has samples 0 to 29, not 30": objectives.neuron("first", 1, time=30),
    "2 units, one per window, do not match 5 windows": objectives.channel("first", [1, 2]),
    "the class layer has units 0 to 3, not 4": objectives.class_score(4),
    "a direction of 2 units does not fit first, which has 5": objectives.direction("first", [1.0, 0.0]),
    "unknown layer 'conv9'": objectives.layer("conv9"),
    "blocks of 1, 1 windows do not match 5": objectives.in_blocks(
        [(objectives.layer("first"), 1), (objectives.layer("first"), 1)]
    ),
    "two different taps are called 'first'": objectives.layer("first") + objectives.layer(taps.Tap("first", "second")),
}


def test_what_cannot_be_optimized_is_said():
    model = model_of("one")
    for message, objective in BAD.items():
        with pytest.raises(ValueError, match=message):
            visualization.visualize(model, objective, windows(), n_steps=1)
        assert not hooks_of(model)


def test_other_bad_input_is_said():
    model = model_of("sfhf")
    for vector in ([0.0, 0.0], [[1.0]], [float("nan")]):
        with pytest.raises(ValueError, match="a direction should be"):
            objectives.direction("conv1", vector)
    with pytest.raises(ValueError, match=r"scores \(window, class\) from the whole network"):
        objectives.class_score(1)(visualization.PerAxis(model, "conv1"), windows())
    with pytest.raises(ValueError, match=r"start should be \(window, axis, time\)"):
        visualization.visualize(model, objectives.class_score(1), windows()[0])
    with pytest.raises(ValueError, match="one finite number per window"):
        visualization.visualize(model, objectives.class_score(1), windows() * float("nan"))
    with pytest.raises(ValueError, match="positive amplitude"):
        coordinates.in_time(0.0)
    for sensors in ((), ((0, 1),), ((0, 1, 2), (2, 3, 4))):
        with pytest.raises(ValueError, match="triples of different axes"):
            transforms.rotate(5, sensors)


# -------------------------------------------------------------------------------------------------------- transforms

OF_SIZE = {
    "background": (lambda share: transforms.background(windows(50), share), 0.5),
    "shift": (transforms.shift, 3),
    "scale": (transforms.scale, 0.2),
    "noise": (transforms.noise, 0.1),
    "rotate": (lambda degrees: transforms.rotate(degrees, SENSORS), 10.0),
}


@pytest.mark.parametrize("name", OF_SIZE)
def test_transforms_by_nothing_change_nothing_and_others_are_drawn_anew(name):
    x, generator = windows(20), torch.Generator().manual_seed(0)
    make, size = OF_SIZE[name]
    assert torch.equal(make(0)(x, generator), x)
    first, second = (make(size)(x, generator) for _ in range(2))
    assert not torch.equal(first, second) and first.shape == x.shape
    again, once_more = (make(size)(x, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(again, once_more)
    assert len({tuple(c.tolist()) for c in (first - x).flatten(1)}) > 3, "each window has a draw of its own"


@some
@given(st.lists(st.integers(-40, 40), min_size=1, max_size=6), st.integers(0, 1000))
def test_shifting_equals_rolling_each_window(samples, seed):
    x = windows(len(samples), seed)
    expected = np.stack([np.roll(w, s, axis=1) for w, s in zip(x.numpy(), samples, strict=True)])
    assert np.array_equal(transforms.shifted(x, torch.tensor(samples)).numpy(), expected)


@some
@given(st.integers(0, 1000), st.floats(-3, 3))
def test_rotation_equals_turning_sample_by_sample(seed, angle):
    x = torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    sensors = ((0, 1, 2), (6, 4, 3))
    about = torch.randn(3, 2, 3, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    turned = transforms.rotated(x, transforms.rotations(about, torch.full((3, 2), angle, dtype=torch.float64)), sensors)
    expected = x.clone()
    for i in range(3):
        for k, triple in enumerate(sensors):
            direction = about[i, k] / about[i, k].norm()
            turn = Rotation.from_rotvec((angle * direction).numpy())
            for t in range(5):
                expected[i, list(triple), t] = torch.tensor(turn.apply(x[i, list(triple), t].numpy()))
    assert torch.allclose(turned, expected) and torch.equal(turned[:, 5], x[:, 5])


def test_scaling_and_noise_stay_within_what_they_say():
    x, generator = torch.ones(2000, 2, 30), torch.Generator().manual_seed(0)
    scaled = transforms.scale(0.2)(x, generator)
    assert (scaled.amax((1, 2)) == scaled.amin((1, 2))).all()
    assert 0.8 <= scaled.min() < 0.82 and 1.18 < scaled.max() <= 1.2
    assert float((transforms.noise(0.3)(x, generator) - x).std()) == pytest.approx(0.3, rel=0.02)
    moved = transforms.shifted(torch.arange(30.0).expand(1, 1, 30), torch.tensor([1]))
    assert moved[0, 0, 1] == 0 and moved[0, 0, 0] == 29


def test_each_transform_is_drawn_once_beside_the_window_itself():
    x, aids = np.arange(12, dtype=np.float32).reshape(3, 4), [transforms.shift(1), transforms.scale(0.2)]
    found = transforms.beside(x, (2, 0), aids)
    assert all(np.array_equal(found["a real window"][:, k], x[[2, 0]]) for k in range(2))
    for k, aid in enumerate(aids):
        twin = aid(torch.tensor(x)[None], torch.Generator().manual_seed(1))[0]
        assert np.array_equal(found["after one draw"][:, k], twin[[2, 0]])


def test_sensors_are_found_by_the_names_of_their_axes():
    axes = ("arm x", "leg y", "arm y", "leg x", "arm z", "leg z")
    assert transforms.sensors_of(axes) == ((0, 2, 4), (3, 1, 5)) and transforms.sensors_of("xyz") == ((0, 1, 2),)
    assert transforms.sensors_of(("axis 0", "axis 1", "axis 2")) == () == transforms.sensors_of(("hip x", "leg y"))
    assert transforms.sensors_of(("hip x", *axes)) == ((1, 3, 5), (4, 2, 6)), "a single axis is left out"


# --------------------------------------------------------------------------------------------------- parametrizations


@some
@given(st.integers(0, 1000), st.integers(2, 41), st.sampled_from([None, 5.0]), st.booleans())
def test_parametrizations_come_back_to_the_same_windows(seed, length, bound, frequency):
    x = torch.randn(2, 3, length, generator=torch.Generator().manual_seed(seed)).clamp(-3, 3)
    space = coordinates.in_frequency(length, bound) if frequency else coordinates.in_time(bound)
    assert torch.allclose(space.signal(space.parameters(x)), x, atol=1e-4)


@pytest.mark.parametrize("length", [30, 31])
def test_frequency_space_is_a_sum_of_waves_over_f(length):
    space, time = coordinates.in_frequency(length), np.arange(length)
    zero = space.parameters(torch.zeros(1, 1, length))
    size = []
    for k in range(1, length // 2):
        p = zero.clone()
        p[0, 0, k, 0] = 1
        wave = space.signal(p)[0, 0].numpy()
        assert np.allclose(wave, wave[0] * np.cos(2 * np.pi * k * time / length), atol=1e-6)
        size.append(wave[0] * k)
    assert np.allclose(size, size[0], rtol=1e-4), "1/f"


def test_a_bound_is_never_left_and_cuts_what_lies_beyond():
    spaces = coordinates.in_time(2.0), coordinates.in_frequency(LENGTH, 2.0), coordinates.in_principal(moment(), 2.0)
    for space in spaces:
        assert space.signal(1e3 * torch.ones_like(space.parameters(windows()))).abs().max() <= 2
        cut = space.signal(space.parameters(3 * windows()))
        assert torch.allclose(cut, (3 * windows()).clamp(-2 * coordinates.REACH, 2 * coordinates.REACH), atol=1e-3)


def moment(length=LENGTH):
    """Second moment of smooth windows."""
    lag = np.subtract.outer(np.arange(length), np.arange(length))
    return np.exp(-np.abs(lag) / 5) * (1 + 0.3 * np.cos(lag / 2))


def test_a_step_in_principal_coordinates_is_one_along_the_pattern():
    """Amplitudes come back to the same windows, and the gradient of a linear unit leads along M w."""
    space, x, w = coordinates.in_principal(moment(), floor=0), windows(3), torch.randn(LENGTH)
    assert torch.allclose(space.signal(space.parameters(x)), x, atol=1e-5)
    p = torch.zeros(1, 1, LENGTH, requires_grad=True)
    (gradient,) = torch.autograd.grad((space.signal(p) @ w).sum(), p)
    pattern = torch.tensor(moment()).float() @ w
    assert F.cosine_similarity(space.signal(gradient)[0, 0], pattern, dim=0) > 1 - 1e-5
    assert F.cosine_similarity(w, pattern, dim=0) < 0.9


@pytest.mark.parametrize("length", [30, 31])
def test_phases_alone_keep_the_magnitudes_of_real_windows(length):
    x = torch.randn(40, 2, length, generator=torch.Generator().manual_seed(1)) + 0.5
    magnitude = coordinates.mean_magnitude(x)
    assert np.allclose(magnitude, np.abs(np.fft.rfft(x.numpy(), norm="ortho")).mean(0), atol=1e-6)
    space, alone = coordinates.in_phase(magnitude, length), nn.Identity()
    of = objectives.Objective("sample 3", (), lambda seen: seen.windows[:, :, 3].mean(1))
    made = visualization.visualize(alone, of, x[:5], space, n_steps=50)
    assert np.allclose(np.abs(np.fft.rfft(made.signal, norm="ortho")), magnitude.expand(5, -1, -1), atol=1e-5)
    assert (made.score > 2 * np.abs(made.history[:, 0])).all(), "phases agree at that sample"
    assert np.array_equal(np.sign(made.signal.mean(2)), np.sign(x[:5].mean(2).numpy())), "the mean has no phase"


# ------------------------------------------------------------------------------------------------------- the ascent


@pytest.mark.parametrize("at_most", [None, 0.7])
@pytest.mark.parametrize(
    "space", [coordinates.in_time(), coordinates.in_principal(moment())], ids=["time", "principal"]
)
def test_the_likeliest_window_of_a_linear_unit_is_its_pattern_not_its_filter(space, at_most):
    """Haufe et al. (2014): what goes along with the output in real windows, M w, at the threshold where clipped."""
    torch.manual_seed(3)
    unit = nn.Conv2d(1, 1, (1, 5), padding=(0, 2), bias=False)
    network = nn.Sequential(nn.Unflatten(1, (1, 1)), unit)
    objective = objectives.neuron("1", 0, at_most=at_most) - 0.1 * objectives.mahalanobis(np.linalg.inv(moment()))
    how = {"n_steps": 1000, "step_size": 0.2, "decay": 0.993}
    made = visualization.visualize(network, objective, 0.1 * windows(3)[:, :1], space, **how)
    w = np.zeros(LENGTH)
    w[13:18] = unit.weight.detach().numpy().ravel()  # as seen by the middle sample
    pattern, signal = moment() @ w, made.signal[:, 0]
    r = signal @ np.stack([pattern / np.linalg.norm(pattern), w / np.linalg.norm(w)], 1)
    r = r / np.linalg.norm(signal, axis=1, keepdims=True)
    assert (r[:, 0] > 0.999).all() and (r[:, 1] < 0.9).all()
    size = 1 / (2 * 0.1)  # where gain and cost of growing meet
    if at_most:
        assert at_most < size * (w @ pattern)
        size = at_most / (w @ pattern)
    assert signal == pytest.approx(np.tile(size * pattern, (3, 1)), abs=0.03 * np.abs(size * pattern).max())


def naive(model, objective, x, n_steps, step_size):
    """The plain loop, one window at a time."""
    found = []
    for one in x:
        p = one[None].clone().requires_grad_()
        optimizer = torch.optim.Adam([p], step_size)
        for _ in range(n_steps):
            optimizer.zero_grad()
            (-objective(model, p).sum()).backward()
            optimizer.step()
        found.append(p.detach()[0])
    return torch.stack(found)


@pytest.mark.parametrize("name", MODELS)
def test_ascent_without_aids_is_the_plain_loop_window_by_window(name):
    model, x, objective = model_of(name), windows(3), objectives.class_score(1) + objectives.layer(LAYERS[name])
    expected = naive(model, objective, x, 8, 0.03)
    made = visualization.visualize(model, objective, x, n_steps=8, step_size=0.03, waking_steps=0)
    assert np.allclose(made.signal, expected.numpy(), atol=1e-4)
    assert made.objective == objective.name and torch.equal(x, windows(3))


AIDS = [make(size) for make, size in OF_SIZE.values()]


def test_equal_seeds_give_equal_signals_and_others_do_not():
    about = (model_of("sfhf"), objectives.class_score(2), windows())
    first, again, other = (
        visualization.visualize(*about, transforms=AIDS, n_steps=6, seed=seed).signal for seed in (0, 0, 1)
    )
    assert np.array_equal(first, again) and not np.array_equal(first, other)


@pytest.mark.parametrize("name", MODELS)
def test_the_network_stays_as_it_is_also_after_an_error(name):
    model = MODELS[name]().train()
    next(model.parameters()).requires_grad_(False)
    state = copy.deepcopy(model.state_dict())
    wanted = [p.requires_grad for p in model.parameters()]
    x = windows()

    def fails(seen):
        raise RuntimeError("on purpose")

    visualization.visualize(model, objectives.class_score(0), x, transforms=AIDS, n_steps=3)
    with pytest.raises(RuntimeError, match="on purpose"):
        visualization.visualize(model, objectives.Objective("fails", (LAYERS[name],), fails), x, n_steps=3)
    with pytest.raises(RuntimeError, match="on purpose"):
        visualization.visualize(model, objectives.layer(LAYERS[name]), x, prior=fails, n_steps=3)
    assert model.training and not hooks_of(model)
    assert [p.requires_grad for p in model.parameters()] == wanted
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in state.items())


def test_a_silent_unit_is_woken():
    model = model_of("sfhf")
    model.norm_conv1.bias.data[2] = -3.0  # rests, and is silent around zero
    view = visualization.PerAxis(model, "conv1")
    objective, start = objectives.channel(view.tap("conv1"), 2), torch.zeros(1, 1, LENGTH) + 0.01 * windows(1)[:, :1]
    assert objective(view, start) == 0
    asleep = visualization.visualize(view, objective, start, n_steps=60, step_size=0.2, waking_steps=0)
    awake = visualization.visualize(view, objective, start, n_steps=60, step_size=0.2)
    assert asleep.score == 0 and np.array_equal(asleep.signal, start.numpy()) and awake.score > 0
    how = {"n_steps": 60, "step_size": 0.2, "waking_slope": 1.0}
    late = [visualization.visualize(view, objective, start, waking_steps=n, **how).score for n in (1, 60)]
    assert late[0] == 0 < late[1], "a backward slope in all steps"


def test_steps_alternate_with_the_prior():
    about, zero = (model_of("one"), objectives.class_score(1), windows()), torch.zeros_like
    calm = visualization.visualize(*about, prior=zero, prior_rate=1.0, n_steps=4).signal
    assert np.abs(calm).max() < 1e-6
    free, held = (
        visualization.visualize(*about, prior=zero, prior_rate=rate, n_steps=20).signal for rate in (0.0, 0.2)
    )
    plain = visualization.visualize(*about, n_steps=20).signal
    assert np.array_equal(free, plain) and np.abs(held).mean() < np.abs(free).mean()


def test_single_axes_of_sfhf_are_seen_as_in_the_whole_network():
    model, x = model_of("sfhf"), windows()
    view = visualization.PerAxis(model, "conv3")
    for layer in model.layers:
        own = taps.maps_of(model, layer, x)
        for axis in range(N_AXES):
            one = taps.maps_of(view, view.tap(layer), x[:, [axis]])
            assert torch.allclose(one[:, :, 0], own[:, :, axis], atol=1e-6)
        before = taps.maps_of(view, view.tap(layer, before_relu=True), x)
        assert torch.allclose(before.relu(), own, atol=1e-6) and before.min() < 0
    with pytest.raises(ValueError, match="only conv1 are seen axis by axis here, not conv2"):
        visualization.PerAxis(model, "conv1").tap("conv2")
    with pytest.raises(ValueError, match="only conv1, conv2, conv3 are seen axis by axis here, not dense"):
        visualization.PerAxis(model, "dense")


# ------------------------------------------------------------------------------------------- windows beside a signal


@some
@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(0, 4)), min_size=5, max_size=30), st.integers(1, 3))
def test_extremes_equal_picking_one_by_one(pairs, n):
    values, recording = np.array([v for v, _ in pairs], float), np.array([r for _, r in pairs])
    if n > len(set(recording)):
        with pytest.raises(ValueError, match="windows of different recordings are wanted"):
            visualization.extremes(values, recording, n)
        return
    for sign, found in zip((1, -1), visualization.extremes(values, recording, n), strict=True):
        left, expected = list(range(len(values))), []
        while len(expected) < n:
            best = max(left, key=lambda i: (sign * values[i], -i))
            expected.append(best)
            left = [i for i in left if recording[i] != recording[best]]
        assert found.tolist() == expected


def test_the_bound_is_a_quantile(tiny_windows):
    amplitude = np.abs(tiny_windows.train.series)
    assert visualization.amplitude_bound(tiny_windows.train, 1.0) == pytest.approx(amplitude.max())
    assert (amplitude <= visualization.amplitude_bound(tiny_windows.train, 0.9)).mean() == pytest.approx(0.9, abs=0.01)


# ----------------------------------------------------------------------------------------------------------- devices

ELSEWHERE = torch.zeros(4, 3, LENGTH, device="meta")  # which refuses tensors of other devices, as CUDA does
REAL = torch.randn(20, 3, LENGTH, generator=torch.Generator().manual_seed(0))
MOMENT = np.cov(REAL[:, 0].numpy().T)
TRANSFORMS = {
    "shift": transforms.shift(2),
    "scale": transforms.scale(0.2),
    "noise": transforms.noise(0.1),
    "background": transforms.background(REAL, 0.5),
    "rotation": transforms.rotate(10.0, [(0, 1, 2)]),
}
WAYS = {
    "time": coordinates.bounded(coordinates.Parametrization(lambda x: x, lambda p: p), 2.0),
    "frequency": coordinates.in_frequency(LENGTH, 2.0),
    "principal": coordinates.in_principal(MOMENT),
    "phase": coordinates.in_phase(coordinates.mean_magnitude(REAL), LENGTH),
}
COSTS = {
    "spectrum": objectives.spectrum(objectives.mean_power(REAL)),
    "unlikeliness": objectives.mahalanobis(np.linalg.inv(MOMENT)),
    "direction": objectives.direction("a", np.ones(5)),
    "likeness": objectives.alike("a"),
    "unit": objectives.channel("a", [0, 1, 2, 3]),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_stay_on_the_windows_device(name):
    assert TRANSFORMS[name](ELSEWHERE, torch.Generator().manual_seed(0)).device == ELSEWHERE.device


@pytest.mark.parametrize("name", WAYS)
def test_coordinates_stay_on_the_windows_device(name):
    assert WAYS[name].signal(WAYS[name].parameters(ELSEWHERE)).device == ELSEWHERE.device


@pytest.mark.parametrize("name", COSTS)
def test_objectives_stay_on_the_windows_device(name):
    seen = SimpleNamespace(windows=ELSEWHERE, maps={"a": torch.zeros(4, 5, 3, LENGTH, device="meta")})
    assert COSTS[name].of(seen).device == ELSEWHERE.device
