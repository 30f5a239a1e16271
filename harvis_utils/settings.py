"""Names of profiles and data sets turned into frozen, typed settings; every path anchored at the repository.

Where the package is installed without its repository, paths count from the folder in which Python was started.

All profiles and every number that one may tune stand here, each with what fixes it: ``Paper:`` or ``Choice:``.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import os
import typing
from dataclasses import dataclass, field, replace
from pathlib import Path


def repository(package: Path) -> Path:
    """The checkout in which the package's folder lies, else, for an installed package, the current folder."""
    root = package.parent
    return root if (root / "pyproject.toml").exists() and (root / "notebooks").is_dir() else Path.cwd()


REPOSITORY = repository(Path(__file__).resolve().parent)

#: suffix of a data set whose archive is used although its digests do not match the pinned ones
APPROXIMATE = "-approximate"


class HarvisError(Exception):
    """What a person can put right; the message says what is wrong and what to do."""

    code = 1  # what a command ends with


class SettingsError(HarvisError, ValueError):
    """An unknown profile, data set or notebook parameter; the message lists the valid ones."""


# ------------------------------------------------------------------------------------------------ settings


@dataclass(frozen=True)
class WindowSettings:
    """How recordings become network inputs (paper section 4.2)."""

    rate_hz: float = 30.0  # Paper: resampled to 30 Hz
    length: int = 30  # Paper: N_T = 30 samples, one second
    step: int = 15  # Paper: 50 % overlap


#: windows of the systems of notebooks 15 and later, 2.1 s: the self-attention network of their source sees 64 samples
LONG_WINDOWS = WindowSettings(length=64, step=32)


@dataclass(frozen=True)
class ModelSettings:
    """SF-HF (paper section 4.2, Fig. 2, after Muenzner et al. 2017)."""

    n_units: int = 64  # Paper: 64 units in each convolution
    n_layers: int = 3  # Paper: Conv1 to Conv3 are the ones shown
    kernel: int = 5  # Paper: 1 x 5
    batch_norm: bool = True  # Choice: the largest single factor in the study of what F1 depends on
    pool: str = "none"  # Choice: temporal pooling after the trunk: none, max2 or mean
    mixing: str = "dense"  # Choice: axes mixed by the dense layer; "conv": by an (axes x 1) convolution before it
    n_dense: int = 128  # Choice: width of the dense layer before the classes; 0 is none
    dropout: float = 0.5  # Choice: before the class layer


@dataclass(frozen=True)
class LeakySettings(ModelSettings):
    """SF-HF with Leaky ReLUs (notebook 13b)."""

    slope: float = 0.1  # Choice: below zero, in both passes


@dataclass(frozen=True)
class PooledSettings(ModelSettings):
    """SF-HF with pooling by two behind every convolution (notebook 12c); ``pool`` and ``mixing`` have no part in it."""

    pooling: str = "max"  # Choice: or "mean", which has no switches


@dataclass(frozen=True)
class SelfAttentionSettings:
    """1D-SAN and what it is compared with (notebook 15)."""

    kind: str = "attention"  # Choice: or what stands for it: networks.self_attention.KINDS
    n_units: int = 32  # Choice: not stated
    footprints: tuple[int, ...] = (3, 5, 5)  # Choice: the source's; instants that each block looks at
    dilations: tuple[int, ...] = (1, 1, 1)  # Choice: the source's "interval" may mean this instead
    position: bool = True  # Choice: the source names no position; without it time has no direction


