"""The commands that compute on analog chips: compare, train, evaluate, sensitivity."""

from __future__ import annotations

from analognoise import options as o
from analognoise.cli.shared import (
    carry_out,
    examples,
    new_app,
    profile_list,
    seed_list,
    split,
)

app = new_app()


@app.command(
    epilog=examples(
        "compare --profile pcm-ibm --out runs/digits",
        "compare --profile gaussian@5%,gaussian@10% --methods sgd,noise+clip,sam:rho=0.1 --out runs/noise",
        "compare --task mine:task --profile my.toml --chips 10 --times 1h,1y --out runs/mine",
    )
)
def compare(
    profile: o.ProfileList,
    out: o.OutFolder,
    changed: o.ChangedFields = None,
    scale: o.ScaledEffects = None,
    periphery: o.PeripheryName = None,
    task: o.DefaultTask = "digits",
    methods: o.MethodList = "sgd,noise,rwp,sam,asam,samson",
    times: o.Times = None,
    chips: o.Chips = 25,
    seeds: o.Seeds = "3",
    epochs: o.Epochs = None,
    lr: o.Rate = None,
    workers: o.Workers = None,
    scheduler: o.Scheduler = None,
    compensation: o.Compensations = "global",
    calibration_batches: o.CalibrationBatches = 10,
    digital: o.Digital = None,
    sharpness: o.Sharp = False,
    force: o.Force = False,
    as_json: o.AsJson = False,
) -> None:
    """Train a model by several methods, put each on simulated chips, let them drift, and compare.

    Writes results.csv, summary.csv, summary.md, accuracy_over_time.png, models/ and run.json. The same
    command again reuses what is there, and goes on where a killed run stopped; with more methods, profiles,
    times, chips or seeds it adds them.
    """
    from analognoise.jobs.compare import compare_methods

    carry_out(
        compare_methods,
        as_json,
        resumable=True,
        task=task,
        profiles=profile_list(profile),
        changes=(changed or (), scale or (), periphery),
        methods=split([methods]),
        times=times,
        chips=chips,
        out=out,
        seeds=seed_list(seeds),
        epochs=epochs,
        lr=lr,
        workers=workers,
        scheduler=scheduler,
        compensation=compensation,
        calibration_batches=calibration_batches,
        digital=digital or (),
        sharpness=sharpness,
        force=force,
    )


@app.command(
    epilog=examples(
        "train --task digits --method samson --out runs/samson",
        "train --model mine:build --data mine:train_loader --validation mine:val_loader --method sam+clip "
        "--out runs/mine",
        "train --model mine:build --weights model.safetensors --data mine:train_loader --epochs 5 --lr 0.005 "
        "--out runs/tuned",
    )
)
def train(
    out: o.OutFolder,
    task: o.TaskName = None,
    model: o.ModelName = None,
    data: o.TrainData = None,
    validation: o.ValidationData = None,
    method: o.Method = "sgd",
    weights: o.Weights = None,
    profile: o.TrainingProfile = None,
    changed: o.ChangedFields = None,
    scale: o.ScaledEffects = None,
    digital: o.Digital = None,
    epochs: o.Epochs = None,
    lr: o.Rate = None,
    batch_size: o.BatchSize = None,
    loss: o.Loss = None,
    metric: o.ValidationMetric = None,
    forward: o.Forward = None,
    seed: o.Seed = 0,
    device: o.Device = "cpu",
    threads: o.Threads = 1,
    force: o.Force = False,
    as_json: o.AsJson = False,
) -> None:
    """Train one model by one method, from scratch or from given weights.

    Writes model.safetensors, history.csv (loss and validation accuracy of every epoch) and run.json. The same
    command again reuses what is there; a run that was killed goes on after its last epoch that was kept.
    """
    from analognoise.jobs.train import train_model

    carry_out(
        train_model,
        as_json,
        resumable=True,
        task=task,
        model=model,
        data=data,
        validation=validation,
        method=method,
        weights=weights,
        profile=profile,
        changes=(changed or (), scale or (), None),
        digital=digital or (),
        epochs=epochs,
        lr=lr,
        batch_size=batch_size,
        loss=loss,
        metric=metric,
        forward=forward,
        seed=seed,
        device=device,
        threads=threads,
        out=out,
        force=force,
    )


