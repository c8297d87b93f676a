"""Activation sparsity: forms of it, regularisers for training, and how sparse a model is."""

from analognoise.sparsity.conversion import (
    SparseActivation,
    activation_layers,
    sparse_layers,
    sparsify,
    sparsify_as,
)
from analognoise.sparsity.forms import FORMS, Sparsity
from analognoise.sparsity.measure import ActivationSparsity, LayerSparsity, activation_sparsity
from analognoise.sparsity.penalty import KINDS, ActivationPenalty, activation_penalty
from analognoise.sparsity.presets import PRESETS

__all__ = [
    "FORMS",
    "KINDS",
    "PRESETS",
    "ActivationPenalty",
    "ActivationSparsity",
    "LayerSparsity",
    "SparseActivation",
    "Sparsity",
    "activation_layers",
    "activation_penalty",
    "activation_sparsity",
    "sparse_layers",
    "sparsify",
    "sparsify_as",
]