@dataclass(frozen=True)
class TrainingSettings:
    """Adam on cross entropy (paper section 4.2)."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)  # Paper: five networks
    epochs: int = 200  # Paper
    learning_rate: float = 1e-4  # Paper
    batch_size: int = 64  # Choice: not stated
    weight_decay: float = 0.0  # Choice: not stated
    evaluate_every: int = field(default=1, metadata={"unless": 1})  # Choice: epochs between scores, beside the last one
    schedule: str = field(default="constant", metadata={"unless": "constant"})  # Choice: or "cosine", to 0 by epochs


@dataclass(frozen=True)
class RecurrentSettings:
    """A GRU over all axes (Cho et al. 2014; for activities e.g. Hammerla et al. 2016)."""

    n_units: int = 64  # Choice: as many as SF-HF has in each convolution
    pool: str = "last"  # Choice: what the classes see of the outputs over time: the last one or their mean
    dropout: float = 0.5  # Choice: before the class layer


#: networks that are trained in minutes: those of the quick profile, and where many are compared with one another
SMALL_MODEL = ModelSettings(n_units=16, n_dense=32)
SMALL_TRAINING = TrainingSettings(seeds=(0, 1), epochs=6, learning_rate=2e-3)


@dataclass(frozen=True)
class GanSettings:
    """Generators of windows of 64 samples against one discriminator (notebook 17)."""

    n_generators: int = 1  # Choice: 1 is DCGAN; more are MAD-GAN, or with gates teach each other
    norm: str = "spectral"  # Choice: of the discriminator: spectral, or batch as in DCGAN
    gates: tuple[tuple[str, str, str], ...] = ()  # Choice: edges (from, to, gate) that are not as in MAD-GAN
    alpha: float = 1.0  # Choice: weight of what generators learn from each other
    n_units: int = 64  # Choice: of the narrowest stage
    n_latent: int = 100  # Choice: the source's
    batch_size: int = 256  # Choice: the source's
    n_steps: int = 20_800  # Choice: the source's 200 epochs of DSADS
    learning_rate: float = 2e-4  # Choice: DCGAN's; the source does not say
    stages: tuple[float, ...] = (0.25, 0.5, 1.0)  # Choice: shares of the steps after which generators are kept


#: Choice: enough for a macro F1 above what a judge needs, on made-up data and on recordings of people
JUDGE = ModelSettings(32, pool="mean", mixing="conv", n_dense=0, dropout=0.0)
SECOND_JUDGE = ModelSettings(16, n_layers=2, kernel=9, pool="mean", n_dense=64, dropout=0.0)
JUDGE_TRAINING = TrainingSettings(seeds=(), epochs=6, learning_rate=4e-3, batch_size=128, schedule="cosine")


@dataclass(frozen=True)
class GenerationSettings:
    """Generators that teach each other, and the two judges of what they make (notebook 17)."""

    windows: WindowSettings = LONG_WINDOWS  # Choice: the generators' ladder ends at 64 samples
    gan: GanSettings = GanSettings()  # Choice: what the rows of the study have in common
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)  # Choice
    choosing_seeds: tuple[int, ...] = (100, 101, 102)  # Choice: of generators on which alpha is balanced
    n_scored: int = 2000  # Choice: windows of each set that is scored; fewer where the data have fewer
    judge: ModelSettings = JUDGE  # Choice: decides; dropout would leave its probabilities blurred
    second: ModelSettings = SECOND_JUDGE  # Choice: of another kind
    judging: TrainingSettings = JUDGE_TRAINING  # Choice: of both
    judge_seeds: tuple[int, int] = (500, 501)  # Choice: of networks that no other notebook uses
    least_f1: tuple[float, float] = (0.65, 0.9)  # Choice: of a judge on test people; the second for made-up data
    thinning: int = 30  # Choice: every n-th training window is dissected
    n_draws: int = 39  # Choice: draws of each null of the dissection
    n_silenced: int = 200  # Choice: generated windows in which each unit of a generator is silenced


@dataclass(frozen=True)
class SearchSettings:
    """The search for a graph of generators that teach each other (notebook 17b)."""

    n_trials: int = 300  # Choice: of each search, and graphs by chance and plain seeds; the source has 1,500
    n_steps: int = 5200  # Choice: of a trial: the source's 50 epochs of DSADS
    rungs: tuple[float, ...] = (1 / 3, 2 / 3)  # Choice: shares of the steps after which a trial may be stopped
    n_at_once: int = 2  # Choice: trials that a search asks for at a time, however many are trained side by side
    n_scored: int = 1000  # Choice: windows of each generator of a trial; of what is trained again as in notebook 17
    n_retrained: int = 20_800  # Choice: steps of what is trained again: the source's 200 epochs of DSADS
    seeds: tuple[int, ...] = (300, 301, 302, 303, 304)  # Choice: of what is trained again; no trial has them
    n_shuffled: int = 10  # Choice: graphs with the winner's gates at other edges, trained with these seeds in turn
    n_draws: int = 2000  # Choice: draws of the permutation test


@dataclass(frozen=True)
class StyleSettings:
    """Windows given the style of other people: class-aware StarGAN v2 (notebook 18b)."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)  # Choice
    windows: WindowSettings = LONG_WINDOWS  # Choice: networks halve windows of 64 samples four times
    n_units: int = 32  # Choice: of the widest maps
    content_norm: str = "moments"  # Choice: or "instance", "none first" (networks.style.CONTENT_NORMS)
    task_weight: float = 1.0  # Choice: of the classes of source windows; not stated; 0 with the next: StarGAN v2
    semantic_weight: float = 1.0  # Choice: of the classes before and after translation; not stated
    diversity_weight: float = 1.0  # Paper: falls linearly to 0
    alternate: bool = False  # Paper: styles of random numbers and of windows in every step; True: in turns
    batch_size: int = 32  # Choice: half of each domain; 8 images
    n_steps: int = 100_000  # Paper
    learning_rate: float = 2e-4  # Choice: 1e-4 for images