@app.command(
    epilog=examples(
        "evaluate --task digits --weights runs/samson/model.safetensors --profile pcm-ibm",
        "evaluate --model mine:build --weights model.safetensors --data mine:test_loader --profile my.toml "
        "--times 1h,1y --out runs/mine-on-chips",
        "evaluate --task digits --weights runs/samson/model.safetensors --profile pcm-ibm --precision 0.002 "
        "--max-chips 500 --quantile 0.05",
        "evaluate --model mine:build --weights model.safetensors --data mine:test_loader "
        "--profile 'features.*=pcm-ibm,head=ideal' --digital 'stem*'",
    )
)
def evaluate(
    profile: o.LayerProfileList,
    changed: o.ChangedFields = None,
    scale: o.ScaledEffects = None,
    periphery: o.PeripheryName = None,
    task: o.TaskName = None,
    model: o.ModelName = None,
    data: o.TestData = None,
    weights: o.Weights = None,
    times: o.Times = None,
    chips: o.MaybeChips = 25,
    precision: o.Precision = None,
    max_chips: o.MaxChips = None,
    sampling: o.Sampling = "full",
    metric: o.Metric = None,
    forward: o.Forward = None,
    floor: o.Floor = None,
    quantile: o.QuantileShare = None,
    yield_at: o.YieldLevel = None,
    seed: o.Seed = 0,
    compensation: o.Compensations = "global",
    calibration_batches: o.CalibrationBatches = 10,
    engine: o.Engine = "analognoise",
    collapse_pairs: o.CollapsePairs = False,
    digital: o.Digital = None,
    calibration: o.CalibrationData = None,
    batch_size: o.BatchSize = None,
    device: o.Device = "cpu",
    threads: o.Threads = 1,
    workers: o.FewWorkers = 1,
    scheduler: o.Scheduler = None,
    out: o.MaybeOutFolder = None,
    force: o.Force = False,
    as_json: o.AsJson = False,
) -> None:
    """Program a model onto many chips, let them drift, and report its accuracy over time.

    With --out it writes results.csv, summary.csv, summary.md, a picture and run.json; a run that was killed
    goes on, and more chips or times are added to what is there.
    """
    from analognoise.jobs.evaluate import evaluate_model

    carry_out(
        evaluate_model,
        as_json,
        resumable=out is not None,
        profiles=profile_list(profile),
        changes=(changed or (), scale or (), periphery),
        task=task,
        model=model,
        data=data,
        weights=weights,
        times=times,
        chips=chips,
        precision=precision,
        max_chips=max_chips,
        sampling=sampling,
        metric=metric,
        forward=forward,
        floor=floor,
        quantile=quantile,
        yield_at=yield_at,
        seed=seed,
        compensation=compensation,
        calibration_batches=calibration_batches,
        engine=engine,
        collapse_pairs=collapse_pairs,
        digital=digital or (),
        calibration=calibration,
        batch_size=batch_size,
        device=device,
        threads=threads,
        workers=workers,
        scheduler=scheduler,
        out=out,
        force=force,
    )


@app.command(
    epilog=examples(
        "sensitivity --task digits --weights runs/samson/model.safetensors --profile pcm-ibm "
        "--out runs/layers",
        "sensitivity --model mine:build --weights model.safetensors --data mine:test_loader "
        "--profile my.toml --digital 'head*' --times 1h,1y --out runs/my-layers",
    )
)
def sensitivity(
    profile: o.OneLayerProfile,
    out: o.OutFolder,
    changed: o.ChangedFields = None,
    scale: o.ScaledEffects = None,
    periphery: o.PeripheryName = None,
    task: o.TaskName = None,
    model: o.ModelName = None,
    data: o.TestData = None,
    weights: o.Weights = None,
    times: o.Times = "1d",
    chips: o.Chips = 10,
    metric: o.Metric = None,
    forward: o.Forward = None,
    seed: o.Seed = 0,
    compensation: o.Compensation = "global",
    digital: o.Digital = None,
    calibration: o.CalibrationData = None,
    batch_size: o.BatchSize = None,
    device: o.Device = "cpu",
    threads: o.Threads = 1,
    workers: o.FewWorkers = 1,
    scheduler: o.Scheduler = None,
    force: o.Force = False,
    as_json: o.AsJson = False,
) -> None:
    """Rank a model's layers by what each costs on chips: alone on tiles, and as the only one kept digital.

    Writes sensitivity.csv, sensitivity.md, sensitivity.png, results.csv and run.json; a run that was killed
    goes on, and more chips or times are added to what is there.
    """
    from analognoise.jobs.sensitivity import rank_layers

    carry_out(
        rank_layers,
        as_json,
        resumable=True,
        profile=profile,
        changes=(changed or (), scale or (), periphery),
        task=task,
        model=model,
        data=data,
        weights=weights,
        times=times,
        chips=chips,
        metric=metric,
        forward=forward,
        seed=seed,
        compensation=compensation,
        digital=digital or (),
        calibration=calibration,
        batch_size=batch_size,
        device=device,
        threads=threads,
        workers=workers,
        scheduler=scheduler,
        out=out,
        force=force,
    )
