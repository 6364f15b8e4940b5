"""How weights become small numbers: each algorithm in one module, on float32 tensors, without an engine.

    rounding.py      to the nearest step of a grid: what every other algorithm ends with, and is judged by
    gptq.py          what rounding one channel spoils, the channels after it make good
    awq.py           channels that see large inputs get finer steps, at the cost of the layer before
    clipping.py      a group's largest weights give way, so that its steps become finer
    smoothquant.py   the range of activations moves into the weights, and both fit in 8 bits
    fp8.py           8-bit floats, a scale for each output channel
    folding.py       what AWQ and SmoothQuant multiply a matrix's inputs by, divided out before it

Read next: `rounding.py`, then `minivllm/model/quantization/quantize_layers.py`, which runs them through a
model.
"""