@dataclass(frozen=True)
class BranchSettings:
    """ST-ABN, SF-HF with an attention branch (:mod:`harvis_utils.networks.attention_branch`)."""

    n_units: int = 64  # Choice: units in each convolution
    spatial: bool = True  # Paper: attention to places; here to axes at samples
    temporal: str = "absolute"  # Paper; Choice: "conv" along time, or "none"
    fusion: str = "concat"  # Paper; Choice: "residual", as in the attention branch network for images
    branch: str = "labels"  # Paper; Choice: "other labels" as a control, or "none"
    dropout: float = 0.5  # Choice: before the class layer


@dataclass(frozen=True)
class MaximizationSettings:
    """Activation Maximization (paper sections 3 and 4.3).

    Amplitudes are in G; where windows have another unit, in s (:class:`harvis_utils.maximization.coordinates.Scale`).
    """

    n_steps: int = 5000  # Paper
    tolerance_g: float = 1e-6  # Choice: a signal stops once its remaining steps cannot move it by more; 0: never
    weight: float = 0.1  # Paper: w, the weight of the penalties
    reduction: str = "sum"  # Choice: L2 and TV as sums, as written, or as means ("mean"); notebook 07 compares both
    start_amplitude_g: float = 0.3  # Paper: the start is a sine of 0.3 G
    start_periods: float = 1.0  # Choice: one period per window; not stated
    th_aap_g: float = 1.5  # Paper: amplitude beyond which AAP penalizes
    lowpass_hz: float = 5.0  # Choice: cut-off of the low-pass method; notebook 03 sweeps it
    lowpass_order: int = 4  # Choice


@dataclass(frozen=True)
class SimilaritySettings:
    """Ssim (paper section 4.5); amplitudes as in :class:`MaximizationSettings`."""

    piece: int = 10  # Paper: s_w, samples cut from a signal
    n_similar: int = 50  # Paper: N_sim
    fail_amplitude_g: float = 10.0  # Paper: th_fail


@dataclass(frozen=True)
class AtlasSettings:
    """t-SNE map of the signals (paper section 6)."""

    perplexity: float = 15.0  # Choice: not stated; notebook 05 shows others beside it
    seed: int = 0  # Choice


@dataclass(frozen=True)
class ReadingSettings:
    """The search for a reading of the step sizes, which paper section 4.3 states and cannot mean."""

    seeds: tuple[int, ...] = (100, 101)  # Choice: networks trained for this alone, so that the others stay untouched
    n_units: int = 12  # Choice: units tried in each layer, spread evenly
    # momentum is left out: its readings hardly differ from those of plain ascent with ten times the step
    ascent: tuple[float, ...] = (1e-4, 0.3, 0.6, 1.0, 3.0)  # Choice: step sizes, the stated one first
    adam: tuple[float, ...] = (1e-4, 0.01, 0.03, 0.1, 0.3, 1.0)  # Choice: step sizes in G, the stated one first
    weights: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3)  # Choice: w of sums, the stated one among them
    mean_weights: tuple[float, ...] = (0.1, 0.3, 1.0)  # Choice: w of means, which pull less
    tolerance_g: float = 0.01  # Choice: a signal stops once its remaining steps cannot move it by more


@dataclass(frozen=True)
class PriorSettings:
    """The learned prior of real windows (notebook 10)."""

    most_noise_g: float = 0.4  # Choice: each window gets noise of its own standard deviation, from 0 to this
    n_hidden: int = 256  # Choice
    n_code: int = 64  # Choice: the middle layer
    n_steps: int = 4000  # Choice
    batch_size: int = 256  # Choice
    learning_rate: float = 2e-3  # Choice: falls to 0 along a cosine
    seed: int = 0  # Choice


@dataclass(frozen=True)
class DreamSettings:
    """Dreams of another class (notebook 10)."""

    n_windows: int = 24  # Choice
    n_steps: int = 100  # Choice
    step_size: float = 0.03  # Choice
    prior_rate: float = 0.1  # Choice: how far each step of denoising goes
    seed: int = 0  # Choice


