"""An optimizer around an optimizer.

A training method decides at which weights the gradient is taken; the base optimizer decides what to do with
it. So each method is a ``torch.optim.Optimizer`` that holds a base *instance* and shows its parameter groups
and state as its own.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from analognoise.calibration import learned_ranges, ranges, set_ranges_
from analognoise.errors import MethodError
from analognoise.printing import kind_of
from analognoise.processes import Processes, unwrapped
from analognoise.training.checks import check_base, check_sync
from analognoise.training.replay import Replay

_OWN_STATE = "analognoise"
# Rebuilt after copying, or (a scheduler's patched ``step``, hooks) never copied by torch's optimizers either.
_REBUILT = {"_names", "_chip", "_drawn", "_replay", "_processes", "_ranges", "_quantized", "_grids"}
_NOT_COPIED = _REBUILT | {"step", "_opt_called", "_zero_grad_profile_name"}


class OptimizerAround(Optimizer):
    """What an optimizer must do to stand for its base: groups, state, copies and checkpoints.

    Attributes:
        base: the base optimizer.
        model: the module whose parameters it trains, taken out of ``DistributedDataParallel``.
        sync: whether every process of a ``DistributedDataParallel`` model takes the same perturbation ("all")
            or one of its own ("worker").
        steps: number of steps taken; warm-ups and random keys count with it.
        seed: root of the random keys.

    Raises:
        MethodError: for a base that is not an optimizer instance over the model's parameters.
    """

    def __init__(self, base: Optimizer, model: nn.Module, seed: int, sync: str = "all") -> None:
        method = type(self).__name__
        check_base(method, base, model)
        if isinstance(base, OptimizerAround):
            raise MethodError(
                f"{method}: base is {kind_of(base)}, which wraps an optimizer itself: give {method} "
                "the inner one, and clip and noise as options"
            )
        self.base = base
        self.model = unwrapped(model)
        self.seed = int(seed)
        self.steps = 0
        # Optimizer.__init__ would make its own groups and state; __setstate__ makes the rest, such as hooks.
        super().__setstate__({})
        self.distribute(model, sync=sync)
        self._index()

    def distribute(self, model: nn.Module, *, sync: str = "all") -> None:
        """Step in step with the other processes of a ``DistributedDataParallel``; the constructor does it for
        the model it is given.

        All processes call it together. Converter ranges (:func:`analognoise.ranges`) become those of the
        first, as the wrapper does with parameters.

        Args:
            model: the wrapper around this optimizer's model.
            sync: as in :class:`WrappedOptimizer`.

        Raises:
            MethodError: for another ``sync``, or "worker" in several processes without the wrapper.
        """
        check_sync(type(self).__name__, sync, model)
        self.sync = sync
        self._wrapper = model
        self._processes = Processes(model)
        if self._processes.count > 1:
            first = {name: values.cpu() for name, values in ranges(self.model).items()}
            set_ranges_(self.model, self._processes.gather(first)[0])

    # Properties, because load_state_dict gives the base new objects.

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Parameter groups of the base optimizer."""
        return self.base.param_groups

    @param_groups.setter
    def param_groups(self, value: list[dict[str, Any]]) -> None:
        self.base.param_groups = value

    @property
    def state(self) -> Any:
        """State of the base optimizer."""
        return self.base.state

    @state.setter
    def state(self, value: Any) -> None:
        self.base.state = value

    @property
    def defaults(self) -> dict[str, Any]:
        """Default options of the base optimizer's groups."""
        return self.base.defaults

    @defaults.setter
    def defaults(self, value: dict[str, Any]) -> None:
        self.base.defaults = value

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of the base optimizer's parameters."""
        self.base.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base optimizer; it may carry this method's own options.

        Raises:
            MethodError: when a parameter is not in the model, or an option is out of range; nothing is added.
        """
        self.base.add_param_group(param_group)
        try:
            self._index()
        except MethodError:
            self.base.param_groups.pop()
            raise

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's state dict, and under ``"analognoise"`` the number of steps, the seed, and
        whether second passes replay Python's and NumPy's random numbers.
        """
        for before in self._optimizer_state_dict_pre_hooks.values():
            before(self)
        own = {"steps": self.steps, "seed": self.seed, "watch_all": self._replay.watch_all}
        state_dict = {**self.base.state_dict(), _OWN_STATE: own}
        for after in self._optimizer_state_dict_post_hooks.values():
            state_dict = after(self, state_dict) or state_dict
        return state_dict

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` gave, to go on bit for bit; a plain optimizer's starts at step 0."""
        state_dict = dict(state_dict)
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = before(self, state_dict) or state_dict
        own = state_dict.pop(_OWN_STATE, {"steps": 0, "seed": self.seed})
        self.base.load_state_dict(state_dict)
        self.steps, self.seed = int(own["steps"]), int(own["seed"])
        self._forget()
        self._index()
        self._replay.watch_all = own.get("watch_all")
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def __getstate__(self) -> dict[str, Any]:
        if self._mid_step:
            raise MethodError(
                f"{type(self).__name__} cannot be copied in the middle of a step: finish it first"
            )
        return {
            name: value
            for name, value in vars(self).items()
            if name not in _NOT_COPIED and not (name.startswith("_optimizer_") and name.endswith("_hooks"))
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._index()

    @property
    def _mid_step(self) -> bool:
        """Whether the weights are not the clean ones now."""
        return False

    def _forget(self) -> None:
        """Drop what belongs to a step under way."""

    def _index(self) -> None:
        """Learn names and chip weights anew, and check the base's groups against them."""
        self._names: dict[Tensor, str] = {}
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            # A tied parameter counts as a weight when any of its names says so.
            if parameter not in self._names or "weight" in name:
                self._names[parameter] = name
        self._processes = Processes(self._wrapper)
        self._replay = Replay(self.model)
        self._ranges = list(learned_ranges(self.model).values())
        for parameter in self._ranges:
            self._names[parameter] = "learned range"
        for number, group in enumerate(self.param_groups):
            for position, parameter in enumerate(group["params"]):
                if parameter not in self._names:
                    raise MethodError(
                        f"{type(self).__name__}: parameter {position} of group {number} of the base, shape "
                        f"{tuple(parameter.shape)}, is not a parameter of {type(self.model).__name__}: "
                        "make the base optimizer from the model's own parameters"
                    )
