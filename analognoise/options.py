"""The command line's options, each described once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

WORK, SETTINGS, OUTPUT = "What to work on", "Settings", "Output"
_CALLABLE = "MODULE:CALLABLE"


def _option(text: str, metavar: str | None = None, *names: str, panel: str = SETTINGS, **more: Any) -> Any:
    return typer.Option(*names, metavar=metavar, help=text, rich_help_panel=panel, **more)


def path(text: str) -> Path:
    """A path as the user wrote it.

    Raises:
        BadParameter: when it is empty; ``Path`` would take that for the present folder.
    """
    if not text.strip():
        raise typer.BadParameter("it is empty: name a file or folder ('.' is the present one)")
    return Path(text)


ProfileList = Annotated[
    list[str],
    _option(
        "Device profile: a name from 'profiles list', a TOML file, or either at a noise level as in "
        "gaussian@10%. Several: with commas, or the option again.",
        "NAME|FILE",
        "--profile",
        "-p",
        panel=WORK,
    ),
]
LayerProfileList = Annotated[
    list[str],
    _option(
        "Device profile: a name from 'profiles list', a TOML file, or either at a noise level as in "
        "gaussian@10%; or one by layer, as in 'features.*=pcm-ibm,head=ideal'. Several: the option again.",
        "NAME|FILE",
        "--profile",
        "-p",
        panel=WORK,
    ),
]
OneLayerProfile = Annotated[
    str,
    _option(
        "Device profile: a name, a TOML file, or one by layer, as in 'features.*=pcm-ibm,head=ideal'.",
        "NAME|FILE",
        "--profile",
        "-p",
        panel=WORK,
    ),
]
TrainingProfile = Annotated[
    str | None,
    _option("Device to train for; profile-noise needs it.", "NAME|FILE", "--profile", "-p", panel=WORK),
]
ChangedFields = Annotated[
    list[str] | None,
    _option(
        "What if: change a field, as in drift.t_0=10 (in those profiles that have the section) or "
        "faults.stuck_at_g_max=0.001. Several: the option again.",
        "FIELD=VALUE",
        "--set",
        panel=WORK,
    ),
]
ScaledEffects = Annotated[
    list[str] | None,
    _option(
        "What if: the profile's noise times a factor, as in programming=2,drift=0.5,read=0.",
        "EFFECT=X",
        "--scale",
        panel=WORK,
    ),
]
PeripheryName = Annotated[
    str | None,
    _option(
        "Converters, noise of products and wires in place of the profile's own: none or standard-8bit.",
        "PRESET",
        "--periphery",
        panel=WORK,
    ),
]
CalibrationData = Annotated[
    str | None,
    _option(
        "Your function that returns batches for recalibrations (no test data) and for the converters' ranges "
        "(default: the task's training data; for ranges also the test data).",
        _CALLABLE,
        panel=WORK,
    ),
]
TaskName = Annotated[
    str | None, _option("digits, or module:callable of yours that returns a Task.", "NAME", panel=WORK)
]
DefaultTask = Annotated[
    str, _option("digits, or module:callable of yours that returns a Task.", "NAME", panel=WORK)
]
ModelName = Annotated[
    str | None, _option("Instead of --task: your function that returns the model.", _CALLABLE, panel=WORK)
]
TrainData = Annotated[
    str | None, _option("With --model: your function that returns training batches.", _CALLABLE, panel=WORK)
]
ValidationData = Annotated[
    str | None, _option("With --model: your function that returns validation batches.", _CALLABLE, panel=WORK)
]
TestData = Annotated[
    str | None,
    _option("Your function that returns the test batches (default: the task's).", _CALLABLE, panel=WORK),
]
Method = Annotated[str, _option("As in sam+clip:rho=0.1; see 'methods'.", "METHOD", panel=WORK)]
MethodList = Annotated[
    str, _option("Training methods, each as in sam+clip:rho=0.1:lr=0.05; see 'methods'.", "LIST", panel=WORK)
]
Weights = Annotated[
    Path | None, _option("Safetensors file with the model's weights.", "FILE", panel=WORK, parser=path)
]

Times = Annotated[
    str | None,
    _option(
        "Drift times since programming, in s, min, h, d, w, mo or y (default: those of the profile, mostly "
        "1s,1h,1d,1mo,1y).",
        "LIST",
    ),
]
Chips = Annotated[int, _option("Chips to program, up to 100000.", "N")]
MaybeChips = Annotated[
    int, _option("Chips to program, up to 100000; with --precision as many at first, at least 10.", "N")
]
Precision = Annotated[
    float | None,
    _option(
        "Run chips until the 95 % interval at each drift time is ± X, in units of the metric (0.001 is 0.1 % "
        "of accuracy).",
        "X",
    ),
]
MaxChips = Annotated[
    int | None, _option("With --precision: at most N chips, 10 or more (default: 1000).", "N")
]
Sampling = Annotated[
    str,
    _option(
        "Samples that each chip is measured on: full (all), or stratified (some, the fewer the surer the "
        "digital answer; for large test sets).",
        "KIND",
    ),
]
QuantileShare = Annotated[
    float | None,
    _option(
        "Also show what all but a share X of the chips keep: with 0.05, what 95 % keep.", "X", "--quantile"
    ),
]
YieldLevel = Annotated[
    float | None, _option("Also show how many chips keep X, a value of the metric.", "X", "--yield-at")
]
Compensation = Annotated[
    str, _option("Drift compensation: global (a factor per tile), column or none.", "KIND")
]
Compensations = Annotated[
    str,
    _option(
        "Drift compensation: global (a factor per tile), column, none, or by unlabelled inputs batchnorm or "
        "affine, alone or as in global+batchnorm. Several: with commas, each evaluated.",
        "LIST",
    ),
]
CalibrationBatches = Annotated[
    int, _option("Recalibrations use the first N batches of --calibration, or of training.", "N")
]
Engine = Annotated[
    str,
    _option("Whose tiles hold the weights: analognoise or aihwkit (the optional extra).", "NAME"),
]
CollapsePairs = Annotated[
    bool,
    _option(
        "Merge the two devices of a pair after programming, as aihwkit does; only to compare with it.",
        None,
        "--collapse-pairs",
    ),
]
Digital = Annotated[
    list[str] | None,
    _option("Layers that stay digital, by name or as in 'head*'. Several: the option again.", "PATTERN"),
]
Sharp = Annotated[
    bool,
    _option(
        "Also measure each model's sharpness, and whether it goes with what is lost on chips.",
        None,
        "--sharpness",
    ),
]
Bits = Annotated[str, _option("Bits of a stored weight, 2 to 8. Several: with commas.", "LIST")]
SparsityList = Annotated[
    str,
    _option(
        "Activation sparsity: none, high, top-k:0.1 (share kept), threshold:0.5, or a penalty in training: "
        "l1:0.01, hoyer:0.1. Several: with commas.",
        "LIST",
    ),
]
FaultRates = Annotated[str, _option("Probabilities that a single bit is faulty, 0 to 1.", "LIST")]
FaultKinds = Annotated[
    str,
    _option("flip, 0to1, 1to0 (bits that flip), stuck-at-0, stuck-at-1. Several: with commas.", "LIST"),
]
Encodings = Annotated[
    str, _option("twos-complement or sign-magnitude; both: with a comma.", "LIST", "--encoding")
]
FaultyChips = Annotated[int, _option("Faulty memories for each model, kind and rate.", "N", "--chips")]
SharpToo = Annotated[
    bool,
    _option(
        "Measure each model's sharpness, too, and whether it goes with what is lost.",
        None,
        "--sharpness/--no-sharpness",
    ),
]
Sigmas = Annotated[
    str,
    _option("Noise levels: FROM:TO:COUNT, evenly in the logarithm, or as in 0.1,0.3,1.", "RANGE|LIST"),
]
Repeats = Annotated[int, _option("Repetitions of each measurement, with draws of their own.", "N")]
NoiseKinds = Annotated[str, _option("additive, multiplicative, mixed. Several: with commas.", "LIST")]
NoisyLayers = Annotated[
    str | None,
    _option(
        "Noisy layers: kinds (linear, conv, norm, activation, recurrent, attention), names, or as in "
        "'features.*'; several: with commas (default: all).",
        "LIST",
    ),
]
PerLayer = Annotated[bool, _option("Measure noise on each layer alone, too.", None, "--per-layer")]
Fluctuating = Annotated[
    bool,
    _option("Measure also with a σ that each repeat draws anew around each level.", None, "--fluctuating"),
]
Multiplicative = Annotated[
    float | None, _option("For mixed noise: σ of its multiplicative part, which stays.", "X")
]
Epochs = Annotated[int | None, _option("Passes over the training data (default: the task's).", "N")]
Rate = Annotated[float | None, _option("Learning rate at the start (default: the task's).", "X", "--lr")]
BatchSize = Annotated[int | None, _option("Samples in a batch (default: the task's, or the data's).", "N")]
Seed = Annotated[int, _option("Root of all random numbers.", "N")]
Seeds = Annotated[str, _option("How many training seeds, or which: 3 is 0,1,2.", "N|LIST")]
Workers = Annotated[int | None, _option("Processes; changes no result (default: one per core).", "N")]
FewWorkers = Annotated[int, _option("Processes that share the work; changes no result.", "N", "--workers")]
Scheduler = Annotated[
    str | None,
    _option(
        "Share the work among the workers of a Dask cluster; changes no result. Needs the extra 'dask'.",
        "ADDRESS",
    ),
]
Metric = Annotated[
    str | None,
    _option(
        "accuracy, loss, perplexity, or module:callable of yours: (output, batch) -> (sum, count), with the "
        "attribute higher_is_better = False where small values are good (default: the task's, or accuracy).",
        "NAME",
    ),
]
Loss = Annotated[
    str | None,
    _option("Your function (output, target) -> loss (default: the task's, or cross-entropy).", _CALLABLE),
]
ValidationMetric = Annotated[
    str | None,
    _option(
        "Of the validation: accuracy, loss, perplexity, or module:callable of yours: (output, batch) -> "
        "(sum, count) (default: the task's, or accuracy).",
        "NAME",
    ),
]
Forward = Annotated[str | None, _option("Your function (model, batch) -> output.", _CALLABLE)]
Floor = Annotated[
    float | None,
    _option("Lifetime: until the mean is X times the digital metric (default: 0.95; 1.05 for losses).", "X"),
]
Device = Annotated[str, _option("Where torch computes: cpu, cuda, …", "NAME")]
Threads = Annotated[
    int,
    _option(
        "Threads of torch; more is faster for large models, but changes the last bits of results.",
        "N",
    ),
]

OutFolder = Annotated[
    Path, _option("Folder for everything that is written.", "FOLDER", panel=OUTPUT, parser=path)
]
MaybeOutFolder = Annotated[
    Path | None,
    _option(
        "Folder for results.csv, summary and picture (default: nothing is written).",
        "FOLDER",
        panel=OUTPUT,
        parser=path,
    ),
]
Force = Annotated[
    bool, _option("Start over: replace what a run left in the folder.", None, "--force", panel=OUTPUT)
]
AsJson = Annotated[bool, _option("Print JSON for machines instead of tables.", None, "--json", panel=OUTPUT)]

FITTED = "What was measured"
ProfileFile = Annotated[
    Path,
    _option(
        "Profile to write; its picture gets the same name with .png.", "FILE", "--out", "-o", panel=OUTPUT
    ),
]
ProfileName = Annotated[
    str | None, _option("Name in the profile (default: that of its file).", "NAME", panel=OUTPUT)
]
FitStart = Annotated[
    str | None,
    _option(
        "Age of the devices when time_s was 0, as in 20s (default: time_s counts from programming).",
        "TIME",
        "--t-0",
        panel=FITTED,
    ),
]
FitReadTime = Annotated[
    str | None, _option("Duration of a read, as in 250ns, the default.", "TIME", "--t-read", panel=FITTED)
]
FitMax = Annotated[
    float | None, _option("Largest target of the profile (default: of the measurements).", "G", panel=FITTED)
]
FitMin = Annotated[
    float | None, _option("Smallest target of the profile (default: of the measurements).", "G", panel=FITTED)
]
TargetUnit = Annotated[
    str | None,
    _option("Unit of the targets, in place of the heading's: S, mS, uS, nS, nA, …", "UNIT", panel=FITTED),
]
ConductanceUnit = Annotated[
    str | None, _option("Unit of the reads, likewise; ends the check of units.", "UNIT", panel=FITTED)
]
Duplicates = Annotated[
    str, _option("Rows that stand several times: refuse, drop or keep.", "WHAT", panel=FITTED)
]
ClampNegative = Annotated[
    bool,
    _option("Count negative reads as zero instead of refusing them.", None, "--clamp-negative", panel=FITTED),
]
FitCurves = Annotated[
    list[str] | None,
    _option(
        "Form to take instead of the best, as in nu_mean=log. Curves: sigma, nu_mean, nu_std, "
        "relative_sigma. Several: the option again.",
        "CURVE=FORM",
        "--curve",
    ),
]
Confidence = Annotated[float, _option("Level of the intervals.", "X")]