@dataclass(frozen=True)
class EvolutionSettings:
    """One network kept at several epochs of its training (notebook 12b)."""

    seed: int = 300  # Choice: of a network that no other notebook uses
    n_trained: int | None = None  # Choice: at most so many training windows, every n-th of all; None: all


@dataclass(frozen=True)
class ArchitectureSettings:
    """Variants of the network, small so that many fit into a notebook (notebook 12b)."""

    variants: tuple[str, ...] = ()  # Choice: of architecture.VARIANTS; none named: all
    seeds: tuple[int, ...] = (400, 401, 402, 403, 404)  # Choice: of networks that no other notebook uses
    n_windows: int = 2000  # Choice: about so many training windows, every n-th of all
    model: ModelSettings = SMALL_MODEL  # Choice
    training: TrainingSettings = SMALL_TRAINING  # Choice


@dataclass(frozen=True)
class TransferSettings:
    """A frozen trunk with a new last layer, and networks from scratch beside it (notebook 12b)."""

    n_steps: int = 150  # Choice: of Adam, however few the windows: from scratch
    n_head_steps: int = 300  # Choice: of Adam on all windows at once: last layer
    head_rate: float = 0.01  # Choice
    weight_decay: float = 1e-3  # Choice: of the last layer


@dataclass(frozen=True)
class SlopeSettings:
    """Ascents under backward slopes, and networks trained with them (notebook 13)."""

    n_steps: int = 200  # Choice: enough that the curves are flat at their end; all of DSADS takes some minutes
    n_starts: int = 5  # Choice: of starting_points
    trained: tuple[float, ...] = (0.0, 0.01, 0.1, 0.3, 1.0)  # Choice: slopes that networks are trained with
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)  # Choice
    rates: tuple[float, ...] = (5e-4, 2e-3)  # Choice: tried on other seeds; 8e-3 was too large for every slope
    epochs: int = 6  # Choice
    n_windows: int = 3000  # Choice: about so many training windows, every n-th of all
    model: ModelSettings = SMALL_MODEL  # Choice
    n_inside: int = 8  # Choice: units of each layer that the paper's method climbs with slopes, spread evenly (13b)


@dataclass(frozen=True)
class VisualSettings:
    """Feature visualization that is to explain units (notebook 09)."""

    n_steps: int = 200  # Choice
    step_size: float = 0.05  # Choice
    prior_rate: float = 0.1  # Choice: share of the way to the denoised signal that every step goes
    n_units: int = 16  # Choice: units of each layer on which one is chosen, spread evenly
    only: tuple[str, ...] = ()  # Choice: variants that are tried, by name or family (paper.variants); empty: all


@dataclass(frozen=True)
class RecoverySettings:
    """Planted motifs found again (notebook 08): draws of the nulls, and levels of what recall may depend on."""

    n_random: int = 20  # Choice: networks with random weights; a 95 % point, leaving one out, needs 20
    first_random_seed: int = 1000  # Choice: their seeds are this one and the next ones
    thinning: int = 10  # Choice: th_eap of networks made here is taken over every n-th training window
    n_noise: int = 1000  # Choice: draws of noise
    n_control: int = 10  # Choice: draws of phase-scrambled signals and of real windows
    n_matchings: int = 20  # Choice: draws of each null of the agreement of networks
    quantile: float = 0.95  # Choice: of a null, which a signal must exceed
    seed: int = 0  # Choice
    seeds: tuple[int, ...] = (0, 1, 2)  # Choice: networks per level
    noise_g: tuple[float, ...] = (0.0, 0.05, 0.1, 0.2, 0.3)  # Choice: standard deviation of the noise added, G
    prevalence: tuple[float, ...] = (0.2, 0.3, 0.5, 0.75, 1.0)  # Choice: share of the motifs that are planted
    n_units: tuple[int, ...] = (4, 8, 16, 32)  # Choice: width of each layer
    epochs: tuple[int, ...] = (1, 3, 6, 12)  # Choice: of training


@dataclass(frozen=True)
class ExplanationSettings:
    """How well signals explain their units, in windows that nothing was made of (notebook 08b)."""

    n_segments: int = 4000  # Choice: held-out segments, drawn at random
    n_groups: tuple[int, int] = (10, 8)  # Choice: segments are paired within groups of one level, and in it one energy
    share: float = 0.25  # Choice: of a group, that is taken for the upper and for the lower part of a unit's outputs
    n_pairs: int = 400  # Choice: pairs of segments per unit
    n_train: int = 30_000  # Choice: training segments among which the strongest are looked for, and averaged


