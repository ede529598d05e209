"""What runs a component, one file per backend: called with {input: array}, returns {output: array}."""
