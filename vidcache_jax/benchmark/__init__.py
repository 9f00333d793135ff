"""What the device at hand makes of a model: ceilings, attention, chunks, decoding.

timing     medians of calls that take turns
ceilings   matrix products and copies, the limits that the rest is seen against
attention  each implementation at several windows
chunks     a policy's chunk beside a window's; the first chunk; decoding
video      a rollout without pixels
wan        models with Wan's shapes and random weights
"""
