"""Training objectives: pure functions first, thin settings objects second."""

if __name__ != "gflow.objectives":
    raise ImportError("import gflow.objectives, not objectives")
