"""The study of generators that teach each other: what it compares, measures and concludes."""

from dataclasses import replace
from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from harvis_utils.data import archive, synthetic, windowing
from harvis_utils.lenses import gan_dissection
from harvis_utils.metrics import generative, recovery
from harvis_utils.paper import generating
from harvis_utils.paper.generating import ALL, BESIDE, COMPARED, HALF, JUDGE, MAD, ROWS, SPECTRAL, TAUGHT
from harvis_utils.settings import LONG_WINDOWS, GanSettings, GenerationSettings, ModelSettings
from harvis_utils.training import adversarial, supervised
from harvis_utils.training.adversarial import Game

BASE = GanSettings(n_units=4, n_latent=8, batch_size=8, n_steps=4, stages=(0.5, 1.0))
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def windows():
    return windowing.cut(archive.generate(synthetic.DATASET), LONG_WINDOWS).every(12)


@pytest.fixture(scope="module")
def rows(windows):
    return generating.settings_of(BASE, windows.train, 2.0)


# ------------------------------------------------------------------------------------------------------ measures


def test_axes_of_real_windows_show_one_activity_together(windows):
    truth, rng = synthetic.motifs(), np.random.default_rng(0)
    x = windows.test.x
    real, scrambled = (generative.motif_content(of, truth) for of in (x, recovery.scrambled(x, rng)))
    assert real["joint motifs"] > 0.9 and real["activities"] == 1 and real["motif match"] > 0.95
    assert max(real["joint motifs, chance"], scrambled["joint motifs"]) < 0.15
    one = generative.motif_content(x[windows.test.activity == 3], truth)
    assert one["activities"] == 1 / 8 and one["joint motifs, chance"] > 0.8  # one activity alone has no joint to lose


def test_alike_are_windows_of_one_vector():
    rng = np.random.default_rng(0)
    x = 3 + rng.standard_normal((200, 2, 16))
    same = generative.alike({"a": x, "b": 5 * x + 1})
    assert same["alike"] == pytest.approx(1) and abs(same["alike, other vectors"]) < 0.05
    assert generative.alike({"a": x, "b": -x})["alike"] == pytest.approx(-1)
    assert np.isnan(generative.alike({"a": x})["alike"]) and np.isnan(generative.alike({})["alike"])


def test_sets_of_other_sizes_than_the_real_ones_are_refused(windows):
    real = generative.reference(windows, 20, np.random.default_rng(0))
    with pytest.raises(generative.JudgeError, match="sets need one size: own 10, training 20, held out 20"):
        generative.by_judge(None, {"own": windows.test.x[:10]}, real)


# ---------------------------------------------------------------------------------------------------------- rows


def test_rows_differ_in_what_their_names_say(windows, rows):
    assert tuple(rows) == ROWS and rows[generating.PLAIN] == replace(BASE, norm="batch")
    assert rows[TAUGHT].alpha == 2.0 and rows["transfer, alpha 1000"] == replace(rows[TAUGHT], alpha=1000.0)
    weights = {name: generating.n_weights(windows.train, of) for name, of in rows.items()}
    assert weights[generating.WIDE] == pytest.approx(weights[MAD], rel=0.1)
    made = Game(windows.train, rows[MAD], 0).networks.values()
    assert weights[MAD] == sum(p.numel() for of in made for p in of.parameters())


def test_shuffled_gates_are_another_graph_with_the_same_gates():
    graph, other = generating.GRAPH, generating.SHUFFLED
    assert sorted(g for *_, g in graph) == sorted(g for *_, g in other)
    for order in permutations(("G1", "G2", "G3")):
        names = dict(zip(order, ("G1", "G2", "G3"), strict=True))
        assert {(names[t], names[s], gate) for t, s, gate in graph} != {*other}
    assert not any(s == "G2" for _, s, _ in graph)  # nobody teaches it


def test_a_mixture_has_equal_parts_of_other_vectors(windows, rows):
    sets = generating.sets_of(Game(windows.train, rows[MAD], 0), 10)
    assert {name: len(of) for name, of in sets.items()} == {ALL: 10, "G1": 10, "G2": 10, "G3": 10}
    assert all(np.array_equal(sets[ALL][i], sets[f"G{i % 3 + 1}"][i]) for i in range(10))
    assert list(generating.sets_of(Game(windows.train, BASE, 0), 5)) == [ALL]