@dataclass(frozen=True)
class DissectionSettings:
    """Units compared with concepts, silenced, and small networks that differ in one thing (notebook 11)."""

    thinning: int = 30  # Choice: every n-th training window is dissected; thinned windows share no samples
    n_draws: int = 39  # Choice: draws of each null; a 95 % point needs 19
    angles: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)  # Choice: alpha of Q^alpha; each network has its own Q
    ablation_thinning: int = 40  # Choice: every n-th test window, for what silencing a unit costs
    factor_thinning: int = 10  # Choice: every n-th window of all splits, for the small networks
    factor_seeds: tuple[int, ...] = (0, 1, 2, 3, 4)  # Choice
    widths: tuple[int, ...] = (4, 8, 32)  # Choice: units in each convolution, beside the base's
    n_permutations: int = 999  # Choice: draws of whether concepts explain effects


@dataclass(frozen=True)
class UnitSettings:
    """Units, directions, and what becomes of their concepts (notebook 11b and notebook 11c)."""

    seeds: tuple[int, ...] = (0, 1, 2)  # Choice: networks of each kind
    n_windows: int = 12_000  # Choice: about so many training windows, every n-th of all, for those of notebook 11c
    recurrent: RecurrentSettings = RecurrentSettings()  # Choice
    per_unit: int = 4  # Choice: latents of a sparse code for each unit
    n_active: int = 8  # Choice: latents that are not zero at a time
    n_steps: int = 4000  # Choice: of Adam, in training a sparse code


@dataclass(frozen=True)
class PeopleSettings:
    """Networks trained with each person left out (notebook 06b)."""

    n_people: int = 100  # Choice: at most so many people are left out, the first ones; no data set here has as many
    n_windows: int | None = 35_000  # Choice: about so many training windows, every n-th of all; None: all


@dataclass(frozen=True)
class WidthSettings:
    """Networks of several widths, and units of one kind merged (claim C12, notebook 06b)."""

    n_units: tuple[int, ...] = (8, 16, 32)  # Choice: units in each convolution, beside the judging networks
    n_networks: int = 5  # Choice: of each of these widths, with the first seeds of the judging networks
    thinning: int = 10  # Choice: every n-th test window, for what merging costs
    n_draws: int = 10  # Choice: random groups that duplicates are compared with


@dataclass(frozen=True)
class LocatingSettings:
    """How many correctly classified windows are looked at, spread evenly (notebook 12)."""

    n_val: int = 40  # Choice: validation windows on which a lens' settings are chosen
    n_test: int = 120  # Choice: test windows on which lenses are judged
    n_covered: int = 57  # Choice: test windows whose sensors are covered


#: Choice: enough for a macro F1 above 0.9 on the made-up data, with and without attention
FALLING = TrainingSettings(epochs=10, learning_rate=4e-3, schedule="cosine")


@dataclass(frozen=True)
class SelfAttentionStudy:
    """Networks of notebook 15: how they are trained, and how windows vote."""

    windows: WindowSettings = replace(LONG_WINDOWS, step=16)  # Choice: of which every n-th is taken
    n_train: int = 13_500  # Choice: about so many training windows; those of DSADS then share no sample
    model: SelfAttentionSettings = SelfAttentionSettings()  # Choice: 32 units
    training: TrainingSettings = FALLING  # Choice
    n_others: int = 3  # Choice: networks of what is not compared in the first place
    time_ratio: float = 8.0  # Choice: epochs of the CNN in the time of one of attention, about as measured
    vote_step: int = 10  # Choice: the source's; samples from one voting window to the next
    vote_samples: int = 150  # Choice: samples that vote together: 5 s, nine windows
    footprints: tuple[int, ...] = (3, 9)  # Choice: of all three blocks, beside 3, 5, 5
    n_windows: int = 300  # Choice: test windows that are turned backwards, or whose attention is looked at


@dataclass(frozen=True)
class FoolingSettings:
    """Ascents on networks that are built to show another picture (notebook 08b)."""

    n_units: int = 12  # Choice: units of each layer, spread evenly
    n_steps: int = 400  # Choice: of each ascent, by autograd; the signals have long chosen their picture by then


#: small networks with an attention branch: those of the quick profile, and of made-up data in every profile
SMALL_BRANCH = BranchSettings(n_units=8)
SMALL_BRANCH_TRAINING = TrainingSettings(seeds=(0, 1, 2), epochs=6, learning_rate=5e-3, schedule="cosine")


