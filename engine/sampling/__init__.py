"""The method, for any family: flow times, the Euler step, guidance, the loop, decoding, previews."""