# ----------------------------------------------------------------------------------------------------- any graph


def test_edges_that_are_cut_off_cost_nothing():
    def loss(source, to):
        assert source != "C"
        return torch.tensor({"A": 1.0, "B": 10.0}[source])

    graph = {("A", "B"): "through", ("B", "A"): "positive", ("A", "D"): "negative", ("B", "D"): "through"}
    found = adversarial.node_losses(graph | {("C", "A"): "cut off"}, loss, 0.25)
    assert {node: float(of) for node, of in found.items()} == {"B": 1.0, "A": 2.5, "D": 10.75}
    with pytest.raises(ValueError, match="unknown gate 'ajar'"):
        adversarial.node_losses({("A", "B"): "ajar"}, loss, 0.5)


def test_only_the_classifier_that_is_taught_learns_from_the_other(windows):
    model = ModelSettings(4, n_layers=1, pool="mean", n_dense=8)
    alone, taught, mutual = (
        generating.classifiers.function(windows, model, graph, 0, n_steps=12) for graph in generating.TWO.values()
    )
    assert alone["A"] == taught["A"] and len({tuple(of.values()) for of in (alone, taught, mutual)}) == 3


# ----------------------------------------------------------------------------------------------------- dissection


def test_a_silenced_unit_is_one_without_weights_behind_it(windows):
    own = Game(windows.train, BASE, 0).generators[0].eval()
    z = torch.randn(6, 8)
    with torch.no_grad():
        with gan_dissection.silenced(own, "stage4", 2):
            silent = own(z)
        assert not torch.equal(silent, whole := own(z))
        own.out.weight[2] = 0
        assert torch.allclose(own(z), silent, atol=1e-6) and not torch.equal(own(z), whole)


def test_the_unit_that_makes_a_waveform_is_found(windows):
    own, z = Game(windows.train, BASE, 0).generators[0], torch.randn(60, 8)
    with torch.no_grad():
        for _ in range(60):  # so that its batch norms know the scale of what they get
            own(z)
        own.eval().out.weight.zero_()
        own.out.weight[1, 3] = torch.tensor([0.0, 4.0, 4.0, 0.0])  # one unit puts peaks on an axis, nothing else does
    table, each = gan_dissection.effects(own, z, windows, 19)
    last = each[(each["stage"] == "stage4") & (each["cost"] > 0)]
    assert set(last["unit"]) == {1} and list(table["stage"]) == list(own.stages)
    found, shown = gan_dissection.costliest(own, windows, 3)
    assert found["cost"] > 0 and shown["whole"].shape == (6, 3, 64)
    assert np.abs(shown["whole"] - shown["unit silenced"])[3].max() > 0.1


def test_discriminators_are_dissected_with_and_without_training(windows):
    settings, split = replace(BASE, n_generators=3), windows.train.every(2)
    known = gan_dissection.known_concepts(windows, split, synthetic.motifs())
    found = [gan_dissection.of_discriminator.function(windows, settings, 0, 2, known, 19, of) for of in (True, False)]
    assert all(list(of["units"]) == [4, 8, 16, 32] for of in found)
    assert found[0]["mean best IoU"].between(0, 1).all() and not found[0].equals(found[1])
    assert "motif" in known.kinds and gan_dissection.known_concepts(windows, split, None).kinds.count("motif") == 0


# ------------------------------------------------------------------------------------------------------- verdicts


def study_of(values: dict[str, float], n_steps: int = 1200) -> SimpleNamespace:
    """A study whose scores are those of all rows alike but for what ``values`` say of (row, set, column)."""
    scores = []
    for seed in range(3):
        for row in ROWS:
            for name in (ALL,) if row in (*COMPARED[:2], generating.WIDE) else (ALL, "G1", "G2", "G3"):
                for share in (0.5, 1.0):
                    about = {"row": row, "kind": row, "seed": seed, "set": name, "share": share}
                    told = {"IS": 4.0, "FID": 10.0, "FID, held out": 10.0, "apart": 5.0, "covered": 0.5, "alike": 0.0}
                    told |= {column: of for (r, s, column), of in values.items() if (r, s) == (row, name)}
                    scores.append(about | told | {"alike, other vectors": 0.0})
    # other people are far from both, which must not make a distance small
    told = {"row": "control", "IS": 6.0, "FID": 0.5, "FID, held out": 50.0}
    table = pd.DataFrame(scores + [told | {"kind": name, "set": name} for name in generative.CONTROLS])
    judged = pd.concat([table.assign(judge=who) for who in (JUDGE, BESIDE)])
    measured = table[table["share"].ne(0.5)].drop(columns=["IS", "FID", "covered"])
    own = GenerationSettings(gan=replace(BASE, n_steps=n_steps))
    return SimpleNamespace(tables={"judged": judged, "measured": measured}, own=own, unfit="")