@dataclass(frozen=True)
class BranchStudy:
    """Networks with an attention branch, and what their maps are compared with (notebook 16)."""

    windows: WindowSettings = LONG_WINDOWS  # Choice
    model: BranchSettings = BranchSettings()  # Choice
    training: TrainingSettings = TrainingSettings(  # Choice: all seeds compare accuracies
        epochs=60, learning_rate=2e-3, batch_size=128, schedule="cosine", evaluate_every=2
    )
    n_networks: int = 3  # Choice: the first of these, for networks that are not compared
    n_windows: int = 120  # Choice: test windows, spread evenly, on which maps are compared with other lenses
    made_up_windows: WindowSettings = LONG_WINDOWS  # Choice: those of data whose motifs are known
    made_up_model: BranchSettings = SMALL_BRANCH  # Choice
    made_up_training: TrainingSettings = SMALL_BRANCH_TRAINING  # Choice
    noise_g: float = 0.1  # Choice: with the next one so hard that small networks reach about 0.8
    prevalence: float = 0.6  # Choice


@dataclass(frozen=True)
class LatentSettings:
    """Ascents on what a generator makes its windows of (notebook 18)."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)  # Choice: of notebook 17's trainings, one for each network
    n_starts: int = 3  # Choice: of each unit on each axis, one for each of three generators
    n_steps: int = 200  # Choice
    step_size: float = 0.05  # Choice: in standard deviations of the latent numbers


@dataclass(frozen=True)
class Settings:
    """Everything that decides the numbers of one run; ``device`` and ``threads`` only decide where it runs."""

    profile: str
    dataset: str
    windows: WindowSettings = WindowSettings()
    model: ModelSettings = ModelSettings()
    training: TrainingSettings = TrainingSettings()
    maximization: MaximizationSettings = MaximizationSettings()
    similarity: SimilaritySettings = SimilaritySettings()
    atlas: AtlasSettings = AtlasSettings()
    readings: ReadingSettings = ReadingSettings()
    prior: PriorSettings = PriorSettings()
    dreams: DreamSettings = DreamSettings()
    evolution: EvolutionSettings = EvolutionSettings()
    architecture: ArchitectureSettings = ArchitectureSettings()
    transfer: TransferSettings = TransferSettings()
    slopes: SlopeSettings = SlopeSettings()
    recovery: RecoverySettings = RecoverySettings()
    dissection: DissectionSettings = DissectionSettings()
    explanation: ExplanationSettings = ExplanationSettings()
    locating: LocatingSettings = LocatingSettings()
    fooling: FoolingSettings = FoolingSettings()
    units: UnitSettings = UnitSettings()
    people: PeopleSettings = PeopleSettings()
    widths: WidthSettings = WidthSettings()
    visual: VisualSettings = VisualSettings()
    branches: BranchStudy = BranchStudy()
    self_attention: SelfAttentionStudy = SelfAttentionStudy()
    generation: GenerationSettings = GenerationSettings()
    search: SearchSettings = SearchSettings()
    latent: LatentSettings = LatentSettings()
    styles: StyleSettings = StyleSettings()
    weights: str = "trained"  # or "published": the networks of the published run, instead of training
    device: str | None = None

    @property
    def reports(self) -> Path:
        """Folder of this run's executed notebooks, figures and tables."""
        return report_root() / self.profile / self.dataset

    def digest(self) -> str:
        """Short digest of all but the device; equal settings give equal digests."""
        values = as_json(self)
        del values["device"]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


#: where networks come from
WEIGHTS = ("trained", "published")

