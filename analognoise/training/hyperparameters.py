"""Hyperparameters that several methods and modifiers share, with the sources of their defaults."""

from __future__ import annotations

from analognoise.computing.kinds import KINDS
from analognoise.computing.levels import ALPHA
from analognoise.sparsity import PRESETS
from analognoise.training.specification import Hyperparameter, Range, by_name

JOSHI = "Joshi et al. 2020, doi 10.1038/s41467-020-16108-9 (CIFAR-10)"
OURS = "analognoise's own choice"
WANG = "Wang et al. 2025, arXiv 2501.14531"
VARIANCE_AWARE = "arXiv 2503.16183 (its authors' code)"
FORET = "Foret et al. 2020, arXiv 2010.01412"
KWON = "Kwon et al. 2021, arXiv 2102.11600"
MORDIDO = "Mordido et al. 2022, arXiv 2211.11561 (a co-author's code, ViT-B/16)"
RWP = "arXiv 2602.07320"


def fraction(name: str, default: float, meaning: str, source: str = OURS) -> Hyperparameter:
    """A number from 0 to 1."""
    return Hyperparameter(name, default, meaning, source, most=1.0)


def drift_time(name: str, default: float, meaning: str) -> Hyperparameter:
    """A drift time above 0, in seconds or with a unit."""
    return Hyperparameter(name, default, meaning, OURS, above=True, is_time=True)


def climbing(
    rho: float, source: str, search: Range, *, eta: bool = True, perturb: str = "all"
) -> dict[str, Hyperparameter]:
    """Hyperparameters of the sharpness-aware family."""
    scaling = Hyperparameter("eta", 0.01, "added to each weight's size in the scaling of the climb", source)
    return by_name(
        Hyperparameter("rho", rho, "length of the climb, in the method's own scaling", source, search),
        *([scaling] if eta else []),
        # No source warms rho up; but one step of too long a climb can end a training for good.
        fraction("warmup", 0.1, "fraction of the training over which rho grows linearly from 0"),
        Hyperparameter(
            name="perturb",
            default=perturb,
            meaning="which parameters climb: all, or only weight tensors (SAQ and its like: quantized ones)",
            source=source,
            choices=("all", "weights"),
        ),
    )


def _sigma(meaning: str) -> Hyperparameter:
    return Hyperparameter("sigma", 0.1, meaning, OURS, Range(0.02, 2.0, log=True))


CLIP = Hyperparameter(
    name="clip",
    default=2.0,
    meaning="after every update each layer's weights are clamped to ± clip standard deviations of the layer",
    source=JOSHI,
    search=Range(1.25, 3.0),
    above=True,
)
NOISE = Hyperparameter(
    name="noise",
    default=0.038,
    meaning="standard deviation of the noise on the weights, relative to the layer's largest weight",
    source=JOSHI,
    search=Range(0.02, 0.2, log=True),
)
_PLACE = by_name(
    Hyperparameter(
        name="law",
        default="additive",
        meaning="additive: y + σ·n, or multiplicative: y·(1 + σ·n)",
        source=WANG,
        choices=("additive", "multiplicative"),
    ),
    Hyperparameter(
        name="layers",
        default="all",
        meaning="kind of layers whose outputs are noisy",
        source=WANG,
        choices=("all", *KINDS),
    ),
    Hyperparameter(
        name="walk",
        default="no",
        meaning="yes: the noise is on one layer a step, drawn at random",
        source=OURS,
        choices=("no", "yes"),
    ),
)
NOISY = {
    **by_name(
        _sigma("standard deviation of the noise on the layers' outputs"),
        fraction("sigma_ramp", 0.0, "fraction of the training over which sigma grows linearly from 0"),
    ),
    **_PLACE,
}
VANT = {
    **by_name(
        _sigma("sigma_0 in sigma = alpha·sigma_0 + theta·|N(0, 1)|, drawn anew each epoch"),
        Hyperparameter("alpha", ALPHA, "share of sigma_0 in each epoch's sigma", VARIANCE_AWARE),
        Hyperparameter(
            name="theta",
            default=0.1,
            meaning="size of what is drawn in each epoch's sigma",
            source=OURS,  # the source's 0.66 keeps networks whose outputs are small at guessing
            search=Range(0.02, 1.0, log=True),
        ),
    ),
    **_PLACE,
}
QUANTIZERS = by_name(
    Hyperparameter(
        name="bits",
        default=4.0,
        meaning="bits of a stored weight",
        source=OURS,
        least=2,
        most=8,
        is_whole=True,
    ),
    Hyperparameter(
        name="activation_bits",
        default="none",
        meaning="bits of the inputs of quantized layers, or none: left float",
        source=OURS,
        least=2,
        most=16,
        is_whole=True,
        also=("none",),
    ),
    Hyperparameter(
        name="per",
        default="channel",
        meaning="what shares a scale: channel, tensor, or conv-channel (only convolutions by channel)",
        source=OURS,
        choices=("channel", "tensor", "conv-channel"),
    ),
    Hyperparameter(
        name="clipping",
        default="learned",
        meaning="range of the weights: learned, the largest weight, or a number in weight units",
        source="Esser et al. 2020, arXiv 1902.08153",
        above=True,
        also=("learned", "max"),
    ),
    Hyperparameter(
        name="sparsity",
        default="none",
        meaning="of the activations, in training and afterwards: none, or high: top-k with 15 % kept",
        source=OURS,
        choices=tuple(PRESETS),
    ),
)
CONSTANT_SCALE = by_name(
    Hyperparameter(
        name="bits",
        default=8.0,
        meaning="bits of the layers' inputs, and of the weights up to 8",
        source=WANG,
        least=2,
        most=16,
        is_whole=True,
    ),
    Hyperparameter(
        name="scale",
        default=0.1,
        meaning="constant scale of the layers' inputs: they range to scale·(2^bits − 1)",
        source=OURS,
        search=Range(0.01, 10.0, log=True),
        above=True,
    ),
)
