"""What Diffusers' example scripts do, as loops of our own: the side that is compared with.

The scripts are not a part of the package, and are not copied here. Each function names the place in them that it does
the work of, in the release v0.40.0: examples/dreambooth/train_dreambooth_lora.py (L),
examples/dreambooth/train_dreambooth.py (D) and examples/textual_inversion/textual_inversion.py (T), with lines. What
they do beside the training is left out where nobody asked for it: trackers, the Hub, validation pictures, resuming.

Where this differs from the scripts, it is to their advantage or makes no difference:

- The loss is not read after each step (L1369, D1393, T971 call `.item()` for the progress bar, which makes the host
  wait for the GPU).
- `torchvision` is not imported; what its transforms compute is written out (`pictures.py`).
- Trackers (`accelerator.log`) are left out: TensorBoard is not installed.
- The precision is what the other side has: bf16 on a GPU, where the documented commands train in fp32 or fp16.
"""
