"""What a script defines travels by value, and is left as it is where it comes from."""

import subprocess
import sys

SCRIPT = """
import torch
import analognoise as an
from concurrent.futures import ThreadPoolExecutor

FACTOR = 1.0


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(4, 2)

    def forward(self, x):
        return self.head(x) * FACTOR


model = Net()
data = [(torch.ones(3, 4), torch.zeros(3, dtype=torch.long))]
analog, forward = an.convert_to_analog(model, "ideal"), Net.forward
with ThreadPoolExecutor(2) as executor:
    rows = an.evaluate_drift(analog, data, times=["1s"], chips=3, executor=executor).rows
assert rows == an.evaluate_drift(analog, data, times=["1s"], chips=3).rows
assert Net.forward is forward
FACTOR = 0.0
assert not model(data[0][0]).any()
"""


def test_threads_leave_the_classes_of_a_script_as_they_are() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
