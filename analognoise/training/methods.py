"""The table of training methods, which Python, the command line and the benchmarks read.

Defaults are the figures of the method's source wherever it gives one; ``source`` says for every
hyperparameter where its default comes from. Search ranges surround what worked for small convolutional
networks of about 2,000 weights on 8 × 8 images: another network may need others.
"""

from __future__ import annotations

import math

from analognoise.training.building import climb, plain, profile_noise, put_noise, weight_perturbation
from analognoise.training.hyperparameters import (
    CLIP,
    CONSTANT_SCALE,
    FORET,
    KWON,
    MORDIDO,
    NOISE,
    NOISY,
    OURS,
    QUANTIZERS,
    RWP,
    VANT,
    climbing,
    drift_time,
    fraction,
)
from analognoise.training.noise import DRAWS
from analognoise.training.quantized import ASAQ, SAMSONSAQ, SAQ
from analognoise.training.quantizing import (
    prepare_constant_scale,
    prepare_quantized,
    quantized,
    require_quantized,
)
from analognoise.training.sharpness import ASAM, SAM, SAMSON
from analognoise.training.specification import Hyperparameter, Method, Modifier, Range, by_name

_SAMSON_INF = climbing(0.2, MORDIDO, Range(0.05, 0.9, log=True))

MODIFIERS: dict[str, Modifier] = {
    row.name: row
    for row in (
        Modifier("clip", CLIP.meaning, by_name(CLIP)),
        Modifier("noise", "noise on the weights in every pass", by_name(NOISE)),
        Modifier("noisy", "noise on the layers' outputs in every pass", NOISY, put_on=put_noise),
        Modifier(
            "vant", "the same at a level drawn anew each epoch (variance-aware)", VANT, put_on=put_noise
        ),
        Modifier(
            "qat-const",
            "training through quantized weights, and inputs with a constant scale",
            CONSTANT_SCALE,
            prepare=prepare_constant_scale,
            put_on=require_quantized,
        ),
    )
}


def _on_sgd(modifier: str, summary: str) -> Method:
    """The method that ``sgd+MODIFIER`` is, under the modifier's own name."""
    return Method(
        name=modifier,
        summary=summary,
        hyperparameters=MODIFIERS[modifier].hyperparameters,
        gradients_per_step=1,
        build=plain,
        same_as=("sgd", (modifier,)),
    )


_ROWS = (
    Method(
        name="sgd",
        summary="plain stochastic gradient descent",
        hyperparameters={},
        gradients_per_step=1,
        build=plain,
    ),
    _on_sgd("clip", "SGD with the weights clipped after every update"),
    _on_sgd(
        "noise", "SGD with Gaussian noise on the weights in every pass; with +clip the method of Joshi et al."
    ),
    _on_sgd("noisy", "SGD with Gaussian noise on the layers' outputs in every pass"),
    _on_sgd("vant", "variance-aware training: noise on the layers' outputs, its level drawn anew each epoch"),
    _on_sgd("qat-const", "quantization-aware training with a constant scale of the layers' inputs"),
    Method(
        name="profile-noise",
        summary="SGD on weights as a fresh chip of the profile would hold them after a random drift time",
        hyperparameters=by_name(
            drift_time("shortest", 1.0, "shortest drift time, in seconds or with a unit"),
            drift_time("longest", 31_536_000.0, "longest drift time, in seconds or with a unit"),
            Hyperparameter(
                name="draw",
                default="devices",
                meaning="whether every device is drawn, or one net noise for each pair (faster)",
                source=OURS,
                choices=DRAWS,
            ),
        ),
        gradients_per_step=1,
        build=profile_noise,
        needs_profile=True,
    ),
    Method(
        name="rwp",
        summary="random weight perturbation: the mean of a clean and a noisy gradient, the noise ramped up",
        hyperparameters=by_name(
            Hyperparameter("noise", 0.1, NOISE.meaning, OURS, Range(0.02, 0.4, log=True)),
            fraction("ramp", 0.5, "fraction of the training over which the noise grows linearly from 0"),
            fraction("mix", 0.5, "share of the noisy gradient", RWP + " (the mean of both losses)"),
        ),
        gradients_per_step=2,
        build=weight_perturbation,
    ),
    Method(
        name="sam",
        summary="sharpness-aware minimization",
        hyperparameters=climbing(0.05, FORET, Range(0.02, 0.5, log=True), eta=False),
        gradients_per_step=2,
        build=climb(SAM),
    ),
    Method(
        name="asam",
        summary="adaptive SAM: the climb scales with each weight's size",
        hyperparameters=climbing(0.5, KWON, Range(0.2, 3.0, log=True)),
        gradients_per_step=2,
        build=climb(ASAM),
    ),
    Method(
        name="samson-inf",
        summary="SAMSON: the climb scales with each weight's size over the largest weight of its tensor",
        hyperparameters=_SAMSON_INF,
        gradients_per_step=2,
        build=climb(SAMSON, p=math.inf),
    ),
    Method(
        name="samson",
        summary="SAMSON with the largest weight as norm: another name of samson-inf",
        hyperparameters=_SAMSON_INF,
        gradients_per_step=2,
        build=climb(SAMSON, p=math.inf),
        same_as=("samson-inf", ()),
    ),
    Method(
        name="samson-2",
        summary="SAMSON: the climb scales with each weight's size over the Euclidean norm of its tensor",
        hyperparameters=climbing(0.2, MORDIDO, Range(0.1, 1.0, log=True)),
        gradients_per_step=2,
        build=climb(SAMSON, p=2),
        # The Euclidean norm makes the weights' scaling small; biases, which dominate the climb otherwise,
        # stay.
        search_weights_only={"rho": Range(0.5, 6.0, log=True)},
    ),
    Method(
        name="qat",
        summary="quantization-aware training: SGD through quantized weights, gradients straight through",
        hyperparameters=QUANTIZERS,
        gradients_per_step=1,
        build=quantized(plain),
        prepare=prepare_quantized,
    ),
    Method(
        name="saq",
        summary="sharpness-aware quantization: SAM's climb from the quantized weights",
        hyperparameters={
            **QUANTIZERS,
            **climbing(0.05, OURS, Range(0.02, 0.5, log=True), eta=False, perturb="weights"),
        },
        gradients_per_step=2,
        build=quantized(climb(SAQ)),
        prepare=prepare_quantized,
    ),
    Method(
        name="asaq",
        summary="adaptive SAQ: ASAM's climb from the quantized weights",
        hyperparameters={
            **QUANTIZERS,
            **climbing(0.5, OURS, Range(0.2, 3.0, log=True), perturb="weights"),
        },
        gradients_per_step=2,
        build=quantized(climb(ASAQ)),
        prepare=prepare_quantized,
    ),
    Method(
        name="samson-saq",
        summary="SAQ with the scaling of SAMSON, the largest quantized weight as norm",
        hyperparameters={
            **QUANTIZERS,
            **climbing(0.2, OURS, Range(0.05, 0.9, log=True), perturb="weights"),
        },
        gradients_per_step=2,
        build=quantized(climb(SAMSONSAQ, p=math.inf)),
        prepare=prepare_quantized,
    ),
)
METHODS: dict[str, Method] = {row.name: row for row in _ROWS}
