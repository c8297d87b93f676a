"""The commands on digital memories and noisy computation: faults, noise-sweep."""

from __future__ import annotations

from analognoise import options as o
from analognoise.cli.shared import carry_out, examples, new_app, seed_list, split

app = new_app()


@app.command(
    epilog=examples(
        "faults --task digits --bits 4,8 --sparsity none,high --methods qat,saq,samson-saq --chips 25 "
        "--out runs/faults",
        "faults --bits 4 --kinds stuck-at-0,stuck-at-1 --encoding twos-complement,sign-magnitude "
        "--rates 1e-3,1e-2 --out runs/stuck",
    )
)
def faults(
    out: o.OutFolder,
    task: o.DefaultTask = "digits",
    methods: o.MethodList = "qat,saq,samson-saq",
    bits: o.Bits = "4,8",
    sparsity: o.SparsityList = "none,high",
    rates: o.FaultRates = "1e-5,1e-4,1e-3,1e-2,1e-1",
    kinds: o.FaultKinds = "flip",
    encoding: o.Encodings = "twos-complement",
    chips: o.FaultyChips = 25,
    seeds: o.Seeds = "3",
    epochs: o.Epochs = None,
    lr: o.Rate = None,
    workers: o.Workers = None,
    scheduler: o.Scheduler = None,
    digital: o.Digital = None,
    sharpness: o.SharpToo = True,
    force: o.Force = False,
    as_json: o.AsJson = False,
) -> None:
    """Train quantized models by several methods, store each in faulty memories, and compare.

    Writes results.csv, summary.csv, summary.md, accuracy_over_rate.png, models/ and run.json. The same
    command again reuses what is there, and goes on where a killed run stopped; with more methods, bits,
    sparsities, kinds, rates, chips or seeds it adds them.
    """
    from analognoise.jobs.sweeps import compare_on_faults

    carry_out(
        compare_on_faults,
        as_json,
        resumable=True,
        task=task,
        methods=split([methods]),
        bits=bits,
        sparsity=split([sparsity]),
        rates=rates,
        kinds=split([kinds]),
        encodings=split([encoding]),
        chips=chips,
        out=out,
        seeds=seed_list(seeds),
        epochs=epochs,
        lr=lr,
        workers=workers,
        scheduler=scheduler,
        digital=digital or (),
        sharpness=sharpness,
        force=force,
    )


@app.command(
    epilog=examples(
        "noise-sweep --task digits --methods sgd,qat-const,noisy,vant,samson --sigmas 1e-2:1e2:17 "
        "--per-layer --out runs/noise",
        "noise-sweep --methods noisy,vant --fluctuating --kinds additive,multiplicative --out runs/vary",
    )
)
def noise_sweep(
    out: o.OutFolder,
    task: o.DefaultTask = "digits",
    methods: o.MethodList = "sgd,qat-const,noisy,vant,samson",
    sigmas: o.Sigmas = "1e-2:1e2:17",
    kinds: o.NoiseKinds = "additive",
    layers: o.NoisyLayers = None,
    per_layer: o.PerLayer = False,
    fluctuating: o.Fluctuating = False,
    multiplicative: o.Multiplicative = None,
    repeats: o.Repeats = 25,
    seeds: o.Seeds = "3",
    epochs: o.Epochs = None,
    lr: o.Rate = None,
    workers: o.Workers = None,
    scheduler: o.Scheduler = None,
    sharpness: o.Sharp = False,
    force: o.Force = False,
    as_json: o.AsJson = False,
) -> None:
    """Train a model by several methods, let each compute with noise, and compare how much noise it stands.

    Writes results.csv, summary.csv, midpoints.csv, summary.md, pictures, models/ and run.json. The same
    command again reuses what is there, and goes on where a killed run stopped; with more methods, levels,
    kinds, repeats or seeds it adds them.
    """
    from analognoise.jobs.sweeps import compare_under_noise

    carry_out(
        compare_under_noise,
        as_json,
        resumable=True,
        task=task,
        methods=split([methods]),
        sigmas=sigmas,
        kinds=split([kinds]),
        layers=None if layers is None else split([layers]),
        per_layer=per_layer,
        fluctuating=fluctuating,
        multiplicative=multiplicative,
        repeats=repeats,
        out=out,
        seeds=seed_list(seeds),
        epochs=epochs,
        lr=lr,
        workers=workers,
        scheduler=scheduler,
        sharpness=sharpness,
        force=force,
    )