def directions(study) -> dict[str, str]:
    return {of["id"]: of["direction"] for of in generating.judged(study)}


def test_verdicts_follow_the_scores():
    equal = directions(study_of({}))
    assert set(equal) == set(generating.QUESTIONS) and set(equal.values()) == {"no"}
    told = {(TAUGHT, ALL, "IS"): 4.4, (SPECTRAL, ALL, "FID"): 8.0, (MAD, ALL, "FID"): 12.0, (TAUGHT, "G1", "IS"): 5.0}
    told |= {(TAUGHT, ALL, "alike"): 0.3, (TAUGHT, "G3", "covered"): 0.8}
    assert set(directions(study_of(told)).values()) == {"yes"}
    less = directions(study_of(told | {(generating.PLAIN, ALL, "FID"): 7.9, (MAD, "G2", "IS"): 5.1}))
    assert (less["K2"], less["K1 best generator"], less["K1"]) == ("no", "no", "yes")


def test_distances_count_in_those_of_two_halves():
    study = study_of({(SPECTRAL, ALL, "FID"): 9.1, (SPECTRAL, ALL, "FID, held out"): 9.0})
    second = next(of for of in generating.judged(study) if of["id"] == "K2")
    assert second["controls"]["to people held out"]["value"] == pytest.approx(1 / 0.5)
    assert directions(study)["K2"] == "no"  # 0.9 is less than twice the 0.5 between halves
    study.tables["judged"].loc[study.tables["judged"]["set"] == HALF, "FID"] = 0.4
    assert directions(study)["K2"] == "yes"


def test_a_smoke_run_judges_nothing_and_says_why():
    found = generating.judged(study_of({}, n_steps=40))
    assert {of["direction"] for of in found} == {"not testable"}
    assert found[0]["why"].startswith("Not testable: 40 steps are a smoke test")


def test_with_a_judge_that_knows_too_little_nothing_is_judged_and_nothing_fails(windows):
    model = supervised.new_model(windows, ModelSettings(4, n_layers=1, pool="mean", n_dense=8), 0)
    classes = supervised.predict(model, windows.test)
    own = generating.Study.__new__(generating.Study)
    own.windows, own.own, own.made_up = windows, GenerationSettings(), False
    own.judges = {JUDGE: SimpleNamespace(model=model, predicted={"test": classes})}
    assert "below 0.65 it judges nothing" in own.unfit
    made = study_of({(TAUGHT, ALL, "IS"): 4.4})
    made.unfit = own.unfit
    found = generating.judged(made)
    assert {of["direction"] for of in found} == {"not testable"} and own.unfit in found[0]["why"]
    assert f"No score below may be believed: {own.unfit}." in generating.answer(made, found)
    own.judges[JUDGE].predicted["test"] = windows.test.activity
    del own.unfit
    assert own.unfit == ""


def test_the_answer_tells_which_controls_win_and_a_table_where_training_was_too_short():
    study = study_of({(generating.WIDE, ALL, "IS"): 4.1})
    falls = study.tables["judged"]["share"].eq(1.0) & study.tables["judged"]["row"].eq(MAD)
    study.tables["judged"].loc[falls, "FID"] = 6.0
    said = generating.answer(study, generating.judged(study))
    assert said.startswith("**No generator comes as near to real windows as windows that do not move at all**, flat,")
    assert "**No: generators that teach each other have no higher inception score" in said
    higher, rest = said.split("as high or higher: ")[1].split(". By the second judge")
    assert "one wide generator 4.10 (10.00)" in higher and TAUGHT + " 4.00" not in higher
    assert "scrambled phases 6.00 (0.50)" in rest
    study.tables["judged"].loc[study.tables["judged"]["set"] == generating.FLAT, "IS"] = 3.0
    assert generating.answer(study, generating.judged(study)).startswith("**No: generators")
    assert generating.trained_enough(study.tables["judged"])[MAD] == -0.4
