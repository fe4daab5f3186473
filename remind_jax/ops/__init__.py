"""Pure functions on arrays: no Flax, no data stack, no state.

Every einsum, signature and comment of the project uses the same axis letters:

  b batch                 t tokens of one modality       f hidden width of an expert   k head width
  n tokens of all         d width                        e experts                     c classes
    modalities            h heads                        s slots per expert            l layers
  m modality              g modality-combination groups
"""