PROFILES: dict[str, dict] = {
    # a newcomer's first run and every smoke test: small, not a toy
    "quick": {
        "model": SMALL_MODEL,
        "training": SMALL_TRAINING,
        "maximization": MaximizationSettings(n_steps=400),
        "readings": ReadingSettings(
            seeds=(100,),
            n_units=4,
            ascent=(1e-4, 0.3, 1.0),
            adam=(1e-4, 0.03, 0.3),
            weights=(0.03, 0.1),
            mean_weights=(0.1, 0.3),
        ),
        "prior": PriorSettings(n_steps=1500),
        "dreams": DreamSettings(n_windows=12, n_steps=50),
        "evolution": EvolutionSettings(n_trained=3050),
        "architecture": ArchitectureSettings(
            variants=(
                *("as the paper", "width 3", "width 9", "width 9, stride 4"),
                *("one convolution", "no dense layer", "max pooling by 2"),
            ),
            seeds=(400,),
            n_windows=1600,
        ),
        "transfer": TransferSettings(n_steps=30),
        "fooling": FoolingSettings(n_units=4, n_steps=60),
        "slopes": SlopeSettings(60, 2, (0.0, 0.1, 1.0), (0, 1), (2e-3,), epochs=5, n_windows=1200, n_inside=4),
        "visual": VisualSettings(
            n_steps=60,
            n_units=6,
            only=(
                *("one position", "largest output", "spectrum as norm", "covariance as norm"),
                *("real magnitudes (MACO), best of 4", "surroundings", "covariance as norm, best of 4"),
            ),
        ),
        # of the widths the base alone: each further one needs its own networks with random weights
        "recovery": RecoverySettings(
            n_noise=400, seeds=(0,), noise_g=(0.0, 0.2), prevalence=(0.3, 1.0), n_units=(), epochs=(1, 6)
        ),
        "dissection": DissectionSettings(
            thinning=6,
            n_draws=19,
            angles=(0.0, 0.5, 1.0),
            ablation_thinning=4,
            factor_thinning=1,
            factor_seeds=(0,),
            widths=(4,),
        ),
        "locating": LocatingSettings(n_val=14, n_test=50, n_covered=40),
        "explanation": ExplanationSettings(n_segments=1200, n_groups=(5, 5), n_pairs=200, n_train=4000),
        "units": UnitSettings((0, 1), 1500, RecurrentSettings(32, dropout=0.2), n_active=3, n_steps=500),
        "people": PeopleSettings(n_people=3, n_windows=1000),
        "self_attention": SelfAttentionStudy(
            n_train=1400,
            model=SelfAttentionSettings(n_units=16),
            training=replace(FALLING, seeds=(0, 1), epochs=4),
            n_others=1,
            footprints=(9,),
            n_windows=60,
        ),
        "widths": WidthSettings(n_units=(8,), n_networks=1, thinning=2, n_draws=5),
        "branches": BranchStudy(
            model=SMALL_BRANCH,
            training=replace(SMALL_BRANCH_TRAINING, seeds=(0, 1)),
            n_networks=2,
            n_windows=30,
            made_up_training=replace(SMALL_BRANCH_TRAINING, seeds=(0, 1)),
        ),
        "generation": GenerationSettings(
            gan=GanSettings(n_units=4, batch_size=32, n_steps=24),
            seeds=(0, 1),
            choosing_seeds=(100,),
            n_scored=200,
            judge=replace(JUDGE, n_units=16),
            second=replace(SECOND_JUDGE, n_units=8, n_dense=32),
            thinning=12,
            n_draws=19,
            n_silenced=40,
        ),
        "search": SearchSettings(6, 8, (0.5,), n_retrained=8, seeds=(300, 301), n_shuffled=1, n_draws=400),
        "latent": LatentSettings(seeds=(0,), n_steps=30),
        "styles": StyleSettings((0,), WindowSettings(length=64, step=64), 8, alternate=True, n_steps=40),
    },
    # a real result on a desk machine: fewer epochs, larger training steps to make up for it
    "desk": {
        "training": TrainingSettings(epochs=10, learning_rate=5e-4),
        "evolution": EvolutionSettings(n_trained=20_000),
        "branches": BranchStudy(
            windows=WindowSettings(length=64, step=64),
            model=BranchSettings(n_units=16),
            training=TrainingSettings(
                epochs=4, learning_rate=2e-3, batch_size=128, schedule="cosine", evaluate_every=2
            ),
        ),
        "generation": GenerationSettings(
            gan=GanSettings(n_units=16, batch_size=128, n_steps=1200),
            seeds=(0, 1, 2),
            choosing_seeds=(100, 101),
        ),
        "search": SearchSettings(24, 300, n_retrained=1000, seeds=(300, 301, 302)),
        "latent": LatentSettings(n_steps=100),
        "styles": StyleSettings((0, 1, 2), WindowSettings(length=64, step=64), 16, alternate=True, n_steps=700),
    },
    # the paper's own settings, on one GPU
    "paper": {
        "recovery": RecoverySettings(n_random=100),
        "prior": PriorSettings(n_steps=20_000),
        "architecture": ArchitectureSettings(n_windows=6000),
        "slopes": SlopeSettings(
            1000, trained=(0.0, 0.01, 0.1, 0.3, 0.5, 1.0), rates=(1e-4, 5e-4, 2e-3), epochs=12, n_windows=12_000
        ),
        "dissection": DissectionSettings(thinning=10, ablation_thinning=5),
        "locating": LocatingSettings(n_val=100, n_test=400, n_covered=190),
        "people": PeopleSettings(n_windows=None),
        "units": UnitSettings(n_windows=60_000),
        "widths": WidthSettings(n_draws=20),
        "visual": VisualSettings(n_steps=500),
        "self_attention": SelfAttentionStudy(
            n_train=60_000,
            model=SelfAttentionSettings(n_units=64),
            training=replace(FALLING, epochs=60, learning_rate=2e-3),
            n_others=5,
            footprints=(3, 9, 17),
        ),
    },
}


