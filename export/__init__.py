"""From a trained network to files for TF Serving and devices.

`compact.compact(model)` is the inference graph; `saved_model` and `tflite` write and check one format each;
`serving` and `warmup` write what TF Serving reads beside them; `python -m export.prune_and_save` does all of it.
"""