def load_settings(
    profile: str = "quick", dataset: str = "synthetic", device: str | None = None, weights: str = "trained"
) -> Settings:
    """Settings of ``profile`` for ``dataset``; unknown names raise :class:`SettingsError` listing the valid ones.

    The data set is not looked at: :func:`harvis_utils.data.kinds.check_name` does that.
    """
    if profile not in PROFILES:
        raise SettingsError(f"unknown profile {profile!r}; valid profiles: {', '.join(PROFILES)}")
    if weights not in WEIGHTS:
        raise SettingsError(f"unknown weights {weights!r}; valid: {', '.join(WEIGHTS)}")
    return Settings(profile=profile, dataset=dataset, weights=weights, device=device, **PROFILES[profile])


def for_choosing(cfg: Settings) -> Settings:
    """The same run with the networks on which readings and variants are chosen, and which take no part in judging."""
    return replace(cfg, training=replace(cfg.training, seeds=cfg.readings.seeds))


def as_json(value, nan_as_null: bool = False):
    """Dataclasses, tuples and paths as plain JSON values."""
    plain = functools.partial(as_json, nan_as_null=nan_as_null)
    if dataclasses.is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if nan_as_null and isinstance(value, float) and math.isnan(value):
        return None
    return str(value) if isinstance(value, Path) else value


def from_json(values: dict, kind: type = Settings) -> Settings:
    """The dataclass that :func:`as_json` turned into ``values``; unknown names raise :class:`SettingsError`."""
    hints = typing.get_type_hints(kind)
    if unknown := sorted(set(values) - set(hints)):
        raise SettingsError(f"unknown settings {', '.join(unknown)}; valid for {kind.__name__}: {', '.join(hints)}")
    found = {}
    for name, value in values.items():
        nested = dataclasses.is_dataclass(hints[name])
        found[name] = from_json(value, hints[name]) if nested else tuple(value) if isinstance(value, list) else value
    return kind(**found)


# --------------------------------------------------------------------------------------------------- paths


def anchored(variable: str, default: str = "") -> Path | None:
    """A path from the environment, a relative one from the repository; :class:`SettingsError` where it is none."""
    path = os.environ.get(variable) or default
    try:
        return (REPOSITORY / Path(path).expanduser()).resolve() if path else None
    except (OSError, RuntimeError, ValueError) as error:
        raise SettingsError(f"{variable}={path} is no usable path ({error}); name another folder") from None


def artifact_root() -> Path:
    """Where artifacts live: ``HARVIS_ARTIFACTS``, else ``data/derived``."""
    return anchored("HARVIS_ARTIFACTS", "data/derived")


def report_root() -> Path:
    """Where reports live: ``HARVIS_REPORTS``, else ``reports``."""
    return anchored("HARVIS_REPORTS", "reports")


def keys_file() -> Path | None:
    """The ``keys.json`` of the bundle that this is: ``HARVIS_KEYS``, else none (see ``workflow.gpu``)."""
    return anchored("HARVIS_KEYS")


def data_folders() -> list[Path]:
    """Where archives are looked for, in order: ``HARVIS_DATA`` if set, then ``data/raw``."""
    return [folder for folder in (anchored("HARVIS_DATA"), REPOSITORY / "data" / "raw") if folder]


@dataclass(frozen=True)
class Step:
    """How X moves: X <- X + eta d, eta <- gamma eta, where the optimizer makes d from the gradients."""

    optimizer: str  # one of OPTIMIZERS
    step_size: float  # eta, in G for adam
    decay: float  # gamma


OPTIMIZERS = ("ascent", "momentum", "adam")


#: readings of the paper's step sizes; everything else of the ascent is in :class:`settings.MaximizationSettings`
PRESETS: dict[str, Step] = {
    # Paper: the stated values, plain gradient ascent; their sum is 0.02, so X can hardly move
    "literal": Step("ascent", 1e-4, 0.995),
    # Choice: the reading of DSADS networks kept for choosing that departs least from what is stated among those that
    # meet the paper's results as well as any; notebook 07 shows all of them
    "calibrated": Step("adam", 0.3, 0.995),
}
